// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes to present, read-only entries, where one page answers: reuse, a copy, or a page for the zero
 * page. The reference is do_wp_page() in mm/memory.py; contiguous blocks, large folios and the further
 * fault paths (ANON_COW_*) are left to Python.
 */
#include "fault.h"

/* Clear the entry for every processor before it maps something else. */
static void ptep_clear_flush(struct vk *k, u64 pte)
{
	k->phys[pte] = 0;
	k->work[WORK_pte_read]++;
	k->work[WORK_pte_write]++;
	k->work[WORK_tlbi]++;
}

static void wp_page_reuse(struct vk *k, u64 pte)
{
	k->phys[pte] = pte_mkwritten(k->phys[pte]);
	k->work[WORK_pte_read]++;
	k->work[WORK_pte_write]++;
	k->work[WORK_tlbi]++;
	k->vmstat[VM_pgreuse]++;
	k->event[EV_wp_reuse * NR_ORDERS]++;
}

static int wp_zero_page(struct vk *k, const struct fault *f)
{
	u64 folio = folio_alloc(k, 0, PG_anon | PG_lru, ZONE_ANON);

	if (!folio)
		return 0;
	if (k->fault[FAULT_PHYS_BACKING])
		clear_pages(k, folio, 1);
	ptep_clear_flush(k, f->pte);
	map_new_folio(k, f, folio, 0);
	k->mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS]++;
	k->event[EV_wp_zero * NR_ORDERS]++;
	return 1;
}

/* Copy a page of a small anonymous folio that others hold, too. */
static int wp_page_copy(struct vk *k, const struct fault *f, u64 page)
{
	u64 copy = folio_alloc(k, 0, PG_anon | PG_lru, ZONE_ANON);

	if (!copy)
		return 0;
	if (k->fault[FAULT_PHYS_BACKING])
		copy_pages(k, copy, page, 1);
	ptep_clear_flush(k, f->pte);
	map_new_folio(k, f, copy, 0);
	k->mm[f->mm * MM_RECORD + MM_ANONPAGES]--;
	k->work[WORK_rmap_remove]++;
	k->vmstat[VM_nr_anon_pages] -= folio_remove_rmap_range(k, page, page, 1);
	page_record(k, page)[PAGE_REFCOUNT]--;
	k->event[EV_wp_copy * NR_ORDERS]++;
	return 1;
}

/**
 * do_wp_page - serve a write to a present, read-only last-level entry of a private mapping
 *
 * Return: 0 = Python must.
 */
int do_wp_page(struct vk *k, const struct fault *f)
{
	u64 entry = k->phys[f->pte];
	u64 page = pte_pfn(entry);
	u32 *p = page_record(k, page);

	if (k->fault[FAULT_COW] || entry & k->fault[FAULT_CONT_BIT])
		return 0;
	if ((entry & PTE_SPECIAL_MASK) == PTE_SPECIAL_ON) {
		if (!wp_zero_page(k, f))
			return 0;
	} else {
		if (p[PAGE_HEAD] != page || p[PAGE_ORDER] || !(p[PAGE_FLAGS] & PG_anon))
			return 0;
		if (p[PAGE_FLAGS] & PG_exclusive) {
			wp_page_reuse(k, f->pte);
		} else if (p[PAGE_REFCOUNT] == 1) {
			p[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
			p[PAGE_FLAGS] |= PG_exclusive;
			wp_page_reuse(k, f->pte);
		} else if (!wp_page_copy(k, f, page)) {
			return 0;
		}
	}
	k->work[WORK_pte_read]++; /* by the walk that found the entry */
	return 1;
}
