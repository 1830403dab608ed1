# SPDX-License-Identifier: GPL-2.0-only
"""mprotect: VMAs get another protection, and so do the entries of their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import FILE_RECORD
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import clear_full_ptes, read_ptes, set_ptes, young_dirty
from .fault import fault_in
from .huge_memory import change_huge_pmd
from .layout import (
    FILE_SHMEM,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    VMA_START,
    EV_mprotect_anon,
    PG_anon,
    PG_exclusive,
    WORK_pte_write,
    WORK_tlbi,
)
from .pgtable import (
    next_pmd,
    pmd_addr_end,
    pmd_trans_huge,
    pte_in_table,
    pte_mkwrite,
    pte_modify,
    pte_pfn,
    vm_get_page_prot,
)
from .vm_flags import (
    EINVAL,
    ENOMEM,
    PROT_MTE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MTE,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from .vma import split_vma, vma_lookup, vma_merge

if TYPE_CHECKING:
    from .arena import Arena


def do_mprotect(k: Arena, mm: int, start: int, length: int, prot: int) -> int:
    """
    Give [start, start + length) the PROT_* bits prot; return 0 or a negative errno.

    As in the kernel what lies below a hole is changed before the hole is found (-ENOMEM).
    """
    length = -(-length // k.page_size) * k.page_size
    if start & ~k.page_mask:
        return -EINVAL
    at, end = start, start + length
    if k.fast is not None and end <= k.task_size:
        error = k.fast.do_mprotect(mm, at, end, prot)
        if error <= 0:
            return error
    while at < end:
        vma = vma_lookup(k, mm, at)
        if not vma:
            return -ENOMEM
        base = vma * _V
        stop = min(end, k.vma[base + VMA_END])
        flags = k.vma[base + VMA_FLAGS] & ~VM_ACCESS_FLAGS | prot & VM_ACCESS_FLAGS
        if prot & VM_WRITE and not flags & (VM_SHARED | VM_NORESERVE):
            # SIMPLIFIED: it stays when the right to write goes; since 6.7 not where no page was made.
            flags |= VM_ACCOUNT
        if prot & PROT_MTE and k.arch.gfp_zerotags:
            file = k.vma[base + VMA_FILE]
            if file and not k.file[file * FILE_RECORD + FILE_SHMEM]:
                return -EINVAL  # memory with tags is anonymous
            flags |= VM_MTE  # for good: no call takes it away
        old = k.vma[base + VMA_FLAGS]
        if not vma_set_flags(k, vma, at, stop, flags):
            return -ENOMEM
        if old & (VM_LOCKED | VM_WRITE | VM_SHARED) == VM_LOCKED and flags & VM_WRITE:
            fault_in(k, mm, at, stop, write=True)  # locked memory is there at once; errors pass
        at = stop
    return 0


def vma_set_flags(k: Arena, vma: int, start: int, end: int, flags: int) -> bool:
    """
    Give [start, end) of a VMA that holds it other VM_* flags; False when there is no memory for a
    VMA.

    The VMA is split at the edges and merged with its neighbours again, so it may be gone
    afterwards; pages follow when the access rights changed.
    """
    base = vma * _V
    old = k.vma[base + VMA_FLAGS]
    if flags == old:
        return True
    if k.fast is not None:
        return not k.fast.vma_set_flags(vma, start, end, flags)
    if k.vma[base + VMA_START] < start:
        vma = split_vma(k, vma, start)
        if not vma:
            return False
        base = vma * _V
    if k.vma[base + VMA_END] > end and not split_vma(k, vma, end):
        return False
    k.vma[base + VMA_FLAGS] = flags
    if (flags ^ old) & VM_ACCESS_FLAGS:
        k.vma[base + VMA_PAGE_PROT] = vm_get_page_prot(k, flags)
        change_protection(k, vma)
    vma_merge(k, vma)
    return True


def change_protection(k: Arena, vma: int) -> None:
    """Give every entry of a VMA the protection that the VMA has now, with one TLB invalidation."""
    base = vma * _V
    before = k.work[WORK_pte_write]
    mm, end = k.vma[base + VMA_MM], k.vma[base + VMA_END]
    stop = k.vma[base + VMA_START]
    while True:
        address, place = next_pmd(k, mm, stop, end)
        if not place:
            break
        stop = pmd_addr_end(k, address, end)
        if pmd_trans_huge(k, k.phys[place]):  # which lies in the VMA: none ends inside one
            change_huge_pmd(k, vma, place)
        else:
            pte = pte_in_table(k, k.phys[place], address)
            change_pte_range(k, vma, pte, stop - address >> k.page_shift)
    k.work[WORK_tlbi] += k.work[WORK_pte_write] != before


def change_pte_range(k: Arena, vma: int, pte: int, nr: int) -> None:
    """
    Change nr entries of one table.

    Write permission comes back at once only for exclusive pages of a private mapping; any other
    page asks by a fault (spec 5.10). From 6.17 (MPROTECT_BATCH) entries that end up alike are
    written together, which decides whether contiguous blocks fold again.
    """
    end = pte + nr
    while True:
        pte += k.ops.check_ptes_none(pte, end - pte)
        if pte >= end:
            return
        entry = k.phys[pte] & ~k.cont_bit
        page = pte_pfn(k, entry)
        folio = k.page[page * _P + PAGE_HEAD]
        order = k.page[folio * _P + PAGE_ORDER]
        batch = 1
        if order and k.config.mprotect_batch:
            ignore = k.arch.pte.young.mask | k.arch.pte.dirty.mask | k.cont_bit
            most = min(folio + (1 << order) - page, end - pte)
            batch = exclusive_batch(k, page, k.ops.folio_pte_batch(pte, ignore, most))
        change_batch(k, vma, pte, batch)
        if k.page[folio * _P + PAGE_FLAGS] & PG_anon:
            k.event[EV_mprotect_anon * NR_ORDERS + order] += batch
        pte += batch


def exclusive_batch(k: Arena, page: int, nr: int) -> int:
    """Return how many of nr pages are exclusive as the first, or not, as it is."""
    first = k.page[page * _P + PAGE_FLAGS] & PG_exclusive
    for i in range(1, nr):
        if k.page[(page + i) * _P + PAGE_FLAGS] & PG_exclusive != first:
            return i
    return nr


def change_batch(k: Arena, vma: int, pte: int, nr: int) -> None:
    """Give nr pages that are alike their VMA's protection; young and dirty of any are those of all."""
    base = vma * _V
    flags = k.vma[base + VMA_FLAGS]
    entry = k.phys[pte] & ~k.cont_bit
    marks = k.arch.pte.young.mask | k.arch.pte.dirty.mask
    entry = entry & ~marks | young_dirty(k, pte, nr)
    new = pte_modify(k, entry, k.vma[base + VMA_PAGE_PROT])
    exclusive = k.page[pte_pfn(k, entry) * _P + PAGE_FLAGS] & PG_exclusive
    if exclusive and flags & VM_WRITE and not flags & VM_SHARED:
        new = pte_mkwrite(k, new)
    read_ptes(k, pte, nr)
    clear_full_ptes(k, pte, nr)
    set_ptes(k, pte, new, nr)
