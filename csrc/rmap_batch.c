// SPDX-License-Identifier: GPL-2.0-only
/* Loops over the page records of one folio. The Python twins are in mm/ranges.py. */
#include "core.h"

/* Half a page record: two stores make one, where the compiler made eight. */
typedef u32 half_t __attribute__((vector_size(16), aligned(4), may_alias));
/*
 * How many records ahead to fetch while making a folio: fresh memory is handed out in order, and records
 * that the host zeroed a huge page at a time have left the near caches.
 */
enum { AHEAD = 128 };
_Static_assert(PAGE_HEAD == 3 && PAGE_RECORD == 8, "the places in half_t");

/** prep_compound_page - make 2^order free pages one folio with one reference and no mapping */
void prep_compound_page(struct vk *k, u64 pfn, unsigned order, unsigned flags)
{
	u32 *p = page_record(k, pfn);
	u32 *end = p + ((u64)PAGE_RECORD << order);
	const half_t tail = {0, 0, 0, (u32)pfn}, zero = {0};

	for (; p < end; p += PAGE_RECORD) {
		__builtin_prefetch(p + AHEAD * PAGE_RECORD, 1);
		*(half_t *)p = tail;
		*(half_t *)(p + 4) = zero;
	}
	p = page_record(k, pfn);
	p[PAGE_FLAGS] = flags;
	p[PAGE_REFCOUNT] = 1;
	p[PAGE_ORDER] = order;
}

/** folio_add_new_anon_rmap - map nr pages of a new folio once each, exclusively (v1 patch 4) */
void folio_add_new_anon_rmap(struct vk *k, u64 folio, u64 page, u64 nr)
{
	u32 *head = page_record(k, folio);
	u32 *p = page_record(k, page);

	for (u64 i = 0; i < nr; i++, p += PAGE_RECORD) {
		p[PAGE_MAPCOUNT] = 1;
		p[PAGE_FLAGS] |= PG_exclusive;
	}
	if (head[PAGE_ORDER]) {
		head[FOLIO_NR_PAGES_MAPPED] = (u32)nr;
		head[FOLIO_LARGE_MAPCOUNT] = (u32)nr;
	}
}

/**
 * folio_dup_anon_rmap_ptes - map nr pages once more, for a child; none is exclusive any longer
 *
 * Return: how many of them were unmapped before.
 */
u64 folio_dup_anon_rmap_ptes(struct vk *k, u64 folio, u64 page, u64 nr)
{
	u32 *head = page_record(k, folio);
	u32 *p = page_record(k, page);
	u64 mapped = 0;

	for (u64 i = 0; i < nr; i++, p += PAGE_RECORD) {
		mapped += !p[PAGE_MAPCOUNT]++;
		p[PAGE_FLAGS] &= ~(u32)PG_exclusive;
	}
	if (head[PAGE_ORDER]) {
		head[FOLIO_NR_PAGES_MAPPED] += (u32)mapped;
		head[FOLIO_LARGE_MAPCOUNT] += (u32)nr;
	}
	return mapped;
}

/**
 * folio_remove_rmap_range - take one mapping from each of nr pages (v1 patch 5)
 *
 * Return: how many of them nobody maps now.
 */
u64 folio_remove_rmap_range(struct vk *k, u64 folio, u64 page, u64 nr)
{
	u32 *head = page_record(k, folio);
	u32 *p = page_record(k, page);
	u64 unmapped = 0;

	for (u64 i = 0; i < nr; i++, p += PAGE_RECORD)
		unmapped += !--p[PAGE_MAPCOUNT];
	if (head[PAGE_ORDER]) {
		head[FOLIO_NR_PAGES_MAPPED] -= (u32)unmapped;
		head[FOLIO_LARGE_MAPCOUNT] -= (u32)nr;
	}
	return unmapped;
}

/**
 * folio_add_mm - note nr more mappings of a large folio by an mm (CONFIG_MM_ID, 6.15)
 *
 * Called when FOLIO_LARGE_MAPCOUNT has them already. Two mms are counted by themselves; with a third, or
 * mappings that came before it was counted, the folio may be shared.
 */
void folio_add_mm(struct vk *k, u64 folio, u64 mm, u64 nr)
{
	u32 *head = page_record(k, folio);

	if (head[FOLIO_MM0] == mm) {
		head[FOLIO_MM0_MAPCOUNT] += (u32)nr;
	} else if (head[FOLIO_MM1] == mm) {
		head[FOLIO_MM1_MAPCOUNT] += (u32)nr;
	} else if (!head[FOLIO_MM0]) {
		head[FOLIO_MM0] = (u32)mm;
		head[FOLIO_MM0_MAPCOUNT] = (u32)nr;
		if (head[FOLIO_LARGE_MAPCOUNT] != nr)
			head[FOLIO_MAYBE_SHARED] = 1;
	} else if (!head[FOLIO_MM1]) {
		head[FOLIO_MM1] = (u32)mm;
		head[FOLIO_MM1_MAPCOUNT] = (u32)nr;
		head[FOLIO_MAYBE_SHARED] = 1;
	}
}

/**
 * folio_sub_mm - note that an mm has nr mappings of a large folio less
 *
 * Called when FOLIO_LARGE_MAPCOUNT has lost them already. Unless the mm is counted and keeps some: when a
 * counted mm has all that are left, the folio is known not to be shared.
 */
void folio_sub_mm(struct vk *k, u64 folio, u64 mm, u64 nr)
{
	u32 *head = page_record(k, folio);
	int owner = head[FOLIO_MM0] == mm ? FOLIO_MM0 : head[FOLIO_MM1] == mm ? FOLIO_MM1 : 0;

	if (owner && head[owner + 1] > nr) {
		head[owner + 1] -= (u32)nr;
		return;
	}
	if (owner) {
		head[owner] = 0;
		head[owner + 1] = 0;
	}
	if (head[FOLIO_MM0_MAPCOUNT] == head[FOLIO_LARGE_MAPCOUNT] ||
	    head[FOLIO_MM1_MAPCOUNT] == head[FOLIO_LARGE_MAPCOUNT])
		head[FOLIO_MAYBE_SHARED] = 0;
}
