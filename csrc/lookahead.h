/* SPDX-License-Identifier: GPL-2.0-only */
/* Fetching what accesses that follow will need. */
#ifndef VK_LOOKAHEAD_H
#define VK_LOOKAHEAD_H

#include "core.h"

enum { LOOK_AHEAD = 16 }; /* accesses at a time */

void look_ahead(struct vk *k, const u64 *tasks, const u64 *access, u64 **vma);

#endif
