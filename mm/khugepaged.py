# SPDX-License-Identifier: GPL-2.0-only
"""MADV_COLLAPSE: PMD-sized blocks of memory moved into one folio each, mapped by one entry (spec 5.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .folio import folio_put, vma_alloc_movable_folio
from .huge_memory import pgtable_trans_huge_deposit, thp_vma_suitable_order
from .layout import (
    MM_ANONPAGES,
    PAGE_FLAGS,
    PAGE_HEAD,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_PAGE_PROT,
    VMA_START,
    PG_anon,
)
from .pgtable import (
    mk_pte,
    pmd_mkhuge,
    pmd_offset,
    pmd_trans_huge,
    pte_in_table,
    pte_mkdirty,
    pte_mkwrite,
    pte_pfn,
    pte_special,
    pte_write,
)
from .rmap import folio_add_new_anon_rmap_range, page_remove_rmap
from .split_queue import deferred_split_folio
from .vm_flags import EINVAL, ENOMEM, VM_NOHUGEPAGE, VM_WRITE
from .vma import vma_lookup, vma_prepare_anon

if TYPE_CHECKING:
    from .arena import Arena


def madvise_collapse(k: Arena, mm: int, start: int, end: int) -> int:
    """
    Collapse the PMD-aligned blocks in [start, end); return 0, or the errno of the last that could
    not be.

    The size knobs do not matter, MADV_NOHUGEPAGE does. Each VMA of the range is done by itself.
    """
    at = start
    while at < end:
        vma = vma_lookup(k, mm, at)
        if not vma:
            return -ENOMEM
        base = vma * _V
        stop = min(end, k.vma[base + VMA_END])
        low, high = -(-at // k.pmd_size) * k.pmd_size, stop & -k.pmd_size
        if k.vma[base + VMA_FLAGS] & VM_NOHUGEPAGE or k.vma[base + VMA_FILE]:
            return -EINVAL
        first = -(-k.vma[base + VMA_START] // k.pmd_size) * k.pmd_size
        if first + k.pmd_size > k.vma[base + VMA_END]:
            return -EINVAL
        error = 0
        for address in range(low, high, k.pmd_size):
            error = collapse_huge_page(k, mm, vma, address) or error
        if error:
            return error
        at = stop
    return 0


def collapse_huge_page(k: Arena, mm: int, vma: int, address: int) -> int:
    """Move one block into a new folio; 0 or a negative errno. A block that is one already is fine."""
    place = pmd_offset(k, mm, address)
    pmd = k.phys[place] if place else 0
    if pmd_trans_huge(k, pmd) and not pte_special(k, pmd):
        return 0
    if (
        not pmd
        or pmd_trans_huge(k, pmd)
        or not thp_vma_suitable_order(k, vma, address, k.pmd_order)
    ):
        return -EINVAL
    first = pte_in_table(k, pmd, address)
    nr = 1 << k.pmd_order
    entries = k.phys[first : first + nr].tolist()
    if not any(e and pte_write(k, e) for e in entries) or not vma_prepare_anon(k, vma):
        return -EINVAL
    for entry in entries:
        if entry and not pte_special(k, entry):
            folio = k.page[pte_pfn(k, entry) * _P + PAGE_HEAD]
            if not k.page[folio * _P + PAGE_FLAGS] & PG_anon:
                return -EINVAL
    new = vma_alloc_movable_folio(k, k.pmd_order)
    if not new:
        return -ENOMEM
    if k.config.phys_backing:
        k.ops.clear_huge_page(new, nr, 0)
    filled = 0
    for i, entry in enumerate(entries):
        k.phys[first + i] = 0
        if not entry or pte_special(k, entry):
            filled += 1
            continue
        page = pte_pfn(k, entry)
        if k.config.phys_backing:
            k.ops.copy_pages(new + i, page, 1)
        folio = k.page[page * _P + PAGE_HEAD]
        page_remove_rmap(k, folio, page, mm)
        folio_put(k, folio)
    k.mm[mm * _M + MM_ANONPAGES] += filled
    pgtable_trans_huge_deposit(k, mm, pte_pfn(k, pmd))
    entry = pte_mkdirty(k, mk_pte(k, new, k.vma[vma * _V + VMA_PAGE_PROT]))
    if k.vma[vma * _V + VMA_FLAGS] & VM_WRITE:
        entry = pte_mkwrite(k, entry)
    folio_add_new_anon_rmap_range(k, new, new, nr, vma, address, by_pmd=True)
    k.phys[place] = pmd_mkhuge(k, entry)
    deferred_split_folio(k, new, partially_mapped=False)
    return 0
