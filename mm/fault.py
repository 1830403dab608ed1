# SPDX-License-Identifier: GPL-2.0-only
"""
The processor's side of a fault: what an access does, and what arch code checks before
handle_mm_fault().

Mirrors: arch/*/mm/fault.c and the VMA checks of mm/gup.c.

SIMPLIFIED: the hardware sets young and dirty by itself; an old or clean entry never faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import VMA_RECORD as _V
from .layout import VMA_END, VMA_FLAGS, VMA_START
from .memory import handle_mm_fault
from .mmap import expand_stack
from .pgtable import leaf_offset, pte_accessible, pte_dirty, pte_mkdirty, pte_mkyoung
from .vm_flags import (
    EFAULT,
    EINVAL,
    ENOMEM,
    FAULT_FLAG_WRITE,
    VM_ACCESS_FLAGS,
    VM_FAULT_OOM,
    VM_FAULT_SIGSEGV,
    VM_READ,
    VM_WRITE,
)
from .vma import vma_lookup, vmas_in

if TYPE_CHECKING:
    from .arena import Arena


def access(k: Arena, mm: int, address: int, write: bool) -> int:
    """
    Let the program of mm read or write one byte; return VM_FAULT_* bits, 0 = the access happened.

    It is tried again after each served fault, as the hardware does.
    """
    if address >= k.task_size:
        return VM_FAULT_SIGSEGV
    while True:
        pte = leaf_offset(k, mm, address)
        entry = k.phys[pte] if pte else 0
        if entry and pte_accessible(k, entry, write):
            if write and not pte_dirty(k, entry):
                touch_entry(k, pte, entry)
            return 0
        error = do_user_addr_fault(k, mm, address, write)
        if error:
            return error


def touch_entry(k: Arena, pte: int, entry: int) -> None:
    """Mark an entry young and dirty, as the hardware does; a contiguous block has one mark for all."""
    if not entry & k.cont_bit:
        k.phys[pte] = pte_mkdirty(k, pte_mkyoung(k, entry))
        return
    young, dirty = k.arch.pte.young, k.arch.pte.dirty
    first = pte & -k.cont_nr
    k.ops.modify_ptes(first, young.mask | dirty.mask, young.on | dirty.on, k.cont_nr)


def do_user_addr_fault(k: Arena, mm: int, address: int, write: bool) -> int:
    """Serve the fault of an access that the page table did not allow; 0 or VM_FAULT_* bits."""
    vma = vma_lookup(k, mm, address) or expand_stack(k, mm, address)
    if not vma:
        return VM_FAULT_SIGSEGV
    flags = k.vma[vma * _V + VMA_FLAGS]
    if not flags & (VM_WRITE if write else VM_ACCESS_FLAGS):
        return VM_FAULT_SIGSEGV
    return handle_mm_fault(k, vma, address, FAULT_FLAG_WRITE if write else 0)


def fault_in(k: Arena, mm: int, start: int, end: int, write: bool) -> int:
    """
    Populate [start, end), page by page, as MAP_POPULATE and MADV_POPULATE_* do; 0 or a negative
    errno.

    A VMA that does not allow the access is -EINVAL, a page behind the end of a file -EFAULT.
    """
    at = start
    fast = None if k.injecting else k.fast
    for vma in vmas_in(k, mm, start, end):
        base = vma * _V
        if k.vma[base + VMA_START] > at:
            return -ENOMEM
        if not k.vma[base + VMA_FLAGS] & (VM_WRITE if write else VM_READ):
            return -EINVAL
        stop = min(end, k.vma[base + VMA_END])
        while at < stop:
            if fast is not None:
                at = fast.fault_in(k.current, at, stop, write)
                if at >= stop:
                    break
            error = access(k, mm, at, write)
            if error:
                if error & VM_FAULT_OOM:
                    return -ENOMEM
                return -EINVAL if error & VM_FAULT_SIGSEGV else -EFAULT
            at += k.page_size
    return 0 if at >= end else -ENOMEM
