// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses, and the faults among them that need nothing unusual: the first touch of anonymous memory
 * (huge_memory.c: by a PMD entry) and of files (file_fault.c), and copy on write (cow.c). The reference is
 * mm/fault.py and mm/memory.py.
 *
 * What is not served here is left to Python, which does the whole access again. So nothing is counted
 * before it is certain that the access succeeds; only page tables and anon_vmas made on the way, and
 * pages read in, stay.
 */
#include "contpte.h"
#include "fault.h"
#include "lookahead.h"
#include "pgtable.h"
#include "vma.h"

enum { NOT_LOOKED_AT = NR_REFUSED };

/**
 * struct walk - what the last access found, for the next
 * @mm: whose tables and VMAs these are; 0 = nothing yet
 * @block: address >> PMD_SHIFT that table is for; only with a table
 * @table: first entry of the last-level table; NULL = none
 * @vma: VMA found last; NULL = none
 * @ahead: VMA that this access may lie in; NULL = not known
 * @jumps: accesses so far that were in another table than the one before
 *
 * Valid as long as C alone works: it makes tables and never frees one.
 */
struct walk {
	u64 mm;
	u64 block;
	u64 *table;
	u64 *vma;
	u64 *ahead;
	u64 jumps;
};

static inline unsigned highest_order(u64 orders)
{
	return 63 - (unsigned)__builtin_clzll(orders);
}

/* Place of the entry, huge or last-level, that the hardware finds; NULL = none. */
static u64 *leaf_offset(struct vk *k, struct walk *w, u64 mm, u64 address)
{
	u64 *pmd;

	if (w->mm != mm) {
		w->mm = mm;
		w->table = NULL;
		w->vma = NULL;
	} else if (w->table && w->block == address >> PMD_SHIFT) {
		return w->table + pte_index(address);
	}
	w->jumps++;
	pmd = pmd_offset(k, mm, address, 0);
	if (!pmd || !*pmd)
		return NULL;
	if (is(*pmd, PTE_LEAF_MASK, PTE_LEAF_ON))
		return pmd;
	w->block = address >> PMD_SHIFT;
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

static int suitable_order(const u64 *vma, u64 address, unsigned order)
{
	u64 size = (u64)1 << (PAGE_SHIFT + order);
	u64 low = address & ~(size - 1);

	return vma[VMA_START] <= low && low + size <= vma[VMA_END];
}

/* Those of a mask of orders whose block lies in the VMA and is free, as in mm/large_anon_folio.py. */
static u64 calc_anon_folio_orders_alloc(struct vk *k, struct fault *f, u64 orders)
{
	u64 index = pte_index(f->address);
	u64 first_set = 0;
	int met = 0;

	while (orders > 1) {
		unsigned order = highest_order(orders);
		u64 nr = (u64)1 << order;

		if (!suitable_order(f->vma, f->address, order)) {
			f->why[order] = REFUSED_EDGE;
		} else {
			u64 first = index & ~(nr - 1);

			if (met && first + nr <= first_set)
				break;
			if (!met || first > first_set) {
				u64 free = check_ptes_none(k, f->pte - index + first, nr);

				if (free == nr)
					break;
				first_set = first + free;
				met = 1;
			}
			f->why[order] = REFUSED_POPULATED;
		}
		orders -= nr;
	}
	return orders;
}

static unsigned refused_reason(const struct fault *f, unsigned order, u64 own)
{
	if (f->why[order] != NOT_LOOKED_AT)
		return f->why[order];
	if (!(own >> order & 1) || order < PMD_ORDER)
		return REFUSED_NOT_ENABLED;
	return suitable_order(f->vma, f->address, order) ? REFUSED_POPULATED : REFUSED_EDGE;
}

/* Count why the fault got nothing larger, as in mm/refused.py. */
static void count_refused(struct vk *k, const struct fault *f, unsigned got, u64 own)
{
	u64 anyone = k->fault[FAULT_LARGE] ? k->fault[FAULT_ANYONE] : 0;
	u64 above = anyone >> (got + 1) << (got + 1);
	unsigned largest;

	if (!anyone)
		return;
	f->vma[VMA_FAULTS]++;
	k->refused[REFUSED_FAULTS]++;
	largest = highest_order(own ? own : anyone);
	while (above) {
		unsigned order = highest_order(above);
		unsigned reason = refused_reason(f, order, own);

		k->refused[reason * NR_ORDERS + order]++;
		if (order == largest) {
			f->vma[VMA_REFUSED + reason]++;
			k->refused[reason * NR_ORDERS]++;
		}
		above -= (u64)1 << order;
	}
}

/** map_new_folio - map all of a new anonymous folio around a write fault, exclusively */
void map_new_folio(struct vk *k, const struct fault *f, u64 folio, unsigned order)
{
	u32 *head = page_record(k, folio);
	u64 nr = (u64)1 << order;
	u64 index = f->address >> PAGE_SHIFT & (nr - 1);
	u64 linear = linear_page_index(f) - index;
	u64 entry = folio << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];

	entry = pte_mkwritten(entry);
	head[PAGE_REFCOUNT] = (u32)nr;
	head[PAGE_FLAGS] |= PG_swapbacked;
	head[PAGE_MAPPING] = (u32)f->vma[VMA_ANON_VMA];
	head[PAGE_INDEX] = (u32)linear;
	head[PAGE_INDEX_HI] = (u32)(linear >> 32);
	folio_add_new_anon_rmap(k, folio, folio, nr);
	if (CONFIG_MM_ID && order)
		folio_add_mm(k, folio, f->mm, nr);
	k->work[WORK_rmap_add] += k->fault[FAULT_RMAP_ADD_RANGE] ? 1 : nr;
	k->vmstat[VM_nr_anon_pages] += nr;
	k->mm[f->mm * MM_RECORD + MM_ANONPAGES] += nr;
	k->task[f->task * TASK_RECORD + TASK_FOLIOS + order]++;
	map_ptes(k, f->pte - index, entry, nr);
}

/** tag_pages - give zeroed pages of a mapping with memory tags their own, cleared; work counts how */
void tag_pages(struct vk *k, const u64 *vma, u64 folio, unsigned order, int work)
{
	u32 *p = page_record(k, folio);
	u64 nr = (u64)1 << order;

	if (!(vma[VMA_FLAGS] & k->fault[FAULT_TAGS]))
		return;
	for (u64 i = 0; i < nr; i++)
		p[i * PAGE_RECORD + PAGE_FLAGS] |= PG_mte_tagged;
	k->work[work] += nr;
}

static int do_anonymous_write(struct vk *k, struct fault *f)
{
	unsigned hint = f->vma[VMA_FLAGS] >> VM_HUGEPAGE_SHIFT & 3;
	u64 wanted = k->fault[FAULT_WANTED + hint];
	unsigned order = highest_order(calc_anon_folio_orders_alloc(k, f, wanted) | 1);
	u64 nr = (u64)1 << order;
	u64 index = f->address >> PAGE_SHIFT & (nr - 1);
	u64 folio = vma_prepare_anon(k, f->vma) ? folio_alloc(k, order, PG_anon | PG_lru, ZONE_ANON)
						: 0;

	if (!folio)
		return 0;
	/* The allocator clears them with the page, which only the v1 series does for large folios. */
	tag_pages(k, f->vma, folio, order,
		  order && !CONFIG_ANON_POLICY_V1 ? WORK_tag_sync : WORK_tag_clear);
	if (k->fault[FAULT_PHYS_BACKING]) {
		if (k->fault[FAULT_CLEAR_LAST])
			clear_huge_page(k, folio, nr, index);
		else
			clear_pages(k, folio, nr);
	}
	count_refused(k, f, order, wanted | k->fault[FAULT_PMD + hint]);

	map_new_folio(k, f, folio, order);
	k->mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS + order]++;
	k->event[EV_anon_fault * NR_ORDERS + order]++;
	return 1;
}

static int do_anonymous_read(struct vk *k, const struct fault *f)
{
	u64 entry = k->fault[FAULT_ZERO_PFN] << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];

	entry = (entry & ~PTE_SPECIAL_MASK) | PTE_SPECIAL_ON;
	map_ptes(k, f->pte, pte_mkyoung(entry), 1);
	k->event[EV_zero_page_fault * NR_ORDERS]++;
	return 1;
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
		if (!*pmd) {
			*pmd = table << PTE_PFN_SHIFT | PTE_TABLE;
			/* It is that already, but a first read would cost the host a fault more. */
			*table_entry(k, table, 0) = 0;
		}
		w->block = f->address >> PMD_SHIFT;
		w->table = table_entry(k, table, 0);
	}
	f->pte = (u64)(w->table - k->phys) + pte_index(f->address);
	if (f->vma[VMA_FILE])
		return do_fault(k, f, write);
	return write ? do_anonymous_write(k, f) : do_anonymous_read(k, f);
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
static int write_protected(struct vk *k, struct walk *w, u64 task, u64 address, const u64 *place)
{
	u64 *vma = vma_lookup(k, w, w->mm, address);
	struct fault f = {.vma = vma, .mm = w->mm, .task = task, .address = address};

	if (!vma || (vma[VMA_FLAGS] & (VM_WRITE | VM_SHARED)) != VM_WRITE)
		return 0;
	if (!w->table || place != w->table + pte_index(address))
		return 0; /* a huge entry */
	f.pte = (u64)(place - k->phys);
	if (!do_wp_page(k, &f))
		return 0;
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
	u64 *ahead[LOOK_AHEAD];
	struct walk w = {0};
	u64 i = first;

	while (i < end) {
		u64 nr = end - i < LOOK_AHEAD ? end - i : LOOK_AHEAD;
		int far = nr == LOOK_AHEAD && w.jumps > LOOK_AHEAD / 2;

		if (far)
			look_ahead(k, tasks, access + 2 * i, ahead);
		w.jumps = 0;
		for (u64 j = 0; j < nr; i++, j++) {
			u64 task = tasks[access[2 * i + 1] >> 1];

			w.ahead = far ? ahead[j] : NULL;
			if (!task ||
			    !access_once(k, &w, task, access[2 * i], access[2 * i + 1] & 1))
				return i;
		}
	}
	return end;
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
