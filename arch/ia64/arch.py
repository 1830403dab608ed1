# SPDX-License-Identifier: GPL-2.0-only
"""
ia64 (Itanium): three levels, with 4K, 8K, 16K or 64K pages.

The three top bits of an address choose one of eight regions, of which the user has five (region 5 holds
the kernel's vmalloc area). The kernel's root table has an eighth for each region.

SIMPLIFIED: an address here is the region number followed by the bits that the tables translate, without
the unused ones between, so that the regions touch. Tables are the same; a program's mappings are laid
into this space as into any other, where a real one has its text in region 2, its data in region 3.

The kernel never had transparent huge pages here: an entry above the last level is the bare address of a
table.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT = 1 << 0
_PRIVILEGE_USER = 0b11 << 7
_LEVELS = ("pgd", "pmd", "pte")

ARCH = ArchParams(
    name="ia64",
    machine="ia64",
    kconfig_symbol="IA64",
    # A region has 4 * page shift - 12 bits; the user has five.
    geometries=(
        Geometry(12, tuple(Level(n, 9) for n in _LEVELS), 39, task_size=5 << 36),
        Geometry(13, tuple(Level(n, 10) for n in _LEVELS), 43, task_size=5 << 40),
        Geometry(14, tuple(Level(n, 11) for n in _LEVELS), 47, task_size=5 << 44),
        Geometry(16, tuple(Level(n, 13) for n in _LEVELS), 55, task_size=5 << 52),
    ),
    pte=PteFormat(
        user=_PRESENT | _PRIVILEGE_USER,
        # A table's entry is its physical address alone; here the present bit makes it one.
        table=_PRESENT,
        present=Attr.bit(0),
        # Access rights, bits 11:9: 0 read, 1 execute too, 2 write too, 3 both.
        write=Attr.bit(10),
        exec=Attr.bit(9),
        young=Attr.bit(5),
        dirty=Attr.bit(6),
        special=Attr.bit(53),  # ours, like the leaf bit: bits 63:53 are the system's
        prot_none=Attr.bit(63),
        leaf=Attr.bit(54),
        pfn_pos=None,
        pfn_bits=50,
    ),
    gfp_zero=True,
    sources={
        "geometries": "Itanium Software Developer's Manual 2, 4.1 (regions); asm/pgtable.h of Linux 6.4",
        "pte": "the same, 4.1.1.5 (translation insertion format); bit 63 as Linux 6.4 uses it",
        "gfp_zero": "asm/page.h of Linux 6.4 (spec 7)",
    },
)
