// SPDX-License-Identifier: GPL-2.0-only
/*
 * Looking ahead: a batch says which accesses follow, so that what they need can come into the cache for
 * many of them together, where each alone would wait for its entry, for its VMA, and for every step of
 * the search for that. Nothing is changed, and no access relies on what is found here.
 */
#include "lookahead.h"
#include "pgtable.h"
#include "vma.h"

/**
 * struct search - the search for the VMA of an access
 * @start: first of the start addresses that are left, ascending
 * @left: how many these are, at least 1
 */
struct search {
	const u64 *start;
	u64 left;
	u64 address;
	u64 mm;
	unsigned access;
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

/**
 * look_ahead - fetch the entries of LOOK_AHEAD accesses, and the VMAs of those that will fault
 * @tasks, @access: as of vk_touch_many()
 * @vma: out: by access the last VMA that starts at or below its address, or else the first VMA, which
 *	may not hold the address; NULL where the access needs none or there is none
 */
void look_ahead(struct vk *k, const u64 *tasks, const u64 *access, u64 **vma)
{
	struct search search[LOOK_AHEAD];
	u64 *entry[LOOK_AHEAD];
	u64 mm[LOOK_AHEAD];
	unsigned nr = 0;

	for (unsigned i = 0; i < LOOK_AHEAD; i++) {
		u64 address = access[2 * i];
		u64 *pmd = NULL;

		mm[i] = k->task[tasks[access[2 * i + 1] >> 1] * TASK_RECORD + TASK_MM];
		if (mm[i] && address < TASK_SIZE)
			pmd = pmd_offset(k, mm[i], address, 0);
		entry[i] = pmd && *pmd && !pmd_trans_huge(*pmd)
				   ? k->phys + pte_in_table(*pmd, address)
				   : pmd;
		__builtin_prefetch(entry[i]);
	}
	for (unsigned i = 0; i < LOOK_AHEAD; i++) {
		u64 count = k->mm[mm[i] * MM_RECORD + MM_MAP_COUNT];

		vma[i] = NULL;
		if (count && !(entry[i] && allows(*entry[i], access[2 * i + 1] & 1)))
			search[nr++] = (struct search){k->vma_start + mm[i] * MAX_MAP_COUNT, count,
						       access[2 * i], mm[i], i};
	}
	search_all(search, nr);
	for (const struct search *s = search; s < search + nr; s++) {
		u64 first = s->mm * MAX_MAP_COUNT;
		u64 slot = (u64)(s->start - (k->vma_start + first));

		vma[s->access] = vma_record(k, k->vma_index[first + slot]);
		__builtin_prefetch(vma[s->access]);
	}
}
