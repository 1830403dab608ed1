# SPDX-License-Identifier: GPL-2.0-only
"""Anonymous folios come and go, the resident set of an mm, and a fault on its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import TASK_RECORD as _T
from .arena import VMA_RECORD as _V
from .layout import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_HIWATER_RSS,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    TASK_FOLIOS,
    VMA_FLAGS,
    ZONE_ANON,
    EV_anon_free,
    PG_anon,
    PG_lru,
    PG_mte_tagged,
    WORK_tag_clear,
    WORK_tag_sync,
)
from .page_alloc import GFP_HIGHUSER_MOVABLE, folio_alloc, folio_free
from .split_queue import folio_unqueue_deferred_split
from .vm_flags import VM_MTE

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


def vma_alloc_movable_folio(k: Arena, order: int, gfp: int = GFP_HIGHUSER_MOVABLE) -> int:
    """Return a new anonymous folio, not zeroed, in one attempt; 0 when memory is short (patch 3)."""
    return folio_alloc(k, order, PG_anon | PG_lru, ZONE_ANON, gfp)


def vma_alloc_zeroed_movable_folio(k: Arena, vma: int, vaddr: int, gfp: int, order: int) -> int:
    """
    Return a new zeroed anonymous folio for the aligned block of vaddr; 0 = no memory (patch 2, spec 7).

    Where the architecture has the allocator zero (``gfp_zero``) that goes upwards, and takes the tags
    of a VM_MTE mapping along; elsewhere the faulting page is last, unless patch 1 is off. Only the v1
    series does large folios in the architecture's way: v2 and mainline keep it for one page.

    Args:
        gfp: all flags, where the kernel's are added to GFP_HIGHUSER_MOVABLE.
    """
    folio = vma_alloc_movable_folio(k, order, gfp)
    if not folio:
        return 0
    arch, nr = k.arch, 1 << order
    if not arch.gfp_zero or (order and k.config.policy != "v1"):
        clear_huge_page(k, vma, folio, vaddr, nr, last=k.config.clear_last)
        return folio
    if arch.gfp_zerotags and k.vma[vma * _V + VMA_FLAGS] & VM_MTE:
        tag_pages(k, folio, nr, WORK_tag_clear)
    if k.config.phys_backing:
        k.ops.clear_pages(folio, nr)
    return folio


def clear_huge_page(
    k: Arena, vma: int, folio: int, addr_hint: int, nr: int, last: bool = True
) -> None:
    """
    Zero a new folio of nr pages, that of addr_hint last (patch 1), or upwards with ``last`` off.

    SIMPLIFIED: the tags of a VM_MTE mapping are cleared here and not when the entries are written; copies and
    what was touched before mprotect(PROT_MTE) are not marked as having tags. Only counters of work tell.
    """
    if k.config.phys_backing:
        if last:
            k.ops.clear_huge_page(folio, nr, (addr_hint >> k.page_shift) & (nr - 1))
        else:
            k.ops.clear_pages(folio, nr)
    if k.arch.gfp_zerotags and k.vma[vma * _V + VMA_FLAGS] & VM_MTE:
        tag_pages(k, folio, nr, WORK_tag_sync)


def tag_pages(k: Arena, folio: int, nr: int, work: int) -> None:
    """Mark nr pages as having tags, all cleared; ``work`` counts how that was done."""
    for page in range(folio, folio + nr):
        k.page[page * _P + PAGE_FLAGS] |= PG_mte_tagged
    k.work[work] += nr


def mem_cgroup_charge(k: Arena) -> bool:
    """Return whether the charge of a new folio succeeds: always, unless a failure is injected."""
    return k.inject is None or not k.inject.should_fail_charge()


def count_task_folio(k: Arena, order: int) -> None:
    """Note that a fault of the current task allocated an anonymous folio."""
    k.task[k.current * _T + TASK_FOLIOS + order] += 1
