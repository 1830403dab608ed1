# SPDX-License-Identifier: GPL-2.0-only
"""
Alpha: three levels of 8K pages, 43 bits of which the user has the lower half.

The machine has no entry above the last level that maps memory (granularity hints are within it), so
there are no transparent huge pages.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_VALID, _FOW, _FOE = 1 << 0, 1 << 2, 1 << 3
_KRE, _URE, _KWE, _UWE = 1 << 8, 1 << 9, 1 << 12, 1 << 13
# Software bits of the kernel; the rights to read and write go with them.
_DIRTY = 1 << 17 | _KWE | _UWE
_ACCESSED = 1 << 18 | _KRE | _URE

ARCH = ArchParams(
    name="alpha",
    machine="alpha",
    kconfig_symbol="ALPHA",
    geometries=(
        Geometry(13, tuple(Level(n, 10) for n in ("pgd", "pmd", "pte")), 43, task_size=1 << 42),
    ),
    pte=PteFormat(
        user=_VALID,
        table=_VALID | _ACCESSED | _DIRTY,
        present=Attr.bit(0),
        write=Attr(_FOW, 0, _FOW),
        # The machine sets neither: the kernel takes a fault (FOR, FOW) or keeps the right back.
        young=Attr(_ACCESSED, _ACCESSED),
        dirty=Attr(_DIRTY, _DIRTY),
        exec=Attr(_FOE, 0, _FOE),
        # Ours, in the software field: the kernel has no special entries, no huge ones, and a
        # PROT_NONE page is valid with all three faults on.
        special=Attr.bit(19),
        prot_none=Attr.bit(20),
        leaf=Attr.bit(21),
        pfn_pos=32,
        pfn_bits=32,
    ),
    gfp_zero=True,
    sources={
        "geometries": "Alpha Architecture Reference Manual, OpenVMS/Tru64 page tables; 4 TiB TASK_SIZE",
        "pte": "the same; software bits 17 and 18 as asm/pgtable.h of Linux 6.4 uses them",
        "gfp_zero": "asm/page.h of Linux 6.4 (spec 7)",
    },
)
