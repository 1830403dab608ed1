// SPDX-License-Identifier: GPL-2.0-only
/* Splitting a large anonymous folio into pages of order 0. The reference is mm/split.py. */
#include "contpte.h"
#include "fault.h"
#include "pgtable.h"
#include "vma.h"

/**
 * struct rmap_walk - a walk over the last-level entries that map the pages of a folio
 * @index: linear page index of its first page
 * @nr: pages
 * @avc: link to the VMA after this one
 * @vma: VMA that the walk is in; @at and @end what is left of the folio's part of it
 * @page: page that belongs at @at
 * @pte: place of the entry that was found
 */
struct rmap_walk {
	u64 folio;
	u64 index;
	u64 nr;
	u32 avc;
	u64 *vma;
	u64 at;
	u64 end;
	u64 page;
	u64 pte;
};

static struct rmap_walk rmap_walk_anon(struct vk *k, u64 folio)
{
	const u32 *head = page_record(k, folio);
	const u32 *anon_vma = k->anon_vma + (u64)head[PAGE_MAPPING] * ANON_VMA_RECORD;

	return (struct rmap_walk){
		.folio = folio,
		.index = head[PAGE_INDEX] | (u64)head[PAGE_INDEX_HI] << 32,
		.nr = (u64)1 << head[PAGE_ORDER],
		.avc = anon_vma[ANON_VMA_AVC],
	};
}

/* Go to the next VMA that the folio may be mapped in; 0 = there is none. */
static int next_vma(struct vk *k, struct rmap_walk *w)
{
	while (w->avc) {
		const u32 *avc = k->avc + (u64)w->avc * AVC_RECORD;
		u64 *vma = vma_record(k, avc[AVC_VMA]);
		u64 first = vma[VMA_PGOFF];
		u64 last = first + ((vma[VMA_END] - vma[VMA_START]) >> PAGE_SHIFT);

		w->avc = avc[AVC_NEXT];
		if (first >= w->index + w->nr || last <= w->index)
			continue;
		if (last > w->index + w->nr)
			last = w->index + w->nr;
		w->vma = vma;
		w->at = vma[VMA_START];
		w->end = w->at + ((last - first) << PAGE_SHIFT);
		w->page = w->folio + first - w->index;
		if (first < w->index) {
			w->at += (w->index - first) << PAGE_SHIFT;
			w->page = w->folio;
		}
		return 1;
	}
	return 0;
}

/* Find the next entry that maps a page of the folio; a huge one is split. 0 = there is none. */
static int next_mapping(struct vk *k, struct rmap_walk *w)
{
	while (w->at < w->end || next_vma(k, w)) {
		u64 mm = w->vma[VMA_MM], at = w->at, page = w->page++;
		const u64 *pmd = pmd_offset(k, mm, at, 0);

		w->at += (u64)1 << PAGE_SHIFT;
		if (!pmd || !*pmd)
			continue;
		if (pmd_trans_huge(*pmd)) {
			if (pte_pfn(*pmd) != w->folio)
				continue;
			vk_split_huge_pmd(k, mm, (u64)(pmd - k->phys));
		}
		w->pte = pte_in_table(*pmd, at);
		if (k->phys[w->pte] && pte_pfn(k->phys[w->pte]) == page)
			return 1;
	}
	return 0;
}

/* Make one page of a folio that is being split a folio of its own, with some flags of the head. */
static void make_small(struct vk *k, u64 page, u32 keep, u32 mapping, u64 index)
{
	u32 *p = page_record(k, page);
	u32 count = p[PAGE_MAPCOUNT];
	u32 own = p[PAGE_FLAGS] & (PG_exclusive | PG_mte_tagged);

	prep_compound_page(k, page, 0, keep | own);
	p[PAGE_MAPCOUNT] = count;
	p[PAGE_REFCOUNT] = count;
	p[PAGE_MAPPING] = mapping;
	p[PAGE_INDEX] = (u32)index;
	p[PAGE_INDEX_HI] = (u32)(index >> 32);
	k->mthp_stat[MTHP_nr_anon * NR_ORDERS]++;
}

/* Whether a page's content is all zero; without contents nobody knows. */
static int is_zero(struct vk *k, u64 page)
{
	const u64 words = (u64)1 << PAGE_WORDS_SHIFT;

	return k->fault[FAULT_PHYS_BACKING] &&
	       check_ptes_none(k, page << PAGE_WORDS_SHIFT, words) == words;
}

/* Map the zero page where a page that is all zero was mapped, unless the VMA is locked. */
static void map_zero_page(struct vk *k, const struct rmap_walk *w)
{
	u64 page = pte_pfn(k->phys[w->pte]);
	u64 entry = k->fault[FAULT_ZERO_PFN] << PTE_PFN_SHIFT | w->vma[VMA_PAGE_PROT];
	u32 *p = page_record(k, page);

	if (w->vma[VMA_FLAGS] & VM_LOCKED || !is_zero(k, page))
		return;
	k->phys[w->pte] = pte_mkyoung((entry & ~PTE_SPECIAL_MASK) | PTE_SPECIAL_ON);
	p[PAGE_REFCOUNT]--;
	k->vmstat[VM_nr_anon_pages] -= !--p[PAGE_MAPCOUNT];
	k->mm[w->vma[VMA_MM] * MM_RECORD + MM_ANONPAGES]--;
}

/* Find all mappings; how many there are. The huge ones are split. */
static u64 count_mappings(struct vk *k, struct rmap_walk w, int *dirty)
{
	u64 found = 0;

	*dirty = 0;
	for (; next_mapping(k, &w); found++)
		*dirty |= is(k->phys[w.pte], PTE_DIRTY_MASK, PTE_DIRTY_ON);
	return found;
}

/* Take the entries out of their contiguous blocks; migration entries stand in for them meanwhile. */
static void unmap_folio(struct vk *k, struct rmap_walk w, u64 found)
{
	while (next_mapping(k, &w)) {
		read_pte(k, w.pte);
		unfold(k, w.pte);
	}
	k->work[WORK_pte_read] += 2 * found;
	k->work[WORK_pte_write] += 3 * found;
	k->work[WORK_tlbi] += found != 0;
}

/* Map pages that are all zero to the zero page, and free those that nobody maps. */
static void remap_folio(struct vk *k, struct rmap_walk w)
{
	u64 end = w.folio + w.nr;

	while (next_mapping(k, &w))
		map_zero_page(k, &w);
	for (u64 page = w.folio; page < end; page++)
		if (!page_record(k, page)[PAGE_REFCOUNT])
			free_anon_folio(k, page);
}

/**
 * vk_split_folio - split a large anonymous folio to order 0
 * @extra: references besides the mappings; any makes it fail
 *
 * Return: 1 = it was split; 0 = it could not be, but its huge mappings were.
 */
int vk_split_folio(struct vk *k, u64 folio, u64 extra)
{
	u32 *head = page_record(k, folio);
	u32 order = head[PAGE_ORDER], by_page = head[FOLIO_NR_PAGES_MAPPED];
	u32 keep = PG_anon | PG_swapbacked | PG_lru | PG_lazyfree, mapping = head[PAGE_MAPPING];
	const struct rmap_walk w = rmap_walk_anon(k, folio);
	u64 found;
	int dirty;

	/* The kernel unmaps one entry at a time to freeze the folio. */
	if (by_page > 1 || (by_page && head[FOLIO_ENTIRE_MAPCOUNT]))
		deferred_split_folio(k, folio, 1);
	found = count_mappings(k, w, &dirty);
	if (extra || head[PAGE_REFCOUNT] != head[FOLIO_LARGE_MAPCOUNT]) {
		k->mthp_stat[MTHP_split_failed * NR_ORDERS + order]++;
		return 0;
	}
	folio_unqueue_deferred_split(k, folio);
	k->mthp_stat[MTHP_split * NR_ORDERS + order]++;
	k->mthp_stat[MTHP_nr_anon * NR_ORDERS + order]--;
	k->vmstat[VM_thp_split_page] += order == PMD_ORDER;
	keep &= head[PAGE_FLAGS];
	if (dirty)
		keep &= ~(u32)PG_lazyfree; /* which pages were written to is forgotten */
	unmap_folio(k, w, found);
	for (u64 i = 0; i < w.nr; i++)
		make_small(k, folio + i, keep, mapping, w.index + i);
	remap_folio(k, w);
	return 1;
}
