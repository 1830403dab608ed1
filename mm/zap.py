# SPDX-License-Identifier: GPL-2.0-only
"""
Unmapping: the zap of mm/memory.c, through one mmu_gather.

SIMPLIFIED: a folio is freed as soon as its last page is unmapped, not when the gather is flushed;
nothing but the moment of the memory peak can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import filemap
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import count_work, read_blocks, unfold_edges
from .folio import add_mm_counter, free_anon_folio, update_hiwater_rss
from .huge_memory import __split_huge_pmd, zap_huge_pmd
from .layout import (
    EXIT_DEFERRED_SPLIT,
    EXIT_DONE,
    EXIT_FREE,
    EXIT_FULL,
    MM_FILEPAGES,
    NR_ORDERS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    RUN_BATCH,
    RUN_FOLIO,
    RUN_MM,
    RUN_NR,
    RUN_PTE,
    RUN_REASON,
    RUN_ROOM,
    VMA_FILE,
    VMA_MM,
    EV_zap_anon,
    EV_zap_file,
    WORK_pte_write,
    WORK_tlbi,
)
from .pgtable import (
    next_pmd,
    pmd_addr_end,
    pmd_trans_huge,
    pte_free,
    pte_in_table,
    pte_pfn,
    pte_present,
    pte_special,
)
from .rmap import folio_remove_file_rmap
from .split_queue import deferred_split_folio

if TYPE_CHECKING:
    from .arena import Arena


def tlb_capacity(k: Arena) -> int:
    """
    Return how many pages one mmu_gather takes before it must flush.

    8, and as many batch pages of pointers as hold at most 10000 (mm/mmu_gather.c, v6.4).
    """
    most = k.page_size // 8 - 2
    return 8 + 10000 // most * most


def zap_batch(k: Arena, file: bool) -> int:
    """Return RUN_BATCH of a zap in a VMA, of a file or anonymous: v1 batches in anonymous ones only."""
    if k.config.policy == "mthp":
        return 2
    return int(k.config.zap_batch and not file)


def tlb_gather_mmu(k: Arena) -> int:
    """Begin to unmap: the gather is empty. Return what tlb_finish_mmu() wants to know."""
    k.run[RUN_ROOM] = tlb_capacity(k)
    return k.work[WORK_pte_write]


def tlb_flush_mmu(k: Arena) -> None:
    """Empty a gather that is full: one TLB invalidation for what it holds."""
    k.run[RUN_ROOM] = tlb_capacity(k)
    k.work[WORK_tlbi] += 1


def tlb_finish_mmu(k: Arena, gather: int) -> None:
    """
    End a gather with a TLB invalidation if entries were written since tlb_gather_mmu().

    SIMPLIFIED: one for all VMAs of the call, where arm64 has one for each unless the process ends;
    munmap of several has fewer TLB invalidations.
    """
    k.work[WORK_tlbi] += k.work[WORK_pte_write] != gather


def unmap_page_range(k: Arena, vma: int, start: int, end: int, reclaim_pt: bool = False) -> None:
    """
    Unmap what a VMA maps in [start, end), PMD by PMD; a huge entry covered in part is split first.

    Args:
        reclaim_pt: free page tables whose whole range was unmapped, too.
    """
    if k.fast is not None:
        k.fast.unmap_page_range(vma, start, end, reclaim_pt)
        return
    mm = k.vma[vma * _V + VMA_MM]
    while True:
        address, place = next_pmd(k, mm, start, end)
        if not place:
            return
        start = stop = pmd_addr_end(k, address, end)
        if pmd_trans_huge(k, k.phys[place]):
            if stop - address == k.pmd_size:
                zap_huge_pmd(k, vma, place)
                continue
            __split_huge_pmd(k, vma, place)
        pte = pte_in_table(k, k.phys[place], address)
        zap_pte_range(k, vma, mm, pte, stop - address >> k.page_shift)
        if reclaim_pt and stop - address == k.pmd_size:
            table, k.phys[place] = pte_pfn(k, k.phys[place]), 0
            pte_free(k, mm, table)


def zap_pte_range(k: Arena, vma: int, mm: int, pte: int, nr: int) -> None:
    """
    Unmap a run of nr entries of one table (patch 7, spec 1.7).

    Pages of one folio that follow one another go in one batch; in v1 in an anonymous VMA only, and a
    batch ends where the mmu_gather is full, which mainline (6.9) does not let cut a folio. The folio
    that lost its last reference is freed at once.
    """
    if k.cont_nr:
        read_blocks(k, pte, nr)
        unfold_edges(k, pte, nr)
    run = k.run
    run[RUN_PTE] = pte
    run[RUN_NR] = nr
    run[RUN_MM] = mm
    run[RUN_BATCH] = zap_batch(k, bool(k.vma[vma * _V + VMA_FILE]))
    zap = k.ops.zap_ptes
    while True:
        zap()
        reason = run[RUN_REASON]
        if reason == EXIT_FREE:
            free_anon_folio(k, run[RUN_FOLIO])
        elif reason == EXIT_DONE:
            return
        elif reason == EXIT_DEFERRED_SPLIT:
            folio = run[RUN_FOLIO]
            deferred_split_folio(k, folio)
            if not k.page[folio * _P + PAGE_REFCOUNT]:
                free_anon_folio(k, folio)
        elif reason == EXIT_FULL:
            tlb_flush_mmu(k)
        else:
            zap_other_pte(k, mm)


def zap_other_pte(k: Arena, mm: int) -> None:
    """
    Unmap what is at RUN_PTE: the zero page, or the pages of one page-cache folio that follow one
    another.

    Mirrors: zap_present_ptes(), v6.9. Before, they went one by one, which only takes longer.
    """
    run = k.run
    pte = run[RUN_PTE]
    entry = k.phys[pte]
    assert pte_present(k, entry), "there is no swap"
    page, nr = pte_pfn(k, entry), 1
    if not pte_special(k, entry):
        folio = k.page[page * _P + PAGE_HEAD]
        most = min(folio + (1 << k.page[folio * _P + PAGE_ORDER]) - page, run[RUN_NR])
        bits = k.arch.pte
        ignore = bits.young.mask | bits.dirty.mask | bits.write.mask | k.cont_bit
        nr = k.ops.folio_pte_batch(pte, ignore, most) if most > 1 else 1
    k.ops.clear_ptes(pte, nr)
    count_work(k, read=2 * nr, write=nr)
    run[RUN_PTE] = pte + nr
    run[RUN_NR] -= nr
    if pte_special(k, entry):
        k.event[EV_zap_anon * NR_ORDERS] += 1
        return
    k.event[EV_zap_file * NR_ORDERS] += nr
    add_mm_counter(k, mm, MM_FILEPAGES, -nr)
    folio_remove_file_rmap(k, page, nr)
    places = 2 if run[RUN_BATCH] == 2 and nr > 1 else nr
    while places > run[RUN_ROOM]:
        places -= run[RUN_ROOM]
        tlb_flush_mmu(k)
    run[RUN_ROOM] -= places
    filemap.put_page(k, page, nr)


def zap_page_range(k: Arena, vma: int, start: int, end: int) -> None:
    """
    Unmap what a VMA maps in [start, end), which lies in it (MADV_DONTNEED).

    Page tables stay, but with PT_RECLAIM those whose whole range was unmapped go.
    """
    update_hiwater_rss(k, k.vma[vma * _V + VMA_MM])
    gather = tlb_gather_mmu(k)
    unmap_page_range(k, vma, start, end, k.config.pt_reclaim)
    tlb_finish_mmu(k, gather)
