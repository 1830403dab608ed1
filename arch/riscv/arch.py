# SPDX-License-Identifier: GPL-2.0-only
"""riscv64: Sv48 page tables, 4K base pages."""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_VALID, _READ, _USER = 1 << 0, 1 << 1, 1 << 4

ARCH = ArchParams(
    name="riscv",
    machine="riscv64",
    kconfig_symbol="RISCV",
    geometries=(
        Geometry(12, (Level("pgd", 9), Level("pud", 9), Level("pmd", 9), Level("pte", 9)), 48),
    ),
    pte=PteFormat(
        user=_VALID | _READ | _USER,
        table=_VALID,
        present=Attr.bit(0),
        write=Attr.bit(2),
        young=Attr.bit(6),
        dirty=Attr.bit(7),
        special=Attr.bit(8),
        exec=Attr.bit(3),
        prot_none=Attr.bit(5),
        leaf=Attr.bit(1),
        pfn_pos=10,
        pfn_bits=44,
    ),
    sources={
        "geometries": "RISC-V privileged specification, Sv48",
        "pte": "RISC-V privileged specification, Sv39 to Sv57; software bit 8 as Linux 6.12 uses it",
    },
)
