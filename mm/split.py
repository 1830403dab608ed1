# SPDX-License-Identifier: GPL-2.0-only
"""Splitting a large folio into pages of order 0: split_folio() of mm/huge_memory.c, v6.12 (spec 5.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import ANON_VMA_RECORD as _A
from .arena import AVC_RECORD as _C
from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import count_work, read_ptes, unfold
from .huge_memory import __split_huge_pmd
from .layout import (
    ANON_VMA_AVC,
    AVC_NEXT,
    AVC_VMA,
    FOLIO_DEFERRED_NEXT,
    FOLIO_ENTIRE_MAPCOUNT,
    FOLIO_LARGE_MAPCOUNT,
    FOLIO_NR_PAGES_MAPPED,
    MM_ANONPAGES,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_INDEX,
    PAGE_INDEX_HI,
    PAGE_MAPCOUNT,
    PAGE_MAPPING,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    VMA_END,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    VMA_PGOFF,
    VMA_START,
    ZONE_ANON,
    ZONE_SPLIT_QUEUE,
    EV_anon_free,
    MTHP_nr_anon,
    MTHP_split,
    MTHP_split_failed,
    PG_anon,
    PG_exclusive,
    PG_lazyfree,
    PG_lru,
    PG_mte_tagged,
    PG_partially_mapped,
    PG_swapbacked,
    VM_nr_anon_pages,
    VM_thp_split_page,
)
from .page_alloc import account, free_pages
from .pgtable import (
    mk_pte,
    pmd_offset,
    pmd_trans_huge,
    pte_dirty,
    pte_mkspecial,
    pte_mkyoung,
    pte_offset_map,
    pte_pfn,
)
from .split_queue import deferred_split_folio, folio_unqueue_deferred_split
from .vm_flags import VM_LOCKED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .arena import Arena

SHRINK_BATCH = 128


def rmap_walk_anon(k: Arena, folio: int) -> Iterator[tuple[int, int]]:
    """Yield (VMA, address of the folio's first page in it) of every VMA that may map an anonymous folio."""
    words, base = k.page, folio * _P
    index = words[base + PAGE_INDEX] | words[base + PAGE_INDEX_HI] << 32
    link = k.anon_vma[words[base + PAGE_MAPPING] * _A + ANON_VMA_AVC]
    nr = 1 << words[base + PAGE_ORDER]
    while link:
        vma = k.avc[link * _C + AVC_VMA]
        start, end = k.vma[vma * _V + VMA_START], k.vma[vma * _V + VMA_END]
        address = start + (index - k.vma[vma * _V + VMA_PGOFF] << k.page_shift)
        if address < end and address + (nr << k.page_shift) > start:
            yield vma, address
        link = k.avc[link * _C + AVC_NEXT]


def mappings(k: Arena, folio: int) -> list[tuple[int, int, int]]:
    """Return (VMA, place of the entry, pfn) of each mapping of a folio's pages; splits huge entries."""
    found = []
    nr = 1 << k.page[folio * _P + PAGE_ORDER]
    for vma, address in list(rmap_walk_anon(k, folio)):
        mm = k.vma[vma * _V + VMA_MM]
        start, end = k.vma[vma * _V + VMA_START], k.vma[vma * _V + VMA_END]
        for i in range(nr):
            at = address + (i << k.page_shift)
            if not start <= at < end:
                continue
            place = pmd_offset(k, mm, at)
            if place and pmd_trans_huge(k, k.phys[place]) and pte_pfn(k, k.phys[place]) == folio:
                __split_huge_pmd(k, vma, place)
            pte = pte_offset_map(k, mm, at)
            if pte and k.phys[pte] and pte_pfn(k, k.phys[pte]) == folio + i:
                found.append((vma, pte, folio + i))
    return found


def split_folio(k: Arena, folio: int, extra: int = 0) -> bool:
    """
    Split a large anonymous folio to order 0 and return whether it could be.

    Pages that nobody maps are freed; a page that is all zero is mapped to the zero page instead,
    unless its VMA is locked. Exclusive marks and the rights of the entries stay.

    Args:
        extra: references besides the mappings and the caller's; any makes the split fail.
    """
    if k.fast is not None:
        return bool(k.fast.split_folio(folio, extra))
    words, base = k.page, folio * _P
    order = words[base + PAGE_ORDER]
    by_page, by_pmd = words[base + FOLIO_NR_PAGES_MAPPED], words[base + FOLIO_ENTIRE_MAPCOUNT]
    if by_page > 1 or (by_page and by_pmd):
        deferred_split_folio(k, folio)  # the kernel unmaps one entry at a time to freeze the folio
    found = mappings(k, folio)
    if words[base + PAGE_REFCOUNT] != words[base + FOLIO_LARGE_MAPCOUNT] + extra or extra:
        k.mthp_stat[MTHP_split_failed * NR_ORDERS + order] += 1
        return False
    folio_unqueue_deferred_split(k, folio)
    k.mthp_stat[MTHP_split * NR_ORDERS + order] += 1
    k.mthp_stat[MTHP_nr_anon * NR_ORDERS + order] -= 1
    if order == k.pmd_order:
        k.vmstat[VM_thp_split_page] += 1
    keep = words[base + PAGE_FLAGS] & (PG_anon | PG_swapbacked | PG_lru | PG_lazyfree)
    if any(pte_dirty(k, k.phys[pte]) for _, pte, _ in found):
        keep &= ~PG_lazyfree  # which pages were written to is forgotten: all count as dirty
    mapping = words[base + PAGE_MAPPING]
    index = words[base + PAGE_INDEX] | words[base + PAGE_INDEX_HI] << 32
    for _, pte, _ in found:
        read_ptes(k, pte, 1)
        unfold(k, pte)
    # A migration entry takes the place of each until the folio is split; one invalidation for all.
    count_work(k, read=2 * len(found), write=3 * len(found), tlbi=1 if found else 0)
    for i in range(1 << order):
        _make_small(k, folio + i, keep, mapping, index + i)
    for vma, pte, page in found:
        if not k.vma[vma * _V + VMA_FLAGS] & VM_LOCKED and _is_zero(k, page):
            _map_zero_page(k, vma, pte, page)
    for page in range(folio, folio + (1 << order)):
        if not words[page * _P + PAGE_REFCOUNT]:
            k.mthp_stat[MTHP_nr_anon * NR_ORDERS] -= 1
            k.event[EV_anon_free * NR_ORDERS] += 1
            account(k, ZONE_ANON, -1)
            free_pages(k, page, 0)
    return True


def _make_small(k: Arena, page: int, keep: int, mapping: int, index: int) -> None:
    """Make one page of a folio that is being split a folio of its own."""
    words, base = k.page, page * _P
    count = words[base + PAGE_MAPCOUNT]
    own = words[base + PAGE_FLAGS] & (PG_exclusive | PG_mte_tagged)
    for word in range(_P):
        words[base + word] = 0
    words[base + PAGE_FLAGS] = keep | own
    words[base + PAGE_MAPCOUNT] = words[base + PAGE_REFCOUNT] = count
    words[base + PAGE_HEAD] = page
    words[base + PAGE_MAPPING] = mapping
    words[base + PAGE_INDEX] = index & 0xFFFFFFFF
    words[base + PAGE_INDEX_HI] = index >> 32
    k.mthp_stat[MTHP_nr_anon * NR_ORDERS] += 1


def _is_zero(k: Arena, page: int) -> bool:
    """Return whether a page's content is all zero; without PHYS_BACKING nobody knows, so it is not."""
    if not k.config.phys_backing:
        return False
    words = 1 << k.table_shift
    return k.ops.check_ptes_none(page << k.table_shift, words) == words


def _map_zero_page(k: Arena, vma: int, pte: int, page: int) -> None:
    """Map the zero page where a page that is all zero was mapped."""
    entry = pte_mkspecial(k, mk_pte(k, k.zero_pfn, k.vma[vma * _V + VMA_PAGE_PROT]))
    k.phys[pte] = pte_mkyoung(k, entry)
    base = page * _P
    k.page[base + PAGE_MAPCOUNT] -= 1
    k.page[base + PAGE_REFCOUNT] -= 1
    k.vmstat[VM_nr_anon_pages] -= not k.page[base + PAGE_MAPCOUNT]
    k.mm[k.vma[vma * _V + VMA_MM] * _M + MM_ANONPAGES] -= 1


def deferred_split_scan(k: Arena) -> bool:
    """
    Split folios of the deferred split queue and return whether one could be (the shrinker, spec 5.13).

    A folio that is not partly mapped leaves the queue for good unless it is mostly zero; one that cannot
    be split goes back to the tail if it is partly mapped.

    SIMPLIFIED: SHRINK_BATCH folios a call, where the kernel scans a share that grows with its distress.
    """
    batch: list[int] = []
    folio = k.zone[ZONE_SPLIT_QUEUE]
    while folio and len(batch) < SHRINK_BATCH:
        batch.append(folio)
        folio = k.page[folio * _P + FOLIO_DEFERRED_NEXT]
    done = False
    for folio in batch:
        partial = bool(k.page[folio * _P + PAGE_FLAGS] & PG_partially_mapped)
        if partial or thp_underused(k, folio):
            if split_folio(k, folio):
                done = True
                continue
            partial = True
        if not partial:
            folio_unqueue_deferred_split(k, folio)
    return done


def thp_underused(k: Arena, folio: int) -> bool:
    """Return whether more pages of a folio are all zero than khugepaged would let a huge page have."""
    most = k.knobs.max_ptes_none
    nr = 1 << k.page[folio * _P + PAGE_ORDER]
    if most >= nr - 1:
        return False
    zero = 0
    for i in range(nr):
        zero += _is_zero(k, folio + i)
        if zero > most:
            return True
        if i + 1 - zero >= nr - most:
            return False
    return False
