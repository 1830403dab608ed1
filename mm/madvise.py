# SPDX-License-Identifier: GPL-2.0-only
"""
madvise: memory dropped, and hints kept in VM_* flags.

SIMPLIFIED: MADV_FREE keeps the memory, as a machine with enough of it does, and does not split the
folios it covers partly; MADV_COLD, _PAGEOUT, _WILLNEED, _COLLAPSE and the rest change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import memory
from .arena import VMA_RECORD as _V
from .fault import fault_in
from .layout import VMA_END, VMA_FILE, VMA_FLAGS, VMA_START
from .mprotect import vma_set_flags
from .vm_flags import (
    EINVAL,
    ENOMEM,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WIPEONFORK,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
)
from .vma import vmas_in

if TYPE_CHECKING:
    from .arena import Arena

#: advice -> (VM_* bits it clears, bits it sets)
_FLAGS = {
    MADV_NORMAL: (VM_RAND_READ | VM_SEQ_READ, 0),
    MADV_RANDOM: (VM_RAND_READ | VM_SEQ_READ, VM_RAND_READ),
    MADV_SEQUENTIAL: (VM_RAND_READ | VM_SEQ_READ, VM_SEQ_READ),
    MADV_DONTFORK: (0, VM_DONTCOPY),
    MADV_DOFORK: (VM_DONTCOPY, 0),
    MADV_HUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
    MADV_NOHUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    MADV_DONTDUMP: (0, VM_DONTDUMP),
    MADV_DODUMP: (VM_DONTDUMP, 0),
    MADV_WIPEONFORK: (0, VM_WIPEONFORK),
    MADV_KEEPONFORK: (VM_WIPEONFORK, 0),
}


def do_madvise(k: Arena, mm: int, start: int, length: int, advice: int) -> int:
    """Apply MADV_* advice to [start, start + length); return 0 or a negative errno."""
    length = -(-length // k.page_size) * k.page_size
    if start & ~k.page_mask:
        return -EINVAL
    end = start + length
    if advice in _FLAGS:
        return madvise_vma_flags(k, mm, start, end, advice)
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return fault_in(k, mm, start, end, advice == MADV_POPULATE_WRITE)
    at, error = start, 0
    for vma in vmas_in(k, mm, start, end):
        base = vma * _V
        low, high = max(start, k.vma[base + VMA_START]), min(end, k.vma[base + VMA_END])
        if low > at:
            error = -ENOMEM
        at = high
        if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
            if k.vma[base + VMA_FLAGS] & VM_LOCKED and advice == MADV_DONTNEED:
                return -EINVAL
            memory.zap_page_range(k, vma, low, high)
    return error if at >= end else -ENOMEM


def madvise_vma_flags(k: Arena, mm: int, start: int, end: int, advice: int) -> int:
    """Change the flags of every VMA in [start, end); holes are passed over and make it -ENOMEM."""
    clear, bits = _FLAGS[advice]
    at, error = start, 0
    while at < end:
        found = vmas_in(k, mm, at, end)[:1]
        if not found:
            return -ENOMEM
        base = found[0] * _V
        if k.vma[base + VMA_START] > at:
            at, error = k.vma[base + VMA_START], -ENOMEM
        flags = k.vma[base + VMA_FLAGS]
        if advice == MADV_WIPEONFORK and (k.vma[base + VMA_FILE] or flags & VM_SHARED):
            return -EINVAL
        stop = min(end, k.vma[base + VMA_END])
        if not vma_set_flags(k, found[0], at, stop, flags & ~clear | bits):
            return -ENOMEM
        at = stop
    return error
