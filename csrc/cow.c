// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes to present, read-only entries: reuse, a copy, or a new folio for the zero page. The reference is
 * do_wp_page() in mm/memory.py, and mm/cow.py for what is done to many pages together (ANON_COW_*).
 */
#include "contpte.h"
#include "fault.h"
#include "pgtable.h"
#include "vma.h"

/**
 * struct run - entries that map the pages of a folio as the faulting one does
 * @before: how many before it
 * @after: how many from it on
 */
struct run {
	u64 before;
	u64 after;
};

static inline u64 min(u64 a, u64 b)
{
	return a < b ? a : b;
}

/* They lie in the VMA and the table, and have the same rights; young and dirty may differ. */
static struct run folio_run(struct vk *k, const struct fault *f)
{
	u64 ignore = PTE_YOUNG_MASK | PTE_DIRTY_MASK | k->fault[FAULT_CONT_BIT];
	u64 entry = k->phys[f->pte] & ~ignore;
	u64 page = pte_pfn(entry);
	u64 folio = page_record(k, page)[PAGE_HEAD];
	u64 end = folio + ((u64)1 << page_record(k, folio)[PAGE_ORDER]);
	u64 index = pte_index(f->address);
	u64 most = min(page - folio, min((f->address - f->vma[VMA_START]) >> PAGE_SHIFT, index));
	u64 before = 0;

	while (before < most &&
	       (k->phys[f->pte - before - 1] & ~ignore) == entry - ((before + 1) << PTE_PFN_SHIFT))
		before++;
	most = ((u64)1 << PTE_BITS) - index;
	most = min(most, (f->vma[VMA_END] >> PAGE_SHIFT) - (f->address >> PAGE_SHIFT));
	return (struct run){before, folio_pte_batch(k, f->pte, ignore, min(most, end - page))};
}

static void wp_page_reuse(struct vk *k)
{
	k->vmstat[VM_pgreuse]++;
	k->event[EV_wp_reuse * NR_ORDERS]++;
}

static int wp_zero_page(struct vk *k, struct fault *f)
{
	u64 folio;

	if (CONFIG_ANON_COW_ZERO)
		return do_anonymous_write(k, f, EV_wp_zero);
	folio = alloc_anon_folio(k, f, 0);
	if (!folio)
		return 0;
	tag_pages(k, f->vma, folio, 0, WORK_tag_clear);
	if (k->fault[FAULT_PHYS_BACKING])
		clear_pages(k, folio, 1);
	read_pte(k, f->pte);
	clear_ptes_range(k, f->pte, 1);
	map_new_folio(k, f, folio, 0);
	k->mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS]++;
	k->event[EV_wp_zero * NR_ORDERS]++;
	return 1;
}

/*
 * Take a mapping from nr pages of an anonymous folio together. Before v1's patch 5 even the last mapping
 * of a large folio queues it for splitting.
 */
static void remove_rmap(struct vk *k, u64 mm, u64 folio, u64 page, u64 nr)
{
	u32 *head = page_record(k, folio);
	u64 unmapped = folio_remove_rmap_range(k, folio, page, nr);

	k->work[WORK_rmap_remove]++;
	if (CONFIG_MM_ID && head[PAGE_ORDER])
		folio_sub_mm(k, folio, mm, nr);
	if (head[PAGE_ORDER] && head[FOLIO_ENTIRE_MAPCOUNT])
		return;
	k->vmstat[VM_nr_anon_pages] -= unmapped;
	if (unmapped && head[PAGE_ORDER] &&
	    (head[FOLIO_NR_PAGES_MAPPED] ||
	     !(CONFIG_ANON_POLICY_MTHP || CONFIG_ANON_RMAP_REMOVE_RANGE)))
		deferred_split_folio(k, folio, 1);
}

/* Take one mapping and one reference from each of nr pages of an anonymous folio. */
static void put_mapped_pages(struct vk *k, const struct fault *f, u64 folio, u64 page, u64 nr)
{
	u64 step = CONFIG_ANON_RMAP_REMOVE_RANGE ? nr : 1;
	u32 *head = page_record(k, folio);

	for (u64 i = 0; i < nr; i += step)
		remove_rmap(k, f->mm, folio, page + i, step);
	head[PAGE_REFCOUNT] -= (u32)nr;
	if (!head[PAGE_REFCOUNT])
		free_anon_folio(k, folio);
}

/* Order of the copy of a shared anonymous folio, as in mm/cow.py. */
static unsigned calc_anon_folio_order_copy(struct vk *k, const struct fault *f, u64 folio)
{
	unsigned hint = f->vma[VMA_FLAGS] >> VM_HUGEPAGE_SHIFT & 3;
	u64 order = min(k->fault[FAULT_COPY + hint], page_record(k, folio)[PAGE_ORDER]);
	struct run run;

	if (order < 2)
		return 0;
	run = folio_run(k, f);
	for (; order > 1; order--) {
		u64 nr = (u64)1 << order;
		u64 index = f->address >> PAGE_SHIFT & (nr - 1);

		if (index <= run.before && nr - index <= run.after)
			return (unsigned)order;
	}
	return 0;
}

/* Map a copy of 2^order pages in place of what the entries around the fault map. */
static void replace_pages(struct vk *k, const struct fault *f, u64 copy, u64 page, unsigned order)
{
	u64 nr = (u64)1 << order;
	u64 index = f->address >> PAGE_SHIFT & (nr - 1);

	if (k->fault[FAULT_PHYS_BACKING])
		copy_pages(k, copy, page - index, nr);
	read_pte(k, f->pte);
	clear_ptes_range(k, f->pte - index, nr);
	map_new_folio(k, f, copy, order);
}

/* Give the writer pages of its own, where others hold these of an anonymous folio. */
static int wp_page_copy(struct vk *k, const struct fault *f, u64 folio, u64 page)
{
	unsigned order = CONFIG_ANON_COW_COPY ? calc_anon_folio_order_copy(k, f, folio) : 0;
	u64 nr = (u64)1 << order;
	u64 index = f->address >> PAGE_SHIFT & (nr - 1);
	u64 copy;

	copy = alloc_anon_folio(k, f, order);
	if (!copy)
		return 0;
	replace_pages(k, f, copy, page, order);
	k->mm[f->mm * MM_RECORD + MM_ANONPAGES] -= nr;
	put_mapped_pages(k, f, folio, page - index, nr);
	k->event[EV_wp_copy * NR_ORDERS + order]++;
	return 1;
}

/* Give the writer a page of its own in place of one of the page cache. */
static int wp_file_page_copy(struct vk *k, const struct fault *f, u64 folio, u64 page)
{
	u64 copy;

	copy = alloc_anon_folio(k, f, 0);
	if (!copy)
		return 0;
	replace_pages(k, f, copy, page, 0);
	k->mm[f->mm * MM_RECORD + MM_FILEPAGES]--;
	k->vmstat[VM_nr_mapped] -= folio_remove_rmap_range(k, folio, page, 1);
	page_record(k, folio)[PAGE_REFCOUNT]--; /* the page cache has its own */
	k->event[EV_file_write_fault * NR_ORDERS]++;
	return 1;
}

/* The part of a run around a page whose pages are exclusive, as that one is. */
static struct run exclusive_run(const struct vk *k, u64 page, struct run run)
{
	const u32 *p = page_record(k, page);
	struct run part = {0, 1};

	while (part.before < run.before &&
	       *(p - (part.before + 1) * PAGE_RECORD + PAGE_FLAGS) & PG_exclusive)
		part.before++;
	while (part.after < run.after && p[part.after * PAGE_RECORD + PAGE_FLAGS] & PG_exclusive)
		part.after++;
	return part;
}

/* Make writable what of the folio around a fault nobody else can see; 0 = it must be copied. */
static int wp_reuse_run(struct vk *k, const struct fault *f, u64 folio, u64 page)
{
	struct run run = folio_run(k, f);
	u32 *head = page_record(k, folio);
	u32 *p = page_record(k, page);
	u64 pte, nr;

	if (p[PAGE_FLAGS] & PG_exclusive) {
		run = exclusive_run(k, page, run);
	} else {
		if (head[PAGE_REFCOUNT] != run.before + run.after)
			return 0;
		head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
		p -= run.before * PAGE_RECORD;
		for (u64 i = 0; i < run.before + run.after; i++)
			p[i * PAGE_RECORD + PAGE_FLAGS] |= PG_exclusive;
	}
	pte = f->pte - run.before;
	nr = run.before + run.after;
	read_pte(k, f->pte);
	set_access_flags_range(k, pte, nr);
	wp_page_reuse(k);
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
		return wp_file_page_copy(k, f, p[PAGE_HEAD], page);
	if (CONFIG_ANON_COW_REUSE && wp_reuse_run(k, f, p[PAGE_HEAD], page))
		return 1;
	if (!(p[PAGE_FLAGS] & PG_exclusive)) {
		if (!wp_can_reuse_anon_folio(head))
			return wp_page_copy(k, f, p[PAGE_HEAD], page);
		if (!head[PAGE_ORDER])
			head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
		p[PAGE_FLAGS] |= PG_exclusive;
	}
	read_pte(k, f->pte);
	set_access_flags(k, f->pte, pte_mkwritten(k->phys[f->pte]));
	wp_page_reuse(k);
	return 1;
}

/**
 * do_wp_page - serve a write to a present, read-only last-level entry of a private mapping
 *
 * Return: 0 = Python must.
 */
int do_wp_page(struct vk *k, struct fault *f)
{
	u64 entry = k->phys[f->pte];

	if ((entry & PTE_SPECIAL_MASK) == PTE_SPECIAL_ON)
		return wp_zero_page(k, f);
	return wp_page(k, f, pte_pfn(entry));
}
