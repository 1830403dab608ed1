// SPDX-License-Identifier: GPL-2.0-only
/* The deferred split queue, and folios that leave it because they are freed or split. The reference is mm/split_queue.py. */
#include "core.h"

/**
 * deferred_split_folio - put a large folio at the tail of the queue, unless it is there
 * @partially_mapped: it lost a mapping of a page, which is counted once; else it is put where the
 *	shrinker looks for underused ones (6.12)
 */
void deferred_split_folio(struct vk *k, u64 folio, int partially_mapped)
{
	u32 *head = page_record(k, folio);
	u32 flags = head[PAGE_FLAGS];
	u32 order = head[PAGE_ORDER];
	u64 last = k->zone[ZONE_SPLIT_QUEUE_TAIL];

	if (order < k->fault[FAULT_QUEUE_ORDER] ||
	    (!partially_mapped && !k->fault[FAULT_UNDERUSED]))
		return;
	if (partially_mapped && !(flags & PG_partially_mapped)) {
		head[PAGE_FLAGS] |= PG_partially_mapped;
		if (order >= k->fault[FAULT_QUEUE_COUNT])
			k->vmstat[VM_thp_deferred_split_page]++;
		k->mthp_stat[MTHP_split_deferred * NR_ORDERS + order]++;
		k->mthp_stat[MTHP_nr_anon_partially_mapped * NR_ORDERS + order]++;
	}
	if (flags & PG_deferred)
		return;
	head[PAGE_FLAGS] |= PG_deferred;
	head[FOLIO_DEFERRED_NEXT] = 0;
	head[FOLIO_DEFERRED_PREV] = (u32)last;
	if (last)
		page_record(k, last)[FOLIO_DEFERRED_NEXT] = (u32)folio;
	else
		k->zone[ZONE_SPLIT_QUEUE] = folio;
	k->zone[ZONE_SPLIT_QUEUE_TAIL] = folio;
	k->zone[ZONE_SPLIT_QUEUE_LEN]++;
}

/** folio_unqueue_deferred_split - take a folio that is about to be freed or split off the queue, if it is on it */
void folio_unqueue_deferred_split(struct vk *k, u64 folio)
{
	u32 *head = page_record(k, folio);
	u32 flags = head[PAGE_FLAGS];
	u32 after, before;

	if (flags & PG_partially_mapped)
		k->mthp_stat[MTHP_nr_anon_partially_mapped * NR_ORDERS + head[PAGE_ORDER]]--;
	head[PAGE_FLAGS] = flags & ~(u32)(PG_partially_mapped | PG_deferred);
	if (!(flags & PG_deferred))
		return;
	after = head[FOLIO_DEFERRED_NEXT];
	before = head[FOLIO_DEFERRED_PREV];
	if (before)
		page_record(k, before)[FOLIO_DEFERRED_NEXT] = after;
	else
		k->zone[ZONE_SPLIT_QUEUE] = after;
	if (after)
		page_record(k, after)[FOLIO_DEFERRED_PREV] = before;
	else
		k->zone[ZONE_SPLIT_QUEUE_TAIL] = before;
	k->zone[ZONE_SPLIT_QUEUE_LEN]--;
}

/** free_anon_folio - free an anonymous folio without references */
void free_anon_folio(struct vk *k, u64 folio)
{
	folio_unqueue_deferred_split(k, folio);
	k->event[EV_anon_free * NR_ORDERS + page_record(k, folio)[PAGE_ORDER]]++;
	folio_free(k, folio, ZONE_ANON);
}
