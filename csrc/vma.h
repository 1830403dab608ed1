/* SPDX-License-Identifier: GPL-2.0-only */
/* VMAs, and the anon_vmas that they are linked to. */
#ifndef VK_VMA_H
#define VK_VMA_H

#include "core.h"

enum {
	AVC_RECORD = 8,
	ANON_VMA_RECORD = 8,
	VMA_LOG_RECORD = 16,
	SYSCTL_MAX_MAP_COUNT = 65530,
	PROT_MTE = 0x20,
};

static inline u64 *vma_record(const struct vk *k, u64 vma)
{
	return k->vma + vma * VMA_RECORD;
}

static inline u64 vma_number(const struct vk *k, const u64 *vma)
{
	return (u64)(vma - k->vma) / VMA_RECORD;
}

/* in vma.c: */
u64 find_slot(const struct vk *k, u64 mm, u64 address);
u64 *expand_stack(struct vk *k, u64 mm, u64 address);
u64 *vm_area_alloc(struct vk *k, u64 mm, u64 start, u64 end, u64 flags, u64 pgoff, u64 file);
void vm_area_free(struct vk *k, u64 *vma);
u64 vm_get_page_prot(const struct vk *k, u64 flags);
void vma_link(struct vk *k, u64 *vma);
void vma_unlink(struct vk *k, u64 mm, u64 slot, u64 nr, u64 task);
u64 *split_vma(struct vk *k, u64 *vma, u64 address);

/* in vma_merge.c: */
void vma_merge(struct vk *k, u64 *vma, int just_expand);

/* in refused.c: */
void move_refused(u64 *source, u64 *to);
void log_refused(struct vk *k, const u64 *vma, u64 task);

/* in filemap.c: */
u64 shmem_file_setup(struct vk *k, u64 pages);
void put_file(struct vk *k, u64 file);

/* in slab.c: */
u32 slab_alloc(struct vk *k, unsigned slab, u32 *table, u64 words, u64 records);
u64 slab_alloc64(struct vk *k, unsigned slab, u64 *table, u64 words, u64 records);
void slab_free(struct vk *k, unsigned slab, u32 *table, u64 words, u64 record);
void slab_free64(struct vk *k, unsigned slab, u64 *table, u64 words, u64 record);

/* in anon_vma.c: */
int vma_prepare_anon(struct vk *k, u64 *vma);
int anon_vma_clone(struct vk *k, u64 *to, const u64 *source);
void take_anon_vmas(struct vk *k, u64 *to, u64 *source);
int anon_vma_fork(struct vk *k, u64 *vma, const u64 *parent_vma);
void unlink_anon_vmas(struct vk *k, u64 *vma);

#endif
