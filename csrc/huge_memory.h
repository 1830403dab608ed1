/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory that a PMD entry maps as a whole. Splitting the entry is vk_split_huge_pmd(). */
#ifndef VK_HUGE_MEMORY_H
#define VK_HUGE_MEMORY_H

#include "core.h"

static inline u64 pmd_mkhuge(u64 pte)
{
	return (pte & ~PTE_LEAF_MASK) | PTE_LEAF_ON;
}

/* in huge_pmd.c: */
void pgtable_trans_huge_deposit(struct vk *k, u64 mm, u64 table);
void update_hiwater_rss(u64 *mm);
void zap_huge_pmd(struct vk *k, u64 mm, u64 *pmd);
int copy_huge_pmd(struct vk *k, u64 mm, u64 *source, u64 address);
void change_huge_pmd(struct vk *k, const u64 *vma, u64 *pmd);

#endif
