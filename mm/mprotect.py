# SPDX-License-Identifier: GPL-2.0-only
"""mprotect: VMAs get another protection, and so do the entries of their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
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
    next_table,
    pmd_addr_end,
    pte_mkwrite,
    pte_modify,
    pte_offset_map,
    pte_pfn,
    pte_special,
    vm_get_page_prot,
)
from .vm_flags import EINVAL, ENOMEM, VM_ACCESS_FLAGS, VM_SHARED, VM_WRITE
from .vma import split_vma, vma_merge, vmas_in

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
    return vma_set_flags(k, mm, start, start + length, VM_ACCESS_FLAGS, prot & VM_ACCESS_FLAGS)


def vma_set_flags(k: Arena, mm: int, start: int, end: int, clear: int, flags: int) -> int:
    """
    Take the VM_* bits ``clear`` from every VMA in [start, end), put ``flags`` in; return 0 or -ENOMEM.

    VMAs are split at the edges and merged with their neighbours again; pages follow when the access
    rights changed. A hole is -ENOMEM, found when what lies below it is done.
    """
    at = start
    for vma in vmas_in(k, mm, start, end):
        base = vma * _V
        if k.vma[base + VMA_START] > at:
            return -ENOMEM
        stop = min(end, k.vma[base + VMA_END])
        old = k.vma[base + VMA_FLAGS]
        new = old & ~clear | flags
        if new != old:
            if k.vma[base + VMA_START] < at:
                vma = split_vma(k, vma, at)
            if vma and k.vma[vma * _V + VMA_END] > stop and not split_vma(k, vma, stop):
                vma = 0
            if not vma:
                return -ENOMEM
            base = vma * _V
            k.vma[base + VMA_FLAGS] = new
            if (new ^ old) & VM_ACCESS_FLAGS:
                k.vma[base + VMA_PAGE_PROT] = vm_get_page_prot(k, new)
                change_protection(k, vma)
            vma_merge(k, vma)
        at = stop
    return 0 if at >= end else -ENOMEM


def change_protection(k: Arena, vma: int) -> None:
    """Give every entry of a VMA the protection that the VMA has now."""
    base = vma * _V
    mm, end = k.vma[base + VMA_MM], k.vma[base + VMA_END]
    address = next_table(k, mm, k.vma[base + VMA_START], end)
    while address < end:
        stop = pmd_addr_end(k, address, end)
        pte = pte_offset_map(k, mm, address)
        change_pte_range(k, vma, pte, stop - address >> k.page_shift)
        address = next_table(k, mm, stop, end)


def change_pte_range(k: Arena, vma: int, pte: int, nr: int) -> None:
    """
    Change nr entries of one table.

    Write permission comes back at once only for exclusive pages of a private mapping; any other page
    asks by a fault (spec 5.10).
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
        entry = k.phys[pte]
        new = pte_modify(k, entry, prot)
        if not pte_special(k, entry):
            page = pte_pfn(k, entry)
            folio = k.page[page * _P + PAGE_HEAD]
            if k.page[folio * _P + PAGE_FLAGS] & PG_anon:
                order = k.page[folio * _P + PAGE_ORDER]
                k.event[EV_mprotect_anon * NR_ORDERS + order] += 1
                if may_write and k.page[page * _P + PAGE_FLAGS] & PG_exclusive:
                    new = pte_mkwrite(k, new)
        k.phys[pte] = new
        pte += 1
