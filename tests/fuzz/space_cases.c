// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls that go over the pages of a whole VMA. What they leave to Python begins at a huge entry, or, for
 * a fork, where there is no memory for a table.
 */
#include "fuzz.h"

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

static int is_huge(struct vk *k, u64 mm, u64 address)
{
	int huge = 0;

	return find_entry(k, mm, address, &huge) && huge;
}

/* Unmap, as the owner of a gather does; return where the call came to. */
static u64 unmap(struct vk *k, u64 vma, u64 start, u64 end, int reclaim)
{
	u64 mm = vma_word(k, vma, VMA_MM), at;

	k->run[RUN_ROOM] = k->fault[FAULT_GATHER];
	at = vk_unmap_page_range(k, vma, start, end, reclaim);
	EXPECT(start <= at && at <= end);
	EXPECT(at == end || is_huge(k, mm, at));
	expect_none(k, mm, start, at);
	return at;
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

/* Of a VMA that maps nothing any longer; tables that its neighbours may use stay. */
static void case_vk_free_pgd_range(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), start = vma_word(k, vma, VMA_START);
	u64 end = vma_word(k, vma, VMA_END), mm = vma_word(k, vma, VMA_MM);
	const u64 *starts = k->vma_start + mm * MAX_MAP_COUNT;
	u64 floor = 0, ceiling = 0, tables;

	if (!vma || unmap(k, vma, start, end, 0) != end)
		return;
	for (u64 i = 0; i < k->mm[mm * MM_RECORD + MM_MAP_COUNT]; i++) {
		u64 other = k->vma_index[mm * MAX_MAP_COUNT + i];

		if (starts[i] < start)
			floor = vma_word(k, other, VMA_END);
		else if (starts[i] > start && !ceiling)
			ceiling = starts[i];
	}
	tables = k->mm[mm * MM_RECORD + MM_PGTABLES];
	vk_free_pgd_range(k, mm, start, end, floor, ceiling);
	EXPECT(k->mm[mm * MM_RECORD + MM_PGTABLES] <= tables);
	expect_none(k, mm, start, end);
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

/* Into the VMA of another process that the fork made, when nothing is in it any longer. */
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
	    unmap(k, new, start, end, 0) != end)
		return;
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

static void case_vk_change_protection(struct vk *k, struct input *in)
{
	u64 vma = some_vma(k, in), at;

	if (!vma)
		return;
	at = vk_change_protection(k, vma, vma_word(k, vma, VMA_START));
	EXPECT(at == vma_word(k, vma, VMA_END) || is_huge(k, vma_word(k, vma, VMA_MM), at));
}

const struct fuzz_case space_cases[] = {
	{"vk_unmap_page_range", case_vk_unmap_page_range},
	{"vk_free_pgd_range", case_vk_free_pgd_range},
	{"vk_tlb_reach", case_vk_tlb_reach},
	{"vk_copy_page_range", case_vk_copy_page_range},
	{"vk_change_protection", case_vk_change_protection},
	{NULL, NULL},
};
