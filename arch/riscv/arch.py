# SPDX-License-Identifier: GPL-2.0-only
"""
riscv64: Sv48 page tables, 4K base pages. The user has the lower half of the addresses.

Svnapot marks 16 entries as one translation of 64K.

SIMPLIFIED: each of these entries keeps its own page number here. The machine wants the same one in all: that
of the first page, with 8 in the four lowest bits to say how many there are; a page is then found by its
address. An entry reads and is counted the same.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_VALID, _READ, _USER = 1 << 0, 1 << 1, 1 << 4

ARCH = ArchParams(
    name="riscv",
    machine="riscv64",
    kconfig_symbol="RISCV",
    geometries=(
        Geometry(
            12,
            (Level("pgd", 9), Level("pud", 9), Level("pmd", 9), Level("pte", 9)),
            48,
            cont_order=4,
            task_size=1 << 47,
        ),
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
        cont=Attr.bit(63),
    ),
    sources={
        "geometries": "RISC-V privileged specification, Sv48; half of it as TASK_SIZE of asm/pgtable.h of "
        "Linux 6.12; 64K as asm/pgtable-64.h has it (napot_cont_order)",
        "pte": "RISC-V privileged specification, Sv39 to Sv57 and Svnapot; bits 5 (PROT_NONE) and 8 "
        "(special) as asm/pgtable-bits.h of Linux 6.12 uses them",
        "gfp_zero": "not set: no override (spec 7)",
    },
)
