# SPDX-License-Identifier: GPL-2.0-only
"""Faults on file mappings: do_fault() and what it calls, from mm/memory.c of 6.4."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import filemap
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import set_pte, set_ptes
from .folio import (
    VmFault,
    add_mm_counter,
    count_task_folio,
    folio_put,
    mem_cgroup_charge,
    vma_alloc_movable_folio,
)
from .layout import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    NR_ORDERS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_PAGE_PROT,
    VMA_START,
    EV_file_around_pages,
    EV_file_read_fault,
    EV_file_shared_fault,
    EV_file_write_fault,
)
from .pgtable import mk_pte, pte_mkdirty, pte_mkwrite, pte_mkyoung
from .rmap import folio_add_file_rmap, folio_add_new_anon_rmap_range, linear_page_index
from .vm_flags import FAULT_FLAG_WRITE, VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_SHARED
from .vma import vma_prepare_anon

if TYPE_CHECKING:
    from .arena import Arena


def do_fault_around(k: Arena, vmf: VmFault) -> int:
    """
    Map the cached pages around a read fault on a file and the faulting one; return how many.

    Mirrors: mm/memory.c do_fault_around(), v6.4: the aligned window of fault_around_bytes, inside
    the VMA and the page table; pages of one folio that follow one another are mapped together.
    """
    base = vmf.vma * _V
    nr = k.knobs.fault_around_bytes >> k.page_shift
    offset = (vmf.address >> k.page_shift) & k.pte_mask
    before = vmf.address - k.vma[base + VMA_START] >> k.page_shift
    behind = k.vma[base + VMA_END] - vmf.address >> k.page_shift
    start = max(offset & -nr, offset - min(offset, before))
    end = min(start + nr, k.pte_mask + 1, offset + behind)
    file = k.vma[base + VMA_FILE]
    index = linear_page_index(k, vmf.vma, vmf.address) - offset
    table = vmf.pte - offset
    at, mapped = start, 0
    shmem = filemap.is_shmem(k, file)
    while at < end:
        nr = 1
        if (
            k.phys[table + at]
            or not filemap.has_page(k, file, index + at)
            or (shmem and not filemap.filemap_get_folio(k, file, index + at))
        ):
            at += nr
            continue
        page = filemap.filemap_fault(k, vmf.vma, index + at)
        if not page:
            break
        folio = k.page[page * _P + PAGE_HEAD]
        order = k.page[folio * _P + PAGE_ORDER]
        if order:
            most = min(folio + (1 << order) - page, end - at)
            nr = k.ops.check_ptes_none(table + at, most)
        set_pte_range(k, vmf, table + at, page, nr, write=False)
        mapped += nr
        at += nr
    return mapped


def set_pte_range(k: Arena, vmf: VmFault, pte: int, page: int, nr: int, write: bool) -> None:
    """Map nr pages of one page-cache folio; writable only for a write to a shared mapping."""
    entry = pte_mkyoung(k, mk_pte(k, page, k.vma[vmf.vma * _V + VMA_PAGE_PROT]))
    if write:
        entry = pte_mkwrite(k, pte_mkdirty(k, entry))
    set_ptes(k, pte, entry, nr)
    k.page[k.page[page * _P + PAGE_HEAD] * _P + PAGE_REFCOUNT] += nr
    folio_add_file_rmap(k, page, nr)
    add_mm_counter(k, vmf.mm, MM_FILEPAGES, nr)


def do_fault(k: Arena, vmf: VmFault) -> int:
    """Serve a fault on a file mapping that maps nothing yet: read, private write or shared write."""
    base = vmf.vma * _V
    file = k.vma[base + VMA_FILE]
    index = linear_page_index(k, vmf.vma, vmf.address)
    if not filemap.has_page(k, file, index):
        return VM_FAULT_SIGBUS
    page = filemap.filemap_fault(k, vmf.vma, index)
    if not page:
        return VM_FAULT_OOM
    write = bool(vmf.flags & FAULT_FLAG_WRITE)
    if write and not k.vma[base + VMA_FLAGS] & VM_SHARED:
        return do_cow_fault(k, vmf, page)
    if write:
        set_pte_range(k, vmf, vmf.pte, page, 1, write)
        k.event[EV_file_shared_fault * NR_ORDERS] += 1
        return 0
    k.event[EV_file_read_fault * NR_ORDERS] += 1
    mapped = 0
    if k.knobs.fault_around_bytes > k.page_size:
        mapped = do_fault_around(k, vmf)
    if not k.phys[vmf.pte]:  # memory was short before it was reached
        set_pte_range(k, vmf, vmf.pte, page, 1, write)
        mapped += 1
    k.event[EV_file_around_pages * NR_ORDERS] += mapped - 1
    return 0


def do_cow_fault(k: Arena, vmf: VmFault, page: int) -> int:
    """Give the writer to a private file mapping its own copy of a page-cache page: one page."""
    if not vma_prepare_anon(k, vmf.vma):
        return VM_FAULT_OOM
    new = vma_alloc_movable_folio(k, 0)
    if not new:
        return VM_FAULT_OOM
    if not mem_cgroup_charge(k):
        folio_put(k, new)
        return VM_FAULT_OOM
    if k.config.phys_backing:
        k.ops.copy_pages(new, page, 1)
    entry = pte_mkyoung(k, mk_pte(k, new, k.vma[vmf.vma * _V + VMA_PAGE_PROT]))
    set_pte(k, vmf.pte, pte_mkwrite(k, pte_mkdirty(k, entry)))
    folio_add_new_anon_rmap_range(k, new, new, 1, vmf.vma, vmf.address)
    add_mm_counter(k, vmf.mm, MM_ANONPAGES, 1)
    count_task_folio(k, 0)
    k.event[EV_file_write_fault * NR_ORDERS] += 1
    return 0
