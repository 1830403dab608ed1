// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses, and the faults among them that need nothing unusual: the first touch of anonymous memory
 * (anon_fault.c; huge_memory.c: by a PMD entry) and of files (file_fault.c), and copy on write (cow.c).
 * The reference is mm/fault.py and mm/memory.py.
 *
 * What is not served here is left to Python, which does the whole access again. So nothing is counted
 * before it is certain that the access succeeds; only page tables and anon_vmas made on the way, pages
 * read in, and huge entries split stay.
 */
#include "contpte.h"
#include "fault.h"
#include "lookahead.h"
#include "pgtable.h"
#include "vma.h"

/**
 * struct walk - what the last access found, for the next
 * @mm: whose tables and VMAs these are; 0 = nothing yet
 * @block: address >> PMD_SHIFT that table, or else huge, is for
 * @table: first entry of the last-level table; NULL = none
 * @huge: without a table: place of an entry that was huge when it was found; NULL = none
 * @vma: VMA found last; NULL = none
 * @ahead: VMA that this access may lie in; NULL = not known
 *
 * Valid within a run of accesses: they make tables and never free one; memory calls do.
 */
struct walk {
	u64 mm;
	u64 block;
	u64 *table;
	u64 *huge;
	u64 *vma;
	u64 *ahead;
};

/* Place of the entry, huge or last-level, that the hardware finds; NULL = none. */
static u64 *leaf_offset(struct vk *k, struct walk *w, u64 mm, u64 address)
{
	u64 *pmd;

	if (w->mm != mm) {
		w->mm = mm;
		w->table = NULL;
		w->huge = NULL;
		w->vma = NULL;
	} else if (w->block == address >> PMD_SHIFT) {
		if (w->table)
			return w->table + pte_index(address);
		if (w->huge && pmd_trans_huge(*w->huge))
			return w->huge;
	}
	pmd = pmd_offset(k, mm, address, 0);
	if (!pmd || !*pmd)
		return NULL;
	w->block = address >> PMD_SHIFT;
	w->table = NULL;
	w->huge = pmd;
	if (pmd_trans_huge(*pmd))
		return pmd;
	w->table = table_entry(k, pte_pfn(*pmd), 0);
	return w->table + pte_index(address);
}

/* Mark an entry young and dirty, as the hardware does; a contiguous block has one mark for all. */
static void touch_entry(struct vk *k, u64 *p)
{
	u64 nr = *p & k->fault[FAULT_CONT_BIT] ? k->fault[FAULT_CONT_NR] : 1;
	u64 pte = (u64)(p - k->phys) & ~(nr - 1);

	modify_ptes(k, pte, PTE_YOUNG_MASK | PTE_DIRTY_MASK, PTE_YOUNG_ON | PTE_DIRTY_ON, nr);
}

/* The VMA that holds address; NULL when none does. */
static u64 *vma_lookup(struct vk *k, struct walk *w, u64 mm, u64 address)
{
	u64 slot;
	u64 *vma;

	if (w->vma && w->vma[VMA_START] <= address && address < w->vma[VMA_END])
		return w->vma;
	if (w->ahead && w->ahead[VMA_START] <= address && address < w->ahead[VMA_END])
		return w->vma = w->ahead;
	slot = find_slot(k, mm, address);
	if (slot == k->mm[mm * MM_RECORD + MM_MAP_COUNT])
		return NULL;
	vma = vma_record(k, k->vma_index[mm * MAX_MAP_COUNT + slot]);
	if (vma[VMA_START] > address)
		return NULL;
	w->vma = vma;
	return vma;
}

/* A fault that neither a table nor an entry serves yet. */
static void fault_init(struct fault *f, u64 *vma, u64 mm, u64 task, u64 address)
{
	*f = (struct fault){.vma = vma, .mm = mm, .task = task, .address = address};
	for (int i = 0; i < NR_ORDERS; i++)
		f->why[i] = NOT_LOOKED_AT;
}

/* Serve a fault by a huge entry, where the VMA may have one; 0 = Python must. */
static int create_huge_pmd(struct vk *k, const struct fault *f, u64 *pmd, int write)
{
	unsigned hint = f->vma[VMA_FLAGS] >> VM_HUGEPAGE_SHIFT & 3;

	if (!do_huge_pmd_anonymous_page(k, f, pmd, write))
		return 0;
	if (write)
		count_refused(k, f, PMD_ORDER,
			      k->fault[FAULT_WANTED + hint] | k->fault[FAULT_PMD + hint]);
	return 1;
}

/* Serve a fault by a last-level entry that is none; 0 = Python must. */
static int handle_pte_fault(struct vk *k, struct walk *w, struct fault *f, u64 *pmd, int write)
{
	if (pmd) {
		u64 table = *pmd ? pte_pfn(*pmd) : pte_alloc_one(k, f->mm);

		if (!table)
			return 0;
		if (!*pmd)
			populate(k, pmd, table);
		w->block = f->address >> PMD_SHIFT;
		w->table = table_entry(k, table, 0);
	}
	f->pte = (u64)(w->table - k->phys) + pte_index(f->address);
	if (f->vma[VMA_FILE])
		return do_fault(k, f, write);
	if (write)
		return do_anonymous_write(k, f, EV_anon_fault);
	do_anonymous_read(k, f);
	return 1;
}

/* Serve a fault on an entry that is none, or a table that is missing; 0 = Python must. */
static int handle_mm_fault(struct vk *k, struct walk *w, u64 task, u64 address, int write)
{
	u64 *vma = vma_lookup(k, w, w->mm, address);
	u64 *pmd = NULL;
	struct fault f;
	int served;

	if (!vma)
		vma = expand_stack(k, w->mm, address);
	if (!vma || !(vma[VMA_FLAGS] & (write ? VM_WRITE : VM_ACCESS_FLAGS)))
		return 0;
	if (!w->table || w->block != address >> PMD_SHIFT) {
		pmd = pmd_offset(k, w->mm, address, 1);
		if (!pmd)
			return 0;
	}
	fault_init(&f, vma, w->mm, task, address);
	if (pmd && !*pmd && !vma[VMA_FILE] && suitable_order(vma, address, PMD_ORDER) &&
	    k->fault[FAULT_PMD + (vma[VMA_FLAGS] >> VM_HUGEPAGE_SHIFT & 3)])
		served = create_huge_pmd(k, &f, pmd, write);
	else
		served = handle_pte_fault(k, w, &f, pmd, write);
	if (!served)
		return 0;
	k->vmstat[VM_pgfault]++;
	k->task[task * TASK_RECORD + TASK_MINFLT]++;
	return 1;
}

/* Serve a write to an entry that is read-only; 0 = Python must. */
static int write_protected(struct vk *k, struct walk *w, u64 task, u64 address, u64 *place)
{
	u64 *vma = vma_lookup(k, w, w->mm, address);
	int huge = !w->table;
	struct fault f;

	if (!vma || (vma[VMA_FLAGS] & (VM_WRITE | VM_SHARED)) != VM_WRITE)
		return 0;
	fault_init(&f, vma, w->mm, task, address);
	if (huge) {
		if (!do_huge_pmd_wp_page(k, &f, place))
			return 0;
		huge = pmd_trans_huge(*place); /* no more if it was split */
	}
	if (!huge) {
		f.pte = (u64)(leaf_offset(k, w, w->mm, address) - k->phys);
		if (!do_wp_page(k, &f))
			return 0;
	}
	k->vmstat[VM_pgfault]++;
	k->task[task * TASK_RECORD + TASK_MINFLT]++;
	return 1;
}

static int access_once(struct vk *k, struct walk *w, u64 task, u64 address, int write)
{
	u64 *p;

	if (address >= TASK_SIZE)
		return 0;
	p = leaf_offset(k, w, k->task[task * TASK_RECORD + TASK_MM], address);
	if (!p || !*p)
		return handle_mm_fault(k, w, task, address, write);
	if (!is(*p, PTE_PRESENT_MASK, PTE_PRESENT_ON))
		return 0;
	if (write && !is(*p, PTE_WRITE_MASK, PTE_WRITE_ON))
		return write_protected(k, w, task, address, p);
	if (write && !is(*p, PTE_DIRTY_MASK, PTE_DIRTY_ON))
		touch_entry(k, p);
	return 1;
}

/* Do a part of what look_ahead() found; return the first access that needs Python, or where it ends. */
static u64 touch_part(struct vk *k, struct walk *w, const u64 *tasks, const u64 *access,
		      const struct ahead *a, unsigned part)
{
	u64 i = a->first[part], end = a->first[part + 1];
	const u64 *table = part + 1 < a->nr ? a->table[part + 1] : NULL;
	u64 next = end, last = table ? a->first[part + 2] : end;

	w->ahead = a->vma[part];
	for (; i < end; i++, next++) {
		u64 task = tasks[access[2 * i + 1] >> 1];

		/* One at a time, or they would keep this part's own entries waiting. */
		if (next < last)
			__builtin_prefetch(table + pte_index(access[2 * next]));
		if (!access_once(k, w, task, access[2 * i], access[2 * i + 1] & 1))
			break;
	}
	return i;
}

/**
 * vk_touch_many - let programs read or write memory
 * @tasks: of each slot the record of its process; 0 = its accesses are Python's
 * @access: two words an access: an address; a slot << 1, and 1 for a write
 * @first: access to begin with
 * @end: the one behind the last
 *
 * Return: the first that needs Python, or end; those before it happened.
 */
u64 vk_touch_many(struct vk *k, const u64 *tasks, const u64 *access, u64 first, u64 end)
{
	struct walk w = {0};
	struct ahead a;
	u64 i = first;

	while (i < end && tasks[access[2 * i + 1] >> 1]) {
		look_ahead(k, tasks, access, i, end, &a);
		for (unsigned part = 0; part < a.nr; part++) {
			i = touch_part(k, &w, tasks, access, &a, part);
			if (i < a.first[part + 1])
				return i;
		}
	}
	return i;
}

/**
 * vk_touch - let a program read or write one byte
 *
 * Return: 1 = it happened; 0 = it needs Python.
 */
int vk_touch(struct vk *k, u64 task, u64 address, int write)
{
	struct walk w = {0};

	return access_once(k, &w, task, address, write);
}

/**
 * vk_fault_in - let a program read or write a byte of each page, as mm/fault.py fault_in()
 * @address: of the first page
 * @end: where the last one ends
 *
 * Return: the first page that needs Python, or the one behind the last.
 */
u64 vk_fault_in(struct vk *k, u64 task, u64 address, u64 end, int write)
{
	struct walk w = {0};

	while (address < end && access_once(k, &w, task, address, write))
		address += (u64)1 << PAGE_SHIFT;
	return address;
}
