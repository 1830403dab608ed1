// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes to present, read-only entries: reuse, a copy of one page, or a page for the zero page. The
 * reference is do_wp_page() in mm/memory.py. The further fault paths (ANON_COW_*) for the zero page and
 * large folios are left to Python.
 */
#include "contpte.h"
#include "fault.h"
#include "vma.h"

static void wp_page_reuse(struct vk *k, u64 pte)
{
	set_access_flags(k, pte, pte_mkwritten(k->phys[pte]));
	k->vmstat[VM_pgreuse]++;
	k->event[EV_wp_reuse * NR_ORDERS]++;
}

static int wp_zero_page(struct vk *k, const struct fault *f)
{
	u64 folio;

	if (!vma_prepare_anon(k, f->vma))
		return 0;
	folio = folio_alloc(k, 0, PG_anon | PG_lru, ZONE_ANON);
	if (!folio)
		return 0;
	tag_pages(k, f->vma, folio, 0, WORK_tag_clear);
	if (k->fault[FAULT_PHYS_BACKING])
		clear_pages(k, folio, 1);
	read_pte(k, f->pte);
	ptep_clear_flush(k, f->pte);
	map_new_folio(k, f, folio, 0);
	k->mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS]++;
	k->event[EV_wp_zero * NR_ORDERS]++;
	return 1;
}

/*
 * Take one mapping and one reference from a page of an anonymous folio. Before v1's patch 5 even the last
 * mapping of a large folio queues it for splitting.
 */
static void put_mapped_page(struct vk *k, const struct fault *f, u64 folio, u64 page)
{
	u32 *head = page_record(k, folio);
	u64 unmapped = folio_remove_rmap_range(k, folio, page, 1);

	k->work[WORK_rmap_remove]++;
	if (CONFIG_MM_ID && head[PAGE_ORDER])
		folio_sub_mm(k, folio, f->mm, 1);
	if (!head[PAGE_ORDER] || !head[FOLIO_ENTIRE_MAPCOUNT]) {
		k->vmstat[VM_nr_anon_pages] -= unmapped;
		if (unmapped && head[PAGE_ORDER] &&
		    (head[FOLIO_NR_PAGES_MAPPED] ||
		     !(CONFIG_ANON_POLICY_MTHP || CONFIG_ANON_RMAP_REMOVE_RANGE)))
			deferred_split_folio(k, folio, 1);
	}
	if (!--head[PAGE_REFCOUNT])
		free_anon_folio(k, folio);
}

/* Give the writer a page of its own, where others hold this one of an anonymous folio or of a file. */
static int wp_page_copy(struct vk *k, const struct fault *f, u64 folio, u64 page)
{
	int anon = page_record(k, folio)[PAGE_FLAGS] & PG_anon;
	u64 *mm = k->mm + f->mm * MM_RECORD;
	u64 copy;

	if (!vma_prepare_anon(k, f->vma))
		return 0;
	copy = folio_alloc(k, 0, PG_anon | PG_lru, ZONE_ANON);
	if (!copy)
		return 0;
	if (k->fault[FAULT_PHYS_BACKING])
		copy_pages(k, copy, page, 1);
	read_pte(k, f->pte);
	ptep_clear_flush(k, f->pte);
	map_new_folio(k, f, copy, 0);
	if (anon) {
		mm[MM_ANONPAGES]--;
		put_mapped_page(k, f, folio, page);
		k->event[EV_wp_copy * NR_ORDERS]++;
	} else {
		mm[MM_FILEPAGES]--;
		k->vmstat[VM_nr_mapped] -= folio_remove_rmap_range(k, folio, page, 1);
		page_record(k, folio)[PAGE_REFCOUNT]--; /* the page cache has its own */
		k->event[EV_file_write_fault * NR_ORDERS]++;
	}
	return 1;
}

/* Whether a write may take over a page that was shared once, as in mm/memory.py. */
static int wp_can_reuse_anon_folio(const u32 *head)
{
	if (!head[PAGE_ORDER])
		return head[PAGE_REFCOUNT] == 1;
	return CONFIG_MM_ID && !head[FOLIO_MAYBE_SHARED] && head[FOLIO_LARGE_MAPCOUNT] > 1 &&
	       head[FOLIO_LARGE_MAPCOUNT] == head[PAGE_REFCOUNT];
}

static int wp_page(struct vk *k, const struct fault *f, u64 page)
{
	u32 *p = page_record(k, page);
	u32 *head = page_record(k, p[PAGE_HEAD]);

	if (!(head[PAGE_FLAGS] & PG_anon))
		return wp_page_copy(k, f, p[PAGE_HEAD], page);
	if (head[PAGE_ORDER] && k->fault[FAULT_COW])
		return 0;
	if (!(p[PAGE_FLAGS] & PG_exclusive)) {
		if (!wp_can_reuse_anon_folio(head))
			return wp_page_copy(k, f, p[PAGE_HEAD], page);
		if (!head[PAGE_ORDER])
			head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
		p[PAGE_FLAGS] |= PG_exclusive;
	}
	read_pte(k, f->pte);
	wp_page_reuse(k, f->pte);
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

	if ((entry & PTE_SPECIAL_MASK) == PTE_SPECIAL_ON)
		return !k->fault[FAULT_COW] && wp_zero_page(k, f);
	return wp_page(k, f, pte_pfn(entry));
}
