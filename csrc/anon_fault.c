// SPDX-License-Identifier: GPL-2.0-only
/*
 * First touches of anonymous memory: how large a folio a write gets, and why it got no larger one. The
 * reference is do_anonymous_page() in mm/memory.py, mm/large_anon_folio.py and mm/refused.py.
 */
#include "contpte.h"
#include "fault.h"
#include "pgtable.h"
#include "vma.h"

/* How many entries ahead of a fault to fetch. */
enum { AHEAD = 64 };

static inline unsigned highest_order(u64 orders)
{
	return 63 - (unsigned)__builtin_clzll(orders);
}

/*
 * How many entries a new folio may take the place of, before the first that it may not: empty ones, and
 * with ANON_COW_ZERO zero pages, where the fault is a write to one.
 */
static u64 check_ptes_free(struct vk *k, const struct fault *f, u64 pte, u64 nr)
{
	u64 free = check_ptes_none(k, pte, nr);

	if (!CONFIG_ANON_COW_ZERO || !is(k->phys[f->pte], PTE_SPECIAL_MASK, PTE_SPECIAL_ON))
		return free;
	while (free < nr && is(k->phys[pte + free], PTE_SPECIAL_MASK, PTE_SPECIAL_ON)) {
		free++;
		free += check_ptes_none(k, pte + free, nr - free);
	}
	return free;
}

/* Those of a mask of orders whose block lies in the VMA and is free, as in mm/large_anon_folio.py. */
static u64 calc_anon_folio_orders_alloc(struct vk *k, struct fault *f, u64 orders)
{
	u64 index = pte_index(f->address);
	u64 first_set = 0;
	int met = 0;

	while (orders > 1) {
		unsigned order = highest_order(orders);
		u64 nr = (u64)1 << order;

		if (!suitable_order(f->vma, f->address, order)) {
			f->why[order] = REFUSED_EDGE;
		} else {
			u64 first = index & ~(nr - 1);

			if (met && first + nr <= first_set)
				break;
			if (!met || first > first_set) {
				u64 free = check_ptes_free(k, f, f->pte - index + first, nr);

				if (free == nr)
					break;
				first_set = first + free;
				met = 1;
			}
			f->why[order] = REFUSED_POPULATED;
		}
		orders -= nr;
	}
	return orders;
}

static unsigned refused_reason(const struct fault *f, unsigned order, u64 own)
{
	if (f->why[order] != NOT_LOOKED_AT)
		return f->why[order];
	if (!(own >> order & 1) || order < PMD_ORDER)
		return REFUSED_NOT_ENABLED;
	return suitable_order(f->vma, f->address, order) ? REFUSED_POPULATED : REFUSED_EDGE;
}

/**
 * count_refused - count why a fault got nothing larger, as in mm/refused.py
 * @got: order that it got
 * @own: orders that its VMA may have
 */
void count_refused(struct vk *k, const struct fault *f, unsigned got, u64 own)
{
	u64 anyone = k->fault[FAULT_LARGE] ? k->fault[FAULT_ANYONE] : 0;
	u64 above = anyone >> (got + 1) << (got + 1);
	unsigned largest;

	if (!anyone)
		return;
	f->vma[VMA_FAULTS]++;
	k->refused[REFUSED_FAULTS]++;
	largest = highest_order(own ? own : anyone);
	while (above) {
		unsigned order = highest_order(above);
		unsigned reason = refused_reason(f, order, own);

		k->refused[reason * NR_ORDERS + order]++;
		if (order == largest) {
			f->vma[VMA_REFUSED + reason]++;
			k->refused[reason * NR_ORDERS]++;
		}
		above -= (u64)1 << order;
	}
}

/** map_new_folio - map all of a new anonymous folio around a write fault, exclusively */
void map_new_folio(struct vk *k, const struct fault *f, u64 folio, unsigned order)
{
	u32 *head = page_record(k, folio);
	u64 nr = (u64)1 << order;
	u64 index = f->address >> PAGE_SHIFT & (nr - 1);
	u64 linear = linear_page_index(f) - index;
	u64 entry = folio << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];

	entry = pte_mkwritten(entry);
	head[PAGE_REFCOUNT] = (u32)nr;
	head[PAGE_FLAGS] |= PG_swapbacked;
	head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
	head[PAGE_INDEX] = (u32)linear;
	head[PAGE_INDEX_HI] = (u32)(linear >> 32);
	folio_add_new_anon_rmap(k, folio, folio, nr);
	if (CONFIG_MM_ID && order)
		folio_add_mm(k, folio, f->mm, nr);
	k->work[WORK_rmap_add] += k->fault[FAULT_RMAP_ADD_RANGE] ? 1 : nr;
	k->vmstat[VM_nr_anon_pages] += nr;
	k->mm[f->mm * MM_RECORD + MM_ANONPAGES] += nr;
	k->task[f->task * TASK_RECORD + TASK_FOLIOS + order]++;
	map_ptes(k, f->pte - index, entry, nr);
}

/** tag_pages - give zeroed pages of a mapping with memory tags their own, cleared; work counts how */
void tag_pages(struct vk *k, const u64 *vma, u64 folio, unsigned order, int work)
{
	u32 *p = page_record(k, folio);
	u64 nr = (u64)1 << order;

	if (!(vma[VMA_FLAGS] & k->fault[FAULT_TAGS]))
		return;
	for (u64 i = 0; i < nr; i++)
		p[i * PAGE_RECORD + PAGE_FLAGS] |= PG_mte_tagged;
	k->work[work] += nr;
}

/** alloc_anon_folio - folio for a write fault, not zeroed, and the VMA's anon_vma; 0 = Python must */
u64 alloc_anon_folio(struct vk *k, const struct fault *f, unsigned order)
{
	return vma_prepare_anon(k, f->vma) ? folio_alloc(k, order, PG_anon | PG_lru, ZONE_ANON) : 0;
}

/**
 * do_anonymous_write - serve a write to memory that holds only zeroes by a new folio
 * @event: what counts it by order
 *
 * Return: 0 = Python must.
 */
int do_anonymous_write(struct vk *k, struct fault *f, int event)
{
	unsigned hint = f->vma[VMA_FLAGS] >> VM_HUGEPAGE_SHIFT & 3;
	u64 wanted = k->fault[FAULT_WANTED + hint];
	unsigned order = highest_order(calc_anon_folio_orders_alloc(k, f, wanted) | 1);
	u64 nr = (u64)1 << order;
	u64 index = f->address >> PAGE_SHIFT & (nr - 1);
	u64 folio = alloc_anon_folio(k, f, order);

	if (!folio)
		return 0;
	/* Entries that a program which goes on upwards fills next; the host has just zeroed the table. */
	__builtin_prefetch(k->phys + f->pte + AHEAD, 1);
	/* The allocator clears them with the page, which only the v1 series does for large folios. */
	tag_pages(k, f->vma, folio, order,
		  order && !CONFIG_ANON_POLICY_V1 ? WORK_tag_sync : WORK_tag_clear);
	if (k->fault[FAULT_PHYS_BACKING]) {
		if (k->fault[FAULT_CLEAR_LAST])
			clear_huge_page(k, folio, nr, index);
		else
			clear_pages(k, folio, nr);
	}
	count_refused(k, f, order, wanted | k->fault[FAULT_PMD + hint]);
	if (k->phys[f->pte]) {
		read_pte(k, f->pte);
		clear_ptes_range(k, f->pte - index, nr);
	}
	map_new_folio(k, f, folio, order);
	k->mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS + order]++;
	k->event[event * NR_ORDERS + order]++;
	return 1;
}

/** do_anonymous_read - map the zero page */
void do_anonymous_read(struct vk *k, const struct fault *f)
{
	u64 entry = k->fault[FAULT_ZERO_PFN] << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];

	entry = (entry & ~PTE_SPECIAL_MASK) | PTE_SPECIAL_ON;
	map_ptes(k, f->pte, pte_mkyoung(entry), 1);
	k->event[EV_zero_page_fault * NR_ORDERS]++;
}
