# SPDX-License-Identifier: GPL-2.0-only
"""x86-64: four-level paging, 4K base pages. The user has the lower half of the addresses but a page."""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_PRESENT, _RW, _USER, _ACCESSED, _DIRTY = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6

ARCH = ArchParams(
    name="x86",
    machine="x86_64",
    kconfig_symbol="X86_64",
    geometries=(
        Geometry(
            12,
            (Level("pgd", 9), Level("pud", 9), Level("pmd", 9), Level("pte", 9)),
            48,
            task_size=(1 << 47) - (1 << 12),
        ),
    ),
    pte=PteFormat(
        user=_PRESENT | _USER,
        table=_PRESENT | _RW | _USER | _ACCESSED | _DIRTY,
        present=Attr.bit(0),
        write=Attr.bit(1),
        young=Attr.bit(5),
        dirty=Attr.bit(6),
        special=Attr.bit(9),
        exec=Attr.inverted(63),
        prot_none=Attr.bit(8),
        leaf=Attr.bit(7),
        pfn_pos=None,
        pfn_bits=52,
    ),
    gfp_zero=True,
    sources={
        "geometries": "Intel SDM volume 3, 4.5; TASK_SIZE_MAX of asm/page_64.h of Linux 6.12",
        "pte": "Intel SDM volume 3, 4.5; software bit 9 (special) as Linux 6.12 uses it",
        "gfp_zero": "asm/page.h of Linux 6.4 (spec 7)",
    },
)
