// SPDX-License-Identifier: GPL-2.0-only
/*
 * Bugs that the checks must find, one of them when PLANTED names it: the linker calls these functions in
 * the place of the core's (--wrap). Only in what tests build.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

#define WRAP(type, name, ...)            \
	type __real_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__)

static int planted(const char *bug)
{
	const char *name = getenv("PLANTED");

	return name && !strcmp(name, bug);
}

WRAP(void, clear_ptes, struct vk *k, u64 pte, u64 nr)
{
	__real_clear_ptes(k, pte, nr + (u64)planted("one entry too many"));
}

WRAP(u64, check_ptes_none, struct vk *k, u64 pte, u64 nr)
{
	if (planted("a look behind the last entry"))
		(void)*(volatile u64 *)(k->phys + pte + nr);
	return __real_check_ptes_none(k, pte, nr);
}

WRAP(int, vk_touch, struct vk *k, u64 task, u64 address, int write)
{
	u64 faults = k->vmstat[VM_pgfault];
	int done = __real_vk_touch(k, task, address, write);

	if (planted("a fault that is not counted"))
		k->vmstat[VM_pgfault] = faults;
	if (planted("a page that is lost"))
		k->zone[ZONE_NR_FREE]--;
	return done;
}
