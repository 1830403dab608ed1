# SPDX-License-Identifier: GPL-2.0-only
"""Large anonymous folios below the PMD: how large at the most, which blocks are free (patches 3, 8, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import VMA_RECORD as _V
from .folio import VmFault, vma_alloc_movable_folio, vma_alloc_zeroed_movable_folio
from .huge_memory import has_transparent_hugepage, highest_order, thp_eligible
from .layout import (
    NR_ORDERS,
    REFUSED_EDGE,
    REFUSED_POPULATED,
    VMA_END,
    VMA_FLAGS,
    VMA_START,
    MTHP_anon_fault_fallback,
)
from .pgtable import pte_special

if TYPE_CHECKING:
    from .arena import Arena


def max_anon_folio_order(k: Arena, vma: int) -> int:
    """Return the largest order that v1 tries in a VMA (patch 8)."""
    return anon_folio_order_max(k, k.vma[vma * _V + VMA_FLAGS])


def anon_folio_order_max(k: Arena, flags: int) -> int:
    """
    Return the largest order that v1 tries in a VMA with these VM_* flags.

    As in v1 a VMA that is not eligible for THP still gets LARGE_ANON_FOLIO_NOTHP_ORDER_MAX: THP
    switched off and MADV_NOHUGEPAGE do not keep large folios away (v3 changed that).
    """
    if not has_transparent_hugepage(k):
        return 0
    return k.config.thp_order_max if thp_eligible(k, flags) else k.config.nothp_order_max


def calc_anon_folio_orders_alloc(k: Arena, vmf: VmFault, orders: int) -> int:
    """
    Return those of a mask of orders whose naturally aligned block around the fault lies in the VMA
    and is free (patch 10, spec 1.10); what the others lack goes to ``vmf.why``.

    Where one fits the smaller ones do, being contained in it. ``first_set`` remembers the lowest
    populated page that a scan met, so that a smaller block below it is known to be free and one that
    holds it is not scanned again.
    """
    base = vmf.vma * _V
    start, end = k.vma[base + VMA_START], k.vma[base + VMA_END]
    pte_index = (vmf.address >> k.page_shift) & k.pte_mask
    first_set = -1
    while orders > 1:
        order = highest_order(orders)
        nr = 1 << order
        low = vmf.address & -(nr << k.page_shift)
        if low < start or low + (nr << k.page_shift) > end:
            vmf.why[order] = REFUSED_EDGE
        else:
            index = pte_index & -nr
            if index + nr <= first_set:
                break
            if index > first_set:
                free = check_ptes_free(k, vmf, vmf.pte - pte_index + index, nr)
                if free == nr:
                    break
                first_set = index + free
            vmf.why[order] = REFUSED_POPULATED
        orders -= nr
    return orders


def check_ptes_free(k: Arena, vmf: VmFault, pte: int, nr: int) -> int:
    """
    Return how many entries from ``pte`` on a new folio may take, before the first that it may not;
    nr when all.

    They are none. For a write to the zero page (ANON_COW_ZERO) a read-mapped neighbour is as good.
    """
    if not vmf.orig_pte:
        return k.ops.check_ptes_none(pte, nr)
    for i in range(nr):
        entry = k.phys[pte + i]
        if entry and not pte_special(k, entry):
            return i
    return nr


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
