# SPDX-License-Identifier: GPL-2.0-only
"""
madvise: memory dropped, and hints kept in VM_* flags.

SIMPLIFIED: MADV_FREE keeps the memory, as a machine with enough of it does; there is no swap;
MADV_WILLNEED, _REMOVE, _MERGEABLE and guard regions change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import clear_young_dirty_ptes, read_ptes
from .fault import fault_in
from .khugepaged import madvise_collapse
from .layout import (
    FOLIO_LARGE_MAPCOUNT,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_MAPCOUNT,
    PAGE_ORDER,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_MM,
    VMA_START,
    PG_anon,
    PG_lazyfree,
    WORK_tlbi,
)
from .mprotect import vma_set_flags
from .pgtable import (
    next_pmd,
    pmd_addr_end,
    pmd_trans_huge,
    pte_in_table,
    pte_pfn,
    pte_special,
)
from .rmap import folio_maybe_mapped_shared
from .split import split_folio
from .vm_flags import (
    EINVAL,
    ENOMEM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_RANDOM,
    MADV_REMOVE,
    MADV_SEQUENTIAL,
    MADV_UNMERGEABLE,
    MADV_WILLNEED,
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
from .vmscan import shrink_folio
from .zap import zap_page_range

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

#: Advice that may drop, age, split or populate memory, or that changes nothing here.
_KNOWN = _FLAGS.keys() | {
    MADV_WILLNEED,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_REMOVE,
    MADV_COLD,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_DONTNEED_LOCKED,
    MADV_COLLAPSE,
    MADV_MERGEABLE,
    MADV_UNMERGEABLE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
}


def do_madvise(k: Arena, mm: int, start: int, length: int, advice: int) -> int:
    """Apply MADV_* advice to [start, start + length); return 0 or a negative errno."""
    length = -(-length // k.page_size) * k.page_size
    if start & ~k.page_mask:
        return -EINVAL
    if advice not in _KNOWN:
        return -EINVAL
    if not length:
        return 0
    end = start + length
    if advice in _FLAGS:
        return madvise_vma_flags(k, mm, start, end, advice)
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        return fault_in(k, mm, start, end, advice == MADV_POPULATE_WRITE)
    if advice == MADV_COLLAPSE:
        return madvise_collapse(k, mm, start, end)
    at, error = start, 0
    for vma in vmas_in(k, mm, start, end):
        base = vma * _V
        low, high = max(start, k.vma[base + VMA_START]), min(end, k.vma[base + VMA_END])
        if low > at:
            error = -ENOMEM
        at = high
        locked = k.vma[base + VMA_FLAGS] & VM_LOCKED
        if locked and advice in (MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT):
            return -EINVAL
        if advice == MADV_FREE and k.vma[base + VMA_FILE]:
            return -EINVAL
        if advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
            zap_page_range(k, vma, low, high)
        elif advice in (MADV_FREE, MADV_COLD, MADV_PAGEOUT):
            madvise_folio_range(k, vma, low, high, advice)
    return error if at >= end else -ENOMEM


def madvise_folio_range(k: Arena, vma: int, start: int, end: int, advice: int) -> None:
    """
    Deactivate what a VMA maps in [start, end), page it out (MADV_PAGEOUT) or let it be dropped (MADV_FREE).

    Mirrors: madvise_free_pte_range() and madvise_cold_or_pageout_pte_range(), v6.12 (spec 5.11): a
    large folio that lies in the range with a part only is split at once, unless others may map it.
    What is to be paged out is reclaimed at once.
    """
    mm = k.vma[vma * _V + VMA_MM]
    aged = False
    address, place = next_pmd(k, mm, start, end)
    while place:
        stop = pmd_addr_end(k, address, end)
        pmd = k.phys[place]
        if pmd_trans_huge(k, pmd):
            folio = pte_pfn(k, pmd)
            if not pte_special(k, pmd) and not folio_maybe_mapped_shared(k, folio):
                whole = stop - address == k.pmd_size
                if not whole and split_folio(k, folio):
                    continue
                if whole:
                    clear_young_dirty_ptes(k, place, 1, clean=advice == MADV_FREE)
                    aged = True
                if whole and advice == MADV_FREE:
                    k.page[folio * _P + PAGE_FLAGS] |= PG_lazyfree
                elif whole and advice == MADV_PAGEOUT:
                    shrink_folio(k, vma, place, by_pmd=True)
        else:
            pte = pte_in_table(k, pmd, address)
            aged |= madvise_pte_range(k, vma, pte, stop - address >> k.page_shift, advice)
        address, place = next_pmd(k, mm, stop, end)
    k.work[WORK_tlbi] += aged


def madvise_pte_range(k: Arena, vma: int, pte: int, nr: int, advice: int) -> bool:
    """Do it for nr entries of one table; return whether any was changed."""
    young, dirty, write = (a.mask for a in (k.arch.pte.young, k.arch.pte.dirty, k.arch.pte.write))
    end, aged = pte + nr, False
    while True:
        pte += k.ops.check_ptes_none(pte, end - pte)
        if pte >= end:
            return aged
        entry = k.phys[pte]
        batch = 1
        page = pte_pfn(k, entry)
        folio = k.page[page * _P + PAGE_HEAD]
        if pte_special(k, entry) or not k.page[folio * _P + PAGE_FLAGS] & PG_anon:
            pte += 1
            continue
        order = k.page[folio * _P + PAGE_ORDER]
        total = k.page[folio * _P + PAGE_MAPCOUNT]
        if order:
            total = k.page[folio * _P + FOLIO_LARGE_MAPCOUNT]
            most = min(folio + (1 << order) - page, end - pte)
            batch = k.ops.folio_pte_batch(pte, young | dirty | write | k.cont_bit, most)
        read_ptes(k, pte, batch)
        if batch < 1 << order:
            if folio_maybe_mapped_shared(k, folio) or not split_folio(k, folio):
                pte += batch
            continue
        if total == 1 << order or advice == MADV_FREE:  # others that map it too may write to it
            clear_young_dirty_ptes(k, pte, batch, clean=advice == MADV_FREE)
            aged = True
            if advice == MADV_FREE:
                k.page[folio * _P + PAGE_FLAGS] |= PG_lazyfree
            elif advice == MADV_PAGEOUT:
                shrink_folio(k, vma, pte)
        pte += batch


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
