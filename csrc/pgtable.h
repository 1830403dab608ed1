/* SPDX-License-Identifier: GPL-2.0-only */
/* Page tables: walking them, and making and freeing tables. The reference is mm/pgtable.py. */
#ifndef VK_PGTABLE_H
#define VK_PGTABLE_H

#include "core.h"

enum {
	PMD_ORDER = PTE_BITS,
	PMD_SHIFT = PAGE_SHIFT + PTE_BITS,
	PTRS_PER_PTE = 1 << PTE_BITS,
};

/* Whether the bits of a field of an entry are as they are when it is on. */
static inline int is(u64 pte, u64 mask, u64 on)
{
	return (pte & mask) == on;
}

static inline u64 *table_entry(const struct vk *k, u64 table, u64 index)
{
	return k->phys + (table << PAGE_WORDS_SHIFT) + index;
}

/* Whether an entry above the last level maps memory itself; mm/pgtable.py pmd_trans_huge(). */
static inline int pmd_trans_huge(u64 pmd)
{
	return pmd && is(pmd, PTE_LEAF_MASK, PTE_LEAF_ON);
}

static inline u64 pte_index(u64 address)
{
	return address >> PAGE_SHIFT & (PTRS_PER_PTE - 1);
}

/* Place of an address's entry in the table that pmd points to. */
static inline u64 pte_in_table(u64 pmd, u64 address)
{
	return (pte_pfn(pmd) << PAGE_WORDS_SHIFT) + pte_index(address);
}

/* Let an entry point to a new table. */
static inline void populate(struct vk *k, u64 *entry, u64 table)
{
	*entry = table << PTE_PFN_SHIFT | PTE_TABLE;
	/* It is that already, but a first read would cost the host a fault more. */
	*table_entry(k, table, 0) = 0;
}

/* End of the part of [address, end) that one PMD entry is for. */
static inline u64 pmd_addr_end(u64 address, u64 end)
{
	u64 stop = ((address >> PMD_SHIFT) + 1) << PMD_SHIFT;

	return stop < end ? stop : end;
}

u64 table_alloc(struct vk *k, u64 mm, int depth);
void free_pgd_range(struct vk *k, u64 mm, u64 address, u64 end, u64 floor, u64 ceiling);
u64 *pmd_offset(struct vk *k, u64 mm, u64 address, int alloc);
void pmd_offsets(const struct vk *k, unsigned nr, const u64 *mm, const u64 *address, u64 **pmd);
void pte_free(struct vk *k, u64 mm, u64 pfn);
u64 *next_pmd(struct vk *k, u64 mm, u64 *address, u64 end);

static inline u64 pte_alloc_one(struct vk *k, u64 mm)
{
	return table_alloc(k, mm, PGTABLE_LEVELS - 1);
}

#endif
