// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loops over runs of entries, on a table that is borrowed from the end of memory and given back as it was.
 * What a call must leave is worked out entry by entry.
 */
#include <string.h>

#include "fuzz.h"

enum { TABLE_WORDS = 1 << PTE_BITS };

static u64 kept[TABLE_WORDS], wanted[TABLE_WORDS];

/** struct run - a borrowed table and a run of its entries */
struct run {
	u64 *table;
	u64 pte;
	u64 first;
	u64 nr;
};

static u64 some_entry(struct vk *k, struct input *in)
{
	u64 pfn = below(in, image->nr_pages) << PTE_PFN_SHIFT;

	switch (below(in, 6)) {
	case 0:
		return take(in, 8);
	case 1:
		return (pfn & ~PTE_PROT_NONE_MASK) | PTE_PROT_NONE_ON;
	case 2:
		return pfn | PTE_PRESENT_ON | k->fault[FAULT_CONT_BIT];
	case 3:
		return pte_mkwritten(pfn | PTE_PRESENT_ON);
	default:
		return pfn | PTE_PRESENT_ON;
	}
}

/* Borrow a table, fill it with stretches of entries, and choose a run. */
static struct run borrow(struct vk *k, struct input *in)
{
	u64 end = image->nr_pages << PAGE_WORDS_SHIFT;
	struct run run = {.pte = end - TABLE_WORDS * between(in, 1, 3)};

	run.table = k->phys + run.pte;
	memcpy(kept, run.table, sizeof(kept));
	memset(run.table, 0, sizeof(kept));
	for (u64 stretches = below(in, 5); stretches; stretches--) {
		u64 at = below(in, TABLE_WORDS);
		u64 last = between(in, at, TABLE_WORDS - 1);
		u64 entry = some_entry(k, in);
		u64 step = below(in, 4) ? (u64)1 << PTE_PFN_SHIFT : 0;

		for (; at <= last; at++, entry += step)
			run.table[at] = entry;
	}
	memcpy(wanted, run.table, sizeof(wanted));
	run.first = below(in, TABLE_WORDS);
	run.nr = TABLE_WORDS - run.first; /* often to the very end */
	if (below(in, 4))
		run.nr = between(in, 1, run.nr);
	run.pte += run.first;
	return run;
}

static void give_back(const struct run *run)
{
	EXPECT(!memcmp(run->table, wanted, sizeof(wanted)));
	memcpy(run->table, kept, sizeof(kept));
}

static void case_check_ptes_none(struct vk *k, struct input *in)
{
	struct run run = borrow(k, in);
	u64 none = 0;

	while (none < run.nr && !wanted[run.first + none])
		none++;
	EXPECT(check_ptes_none(k, run.pte, run.nr) == none);
	give_back(&run);
}

static void case_set_ptes(struct vk *k, struct input *in)
{
	struct run run = borrow(k, in);
	u64 entry = some_entry(k, in);

	for (u64 i = 0; i < run.nr; i++)
		wanted[run.first + i] = entry + (i << PTE_PFN_SHIFT);
	set_ptes(k, run.pte, entry, run.nr);
	give_back(&run);
}

static void case_clear_ptes(struct vk *k, struct input *in)
{
	struct run run = borrow(k, in);

	for (u64 i = 0; i < run.nr; i++)
		wanted[run.first + i] = 0;
	clear_ptes(k, run.pte, run.nr);
	give_back(&run);
}

static void case_modify_ptes(struct vk *k, struct input *in)
{
	struct run run = borrow(k, in);
	u64 clear = take(in, 8), set = take(in, 8);

	for (u64 i = 0; i < run.nr; i++)
		wanted[run.first + i] = (wanted[run.first + i] & ~clear) | set;
	modify_ptes(k, run.pte, clear, set, run.nr);
	give_back(&run);
}

static void case_folio_pte_batch(struct vk *k, struct input *in)
{
	struct run run = borrow(k, in);
	u64 ignore = PTE_YOUNG_MASK | PTE_DIRTY_MASK;
	const u64 *p = wanted + run.first;
	u64 nr = 1;

	ignore = below(in, 2) ? ignore : below(in, 2) ? ignore | PTE_WRITE_MASK : 0;
	while (nr < run.nr && pte_present(p[nr]) &&
	       (p[nr] & ~ignore) == (p[0] & ~ignore) + (nr << PTE_PFN_SHIFT))
		nr++;
	EXPECT(folio_pte_batch(k, run.pte, ignore, run.nr) == nr);
	give_back(&run);
}

/* Whether the run has all of the group that entry i begins, and the group is one for the processor. */
static int is_group(const struct run *run, u64 i)
{
	const u64 *p = wanted + run->first + i;

	if ((run->first + i) % HPA_PAGES || i + HPA_PAGES > run->nr || pte_pfn(*p) % HPA_PAGES)
		return 0;
	for (u64 j = 1; j < HPA_PAGES; j++)
		if (p[j] != *p + (j << PTE_PFN_SHIFT))
			return 0;
	return 1;
}

static void case_tlb_reach_ptes(struct vk *k, struct input *in)
{
	struct run run = borrow(k, in);
	u64 cont = k->fault[FAULT_CONT_BIT], block = k->fault[FAULT_CONT_NR];
	u64 at = (below(in, 2) ? TLB_ALIVE : TLB_ENDED) + (below(in, 2) ? TLB_TEXT : TLB_DATA);
	u64 pages = 0, hpa = 0, marked = 0, entries = 0, best = 0;
	u64 before[6];

	memcpy(before, k->tlb + at, sizeof(before));
	for (u64 i = 0, step; i < run.nr; i += step) {
		u64 entry = wanted[run.first + i];

		step = 1;
		if ((entry & PTE_PRESENT_MASK) != PTE_PRESENT_ON)
			continue;
		step = is_group(&run, i) ? HPA_PAGES : 1;
		pages += step;
		hpa++;
		if (entry & cont) {
			marked += step;
			entries += !((run.first + i) % block);
			best += !((run.first + i) % block);
		} else {
			entries += step;
			best++;
		}
	}
	tlb_reach_ptes(k, run.pte, run.nr, cont, block, at);
	EXPECT(k->tlb[at + TLB_PAGES] - before[TLB_PAGES] == pages);
	EXPECT(k->tlb[at + TLB_PLAIN] - before[TLB_PLAIN] == pages);
	EXPECT(k->tlb[at + TLB_HPA] - before[TLB_HPA] == hpa);
	EXPECT(k->tlb[at + TLB_CONT] - before[TLB_CONT] == entries);
	EXPECT(k->tlb[at + TLB_BEST] - before[TLB_BEST] == best);
	EXPECT(k->tlb[at + TLB_CONT_PAGES] - before[TLB_CONT_PAGES] == marked);
	give_back(&run);
}

const struct fuzz_case pte_cases[] = {
	{"check_ptes_none", case_check_ptes_none},
	{"set_ptes", case_set_ptes},
	{"clear_ptes", case_clear_ptes},
	{"modify_ptes", case_modify_ptes},
	{"folio_pte_batch", case_folio_pte_batch},
	{"tlb_reach_ptes", case_tlb_reach_ptes},
	{NULL, NULL},
};
