# SPDX-License-Identifier: GPL-2.0-only
"""Large anonymous folios below the PMD: how large at the most, which blocks are free (patches 3, 8, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import VMA_RECORD as _V
from .folio import VmFault, vma_alloc_movable_folio
from .huge_memory import has_transparent_hugepage, highest_order, hugepage_vma_check
from .layout import (
    NR_ORDERS,
    REFUSED_EDGE,
    REFUSED_POPULATED,
    VMA_END,
    VMA_START,
    MTHP_anon_fault_fallback,
)
from .page_alloc import __GFP_NORETRY, GFP_HIGHUSER_MOVABLE
from .pgtable import pte_special

if TYPE_CHECKING:
    from .arena import Arena


def max_anon_folio_order(k: Arena, flags: int) -> int:
    """
    Return the largest order that v1 tries in a VMA with these VM_* flags (patch 8).

    As in v1 a VMA that is not eligible for THP still gets LARGE_ANON_FOLIO_NOTHP_ORDER_MAX: THP
    switched off and MADV_NOHUGEPAGE do not keep large folios away (v3 changed that).
    """
    if not has_transparent_hugepage(k):
        return 0
    return k.config.thp_order_max if hugepage_vma_check(k, flags) else k.config.nothp_order_max


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
    Return how many entries a new folio may take the place of, before the first that it may not.

    These are empty ones; with ANON_COW_ZERO a write to the zero page takes other zero pages with it
    (RFCv2 15/17).
    """
    free = k.ops.check_ptes_none(pte, nr)
    if not k.config.cow_zero or not pte_special(k, vmf.orig_pte):
        return free
    while free < nr and pte_special(k, k.phys[pte + free]):
        free += 1
        free += k.ops.check_ptes_none(pte + free, nr - free)
    return free


def try_vma_alloc_movable_folio(k: Arena, order: int) -> int:
    """
    Return a folio, not zeroed, of the largest order that memory allows: order, order - 1, … 2, then 0
    (patch 3).

    Order 1 is not tried: a large folio keeps its state in its second tail page. 0 when not even
    order 0 can be had. Without ANON_ALLOC_LADDER one page follows the first failure. An attempt at a
    large folio reclaims once at the most (__GFP_NORETRY). Zeroed folios take the same steps as
    answers of the kernel's ladder (alloc_anon_folio() in memory.py).
    """
    while order > 1:
        folio = vma_alloc_movable_folio(k, order, GFP_HIGHUSER_MOVABLE | __GFP_NORETRY)
        if folio:
            return folio
        k.mthp_stat[MTHP_anon_fault_fallback * NR_ORDERS + order] += 1
        order = order - 1 if k.config.alloc_ladder else 0
    return vma_alloc_movable_folio(k, 0)
