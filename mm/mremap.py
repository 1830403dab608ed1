# SPDX-License-Identifier: GPL-2.0-only
"""
mremap: a mapping grows, shrinks or moves.

SIMPLIFIED: entries are moved one by one, never a whole page table at once (HAVE_MOVE_PMD): where both
addresses are PMD-aligned a real kernel allocates and frees fewer page-table pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import VMA_RECORD as _V
from .layout import (
    MM_MAP_COUNT,
    NR_ORDERS,
    VMA_ANON_VMA,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_PGOFF,
    VMA_START,
    EV_mremap_pages,
)
from .mmap import do_munmap
from .pgtable import next_table, pmd_addr_end, pte_alloc_map, pte_offset_map
from .rmap import anon_vma_clone
from .vm_flags import EFAULT, EINVAL, ENOMEM, MREMAP_DONTUNMAP, VM_SHARED
from .vma import (
    SYSCTL_MAX_MAP_COUNT,
    vm_area_alloc,
    vma_link,
    vma_lookup,
    vma_merge,
    vmas_in,
)

if TYPE_CHECKING:
    from .arena import Arena


def do_mremap(
    k: Arena, mm: int, address: int, old_len: int, to: int, new_len: int, flags: int
) -> int:
    """
    Resize [address, address + old_len) to new_len bytes, at ``to``; return 0 or a negative errno.

    The caller has chosen ``to``: address itself when the mapping stays. A mapping that is there is replaced.
    """
    old_len = -(-old_len // k.page_size) * k.page_size
    new_len = -(-new_len // k.page_size) * k.page_size
    if (address | to) & ~k.page_mask or not new_len or to + new_len > k.task_size:
        return -EINVAL
    if flags & MREMAP_DONTUNMAP and new_len != old_len:
        return -EINVAL
    if to != address and address < to + new_len and to < address + old_len:
        return -EINVAL
    if new_len < old_len:
        error = do_munmap(k, mm, address + new_len, old_len - new_len)
        if error:
            return error
        old_len = new_len
    vma = vma_lookup(k, mm, address)
    if not vma or k.vma[vma * _V + VMA_END] < address + old_len:
        return -EFAULT
    if not old_len and not k.vma[vma * _V + VMA_FLAGS] & VM_SHARED:
        return -EINVAL
    if to == address:
        return _grow(k, mm, vma, address + old_len, new_len - old_len)
    error = do_munmap(k, mm, to, new_len)
    return error or _move(k, mm, vma_lookup(k, mm, address), address, old_len, to, new_len, flags)


def _grow(k: Arena, mm: int, vma: int, end: int, more: int) -> int:
    """Extend a VMA upwards in place by so many bytes; only what ends with its VMA can grow."""
    if not more:
        return 0
    if k.vma[vma * _V + VMA_END] != end or vmas_in(k, mm, end, end + more):
        return -ENOMEM
    k.vma[vma * _V + VMA_END] = end + more
    vma_merge(k, vma)
    return 0


def _move(
    k: Arena, mm: int, vma: int, address: int, old_len: int, to: int, new_len: int, flags: int
) -> int:
    """Move part of a VMA, with its pages, to free addresses."""
    if k.mm[mm * _M + MM_MAP_COUNT] >= SYSCTL_MAX_MAP_COUNT - 3:
        return -ENOMEM
    base = vma * _V
    pgoff = k.vma[base + VMA_PGOFF] + (address - k.vma[base + VMA_START] >> k.page_shift)
    if not k.vma[base + VMA_FILE] and not k.vma[base + VMA_ANON_VMA]:
        pgoff = to >> k.page_shift  # no page has an index yet, so it may merge where it goes
    new = vm_area_alloc(
        k, mm, to, to + new_len, k.vma[base + VMA_FLAGS], pgoff, k.vma[base + VMA_FILE]
    )
    if not new:
        return -ENOMEM
    k.vma[new * _V + VMA_ANON_VMA] = k.vma[base + VMA_ANON_VMA]
    anon_vma_clone(k, new, vma)
    vma_link(k, new)
    if not move_page_tables(k, mm, address, address + old_len, to):
        error = do_munmap(k, mm, to, new_len)
        assert not error, "the new VMA goes as a whole"
        return -ENOMEM
    if old_len and not flags & MREMAP_DONTUNMAP:  # nothing of old: a second view of shared memory
        error = do_munmap(k, mm, address, old_len)
        assert not error, "a move leaves room for the VMAs that its munmap splits"
    vma_merge(k, new)
    return 0


def move_page_tables(k: Arena, mm: int, start: int, end: int, to: int) -> bool:
    """Move the entries of [start, end) to where ``to`` begins; False, with nothing moved, without memory."""
    runs = []
    address = next_table(k, mm, start, end)
    while address < end:
        target = to + address - start
        stop = min(
            pmd_addr_end(k, address, end),
            address + pmd_addr_end(k, target, target + end - address) - target,
        )
        place = pte_alloc_map(k, mm, target)
        if not place:
            return False
        runs.append((address, place, stop - address >> k.page_shift))
        address = next_table(k, mm, stop, end)
    for address, place, nr in runs:
        pte, last = pte_offset_map(k, mm, address), 0
        while True:
            last += k.ops.check_ptes_none(pte + last, nr - last)
            if last >= nr:
                break
            k.phys[place + last] = k.phys[pte + last]
            k.phys[pte + last] = 0
            k.event[EV_mremap_pages * NR_ORDERS] += 1
            last += 1
    return True
