// SPDX-License-Identifier: GPL-2.0-only
/*
 * What programs do, on their own address spaces. An access that C serves leaves an entry that allows it;
 * one that it leaves to Python has counted nothing, unless it split a huge entry.
 */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "pgtable.h"

enum { MAX_BATCH = 64 };

static u64 some_task(struct input *in)
{
	return image->tasks[below(in, image->nr_tasks)];
}

/* An address that an access could be at: in or next to a VMA of the mm, or anywhere. */
static u64 some_address(struct vk *k, struct input *in, u64 mm)
{
	u64 vmas = k->mm[mm * MM_RECORD + MM_MAP_COUNT];
	u64 which = take(in, 1), page = take(in, 2);

	if (which == 255)
		return take(in, 8);
	if (!vmas)
		return page << PAGE_SHIFT;

	const u64 *vma = k->vma + (u64)k->vma_index[mm * MAX_MAP_COUNT + which % vmas] * VMA_RECORD;
	u64 pages = (vma[VMA_END] - vma[VMA_START]) >> PAGE_SHIFT;

	return vma[VMA_START] + (page % (pages + 1) << PAGE_SHIFT) + page % 7;
}

/** struct counted - everything that an access counts, but for page tables and pages of the cache */
struct counted {
	u64 event[WORDS_event];
	u64 mthp_stat[WORDS_mthp_stat];
	u64 work[WORDS_work];
	u64 refused[WORDS_refused];
	u64 task[TASK_RECORD];
	u64 pgfault;
	u64 split_pmd;
};

static void count(struct vk *k, u64 task, struct counted *c)
{
	memcpy(c->event, k->event, sizeof(c->event));
	memcpy(c->mthp_stat, k->mthp_stat, sizeof(c->mthp_stat));
	memcpy(c->work, k->work, sizeof(c->work));
	memcpy(c->refused, k->refused, sizeof(c->refused));
	memcpy(c->task, k->task + task * TASK_RECORD, sizeof(c->task));
	c->event[EV_pt_page_alloc * NR_ORDERS] = 0;
	c->pgfault = k->vmstat[VM_pgfault];
	c->split_pmd = k->vmstat[VM_thp_split_pmd];
}

static void check_access(struct vk *k, u64 task, u64 address, int write)
{
	u64 mm = k->task[task * TASK_RECORD + TASK_MM];
	int huge;
	const u64 *p = find_entry(k, mm, address, &huge);

	EXPECT(address < TASK_SIZE);
	EXPECT(p && *p && (*p & PTE_PRESENT_MASK) == PTE_PRESENT_ON);
	if (write) {
		EXPECT((*p & PTE_WRITE_MASK) == PTE_WRITE_ON);
		EXPECT((*p & PTE_DIRTY_MASK) == PTE_DIRTY_ON);
	}
}

static void case_vk_touch(struct vk *k, struct input *in)
{
	static struct counted before, after;
	u64 task = some_task(in);
	u64 address = some_address(k, in, k->task[task * TASK_RECORD + TASK_MM]);
	int write = (int)below(in, 2);

	count(k, task, &before);
	int done = vk_touch(k, task, address, write);

	count(k, task, &after);
	if (!done) {
		if (after.split_pmd == before.split_pmd + 1) {
			memcpy(before.work, after.work, sizeof(before.work));
			before.split_pmd++;
		}
		EXPECT(!memcmp(&before, &after, sizeof(before)));
		return;
	}
	check_access(k, task, address, write);
	EXPECT(after.pgfault - before.pgfault <= 1);
	EXPECT(after.pgfault - before.pgfault ==
	       after.task[TASK_MINFLT] - before.task[TASK_MINFLT]);
}

/* Slot i is the image's task i; the one behind them is nobody's. */
static void case_vk_touch_many(struct vk *k, struct input *in)
{
	u64 nr = between(in, 1, MAX_BATCH), slots = image->nr_tasks + 1, slot, first, done;
	u64 *access = malloc(2 * nr * sizeof(u64)); /* as long as that, for AddressSanitizer */
	u64 *tasks = calloc(slots, sizeof(u64));

	EXPECT(access && tasks);
	for (u64 i = 0; i + 1 < slots; i++)
		tasks[i] = image->tasks[i];
	slot = below(in, slots);
	for (u64 i = 0; i < nr; i++) {
		u64 mixed = take(in, 1), mm;

		if (!(mixed & 6))
			slot = below(in, slots);
		mm = k->task[tasks[slot] * TASK_RECORD + TASK_MM];
		access[2 * i] = some_address(k, in, mm);
		access[2 * i + 1] = slot << 1 | (mixed & 1);
	}
	first = below(in, nr + 1);
	done = vk_touch_many(k, tasks, access, first, nr);
	EXPECT(first <= done && done <= nr);
	for (u64 i = first; i < done; i++) {
		slot = access[2 * i + 1] >> 1;
		EXPECT(tasks[slot]);
		check_access(k, tasks[slot], access[2 * i], access[2 * i + 1] & 1);
	}
	free(access);
	free(tasks);
}

static void case_vk_fault_in(struct vk *k, struct input *in)
{
	u64 task = some_task(in);
	u64 first = some_address(k, in, k->task[task * TASK_RECORD + TASK_MM]) >> PAGE_SHIFT;
	u64 nr = between(in, 1, 2 * MAX_BATCH), done;
	int write = (int)below(in, 2);

	first %= (TASK_SIZE >> PAGE_SHIFT) - nr;
	done = vk_fault_in(k, task, first << PAGE_SHIFT, (first + nr) << PAGE_SHIFT, write);
	EXPECT(!(done & (((u64)1 << PAGE_SHIFT) - 1)));
	done >>= PAGE_SHIFT;
	EXPECT(first <= done && done <= first + nr);
	while (first < done)
		check_access(k, task, first++ << PAGE_SHIFT, write);
}

/* Two slots share a table of ranges in order, with and without gaps; a third has none. */
static void case_vk_move_many(struct vk *k, struct input *in)
{
	enum { SLOTS = 3 };
	u64 nr = between(in, 1, MAX_BATCH), ranges = below(in, 9), at = 0, done;
	u64 *access = malloc(2 * nr * sizeof(u64)), *was = malloc(2 * nr * sizeof(u64));
	u64 *range = malloc(3 * ranges * sizeof(u64) + 1);
	u64 head[2] = {(u64)(uintptr_t)range, 3 * ranges};
	u64 layouts[SLOTS] = {(u64)(uintptr_t)head, 0, (u64)(uintptr_t)head};

	(void)k;
	EXPECT(access && was && range);
	for (u64 i = 0; i < ranges; i++) {
		range[3 * i] = at += below(in, 16);
		range[3 * i + 1] = at += between(in, 1, 16);
		range[3 * i + 2] = take(in, 8);
	}
	for (u64 i = 0; i < nr; i++) {
		access[2 * i] = was[2 * i] = take(in, 1);
		access[2 * i + 1] = was[2 * i + 1] = below(in, SLOTS) << 1 | (i & 1);
	}
	done = vk_move_many(layouts, access, 0, nr);
	EXPECT(done <= nr);
	for (u64 i = 0; i < nr; i++) {
		u64 r = 0, address = was[2 * i];

		while (r < ranges && (address < range[3 * r] || address >= range[3 * r + 1]))
			r++;
		int placed = layouts[was[2 * i + 1] >> 1] && r < ranges;

		EXPECT(i >= done || placed);
		EXPECT(i != done || !placed);
		EXPECT(access[2 * i] == (i < done ? address + range[3 * r + 2] : address));
		EXPECT(access[2 * i + 1] == was[2 * i + 1]);
	}
	free(access);
	free(was);
	free(range);
}

/*
 * Unmap a run of entries that cuts no contiguous block; what is not C's it leaves, and freeing too. The
 * gather has room for more than the entries of a table.
 */
static void case_vk_zap_ptes(struct vk *k, struct input *in)
{
	u64 mm = k->task[some_task(in) * TASK_RECORD + TASK_MM];
	u64 address = some_address(k, in, mm);
	u64 whole = k->fault[FAULT_CONT_NR] ? k->fault[FAULT_CONT_NR] : 1;
	int huge;
	u64 *p = address < TASK_SIZE ? find_entry(k, mm, address, &huge) : NULL;
	u64 first = pte_index(address) & ~(whole - 1), end;

	if (!p || huge)
		return;
	end = first + whole * between(in, 1, (((u64)1 << PTE_BITS) - first) / whole);
	k->run[RUN_PTE] = (u64)(p - k->phys) - pte_index(address) + first;
	k->run[RUN_NR] = end - first;
	end += k->run[RUN_PTE] - first;
	k->run[RUN_BATCH] = below(in, 3);
	k->run[RUN_MM] = mm;
	do {
		k->run[RUN_ROOM] = between(in, 2, 64);
		vk_zap_ptes(k);
		EXPECT(k->run[RUN_PTE] + k->run[RUN_NR] == end);
		EXPECT(k->run[RUN_REASON] <= EXIT_FULL);
		EXPECT(k->run[RUN_REASON] == EXIT_DONE || k->run[RUN_REASON] == EXIT_FREE ||
		       k->run[RUN_REASON] == EXIT_DEFERRED_SPLIT || k->run[RUN_NR]);
		if (k->run[RUN_REASON] == EXIT_OTHER) {
			k->run[RUN_PTE]++;
			k->run[RUN_NR]--;
		}
	} while (k->run[RUN_REASON] != EXIT_DONE);
	EXPECT(!k->run[RUN_NR]);
}

const struct fuzz_case program_cases[] = {
	{"vk_touch", case_vk_touch},	   {"vk_touch_many", case_vk_touch_many},
	{"vk_fault_in", case_vk_fault_in}, {"vk_move_many", case_vk_move_many},
	{"vk_zap_ptes", case_vk_zap_ptes}, {NULL, NULL},
};
