// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls that go over the pages of a whole VMA. What a fork leaves to Python begins where there is no memory
 * for a table.
 */
#include "fuzz.h"
#include "pgtable.h"
#include "vma.h"

/* A VMA of some process's; 0 = it has none. */
static u64 some_vma(struct vk *k, struct input *in)
{
	u64 mm = k->task[image->tasks[below(in, image->nr_tasks)] * TASK_RECORD + TASK_MM];
	u64 vmas = k->mm[mm * MM_RECORD + MM_MAP_COUNT];

	return vmas ? k->vma_index[mm * MAX_MAP_COUNT + below(in, vmas)] : 0;
}

static u64 vma_word(struct vk *k, u64 vma, int field)
{
	return k->vma[vma * VMA_RECORD + field];
}

/* Nothing is mapped from address to end. */
static void expect_none(struct vk *k, u64 mm, u64 address, u64 end)
{
	for (; address < end; address += (u64)1 << PAGE_SHIFT) {
		int huge;
		const u64 *p = find_entry(k, mm, address, &huge);

		EXPECT(!p || !*p);
	}
}

/* Unmap, as the owner of a gather does. */
static void unmap(struct vk *k, u64 vma, u64 start, u64 end, int reclaim)
{
	k->run[RUN_ROOM] = k->fault[FAULT_GATHER];
	vk_unmap_page_range(k, vma, start, end, reclaim);
	expect_none(k, vma_word(k, vma, VMA_MM), start, end);
}

static void case_vk_unmap_page_range(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), start = vma_word(k, vma, VMA_START);
	u64 pages = (vma_word(k, vma, VMA_END) - start) >> PAGE_SHIFT;
	u64 first = take(in, 2), nr = take(in, 2);

	if (!vma)
		return;
	first %= pages;
	nr = 1 + nr % (pages - first);
	start += first << PAGE_SHIFT;
	unmap(k, vma, start, start + (nr << PAGE_SHIFT), (int)below(in, 2));
}

static void case_vk_tlb_reach(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), mm = vma_word(k, vma, VMA_MM), at = below(in, 2);

	if (!vma)
		return;
	at = at ? TLB_ALIVE : TLB_ENDED;
	vk_tlb_reach(k, mm, at);
	for (int kind = TLB_DATA; kind <= TLB_TEXT; kind += TLB_TEXT - TLB_DATA) {
		const u64 *tlb = k->tlb + at + kind;

		EXPECT(tlb[TLB_BEST] <= tlb[TLB_CONT] && tlb[TLB_BEST] <= tlb[TLB_HPA]);
		EXPECT(tlb[TLB_CONT] <= tlb[TLB_PLAIN] && tlb[TLB_HPA] <= tlb[TLB_PLAIN]);
		EXPECT(tlb[TLB_PLAIN] <= tlb[TLB_PAGES]);
		EXPECT(tlb[TLB_CONT_PAGES] <= tlb[TLB_PAGES]);
	}
}

/* Whether a VMA has a link to each anon_vma that another one has, as a fork's child does. */
static int has_links_of(struct vk *k, u64 vma, u64 other)
{
	for (u64 a = vma_word(k, other, VMA_AVC); a; a = k->avc[a * AVC_RECORD + AVC_NEXT_VMA]) {
		u64 b = vma_word(k, vma, VMA_AVC);

		while (b && k->avc[b * AVC_RECORD + AVC_ANON_VMA] !=
				    k->avc[a * AVC_RECORD + AVC_ANON_VMA])
			b = k->avc[b * AVC_RECORD + AVC_NEXT_VMA];
		if (!b)
			return 0;
	}
	return 1;
}

/*
 * Into the VMA of another process that the fork made, when nothing is in it any longer: no table either where
 * a huge entry may come. One that was mapped there later is none of those, and pages of the other would not
 * be found in it.
 */
static void case_vk_copy_page_range(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), new = some_vma(k, in), start, end, at;

	if (!vma || !new || vma_word(k, vma, VMA_MM) == vma_word(k, new, VMA_MM))
		return;
	start = vma_word(k, vma, VMA_START);
	end = vma_word(k, vma, VMA_END);
	if (!vma_word(k, vma, VMA_ANON_VMA) || !vma_word(k, new, VMA_ANON_VMA) ||
	    vma_word(k, new, VMA_START) != start || vma_word(k, new, VMA_END) != end ||
	    vma_word(k, new, VMA_PGOFF) != vma_word(k, vma, VMA_PGOFF) ||
	    !has_links_of(k, new, vma))
		return;
	unmap(k, new, start, end, 1);
	at = vk_copy_page_range(k, new, vma, start);
	EXPECT(start <= at && at <= end);
	for (; start < at; start += (u64)1 << PAGE_SHIFT) {
		int huge;
		const u64 *from = find_entry(k, vma_word(k, vma, VMA_MM), start, &huge);
		const u64 *to = find_entry(k, vma_word(k, new, VMA_MM), start, &huge);

		EXPECT((from && *from) == (to && *to));
		if (!from || !*from)
			continue;
		EXPECT(pte_pfn(*from) == pte_pfn(*to));
		EXPECT((*to & PTE_WRITE_MASK) != PTE_WRITE_ON ||
		       vma_word(k, vma, VMA_FLAGS) & VM_SHARED);
	}
}

/* The first huge entry from an address on, if there is one: its table maps what it mapped. */
static void case_vk_split_huge_pmd(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), mm = vma_word(k, vma, VMA_MM);
	u64 at = vma_word(k, vma, VMA_START), end = vma_word(k, vma, VMA_END), nr = PTRS_PER_PTE;
	u64 was = 0, *p = NULL;
	int huge = 0;

	for (at += take(in, 2) << PAGE_SHIFT; at < end; at += (u64)1 << PAGE_SHIFT) {
		p = find_entry(k, mm, at, &huge);
		if (p && huge)
			break;
	}
	if (!p || !huge)
		return;
	was = *p;
	vk_split_huge_pmd(k, mm, (u64)(p - k->phys));
	at = at >> PMD_SHIFT << PMD_SHIFT;
	for (u64 i = 0; i < nr; i++) {
		p = find_entry(k, mm, at + (i << PAGE_SHIFT), &huge);
		EXPECT(p && !huge);
		EXPECT(!((*p ^ was) & (PTE_WRITE_MASK | PTE_PRESENT_MASK | PTE_SPECIAL_MASK)));
		EXPECT(is(was, PTE_SPECIAL_MASK, PTE_SPECIAL_ON)
			       ? pte_pfn(*p) == k->fault[FAULT_ZERO_PFN]
			       : pte_pfn(*p) == pte_pfn(was) + i);
	}
}

/* The large anonymous folio of some page that is mapped; afterwards its pages are small, or it is whole. */
static void case_vk_split_folio(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), start = vma_word(k, vma, VMA_START), extra = !below(in, 16);
	u64 pages = (vma_word(k, vma, VMA_END) - start) >> PAGE_SHIFT, folio, nr;
	int huge, done;
	const u64 *p;

	if (!vma)
		return;
	start += take(in, 2) % pages << PAGE_SHIFT;
	p = find_entry(k, vma_word(k, vma, VMA_MM), start, &huge);
	folio = p && *p ? page_record(k, pte_pfn(*p))[PAGE_HEAD] : 0;
	if (!(page_record(k, folio)[PAGE_FLAGS] & PG_anon) || !page_record(k, folio)[PAGE_ORDER])
		return;
	nr = (u64)1 << page_record(k, folio)[PAGE_ORDER];
	done = vk_split_folio(k, folio, extra);
	EXPECT(!done || !extra);
	for (u64 i = 0; i < nr; i++) {
		const u32 *page = page_record(k, folio + i);

		if (!done)
			EXPECT(page[PAGE_HEAD] == folio);
		else if (!(page[PAGE_FLAGS] & PG_buddy))
			EXPECT(page[PAGE_REFCOUNT] == page[PAGE_MAPCOUNT]);
	}
}

const struct fuzz_case space_cases[] = {
	{"vk_unmap_page_range", case_vk_unmap_page_range},
	{"vk_tlb_reach", case_vk_tlb_reach},
	{"vk_copy_page_range", case_vk_copy_page_range},
	{"vk_split_huge_pmd", case_vk_split_huge_pmd},
	{"vk_split_folio", case_vk_split_folio},
	{NULL, NULL},
};
