// SPDX-License-Identifier: GPL-2.0-only
/* The set of VMAs that an mm has. The reference is mm/vma.py, and mm/mmap.py for stacks. */
#include <string.h>

#include "fault.h"
#include "pgtable.h"
#include "vma.h"

enum { STACK_GUARD_GAP = 256 << PAGE_SHIFT };

/** find_slot - slot of the first VMA of mm that ends above address, counted from its first */
u64 find_slot(const struct vk *k, u64 mm, u64 address)
{
	const u64 *start = k->vma_start + mm * MAX_MAP_COUNT;
	const u32 *index = k->vma_index + mm * MAX_MAP_COUNT;
	u64 low = 0, high = k->mm[mm * MM_RECORD + MM_MAP_COUNT];

	while (low < high) {
		u64 middle = (low + high) / 2;

		if (start[middle] <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low && vma_record(k, index[low - 1])[VMA_END] > address ? low - 1 : low;
}

/**
 * expand_stack - grow the stack VMA above an address down to its page
 *
 * Return: the VMA; NULL when there is no stack, or too little room below it.
 */
u64 *expand_stack(struct vk *k, u64 mm, u64 address)
{
	u64 slot = find_slot(k, mm, address);
	u64 page = address >> PAGE_SHIFT << PAGE_SHIFT;
	u64 *start = k->vma_start + mm * MAX_MAP_COUNT + slot;
	const u32 *index = k->vma_index + mm * MAX_MAP_COUNT + slot;
	u64 *vma, grow;

	if (slot == k->mm[mm * MM_RECORD + MM_MAP_COUNT])
		return NULL;
	vma = vma_record(k, *index);
	if (!(vma[VMA_FLAGS] & VM_GROWSDOWN))
		return NULL;
	if (slot) {
		const u64 *below = vma_record(k, index[-1]);

		if (!(below[VMA_FLAGS] & VM_GROWSDOWN) && page - below[VMA_END] < STACK_GUARD_GAP)
			return NULL;
	}
	grow = (vma[VMA_START] - page) >> PAGE_SHIFT;
	if (grow > vma[VMA_PGOFF] || !vma_prepare_anon(k, vma))
		return NULL;
	vma[VMA_START] = page;
	vma[VMA_PGOFF] -= grow;
	*start = page;
	return vma;
}

/** vm_get_page_prot - entry bits of a page in a VMA with these VM_* flags, old, clean and without pfn */
u64 vm_get_page_prot(const struct vk *k, u64 flags)
{
	return k->fault[FAULT_PROTECTION_MAP + (flags & (VM_ACCESS_FLAGS | VM_SHARED))];
}

/** vm_area_alloc - new VMA that is in no set yet; NULL when the table is full */
u64 *vm_area_alloc(struct vk *k, u64 mm, u64 start, u64 end, u64 flags, u64 pgoff, u64 file)
{
	u64 new = slab_alloc64(k, SLAB_VMA, k->vma, VMA_RECORD, k->fault[FAULT_NR_VMAS]);
	u64 *vma = vma_record(k, new);

	if (!new)
		return NULL;
	vma[VMA_START] = start;
	vma[VMA_END] = end;
	vma[VMA_FLAGS] = flags;
	vma[VMA_PGOFF] = pgoff;
	vma[VMA_PAGE_PROT] = vm_get_page_prot(k, flags);
	vma[VMA_FILE] = file;
	vma[VMA_MM] = mm;
	return vma;
}

/** vm_area_free - free a VMA that is in no set: its links to anon_vmas, its record */
void vm_area_free(struct vk *k, u64 *vma)
{
	unlink_anon_vmas(k, vma);
	slab_free64(k, SLAB_VMA, k->vma, VMA_RECORD, vma_number(k, vma));
}

/** vma_link - put a VMA into its mm's set; nothing may be where it goes */
void vma_link(struct vk *k, u64 *vma)
{
	u64 mm = vma[VMA_MM];
	u64 slot = find_slot(k, mm, vma[VMA_START]);
	u64 *start = k->vma_start + mm * MAX_MAP_COUNT + slot;
	u32 *index = k->vma_index + mm * MAX_MAP_COUNT + slot;
	u64 above = k->mm[mm * MM_RECORD + MM_MAP_COUNT]++ - slot;

	memmove(start + 1, start, above * sizeof(*start));
	memmove(index + 1, index, above * sizeof(*index));
	*start = vma[VMA_START];
	*index = (u32)vma_number(k, vma);
	if (vma[VMA_FILE])
		k->file[vma[VMA_FILE] * FILE_RECORD + FILE_VMAS]++;
}

/**
 * vma_unlink - take VMAs out of their mm's set and free them, the highest first
 * @slot: of the first
 * @nr: how many
 * @task: the process that their counts are logged for
 *
 * Their pages must be unmapped, or another VMA's.
 */
void vma_unlink(struct vk *k, u64 mm, u64 slot, u64 nr, u64 task)
{
	u64 *start = k->vma_start + mm * MAX_MAP_COUNT + slot;
	u32 *index = k->vma_index + mm * MAX_MAP_COUNT + slot;
	u64 *count = k->mm + mm * MM_RECORD + MM_MAP_COUNT;
	u64 above = *count - slot - nr;

	for (u64 i = nr; i--;) {
		u64 *vma = vma_record(k, index[i]);
		u64 file = vma[VMA_FILE];

		log_refused(k, vma, task);
		vm_area_free(k, vma);
		if (file)
			put_file(k, file);
	}
	memmove(start, start + nr, above * sizeof(*start));
	memmove(index, index + nr, above * sizeof(*index));
	memset(start + above, 0, nr * sizeof(*start));
	memset(index + above, 0, nr * sizeof(*index));
	*count -= nr;
}

/* Split the huge entry over address unless it begins there: a VMA is about to end at address. */
static void split_huge_pmd_address(struct vk *k, u64 mm, u64 address)
{
	const u64 *pmd = pmd_offset(k, mm, address, 0);

	if (address >> PMD_SHIFT << PMD_SHIFT != address && pmd && pmd_trans_huge(*pmd))
		vk_split_huge_pmd(k, mm, (u64)(pmd - k->phys));
}

/**
 * split_vma - cut a VMA at an address strictly inside it
 *
 * Return: the new upper part; NULL without memory for it, and then nothing has changed.
 */
u64 *split_vma(struct vk *k, u64 *vma, u64 address)
{
	u64 mm = vma[VMA_MM];
	u64 pgoff = vma[VMA_PGOFF] + ((address - vma[VMA_START]) >> PAGE_SHIFT);
	u64 *new;

	if (k->mm[mm * MM_RECORD + MM_MAP_COUNT] >= SYSCTL_MAX_MAP_COUNT)
		return NULL;
	new = vm_area_alloc(k, mm, address, vma[VMA_END], vma[VMA_FLAGS], pgoff, vma[VMA_FILE]);
	if (!new)
		return NULL;
	new[VMA_ANON_VMA] = vma[VMA_ANON_VMA];
	if (!anon_vma_clone(k, new, vma)) {
		vm_area_free(k, new);
		return NULL;
	}
	split_huge_pmd_address(k, mm, address);
	vma[VMA_END] = address;
	vma_link(k, new);
	return new;
}
