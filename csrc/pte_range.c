// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loops over runs of last-level entries. pte is an index into phys; a run never leaves its table. The
 * Python twins are in mm/ranges.py.
 */
#include "wide.h"

/* Entries from which on wide vectors are worth a call of their own. */
enum { MANY = 16 };

/* How many entries are none, in steps of 32. */
WIDE u64 skip_none(const u64 *p, u64 nr)
{
	u64 i = 0;

	for (; i + 32 <= nr; i += 32) {
		const u64x4 *v = (const u64x4 *)(p + i);
		u64x4 any = ((v[0] | v[1]) | (v[2] | v[3])) | ((v[4] | v[5]) | (v[6] | v[7]));

		if ((any[0] | any[1]) | (any[2] | any[3]))
			break;
	}
	return i;
}

/**
 * check_ptes_none - how many entries are none before the first that is not
 *
 * Return: nr when all are none.
 */
u64 check_ptes_none(struct vk *k, u64 pte, u64 nr)
{
	const u64 *p = k->phys + pte;
	u64 i = nr >= MANY && cpu_is_wide() ? skip_none(p, nr) : 0;

	/* Eight at a time: the stop test costs more than the reads. */
	for (; i + 8 <= nr; i += 8) {
		u64 any = 0;

		for (int j = 0; j < 8; j++)
			any |= p[i + j];
		if (any)
			break;
	}
	while (i < nr && !p[i])
		i++;
	return i;
}

/* set_ptes in steps of 16; how many are written. */
WIDE u64 set_many(u64 *p, u64 entry, u64 nr)
{
	const u64 step = (u64)1 << PTE_PFN_SHIFT;
	u64x4 a = {entry, entry + step, entry + 2 * step, entry + 3 * step};
	u64x4 b = a + 4 * step, c = b + 4 * step, d = c + 4 * step;
	u64 i = 0;

	for (; i + 16 <= nr; i += 16) {
		u64x4 *v = (u64x4 *)(p + i);

		v[0] = a;
		v[1] = b;
		v[2] = c;
		v[3] = d;
		a += 16 * step;
		b += 16 * step;
		c += 16 * step;
		d += 16 * step;
	}
	return i;
}

/** set_ptes - write nr entries with the attributes of entry and pfns that count up from its pfn */
void set_ptes(struct vk *k, u64 pte, u64 entry, u64 nr)
{
	u64 *p = k->phys + pte;
	u64 i = nr >= MANY && cpu_is_wide() ? set_many(p, entry, nr) : 0;

	for (; i < nr; i++)
		p[i] = entry + (i << PTE_PFN_SHIFT);
}

/** clear_ptes - make nr entries none */
void clear_ptes(struct vk *k, u64 pte, u64 nr)
{
	u64 *p = k->phys + pte;

	for (u64 i = 0; i < nr; i++)
		p[i] = 0;
}

/* modify_ptes in steps of 4; how many are changed. */
WIDE u64 modify_many(u64 *p, u64 clear, u64 set, u64 nr)
{
	u64 i = 0;

	for (; i + 4 <= nr; i += 4) {
		u64x4 *v = (u64x4 *)(p + i);

		*v = (*v & ~clear) | set;
	}
	return i;
}

/** modify_ptes - take bits out of, then put bits into nr entries: write-protect, age, new protection */
void modify_ptes(struct vk *k, u64 pte, u64 clear, u64 set, u64 nr)
{
	u64 *p = k->phys + pte;
	u64 i = nr >= MANY && cpu_is_wide() ? modify_many(p, clear, set, nr) : 0;

	for (; i < nr; i++)
		p[i] = (p[i] & ~clear) | set;
}

/* Entries that count up from the first, in steps of 8. */
WIDE u64 count_up(const u64 *p, u64 ignore, u64 max)
{
	const u64 step = (u64)1 << PTE_PFN_SHIFT;
	u64 first = p[0] & ~ignore;
	u64x4 a = {first, first + step, first + 2 * step, first + 3 * step};
	u64x4 b = a + 4 * step;
	u64 i = 0;

	for (; i + 8 <= max; i += 8) {
		const u64x4 *v = (const u64x4 *)(p + i);
		u64x4 differ = ((v[0] & ~ignore) ^ a) | ((v[1] & ~ignore) ^ b);

		if ((differ[0] | differ[1]) | (differ[2] | differ[3]))
			break;
		a += 8 * step;
		b += 8 * step;
	}
	return i;
}

/**
 * folio_pte_batch - how many entries continue the first: present, next pfn, equal but for ignore
 * @max: at least 1; the caller ends it at the folio, the VMA and the table
 */
u64 folio_pte_batch(struct vk *k, u64 pte, u64 ignore, u64 max)
{
	const u64 *p = k->phys + pte;
	u64 expected = p[0] & ~ignore;
	u64 i = 1;

	/* Whether an entry is present follows from the first where those bits are compared. */
	if (max >= MANY && cpu_is_wide() && pte_present(p[0]) &&
	    !((PTE_PRESENT_MASK | PTE_PROT_NONE_MASK) & (ignore | PTE_PFN_MASK))) {
		u64 same = count_up(p, ignore, max);

		if (same)
			i = same;
		expected += (i - 1) << PTE_PFN_SHIFT;
	}
	for (; i < max; i++) {
		expected += (u64)1 << PTE_PFN_SHIFT;
		if ((p[i] & ~ignore) != expected || !pte_present(p[i]))
			break;
	}
	return i;
}
