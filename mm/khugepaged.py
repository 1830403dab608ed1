# SPDX-License-Identifier: GPL-2.0-only
"""MADV_COLLAPSE: PMD-sized blocks of memory moved into one folio each, mapped by one entry (spec 5.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import clear_full_ptes, count_work, read_ptes
from .folio import folio_put, vma_alloc_movable_folio
from .huge_memory import pgtable_trans_huge_deposit
from .layout import (
    MM_ANONPAGES,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    VMA_ANON_VMA,
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
from .rmap import folio_add_new_anon_rmap_range, folio_remove_rmap_ptes
from .split_queue import deferred_split_folio
from .vm_flags import EINVAL, ENOMEM, VM_NOHUGEPAGE, VM_WRITE
from .vma import vmas_in

if TYPE_CHECKING:
    from .arena import Arena


def madvise_collapse(k: Arena, mm: int, start: int, end: int) -> int:
    """
    Collapse the PMD-aligned blocks in [start, end); return 0 or a negative errno.

    Each VMA of the range is done by itself, and the first that has a block which could not be is
    the last; holes are passed over and make it -ENOMEM. The size knobs do
    not matter, MADV_NOHUGEPAGE does.
    """
    at, error = start, 0
    while at < end:
        found = vmas_in(k, mm, at, end)[:1]
        if not found:
            return -ENOMEM
        base = found[0] * _V
        if k.vma[base + VMA_START] > at:
            at, error = k.vma[base + VMA_START], -ENOMEM
        stop = min(end, k.vma[base + VMA_END])
        failed = collapse_vma(k, mm, found[0], at, stop)
        if failed:
            return failed
        at = stop
    return error


def collapse_vma(k: Arena, mm: int, vma: int, start: int, end: int) -> int:
    """
    Collapse the blocks in [start, end) of a VMA; 0 or the errno of the last that could not be.

    A block that maps nothing, not even a page table, ends it, and so does a lack of memory.

    A VMA that never had a page (no anon_vma) or has no room for a block is refused. So is a range
    inside one block: the kernel expects a number of blocks below zero there. A range across the
    edge of two blocks that holds neither is fine.
    """
    base = vma * _V
    if k.vma[base + VMA_FLAGS] & VM_NOHUGEPAGE or k.vma[base + VMA_FILE]:
        return -EINVAL
    first = -(-k.vma[base + VMA_START] // k.pmd_size) * k.pmd_size
    if first + k.pmd_size > k.vma[base + VMA_END] or not k.vma[base + VMA_ANON_VMA]:
        return -EINVAL
    low, high = -(-start // k.pmd_size) * k.pmd_size, end & -k.pmd_size
    error = 0 if low <= high else -EINVAL
    for address in range(low, high, k.pmd_size):
        place = pmd_offset(k, mm, address)
        if not place or not k.phys[place]:
            return -EINVAL
        failed = collapse_huge_page(k, mm, vma, address, place)
        if failed == -ENOMEM:
            return failed
        error = failed or error
    return error


def collapse_huge_page(k: Arena, mm: int, vma: int, address: int, place: int) -> int:
    """
    Move the block that the entry at ``place`` maps into a new folio; 0 or a negative errno.

    A block that has a huge entry is fine, also that of the huge zero folio. Up to 6.17
    (COLLAPSE_READ_ONLY=n) a block without a writable page is refused.
    """
    pmd = k.phys[place]
    if pmd_trans_huge(k, pmd):
        return 0
    first = pte_in_table(k, pmd, address)
    nr = 1 << k.pmd_order
    entries = k.phys[first : first + nr].tolist()
    if not k.config.collapse_read_only and not any(e and pte_write(k, e) for e in entries):
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
    filled = copy_and_unmap(k, mm, first, new)
    k.mm[mm * _M + MM_ANONPAGES] += filled
    pgtable_trans_huge_deposit(k, mm, pte_pfn(k, pmd))
    entry = pte_mkdirty(k, mk_pte(k, new, k.vma[vma * _V + VMA_PAGE_PROT]))
    if k.vma[vma * _V + VMA_FLAGS] & VM_WRITE:
        entry = pte_mkwrite(k, entry)
    folio_add_new_anon_rmap_range(k, new, new, nr, vma, address, by_pmd=True)
    k.phys[place] = pmd_mkhuge(k, entry)
    count_work(k, read=1, write=2, tlbi=1)  # the table was taken away before its pages were copied
    deferred_split_folio(k, new, partially_mapped=False)
    return 0


def copy_and_unmap(k: Arena, mm: int, first: int, new: int) -> int:
    """
    Copy what the entries of a table map to a new folio, unmap it, and return how many mapped nothing.

    Since 6.17 (COLLAPSE_BATCH) neighbouring pages of one folio are unmapped together, so that a
    folio that goes as a whole is never seen partly mapped.
    """
    filled, i, nr = 0, 0, 1 << k.pmd_order
    ignore = sum(a.mask for a in (k.arch.pte.young, k.arch.pte.dirty, k.arch.pte.write))
    while i < nr:
        entry = k.phys[first + i]
        if not entry or pte_special(k, entry):
            if entry:
                count_work(k, read=2)
                clear_full_ptes(k, first + i, 1)
            filled += 1
            i += 1
            continue
        page = pte_pfn(k, entry)
        folio = k.page[page * _P + PAGE_HEAD]
        most = min(folio + (1 << k.page[folio * _P + PAGE_ORDER]) - page, nr - i)
        if not k.config.collapse_batch:
            most = 1
        batch = k.ops.folio_pte_batch(first + i, ignore | k.cont_bit, most) if most > 1 else 1
        count_work(k, read=batch)  # when they were isolated
        read_ptes(k, first + i, batch)
        if k.config.phys_backing:
            k.ops.copy_pages(new + i, page, batch)
        clear_full_ptes(k, first + i, batch)
        folio_remove_rmap_ptes(k, folio, page, batch, mm)
        k.page[folio * _P + PAGE_REFCOUNT] -= batch - 1
        folio_put(k, folio)
        i += batch
    return filled
