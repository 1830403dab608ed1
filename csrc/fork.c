// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sharing a parent's pages with a child. The reference is mm/fork.py.
 *
 * Tables that there is no memory for are left to Python, which goes on from that PMD.
 */
#include <errno.h>

#include "contpte.h"
#include "fault.h"
#include "huge_memory.h"
#include "pgtable.h"
#include "vma.h"

static int any_writable(const struct vk *k, u64 pte, u64 nr)
{
	for (u64 i = pte; i < pte + nr; i++)
		if (is(k->phys[i], PTE_WRITE_MASK, PTE_WRITE_ON))
			return 1;
	return 0;
}

static void wrprotect_ptes(struct vk *k, u64 pte, u64 nr)
{
	unfold_edges(k, pte, nr);
	modify_ptes(k, pte, PTE_WRITE_MASK, PTE_WRITE_OFF, nr);
	k->work[WORK_pte_read] += nr;
	k->work[WORK_pte_write] += nr;
}

static void dup_anon_rmap(struct vk *k, u64 folio, u64 page, u64 nr, u64 mm)
{
	const u32 *head = page_record(k, folio);
	u64 mapped = folio_dup_anon_rmap_ptes(k, folio, page, nr);

	k->work[WORK_rmap_add] += CONFIG_ANON_POLICY_MTHP ? 1 : nr;
	if (!head[PAGE_ORDER] || !head[FOLIO_ENTIRE_MAPCOUNT])
		k->vmstat[VM_nr_anon_pages] += mapped;
	if (CONFIG_MM_ID && head[PAGE_ORDER])
		folio_add_mm(k, folio, mm, nr);
}

/* Share the pages of one folio that the entries from source on map; how many there are. */
static u64 copy_present_ptes(struct vk *k, u64 mm, u64 source, u64 to, u64 max)
{
	u64 bit = k->fault[FAULT_CONT_BIT];
	u64 entry = k->phys[source] & ~bit;
	u64 page = pte_pfn(entry);
	u64 folio = page_record(k, page)[PAGE_HEAD];
	u32 *head = page_record(k, folio);
	u64 left = folio + ((u64)1 << head[PAGE_ORDER]) - page;
	u64 nr = 1;

	if (max > left)
		max = left;
	if (max > 1)
		nr = folio_pte_batch(k, source, PTE_WRITE_MASK | PTE_YOUNG_MASK | bit, max);
	k->work[WORK_pte_read] += nr;
	read_blocks(k, source, nr);
	head[PAGE_REFCOUNT] += (u32)nr;
	if (!(head[PAGE_FLAGS] & PG_anon)) {
		k->vmstat[VM_nr_mapped] += folio_dup_anon_rmap_ptes(k, folio, page, nr);
		k->mm[mm * MM_RECORD + MM_FILEPAGES] += nr;
		map_ptes(k, to, pte_mkold(entry), nr);
		return nr;
	}
	dup_anon_rmap(k, folio, page, nr, mm);
	k->mm[mm * MM_RECORD + MM_ANONPAGES] += nr;
	if (any_writable(k, source, nr))
		wrprotect_ptes(k, source, nr);
	map_ptes(k, to, pte_mkold(pte_wrprotect(entry)), nr);
	k->event[EV_fork_anon * NR_ORDERS + head[PAGE_ORDER]] += nr;
	return nr;
}

/*
 * Share anonymous folios of one page each; how many there are in a row. No contiguous block is made of
 * such, and nothing has to be looked up that a run could have in common.
 */
static u64 copy_small_folios(struct vk *k, u64 mm, u64 source, u64 to, u64 max)
{
	u64 *from = k->phys + source;
	u64 writable = 0, nr;

	for (nr = 0; nr < max; nr++) {
		u64 entry = from[nr];
		u32 *p = page_record(k, pte_pfn(entry));

		if (!small_anon_folio(p))
			break;
		p[PAGE_REFCOUNT]++;
		p[PAGE_MAPCOUNT]++;
		p[PAGE_FLAGS] &= ~(u32)PG_exclusive;
		if (is(entry, PTE_WRITE_MASK, PTE_WRITE_ON)) {
			from[nr] = pte_wrprotect(entry);
			writable++;
		}
		k->phys[to + nr] = pte_mkold(pte_wrprotect(entry));
	}
	k->work[WORK_pte_read] += nr + writable;
	k->work[WORK_pte_write] += nr + writable;
	k->work[WORK_rmap_add] += nr;
	k->mm[mm * MM_RECORD + MM_ANONPAGES] += nr;
	k->event[EV_fork_anon * NR_ORDERS] += nr;
	return nr;
}

static void copy_pte_range(struct vk *k, u64 mm, u64 source, u64 to, u64 nr)
{
	u64 i = 0;

	for (;;) {
		u64 entry;

		i += copy_small_folios(k, mm, source + i, to + i, nr - i);
		if (i < nr && !k->phys[source + i])
			i += check_ptes_none(k, source + i, nr - i);
		if (i == nr)
			return;
		entry = k->phys[source + i] & ~k->fault[FAULT_CONT_BIT];
		if (is(entry, PTE_SPECIAL_MASK, PTE_SPECIAL_ON)) {
			k->work[WORK_pte_read]++;
			map_ptes(k, to + i, pte_mkold(entry), 1);
			i++;
		} else {
			i += copy_present_ptes(k, mm, source + i, to + i, nr - i);
		}
	}
}

/* Place of the child's entry of an address, in a table made if it is missing; 0 = no memory. */
static u64 pte_alloc_map(struct vk *k, u64 mm, u64 address)
{
	u64 *pmd = pmd_offset(k, mm, address, 1);

	if (!pmd)
		return 0;
	if (!*pmd) {
		u64 table = pte_alloc_one(k, mm);

		if (!table)
			return 0;
		populate(k, pmd, table);
	}
	return pte_in_table(*pmd, address);
}

/**
 * vk_copy_page_range - map in a child's VMA what its parent's maps
 * @new: the child's VMA
 * @vma: the parent's
 * @address: where to begin
 *
 * Return: where the first entry is that there was no memory for a table for; the VMA's end when all is
 * done.
 */
u64 vk_copy_page_range(struct vk *k, u64 new, u64 vma, u64 address)
{
	u64 mm = k->vma[new * VMA_RECORD + VMA_MM];
	u64 parent = k->vma[vma * VMA_RECORD + VMA_MM];
	u64 end = k->vma[vma * VMA_RECORD + VMA_END];
	u64 *place;

	while ((place = next_pmd(k, parent, &address, end))) {
		u64 stop = pmd_addr_end(address, end);
		u64 source, to, nr, skip;

		if (pmd_trans_huge(*place)) {
			if (!copy_huge_pmd(k, mm, place, address))
				return address;
			address = stop;
			continue;
		}
		source = pte_in_table(*place, address);
		nr = (stop - address) >> PAGE_SHIFT;
		skip = check_ptes_none(k, source, nr);
		if (skip < nr) {
			to = pte_alloc_map(k, mm, address);
			if (!to)
				return address;
			copy_pte_range(k, mm, source + skip, to + skip, nr - skip);
		}
		address = stop;
	}
	return end;
}

/**
 * vk_dup_mmap - copy VMAs into a child's mm, and share their pages with it
 * @slot: of the first, counted from the parent's first
 *
 * VM_DONTCOPY VMAs are left out, VM_WIPEONFORK ones come empty.
 *
 * Return: -ENOMEM; the number of VMAs when all is done; the slot of a VMA whose copy is the child's last
 * one, and whose pages Python must go on with from RUN_ADDRESS.
 */
int64_t vk_dup_mmap(struct vk *k, u64 mm, u64 old, u64 slot)
{
	u64 nr = k->mm[old * MM_RECORD + MM_MAP_COUNT];

	for (; slot < nr; slot++) {
		u64 vma = k->vma_index[old * MAX_MAP_COUNT + slot];
		const u64 *v = vma_record(k, vma);
		u64 *new;

		if (v[VMA_FLAGS] & VM_DONTCOPY)
			continue;
		new = vm_area_alloc(k, mm, v[VMA_START], v[VMA_END], v[VMA_FLAGS] & ~(u64)VM_LOCKED,
				    v[VMA_PGOFF], v[VMA_FILE]);
		if (!new)
			return -ENOMEM;
		vma_link(k, new);
		if (v[VMA_ANON_VMA] && !(v[VMA_FLAGS] & VM_WIPEONFORK)) {
			if (!anon_vma_fork(k, new, v))
				return -ENOMEM;
			k->run[RUN_ADDRESS] =
				vk_copy_page_range(k, vma_number(k, new), vma, v[VMA_START]);
			if (k->run[RUN_ADDRESS] < v[VMA_END])
				return (int64_t)slot;
		}
		k->event[EV_fork_vma * NR_ORDERS]++;
		k->event[EV_fork_vma_anon * NR_ORDERS] += v[VMA_ANON_VMA] != 0;
	}
	return (int64_t)nr;
}
