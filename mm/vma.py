# SPDX-License-Identifier: GPL-2.0-only
"""
VMAs: the set of them that an mm has, splitting and merging.

An mm's VMAs are two parallel arrays sorted by address, ``k.vma_start`` and ``k.vma_index``; a
*slot* is an index into both. VMAs never overlap. Addresses are bytes, ranges are half open.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from . import filemap
from .arena import MM_RECORD as _M
from .arena import VMA_RECORD as _V
from .huge_memory import split_huge_pmd_address
from .layout import (
    MAX_MAP_COUNT,
    MM_MAP_COUNT,
    SLAB_VMA,
    VMA_ANON_VMA,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    VMA_PGOFF,
    VMA_START,
)
from .pgtable import vm_get_page_prot
from .refused import log_refused, move_refused
from .rmap import (
    anon_vma_chain_is_singular,
    anon_vma_clone,
    anon_vma_prepare,
    take_anon_vmas,
    unlink_anon_vmas,
)
from .slab import slab_alloc, slab_free
from .vm_flags import VM_ACCESS_FLAGS, VM_DONTEXPAND

if TYPE_CHECKING:
    from .arena import Arena

SYSCTL_MAX_MAP_COUNT = 65530


def slots(k: Arena, mm: int) -> tuple[int, int]:
    """Return the first slot of mm and the one behind its last."""
    first = mm * MAX_MAP_COUNT
    return first, first + k.mm[mm * _M + MM_MAP_COUNT]


def find_slot(k: Arena, mm: int, address: int) -> int:
    """Return the slot of the first VMA that ends above address; the end slot when there is none."""
    first = mm * MAX_MAP_COUNT
    slot = bisect_right(k.vma_start, address, first, first + k.mm[mm * _M + MM_MAP_COUNT]) - 1
    if slot >= first and k.vma[k.vma_index[slot] * _V + VMA_END] > address:
        return slot
    return slot + 1


def vma_lookup(k: Arena, mm: int, address: int) -> int:
    """Return the VMA that holds address; 0 when none does."""
    first = mm * MAX_MAP_COUNT
    slot = bisect_right(k.vma_start, address, first, first + k.mm[mm * _M + MM_MAP_COUNT]) - 1
    if slot < first:
        return 0
    vma = k.vma_index[slot]
    return vma if k.vma[vma * _V + VMA_END] > address else 0


def vmas_in(k: Arena, mm: int, start: int, end: int) -> list[int]:
    """Return the VMAs that overlap [start, end), in order of address."""
    slot, (_, last) = find_slot(k, mm, start), slots(k, mm)
    found = []
    while start < end and slot < last and k.vma_start[slot] < end:
        found.append(k.vma_index[slot])
        slot += 1
    return found


def vma_link(k: Arena, vma: int) -> None:
    """Put a VMA into its mm's set; nothing may be where it goes."""
    base = vma * _V
    mm, start = k.vma[base + VMA_MM], k.vma[base + VMA_START]
    slot, (_, last) = find_slot(k, mm, start), slots(k, mm)
    k.vma_start[slot + 1 : last + 1] = k.vma_start[slot:last]
    k.vma_index[slot + 1 : last + 1] = k.vma_index[slot:last]
    k.vma_start[slot] = start
    k.vma_index[slot] = vma
    k.mm[mm * _M + MM_MAP_COUNT] += 1
    file = k.vma[base + VMA_FILE]
    if file:
        filemap.get_file(k, file)


def vma_unlink(k: Arena, vma: int) -> None:
    """Take a VMA out of its mm's set and free it; its pages must be unmapped or another VMA's."""
    base = vma * _V
    mm = k.vma[base + VMA_MM]
    slot, (_, last) = find_slot(k, mm, k.vma[base + VMA_START]), slots(k, mm)
    k.vma_start[slot : last - 1] = k.vma_start[slot + 1 : last]
    k.vma_index[slot : last - 1] = k.vma_index[slot + 1 : last]
    k.vma_start[last - 1] = 0
    k.vma_index[last - 1] = 0
    k.mm[mm * _M + MM_MAP_COUNT] -= 1
    file = k.vma[base + VMA_FILE]
    log_refused(k, vma)
    vm_area_free(k, vma)
    if file:
        filemap.put_file(k, file)


def vm_area_alloc(
    k: Arena, mm: int, start: int, end: int, flags: int, pgoff: int, file: int
) -> int:
    """Return a new VMA that is in no set yet; 0 when the table is full."""
    vma = slab_alloc(k, SLAB_VMA, k.vma, _V)
    if vma:
        base = vma * _V
        k.vma[base + VMA_START] = start
        k.vma[base + VMA_END] = end
        k.vma[base + VMA_FLAGS] = flags
        k.vma[base + VMA_PGOFF] = pgoff
        k.vma[base + VMA_PAGE_PROT] = vm_get_page_prot(k, flags)
        k.vma[base + VMA_FILE] = file
        k.vma[base + VMA_MM] = mm
    return vma


def vm_area_free(k: Arena, vma: int) -> None:
    """Free a VMA that is in no set: its links to anon_vmas, its record."""
    unlink_anon_vmas(k, vma)
    slab_free(k, SLAB_VMA, k.vma, _V, vma)


def split_vma(k: Arena, vma: int, address: int) -> int:
    """
    Cut a VMA at address, strictly inside it, and return the new upper part; 0 = -ENOMEM, and
    nothing has changed.

    Large folios that lie across the cut stay whole, a huge entry across it is split (spec 5.12).
    """
    base = vma * _V
    mm = k.vma[base + VMA_MM]
    if k.mm[mm * _M + MM_MAP_COUNT] >= SYSCTL_MAX_MAP_COUNT:
        return 0
    start, end = k.vma[base + VMA_START], k.vma[base + VMA_END]
    pgoff = k.vma[base + VMA_PGOFF] + (address - start >> k.page_shift)
    new = vm_area_alloc(k, mm, address, end, k.vma[base + VMA_FLAGS], pgoff, k.vma[base + VMA_FILE])
    if not new:
        return 0
    k.vma[new * _V + VMA_ANON_VMA] = k.vma[base + VMA_ANON_VMA]
    if not anon_vma_clone(k, new, vma):
        vm_area_free(k, new)
        return 0
    split_huge_pmd_address(k, vma, address)
    k.vma[base + VMA_END] = address
    vma_link(k, new)
    return new


def is_mergeable_anon_vma(k: Arena, vma: int, neighbour: int) -> bool:
    """
    Return whether a VMA that is new or has changed may share its neighbour's anon_vma.

    They have the same, or one has none and the other's was not inherited by fork. Up to 6.15
    (MERGE_FAULTED_VMA=n) a VMA with pages did not merge with a neighbour that never had any.
    """
    own, other = k.vma[vma * _V + VMA_ANON_VMA], k.vma[neighbour * _V + VMA_ANON_VMA]
    if own == other:
        return True
    if own and other:
        return False
    if other:
        return anon_vma_chain_is_singular(k, neighbour)
    return k.config.merge_faulted and anon_vma_chain_is_singular(k, vma)


def can_vma_merge(k: Arena, a: int, b: int) -> bool:
    """Return whether VMA b, right above a, differs from it in nothing but the anon_vma (spec 5.12)."""
    vma, i, j = k.vma, a * _V, b * _V
    return (
        vma[i + VMA_END] == vma[j + VMA_START]
        and vma[i + VMA_FLAGS] == vma[j + VMA_FLAGS]
        and vma[i + VMA_FILE] == vma[j + VMA_FILE]
        and not vma[i + VMA_FLAGS] & VM_DONTEXPAND
        and vma[i + VMA_PGOFF] + (vma[i + VMA_END] - vma[i + VMA_START] >> k.page_shift)
        == vma[j + VMA_PGOFF]
    )


def vma_merge(k: Arena, vma: int, *, just_expand: bool = False) -> int:
    """
    Merge a VMA that is new or has changed with its neighbours; return the VMA that holds its range.

    Where both fit but not with each other the lower one is taken. With just_expand it merges with
    none but the lower.
    """
    mm = k.vma[vma * _V + VMA_MM]
    slot, (first, last) = find_slot(k, mm, k.vma[vma * _V + VMA_START]), slots(k, mm)
    below = k.vma_index[slot - 1] if slot > first else 0
    above = k.vma_index[slot + 1] if slot + 1 < last and not just_expand else 0
    if below and not (can_vma_merge(k, below, vma) and is_mergeable_anon_vma(k, vma, below)):
        below = 0
    if above and not (can_vma_merge(k, vma, above) and is_mergeable_anon_vma(k, vma, above)):
        above = 0
    if below and above:
        anon_vmas = {k.vma[below * _V + VMA_ANON_VMA], k.vma[above * _V + VMA_ANON_VMA]} - {0}
        above = above if len(anon_vmas) < 2 else 0
    if above:
        _absorb(k, vma, above)
    if below:
        _absorb(k, below, vma)
        return below
    return vma


def _absorb(k: Arena, vma: int, upper: int) -> None:
    """
    Extend vma over its upper neighbour, which goes away.

    SIMPLIFIED: links to anon_vmas change hands; the kernel makes new ones first, and leaves the two apart
    when it has no memory for that.
    """
    if not k.vma[vma * _V + VMA_ANON_VMA]:
        take_anon_vmas(k, vma, upper)
    move_refused(k, upper, vma)
    end = k.vma[upper * _V + VMA_END]
    vma_unlink(k, upper)
    k.vma[vma * _V + VMA_END] = end


def find_mergeable_anon_vma(k: Arena, vma: int) -> int:
    """
    Return a neighbour's anon_vma that a VMA without one can share, so that the two may merge
    later; 0 = none.

    Mirrors: mm/mmap.c find_mergeable_anon_vma(), v6.4: the upper neighbour first; the two may
    differ in their access rights only.
    """
    slot = find_slot(k, k.vma[vma * _V + VMA_MM], k.vma[vma * _V + VMA_START])
    first, last = slots(k, k.vma[vma * _V + VMA_MM])
    pairs = []
    if slot + 1 < last:
        pairs.append((vma, k.vma_index[slot + 1], k.vma_index[slot + 1]))
    if slot > first:
        pairs.append((k.vma_index[slot - 1], vma, k.vma_index[slot - 1]))
    for a, b, neighbour in pairs:
        i, j = a * _V, b * _V
        if (
            k.vma[neighbour * _V + VMA_ANON_VMA]
            and anon_vma_chain_is_singular(k, neighbour)
            and k.vma[i + VMA_END] == k.vma[j + VMA_START]
            and k.vma[i + VMA_FILE] == k.vma[j + VMA_FILE]
            and not (k.vma[i + VMA_FLAGS] ^ k.vma[j + VMA_FLAGS]) & ~VM_ACCESS_FLAGS
            and k.vma[i + VMA_PGOFF] + (k.vma[i + VMA_END] - k.vma[i + VMA_START] >> k.page_shift)
            == k.vma[j + VMA_PGOFF]
        ):
            return k.vma[neighbour * _V + VMA_ANON_VMA]
    return 0


def vma_prepare_anon(k: Arena, vma: int) -> bool:
    """Give a VMA an anon_vma, a neighbour's if it can be shared; False when there is no memory for it."""
    if k.vma[vma * _V + VMA_ANON_VMA]:
        return True
    return anon_vma_prepare(k, vma, find_mergeable_anon_vma(k, vma))
