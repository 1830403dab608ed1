# SPDX-License-Identifier: GPL-2.0-only
"""mremap: a mapping grows, shrinks or moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import VMA_RECORD as _V
from .contpte import ptep_clear, read_ptes, set_pte, unfold
from .huge_memory import __split_huge_pmd, move_huge_pmd
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
    WORK_tlbi,
)
from .mlock import populate
from .mmap import do_munmap
from .pgtable import next_pmd, pmd_addr_end, pmd_trans_huge, pte_alloc_map, pte_in_table
from .refused import move_refused
from .rmap import anon_vma_clone
from .vm_flags import EFAULT, EINVAL, ENOMEM, MREMAP_DONTUNMAP, MREMAP_FIXED, VM_LOCKED, VM_SHARED
from .vma import (
    SYSCTL_MAX_MAP_COUNT,
    vm_area_alloc,
    vm_area_free,
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

    The caller has chosen ``to``: address itself when the mapping stays, which MREMAP_FIXED cannot
    ask for. A mapping that is there is replaced.
    """
    old_len = -(-old_len // k.page_size) * k.page_size
    new_len = -(-new_len // k.page_size) * k.page_size
    if address & ~k.page_mask or not new_len or (flags & MREMAP_DONTUNMAP and new_len != old_len):
        return -EINVAL
    if not k.config.mremap_multi and not vma_lookup(k, mm, address):
        return -EFAULT  # up to 6.16 found before the target is looked at
    if to & ~k.page_mask or to + new_len > k.task_size:
        return -EINVAL
    stays = to == address and not flags & MREMAP_FIXED
    if not stays and address < to + new_len and to < address + old_len:
        return -EINVAL
    if to != address and k.config.mremap_multi and new_len == old_len and flags & MREMAP_FIXED:
        return _move_all(k, mm, address, old_len, to, flags)
    kept = min(old_len, new_len)
    error = 0
    if k.config.mremap_multi:
        error = _refused(k, mm, address, old_len, kept)
    # Up to 6.16 what is at the target and what is cut off go first, even when the move is refused.
    if to != address and not error:
        error = do_munmap(k, mm, to, new_len)
    if kept < old_len and not error:
        error = do_munmap(k, mm, address + kept, old_len - kept)
    error = error or _refused(k, mm, address, old_len, kept)
    if error:
        return error
    vma = vma_lookup(k, mm, address)
    locked = k.vma[vma * _V + VMA_FLAGS] & VM_LOCKED
    if to == address:
        error = _grow(k, mm, vma, address + kept, new_len - kept)
    else:
        error = _move(k, mm, vma, address, kept, to, new_len, flags)
    if locked and not error:
        populate(k, mm, to + kept, to + new_len)  # what it cannot have is not an error here
    return error


def _refused(k: Arena, mm: int, address: int, old_len: int, kept: int) -> int:
    """Return 0 if one VMA holds all of what is kept of a range, else a negative errno."""
    vma = vma_lookup(k, mm, address)
    if not vma or k.vma[vma * _V + VMA_END] < address + kept:
        return -EFAULT
    if not old_len and not k.vma[vma * _V + VMA_FLAGS] & VM_SHARED:
        return -EINVAL
    return 0


def _move_all(k: Arena, mm: int, start: int, length: int, to: int, flags: int) -> int:
    """
    Move every VMA of a range, the gaps between them kept; a gap at the start is -EFAULT (6.17).

    Each part replaces what is where it goes; what lies at the gaps' targets stays.
    """
    end, at, moved = start + length, start, False
    while at < end:
        found = vmas_in(k, mm, at, end)[:1]
        if not found:
            break
        base = found[0] * _V
        low, high = max(k.vma[base + VMA_START], at), min(k.vma[base + VMA_END], end)
        if not moved and low > start:
            return -EFAULT
        target = to + low - start
        error = do_munmap(k, mm, target, high - low)
        error = error or _move(
            k, mm, vma_lookup(k, mm, low), low, high - low, target, high - low, flags
        )
        if error:
            return error
        at, moved = high, True
    return 0 if moved else -EFAULT


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
    if not anon_vma_clone(k, new, vma):
        vm_area_free(k, new)
        return -ENOMEM
    vma_link(k, new)
    if not move_page_tables(k, mm, address, address + old_len, to):
        back = move_page_tables(k, mm, to, to + old_len, address)
        error = do_munmap(k, mm, to, new_len)
        assert back and not error, "the source's tables are there, the new VMA goes as a whole"
        return -ENOMEM
    if old_len == k.vma[base + VMA_END] - k.vma[base + VMA_START]:
        move_refused(k, vma, new)
    if old_len and not flags & MREMAP_DONTUNMAP:  # nothing of old: a second view of shared memory
        # Without memory to split its VMA the source stays, empty.
        do_munmap(k, mm, address, old_len)
    vma_merge(k, new)
    return 0


def move_page_tables(k: Arena, mm: int, start: int, end: int, to: int) -> bool:
    """
    Move the entries of [start, end) to where ``to`` begins; False, with some moved, without memory.

    Where both addresses are PMD-aligned a huge entry moves as one, and so does a whole page table
    (HAVE_MOVE_PMD); elsewhere a huge entry is split and a table's entries move one by one.
    """
    address, place = next_pmd(k, mm, start, end)
    while place:
        target = to + address - start
        stop = min(
            pmd_addr_end(k, address, end),
            address + pmd_addr_end(k, target, target + end - address) - target,
        )
        if pmd_trans_huge(k, k.phys[place]):
            whole = stop - address == k.pmd_size
            if not whole or not move_huge_pmd(k, mm, place, target):
                if pmd_trans_huge(k, k.phys[place]):  # else a shrinker that made room split it
                    __split_huge_pmd(k, vma_lookup(k, mm, address), place)
                continue
        elif stop - address != k.pmd_size or not move_huge_pmd(k, mm, place, target):
            new = pte_alloc_map(k, mm, target)
            if not new:
                return False
            source = pte_in_table(k, k.phys[place], address)
            move_ptes(k, source, new, stop - address >> k.page_shift)
        address, place = next_pmd(k, mm, stop, end)
    return True


def move_ptes(k: Arena, source: int, to: int, nr: int) -> None:
    """
    Move nr entries of one table to another place, with one TLB invalidation if there were any.

    SIMPLIFIED: one by one, so that blocks unfold and fold again; from 6.17 contiguous blocks move as a
    whole, with fewer reads, writes and invalidations. The entries that come out are the same.
    """
    at, moved = 0, False
    while True:
        at += k.ops.check_ptes_none(source + at, nr - at)
        if at >= nr:
            k.work[WORK_tlbi] += moved
            return
        moved = True
        read_ptes(k, source + at, 1)
        unfold(k, source + at)
        entry = k.phys[source + at]
        ptep_clear(k, source + at)
        set_pte(k, to + at, entry)
        k.event[EV_mremap_pages * NR_ORDERS] += 1
        at += 1
