// SPDX-License-Identifier: GPL-2.0-only
/* The calls that shape an address space, and its end. The reference is mm/mmap.py and mm/fork.py. */
#include <errno.h>

#include "fault.h"
#include "huge_memory.h"
#include "pgtable.h"
#include "vma.h"

enum { MAP_FIXED = 0x10, MAP_FIXED_NOREPLACE = 0x100000 };

/* The VMAs of a range: slots, counted from the mm's first. */
struct range {
	u64 slot;
	u64 nr;
};

static u64 *vma_at(const struct vk *k, u64 mm, u64 slot)
{
	return vma_record(k, k->vma_index[mm * MAX_MAP_COUNT + slot]);
}

static u64 map_count(const struct vk *k, u64 mm)
{
	return k->mm[mm * MM_RECORD + MM_MAP_COUNT];
}

static struct range vmas_in(const struct vk *k, u64 mm, u64 start, u64 end)
{
	const u64 *starts = k->vma_start + mm * MAX_MAP_COUNT;
	struct range found = {.slot = find_slot(k, mm, start)};

	while (found.slot + found.nr < map_count(k, mm) && starts[found.slot + found.nr] < end)
		found.nr++;
	return found;
}

/* Zap the pages of neighbouring VMAs, free their page tables and the VMAs. */
static void unmap_region(struct vk *k, u64 mm, struct range r, u64 task)
{
	u64 written = k->work[WORK_pte_write];
	u64 floor = r.slot ? vma_at(k, mm, r.slot - 1)[VMA_END] : 0;
	u64 above = r.slot + r.nr;
	u64 ceiling = above < map_count(k, mm) ? vma_at(k, mm, above)[VMA_START] : 0;

	update_hiwater_rss(k->mm + mm * MM_RECORD);
	k->run[RUN_ROOM] = k->fault[FAULT_GATHER];
	for (u64 i = r.slot; i < above; i++) {
		const u64 *vma = vma_at(k, mm, i);

		vk_unmap_page_range(k, vma_number(k, vma), vma[VMA_START], vma[VMA_END], 0);
	}
	free_pgd_range(k, mm, vma_at(k, mm, r.slot)[VMA_START], vma_at(k, mm, above - 1)[VMA_END],
		       floor, ceiling);
	k->work[WORK_tlbi] += k->work[WORK_pte_write] != written;
	vma_unlink(k, mm, r.slot, r.nr, task);
}

/**
 * vk_do_munmap - unmap [start, end), which is not empty and whole pages; holes in it are fine
 * @task: the process that calls
 *
 * Return: 0 or -ENOMEM.
 */
int vk_do_munmap(struct vk *k, u64 mm, u64 start, u64 end, u64 task)
{
	struct range found = vmas_in(k, mm, start, end);
	u64 *vma;

	if (!found.nr)
		return 0;
	vma = vma_at(k, mm, found.slot);
	if (vma[VMA_START] < start) {
		if (!split_vma(k, vma, start))
			return -ENOMEM;
		found.slot++;
	}
	vma = vma_at(k, mm, found.slot + found.nr - 1);
	if (vma[VMA_END] > end && !split_vma(k, vma, end))
		return -ENOMEM;
	unmap_region(k, mm, found, task);
	return 0;
}

/**
 * vk_mmap_region - map [start, end), which is not empty and whole pages of user space
 * @vm_flags: VM_* bits
 * @flags: MAP_* bits: MAP_FIXED replaces what is there, otherwise something there is -EEXIST
 * @file: 0 = anonymous
 * @pgoff: in pages of the file
 * @task: the process that calls
 *
 * Return: 0, -EEXIST or -ENOMEM.
 */
int vk_mmap_region(struct vk *k, u64 mm, u64 start, u64 end, u64 vm_flags, u64 flags, u64 file,
		   u64 pgoff, u64 task)
{
	u64 *vma;

	if (vmas_in(k, mm, start, end).nr) {
		int error;

		if (!(flags & MAP_FIXED) || flags & MAP_FIXED_NOREPLACE)
			return -EEXIST;
		error = vk_do_munmap(k, mm, start, end, task);
		if (error)
			return error;
	}
	if (map_count(k, mm) >= SYSCTL_MAX_MAP_COUNT)
		return -ENOMEM;
	vma = vm_area_alloc(k, mm, start, end, vm_flags, file ? pgoff : start >> PAGE_SHIFT, file);
	if (!vma)
		return -ENOMEM;
	if (!file && vm_flags & VM_SHARED) {
		vma[VMA_FILE] = shmem_file_setup(k, (end - start) >> PAGE_SHIFT);
		vma[VMA_PGOFF] = 0;
		if (!vma[VMA_FILE]) {
			vm_area_free(k, vma);
			return -ENOMEM;
		}
	}
	vma_link(k, vma);
	vma_merge(k, vma, 0);
	return 0;
}

/**
 * vk_do_brk_flags - map the heap's growth [start, end), which is not empty and whole pages of user space
 * @vm_flags: VM_* bits
 *
 * It extends the mapping below if that is the heap, and merges with nothing else.
 *
 * Return: 0 or -ENOMEM, also if something is there.
 */
int vk_do_brk_flags(struct vk *k, u64 mm, u64 start, u64 end, u64 vm_flags)
{
	struct range found = vmas_in(k, mm, start, end);
	u64 *vma;

	if (found.nr || map_count(k, mm) >= SYSCTL_MAX_MAP_COUNT)
		return -ENOMEM;
	vma = vm_area_alloc(k, mm, start, end, vm_flags, start >> PAGE_SHIFT, 0);
	if (!vma)
		return -ENOMEM;
	vma_link(k, vma);
	if (found.slot &&
	    vma_at(k, mm, found.slot - 1)[VMA_START] >= k->mm[mm * MM_RECORD + MM_START_BRK])
		vma_merge(k, vma, 1);
	return 0;
}

/**
 * vk_exit_mmap - unmap everything, and free the page tables and the mm itself
 * @task: the process that leaves it
 */
void vk_exit_mmap(struct vk *k, u64 mm, u64 task)
{
	struct range all = {.nr = map_count(k, mm)};
	u64 *m = k->mm + mm * MM_RECORD;

	k->event[EV_exit_vma * NR_ORDERS] += all.nr;
	if (all.nr)
		unmap_region(k, mm, all, task);
	pte_free(k, mm, m[MM_PGD]);
	slab_free64(k, SLAB_MM, k->mm, MM_RECORD, mm);
}
