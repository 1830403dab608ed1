# SPDX-License-Identifier: GPL-2.0-only
"""
TLB reach: how many TLB entries it takes to reach what a page table maps.

Counted four ways, by what the processor can do: *plain* takes one entry a page; *HPA* (hardware page
aggregation of Arm's Neoverse cores) joins four pages that are aligned in address and frame, follow
one another and have equal attributes, young and dirty among them; *contiguous* takes a block that the
kernel marked with the contiguous bit as one (arm64 contpte); *best* does both. A PMD entry is one in
each.

*Text* is what executable mappings of files map; *data* is all else: anonymous memory, also where it
may be executed (a JIT compiler's), shared memory, and files that are read or written. A zero page
takes an entry and counts as memory. A page of a PROT_NONE mapping does not: no code can reach it.

An address space is looked at once, when its last user leaves it (exit, exec of another program) or
at the end of the run, and each counts with the memory it maps then: entries per MiB is the sum of
entries over the sum of MiB. A page that several map counts in each, for each needs its own entry.

SIMPLIFIED: it is a look at the end, no count of misses: what a program gave back before is not seen,
and which entries it used at the same time is not known. A group or block of pages that two VMAs
share is judged by its part in each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import filemap
from .arena import VMA_RECORD as _V
from .layout import (
    TLB_BEST,
    TLB_CONT,
    TLB_DATA,
    TLB_HPA,
    TLB_PAGES,
    TLB_PLAIN,
    TLB_TEXT,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_START,
)
from .pgtable import next_pmd, pmd_addr_end, pmd_trans_huge, pte_accessible, pte_in_table
from .vm_flags import VM_EXEC
from .vma import slots

if TYPE_CHECKING:
    from .arena import Arena


def tlb_reach(k: Arena, mm: int, at: int) -> None:
    """
    Add what mm's page tables need to the counts at ``k.tlb[at]``, by data and text; change nothing else.

    Args:
        at: TLB_ENDED or TLB_ALIVE.
    """
    if k.fast is not None:
        k.fast.tlb_reach(mm, at)
        return
    first, last = slots(k, mm)
    for vma in k.vma_index[first:last].tolist():
        base = vma * _V
        file = k.vma[base + VMA_FILE]
        text = file and k.vma[base + VMA_FLAGS] & VM_EXEC and not filemap.is_shmem(k, file)
        kind = at + (TLB_TEXT if text else TLB_DATA)
        _tlb_reach_range(k, mm, k.vma[base + VMA_START], k.vma[base + VMA_END], kind)


def _tlb_reach_range(k: Arena, mm: int, start: int, end: int, at: int) -> None:
    address, place = next_pmd(k, mm, start, end)
    while place:
        stop = pmd_addr_end(k, address, end)
        pmd = k.phys[place]
        if not pmd_trans_huge(k, pmd):
            pte = pte_in_table(k, pmd, address)
            nr = stop - address >> k.page_shift
            k.ops.tlb_reach_ptes(pte, nr, k.cont_bit, k.cont_nr, at)
        elif pte_accessible(k, pmd, write=False):
            k.tlb[at + TLB_PAGES] += stop - address >> k.page_shift
            for field in (TLB_PLAIN, TLB_HPA, TLB_CONT, TLB_BEST):
                k.tlb[at + field] += 1
        address, place = next_pmd(k, mm, stop, end)
