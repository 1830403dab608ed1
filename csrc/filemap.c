// SPDX-License-Identifier: GPL-2.0-only
/* The page cache, as far as VMAs that come and go change it. The reference is mm/filemap.py. */
#include "vma.h"

/** shmem_file_setup - unnamed file behind a new shared anonymous mapping; 0 when a table is full */
u64 shmem_file_setup(struct vk *k, u64 pages)
{
	u64 *file, new;

	if (k->zone[ZONE_CACHE_END] + 1 + pages > k->fault[FAULT_NR_CACHE])
		return 0;
	new = slab_alloc64(k, SLAB_FILE, k->file, FILE_RECORD, k->fault[FAULT_NR_FILES]);
	if (!new)
		return 0;
	file = k->file + new * FILE_RECORD;
	file[FILE_CACHE] = k->zone[ZONE_CACHE_END] + 1;
	file[FILE_CAPACITY] = pages;
	file[FILE_PAGES] = pages;
	file[FILE_SHMEM] = 1;
	k->zone[ZONE_CACHE_END] = file[FILE_CACHE] + pages;
	return new;
}

/* Drop one reference to the folio of a page-cache page; frees it with the last. */
static void put_page(struct vk *k, u64 page)
{
	u64 folio = page_record(k, page)[PAGE_HEAD];

	if (!--page_record(k, folio)[PAGE_REFCOUNT])
		folio_free(k, folio, ZONE_CACHE);
}

/** put_file - note that a VMA of the file is gone; shared anonymous memory goes with its last one */
void put_file(struct vk *k, u64 file)
{
	u64 *f = k->file + file * FILE_RECORD;
	u32 *cache = k->page_cache + f[FILE_CACHE];

	if (--f[FILE_VMAS] || !f[FILE_SHMEM])
		return;
	for (u64 i = 0; i < f[FILE_PAGES]; i++) {
		u64 page = cache[i];

		if (!page)
			continue;
		cache[i] = 0;
		put_page(k, page);
	}
	if (f[FILE_CACHE] + f[FILE_CAPACITY] == k->zone[ZONE_CACHE_END])
		k->zone[ZONE_CACHE_END] = f[FILE_CACHE] - 1;
	slab_free64(k, SLAB_FILE, k->file, FILE_RECORD, file);
}
