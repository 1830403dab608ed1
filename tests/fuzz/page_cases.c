// SPDX-License-Identifier: GPL-2.0-only
/*
 * Loops over page records and page contents, on the last pages of memory, which are borrowed and given
 * back as they were. What a call must leave is worked out page by page.
 */
#include <string.h>

#include "fuzz.h"

enum {
	MAX_ORDER = 9,
	MAX_PAGES = 1 << MAX_ORDER,
	NR_MMS = 4,
	CONTENT_PAGES = 8,
};

static u32 kept[MAX_PAGES * PAGE_RECORD], wanted[MAX_PAGES * PAGE_RECORD];

/** struct folio - borrowed records of a folio, and a run of its pages */
struct folio {
	u64 pfn;
	unsigned order;
	u64 nr_pages;
	u64 first;
	u64 nr;
	u32 *head;
};

/* Borrow the records of a folio at the end of memory; large ones have at least four pages. */
static struct folio borrow(struct vk *k, struct input *in)
{
	struct folio f = {.order = (unsigned)below(in, MAX_ORDER + 1)};

	f.order = f.order == 1 ? 0 : f.order;
	f.nr_pages = (u64)1 << f.order;
	f.pfn = (image->nr_pages - f.nr_pages) & ~(f.nr_pages - 1);
	f.head = page_record(k, f.pfn);
	f.first = below(in, f.nr_pages);
	f.nr = f.nr_pages - f.first; /* often to the very end */
	if (below(in, 4))
		f.nr = between(in, 1, f.nr);
	memcpy(kept, f.head, f.nr_pages * PAGE_RECORD * sizeof(u32));
	memset(f.head, 0, f.nr_pages * PAGE_RECORD * sizeof(u32));
	for (u64 i = 0; i < f.nr_pages; i++)
		f.head[i * PAGE_RECORD + PAGE_HEAD] = (u32)f.pfn;
	f.head[PAGE_FLAGS] = PG_anon | PG_swapbacked;
	f.head[PAGE_ORDER] = f.order;
	return f;
}

/* Map pages of the folio, from least times on, and count what a large one counts. */
static void map_some(struct folio *f, struct input *in, u32 least)
{
	u32 modulus = (u32)between(in, 1, 5), pages = 0, all = 0;

	for (u64 i = 0; i < f->nr_pages; i++) {
		u32 count = (u32)(i * 7 % modulus);

		if (i >= f->first && i < f->first + f->nr && count < least)
			count = least;
		f->head[i * PAGE_RECORD + PAGE_MAPCOUNT] = count;
		if (count == 1)
			f->head[i * PAGE_RECORD + PAGE_FLAGS] |= PG_exclusive;
		pages += count > 0;
		all += count;
	}
	if (f->order) {
		f->head[FOLIO_NR_PAGES_MAPPED] = pages;
		f->head[FOLIO_LARGE_MAPCOUNT] = all;
	}
}

static void remember(const struct folio *f)
{
	memcpy(wanted, f->head, f->nr_pages * PAGE_RECORD * sizeof(u32));
}

static void give_back(const struct folio *f)
{
	EXPECT(!memcmp(f->head, wanted, f->nr_pages * PAGE_RECORD * sizeof(u32)));
	memcpy(f->head, kept, f->nr_pages * PAGE_RECORD * sizeof(u32));
}

static void case_prep_compound_page(struct vk *k, struct input *in)
{
	struct folio f = borrow(k, in);
	u32 flags = (u32)take(in, 2);

	memset(f.head, (int)take(in, 1), f.nr_pages * PAGE_RECORD * sizeof(u32));
	memset(wanted, 0, sizeof(wanted));
	for (u64 i = 0; i < f.nr_pages; i++)
		wanted[i * PAGE_RECORD + PAGE_HEAD] = (u32)f.pfn;
	wanted[PAGE_FLAGS] = flags;
	wanted[PAGE_REFCOUNT] = 1;
	wanted[PAGE_ORDER] = f.order;
	prep_compound_page(k, f.pfn, f.order, flags);
	give_back(&f);
}

static void case_folio_add_new_anon_rmap(struct vk *k, struct input *in)
{
	struct folio f = borrow(k, in);

	remember(&f);
	for (u64 i = f.first; i < f.first + f.nr; i++) {
		wanted[i * PAGE_RECORD + PAGE_MAPCOUNT] = 1;
		wanted[i * PAGE_RECORD + PAGE_FLAGS] |= PG_exclusive;
	}
	if (f.order) {
		wanted[FOLIO_NR_PAGES_MAPPED] = (u32)f.nr;
		wanted[FOLIO_LARGE_MAPCOUNT] = (u32)f.nr;
	}
	folio_add_new_anon_rmap(k, f.pfn, f.pfn + f.first, f.nr);
	give_back(&f);
}

static void case_folio_dup_anon_rmap_ptes(struct vk *k, struct input *in)
{
	struct folio f = borrow(k, in);
	u64 mapped = 0;

	map_some(&f, in, 0);
	remember(&f);
	for (u64 i = f.first; i < f.first + f.nr; i++) {
		mapped += !wanted[i * PAGE_RECORD + PAGE_MAPCOUNT]++;
		wanted[i * PAGE_RECORD + PAGE_FLAGS] &= ~(u32)PG_exclusive;
	}
	if (f.order) {
		wanted[FOLIO_NR_PAGES_MAPPED] += (u32)mapped;
		wanted[FOLIO_LARGE_MAPCOUNT] += (u32)f.nr;
	}
	EXPECT(folio_dup_anon_rmap_ptes(k, f.pfn, f.pfn + f.first, f.nr) == mapped);
	give_back(&f);
}

static void case_folio_remove_rmap_range(struct vk *k, struct input *in)
{
	struct folio f = borrow(k, in);
	u64 unmapped = 0;

	map_some(&f, in, 1);
	remember(&f);
	for (u64 i = f.first; i < f.first + f.nr; i++)
		unmapped += !--wanted[i * PAGE_RECORD + PAGE_MAPCOUNT];
	if (f.order) {
		wanted[FOLIO_NR_PAGES_MAPPED] -= (u32)unmapped;
		wanted[FOLIO_LARGE_MAPCOUNT] -= (u32)f.nr;
	}
	EXPECT(folio_remove_rmap_range(k, f.pfn, f.pfn + f.first, f.nr) == unmapped);
	give_back(&f);
}

/* Who may own a large folio is never less than who does. */
static void check_owners(const struct folio *f, const u32 *counts)
{
	const u32 *head = f->head;
	unsigned owners = 0;

	for (u32 mm = 1; mm <= NR_MMS; mm++) {
		owners += counts[mm] > 0;
		for (int slot = FOLIO_MM0; slot <= FOLIO_MM1; slot += FOLIO_MM1 - FOLIO_MM0)
			EXPECT(head[slot] != mm ||
			       (head[slot + 1] && head[slot + 1] <= counts[mm]));
	}
	EXPECT(head[FOLIO_MM0] || !head[FOLIO_MM0_MAPCOUNT]);
	EXPECT(head[FOLIO_MM1] || !head[FOLIO_MM1_MAPCOUNT]);
	EXPECT(!head[FOLIO_MM0] || head[FOLIO_MM0] != head[FOLIO_MM1]);
	EXPECT(owners < 2 || head[FOLIO_MAYBE_SHARED]);
}

/* Address spaces map and unmap a large folio in turn; the first call adds. */
static void case_folio_add_mm(struct vk *k, struct input *in)
{
	struct folio f = borrow(k, in);
	u32 counts[NR_MMS + 1] = {0};

	for (u64 calls = between(in, 1, 12); f.order && calls; calls--) {
		u32 mm = (u32)between(in, 1, NR_MMS), nr = (u32)between(in, 1, 9);

		if (counts[mm] && below(in, 2)) {
			nr = nr > counts[mm] ? counts[mm] : nr;
			counts[mm] -= nr;
			f.head[FOLIO_LARGE_MAPCOUNT] -= nr;
			folio_sub_mm(k, f.pfn, mm, nr);
		} else {
			counts[mm] += nr;
			f.head[FOLIO_LARGE_MAPCOUNT] += nr;
			folio_add_mm(k, f.pfn, mm, nr);
		}
		check_owners(&f, counts);
	}
	remember(&f);
	give_back(&f);
}

/* An mm that has all mappings of a folio loses some. */
static void case_folio_sub_mm(struct vk *k, struct input *in)
{
	struct folio f = borrow(k, in);
	u32 counts[NR_MMS + 1] = {0};
	u32 nr = (u32)between(in, 1, 9);

	if (f.order) {
		counts[1] = (u32)between(in, nr, nr + 9);
		f.head[FOLIO_LARGE_MAPCOUNT] = counts[1];
		folio_add_mm(k, f.pfn, 1, counts[1]);
		check_owners(&f, counts);
		counts[1] -= nr;
		f.head[FOLIO_LARGE_MAPCOUNT] -= nr;
		folio_sub_mm(k, f.pfn, 1, nr);
		check_owners(&f, counts);
		EXPECT(!f.head[FOLIO_MAYBE_SHARED]);
	}
	remember(&f);
	give_back(&f);
}

enum { CONTENT_BYTES = CONTENT_PAGES << PAGE_SHIFT };

static u8 kept_bytes[CONTENT_BYTES], wanted_bytes[CONTENT_BYTES];

/* Let the core zero and copy by methods that this CPU has; machines without a core have libc's. */
static void choose_methods(struct vk *k, struct input *in)
{
	for (int class = 0; class < METHOD_COPY - METHOD_CLEAR; class++) {
		unsigned clear = (unsigned)below(in, 8), copy = (unsigned)below(in, 8);

		k->method[METHOD_CLEAR + class] = method_usable(clear) ? clear : 0;
		k->method[METHOD_COPY + class] = method_usable(copy) ? copy : 0;
	}
}

/* Borrow the contents of the last pages of memory and fill them, the pages all different. */
static u8 *borrow_contents(struct vk *k, struct input *in)
{
	u64 pfn = image->nr_pages - CONTENT_PAGES;
	u8 *bytes = (u8 *)(k->phys + (pfn << PAGE_WORDS_SHIFT));
	int fill = (int)take(in, 1);

	choose_methods(k, in);
	memcpy(kept_bytes, bytes, CONTENT_BYTES);
	for (int i = 0; i < CONTENT_PAGES; i++)
		memset(bytes + ((u64)i << PAGE_SHIFT), fill + i, (u64)1 << PAGE_SHIFT);
	memcpy(wanted_bytes, bytes, CONTENT_BYTES);
	return bytes;
}

static void give_back_contents(u8 *bytes)
{
	EXPECT(!memcmp(bytes, wanted_bytes, CONTENT_BYTES));
	memcpy(bytes, kept_bytes, CONTENT_BYTES);
}

static void case_clear_pages(struct vk *k, struct input *in)
{
	u8 *bytes = borrow_contents(k, in);
	u64 first = below(in, CONTENT_PAGES), nr = between(in, 1, CONTENT_PAGES - first);

	memset(wanted_bytes + (first << PAGE_SHIFT), 0, nr << PAGE_SHIFT);
	clear_pages(k, image->nr_pages - CONTENT_PAGES + first, nr);
	give_back_contents(bytes);
}

static void case_clear_huge_page(struct vk *k, struct input *in)
{
	u8 *bytes = borrow_contents(k, in);
	u64 nr = (u64)1 << below(in, 4);

	memset(wanted_bytes + ((CONTENT_PAGES - nr) << PAGE_SHIFT), 0, nr << PAGE_SHIFT);
	clear_huge_page(k, image->nr_pages - nr, nr, below(in, nr));
	give_back_contents(bytes);
}

static void case_copy_pages(struct vk *k, struct input *in)
{
	u8 *bytes = borrow_contents(k, in);
	u64 nr = between(in, 1, CONTENT_PAGES / 2), from = below(in, CONTENT_PAGES / 2 - nr + 1);
	u64 to = CONTENT_PAGES / 2 + below(in, CONTENT_PAGES / 2 - nr + 1);

	memcpy(wanted_bytes + (to << PAGE_SHIFT), bytes + (from << PAGE_SHIFT), nr << PAGE_SHIFT);
	to += image->nr_pages - CONTENT_PAGES;
	from += image->nr_pages - CONTENT_PAGES;
	copy_pages(k, to, from, nr);
	give_back_contents(bytes);
}

/* Methods end where the first has no name; one that this CPU cannot run is not usable. */
static void case_method_usable(struct vk *k, struct input *in)
{
	unsigned method = (unsigned)take(in, 2);

	(void)k;
	EXPECT(!method_usable(method) || method_name(method));
}

static void case_method_name(struct vk *k, struct input *in)
{
	unsigned method = (unsigned)take(in, 2);
	const char *name = method_name(method);

	(void)k;
	EXPECT(method || name);
	EXPECT(!name || *name);
	EXPECT(name || !method_name(method + 1));
}

/* Blocks of whole pages, zeroed or copied, that lie step bytes apart. */
static void case_method_run(struct vk *k, struct input *in)
{
	u8 *bytes = borrow_contents(k, in);
	unsigned method = (unsigned)below(in, 8);
	u64 times = between(in, 1, 2), half = CONTENT_PAGES / 2;
	u64 nr = between(in, 1, half / times), size = nr << PAGE_SHIFT;
	u8 *to = bytes + (half << PAGE_SHIFT), *left = wanted_bytes + (half << PAGE_SHIFT);
	const u8 *from = below(in, 2) ? bytes : NULL;

	if (method_usable(method)) {
		if (from)
			memcpy(left, bytes, size * times);
		else
			memset(left, 0, size * times);
		method_run(method, to, from, size, size, times);
	}
	give_back_contents(bytes);
}

const struct fuzz_case page_cases[] = {
	{"prep_compound_page", case_prep_compound_page},
	{"folio_add_new_anon_rmap", case_folio_add_new_anon_rmap},
	{"folio_dup_anon_rmap_ptes", case_folio_dup_anon_rmap_ptes},
	{"folio_remove_rmap_range", case_folio_remove_rmap_range},
	{"folio_add_mm", case_folio_add_mm},
	{"folio_sub_mm", case_folio_sub_mm},
	{"clear_pages", case_clear_pages},
	{"clear_huge_page", case_clear_huge_page},
	{"copy_pages", case_copy_pages},
	{"method_name", case_method_name},
	{"method_usable", case_method_usable},
	{"method_run", case_method_run},
	{NULL, NULL},
};
