# SPDX-License-Identifier: GPL-2.0-only
"""
Writing last-level entries, and the contiguous bit behind it (arm64 contpte, final form of v6.9).

mm/ writes entries through this module only, and never sees the bit: it is a mark on 2**cont_order
entries, aligned in address and pfn, of one folio and with equal rights, that the TLB may keep as
one. Without CONTPTE these are plain stores. ``pte`` is the place of an entry, as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .layout import PAGE_HEAD, PAGE_ORDER
from .pgtable import pte_pfn, pte_special

if TYPE_CHECKING:
    from .arena import Arena


def pte_cont(k: Arena, pte: int) -> bool:
    """Return whether an entry carries the contiguous bit."""
    return bool(pte & k.cont_bit)


def set_pte(k: Arena, pte: int, entry: int) -> None:
    """Write one entry. With the last of an aligned block the block may become contiguous."""
    if not k.cont_nr:
        k.phys[pte] = entry
        return
    unfold(k, pte)
    k.phys[pte] = entry & ~k.cont_bit
    _try_fold(k, pte, entry)


def set_ptes(k: Arena, pte: int, entry: int, nr: int) -> None:
    """Write nr entries with pfns that count up, where none were; whole aligned blocks become contiguous."""
    if not k.cont_nr or nr == 1:
        if nr == 1:
            set_pte(k, pte, entry)
        else:
            k.ops.set_ptes(pte, entry, nr)
        return
    entry &= ~k.cont_bit
    present = k.arch.pte.present
    if entry & present.mask != present.on:  # no TLB entry to save for a PROT_NONE page
        k.ops.set_ptes(pte, entry, nr)
        return
    mask, step = k.cont_nr - 1, 1 << k.pfn_shift
    end = pte + nr
    while pte < end:
        stop = min((pte | mask) + 1, end)
        whole = not (pte | stop | pte_pfn(k, entry)) & mask
        k.ops.set_ptes(pte, entry | (k.cont_bit if whole else 0), stop - pte)
        entry += (stop - pte) * step
        pte = stop


def ptep_clear(k: Arena, pte: int) -> None:
    """Make one entry none."""
    unfold(k, pte)
    k.phys[pte] = 0


def unfold_edges(k: Arena, pte: int, nr: int) -> None:
    """Unfold the blocks that a change of nr entries covers only in part; whole ones stay as they are."""
    if not k.cont_nr:
        return
    mask = k.cont_nr - 1
    if pte & mask or nr < k.cont_nr:
        unfold(k, pte)
    if (pte + nr) & mask:
        unfold(k, pte + nr - 1)


def wrprotect_ptes(k: Arena, pte: int, nr: int) -> None:
    """Make nr present entries read-only; whole contiguous blocks stay contiguous."""
    unfold_edges(k, pte, nr)
    write = k.arch.pte.write
    k.ops.modify_ptes(pte, write.mask, write.off, nr)


def set_access_flags(k: Arena, pte: int, entry: int) -> None:
    """Replace an entry by one with more rights; a block that would differ in write permission unfolds."""
    old = k.phys[pte]
    if (old ^ entry) & k.arch.pte.write.mask:
        unfold(k, pte)
        entry &= ~k.cont_bit
    k.phys[pte] = entry


def unfold(k: Arena, pte: int) -> None:
    """Take the contiguous bit from the block of an entry; young and dirty of any are those of all."""
    bit = k.cont_bit
    if not bit or not k.phys[pte] & bit:
        return
    first = pte & -k.cont_nr
    k.ops.modify_ptes(first, bit, _young_dirty(k, first), k.cont_nr)


def _young_dirty(k: Arena, first: int) -> int:
    """Return the young and dirty bits that any entry of a block has."""
    young, dirty = k.arch.pte.young, k.arch.pte.dirty
    found = 0
    for entry in k.phys[first : first + k.cont_nr].tolist():
        for attr in (young, dirty):
            if entry & attr.mask == attr.on:
                found |= attr.on
    return found


def _try_fold(k: Arena, pte: int, entry: int) -> None:
    """Make the block of an entry just written contiguous if that entry is its last and all fit."""
    mask = k.cont_nr - 1
    page = pte_pfn(k, entry)
    present = k.arch.pte.present
    if pte & mask != mask or page & mask != mask or entry & present.mask != present.on:
        return
    if pte_special(k, entry):
        return
    folio = k.page[page * _P + PAGE_HEAD]
    first_page = page - mask
    if folio > first_page or folio + (1 << k.page[folio * _P + PAGE_ORDER]) <= page:
        return
    ignore = k.arch.pte.young.mask | k.arch.pte.dirty.mask
    first = pte - mask
    expected = (entry & ~ignore) - (mask << k.pfn_shift)
    if k.phys[first] & ~ignore != expected:
        return
    if k.ops.folio_pte_batch(first, ignore, k.cont_nr) == k.cont_nr:
        k.ops.modify_ptes(first, 0, k.cont_bit | _young_dirty(k, first), k.cont_nr)
