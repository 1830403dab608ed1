// SPDX-License-Identifier: GPL-2.0-only
/*
 * The buddy allocator as mm/page_alloc.py has it: the same lists, the same order, the same pfns. What
 * it cannot serve it leaves as it was and uncounted, for Python to do again.
 */
#include "core.h"

static void list_add(struct vk *k, u64 pfn, unsigned order)
{
	u32 *p = page_record(k, pfn);
	u64 first = k->zone[ZONE_FREE_LIST + order];

	p[PAGE_FLAGS] = PG_buddy;
	p[PAGE_REFCOUNT] = 0;
	p[PAGE_ORDER] = order;
	p[PAGE_NEXT] = (u32)first;
	p[PAGE_PREV] = 0;
	if (first)
		page_record(k, first)[PAGE_PREV] = (u32)pfn;
	k->zone[ZONE_FREE_LIST + order] = pfn;
	k->zone[ZONE_NR_BLOCKS + order]++;
}

static void list_del(struct vk *k, u64 pfn, unsigned order)
{
	u32 *p = page_record(k, pfn);

	if (p[PAGE_PREV])
		page_record(k, p[PAGE_PREV])[PAGE_NEXT] = p[PAGE_NEXT];
	else
		k->zone[ZONE_FREE_LIST + order] = p[PAGE_NEXT];
	if (p[PAGE_NEXT])
		page_record(k, p[PAGE_NEXT])[PAGE_PREV] = p[PAGE_PREV];
	p[PAGE_FLAGS] = 0;
	k->zone[ZONE_NR_BLOCKS + order]--;
}

/* Take the first block of a list that has one. */
static u64 list_pop(struct vk *k, unsigned order)
{
	u64 pfn = k->zone[ZONE_FREE_LIST + order];

	list_del(k, pfn, order);
	return pfn;
}

/** alloc_pages - first of 2^order free pages, naturally aligned; 0 = there are none, nothing has changed */
u64 alloc_pages(struct vk *k, unsigned order)
{
	u64 *zone = k->zone;
	u64 nr = (u64)1 << order;
	unsigned most = (unsigned)k->fault[FAULT_MAX_PAGE_ORDER];
	unsigned have = order;
	u64 pfn;

	if (zone[ZONE_NR_FREE] < zone[ZONE_WMARK_MIN] + nr)
		return 0;
	while (have <= most && !zone[ZONE_FREE_LIST + have])
		have++;
	if (have <= most) {
		pfn = list_pop(k, have);
	} else {
		have = most;
		pfn = zone[ZONE_FRONTIER];
		if (pfn + ((u64)1 << most) > k->fault[FAULT_NR_PAGES])
			return 0;
		zone[ZONE_FRONTIER] = pfn + ((u64)1 << most);
	}
	while (have > order) {
		have--;
		list_add(k, pfn + ((u64)1 << have), have);
	}
	/* Single pages mostly come one behind the other: fetch the record of a later one. */
	__builtin_prefetch(page_record(k, pfn + 16));
	zone[ZONE_NR_FREE] -= nr;
	k->vmstat[VM_pgalloc_movable] += nr;
	return pfn;
}

/* Add nr pages to what user holds, and keep the peaks. */
static void account(struct vk *k, int user, u64 nr)
{
	u64 *zone = k->zone;
	u64 total;

	zone[user] += nr;
	total = zone[ZONE_ANON] + zone[ZONE_CACHE] + zone[ZONE_TABLE];
	if (total > zone[ZONE_PEAK]) {
		zone[ZONE_PEAK] = total;
		zone[ZONE_PEAK_ANON] = zone[ZONE_ANON];
		zone[ZONE_PEAK_CACHE] = zone[ZONE_CACHE];
		zone[ZONE_PEAK_TABLE] = zone[ZONE_TABLE];
	}
	if (zone[ZONE_TABLE] > zone[ZONE_MAX_TABLE])
		zone[ZONE_MAX_TABLE] = zone[ZONE_TABLE];
}

/**
 * can_alloc - whether 2^order pages can be had, as one block or as any smaller ones that add up to it
 */
int can_alloc(const struct vk *k, unsigned order)
{
	const u64 *zone = k->zone;
	unsigned most = (unsigned)k->fault[FAULT_MAX_PAGE_ORDER];

	if (zone[ZONE_NR_FREE] < zone[ZONE_WMARK_MIN] + ((u64)1 << order))
		return 0;
	for (; order <= most; order++)
		if (zone[ZONE_FREE_LIST + order])
			return 1;
	return zone[ZONE_FRONTIER] + ((u64)1 << most) <= k->fault[FAULT_NR_PAGES];
}

/** can_alloc_two - whether there are two blocks of 2^order pages, so that something smaller fits beside one */
int can_alloc_two(const struct vk *k, unsigned order)
{
	const u64 *zone = k->zone;
	unsigned most = (unsigned)k->fault[FAULT_MAX_PAGE_ORDER];
	u64 blocks = (k->fault[FAULT_NR_PAGES] - zone[ZONE_FRONTIER]) >> order;

	for (unsigned have = order; have <= most; have++)
		blocks += zone[ZONE_NR_BLOCKS + have] << (have - order);
	return blocks >= 2 && zone[ZONE_NR_FREE] >= zone[ZONE_WMARK_MIN] + ((u64)2 << order);
}

/**
 * folio_alloc - make 2^order free pages a folio with one reference, not zeroed
 * @flags: PG_* bits of the head page
 * @user: whose memory it is: ZONE_ANON or ZONE_TABLE
 *
 * Return: its first pfn; 0 when memory is short, and then nothing has changed.
 */
u64 folio_alloc(struct vk *k, unsigned order, u32 flags, int user)
{
	u64 pfn = alloc_pages(k, order);

	if (!pfn)
		return 0;
	prep_compound_page(k, pfn, order, flags);
	if (user == ZONE_ANON)
		k->mthp_stat[MTHP_nr_anon * NR_ORDERS + order]++;
	account(k, user, (u64)1 << order);
	return pfn;
}

/* Give 2^order pages back and merge the block with its free buddies. */
static void free_pages(struct vk *k, u64 pfn, unsigned order)
{
	unsigned most = (unsigned)k->fault[FAULT_MAX_PAGE_ORDER];
	u64 nr = (u64)1 << order;
	u32 *p = page_record(k, pfn);

	p[PAGE_FLAGS] = 0;
	p[PAGE_REFCOUNT] = 0;
	k->zone[ZONE_NR_FREE] += nr;
	k->vmstat[VM_pgfree] += nr;
	for (; order < most; order++) {
		u64 buddy = pfn ^ (u64)1 << order;

		p = page_record(k, buddy);
		if (!(p[PAGE_FLAGS] & PG_buddy) || p[PAGE_ORDER] != order)
			break;
		list_del(k, buddy, order);
		pfn &= buddy;
	}
	list_add(k, pfn, order);
}

/**
 * folio_free - free a folio that has no references left and is not on the deferred split queue
 * @user: whose memory it was: ZONE_ANON, ZONE_CACHE or ZONE_TABLE
 */
void folio_free(struct vk *k, u64 folio, int user)
{
	unsigned order = page_record(k, folio)[PAGE_ORDER];

	if (user == ZONE_ANON)
		k->mthp_stat[MTHP_nr_anon * NR_ORDERS + order]--;
	k->zone[user] -= (u64)1 << order;
	free_pages(k, folio, order);
}
