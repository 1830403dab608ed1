// SPDX-License-Identifier: GPL-2.0-only
/* Finding VMAs, and the one kind that a fault changes. The reference is mm/vma.py and mm/mmap.py. */
#include "fault.h"
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
