# SPDX-License-Identifier: GPL-2.0-only
"""
Copy-on-write by whole folios: what the RFCv2 of April 2023 had beyond the v1 series (spec 2, R1 and R2).

Both rules look at the same thing: the run of entries around the fault that map a folio as the
faulting entry does. R4, aligning what mmap() chooses, has no place here: who asks for memory says
at which address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .layout import (
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    VMA_END,
    VMA_START,
    PG_exclusive,
)
from .pgtable import pte_pfn
from .rmap import folio_move_anon_rmap

if TYPE_CHECKING:
    from .arena import Arena
    from .folio import VmFault


def folio_run(k: Arena, vmf: VmFault) -> tuple[int, int]:
    """
    Return how many entries before the faulting one, and from it on, map their pages as it does.

    They are present and have its rights, map the neighbouring pages of its folio, and lie in its
    VMA and page table. Young and dirty may differ.
    """
    base, entry = vmf.vma * _V, vmf.orig_pte
    index = (vmf.address >> k.page_shift) & k.pte_mask
    page = pte_pfn(k, entry)
    folio = k.page[page * _P + PAGE_HEAD]
    after = min(
        folio + (1 << k.page[folio * _P + PAGE_ORDER]) - page,
        k.vma[base + VMA_END] - vmf.address >> k.page_shift,
        k.pte_mask + 1 - index,
    )
    before = min(page - folio, vmf.address - k.vma[base + VMA_START] >> k.page_shift, index)
    ignore = k.arch.pte.young.mask | k.arch.pte.dirty.mask | k.cont_bit
    entry &= ~ignore
    for i in range(1, before + 1):
        if k.phys[vmf.pte - i] & ~ignore != entry - (i << k.pfn_shift):
            before = i - 1
            break
    return before, k.ops.folio_pte_batch(vmf.pte, ignore, after)


def calc_anon_folio_order_copy(k: Arena, vmf: VmFault, order: int) -> int:
    """
    Return the order of the copy of a shared anonymous folio (RFCv2 14/17).

    It is the largest order in [2, order], at most the folio's own, whose naturally aligned block
    around the fault lies in the run of folio_run(), else 0: of a folio that was moved to where it
    is not aligned, or unmapped in part, an aligned part is copied.

    SIMPLIFIED: what RFCv2 copies together is a reconstruction. All of the block must have the rights
    of the faulting page, so a folio of which single pages are writable is copied in smaller parts.
    """
    folio = k.page[pte_pfn(k, vmf.orig_pte) * _P + PAGE_HEAD]
    order = min(order, k.page[folio * _P + PAGE_ORDER])
    if order < 2:
        return 0
    before, after = folio_run(k, vmf)
    page = vmf.address >> k.page_shift
    for candidate in range(order, 1, -1):
        nr = 1 << candidate
        index = page & (nr - 1)
        if index <= before and nr - index <= after:
            return candidate
    return 0


def wp_reuse_run(k: Arena, vmf: VmFault) -> tuple[int, int]:
    """
    Return (place of the first, how many) of the entries that one write fault makes writable (RFCv2
    10/17); none if the page must be copied.

    They are the part of folio_run() around the fault whose pages are exclusive. A folio that is not
    is taken over first, if the run has all its references: it then belongs to this VMA, and the
    run's pages are exclusive.

    SIMPLIFIED: what RFCv2 reuses is a reconstruction. A folio that others let go is copied if a hole,
    or the edge of a VMA or page table, parts its mapped pages.
    """
    before, after = folio_run(k, vmf)
    words = k.page
    page = pte_pfn(k, vmf.orig_pte)
    folio = words[page * _P + PAGE_HEAD]
    if words[page * _P + PAGE_FLAGS] & PG_exclusive:
        first, end = page, page + 1
        while first > page - before and words[(first - 1) * _P + PAGE_FLAGS] & PG_exclusive:
            first -= 1
        while end < page + after and words[end * _P + PAGE_FLAGS] & PG_exclusive:
            end += 1
        return vmf.pte - (page - first), end - first
    if words[folio * _P + PAGE_REFCOUNT] != before + after:
        return vmf.pte, 0
    folio_move_anon_rmap(k, folio, vmf.vma)
    for reused in range(page - before, page + after):
        words[reused * _P + PAGE_FLAGS] |= PG_exclusive
    return vmf.pte - before, before + after
