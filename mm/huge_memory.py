# SPDX-License-Identifier: GPL-2.0-only
"""
Large folios: who may have them, and the deferred split queue.

SIMPLIFIED: no PMD-sized faults yet. A VMA that the policy makes THP-eligible gets folios of at most
LARGE_ANON_FOLIO_THP_ORDER_MAX, mapped by base page-table entries, where a 6.4 kernel would first try
one PMD-mapped folio; programs that ask for MADV_HUGEPAGE show more faults than on that kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD
from .layout import (
    FOLIO_DEFERRED_NEXT,
    FOLIO_DEFERRED_PREV,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_ORDER,
    VMA_FLAGS,
    ZONE_SPLIT_QUEUE,
    ZONE_SPLIT_QUEUE_LEN,
    ZONE_SPLIT_QUEUE_TAIL,
    MTHP_split_deferred,
    PG_deferred,
    VM_thp_deferred_split_page,
)
from .vm_flags import VM_HUGEPAGE, VM_NOHUGEPAGE

if TYPE_CHECKING:
    from .arena import Arena


def has_transparent_hugepage(k: Arena) -> bool:
    """Return whether the kernel was built with THP; the hardware we model always has it."""
    return k.config.transparent_hugepage


def hugepage_vma_check(k: Arena, vma: int) -> bool:
    """
    Return whether policy would give an anonymous VMA a PMD-sized folio at a fault.

    Mirrors: mm/huge_memory.c hugepage_vma_check(smaps=false, in_pf=true, enforce_sysfs=true), v6.4: the
    VMA's size and alignment are not looked at.
    """
    if not k.config.transparent_hugepage:
        return False
    flags = k.vma[vma * VMA_RECORD + VMA_FLAGS]
    if flags & VM_NOHUGEPAGE:
        return False
    if k.knobs.enabled == "always":
        return True
    return k.knobs.enabled == "madvise" and bool(flags & VM_HUGEPAGE)


def max_anon_folio_order(k: Arena, vma: int) -> int:
    """
    Return the largest order that v1 tries in a VMA (patch 8).

    As in v1 a VMA that is not eligible for THP still gets LARGE_ANON_FOLIO_NOTHP_ORDER_MAX: THP
    switched off and MADV_NOHUGEPAGE do not keep large folios away (v3 changed that).
    """
    if hugepage_vma_check(k, vma):
        return k.config.thp_order_max
    return k.config.nothp_order_max


def deferred_split_folio(k: Arena, folio: int) -> None:
    """Put a large folio at the tail of the deferred split queue unless it is there (6.4)."""
    page, zone = k.page, k.zone
    base = folio * _P
    if page[base + PAGE_FLAGS] & PG_deferred:
        return
    page[base + PAGE_FLAGS] |= PG_deferred
    last = zone[ZONE_SPLIT_QUEUE_TAIL]
    page[base + FOLIO_DEFERRED_NEXT] = 0
    page[base + FOLIO_DEFERRED_PREV] = last
    if last:
        page[last * _P + FOLIO_DEFERRED_NEXT] = folio
    else:
        zone[ZONE_SPLIT_QUEUE] = folio
    zone[ZONE_SPLIT_QUEUE_TAIL] = folio
    zone[ZONE_SPLIT_QUEUE_LEN] += 1
    k.vmstat[VM_thp_deferred_split_page] += 1
    k.mthp_stat[MTHP_split_deferred * NR_ORDERS + page[base + PAGE_ORDER]] += 1


def folio_undo_large_rmappable(k: Arena, folio: int) -> None:
    """Take a folio that is about to be freed off the deferred split queue, if it is on it."""
    page, zone = k.page, k.zone
    base = folio * _P
    if not page[base + PAGE_FLAGS] & PG_deferred:
        return
    after, before = page[base + FOLIO_DEFERRED_NEXT], page[base + FOLIO_DEFERRED_PREV]
    if before:
        page[before * _P + FOLIO_DEFERRED_NEXT] = after
    else:
        zone[ZONE_SPLIT_QUEUE] = after
    if after:
        page[after * _P + FOLIO_DEFERRED_PREV] = before
    else:
        zone[ZONE_SPLIT_QUEUE_TAIL] = before
    zone[ZONE_SPLIT_QUEUE_LEN] -= 1
    page[base + PAGE_FLAGS] &= ~PG_deferred
