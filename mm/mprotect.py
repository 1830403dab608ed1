# SPDX-License-Identifier: GPL-2.0-only
"""mprotect: VMAs get another protection, and so do the entries of their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import set_pte
from .huge_memory import change_huge_pmd
from .layout import (
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    VMA_END,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    VMA_START,
    EV_mprotect_anon,
    PG_anon,
    PG_exclusive,
)
from .pgtable import (
    next_pmd,
    pmd_addr_end,
    pmd_trans_huge,
    pte_in_table,
    pte_mkwrite,
    pte_modify,
    pte_pfn,
    pte_special,
    vm_get_page_prot,
)
from .vm_flags import EINVAL, ENOMEM, VM_ACCESS_FLAGS, VM_ACCOUNT, VM_NORESERVE, VM_SHARED, VM_WRITE
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
    while at < end:
        vma = vma_lookup(k, mm, at)
        if not vma:
            return -ENOMEM
        base = vma * _V
        stop = min(end, k.vma[base + VMA_END])
        flags = k.vma[base + VMA_FLAGS] & ~VM_ACCESS_FLAGS | prot & VM_ACCESS_FLAGS
        if prot & VM_WRITE and not flags & (VM_SHARED | VM_NORESERVE):
            flags |= VM_ACCOUNT  # it stays when the right to write goes
        if not vma_set_flags(k, vma, at, stop, flags):
            return -ENOMEM
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
    """Give every entry of a VMA the protection that the VMA has now."""
    base = vma * _V
    mm, end = k.vma[base + VMA_MM], k.vma[base + VMA_END]
    address, place = next_pmd(k, mm, k.vma[base + VMA_START], end)
    while place:
        stop = pmd_addr_end(k, address, end)
        if pmd_trans_huge(k, k.phys[place]):
            change_huge_pmd(
                k, vma, place
            )  # it lies in the VMA as a whole: VMAs do not end inside one
        else:
            pte = pte_in_table(k, k.phys[place], address)
            change_pte_range(k, vma, pte, stop - address >> k.page_shift)
        address, place = next_pmd(k, mm, stop, end)


def change_pte_range(k: Arena, vma: int, pte: int, nr: int) -> None:
    """
    Change nr entries of one table.

    Write permission comes back at once only for exclusive pages of a private mapping; any other
    page asks by a fault (spec 5.10).
    """
    base = vma * _V
    prot = k.vma[base + VMA_PAGE_PROT]
    flags = k.vma[base + VMA_FLAGS]
    may_write = flags & VM_WRITE and not flags & VM_SHARED
    end = pte + nr
    while True:
        pte += k.ops.check_ptes_none(pte, end - pte)
        if pte >= end:
            return
        entry = k.phys[pte] & ~k.cont_bit
        new = pte_modify(k, entry, prot)
        if not pte_special(k, entry):
            page = pte_pfn(k, entry)
            folio = k.page[page * _P + PAGE_HEAD]
            if k.page[folio * _P + PAGE_FLAGS] & PG_anon:
                order = k.page[folio * _P + PAGE_ORDER]
                k.event[EV_mprotect_anon * NR_ORDERS + order] += 1
                if may_write and k.page[page * _P + PAGE_FLAGS] & PG_exclusive:
                    new = pte_mkwrite(k, new)
        set_pte(k, pte, new)
        pte += 1
