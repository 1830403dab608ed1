# SPDX-License-Identifier: GPL-2.0-only
"""
MIPS64 release 2 and newer (Octeon, Loongson 3): 40-bit addresses in 4K, 16K or 64K pages.

With 4K pages the root has 1024 entries in two pages. With 64K pages two levels do: the root's entries are
the PMD's.

SIMPLIFIED: the kernel can have 48-bit addresses (MIPS_VA_BITS_48), with a larger root or a level more. Here
a page size has one layout.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT, _NO_READ = 1 << 0, 1 << 7
_CACHED = 3 << 11
_ACCESS = _PRESENT | _NO_READ
_TASK_SIZE = 1 << 40

ARCH = ArchParams(
    name="mips",
    machine="mips64",
    kconfig_symbol="MIPS",
    geometries=(
        Geometry(12, (Level("pgd", 10), Level("pmd", 9), Level("pte", 9)), 40),
        Geometry(14, tuple(Level(n, 11) for n in ("pgd", "pmd", "pte")), 47, task_size=_TASK_SIZE),
        Geometry(16, (Level("pmd", 13), Level("pte", 13)), 42, task_size=_TASK_SIZE),
    ),
    pte=PteFormat(
        user=_PRESENT | _CACHED,
        # A table's entry is its address alone; here the present bit makes it one.
        table=_PRESENT,
        # A PROT_NONE page is one that must not be read.
        present=Attr(_ACCESS, on=_PRESENT, off=_ACCESS),
        prot_none=Attr(_ACCESS, on=_ACCESS, off=_PRESENT),
        # SIMPLIFIED: these are the kernel's. The machine has a valid bit (9), which goes with young, and a
        # bit that allows to write (10), which goes with write and dirty; the kernel's TLB handlers set
        # them. Here the machine notes young and dirty. It is no page fault there either.
        write=Attr.bit(1),
        young=Attr.bit(2),
        dirty=Attr.bit(3),
        leaf=Attr.bit(4),
        special=Attr.bit(5),
        exec=Attr.inverted(6),
        pfn_pos=None,
        pfn_bits=62,
        address_shift=2,
    ),
    sources={
        "geometries": "asm/pgtable-64.h of Linux 6.4 without MIPS_VA_BITS_48; TASK_SIZE64 of "
        "asm/processor.h",
        "pte": "asm/pgtable-bits.h of Linux 6.4: 64 bits with RI and XI, huge pages and special entries, "
        "without soft-dirty",
        "gfp_zero": "not set: no override (spec 7)",
    },
)
