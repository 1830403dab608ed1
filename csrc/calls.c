// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses and memory calls of many processes in one go. The reference is virtmm/machine.py.
 *
 * A call that fails is left to Python, which does it again: it fails in the same way and leaves the same.
 */
#include "fault.h"
#include "vma.h"

enum {
	MAP_SHARED = 0x1,
	MAP_GROWSDOWN = 0x100,
	MAP_LOCKED = 0x2000,
	MAP_NORESERVE = 0x4000,
	MAP_POPULATE = 0x8000,
};

static u64 page_align(u64 address)
{
	const u64 page = (u64)1 << PAGE_SHIFT;

	return (address + page - 1) & ~(page - 1);
}

/* Whether [start, start + length) is user space, begins with a page, and is not empty. */
static int is_range(const u64 *c)
{
	return c[CALL_LENGTH] && c[CALL_LENGTH] <= TASK_SIZE && c[CALL_START] <= TASK_SIZE &&
	       page_align(c[CALL_START]) == c[CALL_START] &&
	       c[CALL_START] + page_align(c[CALL_LENGTH]) <= TASK_SIZE;
}

static u64 calc_vm_flags(const struct vk *k, u64 prot, u64 flags)
{
	u64 vm_flags = prot & VM_ACCESS_FLAGS;

	if (flags & MAP_SHARED)
		vm_flags |= VM_SHARED;
	if (flags & MAP_GROWSDOWN)
		vm_flags |= VM_GROWSDOWN;
	if (flags & MAP_NORESERVE)
		vm_flags |= VM_NORESERVE;
	else if ((vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE)
		vm_flags |= VM_ACCOUNT;
	return prot & PROT_MTE ? vm_flags | k->fault[FAULT_TAGS] : vm_flags;
}

static int call_mmap(struct vk *k, const u64 *c, u64 file, u64 mm, u64 task)
{
	u64 end = c[CALL_START] + page_align(c[CALL_LENGTH]);
	u64 before = k->mm[mm * MM_RECORD + MM_MAP_COUNT];
	u64 vm_flags = calc_vm_flags(k, c[CALL_PROT], c[CALL_FLAGS]);

	if (!is_range(c) || c[CALL_FLAGS] & (MAP_LOCKED | MAP_POPULATE) || (c[CALL_FILE] && !file))
		return 0;
	if (file) {
		u64 *f = k->file + file * FILE_RECORD;
		u64 pages = c[CALL_PGOFF] + ((end - c[CALL_START]) >> PAGE_SHIFT);

		if (c[CALL_PGOFF] > TASK_SIZE || pages > f[FILE_CAPACITY] ||
		    (c[CALL_PROT] & PROT_MTE && k->fault[FAULT_TAGS]))
			return 0;
		if (pages > f[FILE_PAGES])
			f[FILE_PAGES] = pages;
	}
	if (vk_mmap_region(k, mm, c[CALL_START], end, vm_flags, c[CALL_FLAGS], file, c[CALL_PGOFF],
			   task))
		return 0;
	k->event[(file ? EV_mmap_file : EV_mmap) * NR_ORDERS]++;
	if (!file && k->mm[mm * MM_RECORD + MM_MAP_COUNT] <= before)
		k->event[EV_mmap_merge * NR_ORDERS]++;
	return 1;
}

static int call_munmap(struct vk *k, const u64 *c, u64 mm, u64 task)
{
	if (!is_range(c) ||
	    vk_do_munmap(k, mm, c[CALL_START], c[CALL_START] + page_align(c[CALL_LENGTH]), task))
		return 0;
	k->event[EV_munmap * NR_ORDERS]++;
	return 1;
}

static int call_mprotect(struct vk *k, const u64 *c, u64 mm)
{
	if (!is_range(c) ||
	    vk_do_mprotect(k, mm, c[CALL_START], c[CALL_START] + page_align(c[CALL_LENGTH]),
			   c[CALL_PROT]))
		return 0;
	k->event[EV_mprotect * NR_ORDERS]++;
	return 1;
}

/* The heap is from the start that the call names to where it ends, which need not be a page's. */
static int call_brk(struct vk *k, const u64 *c, u64 mm, u64 task)
{
	u64 *m = k->mm + mm * MM_RECORD;
	u64 end = c[CALL_START] + c[CALL_LENGTH], old, new;
	int error = 0;

	if (c[CALL_START] > TASK_SIZE || c[CALL_LENGTH] > TASK_SIZE || page_align(end) > TASK_SIZE)
		return 0;
	if (m[MM_START_BRK] != c[CALL_START]) {
		m[MM_START_BRK] = c[CALL_START];
		m[MM_BRK] = c[CALL_START];
	}
	old = page_align(m[MM_BRK]);
	new = page_align(end);
	if (new > old)
		error = vk_do_brk_flags(k, mm, old, new, calc_vm_flags(k, VM_READ | VM_WRITE, 0));
	else if (new < old)
		error = vk_do_munmap(k, mm, new, old, task);
	if (error)
		return 0;
	m[MM_BRK] = end;
	k->event[EV_brk * NR_ORDERS]++;
	return 1;
}

/* Do a call; 0 = Python must. */
static int serve(struct vk *k, const u64 *tasks, const u64 *c, const u64 *files)
{
	u64 task = tasks[c[CALL_SLOT]];
	u64 mm = k->task[task * TASK_RECORD + TASK_MM];

	if (!task)
		return 0;
	switch (c[CALL_WHAT]) {
	case CALL_MMAP:
		return call_mmap(k, c, files[c[CALL_FILE]], mm, task);
	case CALL_MUNMAP:
		return call_munmap(k, c, mm, task);
	case CALL_MPROTECT:
		return call_mprotect(k, c, mm);
	case CALL_BRK:
		return call_brk(k, c, mm, task);
	default:
		return 0;
	}
}

/**
 * vk_run_many - let programs read or write memory, and change what they have of it
 * @tasks: as for vk_touch_many(); that of the slot of calls is 0
 * @access: as for vk_touch_many(); in the slot of calls, the number of a call in the place of an address
 * @calls: CALL_WORDS each
 * @slot: that of calls
 * @files: the machine's file of each number that a call may name; 0 = it has none yet
 * @first: access or call to begin with
 * @end: the one behind the last
 *
 * Return: the first that needs Python, or end; those before it happened.
 */
u64 vk_run_many(struct vk *k, const u64 *tasks, const u64 *access, const u64 *calls, u64 slot,
		const u64 *files, u64 first, u64 end)
{
	u64 i = first;

	while ((i = vk_touch_many(k, tasks, access, i, end)) < end) {
		const u64 *call = (const void *)(calls + access[2 * i] * CALL_WORDS);

		if (access[2 * i + 1] >> 1 != slot || !serve(k, tasks, call, files))
			break;
		i++;
	}
	return i;
}
