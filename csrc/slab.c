// SPDX-License-Identifier: GPL-2.0-only
/* Records that come and go. The reference is mm/slab.py. */
#include <string.h>

#include "vma.h"

/**
 * slab_alloc - number of a zeroed record, 1 or more
 * @slab: its SLAB_* number
 * @words: elements a record
 * @records: records that the table has
 *
 * Return: 0 when the table is full.
 */
u32 slab_alloc(struct vk *k, unsigned slab, u32 *table, u64 words, u64 records)
{
	u64 *head = k->zone + ZONE_SLAB + slab;
	u64 record = head[0];

	if (record) {
		head[0] = table[record * words];
		table[record * words] = 0;
		return (u32)record;
	}
	if (head[1] + 2 > records)
		return 0;
	return (u32)++head[1];
}

/** slab_alloc64 - as slab_alloc(), for records of wider elements */
u64 slab_alloc64(struct vk *k, unsigned slab, u64 *table, u64 words, u64 records)
{
	u64 *head = k->zone + ZONE_SLAB + slab;
	u64 record = head[0];

	if (record) {
		head[0] = table[record * words];
		table[record * words] = 0;
		return record;
	}
	return head[1] + 2 > records ? 0 : ++head[1];
}

/** slab_free - give a record back, zeroed but for the link to the next free one */
void slab_free(struct vk *k, unsigned slab, u32 *table, u64 words, u64 record)
{
	u64 *head = k->zone + ZONE_SLAB + slab;
	u32 *r = table + record * words;

	memset(r, 0, words * sizeof(*r));
	r[0] = (u32)*head;
	*head = record;
}

/** slab_free64 - as slab_free(), for records of wider elements */
void slab_free64(struct vk *k, unsigned slab, u64 *table, u64 words, u64 record)
{
	u64 *head = k->zone + ZONE_SLAB + slab;
	u64 *r = table + record * words;

	memset(r, 0, words * sizeof(*r));
	r[0] = *head;
	*head = record;
}
