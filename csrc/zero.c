// SPDX-License-Identifier: GPL-2.0-only
/* Zeroing and copying physical memory. The Python twins are in mm/ranges.py. */
#include <string.h>

#include "core.h"

enum { PAGE_BYTES = 1 << PAGE_SHIFT };

static void clear_page(struct vk *k, u64 pfn)
{
	memset(k->phys + (pfn << PAGE_WORDS_SHIFT), 0, PAGE_BYTES);
}

/**
 * clear_huge_page - zero nr pages, the faulting one last so that its lines are in the cache
 * @fault: index of the faulting page, below nr
 *
 * The pages far from it come first, then left and right in turn towards it.
 */
void clear_huge_page(struct vk *k, u64 pfn, u64 nr, u64 fault)
{
	u64 base, pairs;

	if (2 * fault <= nr) {
		for (u64 i = nr; i > 2 * fault; i--)
			clear_page(k, pfn + i - 1);
		base = 0;
		pairs = fault;
	} else {
		base = 2 * fault - nr;
		pairs = nr - fault;
		for (u64 i = 0; i < base; i++)
			clear_page(k, pfn + i);
	}
	for (u64 i = 0; i < pairs; i++) {
		clear_page(k, pfn + base + i);
		clear_page(k, pfn + base + 2 * pairs - 1 - i);
	}
}

/** copy_pages - copy nr pages; the two runs do not overlap */
void copy_pages(struct vk *k, u64 to, u64 from, u64 nr)
{
	memcpy(k->phys + (to << PAGE_WORDS_SHIFT), k->phys + (from << PAGE_WORDS_SHIFT),
	       nr << PAGE_SHIFT);
}
