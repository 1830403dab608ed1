// SPDX-License-Identifier: GPL-2.0-only
/*
 * What happens to huge entries: they are split, unmapped, shared with a child and given another protection.
 * The reference is mm/huge_memory.py, and for the counts of their mappings mm/rmap.py.
 */
#include "contpte.h"
#include "fault.h"
#include "huge_memory.h"
#include "pgtable.h"

/** pgtable_trans_huge_deposit - keep a page table in reserve for a huge entry of mm */
void pgtable_trans_huge_deposit(struct vk *k, u64 mm, u64 table)
{
	u64 *reserve = k->mm + mm * MM_RECORD + MM_HUGE_PTE;

	page_record(k, table)[PAGE_NEXT] = (u32)*reserve;
	*reserve = table;
}

static u64 pgtable_trans_huge_withdraw(struct vk *k, u64 mm)
{
	u64 *reserve = k->mm + mm * MM_RECORD + MM_HUGE_PTE;
	u64 table = *reserve;
	u32 *p = page_record(k, table);

	*reserve = p[PAGE_NEXT];
	p[PAGE_NEXT] = 0;
	return table;
}

static void folio_add_rmap_pmd(struct vk *k, u64 folio, u64 mm)
{
	u32 *head = page_record(k, folio);

	if (!head[FOLIO_ENTIRE_MAPCOUNT])
		k->vmstat[VM_nr_anon_pages] += PTRS_PER_PTE - head[FOLIO_NR_PAGES_MAPPED];
	head[FOLIO_ENTIRE_MAPCOUNT]++;
	head[FOLIO_LARGE_MAPCOUNT]++;
	if (CONFIG_MM_ID)
		folio_add_mm(k, folio, mm, 1);
	k->work[WORK_rmap_add]++;
}

/* It is queued for splitting if that unmapped some of its pages but not all. */
static void folio_remove_rmap_pmd(struct vk *k, u64 folio, u64 mm)
{
	u32 *head = page_record(k, folio);
	u32 left = head[FOLIO_NR_PAGES_MAPPED];

	head[FOLIO_ENTIRE_MAPCOUNT]--;
	head[FOLIO_LARGE_MAPCOUNT]--;
	if (CONFIG_MM_ID)
		folio_sub_mm(k, folio, mm, 1);
	k->work[WORK_rmap_remove]++;
	if (head[FOLIO_ENTIRE_MAPCOUNT])
		return;
	k->vmstat[VM_nr_anon_pages] -= PTRS_PER_PTE - left;
	if (left && left < PTRS_PER_PTE)
		deferred_split_folio(k, folio, 1);
}

/* Turn a huge entry's mapping into one of each page; of an exclusive folio all become exclusive. */
static void folio_split_rmap_pmd(struct vk *k, u64 folio, u64 mm)
{
	u32 *head = page_record(k, folio);
	u32 exclusive = head[PAGE_FLAGS] & PG_exclusive;

	folio_dup_anon_rmap_ptes(k, folio, folio, PTRS_PER_PTE); /* all were and stay mapped */
	head[FOLIO_ENTIRE_MAPCOUNT]--;
	head[FOLIO_LARGE_MAPCOUNT]--;
	for (u64 i = 0; exclusive && i < PTRS_PER_PTE; i++)
		head[i * PAGE_RECORD + PAGE_FLAGS] |= PG_exclusive;
	if (CONFIG_MM_ID) {
		folio_add_mm(k, folio, mm, PTRS_PER_PTE);
		folio_sub_mm(k, folio, mm, 1);
	}
	k->work[WORK_rmap_add] += CONFIG_ANON_POLICY_MTHP ? 1 : PTRS_PER_PTE;
	k->work[WORK_rmap_remove]++;
}

/* The entry of the first page of what a huge entry maps. */
static u64 pmd_to_pte(u64 pmd)
{
	return is(PTE_USER, PTE_LEAF_MASK, PTE_LEAF_ON) ? pmd
							: (pmd & ~PTE_LEAF_MASK) | PTE_LEAF_OFF;
}

/**
 * vk_split_huge_pmd - replace a huge entry by a page table that maps the same; the folio stays whole
 * @place: the entry's
 *
 * The table is the one in reserve.
 */
void vk_split_huge_pmd(struct vk *k, u64 mm, u64 place)
{
	u64 entry = pmd_to_pte(k->phys[place]);
	u64 table = pgtable_trans_huge_withdraw(k, mm);
	u64 first = table << PAGE_WORDS_SHIFT;

	populate(k, k->phys + place, table);
	k->work[WORK_pte_read]++;
	k->work[WORK_pte_write] += 2;
	k->work[WORK_tlbi]++;
	k->vmstat[VM_thp_split_pmd]++;
	if (is(entry, PTE_SPECIAL_MASK, PTE_SPECIAL_ON)) {
		entry = (entry & ~PTE_PFN_MASK) | k->fault[FAULT_ZERO_PFN] << PTE_PFN_SHIFT;
		for (u64 i = first; i < first + PTRS_PER_PTE; i++)
			k->phys[i] = entry;
		k->work[WORK_pte_write] += PTRS_PER_PTE;
		return;
	}
	page_record(k, pte_pfn(entry))[PAGE_REFCOUNT] += PTRS_PER_PTE - 1;
	folio_split_rmap_pmd(k, pte_pfn(entry), mm);
	map_ptes(k, first, entry, PTRS_PER_PTE);
}

/** update_hiwater_rss - keep the largest resident set, as ru_maxrss has it since 6.2; mm/folio.py */
void update_hiwater_rss(u64 *mm)
{
	const u64 whole = ~(u64)31; /* what a processor has not folded in yet is not seen */
	u64 rss = (mm[MM_ANONPAGES] & whole) + (mm[MM_FILEPAGES] & whole);

	if (rss > mm[MM_HIWATER_RSS])
		mm[MM_HIWATER_RSS] = rss;
}

/** zap_huge_pmd - unmap all of what a huge entry maps; its folio is freed with its last reference */
void zap_huge_pmd(struct vk *k, u64 mm, u64 *pmd)
{
	u64 *record = k->mm + mm * MM_RECORD;
	u64 entry = *pmd;
	u64 folio = pte_pfn(entry);

	*pmd = 0;
	k->work[WORK_pte_read]++;
	k->work[WORK_pte_write]++;
	pte_free(k, mm, pgtable_trans_huge_withdraw(k, mm));
	if (is(entry, PTE_SPECIAL_MASK, PTE_SPECIAL_ON)) {
		k->event[EV_zap_anon * NR_ORDERS]++;
		return;
	}
	update_hiwater_rss(record);
	record[MM_ANONPAGES] -= PTRS_PER_PTE;
	k->event[EV_zap_anon * NR_ORDERS + PMD_ORDER] += PTRS_PER_PTE;
	folio_remove_rmap_pmd(k, folio, mm);
	if (!--page_record(k, folio)[PAGE_REFCOUNT])
		free_anon_folio(k, folio);
}

/**
 * copy_huge_pmd - share what a huge entry maps with a child at the same address
 * @mm: the child's
 * @source: the parent's entry
 *
 * Return: 0 = there is no memory for a table; those made stay.
 */
int copy_huge_pmd(struct vk *k, u64 mm, u64 *source, u64 address)
{
	u64 *pmd = pmd_offset(k, mm, address, 1);
	u64 table = pmd ? pte_alloc_one(k, mm) : 0;

	if (!table)
		return 0;
	pgtable_trans_huge_deposit(k, mm, table);
	if (!is(*source, PTE_SPECIAL_MASK, PTE_SPECIAL_ON)) {
		u64 folio = pte_pfn(*source);
		u32 *head = page_record(k, folio);

		head[PAGE_REFCOUNT]++;
		head[PAGE_FLAGS] &= ~(u32)PG_exclusive;
		folio_add_rmap_pmd(k, folio, mm);
		k->mm[mm * MM_RECORD + MM_ANONPAGES] += PTRS_PER_PTE;
		k->event[EV_fork_anon * NR_ORDERS + PMD_ORDER] += PTRS_PER_PTE;
		*source = pte_wrprotect(*source);
		k->work[WORK_pte_read]++;
		k->work[WORK_pte_write]++;
	}
	*pmd = pte_mkold(*source);
	k->work[WORK_pte_read]++;
	k->work[WORK_pte_write]++;
	return 1;
}

/** change_huge_pmd - give a huge entry its VMA's protection; it may be written to at once if exclusive */
void change_huge_pmd(struct vk *k, const u64 *vma, u64 *pmd)
{
	u64 entry = pmd_mkhuge(pte_modify(*pmd, vma[VMA_PAGE_PROT]));

	if (vma[VMA_FLAGS] & VM_WRITE && page_record(k, pte_pfn(*pmd))[PAGE_FLAGS] & PG_exclusive)
		entry = pte_mkwrite(entry);
	*pmd = entry;
	k->work[WORK_pte_read]++;
	k->work[WORK_pte_write] += 2;
}
