# SPDX-License-Identifier: GPL-2.0-only
"""
powerpc64 with the radix MMU, 64K base pages.

SIMPLIFIED: every page table takes a page of its own; the machine's small ones (256 bytes at the last
level) share pages, so page-table memory and the peak are too high here.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT, _PTE, _READ = 1 << 63, 1 << 62, 1 << 2

ARCH = ArchParams(
    name="powerpc",
    machine="ppc64le",
    kconfig_symbol="PPC64",
    geometries=(
        Geometry(16, (Level("pgd", 13), Level("pud", 9), Level("pmd", 9), Level("pte", 5)), 52),
    ),
    pte=PteFormat(
        user=_PRESENT | _PTE | _READ,
        table=_PRESENT,
        present=Attr.bit(63),
        write=Attr.bit(1),
        young=Attr.bit(8),
        dirty=Attr.bit(7),
        special=Attr.bit(10),
        exec=Attr.bit(0),
        # A PROT_NONE page is present without the right to read on the machine; here a software bit says it.
        prot_none=Attr.bit(61),
        leaf=Attr.bit(62),
        pfn_pos=None,
        pfn_bits=57,
    ),
    sources={
        "geometries": "Power ISA 3.0 radix trees, with the index sizes that Linux uses for 64K pages",
        "pte": "Power ISA 3.0; software bits 10 and 61 as Linux 6.12 has them",
    },
)
