/* SPDX-License-Identifier: GPL-2.0-only */
/* What the files of the fault path share. */
#ifndef VK_FAULT_H
#define VK_FAULT_H

#include "core.h"

/* VM_* bits of a VMA, as mm/vm_flags.py has them. */
enum {
	VM_READ = 0x1,
	VM_WRITE = 0x2,
	VM_EXEC = 0x4,
	VM_ACCESS_FLAGS = 0x7,
	VM_SHARED = 0x8,
	VM_GROWSDOWN = 0x100,
	VM_LOCKED = 0x2000,
	VM_DONTCOPY = 0x20000,
	VM_DONTEXPAND = 0x40000,
	VM_ACCOUNT = 0x100000,
	VM_NORESERVE = 0x200000,
	VM_WIPEONFORK = 0x2000000,
	VM_HUGEPAGE_SHIFT = 29, /* VM_NOHUGEPAGE follows it */
};

/* In why: the order has not been tried. */
enum { NOT_LOOKED_AT = NR_REFUSED };

/**
 * struct fault - a fault on its way
 * @pte: place of the page's entry
 * @why: by order, REFUSED_* of what it lacked
 */
struct fault {
	u64 *vma;
	u64 mm;
	u64 task;
	u64 address;
	u64 pte;
	u8 why[NR_ORDERS];
};

static inline u64 linear_page_index(const struct fault *f)
{
	return (f->address >> PAGE_SHIFT) - (f->vma[VMA_START] >> PAGE_SHIFT) + f->vma[VMA_PGOFF];
}

static inline u64 pte_mkyoung(u64 pte)
{
	return (pte & ~PTE_YOUNG_MASK) | PTE_YOUNG_ON;
}

static inline u64 pte_mkold(u64 pte)
{
	return (pte & ~PTE_YOUNG_MASK) | PTE_YOUNG_OFF;
}

static inline u64 pte_mkwrite(u64 pte)
{
	return (pte & ~PTE_WRITE_MASK) | PTE_WRITE_ON;
}

static inline u64 pte_wrprotect(u64 pte)
{
	return (pte & ~PTE_WRITE_MASK) | PTE_WRITE_OFF;
}

/* Young, dirty and writable: what a write leaves. */
static inline u64 pte_mkwritten(u64 pte)
{
	return pte_mkyoung(pte_mkwrite((pte & ~PTE_DIRTY_MASK) | PTE_DIRTY_ON));
}

/* The entry with the protection of prot; pfn, young, dirty and special stay. */
static inline u64 pte_modify(u64 pte, u64 prot)
{
	u64 keep = PTE_PFN_MASK | PTE_YOUNG_MASK | PTE_DIRTY_MASK | PTE_SPECIAL_MASK;

	return (pte & keep) | (prot & ~keep);
}

/* Whether the block of an order around an address lies in the VMA. */
static inline int suitable_order(const u64 *vma, u64 address, unsigned order)
{
	u64 size = (u64)1 << (PAGE_SHIFT + order);
	u64 low = address & ~(size - 1);

	return vma[VMA_START] <= low && low + size <= vma[VMA_END];
}

/* in anon_fault.c: */
u64 alloc_anon_folio(struct vk *k, const struct fault *f, unsigned order);
void count_refused(struct vk *k, const struct fault *f, unsigned got, u64 own);
void do_anonymous_read(struct vk *k, const struct fault *f);
int do_anonymous_write(struct vk *k, struct fault *f, int event);
void map_new_folio(struct vk *k, const struct fault *f, u64 folio, unsigned order);
void tag_pages(struct vk *k, const u64 *vma, u64 folio, unsigned order, int work);

/* in file_fault.c: */
int do_fault(struct vk *k, const struct fault *f, int write);

/* in huge_memory.c: */
int do_huge_pmd_anonymous_page(struct vk *k, const struct fault *f, u64 *pmd, int write);
int do_huge_pmd_wp_page(struct vk *k, const struct fault *f, u64 *pmd);

/* in cow.c: */
int do_wp_page(struct vk *k, struct fault *f);

#endif
