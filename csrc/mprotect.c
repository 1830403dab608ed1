// SPDX-License-Identifier: GPL-2.0-only
/* VMAs that get another protection, and the entries of their pages. The reference is mm/mprotect.py. */
#include <errno.h>

#include "contpte.h"
#include "fault.h"
#include "huge_memory.h"
#include "pgtable.h"
#include "vma.h"

enum { PYTHON_MUST = 1 }; /* nothing has changed */

/* How many of nr pages are exclusive as the first, or not, as it is. */
static u64 exclusive_batch(const struct vk *k, u64 page, u64 nr)
{
	const u32 *p = page_record(k, page);
	u32 first = p[PAGE_FLAGS] & PG_exclusive;
	u64 i = 1;

	while (i < nr && (p[i * PAGE_RECORD + PAGE_FLAGS] & PG_exclusive) == first)
		i++;
	return i;
}

/* Give nr pages that are alike their VMA's protection; young and dirty of any are those of all. */
static void change_batch(struct vk *k, const u64 *vma, u64 pte, u64 nr)
{
	u64 writable = (vma[VMA_FLAGS] & (VM_WRITE | VM_SHARED)) == VM_WRITE;
	u64 entry = k->phys[pte] & ~k->fault[FAULT_CONT_BIT];

	entry = (entry & ~(PTE_YOUNG_MASK | PTE_DIRTY_MASK)) | young_dirty(k, pte, nr);

	u64 new = pte_modify(entry, vma[VMA_PAGE_PROT]);

	if (writable && page_record(k, pte_pfn(entry))[PAGE_FLAGS] & PG_exclusive)
		new = pte_mkwrite(new);
	read_blocks(k, pte, nr);
	unfold_edges(k, pte, nr);
	/* Read, then cleared, which reads again; what is cleared is written over. */
	k->work[WORK_pte_read] += 2 * nr;
	k->work[WORK_pte_write] += nr;
	map_ptes(k, pte, new, nr);
}

/* Change one entry, which is not none; what is counted is what change_batch() counts for it. */
static void change_pte(struct vk *k, const u64 *vma, u64 pte, u32 exclusive)
{
	u64 entry = k->phys[pte];
	u64 bit = entry & k->fault[FAULT_CONT_BIT];
	u64 new = pte_modify(entry & ~bit, vma[VMA_PAGE_PROT]);

	if (exclusive && (vma[VMA_FLAGS] & (VM_WRITE | VM_SHARED)) == VM_WRITE)
		new = pte_mkwrite(new);
	if (bit) {
		read_blocks(k, pte, 1);
		unfold(k, pte);
	}
	k->work[WORK_pte_read] += 2;
	k->work[WORK_pte_write] += 2;
	k->phys[pte] = new;
	if (may_fold(k, pte))
		try_fold(k, pte, new);
}

/*
 * Give the VMA's protection to pages that change one by one; how many there are in a row. Where entries
 * have no contiguous bit, and before MPROTECT_BATCH, those of large folios do, too.
 */
static u64 change_single_ptes(struct vk *k, const u64 *vma, u64 pte, u64 max)
{
	u64 writable = (vma[VMA_FLAGS] & (VM_WRITE | VM_SHARED)) == VM_WRITE;
	int small_only = CONFIG_MPROTECT_BATCH || k->fault[FAULT_CONT_BIT];
	u64 *event = k->event + EV_mprotect_anon * NR_ORDERS;
	u64 *entry = k->phys + pte;
	u64 nr;

	for (nr = 0; nr < max && entry[nr]; nr++) {
		const u32 *p = page_record(k, pte_pfn(entry[nr]));
		const u32 *head = page_record(k, p[PAGE_HEAD]);
		u64 new = pte_modify(entry[nr], vma[VMA_PAGE_PROT]);

		if (small_only && head[PAGE_ORDER])
			break;
		if (writable && p[PAGE_FLAGS] & PG_exclusive)
			new = pte_mkwrite(new);
		entry[nr] = new;
		event[head[PAGE_ORDER]] += head[PAGE_FLAGS] & PG_anon ? 1 : 0;
	}
	k->work[WORK_pte_read] += 2 * nr;
	k->work[WORK_pte_write] += 2 * nr;
	return nr;
}

static void change_pte_range(struct vk *k, const u64 *vma, u64 pte, u64 nr)
{
	u64 ignore = PTE_YOUNG_MASK | PTE_DIRTY_MASK | k->fault[FAULT_CONT_BIT];
	u64 end = pte + nr;

	for (;;) {
		pte += change_single_ptes(k, vma, pte, end - pte);
		if (pte < end && !k->phys[pte])
			pte += check_ptes_none(k, pte, end - pte);
		if (pte == end)
			return;

		u64 page = pte_pfn(k->phys[pte]);
		const u32 *p = page_record(k, page);
		u64 folio = p[PAGE_HEAD];
		const u32 *head = page_record(k, folio);
		u32 order = head[PAGE_ORDER];
		u64 batch = 1;

		if (CONFIG_MPROTECT_BATCH && order) {
			u64 most = folio + ((u64)1 << order) - page;

			if (most > end - pte)
				most = end - pte;
			batch = folio_pte_batch(k, pte, ignore, most);
			batch = exclusive_batch(k, page, batch);
			change_batch(k, vma, pte, batch);
		} else {
			change_pte(k, vma, pte, p[PAGE_FLAGS] & PG_exclusive);
		}
		if (head[PAGE_FLAGS] & PG_anon)
			k->event[EV_mprotect_anon * NR_ORDERS + order] += batch;
		pte += batch;
	}
}

/* Give the entries of a VMA the protection that it has now; no VMA ends inside a huge entry. */
static void change_protection(struct vk *k, const u64 *v)
{
	u64 address = v[VMA_START], end = v[VMA_END];
	u64 *place;

	while ((place = next_pmd(k, v[VMA_MM], &address, end))) {
		u64 stop = pmd_addr_end(address, end);

		if (pmd_trans_huge(*place))
			change_huge_pmd(k, v, place);
		else
			change_pte_range(k, v, pte_in_table(*place, address),
					 (stop - address) >> PAGE_SHIFT);
		address = stop;
	}
}

/**
 * vk_vma_set_flags - give [start, end) of a VMA that holds it other VM_* flags
 *
 * The VMA is split at the edges and merged with its neighbours again; pages follow when the access
 * rights changed.
 *
 * Return: 0 or -ENOMEM.
 */
int vk_vma_set_flags(struct vk *k, u64 number, u64 start, u64 end, u64 flags)
{
	u64 *vma = vma_record(k, number);
	u64 old = vma[VMA_FLAGS];

	if (flags == old)
		return 0;
	if (vma[VMA_START] < start)
		vma = split_vma(k, vma, start);
	if (!vma || (vma[VMA_END] > end && !split_vma(k, vma, end)))
		return -ENOMEM;
	vma[VMA_FLAGS] = flags;
	if ((flags ^ old) & VM_ACCESS_FLAGS) {
		u64 written = k->work[WORK_pte_write];

		vma[VMA_PAGE_PROT] = vm_get_page_prot(k, flags);
		change_protection(k, vma);
		k->work[WORK_tlbi] += k->work[WORK_pte_write] != written;
	}
	vma_merge(k, vma, 0);
	return 0;
}

/* The flags of a VMA that gets other PROT_* bits. */
static u64 protected_flags(const struct vk *k, u64 flags, u64 prot)
{
	flags = (flags & ~(u64)VM_ACCESS_FLAGS) | (prot & VM_ACCESS_FLAGS);
	if (prot & VM_WRITE && !(flags & (VM_SHARED | VM_NORESERVE)))
		flags |= VM_ACCOUNT;
	return prot & PROT_MTE ? flags | k->fault[FAULT_TAGS] : flags;
}

/**
 * vk_do_mprotect - give [start, end), whole pages of user space, the PROT_* bits prot
 *
 * What lies below a hole is changed before the hole is found. Locked memory is Python's, which faults in
 * what may be written now.
 *
 * Return: 0, -ENOMEM, -EINVAL for tags on a file's memory, or PYTHON_MUST.
 */
int vk_do_mprotect(struct vk *k, u64 mm, u64 start, u64 end, u64 prot)
{
	const u32 *index = k->vma_index + mm * MAX_MAP_COUNT;
	const u64 *count = k->mm + mm * MM_RECORD + MM_MAP_COUNT;

	for (u64 slot = find_slot(k, mm, start); slot < *count; slot++) {
		const u64 *vma = vma_record(k, index[slot]);

		if (vma[VMA_START] >= end)
			break;
		if (vma[VMA_FLAGS] & VM_LOCKED)
			return PYTHON_MUST;
	}
	while (start < end) {
		u64 slot = find_slot(k, mm, start);
		u64 *vma = vma_record(k, slot < *count ? index[slot] : 0);
		u64 stop = vma[VMA_END] < end ? vma[VMA_END] : end;
		u64 file = vma[VMA_FILE];

		if (slot == *count || vma[VMA_START] > start)
			return -ENOMEM;
		if (prot & PROT_MTE && k->fault[FAULT_TAGS] && file &&
		    !k->file[file * FILE_RECORD + FILE_SHMEM])
			return -EINVAL;
		if (vk_vma_set_flags(k, vma_number(k, vma), start, stop,
				     protected_flags(k, vma[VMA_FLAGS], prot)))
			return -ENOMEM;
		start = stop;
	}
	return 0;
}
