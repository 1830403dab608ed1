/* SPDX-License-Identifier: GPL-2.0-only */
/* Last-level entries and their contiguous blocks. */
#ifndef VK_CONTPTE_H
#define VK_CONTPTE_H

#include "core.h"

u64 young_dirty(const struct vk *k, u64 pte, u64 nr);
void map_ptes(struct vk *k, u64 pte, u64 entry, u64 nr);
void unfold(struct vk *k, u64 pte);
void try_fold(struct vk *k, u64 pte, u64 entry);
void unfold_edges(struct vk *k, u64 pte, u64 nr);
void read_blocks(struct vk *k, u64 pte, u64 nr);
void read_pte(struct vk *k, u64 pte);
void clear_ptes_range(struct vk *k, u64 pte, u64 nr);
void set_access_flags(struct vk *k, u64 pte, u64 entry);
void set_access_flags_range(struct vk *k, u64 pte, u64 nr);

/* Whether an entry is the last of what could be a contiguous block, so that writing it may make it one. */
static inline int may_fold(const struct vk *k, u64 pte)
{
	return CONFIG_CONTPTE_FOLD && k->fault[FAULT_CONT_BIT] &&
	       !(~pte & (k->fault[FAULT_CONT_NR] - 1));
}

#endif
