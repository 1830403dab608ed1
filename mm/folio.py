# SPDX-License-Identifier: GPL-2.0-only
"""Anonymous folios come and go, the resident set of an mm, and a fault on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import TASK_RECORD as _T
from .layout import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_HIWATER_RSS,
    NR_ORDERS,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    TASK_FOLIOS,
    ZONE_ANON,
    EV_anon_free,
    PG_anon,
    PG_lru,
)
from .page_alloc import folio_alloc, folio_free
from .split_queue import folio_unqueue_deferred_split

if TYPE_CHECKING:
    from .arena import Arena


@dataclass(slots=True)
class VmFault:
    """
    A fault on its way: mirrors struct vm_fault.

    Attributes:
        address: first byte of the faulting page.
        flags: FAULT_FLAG_* bits.
        pte: place of the page's entry.
        orig_pte: what was there when the fault began.
        choice: order that a user's policy chose before there was a page table; -1 = not asked yet.
        why: order -> REFUSED_*: what an order that was looked at lacked.
    """

    vma: int
    mm: int
    address: int
    flags: int
    pte: int = 0
    orig_pte: int = 0
    choice: int = -1
    why: dict[int, int] = field(default_factory=dict)


def add_mm_counter(k: Arena, mm: int, counter: int, nr: int) -> None:
    """Add nr pages to MM_ANONPAGES or MM_FILEPAGES of mm."""
    k.mm[mm * _M + counter] += nr


#: Pages by which a processor's part of an RSS counter may be behind (percpu_counter_batch).
_COUNTER_BATCH = 32


def update_hiwater_rss(k: Arena, mm: int) -> None:
    """
    Keep mm's largest resident set; called before pages go away, as in the kernel.

    As ru_maxrss has it since 6.2: a counter is read without what is not yet folded in from the
    processors, so that it counts whole batches.

    SIMPLIFIED: as on one processor; every further one that ran the process can hide up to 31 pages
    of each counter more.
    """
    base, whole = mm * _M, -_COUNTER_BATCH
    rss = (k.mm[base + MM_ANONPAGES] & whole) + (k.mm[base + MM_FILEPAGES] & whole)
    if rss > k.mm[base + MM_HIWATER_RSS]:
        k.mm[base + MM_HIWATER_RSS] = rss


def folio_put(k: Arena, folio: int, nr: int = 1) -> None:
    """Drop nr references to an anonymous folio; frees it with the last."""
    base = folio * _P
    k.page[base + PAGE_REFCOUNT] -= nr
    if not k.page[base + PAGE_REFCOUNT]:
        free_anon_folio(k, folio)


def free_anon_folio(k: Arena, folio: int) -> None:
    """Free an anonymous folio without references."""
    folio_unqueue_deferred_split(k, folio)
    k.event[EV_anon_free * NR_ORDERS + k.page[folio * _P + PAGE_ORDER]] += 1
    folio_free(k, folio, ZONE_ANON)


def vma_alloc_movable_folio(k: Arena, order: int, reclaim: bool = True, retry: bool = True) -> int:
    """Return a new anonymous folio, not zeroed, in one attempt; 0 when memory is short (patch 3)."""
    return folio_alloc(k, order, PG_anon | PG_lru, ZONE_ANON, reclaim, retry)


def vma_alloc_zeroed_movable_folio(
    k: Arena, address: int, order: int, reclaim: bool = True, retry: bool = True
) -> int:
    """
    Return a new zeroed anonymous folio for the aligned block of address (patch 2); 0 = no memory.

    The page that address is in is zeroed last. The kernel's VMA argument only chooses a NUMA node.
    """
    folio = vma_alloc_movable_folio(k, order, reclaim, retry)
    if folio and k.config.phys_backing:
        nr = 1 << order
        k.ops.clear_huge_page(folio, nr, (address >> k.page_shift) & (nr - 1))
    return folio


def mem_cgroup_charge(k: Arena) -> bool:
    """Return whether the charge of a new folio succeeds: always, unless a failure is injected."""
    return k.inject is None or not k.inject.should_fail_charge()


def count_task_folio(k: Arena, order: int) -> None:
    """Note that a fault of the current task allocated an anonymous folio."""
    k.task[k.current * _T + TASK_FOLIOS + order] += 1
