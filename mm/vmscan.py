# SPDX-License-Identifier: GPL-2.0-only
"""
Reclaim of one folio, as MADV_PAGEOUT asks for it.

SIMPLIFIED: there is no swap, so nothing is written out. That is not without effect: the kernel
splits a large folio for which it finds no swap space (6.12 to 7.3), and it drops lazyfree memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .huge_memory import zap_huge_pmd
from .layout import PAGE_FLAGS, PAGE_HEAD, PAGE_ORDER, VMA_MM, PG_lazyfree
from .pgtable import pte_dirty, pte_pfn
from .split import split_folio
from .zap import tlb_finish_mmu, tlb_gather_mmu, zap_pte_range

if TYPE_CHECKING:
    from .arena import Arena


def shrink_folio(k: Arena, vma: int, place: int, *, by_pmd: bool = False) -> None:
    """
    Drop a lazyfree folio that was not written to since, split any other large one.

    Pages of equal rights go together, up to the first that were written to: the folio is not
    lazyfree any longer, and what is left of it stays. The VMA alone maps the folio, and all of it:
    ``place`` is its first entry, or its huge entry.
    """
    folio = k.page[pte_pfn(k, k.phys[place]) * _P + PAGE_HEAD]
    base = folio * _P
    nr = 1 if by_pmd else 1 << k.page[base + PAGE_ORDER]
    if not k.page[base + PAGE_FLAGS] & PG_lazyfree:
        if k.page[base + PAGE_ORDER]:
            split_folio(k, folio)
        return
    ignore = k.arch.pte.young.mask | k.arch.pte.dirty.mask | k.cont_bit
    end = place + nr
    while place < end:
        batch = k.ops.folio_pte_batch(place, ignore, end - place)
        if any(pte_dirty(k, entry) for entry in k.phys[place : place + batch].tolist()):
            k.page[base + PAGE_FLAGS] &= ~PG_lazyfree
            return
        gather = tlb_gather_mmu(k)
        if by_pmd:
            zap_huge_pmd(k, vma, place)
        else:
            zap_pte_range(k, vma, k.vma[vma * _V + VMA_MM], place, batch)
        tlb_finish_mmu(k, gather)
        place += batch
