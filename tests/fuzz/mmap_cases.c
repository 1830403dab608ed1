// SPDX-License-Identifier: GPL-2.0-only
/* Calls that make, cut, merge and end VMAs. */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "pgtable.h"
#include "vma.h"

enum { MAP_FIXED = 0x10, MAP_FIXED_NOREPLACE = 0x100000, MOST_PAGES = 1200, MAX_MMS = 16 };

struct pages {
	u64 start;
	u64 end;
};

static u64 some_task(struct input *in)
{
	return image->tasks[below(in, image->nr_tasks)];
}

static u64 mm_of(struct vk *k, u64 task)
{
	return k->task[task * TASK_RECORD + TASK_MM];
}

static u64 map_count(struct vk *k, u64 mm)
{
	return k->mm[mm * MM_RECORD + MM_MAP_COUNT];
}

static u64 *vma_in(struct vk *k, u64 mm, u64 slot)
{
	return vma_record(k, k->vma_index[mm * MAX_MAP_COUNT + slot]);
}

/* Pages at or behind a VMA of the mm. */
static struct pages some_pages(struct vk *k, struct input *in, u64 mm)
{
	u64 which = take(in, 1), first = take(in, 2) % MOST_PAGES,
	    nr = 1 + take(in, 2) % MOST_PAGES;
	struct pages p = {.start = first << PAGE_SHIFT};

	if (map_count(k, mm))
		p.start += vma_in(k, mm, which % map_count(k, mm))[VMA_START];
	if (p.start + (nr << PAGE_SHIFT) > TASK_SIZE)
		p.start = 0;
	p.end = p.start + (nr << PAGE_SHIFT);
	return p;
}

/* Whether a call failed; one that nothing is wrong with may, on a machine whose tables are all but full. */
static int no_records(int error)
{
	EXPECT(!error || (error == -ENOMEM && image->few_records));
	return error;
}

/* How many VMAs have any of some pages. */
static u64 vmas_at(struct vk *k, u64 mm, struct pages p)
{
	u64 nr = 0;

	for (u64 i = 0; i < map_count(k, mm); i++)
		nr += vma_in(k, mm, i)[VMA_START] < p.end && p.start < vma_in(k, mm, i)[VMA_END];
	return nr;
}

static void case_vk_do_munmap(struct vk *k, struct input *in)
{
	u64 task = some_task(in), mm = mm_of(k, task);
	struct pages p = some_pages(k, in, mm);

	if (no_records(vk_do_munmap(k, mm, p.start, p.end, task)))
		return;
	EXPECT(!vmas_at(k, mm, p));
	for (u64 address = p.start; address < p.end; address += (u64)1 << PAGE_SHIFT) {
		int huge;
		const u64 *entry = find_entry(k, mm, address, &huge);

		EXPECT(!entry || !*entry);
	}
}

/* Rights to memory, and what shares it. */
static u64 some_flags(struct input *in)
{
	u64 flags = below(in, 16);

	return flags & VM_SHARED ? flags : flags | below(in, 4) << VM_HUGEPAGE_SHIFT;
}

static void case_vk_mmap_region(struct vk *k, struct input *in)
{
	u64 task = some_task(in), mm = mm_of(k, task), vm_flags = some_flags(in);
	u64 flags = below(in, 2) * MAP_FIXED | below(in, 2) * MAP_FIXED_NOREPLACE;
	u64 file = below(in, k->zone[ZONE_SLAB + SLAB_FILE + 1] + 1), pgoff = 0;
	struct pages p = some_pages(k, in, mm);
	int error, there;

	if (file) {
		const u64 *f = k->file + file * FILE_RECORD;
		u64 nr = (p.end - p.start) >> PAGE_SHIFT;

		if (f[FILE_SHMEM] || !f[FILE_PAGES])
			return;
		pgoff = below(in, f[FILE_PAGES]);
		if (nr > f[FILE_PAGES] - pgoff)
			p.end = p.start + ((f[FILE_PAGES] - pgoff) << PAGE_SHIFT);
	}
	there = vmas_at(k, mm, p) != 0;
	error = vk_mmap_region(k, mm, p.start, p.end, vm_flags, flags, file, pgoff, task);
	if (there && flags != MAP_FIXED) {
		EXPECT(error < 0 && error != -ENOMEM);
		return;
	}
	if (no_records(error))
		return;
	EXPECT(vmas_at(k, mm, p) == 1);
	const u64 *vma = vma_in(k, mm, find_slot(k, mm, p.start));

	EXPECT(vma[VMA_START] <= p.start && p.end <= vma[VMA_END] && vma[VMA_FLAGS] == vm_flags);
	EXPECT((file || vm_flags & VM_SHARED) == (vma[VMA_FILE] != 0));
}

static void case_vk_do_brk_flags(struct vk *k, struct input *in)
{
	u64 mm = mm_of(k, some_task(in));
	struct pages p = some_pages(k, in, mm);
	int there = vmas_at(k, mm, p) != 0;
	int error;

	if (below(in, 2))
		k->mm[mm * MM_RECORD + MM_START_BRK] = p.start;
	error = vk_do_brk_flags(k, mm, p.start, p.end, VM_ACCESS_FLAGS & ~VM_EXEC);
	EXPECT(!there || error == -ENOMEM);
	if (!there && !no_records(error))
		EXPECT(vmas_at(k, mm, p) == 1);
}

static void case_vk_vma_set_flags(struct vk *k, struct input *in)
{
	u64 mm = mm_of(k, some_task(in)), slot = below(in, map_count(k, mm));
	u64 first = take(in, 2), nr = take(in, 2), flags = below(in, 8);
	u64 hints = below(in, 4) << VM_HUGEPAGE_SHIFT | (below(in, 2) ? VM_DONTCOPY : 0);
	u64 *vma = vma_in(k, mm, slot), pages;
	struct pages p;

	if (!map_count(k, mm))
		return;
	pages = (vma[VMA_END] - vma[VMA_START]) >> PAGE_SHIFT;
	first %= pages;
	p.start = vma[VMA_START] + (first << PAGE_SHIFT);
	p.end = p.start + ((1 + nr % (pages - first)) << PAGE_SHIFT);
	flags |= hints | (vma[VMA_FLAGS] & VM_SHARED);
	if (below(in, 2) && !vma[VMA_FILE])
		flags |= VM_WIPEONFORK;
	if (no_records(vk_vma_set_flags(k, vma_number(k, vma), p.start, p.end, flags)))
		return;
	EXPECT(vmas_at(k, mm, p) == 1);
	EXPECT(vma_in(k, mm, find_slot(k, mm, p.start))[VMA_FLAGS] == flags);
}

static void case_vk_do_mprotect(struct vk *k, struct input *in)
{
	u64 mm = mm_of(k, some_task(in)), prot = below(in, 8), covered = 0;
	struct pages p = some_pages(k, in, mm);
	int error;

	for (u64 i = 0; i < map_count(k, mm); i++) {
		const u64 *vma = vma_in(k, mm, i);
		u64 low = vma[VMA_START] > p.start ? vma[VMA_START] : p.start;
		u64 high = vma[VMA_END] < p.end ? vma[VMA_END] : p.end;

		covered += low < high ? high - low : 0;
	}
	error = vk_do_mprotect(k, mm, p.start, p.end, prot);
	EXPECT(covered == p.end - p.start || error == -ENOMEM);
	if (covered == p.end - p.start && no_records(error))
		return;
	for (u64 i = 0; !error && i < map_count(k, mm); i++) {
		const u64 *vma = vma_in(k, mm, i);

		if (vma[VMA_START] < p.end && p.start < vma[VMA_END])
			EXPECT((vma[VMA_FLAGS] & VM_ACCESS_FLAGS) == prot);
	}
}

/* Give a process that has an address space for itself an empty one; 0 = it keeps its own. */
static u64 start_over(struct vk *k, u64 task)
{
	u64 old = mm_of(k, task), new, root;

	if (k->mm[old * MM_RECORD + MM_USERS] != 1)
		return 0;
	new = slab_alloc64(k, SLAB_MM, k->mm, MM_RECORD, MAX_MMS);
	root = new ? table_alloc(k, new, 0) : 0;
	if (!root) {
		if (new)
			slab_free64(k, SLAB_MM, k->mm, MM_RECORD, new);
		return 0;
	}
	vk_exit_mmap(k, old, task);
	k->mm[new * MM_RECORD + MM_PGD] = root;
	k->mm[new * MM_RECORD + MM_USERS] = 1;
	k->task[task * TASK_RECORD + TASK_MM] = new;
	return new;
}

static void case_vk_exit_mmap(struct vk *k, struct input *in)
{
	u64 new = start_over(k, some_task(in));

	EXPECT(!new || !map_count(k, new));
}

static void case_vk_dup_mmap(struct vk *k, struct input *in)
{
	u64 task = some_task(in), old = mm_of(k, some_task(in)), copied = 0, new;
	int64_t slot;

	if (mm_of(k, task) == old)
		return;
	new = start_over(k, task);
	if (!new)
		return;
	slot = vk_dup_mmap(k, new, old, 0);
	if (slot < 0 && no_records((int)slot))
		return;
	EXPECT((u64)slot <= map_count(k, old));
	for (u64 i = 0; i < map_count(k, old) && i <= (u64)slot; i++) {
		const u64 *vma = vma_in(k, old, i), *copy = vma_in(k, new, copied);

		if (vma[VMA_FLAGS] & VM_DONTCOPY)
			continue;
		copied++;
		EXPECT(copy[VMA_START] == vma[VMA_START] && copy[VMA_END] == vma[VMA_END]);
		EXPECT(copy[VMA_FILE] == vma[VMA_FILE] && copy[VMA_FLAGS] == vma[VMA_FLAGS]);
		if (i == (u64)slot)
			EXPECT(k->run[RUN_ADDRESS] < vma[VMA_END]);
	}
	EXPECT(copied == map_count(k, new));
}

enum { MAX_RUN = 16, MAX_RUN_FILES = 64 };

/* Accesses of processes, and calls among them; what is left to Python is left out. */
static void case_vk_run_many(struct vk *k, struct input *in)
{
	u64 tasks[9] = {0}, files[MAX_RUN_FILES] = {0}, access[2 * MAX_RUN];
	u64 calls[MAX_RUN * CALL_WORDS], slots = image->nr_tasks, nr = 1 + below(in, MAX_RUN);

	for (u64 i = 0; i < slots; i++)
		tasks[i] = image->tasks[i];
	for (u64 i = 1; i < MAX_RUN_FILES && i <= k->zone[ZONE_SLAB + SLAB_FILE + 1]; i++)
		if (k->file[i * FILE_RECORD + FILE_PAGES] && !k->file[i * FILE_RECORD + FILE_SHMEM])
			files[i] = i;
	for (u64 i = 0; i < nr; i++) {
		u64 slot = below(in, slots), what = below(in, 8), *call = calls + i * CALL_WORDS;
		struct pages p = some_pages(k, in, mm_of(k, tasks[slot]));

		access[2 * i] = what > CALL_BRK ? p.start : i;
		access[2 * i + 1] = what > CALL_BRK ? slot << 1 | (what & 1) : slots << 1;
		call[CALL_WHAT] = what;
		call[CALL_SLOT] = slot;
		call[CALL_START] = p.start;
		call[CALL_LENGTH] = p.end - p.start - take(in, 1);
		call[CALL_PROT] = below(in, 8);
		call[CALL_FLAGS] = MAP_FIXED | take(in, 2);
		call[CALL_FILE] = below(in, MAX_RUN_FILES);
		call[CALL_PGOFF] = take(in, 1);
	}
	for (u64 i = 0; i < nr; i++) {
		u64 at = vk_run_many(k, tasks, access, calls, slots, files, i, nr);

		EXPECT(i <= at && at <= nr);
		i = at;
	}
}

const struct fuzz_case mmap_cases[] = {
	{"vk_do_munmap", case_vk_do_munmap},
	{"vk_mmap_region", case_vk_mmap_region},
	{"vk_do_brk_flags", case_vk_do_brk_flags},
	{"vk_vma_set_flags", case_vk_vma_set_flags},
	{"vk_do_mprotect", case_vk_do_mprotect},
	{"vk_exit_mmap", case_vk_exit_mmap},
	{"vk_dup_mmap", case_vk_dup_mmap},
	{"vk_run_many", case_vk_run_many},
	{NULL, NULL},
};
