# SPDX-License-Identifier: GPL-2.0-only
"""
Physical memory: one zone, a buddy allocator, and folios made of what it hands out.

Free memory is two things: blocks of 2**order pages in the free lists, naturally aligned and always
merged with a free buddy, and everything from ZONE_FRONTIER up, which was never handed out and is
taken one block of the largest order at a time; so a machine boots without touching its memory.

SIMPLIFIED: one zone, one CPU, no per-CPU lists and no migrate types; which pfn a page gets differs
from a real kernel's, how much is free and at which orders does not depend on it much. An
allocation that finds too little memory runs the shrinkers if it may reclaim, and otherwise fails at
once; nothing is compacted, page cache is not reclaimed and there is no swap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .layout import (
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_NEXT,
    PAGE_ORDER,
    PAGE_PREV,
    PAGE_REFCOUNT,
    ZONE_ANON,
    ZONE_CACHE,
    ZONE_FREE_LIST,
    ZONE_FRONTIER,
    ZONE_MAX_TABLE,
    ZONE_NR_BLOCKS,
    ZONE_NR_FREE,
    ZONE_PEAK,
    ZONE_PEAK_ANON,
    ZONE_PEAK_CACHE,
    ZONE_PEAK_TABLE,
    ZONE_TABLE,
    ZONE_WMARK_MIN,
    MTHP_nr_anon,
    PG_buddy,
    PG_reserved,
    VM_allocstall_movable,
    VM_oom_kill,
    VM_pgalloc_movable,
    VM_pgfree,
)

if TYPE_CHECKING:
    from .arena import Arena

_ZEROES = memoryview(bytes(4 * _P)).cast("I")
# Of the allocation flags these two change something here.
__GFP_DIRECT_RECLAIM = 0x400
__GFP_NORETRY = 0x10000
GFP_HIGHUSER_MOVABLE = __GFP_DIRECT_RECLAIM
GFP_TRANSHUGE_LIGHT = 0
GFP_TRANSHUGE = GFP_TRANSHUGE_LIGHT | __GFP_DIRECT_RECLAIM
# Larger blocks are not worth killing a process for.
PAGE_ALLOC_COSTLY_ORDER = 3
# Page 0 is "none"; the zero page follows it.
ZERO_PFN = 1


def init_zone(k: Arena) -> None:
    """
    Make all memory free but the first block's two reserved pages: page 0 and the zero page.

    The watermark is the kernel's min_free_kbytes: 4 * sqrt(KiB of memory), 128 KiB to 256 MiB.
    """
    kib = k.config.nr_pages << k.page_shift >> 10
    min_kib = min(max(int((16 * kib) ** 0.5), 128), 262144)
    k.zone[ZONE_NR_FREE] = k.config.nr_pages
    for pfn in (0, ZERO_PFN):
        got = alloc_pages(k, 0)
        assert got == pfn, "memory is handed out from its start"
        k.page[pfn * _P + PAGE_FLAGS] = PG_reserved
        k.page[pfn * _P + PAGE_REFCOUNT] = 1
    k.zone[ZONE_WMARK_MIN] = (min_kib << 10) >> k.page_shift
    k.zero_pfn = ZERO_PFN


def _list_add(k: Arena, pfn: int, order: int) -> None:
    page, zone = k.page, k.zone
    base = pfn * _P
    first = zone[ZONE_FREE_LIST + order]
    page[base + PAGE_FLAGS] = PG_buddy
    page[base + PAGE_REFCOUNT] = 0
    page[base + PAGE_ORDER] = order
    page[base + PAGE_NEXT] = first
    page[base + PAGE_PREV] = 0
    if first:
        page[first * _P + PAGE_PREV] = pfn
    zone[ZONE_FREE_LIST + order] = pfn
    zone[ZONE_NR_BLOCKS + order] += 1


def _list_del(k: Arena, pfn: int, order: int) -> None:
    page, zone = k.page, k.zone
    base = pfn * _P
    after, before = page[base + PAGE_NEXT], page[base + PAGE_PREV]
    if before:
        page[before * _P + PAGE_NEXT] = after
    else:
        zone[ZONE_FREE_LIST + order] = after
    if after:
        page[after * _P + PAGE_PREV] = before
    page[base + PAGE_FLAGS] = 0
    zone[ZONE_NR_BLOCKS + order] -= 1


def alloc_pages(k: Arena, order: int) -> int:
    """
    Return the first pfn of 2**order free pages, naturally aligned; 0 when there are none.

    Mirrors: mm/page_alloc.c __alloc_pages() without reclaim: after it the zone must have more than
    ZONE_WMARK_MIN free pages; the smallest block that is large enough is split.
    """
    zone = k.zone
    nr = 1 << order
    if zone[ZONE_NR_FREE] < zone[ZONE_WMARK_MIN] + nr:
        k.vmstat[VM_allocstall_movable] += 1
        return 0
    most = k.config.max_page_order
    for have in range(order, most + 1):
        pfn = zone[ZONE_FREE_LIST + have]
        if pfn:
            _list_del(k, pfn, have)
            break
    else:
        have = most
        pfn = zone[ZONE_FRONTIER]
        if pfn + (1 << most) > k.config.nr_pages:
            k.vmstat[VM_allocstall_movable] += 1
            return 0
        zone[ZONE_FRONTIER] = pfn + (1 << most)
    while have > order:
        have -= 1
        _list_add(k, pfn + (1 << have), have)
    zone[ZONE_NR_FREE] -= nr
    k.vmstat[VM_pgalloc_movable] += nr
    return pfn


def free_pages(k: Arena, pfn: int, order: int) -> None:
    """Give 2**order pages back and merge the block with its free buddies; mirrors __free_one_page()."""
    page, zone = k.page, k.zone
    page[pfn * _P + PAGE_FLAGS] = 0
    page[pfn * _P + PAGE_REFCOUNT] = 0
    nr = 1 << order
    zone[ZONE_NR_FREE] += nr
    k.vmstat[VM_pgfree] += nr
    most = k.config.max_page_order
    while order < most:
        buddy = pfn ^ (1 << order)
        base = buddy * _P
        if not page[base + PAGE_FLAGS] & PG_buddy or page[base + PAGE_ORDER] != order:
            break
        _list_del(k, buddy, order)
        pfn &= buddy
        order += 1
    _list_add(k, pfn, order)


def account(k: Arena, user: int, nr: int) -> None:
    """Add nr pages to what ``user`` (ZONE_ANON, ZONE_CACHE, ZONE_TABLE) holds, and keep the peaks."""
    zone = k.zone
    zone[user] += nr
    if nr < 0:
        return
    total = zone[ZONE_ANON] + zone[ZONE_CACHE] + zone[ZONE_TABLE]
    if total > zone[ZONE_PEAK]:
        zone[ZONE_PEAK] = total
        zone[ZONE_PEAK_ANON] = zone[ZONE_ANON]
        zone[ZONE_PEAK_CACHE] = zone[ZONE_CACHE]
        zone[ZONE_PEAK_TABLE] = zone[ZONE_TABLE]
    if zone[ZONE_TABLE] > zone[ZONE_MAX_TABLE]:
        zone[ZONE_MAX_TABLE] = zone[ZONE_TABLE]


def folio_alloc(
    k: Arena, order: int, flags: int, user: int, gfp: int = GFP_HIGHUSER_MOVABLE
) -> int:
    """
    Return a new folio of 2**order pages with one reference, not zeroed; 0 when memory is short.

    Args:
        flags: PG_* bits of the head page.
        user: whose memory it is, as in account().
        gfp: with __GFP_DIRECT_RECLAIM the shrinkers may run to make room, with __GFP_NORETRY only once.
    """
    inject = k.inject
    if inject is not None and inject.should_fail_alloc(order):
        return 0
    pfn = alloc_pages(k, order)
    reclaim = gfp & __GFP_DIRECT_RECLAIM
    while not pfn and reclaim and any(shrink(k) for shrink in k.shrinkers):
        pfn = alloc_pages(k, order)
        reclaim = not gfp & __GFP_NORETRY
    if not pfn:
        k.vmstat[VM_oom_kill] += not order
        return 0
    if order:
        k.ops.prep_compound_page(pfn, order, flags)
    else:
        page, base = k.page, pfn * _P
        page[base : base + _P] = _ZEROES
        page[base + PAGE_FLAGS] = flags
        page[base + PAGE_REFCOUNT] = 1
        page[base + PAGE_HEAD] = pfn
    if user == ZONE_ANON:
        k.mthp_stat[MTHP_nr_anon * NR_ORDERS + order] += 1
    account(k, user, 1 << order)
    return pfn


def folio_free(k: Arena, folio: int, user: int) -> None:
    """Free a folio that has no references left; it must not be on the deferred split queue."""
    order = k.page[folio * _P + PAGE_ORDER]
    if user == ZONE_ANON:
        k.mthp_stat[MTHP_nr_anon * NR_ORDERS + order] -= 1
    account(k, user, -(1 << order))
    free_pages(k, folio, order)
