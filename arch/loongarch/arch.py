# SPDX-License-Identifier: GPL-2.0-only
"""
LoongArch, 64 bits: three levels of 16K or 64K pages, four of 4K.

The processors have 48-bit addresses, of which a user has the lower half; tables of 64K pages reach further.

SIMPLIFIED: for each page size the kernel has a layout with a level less too: 39 bits of address with 4K
pages (4KB_3LEVEL), 36 with 16K (16KB_2LEVEL), 42 with 64K (64KB_2LEVEL). Here a page size has one layout,
the larger; a process has one table more than in the smaller.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT = 1 << 7  # software, as are bits 8 to 11
_PRIVILEGE_USER = 0b11 << 2
_COHERENT = 1 << 4
_LEVELS = ("pgd", "pmd", "pte")

ARCH = ArchParams(
    name="loongarch",
    machine="loongarch64",
    kconfig_symbol="LOONGARCH",
    geometries=(
        Geometry(
            12, tuple(Level(n, 9) for n in ("pgd", "pud", "pmd", "pte")), 48, task_size=1 << 47
        ),
        Geometry(14, tuple(Level(n, 11) for n in _LEVELS), 47),
        Geometry(16, tuple(Level(n, 13) for n in _LEVELS), 55, task_size=1 << 47),
    ),
    pte=PteFormat(
        user=_PRESENT | _PRIVILEGE_USER | _COHERENT,
        # A table's entry is its address alone; here the present bit makes it one.
        table=_PRESENT,
        present=Attr.bit(7),
        write=Attr.bit(8),
        # SIMPLIFIED: the valid bit says accessed. The kernel's TLB handlers set it, and the machine's
        # dirty bit (1) in a writable page; here the machine notes both. It is no page fault there either.
        young=Attr.bit(0),
        dirty=Attr.bit(9),
        special=Attr.bit(11),
        exec=Attr.inverted(62),
        prot_none=Attr.bit(10),
        leaf=Attr.bit(6),  # in a last-level entry: global
        pfn_pos=None,
        pfn_bits=48,
    ),
    sources={
        "geometries": "asm/pgtable.h and Kconfig of Linux 6.12 (4KB_4LEVEL, 16KB_3LEVEL, 64KB_3LEVEL: "
        "48, 47 and 55 bits); "
        "TASK_SIZE64 of asm/processor.h with the 48-bit addresses of the 3A5000",
        "pte": "asm/pgtable-bits.h of Linux 6.12; LoongArch Reference Manual 1, 5.4 (page table entries)",
        "gfp_zero": "not set: no override (spec 7)",
    },
)
