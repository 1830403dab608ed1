/* SPDX-License-Identifier: GPL-2.0-only */
/* Fetching what accesses that follow will need. */
#ifndef VK_LOOKAHEAD_H
#define VK_LOOKAHEAD_H

#include "core.h"

enum {
	LOOK_AHEAD = 16, /* parts at a time */
	LOOK_PART = 32,	 /* accesses of a part at most */
};

/**
 * struct ahead - accesses that follow, in parts whose accesses one process makes to one last-level table
 * @nr: how many parts, 1 to LOOK_AHEAD
 * @first: of each part its first access; behind the last part's, where that ends
 * @table: of each part the first entry of its table; NULL where it has none, or that is not known
 * @vma: of each part the VMA that its first access may lie in; NULL = not known
 */
struct ahead {
	unsigned nr;
	u64 first[LOOK_AHEAD + 1];
	u64 *table[LOOK_AHEAD];
	u64 *vma[LOOK_AHEAD];
};

void look_ahead(struct vk *k, const u64 *tasks, const u64 *access, u64 first, u64 end,
		struct ahead *a);

#endif
