# SPDX-License-Identifier: GPL-2.0-only
"""mlock and munlock: memory that stays, and is there at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import VMA_RECORD as _V
from .fault import fault_in
from .layout import VMA_END, VMA_FLAGS
from .mprotect import vma_set_flags
from .vm_flags import EINVAL, ENOMEM, VM_LOCKED, VM_SHARED, VM_WRITE
from .vma import vma_lookup

if TYPE_CHECKING:
    from .arena import Arena


def do_mlock(k: Arena, mm: int, start: int, length: int, *, lock: bool) -> int:
    """
    Lock or unlock [start, start + length); return 0 or a negative errno.

    The range is widened to pages. Locking populates it: writable private memory by writes.
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
        if lock:
            write = bool(flags & VM_WRITE and not flags & VM_SHARED)
            error = fault_in(k, mm, at, stop, write)
            if error:
                return error
        at = stop
    return 0
