// SPDX-License-Identifier: GPL-2.0-only
/* The entries of a VMA that got another protection. The reference is mm/mprotect.py. */
#include "contpte.h"
#include "fault.h"
#include "pgtable.h"

static u64 pte_modify(u64 pte, u64 prot)
{
	u64 keep = PTE_PFN_MASK | PTE_YOUNG_MASK | PTE_DIRTY_MASK | PTE_SPECIAL_MASK;

	return (pte & keep) | (prot & ~keep);
}

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
	u64 marks = 0;

	for (u64 i = pte + 1; i < pte + nr; i++)
		marks |= k->phys[i];
	entry |= marks & (PTE_YOUNG_ON | PTE_DIRTY_ON);

	u64 new = pte_modify(entry, vma[VMA_PAGE_PROT]);

	if (writable && page_record(k, pte_pfn(entry))[PAGE_FLAGS] & PG_exclusive)
		new = (new & ~PTE_WRITE_MASK) | PTE_WRITE_ON;
	read_blocks(k, pte, nr);
	unfold_edges(k, pte, nr);
	/* Read, then cleared, which reads again; what is cleared is written over. */
	k->work[WORK_pte_read] += 2 * nr;
	k->work[WORK_pte_write] += nr;
	map_ptes(k, pte, new, nr);
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
			new = (new & ~PTE_WRITE_MASK) | PTE_WRITE_ON;
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
		u64 folio = page_record(k, page)[PAGE_HEAD];
		const u32 *head = page_record(k, folio);
		u32 order = head[PAGE_ORDER];
		u64 batch = 1;

		if (CONFIG_MPROTECT_BATCH && order) {
			u64 most = folio + ((u64)1 << order) - page;

			if (most > end - pte)
				most = end - pte;
			batch = folio_pte_batch(k, pte, ignore, most);
			batch = exclusive_batch(k, page, batch);
		}
		change_batch(k, vma, pte, batch);
		if (head[PAGE_FLAGS] & PG_anon)
			k->event[EV_mprotect_anon * NR_ORDERS + order] += batch;
		pte += batch;
	}
}

/**
 * vk_change_protection - give the entries of a VMA the protection that the VMA has now
 * @address: where to begin
 *
 * Return: where a huge entry begins, which is the caller's; the VMA's end when all is done.
 */
u64 vk_change_protection(struct vk *k, u64 vma, u64 address)
{
	const u64 *v = k->vma + vma * VMA_RECORD;
	u64 end = v[VMA_END];
	const u64 *place;

	while ((place = next_pmd(k, v[VMA_MM], &address, end))) {
		u64 stop = pmd_addr_end(address, end);

		if (pmd_trans_huge(*place))
			return address;
		change_pte_range(k, v, pte_in_table(*place, address),
				 (stop - address) >> PAGE_SHIFT);
		address = stop;
	}
	return end;
}
