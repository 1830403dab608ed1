# SPDX-License-Identifier: GPL-2.0-only
"""arm64: VMSAv8-64 stage 1 descriptors, 4K, 16K and 64K granules."""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

# Descriptor bits 1:0 = 0b11 is a page at the last level and a table above it; 0b01 is a block.
_TYPE_PAGE = 0b11
_USER = 1 << 6  # AP[1]
_INNER_SHAREABLE = 0b11 << 8
_NOT_GLOBAL = 1 << 11
_RDONLY = 1 << 7  # AP[2]
_DBM = 1 << 51

ARCH = ArchParams(
    name="arm64",
    machine="aarch64",
    kconfig_symbol="ARM64",
    geometries=(
        Geometry(12, (Level("pgd", 9), Level("pud", 9), Level("pmd", 9), Level("pte", 9)), 48, 4),
        Geometry(14, (Level("pgd", 11), Level("pmd", 11), Level("pte", 11)), 47, 7),
        Geometry(16, (Level("pgd", 6), Level("pmd", 13), Level("pte", 13)), 48, 5),
    ),
    pte=PteFormat(
        user=_TYPE_PAGE | _USER | _INNER_SHAREABLE | _NOT_GLOBAL,
        table=_TYPE_PAGE,
        present=Attr.bit(0),
        # Writable is DBM set and AP[2] clear. SIMPLIFIED: the kernel keeps a writable clean page
        # read-only in hardware and lets DBM clear AP[2]; here such a page is writable at once. No
        # fault depends on it.
        write=Attr(_DBM | _RDONLY, on=_DBM, off=_RDONLY),
        young=Attr.bit(10),
        dirty=Attr.bit(55),
        special=Attr.bit(56),
        exec=Attr.inverted(54),
        prot_none=Attr.bit(58),
        leaf=Attr.inverted(1),
        pfn_pos=None,
        pfn_bits=48,
        cont=Attr.bit(52),
    ),
    gfp_zero=True,
    gfp_zerotags=True,
    reference=True,
    sources={
        "geometries": "Arm ARM D8 (translation granules); 48/47/48-bit user VA as distributions build",
        "pte": "Arm ARM D8.3 (descriptor formats); software bits 55, 56, 58 as Linux 6.12 uses them",
        "gfp_zero": "asm/page.h and mm/fault.c of Linux 6.4 (spec 7)",
    },
)
