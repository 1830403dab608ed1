# SPDX-License-Identifier: GPL-2.0-only
"""Conformance checks of page-table entries: their bits, runs of them, contiguous blocks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from virtmm.mm import contpte, layout, mprotect, pgtable
from virtmm.mm.page_alloc import folio_alloc
from virtmm.mm.ranges import PyRanges
from virtmm.mm.vm_flags import VM_EXEC, VM_READ, VM_WRITE
from virtmm.mm.vma import vma_lookup
from virtmm.subject import want

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtmm.arch.params import Attr
    from virtmm.machine import Machine
    from virtmm.mm.arena import Arena
    from virtmm.subject import Subject

ATTRIBUTES = ("write", "young", "dirty", "special", "exec")
# What to look at where an entry is wrong.
_PFN = "look at pfn_pos, pfn_bits and address_shift"
_MARK = "look at its mask, on and off"


def _reads(entry: int, attr: Attr) -> bool:
    return entry & attr.mask == attr.on


def _entries(k: Arena) -> Iterator[tuple[int, dict[str, bool]]]:
    """Yield an entry for each combination of attributes, and the combination."""
    most = k.pfn_mask >> k.pfn_shift
    for prot in (0, VM_READ):
        for values in itertools.product((False, True), repeat=len(ATTRIBUTES)):
            entry = pgtable.mk_pte(k, most // 3, pgtable.vm_get_page_prot(k, prot))
            for name, on in zip(ATTRIBUTES, values, strict=True):
                attr = getattr(k.arch.pte, name)
                entry = entry & ~attr.mask | (attr.on if on else attr.off)
            state = dict(zip(ATTRIBUTES, values, strict=True))
            yield entry, state | {"present": bool(prot), "prot_none": not prot}


def check_round_trips(s: Subject) -> str:
    """Every page frame number comes back, with every protection, and so does each attribute."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, "C_RANGES=n") as m:
            k, most = m.k, m.k.pfn_mask >> m.k.pfn_shift
            for flags in (0, VM_READ, VM_READ | VM_WRITE, VM_READ | VM_EXEC):
                prot = pgtable.vm_get_page_prot(k, flags)
                for pfn in (0, most, *(1 << b for b in range(most.bit_length()))):
                    entry = pgtable.mk_pte(k, pfn, prot)
                    where = f"entry {entry:#x} of {kernel}"
                    want(
                        pgtable.pte_pfn(k, entry) == pfn,
                        f"pte.pfn: {pfn:#x} is lost in {where}; {_PFN}",
                    )
                    field = "present" if flags else "prot_none"
                    want(pgtable.pte_present(k, entry), f"pte.{field}: off in {where}; {_MARK}")
            for entry, state in _entries(k):
                for name, on in state.items():
                    got = _reads(entry, getattr(k.arch.pte, name))
                    want(
                        got == on, f"pte.{name}: {got} instead of {on} in entry {entry:#x}; {_MARK}"
                    )
    return "page numbers, protections, attributes"


def check_algebra(s: Subject) -> str:
    """pte_mkX() sets X and nothing else, as the kernel's debug_vm_pgtable wants it."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, "C_RANGES=n") as m:
            k = m.k
            for entry, state in _entries(k):
                for name, value, call in (
                    ("write", True, pgtable.pte_mkwrite),
                    ("write", False, pgtable.pte_wrprotect),
                    ("young", True, pgtable.pte_mkyoung),
                    ("young", False, pgtable.pte_mkold),
                    ("dirty", True, pgtable.pte_mkdirty),
                    ("dirty", False, pgtable.pte_mkclean),
                    ("special", True, pgtable.pte_mkspecial),
                ):
                    new = call(k, entry)
                    _want_changed(k, call.__name__, entry, new, state | {name: value})
                huge = pgtable.pmd_mkhuge(k, entry)
                where = f"{huge:#x}, pmd_mkhuge({entry:#x}),"
                want(
                    pgtable.pmd_trans_huge(k, huge), f"pte.leaf: {where} reads as a table; {_MARK}"
                )
                want(
                    pgtable.pmd_to_pte(k, huge) == entry,
                    f"pte.leaf: {where} does not go back; {_MARK}",
                )
    return f"{2 << len(ATTRIBUTES)} entries a page size"


def _want_changed(k: Arena, call: str, entry: int, new: int, wanted: dict[str, bool]) -> None:
    """Raise CheckError unless ``new`` reads as wanted, and what nobody asked to change is as in ``entry``."""
    changed = entry ^ new
    for name, attr in k.arch.pte.attributes().items():
        on = wanted.get(name, _reads(entry, attr))
        where = f"pte.{name}: {call}({entry:#x}) gives {new:#x}, bits {changed & attr.mask:#x}"
        want(_reads(new, attr) == on, f"{where}, so that it is {not on}; {_MARK}")
    want(
        pgtable.pte_present(k, new), f"pte.present: {call}({entry:#x}) takes the page away; {_MARK}"
    )
    same = pgtable.pte_pfn(k, new) == pgtable.pte_pfn(k, entry)
    want(same, f"pte.pfn: {call}({entry:#x}) changes it, bits {changed & k.pfn_mask:#x}; {_PFN}")


def _table(k: Arena) -> int:
    pfn = folio_alloc(k, k.table_orders[-1], layout.PG_table, layout.ZONE_TABLE)
    first = pfn << k.table_shift
    k.ops.clear_ptes(first, k.pte_mask + 1)
    return first


def check_set_ptes(s: Subject) -> str:
    """set_ptes() of n is n times set_pte(), in C and in Python."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, "C_RANGES=y") as m:
            k, nr = m.k, m.k.pte_mask + 1
            first, prot = _table(k), pgtable.vm_get_page_prot(m.k, VM_READ | VM_WRITE)
            wanted = [pgtable.pte_mkdirty(k, pgtable.mk_pte(k, 7 + i, prot)) for i in range(nr)]
            for ops, what in ((k.ops, "C"), (PyRanges(k), "Python")):
                ops.clear_ptes(first, nr)
                ops.set_ptes(first, wanted[0], nr)
                for i, entry in enumerate(wanted):
                    got = k.phys[first + i]
                    want(
                        got == entry,
                        f"pte.pfn_pos: set_ptes() in {what} writes {got:#x} as entry {i}, not {entry:#x}; "
                        f"{_PFN}",
                    )
    return "a whole table, C and Python"


def check_contiguous(s: Subject) -> str:
    """Whole blocks fold when they are written, and unfold when an entry of theirs is changed."""
    sizes = dict[int, int]()  # page shift -> entries of a block
    for kernel in s.kernels:
        for setting in s.folding(kernel):
            with s.boot(kernel, setting) as m:
                if m.k.geometry.cont_order:  # another page size has it
                    sizes[m.k.page_shift] = m.k.cont_nr
                    _fold_and_unfold(m)
    for g in s.arch.geometries:
        want(
            not g.cont_order or g.page_shift in sizes,
            f"geometries[{g.page_shift}].cont_order: {g.cont_order}, and no kernel of that page size has "
            f"TRANSPARENT_HUGEPAGE=y and can have {' or '.join(s.contpte)}=y, so that no block is ever "
            "folded; give it one",
        )
    return f"blocks of {', '.join(map(str, sorted(sizes.values())))} entries"


def _want_block(k: Arena, pte: int, first: int, *, folded: bool, marked: bool, what: str) -> None:
    """Raise CheckError unless what is not empty of a block is as wanted, from page ``first`` on."""
    wanted = {"cont": folded, "young": marked, "dirty": marked}
    for i, found in enumerate(k.phys[pte : pte + k.cont_nr].tolist()):
        if not found:
            continue
        for name, on in wanted.items():
            got = _reads(found, k.arch.pte.attributes()[name])
            want(
                got == on,
                f"pte.{name}: {got} in entry {i} of {k.cont_nr}, {found:#x}, {what}; {_MARK}",
            )
        pfn = pgtable.pte_pfn(k, found)
        want(pfn == first + i, f"pte.cont: {what} changes pfn {first + i:#x} to {pfn:#x}; {_PFN}")


def _fold_and_unfold(m: Machine) -> None:
    k, nr, step = m.k, m.k.cont_nr, 1 << m.k.pfn_shift
    table = _table(k)
    folio = folio_alloc(k, k.geometry.cont_order, layout.PG_table, layout.ZONE_TABLE)
    entry = pgtable.mk_pte(k, folio, pgtable.vm_get_page_prot(k, VM_READ))

    def block_is(folded: bool, what: str, first: int = folio) -> None:
        _want_block(k, table, first, folded=folded, marked=False, what=what)

    for last in sorted({0, nr // 2, nr - 1}):
        contpte.set_ptes(k, table, entry, nr)
        block_is(True, "after set_ptes() of a whole block")
        contpte.ptep_clear(k, table + last)
        block_is(False, f"after ptep_clear() of entry {last}")
        k.ops.clear_ptes(table, nr)
    for i in range(nr):
        block_is(False, f"after set_pte() of {i} entries")
        contpte.set_pte(k, table + i, entry + i * step)
    block_is(k.config.contpte_fold, "after set_pte() of each")
    contpte.set_access_flags(k, table, pgtable.pte_mkwrite(k, k.phys[table]))
    block_is(False, "after pte_mkwrite() of the first")
    k.ops.clear_ptes(table, nr)
    contpte.set_ptes(k, table, entry + step, nr)
    block_is(False, "after set_ptes() of pages that are not aligned", folio + 1)
    k.ops.clear_ptes(table, nr)
    m.spawn(1)
    m.mmap(1, k.pmd_size, nr * m.page_size)
    for marked in sorted({0, nr // 2 - 1, nr - 2}):
        _share_marks(k, table, folio, marked, vma_lookup(k, m._mm(1), k.pmd_size))


def _share_marks(k: Arena, table: int, folio: int, marked: int, vma: int) -> None:
    """Raise CheckError unless a block is young and dirty when the hardware made one entry so."""
    nr, step = k.cont_nr, 1 << k.pfn_shift
    entry = pgtable.mk_pte(k, folio, pgtable.vm_get_page_prot(k, VM_READ))

    def mark() -> None:
        k.phys[table + marked] = pgtable.pte_mkdirty(
            k, pgtable.pte_mkyoung(k, k.phys[table + marked])
        )

    def block_is(folded: bool, what: str) -> None:
        what = f"after {what}, entry {marked} young and dirty"
        _want_block(k, table, folio, folded=folded, marked=True, what=what)
        k.ops.clear_ptes(table, nr)

    contpte.set_ptes(k, table, entry, nr)
    mark()
    contpte.ptep_clear(k, table + nr - 1)
    block_is(False, "ptep_clear() of the last")
    if k.config.contpte_fold:
        k.ops.set_ptes(table, entry, nr - 1)
        mark()
        contpte.set_pte(k, table + nr - 1, entry + (nr - 1) * step)
        block_is(True, "set_pte() of the last")
    k.ops.set_ptes(table, entry, nr)
    mark()
    mprotect.change_batch(k, vma, table, nr)
    block_is(True, "change_batch() of all")
