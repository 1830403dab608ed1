# SPDX-License-Identifier: GPL-2.0-only
"""
s390x: region-third, segment and page tables, 4K pages.

Region and segment tables have 2048 entries in four pages, page tables 256 entries: a segment, the PMD's
huge page, is 1M. An address space begins with these three levels and ends at 4 TiB.

SIMPLIFIED: a page table of 2K takes a page of its own, as in newer kernels; in those of the series two share
one.

SIMPLIFIED: the kernel adds a fourth level when a program asks for more than 4 TiB; here it gets no more.

SIMPLIFIED: region and segment entries have the page entry's bits. The kernel converts between the two
layouts; nothing depends on it.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT, _READ, _WRITE = 1 << 0, 1 << 4, 1 << 5  # software
_PROTECT, _INVALID = 1 << 9, 1 << 10
_VALID_MASK = _PRESENT | _READ | _INVALID

ARCH = ArchParams(
    name="s390",
    machine="s390x",
    kconfig_symbol="S390",
    geometries=(Geometry(12, (Level("pgd", 11), Level("pmd", 11), Level("pte", 8)), 42),),
    pte=PteFormat(
        user=_PRESENT | _READ,
        table=_PRESENT | _READ,
        # The machine's own bit is inverted, and a PROT_NONE page has it on too; the kernel's present
        # and read bits tell the two from nothing and from one another. SIMPLIFIED: the kernel also sets
        # it in an old entry, and the protection bit in a clean one, so that the access faults and
        # young and dirty can be noted; here the machine notes them.
        present=Attr(_VALID_MASK, on=_PRESENT | _READ, off=_PRESENT | _INVALID),
        prot_none=Attr(_VALID_MASK, on=_PRESENT | _INVALID, off=_PRESENT | _READ),
        write=Attr(_PROTECT | _WRITE, on=_WRITE, off=_PROTECT),
        young=Attr.bit(2),
        dirty=Attr.bit(3),
        special=Attr.bit(6),
        exec=Attr.inverted(8),
        leaf=Attr.bit(11),
        pfn_pos=None,
        pfn_bits=64,
    ),
    gfp_zero=True,
    sources={
        "geometries": "z/Architecture Principles of Operation, dynamic address translation",
        "pte": "the same; software bits as asm/pgtable.h of Linux 6.12 uses them",
        "gfp_zero": "asm/page.h of Linux 6.4 (spec 7)",
    },
)
