// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on file mappings whose pages are cached one by one. The reference is mm/file_fault.py and
 * mm/filemap.py; large folios of the page cache are left to Python.
 */
#include "fault.h"

enum { FILE_RECORD = 8 };

/* Cache a new page of a file; 0 = memory is short. */
static u32 filemap_add_page(struct vk *k, u64 file, u64 index, u32 *slot)
{
	u64 page = folio_alloc(k, 0, PG_file | PG_lru, ZONE_CACHE);
	u32 *p = page_record(k, page);

	if (!page)
		return 0;
	p[PAGE_MAPPING] = (u32)file;
	p[PAGE_INDEX] = (u32)index;
	p[PAGE_INDEX_HI] = (u32)(index >> 32);
	if (k->fault[FAULT_PHYS_BACKING])
		clear_pages(k, page, 1);
	*slot = (u32)page;
	return *slot;
}

/* The page of a file, read in if it was not cached; 0 = large, or read ahead in large folios, or no memory. */
static u32 filemap_fault(struct vk *k, const struct fault *f, const u64 *file, u64 index)
{
	u32 *slot = k->page_cache + file[FILE_CACHE] + index;
	u32 page = *slot;

	if (!page) {
		if (k->fault[FAULT_EXEC_FOLIO] && f->vma[VMA_FLAGS] & VM_EXEC && !file[FILE_SHMEM])
			return 0;
		return filemap_add_page(k, f->vma[VMA_FILE], index, slot);
	}
	return page_record(k, page_record(k, page)[PAGE_HEAD])[PAGE_ORDER] ? 0 : page;
}

static void map_file_page(struct vk *k, const struct fault *f, u64 pte, u64 page, int write)
{
	u64 entry = page << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];

	map_ptes(k, pte, write ? pte_mkwritten(entry) : pte_mkyoung(entry), 1);
	page_record(k, page)[PAGE_REFCOUNT]++;
	k->vmstat[VM_nr_mapped] += folio_dup_anon_rmap_ptes(k, page, page, 1);
	k->mm[f->mm * MM_RECORD + MM_FILEPAGES]++;
}

/*
 * Map the pages of the aligned window around a read fault, inside the VMA and the table. All are looked
 * up, and read in, before the first is mapped, so that Python can begin anew.
 */
static int do_fault_around(struct vk *k, const struct fault *f, const u64 *file, u64 nr)
{
	u64 offset = pte_index(f->address);
	u64 before = (f->address - f->vma[VMA_START]) >> PAGE_SHIFT;
	u64 end = offset +
		  ((f->vma[VMA_END] - f->address + ((u64)1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT);
	u64 at = offset & ~(nr - 1);
	u64 table = f->pte - offset;
	u64 index = linear_page_index(f) - offset;
	const u32 *cache = k->page_cache + file[FILE_CACHE];

	if (before < offset && at < offset - before)
		at = offset - before;
	if (end > at + nr)
		end = at + nr;
	if (end > (u64)1 << PTE_BITS)
		end = (u64)1 << PTE_BITS;
	if (index + end > file[FILE_PAGES])
		end = file[FILE_PAGES] - index;
	for (u64 i = at; i < end; i++) {
		if (k->phys[table + i] || (file[FILE_SHMEM] && !cache[index + i]))
			continue;
		if (!filemap_fault(k, f, file, index + i))
			return 0;
	}

	u64 mapped = 0;

	for (; at < end; at++) {
		if (k->phys[table + at] || !cache[index + at])
			continue;
		map_file_page(k, f, table + at, cache[index + at], 0);
		mapped++;
	}
	k->event[EV_file_around_pages * NR_ORDERS] += mapped - 1;
	return 1;
}

/* Give the writer to a private mapping its own copy of a page. */
static int do_cow_fault(struct vk *k, const struct fault *f, u64 page)
{
	u64 copy = folio_alloc(k, 0, PG_anon | PG_lru, ZONE_ANON);

	if (!copy)
		return 0;
	if (k->fault[FAULT_PHYS_BACKING])
		copy_pages(k, copy, page, 1);
	map_new_folio(k, f, copy, 0);
	k->event[EV_file_write_fault * NR_ORDERS]++;
	return 1;
}

/**
 * do_fault - serve a fault on a file mapping that maps nothing yet: read, private or shared write
 *
 * Return: 0 = Python must.
 */
int do_fault(struct vk *k, const struct fault *f, int write)
{
	const u64 *file = k->file + f->vma[VMA_FILE] * FILE_RECORD;
	u64 index = linear_page_index(f);
	u32 page;

	if (index >= file[FILE_PAGES])
		return 0;
	page = filemap_fault(k, f, file, index);
	if (!page)
		return 0;
	if (write && !(f->vma[VMA_FLAGS] & VM_SHARED))
		return do_cow_fault(k, f, page);
	if (write) {
		map_file_page(k, f, f->pte, page, 1);
		k->event[EV_file_shared_fault * NR_ORDERS]++;
		return 1;
	}
	if (k->fault[FAULT_AROUND] > 1) {
		if (!do_fault_around(k, f, file, k->fault[FAULT_AROUND]))
			return 0;
	} else {
		map_file_page(k, f, f->pte, page, 0);
	}
	k->event[EV_file_read_fault * NR_ORDERS]++;
	return 1;
}
