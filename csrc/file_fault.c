// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults on file mappings. The reference is mm/file_fault.py and mm/filemap.py.
 */
#include "contpte.h"
#include "fault.h"
#include "pgtable.h"
#include "vma.h"

/* Cache a new folio for the pages of a file from index on; 0 = memory is short. */
static u64 filemap_add_folio(struct vk *k, u64 file, u64 index, unsigned order)
{
	u64 folio = folio_alloc(k, order, PG_file | PG_lru, ZONE_CACHE);
	u32 *head = page_record(k, folio);
	u32 *cache = k->page_cache + k->file[file * FILE_RECORD + FILE_CACHE] + index;
	u64 nr = (u64)1 << order;

	if (!folio)
		return 0;
	head[PAGE_REFCOUNT] = (u32)nr;
	head[PAGE_MAPPING] = (u32)file;
	head[PAGE_INDEX] = (u32)index;
	head[PAGE_INDEX_HI] = (u32)(index >> 32);
	if (k->fault[FAULT_PHYS_BACKING])
		clear_pages(k, folio, nr);
	for (u64 i = 0; i < nr; i++)
		cache[i] = (u32)(folio + i);
	return folio;
}

static int any_cached(const u32 *cache, u64 nr)
{
	for (u64 i = 0; i < nr; i++)
		if (cache[i])
			return 1;
	return 0;
}

/*
 * Read in the block of an executable mapping around a page, as in mm/filemap.py: in folios as large as
 * are aligned and fit, until one is cached already. The caller knows that there is memory for all.
 */
static void exec_readahead(struct vk *k, const u64 *vma, u64 index)
{
	const u64 *file = k->file + vma[VMA_FILE] * FILE_RECORD;
	const u32 *cache = k->page_cache + file[FILE_CACHE];
	unsigned most = (unsigned)k->fault[FAULT_EXEC_FOLIO];
	u64 behind = vma[VMA_PGOFF] + ((vma[VMA_END] - vma[VMA_START]) >> PAGE_SHIFT);
	u64 at = index >> most << most;
	u64 end = at + ((u64)1 << most);

	if (at < vma[VMA_PGOFF])
		at = vma[VMA_PGOFF];
	if (end > behind)
		end = behind;
	if (end > file[FILE_PAGES])
		end = file[FILE_PAGES];
	while (at < end) {
		unsigned order = most;

		while (at & (((u64)1 << order) - 1) || at + ((u64)1 << order) > end)
			order--;
		if (any_cached(cache + at, (u64)1 << order) ||
		    !filemap_add_folio(k, vma[VMA_FILE], at, order))
			return;
		at += (u64)1 << order;
	}
}

/* The page of a file, read in if it was not cached; 0 = no memory, and then nothing has changed. */
static u64 filemap_fault(struct vk *k, const struct fault *f, const u64 *file, u64 index)
{
	const u32 *slot = k->page_cache + file[FILE_CACHE] + index;

	if (*slot)
		return *slot;
	if (k->fault[FAULT_EXEC_FOLIO] && f->vma[VMA_FLAGS] & VM_EXEC && !file[FILE_SHMEM]) {
		if (!can_alloc(k, (unsigned)k->fault[FAULT_EXEC_FOLIO]))
			return 0;
		exec_readahead(k, f->vma, index);
	}
	return *slot ? *slot : filemap_add_folio(k, f->vma[VMA_FILE], index, 0);
}

/* Map nr pages of one folio of the page cache. */
static void map_file_pages(struct vk *k, const struct fault *f, u64 pte, u64 page, u64 nr,
			   int write)
{
	u64 entry = page << PTE_PFN_SHIFT | f->vma[VMA_PAGE_PROT];
	u64 folio = page_record(k, page)[PAGE_HEAD];

	map_ptes(k, pte, write ? pte_mkwritten(entry) : pte_mkyoung(entry), nr);
	page_record(k, folio)[PAGE_REFCOUNT] += (u32)nr;
	k->vmstat[VM_nr_mapped] += folio_dup_anon_rmap_ptes(k, folio, page, nr);
	k->mm[f->mm * MM_RECORD + MM_FILEPAGES] += nr;
}

/* How many pages of a page's folio can be mapped together from pte on; most at the most. */
static u64 free_run(struct vk *k, u64 pte, u64 page, u64 most)
{
	u64 folio = page_record(k, page)[PAGE_HEAD];
	unsigned order = page_record(k, folio)[PAGE_ORDER];
	u64 left = folio + ((u64)1 << order) - page;

	if (!order)
		return 1;
	return check_ptes_none(k, pte, left < most ? left : most);
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

	while (at < end) {
		u64 page = cache[index + at];
		u64 run = 1;

		if (page && !k->phys[table + at]) {
			run = free_run(k, table + at, page, end - at);
			map_file_pages(k, f, table + at, page, run, 0);
			mapped += run;
		}
		at += run;
	}
	k->event[EV_file_around_pages * NR_ORDERS] += mapped - 1;
	return 1;
}

/* Give the writer to a private mapping its own copy of a page. */
static int do_cow_fault(struct vk *k, const struct fault *f, u64 page)
{
	u64 copy;

	copy = alloc_anon_folio(k, f, 0);
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
	u64 page;

	if (index >= file[FILE_PAGES])
		return 0;
	page = filemap_fault(k, f, file, index);
	if (!page)
		return 0;
	if (write && !(f->vma[VMA_FLAGS] & VM_SHARED))
		return do_cow_fault(k, f, page);
	if (write) {
		map_file_pages(k, f, f->pte, page, 1, 1);
		k->event[EV_file_shared_fault * NR_ORDERS]++;
		return 1;
	}
	if (k->fault[FAULT_AROUND] > 1) {
		if (!do_fault_around(k, f, file, k->fault[FAULT_AROUND]))
			return 0;
	} else {
		map_file_pages(k, f, f->pte, page, 1, 0);
	}
	k->event[EV_file_read_fault * NR_ORDERS]++;
	return 1;
}
