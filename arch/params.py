# SPDX-License-Identifier: GPL-2.0-only
"""
The whole contract of an architecture: what ``arch/<name>/arch.py`` fills in.

An architecture is data. ``arch.py`` binds one global, ``ARCH = ArchParams(...)``, and has no logic.
Everything is checked when the object is made; a wrong value raises ArchError with the field, the value
and what was expected. Bit numbers and masks are those of the hardware page-table format.

Tiers, of which only the first must be there (``virtmm arch-check`` says which are):

    geometry    Geometry and PteFormat; Kconfig gives PAGE_SHIFT and ARCH_FORCE_MAX_ORDER
    THP         Kconfig selects HAVE_ARCH_TRANSPARENT_HUGEPAGE; ARCH_FORCE_MAX_ORDER reaches the PMD's order
    contiguous  PteFormat.cont and Geometry.cont_order; a symbol of Kconfig selects CONTPTE; needs THP
    costs       costs.csv in the folder, measured on that machine (Documentation/costs.md)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from reprlib import Repr
from types import MappingProxyType
from typing import Any, get_args, get_origin, get_type_hints

ENTRY_BITS = 64
# An entry takes 8 bytes, also where the machine's has 4.
ENTRY_SHIFT = 3
# The largest table that a kernel has: 64K, with 4K pages (the root of powerpc's radix tree).
MAX_TABLE_ORDER = 4
# Address arithmetic of the core is 64 bits wide, ends of mappings included.
MAX_VA_BITS = 63
# Less than this, in PMD entries and in pages, has no room for a program, its heap and its stack.
LEAST_PMDS = 4
LEAST_PAGES = 1024
LEVEL_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
# Type of a field -> what a value of another type is not.
_KINDS = {
    "bool": "True or False",
    "int": "an integer",
    "str": "a string",
    "tuple": "a tuple; write (..., ...), and of one (...,) with the comma",
    "Mapping": "a dict, field to source",
    "Attr": "an Attr; write Attr.bit(n)",
    "Level": "a Level; write Level(name, bits)",
    "Geometry": "a Geometry",
    "PteFormat": "a PteFormat",
}
# Characters of a message; what is between its ends is left out of a longer one.
_MOST, _END = 600, 200
# Of a value of any type, also of one that is huge or that raises when it is to be shown.
_shown = Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = _MOST // 2


def one_line(text: str) -> str:
    """Return a text as messages show it: one printable line, and no endless one."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= _MOST else f"{line[: _MOST - _END]} ... {line[-_END:]}"


class ArchError(Exception):
    """An architecture description is missing or contradicts itself; one line says how."""

    def __str__(self) -> str:
        """Return the line."""
        return one_line(super().__str__())


def _bit(number: int) -> int:
    if not 0 <= number < ENTRY_BITS:
        raise ValueError(f"bit {number} is not one of 0 to {ENTRY_BITS - 1}")
    return 1 << number


def _bits(mask: int) -> list[int]:
    """Return the numbers of the bits that are 1."""
    return [b for b in range(ENTRY_BITS) if mask >> b & 1]


def _check_types(where: str, thing: object) -> None:
    """Raise ArchError, naming field and value, unless each field has the type that it is declared with."""
    for name, kind in get_type_hints(type(thing)).items():
        value = getattr(thing, name)
        if type(None) in get_args(kind):
            if value is None:
                continue
            kind = get_args(kind)[0]
        _check_type(f"{where}.{name}", value, kind)


def _check_type(where: str, value: object, kind: Any) -> None:
    """Raise ArchError unless a value is exactly of a type: True is no number, and 5.0 none."""
    plain = get_origin(kind) or kind
    if not (isinstance(value, plain) if plain is Mapping else type(value) is plain):
        raise ArchError(f"{where}: {_shown.repr(value)} is not {_KINDS[plain.__name__]}")
    if isinstance(value, int) and value.bit_length() > ENTRY_BITS:
        raise ArchError(f"{where}: {value:#x} is not a {ENTRY_BITS}-bit value")
    if is_dataclass(value):
        _check_types(where, value)
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            _check_type(f"{where}[{i}]", item, get_args(kind)[0])
    if isinstance(value, Mapping):
        for key, text in value.items():
            _check_type(f"{where}, a key", key, str)
            _check_type(f"{where}[{key!r}]", text, str)


@dataclass(frozen=True)
class Attr:
    """
    One attribute of a page-table entry, as the bits that say it is on or off.

    The attribute is on iff ``pte & mask == on``. Switching it writes ``on`` or ``off`` into the mask.
    A plain bit is ``Attr.bit(n)``; a bit with the opposite sense ``Attr.inverted(n)``; arm64's write
    permission, which is two bits of opposite sense, is written out.
    """

    mask: int
    on: int
    off: int = 0

    @staticmethod
    def bit(number: int) -> Attr:
        """Attribute that is on when bit ``number`` is 1; ValueError when an entry has no such bit."""
        return Attr(_bit(number), _bit(number))

    @staticmethod
    def inverted(number: int) -> Attr:
        """Attribute that is on when bit ``number`` is 0; ValueError when an entry has no such bit."""
        return Attr(_bit(number), 0, _bit(number))

    def check(self, where: str) -> None:
        """Raise ArchError unless on and off are two different values inside the mask."""
        if not 0 < self.mask < 1 << ENTRY_BITS:
            raise ArchError(f"{where}: mask {self.mask:#x} is not a {ENTRY_BITS}-bit mask")
        if (self.on | self.off) & ~self.mask or self.on == self.off:
            raise ArchError(
                f"{where}: on {self.on:#x} and off {self.off:#x} must differ inside mask {self.mask:#x}"
            )


@dataclass(frozen=True)
class PteFormat:
    """
    The bits of a page-table entry, the same at every level.

    Each attribute has bits of its own. Only present and prot_none may share some, as they do where the
    two are one field of the machine's, and ``user`` has bits of present, prot_none and leaf.

    Attributes:
        user: bits set in every user leaf entry besides the attributes below (type, cacheability, user).
            From the manual, or from what the kernel calls PAGE_NONE to PAGE_SHARED_EXEC (asm/pgtable.h).
        table: bits set in an entry that points to the next level (pmd_populate()).
        present: the entry maps something; must be on in ``user`` and ``table`` alike.
        write, young, dirty, special: as pte_write(), pte_young(), pte_dirty(), pte_special().
        exec: user code may be fetched.
        prot_none: marks a present page of a PROT_NONE mapping (``present`` is off then).
        leaf: at a level above the last, the entry maps memory itself rather than a table. Where
            ``user`` reads as a leaf already, an entry is the same at every level.
        cont: the entry belongs to a block of contiguous ones, bits that are 1 then; None where there is none.
        pfn_pos: bit where the page frame number starts; None = at the page shift (physical address).
        pfn_bits: how many bits the physical address has (pfn_pos None) or the pfn field has.
        address_shift: by how many bits the physical address is moved up (pfn_pos None).
    """

    user: int
    table: int
    present: Attr
    write: Attr
    young: Attr
    dirty: Attr
    special: Attr
    exec: Attr
    prot_none: Attr
    leaf: Attr
    pfn_pos: int | None
    pfn_bits: int
    cont: Attr | None = None
    address_shift: int = 0

    def attributes(self) -> dict[str, Attr]:
        """Return the named attributes, in order of declaration."""
        return {name: a for name, a in self.__dict__.items() if isinstance(a, Attr)}

    def pfn_mask(self, page_shift: int) -> int:
        """Return the mask of the pfn field for a base page of 2**page_shift bytes."""
        if self.pfn_pos is None:
            return (1 << self.pfn_bits) - (1 << page_shift) << self.address_shift
        return ((1 << self.pfn_bits) - 1) << self.pfn_pos

    def pfn_shift(self, page_shift: int) -> int:
        """Return the bit where the pfn starts."""
        return page_shift + self.address_shift if self.pfn_pos is None else self.pfn_pos

    def check(self, where: str, page_shift: int) -> None:
        """Raise ArchError, naming the field, the value and the bit, when fields overlap or do not fit."""
        self._check_pfn(where, page_shift)
        fields = self.attributes()
        for name, attr in fields.items():
            attr.check(f"{where}.{name}")
        if (cont := self.cont) and (cont.on != cont.mask or cont.off):
            raise ArchError(
                f"{where}.cont: on {cont.on:#x}, off {cont.off:#x} of mask {cont.mask:#x}; "
                "they must be bits that are 1 when on"
            )
        if not self.present.on:
            raise ArchError(
                f"{where}.present: on {self.present.on:#x}, so that an empty entry, 0, is present; "
                "take a bit that is 1 in every entry"
            )
        pfn = dict.fromkeys(_bits(self.pfn_mask(page_shift)), "pfn")
        marks = dict(pfn)
        for name in ("present", "prot_none", "leaf"):
            mask = fields.pop(name).mask
            _check_free(f"{where}.{name}", mask, marks if name == "leaf" else pfn)
            marks |= dict.fromkeys(_bits(mask), name)
        for name in ("user", "table"):
            value = getattr(self, name)
            if value < 0:
                raise ArchError(f"{where}.{name}: {value:#x} is not a {ENTRY_BITS}-bit value")
            _check_free(f"{where}.{name}", value, pfn)
            if value & self.present.mask != self.present.on:
                raise ArchError(
                    f"{where}.{name}: {value:#x} is not present; "
                    f"bits {self.present.mask:#x} must be {self.present.on:#x}"
                )
        taken = dict.fromkeys(_bits(self.user), "user") | marks
        for name, attr in fields.items():
            _check_free(f"{where}.{name}", attr.mask, taken)
            taken |= dict.fromkeys(_bits(attr.mask), name)
        if self.table & self.leaf.mask == self.leaf.on:
            raise ArchError(
                f"{where}.table: {self.table:#x} reads as a leaf; "
                f"bits {self.leaf.mask:#x} must be {self.leaf.off:#x}"
            )
        self._check_none(where)

    def _check_pfn(self, where: str, page_shift: int) -> None:
        if self.pfn_pos is not None and not 0 <= self.pfn_pos < ENTRY_BITS:
            raise ArchError(
                f"{where}.pfn_pos: {self.pfn_pos} is no bit of an entry, 0 to {ENTRY_BITS - 1}; "
                "None = at the page shift"
            )
        if not 0 <= self.address_shift < ENTRY_BITS:
            raise ArchError(
                f"{where}.address_shift: {self.address_shift} bits, 0 to {ENTRY_BITS - 1} can be"
            )
        least = LEAST_PAGES.bit_length() - 1 + (page_shift if self.pfn_pos is None else 0)
        if self.pfn_bits < least:
            raise ArchError(
                f"{where}.pfn_bits: {self.pfn_bits} bits do not name {LEAST_PAGES} pages of "
                f"2**{page_shift} bytes; at least {least}"
            )
        if self.pfn_mask(page_shift) >> ENTRY_BITS:
            start = self.address_shift if self.pfn_pos is None else self.pfn_pos
            raise ArchError(
                f"{where}.pfn_bits: {self.pfn_bits} reach beyond bit {ENTRY_BITS - 1}; "
                f"at most {ENTRY_BITS - start}"
            )

    def _check_none(self, where: str) -> None:
        """A present entry and one of a PROT_NONE mapping are told from one another."""
        present, none = self.present, self.prot_none
        if not (self.user & ~none.mask | none.off) & present.mask == present.on:
            raise ArchError(
                f"{where}.prot_none: off {none.off:#x} is not present; keep {present.on:#x} in it"
            )
        if wrong := _bits((self.user ^ none.off) & none.mask):
            raise ArchError(
                f"{where}.user: {self.user:#x} does not say that prot_none is off; "
                f"bit {wrong[0]} must be {none.off >> wrong[0] & 1}"
            )
        off = self.user & ~present.mask | present.off
        if (off & ~none.mask | none.on) & present.mask == present.on:
            raise ArchError(
                f"{where}.prot_none: on {none.on:#x} is present too; it must not have {present.on:#x}"
            )


def _check_free(where: str, mask: int, taken: dict[int, str]) -> None:
    """Raise ArchError when a bit of a field is another's; ``taken`` is bit -> field."""
    for b in _bits(mask):
        if b in taken:
            raise ArchError(f"{where}: bit {b} overlaps {taken[b]}; give one of them another bit")


@dataclass(frozen=True)
class Level:
    """One level of the page table: its kernel name (pgd, p4d, pud, pmd, pte) and index bits."""

    name: str
    bits: int


@dataclass(frozen=True)
class Geometry:
    """
    The page table for one base page size.

    Attributes:
        page_shift: log2 of the base page in bytes (PAGE_SHIFT).
        levels: from the root to ``pte``; the last two must be named ``pmd`` and ``pte``. Index bits are
            log2 of PTRS_PER_PGD to PTRS_PER_PTE; folded levels are left out.
        va_bits: bits of a user address that the table translates: page_shift and all index bits, at
            most 63.
        cont_order: log2 of the last-level entries in a contiguous block (CONT_PTES); 0 = none.
        task_size: first address in bytes that no user mapping reaches (TASK_SIZE); 0 = 2**va_bits.
    """

    page_shift: int
    levels: tuple[Level, ...]
    va_bits: int
    cont_order: int = 0
    task_size: int = 0

    @property
    def pmd_order(self) -> int:
        """HPAGE_PMD_ORDER: log2 of the base pages that one PMD entry covers."""
        return self.levels[-1].bits

    def table_order(self, depth: int) -> int:
        """
        Return log2 of the pages that a table of ``levels[depth]`` takes.

        SIMPLIFIED: a table smaller than a page takes a whole one.
        """
        return max(0, self.levels[depth].bits + ENTRY_SHIFT - self.page_shift)

    def check(self, where: str) -> None:
        """Raise ArchError when the levels do not add up."""
        if not 12 <= self.page_shift <= 16:
            raise ArchError(f"{where}.page_shift: {self.page_shift} is not 12 to 16")
        names = [lv.name for lv in self.levels]
        if names != [n for n in LEVEL_NAMES if n in names]:
            raise ArchError(
                f"{where}.levels: {', '.join(names)} are not in the order "
                f"{', '.join(LEVEL_NAMES)}, each once; folded levels are left out"
            )
        if len(self.levels) < 2 or [lv.name for lv in self.levels[-2:]] != ["pmd", "pte"]:
            raise ArchError(f"{where}.levels: the last two levels must be pmd and pte")
        for lv in self.levels:
            most = self.page_shift - ENTRY_SHIFT + MAX_TABLE_ORDER
            if not 1 <= lv.bits <= most:
                raise ArchError(
                    f"{where}.levels.{lv.name}: {lv.bits} bits do not fit a table of "
                    f"{1 << MAX_TABLE_ORDER} pages (at most {most})"
                )
        if self.pmd_order < 2:
            raise ArchError(
                f"{where}.levels.pte: 1 bit makes a huge page of 2 pages; at least 4, so 2 bits"
            )
        if not 0 <= self.cont_order <= self.pmd_order:
            log2 = self.cont_order.bit_length() - 1
            meant = (
                f"; {self.cont_order} entries are {log2}" if self.cont_order == 1 << log2 else ""
            )
            what = "below 0" if self.cont_order < 0 else "larger than a table"
            raise ArchError(
                f"{where}.cont_order: {self.cont_order} is {what}, 0 to {self.pmd_order}{meant}"
            )
        total = self.page_shift + sum(lv.bits for lv in self.levels)
        if total != self.va_bits:
            raise ArchError(
                f"{where}: page shift and levels sum to {total}, va_bits is {self.va_bits}; "
                "correct one of them"
            )
        if self.va_bits > MAX_VA_BITS:
            raise ArchError(
                f"{where}.va_bits: {self.va_bits}, user addresses have at most {MAX_VA_BITS} bits; "
                "leave out a level, or index bits of the first"
            )
        if self.task_size % (1 << self.page_shift) or not 0 <= self.task_size <= 1 << self.va_bits:
            raise ArchError(
                f"{where}.task_size: {self.task_size:#x} is not whole pages up to 2**{self.va_bits}"
            )
        end, name = (self.task_size, "task_size") if self.task_size else (1 << total, "va_bits")
        least = max(LEAST_PMDS << self.pmd_order, LEAST_PAGES) << self.page_shift
        if end < least:
            raise ArchError(
                f"{where}.{name}: user addresses end at {end:#x}, a program needs {least:#x} "
                f"({LEAST_PMDS} PMD entries and {LEAST_PAGES} pages); give it more"
            )


@dataclass(frozen=True)
class ArchParams:
    """
    An architecture.

    Attributes:
        name: SRCARCH, the folder under arch/.
        machine: what uname -m says there.
        kconfig_symbol: the symbol that names the architecture in Kconfig (ARM64, X86_64).
        geometries: one per base page size, smallest first.
        pte: the entry format.
        gfp_zero: vma_alloc_zeroed_movable_folio() leaves zeroing to the allocator (__GFP_ZERO), which
            does it in ascending order; else it is clear_huge_page()'s, the faulting page last.
        gfp_zerotags: memory has tags. PROT_MTE asks for them, and the allocator clears them with the
            page (__GFP_ZEROTAGS).
        reference: commands take this architecture where none is named, and its cost figures where an
            architecture has none of its own; one in the tree is it.
        sources: field -> where the number comes from, for whoever checks it: at least "geometries" and
            "pte", the manual and the kernel's file with its release.
    """

    name: str
    machine: str
    kconfig_symbol: str
    geometries: tuple[Geometry, ...]
    pte: PteFormat
    gfp_zero: bool = False
    gfp_zerotags: bool = False
    reference: bool = False
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Check every field; raises ArchError with field and value."""
        _check_type("ARCH.name", self.name, str)
        _check_types(one_line(self.name), self)
        for word in ("name", "machine", "kconfig_symbol"):
            value = getattr(self, word)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
                raise ArchError(
                    f"{self.name}.{word}: {value!r} is not a word of letters and digits"
                )
        if not self.geometries:
            raise ArchError(f"{self.name}.geometries: empty; name at least one base page size")
        shifts = [g.page_shift for g in self.geometries]
        if shifts != sorted(set(shifts)):
            raise ArchError(f"{self.name}.geometries: page shifts {shifts} are not ascending")
        if self.gfp_zerotags and not self.gfp_zero:
            raise ArchError(f"{self.name}.gfp_zerotags: needs gfp_zero, tags go with the contents")
        for g in self.geometries:
            where = f"{self.name}.geometries[{g.page_shift}]"
            g.check(where)
            if g.cont_order and self.pte.cont is None:
                raise ArchError(
                    f"{where}.cont_order: {g.cont_order} needs a bit, pte.cont; give it, or 0 here"
                )
            self.pte.check(f"{self.name}.pte", g.page_shift)

    def geometry(self, page_shift: int) -> Geometry:
        """Return the geometry for a base page of 2**page_shift bytes; ArchError when it has none."""
        for g in self.geometries:
            if g.page_shift == page_shift:
                return g
        have = ", ".join(str(g.page_shift) for g in self.geometries)
        raise ArchError(
            f"{self.name}.geometries: PAGE_SHIFT={page_shift} of Kconfig is none of their page shifts, "
            f"{have}; make them agree"
        )
