// SPDX-License-Identifier: GPL-2.0-only
/* The anon_vmas that VMAs are linked to. The reference is mm/vma.py and mm/rmap.py. */
#include "fault.h"
#include "vma.h"

/* The anon_vma of a neighbour, if upper could follow lower in one VMA but for the access rights; or 0. */
static u64 reusable_anon_vma(const struct vk *k, const u64 *lower, const u64 *upper,
			     const u64 *neighbour)
{
	u64 pages = (lower[VMA_END] - lower[VMA_START]) >> PAGE_SHIFT;
	u64 avc = neighbour[VMA_AVC];

	if (!neighbour[VMA_ANON_VMA] || !avc || k->avc[avc * AVC_RECORD + AVC_NEXT_VMA])
		return 0;
	if (lower[VMA_END] != upper[VMA_START] || lower[VMA_FILE] != upper[VMA_FILE])
		return 0;
	if ((lower[VMA_FLAGS] ^ upper[VMA_FLAGS]) & ~(u64)VM_ACCESS_FLAGS)
		return 0;
	return lower[VMA_PGOFF] + pages == upper[VMA_PGOFF] ? neighbour[VMA_ANON_VMA] : 0;
}

static u64 find_mergeable_anon_vma(const struct vk *k, const u64 *vma)
{
	u64 mm = vma[VMA_MM];
	u64 slot = find_slot(k, mm, vma[VMA_START]);
	const u32 *index = k->vma_index + mm * MAX_MAP_COUNT + slot;
	u64 found = 0;

	if (slot + 1 < k->mm[mm * MM_RECORD + MM_MAP_COUNT]) {
		const u64 *above = vma_record(k, index[1]);

		found = reusable_anon_vma(k, vma, above, above);
	}
	if (!found && slot) {
		const u64 *below = vma_record(k, index[-1]);

		found = reusable_anon_vma(k, below, vma, below);
	}
	return found;
}

/* Link a VMA to an anon_vma, last in the VMA's list; 0 = there is no memory for it. */
static int anon_vma_chain_link(struct vk *k, u64 *vma, u64 anon_vma)
{
	u32 link = slab_alloc(k, SLAB_AVC, k->avc, AVC_RECORD, k->fault[FAULT_NR_AVCS]);
	u32 *avc = k->avc + (u64)link * AVC_RECORD;
	u32 *head = k->anon_vma + anon_vma * ANON_VMA_RECORD + ANON_VMA_AVC;
	u64 last = vma[VMA_AVC];

	if (!link)
		return 0;
	avc[AVC_VMA] = (u32)vma_number(k, vma);
	avc[AVC_ANON_VMA] = (u32)anon_vma;
	avc[AVC_NEXT] = *head;
	if (*head)
		k->avc[(u64)*head * AVC_RECORD + AVC_PREV] = link;
	*head = link;
	if (!last) {
		vma[VMA_AVC] = link;
		return 1;
	}
	while (k->avc[last * AVC_RECORD + AVC_NEXT_VMA])
		last = k->avc[last * AVC_RECORD + AVC_NEXT_VMA];
	k->avc[last * AVC_RECORD + AVC_NEXT_VMA] = link;
	return 1;
}

/* A new anon_vma that a VMA is linked to; 0 = there is no memory for it. */
static u64 anon_vma_alloc(struct vk *k, u64 *vma)
{
	u32 new = slab_alloc(k, SLAB_ANON_VMA, k->anon_vma, ANON_VMA_RECORD,
			     k->fault[FAULT_NR_ANON_VMAS]);
	u32 *anon_vma = k->anon_vma + (u64)new * ANON_VMA_RECORD;

	if (!new)
		return 0;
	anon_vma[ANON_VMA_ROOT] = new;
	anon_vma[ANON_VMA_PARENT] = new;
	anon_vma[ANON_VMA_NUM_CHILDREN] = 1; /* a root is its own parent */
	if (anon_vma_chain_link(k, vma, new))
		return new;
	slab_free(k, SLAB_ANON_VMA, k->anon_vma, ANON_VMA_RECORD, new);
	return 0;
}

/**
 * vma_prepare_anon - give a VMA an anon_vma, a neighbour's if it can be shared
 *
 * Return: 0 when a table is full; then it has none.
 */
int vma_prepare_anon(struct vk *k, u64 *vma)
{
	u64 anon_vma;

	if (vma[VMA_ANON_VMA])
		return 1;
	anon_vma = find_mergeable_anon_vma(k, vma);
	if (!anon_vma)
		anon_vma = anon_vma_alloc(k, vma);
	else if (!anon_vma_chain_link(k, vma, anon_vma))
		return 0;
	if (!anon_vma)
		return 0;
	vma[VMA_ANON_VMA] = anon_vma;
	k->anon_vma[anon_vma * ANON_VMA_RECORD + ANON_VMA_NUM_ACTIVE]++;
	return 1;
}

static u64 chain_length(const struct vk *k, const u64 *vma)
{
	u64 nr = 0;

	for (u64 avc = vma[VMA_AVC]; avc; avc = k->avc[avc * AVC_RECORD + AVC_NEXT_VMA])
		nr++;
	return nr;
}

/* Whether there is memory for so many links. */
static int can_link(const struct vk *k, u64 nr)
{
	const u64 *head = k->zone + ZONE_SLAB + SLAB_AVC;
	u64 room = k->fault[FAULT_NR_AVCS] - 1 - head[1];

	for (u64 avc = head[0]; avc && room < nr; avc = k->avc[avc * AVC_RECORD])
		room++;
	return room >= nr;
}

/**
 * anon_vma_clone - link a VMA to every anon_vma that another is linked to
 *
 * A forked VMA without an anon_vma of its own takes one that no VMA uses any longer.
 *
 * Return: 0 when the table of links is full; then the VMA has neither links nor an anon_vma.
 */
int anon_vma_clone(struct vk *k, u64 *to, const u64 *source)
{
	if (!can_link(k, chain_length(k, source))) {
		to[VMA_ANON_VMA] = 0; /* which does not count it yet */
		return 0;
	}
	for (u64 avc = source[VMA_AVC]; avc; avc = k->avc[avc * AVC_RECORD + AVC_NEXT_VMA]) {
		u64 anon_vma = k->avc[avc * AVC_RECORD + AVC_ANON_VMA];
		const u32 *a = k->anon_vma + anon_vma * ANON_VMA_RECORD;

		anon_vma_chain_link(k, to, anon_vma);
		if (source[VMA_ANON_VMA] && !to[VMA_ANON_VMA] && a[ANON_VMA_NUM_CHILDREN] < 2 &&
		    !a[ANON_VMA_NUM_ACTIVE])
			to[VMA_ANON_VMA] = anon_vma;
	}
	if (to[VMA_ANON_VMA])
		k->anon_vma[to[VMA_ANON_VMA] * ANON_VMA_RECORD + ANON_VMA_NUM_ACTIVE]++;
	return 1;
}

/**
 * anon_vma_fork - link a forked VMA to its parent's anon_vmas, and give it one of its own
 *
 * Return: 0 when a table is full; then the VMA has neither links nor an anon_vma.
 */
int anon_vma_fork(struct vk *k, u64 *vma, const u64 *parent_vma)
{
	u64 parent = parent_vma[VMA_ANON_VMA];
	u64 new;
	u32 *a;

	if (!parent)
		return 1;
	vma[VMA_ANON_VMA] = 0;
	if (!anon_vma_clone(k, vma, parent_vma))
		return 0;
	if (vma[VMA_ANON_VMA])
		return 1;
	new = anon_vma_alloc(k, vma);
	if (!new) {
		unlink_anon_vmas(k, vma);
		return 0;
	}
	a = k->anon_vma + new * ANON_VMA_RECORD;
	a[ANON_VMA_ROOT] = k->anon_vma[parent * ANON_VMA_RECORD + ANON_VMA_ROOT];
	a[ANON_VMA_PARENT] = (u32)parent;
	a[ANON_VMA_NUM_CHILDREN] = 0;
	a[ANON_VMA_NUM_ACTIVE] = 1;
	k->anon_vma[parent * ANON_VMA_RECORD + ANON_VMA_NUM_CHILDREN]++;
	vma[VMA_ANON_VMA] = new;
	return 1;
}

/* Take a link out of its anon_vma's list; whether that was the last one. */
static int anon_vma_unlink(struct vk *k, const u32 *link, u32 *anon_vma)
{
	u64 after = link[AVC_NEXT], before = link[AVC_PREV];

	if (before)
		k->avc[before * AVC_RECORD + AVC_NEXT] = (u32)after;
	else
		anon_vma[ANON_VMA_AVC] = (u32)after;
	if (after)
		k->avc[after * AVC_RECORD + AVC_PREV] = (u32)before;
	return !before && !after;
}

/** take_anon_vmas - let a VMA that has none have the anon_vmas of one that goes away */
void take_anon_vmas(struct vk *k, u64 *to, u64 *source)
{
	to[VMA_ANON_VMA] = source[VMA_ANON_VMA];
	to[VMA_AVC] = source[VMA_AVC];
	source[VMA_ANON_VMA] = 0;
	source[VMA_AVC] = 0;
	for (u64 avc = to[VMA_AVC]; avc; avc = k->avc[avc * AVC_RECORD + AVC_NEXT_VMA])
		k->avc[avc * AVC_RECORD + AVC_VMA] = (u32)vma_number(k, to);
}

/** unlink_anon_vmas - unlink a VMA that goes away, and free the anon_vmas that nothing is linked to */
void unlink_anon_vmas(struct vk *k, u64 *vma)
{
	u64 own = vma[VMA_ANON_VMA], link = vma[VMA_AVC];
	/* In a list by ANON_VMA_AVC: a child may be behind its parent. */
	u32 unused = 0;
	u32 *last = &unused;

	if (own)
		k->anon_vma[own * ANON_VMA_RECORD + ANON_VMA_NUM_ACTIVE]--;
	vma[VMA_ANON_VMA] = 0;
	vma[VMA_AVC] = 0;
	while (link) {
		const u32 *avc = k->avc + link * AVC_RECORD;
		u32 anon_vma = avc[AVC_ANON_VMA];
		u32 *a = k->anon_vma + (u64)anon_vma * ANON_VMA_RECORD;
		u64 following = avc[AVC_NEXT_VMA];

		if (anon_vma_unlink(k, avc, a)) {
			u64 parent = a[ANON_VMA_PARENT];

			k->anon_vma[parent * ANON_VMA_RECORD + ANON_VMA_NUM_CHILDREN]--;
			*last = anon_vma;
			last = a + ANON_VMA_AVC;
		}
		slab_free(k, SLAB_AVC, k->avc, AVC_RECORD, link);
		link = following;
	}
	while (unused) {
		u32 next = k->anon_vma[(u64)unused * ANON_VMA_RECORD + ANON_VMA_AVC];

		slab_free(k, SLAB_ANON_VMA, k->anon_vma, ANON_VMA_RECORD, unused);
		unused = next;
	}
}
