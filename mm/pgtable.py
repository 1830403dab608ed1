# SPDX-License-Identifier: GPL-2.0-only
"""
Page tables: real tables of the architecture's levels and entry bits, in pages of physical memory, a
table larger than a page in several that follow one another.

A place in a table is an index into ``k.phys`` (8-byte entries). Entries are ints; the predicates
and changes have the kernel's names and take the architecture's bits from ``k.arch.pte``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD
from .arena import PAGE_RECORD as _P
from .layout import (
    MM_PGD,
    MM_PGTABLES,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_ORDER,
    ZONE_TABLE,
    EV_pt_page_alloc,
    EV_pt_page_free,
    PG_table,
    VM_nr_page_table_pages,
    VM_oom_kill,
)
from .page_alloc import PAGE_ALLOC_COSTLY_ORDER, folio_alloc, folio_free
from .vm_flags import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..arch.params import Attr
    from .arena import Arena


def _is(entry: int, attr: Attr) -> bool:
    return entry & attr.mask == attr.on


def _set(entry: int, attr: Attr) -> int:
    return entry & ~attr.mask | attr.on


def _clear(entry: int, attr: Attr) -> int:
    return entry & ~attr.mask | attr.off


def pte_pfn(k: Arena, pte: int) -> int:
    """Return the page frame number in an entry."""
    return (pte & k.pfn_mask) >> k.pfn_shift


def pte_present(k: Arena, pte: int) -> bool:
    """Return whether the entry maps a page; a page of a PROT_NONE mapping counts."""
    bits = k.arch.pte
    return _is(pte, bits.present) or (pte != 0 and _is(pte, bits.prot_none))


def pte_accessible(k: Arena, pte: int, write: bool) -> bool:
    """Return whether the hardware would let user code read, or write, through the entry."""
    bits = k.arch.pte
    return _is(pte, bits.present) and (not write or _is(pte, bits.write))


def pte_write(k: Arena, pte: int) -> bool:
    """Return whether the entry is writable."""
    return _is(pte, k.arch.pte.write)


def pte_dirty(k: Arena, pte: int) -> bool:
    """Return whether the entry is dirty."""
    return _is(pte, k.arch.pte.dirty)


def pte_young(k: Arena, pte: int) -> bool:
    """Return whether the entry was accessed."""
    return _is(pte, k.arch.pte.young)


def pte_special(k: Arena, pte: int) -> bool:
    """Return whether the entry maps a page that has no rmap: the zero page."""
    return _is(pte, k.arch.pte.special)


def pte_mkwrite(k: Arena, pte: int) -> int:
    """Return the entry made writable."""
    return _set(pte, k.arch.pte.write)


def pte_wrprotect(k: Arena, pte: int) -> int:
    """Return the entry made read-only."""
    return _clear(pte, k.arch.pte.write)


def pte_mkdirty(k: Arena, pte: int) -> int:
    """Return the entry made dirty."""
    return _set(pte, k.arch.pte.dirty)


def pte_mkclean(k: Arena, pte: int) -> int:
    """Return the entry made clean."""
    return _clear(pte, k.arch.pte.dirty)


def pte_mkyoung(k: Arena, pte: int) -> int:
    """Return the entry made accessed."""
    return _set(pte, k.arch.pte.young)


def pte_mkold(k: Arena, pte: int) -> int:
    """Return the entry made not accessed."""
    return _clear(pte, k.arch.pte.young)


def pte_mkspecial(k: Arena, pte: int) -> int:
    """Return the entry made special."""
    return _set(pte, k.arch.pte.special)


def pte_modify(k: Arena, pte: int, prot: int) -> int:
    """Return the entry with the protection of ``prot``; pfn, young, dirty and special stay."""
    bits = k.arch.pte
    keep = k.pfn_mask | bits.young.mask | bits.dirty.mask | bits.special.mask
    return pte & keep | prot & ~keep


def mk_pte(k: Arena, pfn: int, prot: int) -> int:
    """Return an entry for a page, neither young nor dirty unless ``prot`` says so."""
    return pfn << k.pfn_shift | prot


def vm_get_page_prot(k: Arena, flags: int) -> int:
    """
    Return the entry bits of a page in a VMA with these VM_* flags, old, clean and without pfn.

    A private writable mapping gets read-only entries; the fault decides who may write (copy on
    write).
    """
    bits = k.arch.pte
    prot = bits.user
    for attr in (bits.young, bits.dirty, bits.special, bits.prot_none, bits.exec, bits.write):
        prot = _clear(prot, attr)
    if not flags & (VM_READ | VM_WRITE | VM_EXEC):
        return _set(_clear(prot, bits.present), bits.prot_none)
    if flags & VM_EXEC:
        prot = _set(prot, bits.exec)
    if flags & VM_WRITE and flags & VM_SHARED:
        prot = _set(prot, bits.write)
    return prot


def pte_alloc_one(k: Arena, mm: int) -> int:
    """Return a zeroed last-level table accounted to mm; 0 when memory is short."""
    return _table_alloc(k, mm, k.table_orders[-1])


def _table_alloc(k: Arena, mm: int, order: int) -> int:
    """
    Return the first pfn of a zeroed table of 2**order pages accounted to mm; 0 without memory.

    SIMPLIFIED: as work, a table of several pages counts as that many tables of one page.
    """
    pfn = folio_alloc(k, order, PG_table, ZONE_TABLE)
    if not pfn:
        # The kernel kills for it as it does for one page, unless the table is larger than usual.
        k.vmstat[VM_oom_kill] += 0 < order <= PAGE_ALLOC_COSTLY_ORDER
        return 0
    nr = 1 << order
    if k.config.phys_backing:  # else only tables are ever written, and a freed table is all none
        k.ops.clear_huge_page(pfn, nr, 0)
    k.mm[mm * MM_RECORD + MM_PGTABLES] += nr
    k.vmstat[VM_nr_page_table_pages] += nr
    k.event[EV_pt_page_alloc * NR_ORDERS] += nr
    return pfn


def pte_free(k: Arena, mm: int, pfn: int) -> None:
    """Free a page table of mm, of any level; its entries must all be none."""
    nr = 1 << k.page[pfn * _P + PAGE_ORDER]
    k.mm[mm * MM_RECORD + MM_PGTABLES] -= nr
    k.vmstat[VM_nr_page_table_pages] -= nr
    k.event[EV_pt_page_free * NR_ORDERS] += nr
    k.page[pfn * _P + PAGE_FLAGS] = 0
    folio_free(k, pfn, ZONE_TABLE)


def pgd_alloc(k: Arena, mm: int) -> bool:
    """Give mm a root table; False when memory is short."""
    pfn = _table_alloc(k, mm, k.table_orders[0])
    k.mm[mm * MM_RECORD + MM_PGD] = pfn
    return pfn != 0


def pgd_free(k: Arena, mm: int) -> None:
    """Free mm's root table; everything below it must be gone."""
    pte_free(k, mm, k.mm[mm * MM_RECORD + MM_PGD])
    k.mm[mm * MM_RECORD + MM_PGD] = 0


def pmd_offset(k: Arena, mm: int, address: int) -> int:
    """Return the place of address's PMD entry; 0 when the table it would be in is missing."""
    phys, table_shift = k.phys, k.table_shift
    table = k.mm[mm * MM_RECORD + MM_PGD]
    for shift, mask in k.upper_levels:
        entry = phys[(table << table_shift) + (address >> shift & mask)]
        if not entry:
            return 0
        table = (entry & k.pfn_mask) >> k.pfn_shift
    return (table << table_shift) + (address >> k.pmd_shift & k.pmd_mask)


def pmd_alloc(k: Arena, mm: int, address: int) -> int:
    """As pmd_offset(), making missing tables; 0 when memory is short (tables made stay)."""
    phys, table_shift = k.phys, k.table_shift
    table = k.mm[mm * MM_RECORD + MM_PGD]
    for shift, mask in k.upper_levels:
        place = (table << table_shift) + (address >> shift & mask)
        entry = phys[place]
        if not entry:
            pfn = _table_alloc(k, mm, k.order_below[shift])
            if not pfn:
                return 0
            entry = populate(k, place, pfn)
        table = (entry & k.pfn_mask) >> k.pfn_shift
    return (table << table_shift) + (address >> k.pmd_shift & k.pmd_mask)


def populate(k: Arena, place: int, table: int) -> int:
    """Let an entry point to a new table; return the entry."""
    entry = table << k.pfn_shift | k.arch.pte.table
    k.phys[place] = entry
    k.phys[table << k.table_shift] = 0  # it is, but a first read would cost the host a fault more
    return entry


def pmd_trans_huge(k: Arena, pmd: int) -> bool:
    """Return whether an entry above the last level maps memory itself."""
    return pmd != 0 and _is(pmd, k.arch.pte.leaf)


def pmd_mkhuge(k: Arena, pte: int) -> int:
    """Return a last-level entry as one that maps a whole PMD's memory."""
    return _set(pte, k.arch.pte.leaf)


def pmd_to_pte(k: Arena, pmd: int) -> int:
    """Return the entry of the first page of what a huge entry maps."""
    leaf = k.arch.pte.leaf
    return pmd if _is(k.arch.pte.user, leaf) else _clear(pmd, leaf)


def pte_in_table(k: Arena, pmd: int, address: int) -> int:
    """Return the place of address's entry in the table that ``pmd`` points to."""
    table = (pmd & k.pfn_mask) >> k.pfn_shift
    return (table << k.table_shift) + (address >> k.page_shift & k.pte_mask)


def pte_offset_map(k: Arena, mm: int, address: int) -> int:
    """Return the place of the last-level entry of address; 0 without a table (missing, or a huge entry)."""
    place = pmd_offset(k, mm, address)
    pmd = k.phys[place] if place else 0
    leaf = k.arch.pte.leaf
    if not pmd or pmd & leaf.mask == leaf.on:
        return 0
    table = (pmd & k.pfn_mask) >> k.pfn_shift
    return (table << k.table_shift) + (address >> k.page_shift & k.pte_mask)


def pte_alloc_map(k: Arena, mm: int, address: int) -> int:
    """As pte_offset_map(), making missing tables; 0 when memory is short, or for a huge entry."""
    place = pmd_alloc(k, mm, address)
    if not place:
        return 0
    pmd = k.phys[place]
    if not pmd:
        pfn = pte_alloc_one(k, mm)
        if not pfn:
            return 0
        pmd = populate(k, place, pfn)
    elif pmd_trans_huge(k, pmd):
        return 0
    return pte_in_table(k, pmd, address)


def leaf_offset(k: Arena, mm: int, address: int) -> int:
    """Return the place of the entry, huge or last-level, that the hardware finds for address; 0 = none."""
    place = pmd_offset(k, mm, address)
    pmd = k.phys[place] if place else 0
    if not pmd:
        return 0
    leaf = k.arch.pte.leaf
    if pmd & leaf.mask == leaf.on:
        return place
    table = (pmd & k.pfn_mask) >> k.pfn_shift
    return (table << k.table_shift) + (address >> k.page_shift & k.pte_mask)


def next_pmd(k: Arena, mm: int, address: int, end: int) -> tuple[int, int]:
    """
    Return (address, place) of the first PMD entry in [address, end) that is not none; (end, 0)
    without one.

    The address is where the entry's part of the range begins.
    """
    while address < end:
        table = k.mm[mm * MM_RECORD + MM_PGD]
        for shift, mask in k.levels:
            index = address >> shift & mask
            place = (table << k.table_shift) + index
            entry = k.phys[place]
            if not entry:
                most = min(mask + 1 - index, (end - 1 >> shift) - (address >> shift) + 1)
                address = (address >> shift) + k.ops.check_ptes_none(place, most) << shift
                break
            table = pte_pfn(k, entry)
        else:
            return address, place
    return end, 0


def pmd_addr_end(k: Arena, address: int, end: int) -> int:
    """Return where the last-level table of address ends, or ``end`` if that is nearer."""
    return min(((address >> k.pmd_shift) + 1) << k.pmd_shift, end)


def free_pgd_range(k: Arena, mm: int, address: int, end: int, floor: int, ceiling: int) -> None:
    """
    Free the tables under [address, end) that lie wholly inside [floor, ceiling).

    Mirrors: mm/memory.c free_pgd_range(). floor and ceiling are where the neighbouring VMAs end and
    begin (ceiling 0 = none above): a table that could hold their pages stays. Entries below must
    all be none.
    """
    # TASK_SIZE may lie within the range of a table, which nobody else has then.
    ceiling = ceiling or 1 << k.geometry.va_bits
    _free_range(k, mm, k.mm[mm * MM_RECORD + MM_PGD], 0, address, end, floor, ceiling)


def _free_range(
    k: Arena, mm: int, table: int, depth: int, address: int, end: int, floor: int, ceiling: int
) -> None:
    """Free what is freeable below one table of k.levels[depth]; the table itself stays."""
    shift, mask = k.levels[depth]
    step = 1 << shift
    at = address >> shift << shift
    while at < end:
        place = (table << k.table_shift) + (at >> shift & mask)
        entry = k.phys[place]
        if entry and not pmd_trans_huge(k, entry):
            child = pte_pfn(k, entry)
            if depth + 1 < len(k.levels):
                low, high = max(at, address), min(at + step, end)
                _free_range(k, mm, child, depth + 1, low, high, floor, ceiling)
            if at >= floor and at + step <= ceiling:
                k.phys[place] = 0
                pte_free(k, mm, child)
        at += step


def walk_page_table(
    k: Arena, mm: int, start: int = 0, end: int = 0
) -> Iterator[tuple[int, int, bool]]:
    """Yield (address, entry, is it huge) of what mm maps in [start, end), ascending; all of it by default."""
    end = end or k.task_size
    address, place = next_pmd(k, mm, start, end)
    while place:
        stop = pmd_addr_end(k, address, end)
        pmd = k.phys[place]
        if pmd_trans_huge(k, pmd):
            yield address & -k.pmd_size, pmd, True
        else:
            first = pte_in_table(k, pmd, address)
            nr = stop - address >> k.page_shift
            for i, entry in enumerate(k.phys[first : first + nr].tolist()):
                if entry:
                    yield address + (i << k.page_shift), entry, False
        address, place = next_pmd(k, mm, stop, end)
