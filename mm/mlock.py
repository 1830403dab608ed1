# SPDX-License-Identifier: GPL-2.0-only
"""
mlock and munlock: memory that stays, and is there at once.

SIMPLIFIED: no RLIMIT_MEMLOCK, and no limit on what may be mapped (overcommit) anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import VMA_RECORD as _V
from .fault import fault_in
from .layout import VMA_END, VMA_FLAGS, VMA_START
from .mprotect import vma_set_flags
from .vm_flags import EINVAL, ENOMEM, VM_ACCESS_FLAGS, VM_LOCKED, VM_SHARED, VM_WRITE
from .vma import vma_lookup, vmas_in

if TYPE_CHECKING:
    from .arena import Arena


def do_mlock(k: Arena, mm: int, start: int, length: int, *, lock: bool) -> int:
    """
    Lock or unlock [start, start + length); return 0 or a negative errno.

    The range is widened to pages, and the VMAs below a hole are locked before it is found (-ENOMEM).
    Then locking populates the range, writable private memory by writes; what allows no access is
    -ENOMEM too (the kernel turns the -EFAULT of its page walk into it).
    """
    end = -(-(start + length) // k.page_size) * k.page_size
    start &= k.page_mask
    if end < start:
        return -EINVAL
    at = start
    while at < end:
        vma = vma_lookup(k, mm, at)
        if not vma:
            return -ENOMEM
        stop = min(end, k.vma[vma * _V + VMA_END])
        flags = k.vma[vma * _V + VMA_FLAGS]
        if not vma_set_flags(k, vma, at, stop, flags | VM_LOCKED if lock else flags & ~VM_LOCKED):
            return -ENOMEM
        at = stop
    return populate(k, mm, start, end) if lock else 0


def populate(k: Arena, mm: int, start: int, end: int) -> int:
    """Fault in a range without holes; 0 or a negative errno at the first VMA that allows no access."""
    for vma in vmas_in(k, mm, start, end):
        base = vma * _V
        flags = k.vma[base + VMA_FLAGS]
        if not flags & VM_ACCESS_FLAGS:
            return -ENOMEM
        low, high = max(start, k.vma[base + VMA_START]), min(end, k.vma[base + VMA_END])
        error = fault_in(k, mm, low, high, bool(flags & VM_WRITE and not flags & VM_SHARED))
        if error:
            return -ENOMEM  # also for a page behind the end of a file
    return 0
