# SPDX-License-Identifier: GPL-2.0-only
"""
sparc64, the sun4v kind (UltraSPARC T1 and newer): four levels of 8K pages.

SIMPLIFIED: valid addresses are two parts with a hole between: 2^47 bytes each on the T1 to T3, 2^51 from
the T4 on. The kernel has the program, its heap and its stack in the lower part, below 2^43 less 4 GiB, and
puts other mappings into the upper one (TASK_UNMAPPED_BASE). Here there is only the lower part, up to where
the stack ends, and mappings are in it too; a process has one table less.

SIMPLIFIED: a PMD's huge page of 8M is two pages of 4M to the processor, and two entries of its TLB; here it
is counted as one entry.
"""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

_VALID, _PRESENT = 1 << 63, 1 << 4
_READ = 1 << 59
_CACHEABLE = 1 << 10 | 1 << 9
_ACCESS = _VALID | _PRESENT

ARCH = ArchParams(
    name="sparc",
    machine="sparc64",
    kconfig_symbol="SPARC64",
    geometries=(
        Geometry(
            13,
            tuple(Level(n, 10) for n in ("pgd", "pud", "pmd", "pte")),
            53,
            task_size=(1 << 43) - (1 << 32),
        ),
    ),
    pte=PteFormat(
        user=_VALID | _PRESENT | _READ | _CACHEABLE,
        # A table's entry is its physical address alone; here these two bits make it one.
        table=_VALID | _PRESENT,
        # The machine looks at the valid bit alone; a PROT_NONE page has the kernel's present bit only.
        # SIMPLIFIED: the kernel clears the valid bit of an old entry too, and sets the machine's write bit
        # (6) in a dirty one only, to take a fault and note both. Here the machine notes them: a write to
        # shared memory that was read before has no fault of its own.
        present=Attr(_ACCESS, on=_VALID | _PRESENT, off=_PRESENT),
        prot_none=Attr(_ACCESS, on=_PRESENT, off=_VALID | _PRESENT),
        write=Attr.bit(58),
        young=Attr.bit(60),
        dirty=Attr.bit(61),
        special=Attr.bit(57),
        exec=Attr.bit(7),
        leaf=Attr.bit(56),
        pfn_pos=None,
        pfn_bits=56,
    ),
    sources={
        "geometries": "asm/pgtable_64.h of Linux 6.12 (10 bits a level, 53 in all); STACK_TOP64 of "
        "asm/processor_64.h; the hole: setup_page_offset() of mm/init_64.c and asm/page_64.h",
        "pte": "asm/pgtable_64.h of Linux 6.12 (the bits named _4V)",
        "gfp_zero": "not set: no override (spec 7)",
    },
)
