// SPDX-License-Identifier: GPL-2.0-only
/*
 * Looking ahead: a batch says which accesses follow, so that what they need can come into the cache for
 * many of them together, where each alone would wait for every table on the way to its entry, for its VMA,
 * and for every step of the search for that. Accesses to one table need that but once, so it is parts of
 * the batch that are looked at, however long: random accesses make parts of one each, and processes that
 * take turns some in each turn. Nothing is changed, and no access relies on what is found here.
 */
#include "lookahead.h"
#include "pgtable.h"
#include "vma.h"

/**
 * struct search - the search for the VMA of a part's first access
 * @start: first of the start addresses that are left, ascending
 * @left: how many these are, at least 1
 */
struct search {
	const u64 *start;
	u64 left;
	u64 address;
	u64 mm;
	unsigned part;
};

/* A step of each in turn, until each has one address left, so that none waits for its own last step. */
static void search_all(struct search *s, unsigned nr)
{
	u64 most = 1;

	for (unsigned i = 0; i < nr; i++)
		most = most < s[i].left ? s[i].left : most;
	for (; most > 1; most -= most / 2) {
		for (unsigned i = 0; i < nr; i++) {
			u64 half = s[i].left / 2;
			u64 above = s[i].start[half] <= s[i].address;

			/* A branch here would be guessed wrongly every other time. */
			s[i].start += half & -above;
			s[i].left -= half;
		}
	}
}

/* Whether a read or write goes through an entry without a fault. */
static int allows(u64 entry, u64 write)
{
	return entry && (!write || is(entry, PTE_WRITE_MASK, PTE_WRITE_ON));
}

/* Cut accesses into parts, up to one that is Python's. */
static void cut(const u64 *tasks, const u64 *access, u64 i, u64 end, struct ahead *a)
{
	u64 slot = 0, block = 0;

	a->nr = 0;
	for (; i < end; i++) {
		u64 own_slot = access[2 * i + 1] >> 1, own_block = access[2 * i] >> PMD_SHIFT;

		if (a->nr && own_slot == slot && own_block == block &&
		    i < a->first[a->nr - 1] + LOOK_PART)
			continue;
		if (a->nr == LOOK_AHEAD || !tasks[own_slot])
			break;
		slot = own_slot;
		block = own_block;
		a->table[a->nr] = NULL;
		a->vma[a->nr] = NULL;
		a->first[a->nr++] = i;
	}
	a->first[a->nr] = i;
}

/* Fetch the entries of the first access of each part. */
static void find_entries(struct vk *k, const u64 *mm, const u64 *address, u64 **entry, u64 **table)
{
	pmd_offsets(k, LOOK_AHEAD, mm, address, entry);
	for (unsigned i = 0; i < LOOK_AHEAD; i++) {
		const u64 *pmd = entry[i];

		if (pmd && *pmd && !pmd_trans_huge(*pmd)) {
			table[i] = table_entry(k, pte_pfn(*pmd), 0);
			entry[i] = k->phys + pte_in_table(*pmd, address[i]);
		}
		__builtin_prefetch(entry[i]);
	}
}

/**
 * look_ahead - cut accesses into parts, and where these are LOOK_AHEAD, fetch what each needs first
 * @tasks, @access, @first, @end: as of vk_touch_many(); the first access is not Python's
 * @a: out
 *
 * What is fetched are the entries of first accesses, all of the first part, and the VMAs of those that will
 * fault. Fewer parts are too few to gain, or too near the end.
 */
void look_ahead(struct vk *k, const u64 *tasks, const u64 *access, u64 first, u64 end,
		struct ahead *a)
{
	struct search search[LOOK_AHEAD];
	u64 *entry[LOOK_AHEAD];
	u64 address[LOOK_AHEAD], mm[LOOK_AHEAD];
	unsigned nr = 0;

	cut(tasks, access, first, end, a);
	if (a->nr < LOOK_AHEAD)
		return;
	for (unsigned i = 0; i < LOOK_AHEAD; i++) {
		u64 task = tasks[access[2 * a->first[i] + 1] >> 1];

		address[i] = access[2 * a->first[i]];
		mm[i] = address[i] < TASK_SIZE ? k->task[task * TASK_RECORD + TASK_MM] : 0;
	}
	find_entries(k, mm, address, entry, a->table);
	for (unsigned i = 0; i < LOOK_AHEAD; i++) {
		u64 count = k->mm[mm[i] * MM_RECORD + MM_MAP_COUNT];

		if (count && !(entry[i] && allows(*entry[i], access[2 * a->first[i] + 1] & 1)))
			search[nr++] = (struct search){k->vma_start + mm[i] * MAX_MAP_COUNT, count,
						       address[i], mm[i], i};
	}
	for (u64 i = first + 1; a->table[0] && i < a->first[1]; i++)
		__builtin_prefetch(a->table[0] + pte_index(access[2 * i]));
	search_all(search, nr);
	for (const struct search *s = search; s < search + nr; s++) {
		u64 start = s->mm * MAX_MAP_COUNT;
		u64 slot = (u64)(s->start - (k->vma_start + start));

		a->vma[s->part] = vma_record(k, k->vma_index[start + slot]);
		__builtin_prefetch(a->vma[s->part]);
	}
}
