// SPDX-License-Identifier: GPL-2.0-only
/* VMAs that become one. The reference is mm/vma.py. */
#include "fault.h"
#include "vma.h"

static int anon_vma_chain_is_singular(const struct vk *k, const u64 *vma)
{
	u64 avc = vma[VMA_AVC];

	return avc && !k->avc[avc * AVC_RECORD + AVC_NEXT_VMA];
}

/* Whether a VMA that is new or has changed may share its neighbour's anon_vma. */
static int is_mergeable_anon_vma(const struct vk *k, const u64 *vma, const u64 *neighbour)
{
	u64 own = vma[VMA_ANON_VMA], other = neighbour[VMA_ANON_VMA];

	if (own == other)
		return 1;
	if (own && other)
		return 0;
	if (other)
		return anon_vma_chain_is_singular(k, neighbour);
	return CONFIG_MERGE_FAULTED_VMA && anon_vma_chain_is_singular(k, vma);
}

/* Whether VMA b, right above a, differs from it in nothing but the anon_vma. */
static int can_vma_merge(const u64 *a, const u64 *b)
{
	return a[VMA_END] == b[VMA_START] && a[VMA_FLAGS] == b[VMA_FLAGS] &&
	       a[VMA_FILE] == b[VMA_FILE] && !(a[VMA_FLAGS] & VM_DONTEXPAND) &&
	       a[VMA_PGOFF] + ((a[VMA_END] - a[VMA_START]) >> PAGE_SHIFT) == b[VMA_PGOFF];
}

/* Extend a VMA over its upper neighbour, which is in a slot and goes away. */
static void absorb(struct vk *k, u64 *vma, u64 slot)
{
	u64 mm = vma[VMA_MM];
	u64 *upper = vma_record(k, k->vma_index[mm * MAX_MAP_COUNT + slot]);
	u64 end = upper[VMA_END];

	if (!vma[VMA_ANON_VMA])
		take_anon_vmas(k, vma, upper);
	move_refused(upper, vma);
	vma_unlink(k, mm, slot, 1, 0);
	vma[VMA_END] = end;
}

/**
 * vma_merge - merge a VMA that is new or has changed with its neighbours
 * @just_expand: 1 = with none but the lower
 *
 * Where both fit but not with each other the lower one is taken. The VMA may be gone afterwards.
 */
void vma_merge(struct vk *k, u64 *vma, int just_expand)
{
	u64 mm = vma[VMA_MM];
	u64 slot = find_slot(k, mm, vma[VMA_START]);
	const u32 *index = k->vma_index + mm * MAX_MAP_COUNT + slot;
	u64 *below = slot ? vma_record(k, index[-1]) : NULL;
	const u64 *above = NULL;

	if (!just_expand && slot + 1 < k->mm[mm * MM_RECORD + MM_MAP_COUNT])
		above = vma_record(k, index[1]);
	if (below && !(can_vma_merge(below, vma) && is_mergeable_anon_vma(k, vma, below)))
		below = NULL;
	if (above && !(can_vma_merge(vma, above) && is_mergeable_anon_vma(k, vma, above)))
		above = NULL;
	if (below && above && below[VMA_ANON_VMA] && above[VMA_ANON_VMA] &&
	    below[VMA_ANON_VMA] != above[VMA_ANON_VMA])
		above = NULL;
	if (above)
		absorb(k, vma, slot + 1);
	if (below)
		absorb(k, below, slot);
}
