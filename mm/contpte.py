# SPDX-License-Identifier: GPL-2.0-only
"""
Writing last-level entries, and the contiguous bit behind it (arm64 contpte, final form of v6.9).

mm/ writes entries through this module only, and never sees the bit: it is a mark on 2**cont_order
entries, aligned in address and pfn, of one folio and with equal rights, that the TLB may keep as
one. Without CONTPTE these are plain stores. ``pte`` is the place of an entry, as everywhere.

Without CONTPTE_BATCH a change of many entries is one change after the other, and the first of them
takes a block apart; without CONTPTE_FOLD single stores never put one together.

What an operation reads, writes and invalidates is counted (WORK_*); Documentation/contpte.md has the
rule for each. SIMPLIFIED: not counted are scans of empty entries, the look at an entry that is
about to be overwritten, and the one look behind a batch that ends it; results have a few reads less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .layout import (
    PAGE_HEAD,
    PAGE_ORDER,
    WORK_contpte_fold,
    WORK_contpte_unfold,
    WORK_pte_read,
    WORK_pte_write,
    WORK_tlbi,
)
from .pgtable import pte_pfn, pte_special

if TYPE_CHECKING:
    from .arena import Arena


def pte_cont(k: Arena, pte: int) -> bool:
    """Return whether an entry carries the contiguous bit."""
    return bool(pte & k.cont_bit)


def count_work(k: Arena, read: int = 0, write: int = 0, tlbi: int = 0) -> None:
    """Count entries read and written, and TLB invalidations; a range of addresses is one of these."""
    work = k.work
    work[WORK_pte_read] += read
    work[WORK_pte_write] += write
    work[WORK_tlbi] += tlbi


def read_ptes(k: Arena, pte: int, nr: int) -> None:
    """Count the reads of a walk over nr present entries."""
    k.work[WORK_pte_read] += nr
    if k.cont_nr:
        read_blocks(k, pte, nr)


def read_blocks(k: Arena, pte: int, nr: int) -> None:
    """
    Count what a walk over nr entries reads beyond one read each, because blocks are contiguous.

    Mirrors: contpte_ptep_get() and pte_batch_hint(): to know young and dirty of one entry all of its block
    are read; with CONTPTE_BATCH the walk then goes on behind the block.
    """
    size, bit, hint = k.cont_nr, k.cont_bit, k.config.contpte_batch
    extra, end = 0, pte + nr
    if hint and not (pte | nr) & size - 1:
        return  # whole blocks: one look at each reads as much as one read of each entry
    while pte < end:
        stop = min((pte | size - 1) + 1, end)
        if k.phys[pte] & bit:
            extra += size * (1 if hint else stop - pte) - (stop - pte)
        pte = stop
    k.work[WORK_pte_read] += extra


def set_pte(k: Arena, pte: int, entry: int) -> None:
    """Write one entry. With the last of an aligned block the block may become contiguous."""
    k.work[WORK_pte_write] += 1
    if not k.cont_nr:
        k.phys[pte] = entry
        return
    unfold(k, pte)
    k.phys[pte] = entry & ~k.cont_bit
    if k.config.contpte_fold:
        _try_fold(k, pte, entry)


def set_ptes(k: Arena, pte: int, entry: int, nr: int) -> None:
    """Write nr entries with pfns that count up, where none were; whole aligned blocks become contiguous."""
    if nr == 1:
        set_pte(k, pte, entry)
        return
    k.work[WORK_pte_write] += nr
    if not k.cont_nr:
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
    count_work(k, read=1, write=1)


def clear_full_ptes(k: Arena, pte: int, nr: int) -> None:
    """Make nr present entries none; contiguous blocks that go as a whole are not unfolded."""
    unfold_edges(k, pte, nr)
    k.ops.clear_ptes(pte, nr)
    count_work(k, read=nr, write=nr)


def unfold_edges(k: Arena, pte: int, nr: int) -> None:
    """
    Unfold the blocks that a change of nr entries covers only in part; whole ones stay as they are.

    Without CONTPTE_BATCH none is changed as a whole: the first of its entries unfolds it.
    """
    if not k.cont_nr:
        return
    mask = k.cont_nr - 1
    if not k.config.contpte_batch:
        for block in range(pte & ~mask, pte + nr, k.cont_nr):
            unfold(k, block)
        return
    if pte & mask or nr < k.cont_nr:
        unfold(k, pte)
    if (pte + nr) & mask:
        unfold(k, pte + nr - 1)


def wrprotect_ptes(k: Arena, pte: int, nr: int) -> None:
    """Make nr present entries read-only; whole contiguous blocks stay contiguous."""
    unfold_edges(k, pte, nr)
    write = k.arch.pte.write
    k.ops.modify_ptes(pte, write.mask, write.off, nr)
    k.work[WORK_pte_read] += nr
    k.work[WORK_pte_write] += nr


def clear_young_dirty_ptes(k: Arena, pte: int, nr: int, clean: bool) -> None:
    """
    Make nr present entries old and, with ``clean``, clean; a contiguous block has one mark for all.

    So a block at the edge is changed as a whole. Without CONTPTE_BATCH blocks are unfolded.
    """
    if not k.config.contpte_batch:
        unfold_edges(k, pte, nr)
    mask, end = k.cont_nr - 1, pte + nr
    if k.phys[pte] & k.cont_bit:
        pte &= ~mask
    if k.phys[end - 1] & k.cont_bit:
        end = (end - 1 | mask) + 1
    young, dirty = k.arch.pte.young, k.arch.pte.dirty
    clear, bits = young.mask, young.off
    if clean:
        clear, bits = clear | dirty.mask, bits | dirty.off
    k.ops.modify_ptes(pte, clear, bits, end - pte)
    count_work(k, read=end - pte, write=end - pte)


def set_access_flags(k: Arena, pte: int, entry: int) -> None:
    """
    Replace an entry by one with more rights, or with young and dirty set.

    A block that would differ in write permission unfolds; young and dirty become those of all of it.
    """
    read_ptes(k, pte, 1)
    old = k.phys[pte]
    if old == entry:
        return
    if (old ^ entry) & k.arch.pte.write.mask:
        unfold(k, pte)
    elif old & k.cont_bit:
        young, dirty = k.arch.pte.young.mask, k.arch.pte.dirty.mask
        k.ops.modify_ptes(pte & -k.cont_nr, young | dirty, entry & (young | dirty), k.cont_nr)
        count_work(k, read=k.cont_nr, write=k.cont_nr, tlbi=1)
        return
    k.phys[pte] = entry & ~k.cont_bit
    count_work(k, write=1, tlbi=1)


def unfold(k: Arena, pte: int) -> None:
    """Take the contiguous bit from the block of an entry; young and dirty of any are those of all."""
    bit = k.cont_bit
    if not bit or not k.phys[pte] & bit:
        return
    first = pte & -k.cont_nr
    k.ops.modify_ptes(first, bit | _marks(k), young_dirty(k, first, k.cont_nr), k.cont_nr)
    _count_conversion(k, WORK_contpte_unfold)


def _count_conversion(k: Arena, what: int) -> None:
    """Count a block that was cleared entry by entry, flushed and written anew."""
    k.work[what] += 1
    count_work(k, read=k.cont_nr, write=2 * k.cont_nr, tlbi=1)


def _marks(k: Arena) -> int:
    """Return the bits that say young or dirty."""
    return k.arch.pte.young.mask | k.arch.pte.dirty.mask


def young_dirty(k: Arena, pte: int, nr: int) -> int:
    """Return the bits of young and of dirty of an entry that is what any of nr entries is."""
    entries = k.phys[pte : pte + nr].tolist()
    bits = 0
    for attr in (k.arch.pte.young, k.arch.pte.dirty):
        bits |= attr.on if any(e & attr.mask == attr.on for e in entries) else attr.off
    return bits


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
    ignore = _marks(k)
    first = pte - mask
    expected = (entry & ~ignore) - (mask << k.pfn_shift)
    alike = 0
    if k.phys[first] & ~ignore == expected:
        alike = k.ops.folio_pte_batch(first, ignore, k.cont_nr)
    count_work(k, read=max(alike, 1))
    if alike == k.cont_nr:
        k.ops.modify_ptes(first, ignore, k.cont_bit | young_dirty(k, first, k.cont_nr), k.cont_nr)
        _count_conversion(k, WORK_contpte_fold)


def set_access_flags_range(k: Arena, pte: int, nr: int) -> None:
    """Make nr entries of one folio young, dirty and writable; whole contiguous blocks stay contiguous."""
    unfold_edges(k, pte, nr)
    bits = k.arch.pte
    clear = bits.young.mask | bits.dirty.mask | bits.write.mask
    k.ops.modify_ptes(pte, clear, bits.young.on | bits.dirty.on | bits.write.on, nr)
    count_work(k, read=nr, write=nr, tlbi=1)


def clear_ptes_range(k: Arena, pte: int, nr: int) -> None:
    """Make nr entries none, with one invalidation of the TLB for all."""
    clear_full_ptes(k, pte, nr)
    k.work[WORK_tlbi] += 1
