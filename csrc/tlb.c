// SPDX-License-Identifier: GPL-2.0-only
/* What a TLB would need. The Python twins are in mm/ranges.py and mm/tlb.py. */
#include "fault.h"
#include "pgtable.h"

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

/* Add the TLB entries of what a VMA maps. */
static void tlb_reach_vma(struct vk *k, const u64 *vma, u64 at)
{
	u64 address = vma[VMA_START], end = vma[VMA_END];
	u64 *pmd;

	while ((pmd = next_pmd(k, vma[VMA_MM], &address, end))) {
		u64 stop = pmd_addr_end(address, end);
		u64 nr = (stop - address) >> PAGE_SHIFT;

		if (!pmd_trans_huge(*pmd)) {
			tlb_reach_ptes(k, pte_in_table(*pmd, address), nr, k->fault[FAULT_CONT_BIT],
				       k->fault[FAULT_CONT_NR], at);
		} else if (is(*pmd, PTE_PRESENT_MASK, PTE_PRESENT_ON)) {
			k->tlb[at + TLB_PAGES] += nr;
			k->tlb[at + TLB_PLAIN]++;
			k->tlb[at + TLB_HPA]++;
			k->tlb[at + TLB_CONT]++;
			k->tlb[at + TLB_BEST]++;
		}
		address = stop;
	}
}

/**
 * vk_tlb_reach - add the TLB entries of what an mm maps, by data and text
 * @at: TLB_ENDED or TLB_ALIVE
 */
void vk_tlb_reach(struct vk *k, u64 mm, u64 at)
{
	const u32 *index = k->vma_index + mm * MAX_MAP_COUNT;
	u64 nr = k->mm[mm * MM_RECORD + MM_MAP_COUNT];

	for (u64 i = 0; i < nr; i++) {
		const u64 *vma = k->vma + (u64)index[i] * VMA_RECORD;
		const u64 *file = k->file + vma[VMA_FILE] * FILE_RECORD;
		int text = vma[VMA_FILE] && vma[VMA_FLAGS] & VM_EXEC && !file[FILE_SHMEM];

		tlb_reach_vma(k, vma, at + (text ? TLB_TEXT : TLB_DATA));
	}
}
