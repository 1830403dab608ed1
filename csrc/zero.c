// SPDX-License-Identifier: GPL-2.0-only
/* Zeroing and copying physical memory. The Python twins are in mm/ranges.py. */
#include <string.h>

#include "core.h"

/** clear_pages - zero nr pages, the first one first */
void clear_pages(struct vk *k, u64 pfn, u64 nr)
{
	memset(k->phys + (pfn << PAGE_WORDS_SHIFT), 0, nr << PAGE_SHIFT);
}

/**
 * clear_huge_page - zero nr pages, the faulting one last so that its lines are in the cache
 * @fault: index of the faulting page, below nr
 *
 * What lies behind the faulting page comes first, then upwards to it, in long runs. The kernel of the
 * series, and the Python twin, go page by page from both sides in turn (v1 patch 1), which for a fault in
 * the middle of a folio runs at two thirds of this speed; the result is the same.
 */
void clear_huge_page(struct vk *k, u64 pfn, u64 nr, u64 fault)
{
	if (fault + 1 < nr)
		clear_pages(k, pfn + fault + 1, nr - fault - 1);
	clear_pages(k, pfn, fault + 1);
}

/** copy_pages - copy nr pages; the two runs do not overlap */
void copy_pages(struct vk *k, u64 to, u64 from, u64 nr)
{
	memcpy(k->phys + (to << PAGE_WORDS_SHIFT), k->phys + (from << PAGE_WORDS_SHIFT),
	       nr << PAGE_SHIFT);
}
