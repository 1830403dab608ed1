# SPDX-License-Identifier: GPL-2.0-only
"""
m68k with the Motorola MMU (68020 with 68851, 68030, 68040, 68060): three levels of 4K pages, 32 bits.

SIMPLIFIED: every table takes a page of its own, where the machine's (512 bytes above, 256 bytes at the last
level, of 4-byte entries) share pages; page-table memory and the peak are too high here, the more so as a
last-level table maps 256K only.

SIMPLIFIED: the machine cannot forbid fetching instructions from readable memory. What a mapping asks for is
kept in a bit that its entries do not have; no fault depends on it.

The kernel has no transparent huge pages here.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

# Descriptor type, bits 1:0: 01 is a page, 10 or 11 a table.
_PAGE, _TABLE = 0b01, 0b11
_COPYBACK = 1 << 5  # 68040: cached, write-back

ARCH = ArchParams(
    name="m68k",
    machine="m68k",
    kconfig_symbol="M68K",
    geometries=(
        Geometry(12, (Level("pgd", 7), Level("pmd", 7), Level("pte", 6)), 32, task_size=0xF0000000),
    ),
    pte=PteFormat(
        user=_PAGE | _COPYBACK,
        # SIMPLIFIED: the kernel writes 10 for a table (on the 68030, 11 is one with 8-byte entries);
        # here bit 0 says that an entry is not empty. Nothing depends on it.
        table=_TABLE,
        present=Attr.bit(0),
        write=Attr.inverted(2),
        young=Attr.bit(3),
        dirty=Attr.bit(4),
        special=Attr.bit(11),  # ours, in the bit that the 68040 leaves to the user
        exec=Attr.bit(32),
        # SIMPLIFIED: the kernel marks such a page by the write-protect bit of an entry that is not
        # resident, here by the global bit; the hardware looks at neither.
        prot_none=Attr.bit(10),
        leaf=Attr.inverted(1),
        pfn_pos=None,
        pfn_bits=32,
    ),
    sources={
        "geometries": "MC68040 User's Manual, section 3; asm/pgtable_mm.h of Linux 6.4 (7, 7 and 6 bits)",
        "pte": "MC68040 User's Manual, 3.2.2 (descriptors); asm/motorola_pgtable.h of Linux 6.4",
        "gfp_zero": "not set: the override is in asm/page_no.h, for kernels without MMU (spec 7)",
    },
)
