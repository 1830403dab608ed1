// SPDX-License-Identifier: GPL-2.0-only
/*
 * What must hold between any two calls, by walking everything: free memory, page tables, entries against
 * VMAs, counts of mappings and of memory. Written from the rules, as tests/stateful/invariants.py is; but
 * a folio that nobody holds any longer may wait to be freed, which is Python's part.
 */
#include <string.h>

#include "fuzz.h"

enum {
	MAX_MMS = 16,
	MAX_ANON_VMAS = 1024,
	MAX_FILES = 1024,
	HUGE_DEPTH = PGTABLE_LEVELS - 2,
	AVC_RECORD = 8,
	ANON_VMA_RECORD = 8,
};

static const unsigned shifts[] = LEVEL_SHIFTS;
static const u64 masks[] = LEVEL_MASKS;
static const unsigned orders[] = TABLE_ORDERS;

static u32 mapped[NR_PAGES]; /* last-level entries that map a page */
static u32 entire[NR_PAGES]; /* huge entries that map a folio */
static u8 seen[NR_PAGES];    /* page tables, free blocks: found once */
static u32 owned[MAX_MMS][NR_PAGES];

/* Of each anon_vma: VMAs linked to it, those whose own it is, and anon_vmas forked from it. */
static u32 links[MAX_ANON_VMAS], active[MAX_ANON_VMAS], children[MAX_ANON_VMAS];
static u32 mappers[MAX_FILES]; /* VMAs of a file */

/** struct census - what the address spaces were found to have, together, and the one being looked at */
struct census {
	u64 mm;
	u64 mms;
	u64 vmas;
	u64 links;
	u64 tables;
	u64 anon;
	u64 file;
	u64 huge;
};

static u64 pte_index(u64 address)
{
	return (address >> PAGE_SHIFT) % ((u64)1 << PTE_BITS);
}

static int is(u64 entry, u64 mask, u64 on)
{
	return (entry & mask) == on;
}

static u64 *entries(struct vk *k, u64 table)
{
	return k->phys + (table << PAGE_WORDS_SHIFT);
}

static int is_leaf(unsigned depth, u64 entry)
{
	return depth == HUGE_DEPTH && is(entry, PTE_LEAF_MASK, PTE_LEAF_ON);
}

/* Place of the entry, huge or last-level, for an address; NULL = no table. */
u64 *find_entry(struct vk *k, u64 mm, u64 address, int *huge)
{
	u64 table = k->mm[mm * MM_RECORD + MM_PGD];

	*huge = 0;
	for (unsigned depth = 0; depth < PGTABLE_LEVELS - 1; depth++) {
		u64 *p = entries(k, table) + (address >> shifts[depth] & masks[depth]);

		if (!*p)
			return NULL;
		if (is_leaf(depth, *p)) {
			*huge = 1;
			return p;
		}
		table = pte_pfn(*p);
	}
	return entries(k, table) + pte_index(address);
}

static const u64 *vma_of(struct vk *k, u64 mm, u64 address)
{
	for (u64 i = 0; i < k->mm[mm * MM_RECORD + MM_MAP_COUNT]; i++) {
		u64 number = k->vma_index[mm * MAX_MAP_COUNT + i];
		const u64 *vma = k->vma + number * VMA_RECORD;

		if (vma[VMA_START] <= address && address < vma[VMA_END])
			return vma;
	}
	return NULL;
}

/* A VMA is linked to its own anon_vma and to those of its ancestors. Return how many links it has. */
static u64 check_links(struct vk *k, u64 vma)
{
	u64 own = k->vma[vma * VMA_RECORD + VMA_ANON_VMA], nr = 0;
	int linked = 0;

	for (u64 link = k->vma[vma * VMA_RECORD + VMA_AVC]; link; nr++) {
		const u32 *p = k->avc + link * AVC_RECORD;

		EXPECT(link <= k->zone[ZONE_SLAB + SLAB_AVC + 1]);
		EXPECT(p[AVC_VMA] == vma && p[AVC_ANON_VMA] && p[AVC_ANON_VMA] < MAX_ANON_VMAS);
		links[p[AVC_ANON_VMA]]++;
		linked |= p[AVC_ANON_VMA] == own;
		link = p[AVC_NEXT_VMA];
	}
	EXPECT(own ? linked : !nr);
	active[own]++;
	return nr;
}

static void check_vmas(struct vk *k, u64 mm, struct census *all)
{
	u64 end = 0;

	for (u64 i = 0; i < k->mm[mm * MM_RECORD + MM_MAP_COUNT]; i++) {
		u64 number = k->vma_index[mm * MAX_MAP_COUNT + i];
		const u64 *vma = k->vma + number * VMA_RECORD;

		EXPECT(k->vma_start[mm * MAX_MAP_COUNT + i] == vma[VMA_START]);
		EXPECT(vma[VMA_MM] == mm);
		EXPECT(end <= vma[VMA_START] && vma[VMA_START] < vma[VMA_END]);
		EXPECT(!((vma[VMA_START] | vma[VMA_END]) & (((u64)1 << PAGE_SHIFT) - 1)));
		EXPECT(vma[VMA_END] <= TASK_SIZE);
		end = vma[VMA_END];
		EXPECT(vma[VMA_FILE] < MAX_FILES);
		mappers[vma[VMA_FILE]]++;
		all->vmas++;
		all->links += check_links(k, number);
	}
}

/* A block of contiguous entries is aligned pages of one folio, all alike but for young and dirty. */
static void check_contiguous(struct vk *k, const u64 *p, u64 address)
{
	u64 nr = k->fault[FAULT_CONT_NR];
	u64 index = pte_index(address) & (nr - 1);
	u64 ignore = PTE_YOUNG_MASK | PTE_DIRTY_MASK;
	u64 first = p[-(long)index];
	u64 folio = page_record(k, pte_pfn(first))[PAGE_HEAD];

	EXPECT((*p & ~ignore) == (first & ~ignore) + (index << PTE_PFN_SHIFT));
	EXPECT(!(pte_pfn(first) & (nr - 1)));
	EXPECT(pte_pfn(first) + nr <= folio + ((u64)1 << page_record(k, folio)[PAGE_ORDER]));
	EXPECT((p[nr - 1 - index] & ~ignore) == (first & ~ignore) + ((nr - 1) << PTE_PFN_SHIFT));
}

/* An entry has no more rights than its VMA and its page give, and its page's index is its place. */
static void check_entry(struct vk *k, struct census *c, const u64 *p, u64 address, int huge)
{
	const u64 *vma = vma_of(k, c->mm, address);
	u64 page = pte_pfn(*p), folio, index;
	int writable = is(*p, PTE_WRITE_MASK, PTE_WRITE_ON);
	const u32 *head;

	EXPECT(vma);
	EXPECT(pte_present(*p));
	EXPECT(page < k->zone[ZONE_FRONTIER]);
	EXPECT(!writable || vma[VMA_FLAGS] & VM_WRITE);
	EXPECT(!huge || address + ((u64)1 << (PAGE_SHIFT + PTE_BITS)) <= vma[VMA_END]);
	if (!huge && *p & k->fault[FAULT_CONT_BIT])
		check_contiguous(k, p, address);
	c->huge += (u64)huge;
	if (is(*p, PTE_SPECIAL_MASK, PTE_SPECIAL_ON)) {
		EXPECT(page == (huge ? k->zone[ZONE_HUGE_ZERO] : k->fault[FAULT_ZERO_PFN]));
		EXPECT(!writable);
		return;
	}
	folio = page_record(k, page)[PAGE_HEAD];
	head = page_record(k, folio);
	index = head[PAGE_INDEX] | (u64)head[PAGE_INDEX_HI] << 32;
	EXPECT(index + page - folio == vma[VMA_PGOFF] + ((address - vma[VMA_START]) >> PAGE_SHIFT));
	EXPECT(head[PAGE_FLAGS] & (PG_anon | PG_file) && !(head[PAGE_FLAGS] & PG_buddy));
	EXPECT(!writable || !(head[PAGE_FLAGS] & PG_anon) ||
	       page_record(k, page)[PAGE_FLAGS] & PG_exclusive);
	if (huge)
		EXPECT(page == folio && head[PAGE_ORDER] == PTE_BITS);
	if (huge)
		entire[page]++;
	else
		mapped[page]++;
	owned[c->mm][folio]++;
	*(head[PAGE_FLAGS] & PG_anon ? &c->anon : &c->file) += huge ? (u64)1 << PTE_BITS : 1;
}

/* Look at a table and all below it. */
static void check_table(struct vk *k, struct census *c, u64 table, unsigned depth, u64 address)
{
	int last = depth == PGTABLE_LEVELS - 1;
	unsigned shift = last ? PAGE_SHIFT : shifts[depth];
	u64 most = last ? ((u64)1 << PTE_BITS) - 1 : masks[depth];
	const u64 *p = entries(k, table);

	EXPECT(table < k->zone[ZONE_FRONTIER] && !seen[table]);
	seen[table] = 1;
	EXPECT(page_record(k, table)[PAGE_FLAGS] & PG_table);
	EXPECT(page_record(k, table)[PAGE_ORDER] == orders[depth]);
	c->tables += (u64)1 << orders[depth];
	for (u64 i = 0; i <= most; i++) {
		if (!p[i])
			continue;
		if (last || is_leaf(depth, p[i]))
			check_entry(k, c, p + i, address + (i << shift), !last);
		else
			check_table(k, c, pte_pfn(p[i]), depth + 1, address + (i << shift));
	}
}

static void check_mm(struct vk *k, u64 mm, struct census *all)
{
	const u64 *record = k->mm + mm * MM_RECORD;
	struct census c = {.mm = mm};
	u64 reserve = 0;

	check_vmas(k, mm, all);
	check_table(k, &c, record[MM_PGD], 0, 0);
	for (u64 table = record[MM_HUGE_PTE]; table; table = page_record(k, table)[PAGE_NEXT]) {
		EXPECT(!seen[table]);
		seen[table] = 1;
		reserve++;
	}
	EXPECT(reserve == c.huge);
	c.tables += reserve << orders[PGTABLE_LEVELS - 1];
	EXPECT(record[MM_PGTABLES] == c.tables);
	EXPECT(record[MM_ANONPAGES] == c.anon);
	EXPECT(record[MM_FILEPAGES] == c.file);
	all->tables += c.tables;
	all->mms++;
}

/* Return how many records of a table are in use. */
static u64 used(struct vk *k, int slab, const void *table, size_t record_bytes)
{
	u64 last = k->zone[ZONE_SLAB + slab + 1], unused = 0;

	for (u64 i = k->zone[ZONE_SLAB + slab]; i; unused++) {
		const u8 *record = (const u8 *)table + i * record_bytes;

		EXPECT(i <= last && unused < last);
		i = slab == SLAB_AVC || slab == SLAB_ANON_VMA ? *(const u32 *)(const void *)record
							      : *(const u64 *)(const void *)record;
	}
	return last - unused;
}

/* No table has more records in use than it has. */
static void check_tables(const struct vk *k)
{
	const u64 *last = k->zone + ZONE_SLAB + 1;

	EXPECT(last[SLAB_VMA] < k->fault[FAULT_NR_VMAS]);
	EXPECT(last[SLAB_AVC] < k->fault[FAULT_NR_AVCS]);
	EXPECT(last[SLAB_ANON_VMA] < k->fault[FAULT_NR_ANON_VMAS]);
	EXPECT(last[SLAB_FILE] < k->fault[FAULT_NR_FILES]);
	EXPECT(k->zone[ZONE_CACHE_END] < k->fault[FAULT_NR_CACHE]);
	EXPECT(k->zone[ZONE_VMA_LOG] < k->fault[FAULT_NR_VMA_LOGS]);
}

/* The lists of anon_vmas have the links that VMAs have, and no record is in use that nothing names. */
static void check_anon_vmas(struct vk *k, const struct census *all)
{
	u64 alive = 0;

	for (u64 i = 1; i < MAX_ANON_VMAS; i++)
		if (links[i])
			children[k->anon_vma[i * ANON_VMA_RECORD + ANON_VMA_PARENT] %
				 MAX_ANON_VMAS]++;
	for (u64 i = 1; i < MAX_ANON_VMAS; i++) {
		const u32 *p = k->anon_vma + i * ANON_VMA_RECORD;
		u32 nr = 0, before = 0;

		if (!links[i])
			continue;
		alive++;
		EXPECT(p[ANON_VMA_NUM_ACTIVE] == active[i]);
		EXPECT(p[ANON_VMA_NUM_CHILDREN] == children[i]);
		for (u32 link = p[ANON_VMA_AVC]; link; nr++) {
			const u32 *avc = k->avc + (u64)link * AVC_RECORD;

			EXPECT(avc[AVC_ANON_VMA] == i && avc[AVC_PREV] == before);
			before = link;
			link = avc[AVC_NEXT];
		}
		EXPECT(nr == links[i]);
	}
	EXPECT(used(k, SLAB_ANON_VMA, k->anon_vma, ANON_VMA_RECORD * sizeof(u32)) == alive);
	EXPECT(used(k, SLAB_AVC, k->avc, AVC_RECORD * sizeof(u32)) == all->links);
	EXPECT(used(k, SLAB_VMA, k->vma, VMA_RECORD * sizeof(u64)) == all->vmas);
	EXPECT(used(k, SLAB_MM, k->mm, MM_RECORD * sizeof(u64)) == all->mms);
}

/* A page is cached where its folio says, and the cache holds no other. */
static void check_cache(struct vk *k)
{
	u64 cached = 0;

	for (u64 file = 1; file <= k->zone[ZONE_SLAB + SLAB_FILE + 1]; file++) {
		const u64 *record = k->file + file * FILE_RECORD;

		EXPECT(record[FILE_VMAS] == mappers[file]);
		EXPECT(record[FILE_PAGES] <= record[FILE_CAPACITY]);
		EXPECT(record[FILE_CACHE] + record[FILE_CAPACITY] <= k->zone[ZONE_CACHE_END] + 1);
		for (u64 i = 0; i < record[FILE_CAPACITY]; i++) {
			u32 page = k->page_cache[record[FILE_CACHE] + i];
			u32 folio = page_record(k, page)[PAGE_HEAD];
			const u32 *head = page_record(k, folio);

			if (!page)
				continue;
			cached++;
			EXPECT(head[PAGE_FLAGS] & PG_file && head[PAGE_MAPPING] == file);
			EXPECT((head[PAGE_INDEX] | (u64)head[PAGE_INDEX_HI] << 32) + page - folio ==
			       i);
		}
	}
	EXPECT(cached == k->zone[ZONE_CACHE]);
}

/* Blocks of the free lists are marked, aligned, merged and counted. */
static void check_free(struct vk *k)
{
	unsigned most = (unsigned)k->fault[FAULT_MAX_PAGE_ORDER];
	u64 pages = image->nr_pages - k->zone[ZONE_FRONTIER];

	for (unsigned order = 0; order <= most; order++) {
		u64 blocks = 0, before = 0;

		for (u64 pfn = k->zone[ZONE_FREE_LIST + order]; pfn;) {
			const u32 *p = page_record(k, pfn);
			const u32 *buddy = page_record(k, pfn ^ (u64)1 << order);

			EXPECT(pfn < k->zone[ZONE_FRONTIER] && !seen[pfn]);
			seen[pfn] = 1;
			EXPECT(p[PAGE_FLAGS] == PG_buddy && p[PAGE_ORDER] == order);
			EXPECT(p[PAGE_PREV] == before);
			EXPECT(!(pfn & (((u64)1 << order) - 1)));
			EXPECT(order == most || buddy[PAGE_FLAGS] != PG_buddy ||
			       buddy[PAGE_ORDER] != order);
			blocks++;
			pages += (u64)1 << order;
			before = pfn;
			pfn = p[PAGE_NEXT];
		}
		EXPECT(blocks == k->zone[ZONE_NR_BLOCKS + order]);
	}
	EXPECT(pages == k->zone[ZONE_NR_FREE]);
}

static void check_owners(struct vk *k, u64 folio)
{
	const u32 *head = page_record(k, folio);
	unsigned owners = 0;

	for (u64 mm = 1; mm < MAX_MMS; mm++)
		owners += owned[mm][folio] > 0;
	for (int slot = FOLIO_MM0; slot <= FOLIO_MM1; slot += FOLIO_MM1 - FOLIO_MM0) {
		u32 mm = head[slot], nr = head[slot + 1];

		EXPECT(mm < MAX_MMS);
		EXPECT(mm ? nr && nr <= owned[mm][folio] : !nr);
	}
	EXPECT(owners < 2 || head[FOLIO_MAYBE_SHARED]);
}

/* One folio's counts are true. Return how many of its pages are mapped. */
static u64 check_folio(struct vk *k, u64 folio)
{
	const u32 *head = page_record(k, folio);
	u64 nr = (u64)1 << head[PAGE_ORDER], pages = 0, all = 0;
	u64 cached = head[PAGE_FLAGS] & PG_file ? nr : 0;

	for (u64 i = 0; i < nr; i++) {
		const u32 *p = head + i * PAGE_RECORD;

		EXPECT(p[PAGE_HEAD] == folio);
		EXPECT(p[PAGE_MAPCOUNT] == mapped[folio + i]);
		EXPECT(!(p[PAGE_FLAGS] & PG_exclusive) || p[PAGE_MAPCOUNT] + entire[folio] <= 1);
		pages += p[PAGE_MAPCOUNT] > 0;
		all += p[PAGE_MAPCOUNT];
	}
	EXPECT(head[PAGE_REFCOUNT] == all + entire[folio] + cached);
	if (nr > 1) {
		EXPECT(head[FOLIO_NR_PAGES_MAPPED] == pages);
		EXPECT(head[FOLIO_LARGE_MAPCOUNT] == all + entire[folio]);
		EXPECT(head[FOLIO_ENTIRE_MAPCOUNT] == entire[folio]);
		if (CONFIG_MM_ID && head[PAGE_FLAGS] & PG_anon)
			check_owners(k, folio);
	}
	return entire[folio] ? nr : pages;
}

/* Every page below the frontier is free, reserved, or held by one user. */
static void check_pages(struct vk *k)
{
	u64 anon = 0, cache = 0, tables = 0, anon_mapped = 0, file_mapped = 0;

	for (u64 pfn = 0, nr; pfn < k->zone[ZONE_FRONTIER]; pfn += nr) {
		u32 flags = page_record(k, pfn)[PAGE_FLAGS];

		nr = (u64)1 << page_record(k, pfn)[PAGE_ORDER];
		switch (flags & (PG_buddy | PG_reserved | PG_anon | PG_file | PG_table)) {
		case PG_buddy:
			EXPECT(seen[pfn]);
			break;
		case PG_anon:
			anon += nr;
			anon_mapped += check_folio(k, pfn);
			break;
		case PG_file:
			cache += nr;
			file_mapped += check_folio(k, pfn);
			break;
		case PG_table:
			EXPECT(seen[pfn]);
			tables += nr;
			break;
		default:
			EXPECT(flags & PG_reserved);
		}
	}
	EXPECT(anon == k->zone[ZONE_ANON]);
	EXPECT(cache == k->zone[ZONE_CACHE]);
	EXPECT(tables == k->zone[ZONE_TABLE]);
	EXPECT(anon + cache + tables <= k->zone[ZONE_PEAK]);
	EXPECT(anon_mapped == k->vmstat[VM_nr_anon_pages]);
	EXPECT(file_mapped == k->vmstat[VM_nr_mapped]);
}

static void check_split_queue(struct vk *k)
{
	u64 length = 0, before = 0;

	for (u64 folio = k->zone[ZONE_SPLIT_QUEUE]; folio;) {
		const u32 *head = page_record(k, folio);

		EXPECT(head[PAGE_FLAGS] & PG_deferred && head[PAGE_ORDER] > 1);
		EXPECT(head[FOLIO_DEFERRED_PREV] == before);
		length++;
		before = folio;
		folio = head[FOLIO_DEFERRED_NEXT];
	}
	EXPECT(before == k->zone[ZONE_SPLIT_QUEUE_TAIL]);
	EXPECT(length == k->zone[ZONE_SPLIT_QUEUE_LEN]);
}

/** check_arena - end the process if anything does not hold */
void check_arena(struct vk *k)
{
	u64 frontier = k->zone[ZONE_FRONTIER];
	u64 last = k->zone[ZONE_SLAB + SLAB_MM + 1];
	struct census all = {0};

	EXPECT(frontier <= image->nr_pages && last < MAX_MMS);
	memset(mapped, 0, frontier * sizeof(*mapped));
	memset(entire, 0, frontier * sizeof(*entire));
	memset(seen, 0, frontier);
	memset(mappers, 0, sizeof(mappers));
	memset(links, 0, sizeof(links));
	memset(active, 0, sizeof(active));
	memset(children, 0, sizeof(children));
	for (u64 mm = 1; mm < MAX_MMS; mm++) /* another image may have had more */
		memset(owned[mm], 0, frontier * sizeof(**owned));
	for (u64 mm = 1; mm <= last; mm++)
		if (k->mm[mm * MM_RECORD + MM_USERS])
			check_mm(k, mm, &all);
	EXPECT(all.tables == k->vmstat[VM_nr_page_table_pages]);
	check_tables(k);
	check_anon_vmas(k, &all);
	check_free(k);
	check_pages(k);
	check_cache(k);
	check_split_queue(k);
}
