/* SPDX-License-Identifier: GPL-2.0-only */
/* VMAs, and the anon_vmas that they are linked to. */
#ifndef VK_VMA_H
#define VK_VMA_H

#include "core.h"

enum {
	AVC_RECORD = 8,
	ANON_VMA_RECORD = 8,
};

static inline u64 *vma_record(const struct vk *k, u64 vma)
{
	return k->vma + vma * VMA_RECORD;
}

/* in vma.c: */
u64 find_slot(const struct vk *k, u64 mm, u64 address);
u64 *expand_stack(struct vk *k, u64 mm, u64 address);

/* in slab.c: */
u32 slab_alloc(struct vk *k, unsigned slab, u32 *table, u64 words, u64 records);
int slab_full(const struct vk *k, unsigned slab, u64 records);

/* in anon_vma.c: */
int vma_prepare_anon(struct vk *k, u64 *vma);

#endif
