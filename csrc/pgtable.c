// SPDX-License-Identifier: GPL-2.0-only
/* Page tables: walking them and making them. The reference is mm/pgtable.py. */
#include "pgtable.h"

static const unsigned level_shift[] = LEVEL_SHIFTS;
static const u64 level_mask[] = LEVEL_MASKS;
static const unsigned table_order[] = TABLE_ORDERS;

/**
 * table_alloc - zeroed table of a level, accounted to mm
 * @depth: level, counted from the root
 *
 * Return: its first pfn; 0 when memory is short, and then nothing has changed.
 */
u64 table_alloc(struct vk *k, u64 mm, int depth)
{
	unsigned order = table_order[depth];
	u64 nr = (u64)1 << order;
	u64 pfn = folio_alloc(k, order, PG_table, ZONE_TABLE);

	if (!pfn)
		return 0;
	if (k->fault[FAULT_PHYS_BACKING])
		clear_pages(k, pfn, nr);
	k->mm[mm * MM_RECORD + MM_PGTABLES] += nr;
	k->vmstat[VM_nr_page_table_pages] += nr;
	k->event[EV_pt_page_alloc * NR_ORDERS] += nr;
	return pfn;
}

/**
 * pmd_offset - place of the PMD entry of an address
 * @alloc: 1 = make the tables that are missing; those made stay
 *
 * Return: NULL without a table.
 */
u64 *pmd_offset(struct vk *k, u64 mm, u64 address, int alloc)
{
	u64 table = k->mm[mm * MM_RECORD + MM_PGD];
	int depth = 0;

	for (; depth < PGTABLE_LEVELS - 2; depth++) {
		u64 *p = table_entry(k, table, address >> level_shift[depth] & level_mask[depth]);

		if (!*p) {
			u64 pfn = alloc ? table_alloc(k, mm, depth + 1) : 0;

			if (!pfn)
				return NULL;
			populate(k, p, pfn);
		}
		table = pte_pfn(*p);
	}
	return table_entry(k, table, address >> level_shift[depth] & level_mask[depth]);
}

/**
 * pmd_offsets - pmd_offset() of nr addresses, level by level, so that all wait at once for their tables
 * @mm: of each its mm; 0 = none
 * @pmd: out: of each the place of its PMD entry; NULL without a table
 */
void pmd_offsets(const struct vk *k, unsigned nr, const u64 *mm, const u64 *address, u64 **pmd)
{
	for (unsigned i = 0; i < nr; i++)
		pmd[i] = mm[i] ? table_entry(k, k->mm[mm[i] * MM_RECORD + MM_PGD],
					     address[i] >> level_shift[0] & level_mask[0])
			       : NULL;
	for (int depth = 1; depth < PGTABLE_LEVELS - 1; depth++)
		for (unsigned i = 0; i < nr; i++)
			pmd[i] = pmd[i] && *pmd[i] ? table_entry(k, pte_pfn(*pmd[i]),
								 address[i] >> level_shift[depth] &
									 level_mask[depth])
						   : NULL;
}

/**
 * next_pmd - first PMD entry in [address, end) that is not none
 * @address: in and out: where the entry's part of the range begins; end without one
 *
 * Return: its place; NULL without one.
 */
u64 *next_pmd(struct vk *k, u64 mm, u64 *address, u64 end)
{
	while (*address < end) {
		u64 table = k->mm[mm * MM_RECORD + MM_PGD];
		u64 *p = NULL;

		for (int depth = 0; depth < PGTABLE_LEVELS - 1; depth++) {
			unsigned shift = level_shift[depth];
			u64 index = *address >> shift & level_mask[depth];
			u64 most = level_mask[depth] + 1 - index;
			u64 left = ((end - 1) >> shift) - (*address >> shift) + 1;

			p = table_entry(k, table, index);
			if (!*p) {
				if (most > left)
					most = left;
				most = check_ptes_none(k, (u64)(p - k->phys), most);
				*address = ((*address >> shift) + most) << shift;
				p = NULL;
				break;
			}
			table = pte_pfn(*p);
		}
		if (p)
			return p;
	}
	*address = end;
	return NULL;
}

/** pte_free - free a page table of mm, of any level; its entries must all be none */
void pte_free(struct vk *k, u64 mm, u64 pfn)
{
	u64 nr = (u64)1 << page_record(k, pfn)[PAGE_ORDER];

	k->mm[mm * MM_RECORD + MM_PGTABLES] -= nr;
	k->vmstat[VM_nr_page_table_pages] -= nr;
	k->event[EV_pt_page_free * NR_ORDERS] += nr;
	folio_free(k, pfn, ZONE_TABLE);
}

/* Which tables of an mm may go: those under [address, end) that lie in [floor, ceiling). */
struct unused {
	u64 mm;
	u64 floor;
	u64 ceiling;
};

/* Free what is freeable below one table; the table itself stays. */
static void free_range(struct vk *k, const struct unused *u, u64 table, int depth, u64 address,
		       u64 end)
{
	unsigned shift = level_shift[depth];
	u64 step = (u64)1 << shift;
	u64 at = address >> shift << shift;

	for (;; at += step) {
		u64 *p = table_entry(k, table, at >> shift & level_mask[depth]);

		if (*p && !pmd_trans_huge(*p)) {
			u64 child = pte_pfn(*p);

			if (depth + 1 < PGTABLE_LEVELS - 1)
				free_range(k, u, child, depth + 1, at > address ? at : address,
					   end - at < step ? end : at + step);
			/* A ceiling of 0 is above all. */
			if (at >= u->floor && at + (step - 1) <= u->ceiling - 1) {
				*p = 0;
				pte_free(k, u->mm, child);
			}
		}
		if (end - at <= step)
			return;
	}
}

/**
 * free_pgd_range - free the tables under [address, end) that lie wholly inside [floor, ceiling)
 * @address: first address, below end
 * @floor: where the VMA below ends
 * @ceiling: where the VMA above begins; 0 = none
 *
 * A table that could hold pages of a neighbour stays. Entries below must all be none.
 */
void free_pgd_range(struct vk *k, u64 mm, u64 address, u64 end, u64 floor, u64 ceiling)
{
	const struct unused u = {mm, floor, ceiling};

	free_range(k, &u, k->mm[mm * MM_RECORD + MM_PGD], 0, address, end);
}
