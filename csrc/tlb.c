// SPDX-License-Identifier: GPL-2.0-only
/* What a TLB would need for a run of last-level entries. The Python twin is in mm/ranges.py. */
#include "core.h"

/* Whether an aligned group of entries maps aligned, consecutive pages, all else (young, dirty) equal. */
static int hpa_group(const u64 *p)
{
	if (pte_pfn(p[0]) % HPA_PAGES)
		return 0;
	for (u64 i = 1; i < HPA_PAGES; i++)
		if (p[i] != p[0] + (i << PTE_PFN_SHIFT))
			return 0;
	return 1;
}

/**
 * tlb_reach_ptes - count the TLB entries of a run of entries of one table
 * @cont: the contiguous bit; 0 = none
 * @block: entries of a contiguous block, a multiple of HPA_PAGES
 * @at: where in the tlb array the TLB_* fields are that it adds to
 *
 * Entries that user code cannot use (none, PROT_NONE) count nothing. A block counts at its first entry.
 */
void tlb_reach_ptes(struct vk *k, u64 pte, u64 nr, u64 cont, u64 block, u64 at)
{
	u64 end = pte + nr;
	u64 pages = 0, hpa = 0, marked = 0, hpa_marked = 0, blocks = 0;

	while (pte < end) {
		const u64 *p = k->phys + pte;

		if ((*p & PTE_PRESENT_MASK) != PTE_PRESENT_ON) {
			pte++;
			continue;
		}

		int group = !(pte % HPA_PAGES) && pte + HPA_PAGES <= end && hpa_group(p);
		u64 step = group ? HPA_PAGES : 1;

		pages += step;
		hpa++;
		if (*p & cont) {
			marked += step;
			hpa_marked++;
			blocks += !(pte % block);
		}
		pte += step;
	}
	k->tlb[at + TLB_PAGES] += pages;
	k->tlb[at + TLB_PLAIN] += pages;
	k->tlb[at + TLB_HPA] += hpa;
	k->tlb[at + TLB_CONT] += pages - marked + blocks;
	k->tlb[at + TLB_BEST] += hpa - hpa_marked + blocks;
	k->tlb[at + TLB_CONT_PAGES] += marked;
}
