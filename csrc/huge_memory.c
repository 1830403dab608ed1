// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on an empty PMD entry whose memory may be one folio, and writes to read-only huge entries. The
 * reference is mm/huge_memory.py, which also serves what is short of memory.
 */
#include "fault.h"
#include "huge_memory.h"
#include "pgtable.h"
#include "vma.h"

static u64 mm_get_huge_zero_folio(struct vk *k)
{
	u64 folio = k->zone[ZONE_HUGE_ZERO];

	if (folio)
		return folio;
	folio = alloc_pages(k, PMD_ORDER);
	prep_compound_page(k, folio, PMD_ORDER, PG_reserved | PG_huge_zero);
	if (k->fault[FAULT_PHYS_BACKING])
		clear_huge_page(k, folio, PTRS_PER_PTE, 0);
	k->zone[ZONE_HUGE_ZERO] = folio;
	k->vmstat[VM_thp_zero_page_alloc]++;
	return folio;
}

static int map_huge_zero_folio(struct vk *k, const struct fault *f, u64 *pmd)
{
	u64 table, entry;

	if (!k->zone[ZONE_HUGE_ZERO] && !can_alloc_two(k, PMD_ORDER))
		return 0;
	table = pte_alloc_one(k, f->mm);
	if (!table)
		return 0;
	entry = mm_get_huge_zero_folio(k) << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];
	entry = (entry & ~PTE_SPECIAL_MASK) | PTE_SPECIAL_ON;
	pgtable_trans_huge_deposit(k, f->mm, table);
	*pmd = pmd_mkhuge(pte_mkyoung(entry));
	k->work[WORK_pte_write]++;
	k->event[EV_zero_page_fault * NR_ORDERS]++;
	return 1;
}

/* Map all of a new folio once, exclusively, by one entry. */
static void folio_add_new_anon_rmap_pmd(struct vk *k, const struct fault *f, u64 folio)
{
	u32 *head = page_record(k, folio);
	u64 linear = linear_page_index(f) - pte_index(f->address);

	head[PAGE_FLAGS] |= PG_swapbacked | PG_exclusive;
	head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
	head[PAGE_INDEX] = (u32)linear;
	head[PAGE_INDEX_HI] = (u32)(linear >> 32);
	head[FOLIO_ENTIRE_MAPCOUNT] = 1;
	head[FOLIO_LARGE_MAPCOUNT] = 1;
	if (CONFIG_MM_ID)
		folio_add_mm(k, folio, f->mm, 1);
	k->work[WORK_rmap_add]++;
	k->vmstat[VM_nr_anon_pages] += PTRS_PER_PTE;
}

static void map_anon_folio_pmd(struct vk *k, const struct fault *f, u64 *pmd, u64 folio)
{
	u64 entry = folio << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];

	entry = (entry & ~PTE_DIRTY_MASK) | PTE_DIRTY_ON;
	if (f->vma[VMA_FLAGS] & VM_WRITE)
		entry = pte_mkwrite(entry);
	folio_add_new_anon_rmap_pmd(k, f, folio);
	*pmd = pmd_mkhuge(pte_mkyoung(entry));
	k->work[WORK_pte_write]++;
	k->mm[f->mm * MM_RECORD + MM_ANONPAGES] += PTRS_PER_PTE;
	deferred_split_folio(k, folio, 0);
	k->vmstat[VM_thp_fault_alloc]++;
	k->mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS + PMD_ORDER]++;
	k->event[EV_anon_fault * NR_ORDERS + PMD_ORDER]++;
	k->task[f->task * TASK_RECORD + TASK_FOLIOS + PMD_ORDER]++;
}

/* A zeroed PMD-sized folio, which there is memory for. */
static u64 vma_alloc_anon_folio_pmd(struct vk *k, const struct fault *f)
{
	u64 folio = folio_alloc(k, PMD_ORDER, PG_anon | PG_lru, ZONE_ANON);

	if (k->fault[FAULT_PHYS_BACKING])
		clear_huge_page(k, folio, PTRS_PER_PTE, pte_index(f->address));
	tag_pages(k, f->vma, folio, PMD_ORDER, WORK_tag_sync);
	return folio;
}

/**
 * do_huge_pmd_anonymous_page - serve a fault on an empty PMD entry of a VMA that holds all of its block
 *
 * Return: 0 = Python must; only the VMA's anon_vma may be new then.
 */
int do_huge_pmd_anonymous_page(struct vk *k, const struct fault *f, u64 *pmd, int write)
{
	u64 folio;

	if (!vma_prepare_anon(k, f->vma))
		return 0;
	if (!write && k->fault[FAULT_HUGE_ZERO])
		return map_huge_zero_folio(k, f, pmd);
	/* Twice the folio: then there is memory for the page table, too. */
	if (!can_alloc_two(k, PMD_ORDER))
		return 0;
	folio = vma_alloc_anon_folio_pmd(k, f);
	pgtable_trans_huge_deposit(k, f->mm, pte_alloc_one(k, f->mm));
	map_anon_folio_pmd(k, f, pmd, folio);
	return 1;
}

/* Take over the folio of a huge entry, if nobody else holds it; 0 = not ours to write to. */
static int reuse_huge_pmd(struct vk *k, const struct fault *f, u64 *pmd)
{
	u32 *head = page_record(k, pte_pfn(*pmd));

	if (!(head[PAGE_FLAGS] & PG_exclusive)) {
		if (head[PAGE_REFCOUNT] != 1)
			return 0;
		head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
		head[PAGE_FLAGS] |= PG_exclusive;
	}
	*pmd = pte_mkwritten(*pmd);
	k->work[WORK_pte_read] += 2;
	k->work[WORK_pte_write]++;
	k->work[WORK_tlbi]++;
	k->vmstat[VM_pgreuse]++;
	k->event[EV_wp_reuse * NR_ORDERS]++;
	return 1;
}

/**
 * do_huge_pmd_wp_page - serve a write to a read-only huge entry of a private mapping, or split the entry
 *
 * Return: 0 = Python must, and only the VMA's anon_vma may be new. If the entry was split the write goes on
 * with the page's own.
 */
int do_huge_pmd_wp_page(struct vk *k, const struct fault *f, u64 *pmd)
{
	int zero = is(*pmd, PTE_SPECIAL_MASK, PTE_SPECIAL_ON);

	if (!vma_prepare_anon(k, f->vma))
		return 0;
	if (zero && CONFIG_HUGE_ZERO_COW) {
		if (!can_alloc(k, PMD_ORDER))
			return 0;
		map_anon_folio_pmd(k, f, pmd, vma_alloc_anon_folio_pmd(k, f));
	} else if (zero || !reuse_huge_pmd(k, f, pmd)) {
		vk_split_huge_pmd(k, f->mm, (u64)(pmd - k->phys));
	}
	return 1;
}
