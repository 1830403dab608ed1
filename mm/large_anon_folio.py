# SPDX-License-Identifier: GPL-2.0-only
"""The v1 series' choice of a folio's size: patches 3, 8 and 10."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import VMA_RECORD as _V
from .folio import VmFault, vma_alloc_movable_folio, vma_alloc_zeroed_movable_folio
from .huge_memory import has_transparent_hugepage, hugepage_vma_check
from .layout import NR_ORDERS, VMA_END, VMA_START, MTHP_anon_fault_fallback

if TYPE_CHECKING:
    from .arena import Arena


def max_anon_folio_order(k: Arena, vma: int) -> int:
    """
    Return the largest order that v1 tries in a VMA (patch 8).

    As in v1 a VMA that is not eligible for THP still gets LARGE_ANON_FOLIO_NOTHP_ORDER_MAX: THP
    switched off and MADV_NOHUGEPAGE do not keep large folios away (v3 changed that).
    """
    if hugepage_vma_check(k, vma):
        return k.config.thp_order_max
    return k.config.nothp_order_max


def calc_anon_folio_order_alloc(k: Arena, vmf: VmFault, order: int) -> int:
    """
    Return the order to allocate for a write fault on fresh memory (patch 10, spec 1.10).

    It is the largest order in [2, order] whose naturally aligned block around the fault lies in the
    VMA and maps nothing, else 0. ``none`` remembers the lowest populated page that a scan met, so
    that a smaller block below it is known to be empty and one that holds it is not scanned again.
    """
    if not has_transparent_hugepage(k):
        return 0
    base = vmf.vma * _V
    start, end = k.vma[base + VMA_START], k.vma[base + VMA_END]
    pte_index = (vmf.address >> k.page_shift) & k.pte_mask
    first_set = -1
    for candidate in range(min(order, k.geometry.pmd_order), 1, -1):
        nr = 1 << candidate
        low = vmf.address & -(nr << k.page_shift)
        if low < start or low + (nr << k.page_shift) > end:
            continue
        index = pte_index & -nr
        if first_set >= 0:
            if index + nr <= first_set:
                return candidate
            if index <= first_set:
                continue
        none = k.ops.check_ptes_none(vmf.pte - pte_index + index, nr)
        if none == nr:
            return candidate
        first_set = index + none
    return 0


def try_vma_alloc_movable_folio(k: Arena, address: int, order: int, zeroed: bool) -> int:
    """
    Return a folio of the largest order that memory allows: order, order - 1, … 2, then 0 (patch 3).

    Order 1 is not tried: a large folio keeps its state in its second tail page. 0 when not even
    order 0 can be had.
    """
    while order > 1:
        folio = _alloc(k, address, order, zeroed)
        if folio:
            return folio
        k.mthp_stat[MTHP_anon_fault_fallback * NR_ORDERS + order] += 1
        order -= 1
    return _alloc(k, address, 0, zeroed)


def _alloc(k: Arena, address: int, order: int, zeroed: bool) -> int:
    if zeroed:
        return vma_alloc_zeroed_movable_folio(k, address, order)
    return vma_alloc_movable_folio(k, order)
