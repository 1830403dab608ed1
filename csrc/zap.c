// SPDX-License-Identifier: GPL-2.0-only
/* Unmapping. The reference is mm/zap.py, and for vk_zap_ptes() mm/ranges.py. */
#include "contpte.h"
#include "huge_memory.h"
#include "pgtable.h"

/* Pages that a zap takes in one go: present, next pfn, nothing else compared (v1 patch 7). */
static u64 zap_batch(const u64 *p, u64 max)
{
	const u64 mask = PTE_PFN_MASK | PTE_PRESENT_MASK | PTE_PROT_NONE_MASK;
	const u64 step = (u64)1 << PTE_PFN_SHIFT;
	u64 pfn = pte_pfn(p[0]);
	u64 i = 1;

	/* Mostly all are present in the way of the first. */
	for (; i + 3 <= max; i += 3) {
		u64 first = (p[0] & mask) + i * step;

		if (((p[i] & mask) ^ first) | ((p[i + 1] & mask) ^ (first + step)) |
		    ((p[i + 2] & mask) ^ (first + 2 * step)))
			break;
	}
	while (i < max && pte_present(p[i]) && pte_pfn(p[i]) == pfn + i)
		i++;
	return i;
}

/**
 * vk_zap_ptes - unmap the anonymous folios of a run of entries of one table
 *
 * Works from RUN_PTE over RUN_NR entries until something needs Python; RUN_REASON says what. Clears
 * entries, unmaps (folio_remove_rmap_range), drops references and counts.
 */
void vk_zap_ptes(struct vk *k)
{
	u64 *run = k->run;
	u64 *mm = k->mm + run[RUN_MM] * MM_RECORD;

	run[RUN_REASON] = EXIT_DONE;
	while (run[RUN_NR]) {
		u64 *p = k->phys + run[RUN_PTE];
		u64 skip = *p ? 0 : check_ptes_none(k, run[RUN_PTE], run[RUN_NR]);

		if (skip) {
			k->event[EV_zap_none * NR_ORDERS] += skip;
			run[RUN_PTE] += skip;
			run[RUN_NR] -= skip;
			continue;
		}

		u64 page = pte_present(*p) ? pte_pfn(*p) : 0;
		u64 folio = page ? page_record(k, page)[PAGE_HEAD] : 0;
		u32 *head = page_record(k, folio);

		if (!folio || !(head[PAGE_FLAGS] & PG_anon)) {
			run[RUN_REASON] = EXIT_OTHER;
			return;
		}
		/* From 6.9 a run takes two places of the gather, one for its length, and is never cut. */
		if (run[RUN_ROOM] < (run[RUN_BATCH] == 2 ? 2 : 1)) {
			run[RUN_REASON] = EXIT_FULL;
			return;
		}

		u32 order = head[PAGE_ORDER];
		u64 max = run[RUN_BATCH] ? folio + ((u64)1 << order) - page : 1;

		if (max > run[RUN_NR])
			max = run[RUN_NR];
		if (run[RUN_BATCH] < 2 && max > run[RUN_ROOM])
			max = run[RUN_ROOM];

		u64 nr = zap_batch(p, max);

		clear_ptes(k, run[RUN_PTE], nr);
		k->work[WORK_pte_read] += 2 * nr; /* to find the batch, and with each clear */
		k->work[WORK_pte_write] += nr;
		u64 unmapped = folio_remove_rmap_range(k, folio, page, nr);
		k->work[WORK_rmap_remove]++;

		int by_pmd = order && head[FOLIO_ENTIRE_MAPCOUNT];

		if (CONFIG_MM_ID && order)
			folio_sub_mm(k, folio, run[RUN_MM], nr);
		k->vmstat[VM_nr_anon_pages] -= by_pmd ? 0 : unmapped;
		k->event[EV_zap_anon * NR_ORDERS + order] += nr;
		mm[MM_ANONPAGES] -= nr;
		head[PAGE_REFCOUNT] -= (u32)nr;
		run[RUN_PTE] += nr;
		run[RUN_NR] -= nr;
		run[RUN_ROOM] -= run[RUN_BATCH] < 2 || nr == 1 ? nr : 2;
		run[RUN_FOLIO] = folio;
		/* A page-by-page zap queues a large folio even with its last page (v1 patch 6); a batch does not. */
		if (order && unmapped && !by_pmd &&
		    (head[FOLIO_NR_PAGES_MAPPED] || !run[RUN_BATCH])) {
			run[RUN_REASON] = EXIT_DEFERRED_SPLIT;
			return;
		}
		if (!head[PAGE_REFCOUNT]) {
			run[RUN_REASON] = EXIT_FREE;
			return;
		}
	}
}

static void tlb_flush_mmu(struct vk *k)
{
	k->run[RUN_ROOM] = k->fault[FAULT_GATHER];
	k->work[WORK_tlbi]++;
}

/* Take places of the gather for pages that are cleared already; it may be flushed on the way. */
static void take_room(struct vk *k, u64 places)
{
	while (places > k->run[RUN_ROOM]) {
		places -= k->run[RUN_ROOM];
		tlb_flush_mmu(k);
	}
	k->run[RUN_ROOM] -= places;
}

/* Unmap the zero page, or the pages of one page-cache folio that follow one another, at RUN_PTE. */
static void zap_other_pte(struct vk *k)
{
	u64 *run = k->run;
	u64 pte = run[RUN_PTE];
	u64 entry = k->phys[pte];
	u64 page = pte_pfn(entry);
	u64 folio = page_record(k, page)[PAGE_HEAD];
	u32 *head = page_record(k, folio);
	int special = is(entry, PTE_SPECIAL_MASK, PTE_SPECIAL_ON);
	u64 most = special ? 1 : folio + ((u64)1 << head[PAGE_ORDER]) - page;
	u64 nr = folio_pte_batch(
		k, pte, PTE_YOUNG_MASK | PTE_DIRTY_MASK | PTE_WRITE_MASK | k->fault[FAULT_CONT_BIT],
		most < run[RUN_NR] ? most : run[RUN_NR]);

	clear_ptes(k, pte, nr);
	k->work[WORK_pte_read] += 2 * nr;
	k->work[WORK_pte_write] += nr;
	run[RUN_PTE] += nr;
	run[RUN_NR] -= nr;
	if (special) {
		k->event[EV_zap_anon * NR_ORDERS]++;
		return;
	}
	k->event[EV_zap_file * NR_ORDERS] += nr;
	k->mm[run[RUN_MM] * MM_RECORD + MM_FILEPAGES] -= nr;
	k->vmstat[VM_nr_mapped] -= folio_remove_rmap_range(k, folio, page, nr);
	take_room(k, run[RUN_BATCH] == 2 && nr > 1 ? 2 : nr);
	head[PAGE_REFCOUNT] -= (u32)nr;
	if (!head[PAGE_REFCOUNT])
		folio_free(k, folio, ZONE_CACHE);
}

/* Unmap anonymous folios of one page each, as far as they are in a row and the gather has room. */
static void zap_small_folios(struct vk *k)
{
	u64 *run = k->run;
	u64 *entry = k->phys + run[RUN_PTE];
	u64 least = run[RUN_BATCH] == 2 ? 2 : 1;
	u64 max = run[RUN_ROOM] < least ? 0 : run[RUN_ROOM] - least + 1;
	u64 unmapped = 0, nr;

	if (max > run[RUN_NR])
		max = run[RUN_NR];
	for (nr = 0; nr < max; nr++) {
		u64 page = pte_pfn(entry[nr]);
		u32 *p = page_record(k, page);

		if (!small_anon_folio(p))
			break;
		entry[nr] = 0;
		unmapped += !--p[PAGE_MAPCOUNT];
		if (!--p[PAGE_REFCOUNT])
			free_anon_folio(k, page);
	}
	run[RUN_PTE] += nr;
	run[RUN_NR] -= nr;
	run[RUN_ROOM] -= nr;
	k->work[WORK_pte_read] += 2 * nr;
	k->work[WORK_pte_write] += nr;
	k->work[WORK_rmap_remove] += nr;
	k->vmstat[VM_nr_anon_pages] -= unmapped;
	k->event[EV_zap_anon * NR_ORDERS] += nr;
	k->mm[run[RUN_MM] * MM_RECORD + MM_ANONPAGES] -= nr;
}

/* Unmap the run of entries of one table that is in the registers. */
static void zap_pte_range(struct vk *k)
{
	u64 *run = k->run;

	read_blocks(k, run[RUN_PTE], run[RUN_NR]);
	unfold_edges(k, run[RUN_PTE], run[RUN_NR]);
	for (;;) {
		u64 folio;

		zap_small_folios(k);
		vk_zap_ptes(k);
		folio = run[RUN_FOLIO];
		switch (run[RUN_REASON]) {
		case EXIT_DONE:
			return;
		case EXIT_FREE:
			free_anon_folio(k, folio);
			break;
		case EXIT_DEFERRED_SPLIT:
			deferred_split_folio(k, folio, 1);
			if (!page_record(k, folio)[PAGE_REFCOUNT])
				free_anon_folio(k, folio);
			break;
		case EXIT_FULL:
			tlb_flush_mmu(k);
			break;
		default:
			zap_other_pte(k);
		}
	}
}

/**
 * vk_unmap_page_range - unmap what a VMA maps in [address, end), PMD by PMD
 * @reclaim_pt: 1 = free page tables whose whole range was unmapped, too
 *
 * The gather is in RUN_ROOM. A huge entry that is covered in part is split first.
 */
void vk_unmap_page_range(struct vk *k, u64 vma, u64 address, u64 end, int reclaim_pt)
{
	const u64 *v = k->vma + vma * VMA_RECORD;
	u64 mm = v[VMA_MM];
	u64 batch = k->fault[v[VMA_FILE] ? FAULT_ZAP_FILE : FAULT_ZAP_ANON];
	u64 *pmd;

	while ((pmd = next_pmd(k, mm, &address, end))) {
		u64 stop = pmd_addr_end(address, end);

		if (pmd_trans_huge(*pmd) && stop - address == (u64)1 << PMD_SHIFT) {
			zap_huge_pmd(k, mm, pmd);
			address = stop;
			continue;
		}
		if (pmd_trans_huge(*pmd))
			vk_split_huge_pmd(k, mm, (u64)(pmd - k->phys));
		k->run[RUN_PTE] = pte_in_table(*pmd, address);
		k->run[RUN_NR] = (stop - address) >> PAGE_SHIFT;
		k->run[RUN_MM] = mm;
		k->run[RUN_BATCH] = batch;
		zap_pte_range(k);
		if (reclaim_pt && stop - address == (u64)1 << PMD_SHIFT) {
			u64 table = pte_pfn(*pmd);

			*pmd = 0;
			pte_free(k, mm, table);
		}
		address = stop;
	}
}
