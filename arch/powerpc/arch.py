# SPDX-License-Identifier: GPL-2.0-only
"""
powerpc64 with the radix MMU (POWER9 and newer), 4K or 64K base pages.

A PMD maps 2M with either. The root has 8192 entries: one page of 64K, or sixteen of 4K.

SIMPLIFIED: every page table takes a page of its own; with 64K pages the machine's small ones (256 bytes at
the last level, 4K above) share pages, so page-table memory and the peak are too high here (in the samples
4.3 and 4.5 MiB of tables for 0.4, and a peak of 80 to 91).
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT, _PTE = 1 << 63, 1 << 62
_READ, _PRIVILEGED = 1 << 2, 1 << 3
_ACCESS = _PRESENT | _PRIVILEGED

ARCH = ArchParams(
    name="powerpc",
    machine="ppc64le",
    kconfig_symbol="PPC64",
    geometries=(
        Geometry(
            12,
            (Level("pgd", 13), Level("pud", 9), Level("pmd", 9), Level("pte", 9)),
            52,
            task_size=1 << 46,
        ),
        Geometry(16, (Level("pgd", 13), Level("pud", 9), Level("pmd", 9), Level("pte", 5)), 52),
    ),
    pte=PteFormat(
        user=_PRESENT | _PTE | _READ,
        table=_PRESENT,
        # A PROT_NONE page is the kernel's alone (also after 6.8, which takes the right to read instead).
        present=Attr(_ACCESS, on=_PRESENT, off=_ACCESS),
        prot_none=Attr(_ACCESS, on=_ACCESS, off=_PRESENT),
        write=Attr.bit(1),
        young=Attr.bit(8),
        dirty=Attr.bit(7),
        special=Attr.bit(10),
        exec=Attr.bit(0),
        leaf=Attr.bit(62),
        pfn_pos=None,
        pfn_bits=53,
    ),
    sources={
        "geometries": "asm/book3s/64/radix-4k.h and radix-64k.h of Linux 6.12 (13, 9, 9 and 9 or 5 "
        "bits); asm/task_size_64.h: 64T with 4K pages, else 4P",
        "pte": "Power ISA 3.0, radix entries; software bits 10 and 62 and the 53 bits of an address as "
        "asm/book3s/64/pgtable.h of Linux 6.4 has them",
        "gfp_zero": "not set: no override (spec 7)",
    },
)
