// SPDX-License-Identifier: GPL-2.0-only
/*
 * Accesses recorded under another layout of addresses than the machine has. The reference is
 * AddressSpace.address() in tools/replay/relayout.py.
 */
#include "core.h"

/* One of the moved ranges of a process, as virtmm/accesses.py has them. */
struct moved {
	u64 start;
	u64 end;
	u64 shift;
};

/* The range that holds address; NULL when none does. */
static const struct moved *find_moved(const struct moved *ranges, u64 nr, u64 address)
{
	u64 low = 0, high = nr;

	while (low < high) {
		u64 middle = (low + high) / 2;

		if (ranges[middle].end <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low < nr && ranges[low].start <= address ? ranges + low : NULL;
}

/**
 * vk_move_many - give accesses the addresses that the machine has
 * @layouts: of each slot where the place of its process's ranges, and the number of their words, are;
 *	0 = nowhere
 * @access: as for vk_touch_many()
 * @first: access to begin with
 * @end: the one behind the last
 *
 * Return: the first that lies in no range, or end.
 */
u64 vk_move_many(const u64 *layouts, u64 *access, u64 first, u64 end)
{
	const struct moved *found = NULL;
	u64 slot = 0, i;

	for (i = first; i < end; i++) {
		u64 address = access[2 * i];

		if (!found || slot != access[2 * i + 1] >> 1 || address < found->start ||
		    address >= found->end) {
			const u64 *table;

			slot = access[2 * i + 1] >> 1;
			table = (const u64 *)(uintptr_t)layouts[slot];
			if (!table)
				break;
			found = find_moved((const struct moved *)(uintptr_t)table[0], table[1] / 3,
					   address);
			if (!found)
				break;
		}
		access[2 * i] = address + found->shift;
	}
	return i;
}
