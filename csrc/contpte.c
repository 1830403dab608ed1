// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of single last-level entries, and the contiguous blocks they may be in. The reference, with the
 * rule for what is counted, is mm/contpte.py.
 */
#include "contpte.h"

/** young_dirty - the bits of young and of dirty of an entry that is what any of nr entries is */
u64 young_dirty(const struct vk *k, u64 pte, u64 nr)
{
	int young = 0, dirty = 0;

	for (u64 i = pte; !(young && dirty) && i < pte + nr; i++) {
		young |= (k->phys[i] & PTE_YOUNG_MASK) == PTE_YOUNG_ON;
		dirty |= (k->phys[i] & PTE_DIRTY_MASK) == PTE_DIRTY_ON;
	}
	return (young ? PTE_YOUNG_ON : PTE_YOUNG_OFF) | (dirty ? PTE_DIRTY_ON : PTE_DIRTY_OFF);
}

/* Count a block that is cleared entry by entry, flushed and written anew. */
static void count_conversion(struct vk *k, int what)
{
	u64 nr = k->fault[FAULT_CONT_NR];

	k->work[what]++;
	k->work[WORK_pte_read] += nr;
	k->work[WORK_pte_write] += 2 * nr;
	k->work[WORK_tlbi]++;
}

/** unfold - take the contiguous bit from the block of an entry; young and dirty of any are those of all */
void unfold(struct vk *k, u64 pte)
{
	u64 bit = k->fault[FAULT_CONT_BIT];
	u64 nr = k->fault[FAULT_CONT_NR];
	u64 first;

	if (!(k->phys[pte] & bit))
		return;
	first = pte & ~(nr - 1);
	modify_ptes(k, first, bit | PTE_YOUNG_MASK | PTE_DIRTY_MASK, young_dirty(k, first, nr), nr);
	count_conversion(k, WORK_contpte_unfold);
}

/** try_fold - make the block of an entry just written contiguous if that entry is its last and all fit */
void try_fold(struct vk *k, u64 pte, u64 entry)
{
	u64 mask = k->fault[FAULT_CONT_NR] - 1;
	u64 page = pte_pfn(entry);
	u64 marks = PTE_YOUNG_MASK | PTE_DIRTY_MASK;
	u64 first = pte - mask;
	u64 folio = page_record(k, page)[PAGE_HEAD];
	u64 alike = 0;

	if ((pte & page & mask) != mask || (entry & PTE_SPECIAL_MASK) == PTE_SPECIAL_ON ||
	    (entry & PTE_PRESENT_MASK) != PTE_PRESENT_ON)
		return;
	if (folio > page - mask || folio + ((u64)1 << page_record(k, folio)[PAGE_ORDER]) <= page)
		return;
	if ((k->phys[first] & ~marks) == (entry & ~marks) - (mask << PTE_PFN_SHIFT))
		alike = folio_pte_batch(k, first, marks, mask + 1);
	k->work[WORK_pte_read] += alike ? alike : 1;
	if (alike <= mask)
		return;
	modify_ptes(k, first, marks, k->fault[FAULT_CONT_BIT] | young_dirty(k, first, mask + 1),
		    mask + 1);
	count_conversion(k, WORK_contpte_fold);
}

/**
 * map_ptes - write entries of pages that follow one another, where none were
 *
 * Whole aligned blocks become contiguous; the last entry of one, written alone, may make it so.
 */
void map_ptes(struct vk *k, u64 pte, u64 entry, u64 nr)
{
	u64 bit = k->fault[FAULT_CONT_BIT];
	u64 mask = k->fault[FAULT_CONT_NR] - 1;
	u64 end = pte + nr;

	k->work[WORK_pte_write] += nr;
	entry &= ~bit;
	/* No TLB entry to save for a PROT_NONE page. */
	if (!bit || nr == 1 || (entry & PTE_PRESENT_MASK) != PTE_PRESENT_ON) {
		set_ptes(k, pte, entry, nr);
		if (nr == 1 && may_fold(k, pte))
			try_fold(k, pte, entry);
		return;
	}
	while (pte < end) {
		u64 stop = (pte | mask) + 1;

		if (stop > end)
			stop = end;
		set_ptes(k, pte, (pte | stop | pte_pfn(entry)) & mask ? entry : entry | bit,
			 stop - pte);
		entry += (stop - pte) << PTE_PFN_SHIFT;
		pte = stop;
	}
}

/**
 * unfold_edges - unfold the blocks that a change of nr entries covers only in part
 *
 * Unless blocks can be changed as a whole: then the first change of an entry unfolds its block.
 */
void unfold_edges(struct vk *k, u64 pte, u64 nr)
{
	u64 size = k->fault[FAULT_CONT_NR];
	u64 mask = size - 1;

	if (!size)
		return;
	if (!k->fault[FAULT_CONTPTE_BATCH]) {
		for (u64 block = pte & ~mask; block < pte + nr; block += size)
			unfold(k, block);
		return;
	}
	if (pte & mask || nr < size)
		unfold(k, pte);
	if ((pte + nr) & mask)
		unfold(k, pte + nr - 1);
}

/** read_blocks - count what a walk over nr entries reads beyond one read each, for contiguous blocks */
void read_blocks(struct vk *k, u64 pte, u64 nr)
{
	u64 size = k->fault[FAULT_CONT_NR];
	u64 hint = k->fault[FAULT_CONTPTE_BATCH];
	u64 end = pte + nr;

	if (!size || (hint && !((pte | nr) & (size - 1))))
		return;
	while (pte < end) {
		u64 stop = (pte | (size - 1)) + 1;

		if (stop > end)
			stop = end;
		if (k->phys[pte] & k->fault[FAULT_CONT_BIT])
			k->work[WORK_pte_read] += size * (hint ? 1 : stop - pte) - (stop - pte);
		pte = stop;
	}
}

/** read_pte - count the read of a present entry: young and dirty of a block are those of all its entries */
void read_pte(struct vk *k, u64 pte)
{
	k->work[WORK_pte_read] +=
		k->phys[pte] & k->fault[FAULT_CONT_BIT] ? k->fault[FAULT_CONT_NR] : 1;
}

/** clear_ptes_range - make nr entries none, for every processor, before they map something else */
void clear_ptes_range(struct vk *k, u64 pte, u64 nr)
{
	unfold_edges(k, pte, nr);
	clear_ptes(k, pte, nr);
	k->work[WORK_pte_read] += nr;
	k->work[WORK_pte_write] += nr;
	k->work[WORK_tlbi]++;
}

/** set_access_flags - replace an entry by one with more rights, or with young and dirty set */
void set_access_flags(struct vk *k, u64 pte, u64 entry)
{
	u64 old = k->phys[pte];
	u64 bit = k->fault[FAULT_CONT_BIT];
	u64 nr = k->fault[FAULT_CONT_NR];
	u64 marks = PTE_YOUNG_MASK | PTE_DIRTY_MASK;

	read_pte(k, pte);
	if (old == entry)
		return;
	k->work[WORK_tlbi]++;
	if ((old ^ entry) & PTE_WRITE_MASK) {
		unfold(k, pte);
	} else if (old & bit) {
		modify_ptes(k, pte & ~(nr - 1), marks, entry & marks, nr);
		k->work[WORK_pte_read] += nr;
		k->work[WORK_pte_write] += nr;
		return;
	}
	k->phys[pte] = entry & ~bit;
	k->work[WORK_pte_write]++;
}

/** set_access_flags_range - make nr entries of one folio young, dirty and writable */
void set_access_flags_range(struct vk *k, u64 pte, u64 nr)
{
	unfold_edges(k, pte, nr);
	modify_ptes(k, pte, PTE_YOUNG_MASK | PTE_DIRTY_MASK | PTE_WRITE_MASK,
		    PTE_YOUNG_ON | PTE_DIRTY_ON | PTE_WRITE_ON, nr);
	k->work[WORK_pte_read] += nr;
	k->work[WORK_pte_write] += nr;
	k->work[WORK_tlbi]++;
}
