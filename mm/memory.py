# SPDX-License-Identifier: GPL-2.0-only
"""
Faults and unmapping: mm/memory.c of the v1 series on 6.4.

A fault that could not be served returns a VM_FAULT_* bit; 0 is success, also when the fault was
overtaken and the access must be tried again, as the hardware would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import filemap
from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import TASK_RECORD as _T
from .arena import VMA_RECORD as _V
from .huge_memory import (
    deferred_split_folio,
    folio_undo_large_rmappable,
    has_transparent_hugepage,
    max_anon_folio_order,
)
from .layout import (
    EXIT_DEFERRED_SPLIT,
    EXIT_DONE,
    EXIT_FREE,
    EXIT_FULL,
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_HIWATER_RSS,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    RUN_BATCH,
    RUN_FOLIO,
    RUN_MM,
    RUN_NR,
    RUN_PTE,
    RUN_REASON,
    RUN_ROOM,
    TASK_FOLIOS,
    TASK_MINFLT,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    VMA_START,
    ZONE_ANON,
    EV_anon_fault,
    EV_anon_free,
    EV_file_around_pages,
    EV_file_read_fault,
    EV_file_shared_fault,
    EV_file_write_fault,
    EV_spurious_fault,
    EV_wp_copy,
    EV_wp_reuse,
    EV_wp_zero,
    EV_zap_anon,
    EV_zap_file,
    EV_zero_page_fault,
    MTHP_anon_fault_alloc,
    MTHP_anon_fault_fallback,
    PG_anon,
    PG_exclusive,
    PG_lru,
    VM_pgfault,
    VM_pgreuse,
)
from .page_alloc import folio_alloc, folio_free
from .pgtable import (
    mk_pte,
    next_table,
    pmd_addr_end,
    pte_alloc_map,
    pte_mkdirty,
    pte_mkspecial,
    pte_mkwrite,
    pte_mkyoung,
    pte_offset_map,
    pte_pfn,
    pte_present,
    pte_special,
    pte_write,
)
from .rmap import (
    folio_add_file_rmap,
    folio_add_new_anon_rmap_range,
    folio_remove_file_rmap,
    linear_page_index,
    page_move_anon_rmap,
    page_remove_rmap,
)
from .vm_flags import (
    FAULT_FLAG_WRITE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_SHARED,
    VM_WRITE,
)
from .vma import vma_prepare_anon

if TYPE_CHECKING:
    from .arena import Arena


@dataclass(slots=True)
class VmFault:
    """
    A fault on its way: mirrors struct vm_fault.

    Attributes:
        address: first byte of the faulting page.
        flags: FAULT_FLAG_* bits.
        pte: place of the page's entry.
        orig_pte: what was there when the fault began.
    """

    vma: int
    mm: int
    address: int
    flags: int
    pte: int = 0
    orig_pte: int = 0


def add_mm_counter(k: Arena, mm: int, counter: int, nr: int) -> None:
    """Add nr pages to MM_ANONPAGES or MM_FILEPAGES of mm."""
    k.mm[mm * _M + counter] += nr


def update_hiwater_rss(k: Arena, mm: int) -> None:
    """Keep mm's largest resident set; called before pages go away, as in the kernel."""
    base = mm * _M
    rss = k.mm[base + MM_ANONPAGES] + k.mm[base + MM_FILEPAGES]
    if rss > k.mm[base + MM_HIWATER_RSS]:
        k.mm[base + MM_HIWATER_RSS] = rss


def folio_put(k: Arena, folio: int) -> None:
    """Drop one reference to an anonymous folio; frees it with the last."""
    base = folio * _P
    k.page[base + PAGE_REFCOUNT] -= 1
    if not k.page[base + PAGE_REFCOUNT]:
        free_anon_folio(k, folio)


def free_anon_folio(k: Arena, folio: int) -> None:
    """Free an anonymous folio without references."""
    folio_undo_large_rmappable(k, folio)
    k.event[EV_anon_free * NR_ORDERS + k.page[folio * _P + PAGE_ORDER]] += 1
    folio_free(k, folio, ZONE_ANON)


def vma_alloc_movable_folio(k: Arena, order: int) -> int:
    """Return a new anonymous folio, not zeroed, in one attempt; 0 when memory is short (patch 3)."""
    return folio_alloc(k, order, PG_anon | PG_lru, ZONE_ANON)


def vma_alloc_zeroed_movable_folio(k: Arena, address: int, order: int) -> int:
    """
    Return a new zeroed anonymous folio for the aligned block of address (patch 2); 0 = no memory.

    The page that address is in is zeroed last. The kernel's VMA argument only chooses a NUMA node.
    """
    folio = vma_alloc_movable_folio(k, order)
    if folio and k.config.phys_backing:
        nr = 1 << order
        k.ops.clear_huge_page(folio, nr, (address >> k.page_shift) & (nr - 1))
    return folio


def try_vma_alloc_movable_folio(k: Arena, address: int, order: int, zeroed: bool) -> int:
    """
    Return a folio of the largest order that memory allows: order, order - 1, … 2, then 0 (patch 3).

    Order 1 is not tried: a large folio keeps its state in its second tail page. 0 when not even
    order 0 can be had.
    """
    while order > 1:
        folio = _alloc(k, address, order, zeroed)
        if folio:
            return folio
        k.mthp_stat[MTHP_anon_fault_fallback * NR_ORDERS + order] += 1
        order -= 1
    return _alloc(k, address, 0, zeroed)


def _alloc(k: Arena, address: int, order: int, zeroed: bool) -> int:
    if zeroed:
        return vma_alloc_zeroed_movable_folio(k, address, order)
    return vma_alloc_movable_folio(k, order)


def mem_cgroup_charge(k: Arena) -> bool:
    """Return whether the charge of a new folio succeeds: always, unless a failure is injected."""
    return k.inject is None or not k.inject.should_fail_charge()


def calc_anon_folio_order_alloc(k: Arena, vmf: VmFault, order: int) -> int:
    """
    Return the order to allocate for a write fault on fresh memory (patch 10, spec 1.10).

    It is the largest order in [2, order] whose naturally aligned block around the fault lies in the
    VMA and maps nothing, else 0. ``none`` remembers the lowest populated page that a scan met, so
    that a smaller block below it is known to be empty and one that holds it is not scanned again.
    """
    if not has_transparent_hugepage(k):
        return 0
    base = vmf.vma * _V
    start, end = k.vma[base + VMA_START], k.vma[base + VMA_END]
    pte_index = (vmf.address >> k.page_shift) & k.pte_mask
    first_set = -1
    for candidate in range(min(order, k.geometry.pmd_order), 1, -1):
        nr = 1 << candidate
        low = vmf.address & -(nr << k.page_shift)
        if low < start or low + (nr << k.page_shift) > end:
            continue
        index = pte_index & -nr
        if first_set >= 0:
            if index + nr <= first_set:
                return candidate
            if index <= first_set:
                continue
        none = k.ops.check_ptes_none(vmf.pte - pte_index + index, nr)
        if none == nr:
            return candidate
        first_set = index + none
    return 0


def do_anonymous_page(k: Arena, vmf: VmFault) -> int:
    """
    Serve a fault on anonymous memory that maps nothing yet (patch 10, spec 1.10).

    A read maps the zero page, always one. A write maps the largest folio that fits; a block that
    somebody populated between the estimate and the lock is tried again one order smaller. A failed
    charge is VM_FAULT_OOM: v1 does not fall back there.
    """
    vma, mm = vmf.vma, vmf.mm
    flags = k.vma[vma * _V + VMA_FLAGS]
    if not vmf.flags & FAULT_FLAG_WRITE:
        entry = pte_mkspecial(k, mk_pte(k, k.zero_pfn, k.vma[vma * _V + VMA_PAGE_PROT]))
        k.phys[vmf.pte] = pte_mkyoung(k, entry)
        k.event[EV_zero_page_fault * NR_ORDERS] += 1
        return 0
    order = max_anon_folio_order(k, vma)
    while True:
        if order > 1:
            order = calc_anon_folio_order_alloc(k, vmf, order)
        else:
            order = 0
        if not vma_prepare_anon(k, vma):
            return VM_FAULT_OOM
        folio = try_vma_alloc_movable_folio(k, vmf.address, order, zeroed=True)
        if not folio:
            return VM_FAULT_OOM
        order = k.page[folio * _P + PAGE_ORDER]
        if not mem_cgroup_charge(k):
            folio_put(k, folio)
            return VM_FAULT_OOM
        if k.inject is not None:
            k.inject.populate_behind(k, vmf, order)
        nr = 1 << order
        address = vmf.address & -(nr << k.page_shift)
        pte = vmf.pte - (vmf.address - address >> k.page_shift)
        if k.ops.check_ptes_none(pte, nr) == nr if order else not k.phys[pte]:
            break
        folio_put(k, folio)
        if k.phys[vmf.pte]:
            return 0
        order -= 1
    entry = pte_mkyoung(k, mk_pte(k, folio, k.vma[vma * _V + VMA_PAGE_PROT]))
    if flags & VM_WRITE:
        entry = pte_mkwrite(k, pte_mkdirty(k, entry))
    k.page[folio * _P + PAGE_REFCOUNT] = nr
    k.mm[mm * _M + MM_ANONPAGES] += nr
    folio_add_new_anon_rmap_range(k, folio, folio, nr, vma, address)
    k.mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS + order] += 1
    k.event[EV_anon_fault * NR_ORDERS + order] += 1
    k.task[k.current * _T + TASK_FOLIOS + order] += 1
    if order:
        k.ops.set_ptes(pte, entry, nr)
    else:
        k.phys[pte] = entry
    return 0


def wp_page_copy(k: Arena, vmf: VmFault) -> int:
    """
    Give the writer of a shared page, a file's page or the zero page a page of its own: one page.

    Large folios are not copied whole: that is the ``anonfolio`` kernel's doing (spec 2, R2).
    """
    vma, mm, old = vmf.vma, vmf.mm, vmf.orig_pte
    zero = pte_special(k, old)
    if not vma_prepare_anon(k, vma):
        return VM_FAULT_OOM
    if zero:
        new = vma_alloc_zeroed_movable_folio(k, vmf.address, 0)
    else:
        new = vma_alloc_movable_folio(k, 0)
    if not new:
        return VM_FAULT_OOM
    if not mem_cgroup_charge(k):
        folio_put(k, new)
        return VM_FAULT_OOM
    page = pte_pfn(k, old)
    if not zero and k.config.phys_backing:
        k.ops.copy_pages(new, page, 1)
    entry = pte_mkyoung(k, mk_pte(k, new, k.vma[vma * _V + VMA_PAGE_PROT]))
    k.phys[vmf.pte] = pte_mkwrite(k, pte_mkdirty(k, entry))
    folio_add_new_anon_rmap_range(k, new, new, 1, vma, vmf.address)
    if zero:
        add_mm_counter(k, mm, MM_ANONPAGES, 1)
        k.event[EV_wp_zero * NR_ORDERS] += 1
        return 0
    folio = k.page[page * _P + PAGE_HEAD]
    if k.page[folio * _P + PAGE_FLAGS] & PG_anon:
        page_remove_rmap(k, folio, page)
        folio_put(k, folio)
        k.event[EV_wp_copy * NR_ORDERS] += 1
    else:
        add_mm_counter(k, mm, MM_ANONPAGES, 1)
        add_mm_counter(k, mm, MM_FILEPAGES, -1)
        folio_remove_file_rmap(k, page)
        filemap.put_page(k, page)
        k.event[EV_file_write_fault * NR_ORDERS] += 1
    return 0


def do_wp_page(k: Arena, vmf: VmFault) -> int:
    """
    Serve a write to a present, read-only page: reuse it if nobody else can see it, else copy.

    6.4: an exclusive page is reused; a small folio with one reference is taken over; a page of a large
    folio that was shared is copied even when this is its last mapping (spec 1.10).
    """
    vma, pte = vmf.vma, vmf.orig_pte
    flags = k.vma[vma * _V + VMA_FLAGS]
    if pte_special(k, pte):
        return wp_page_copy(k, vmf)
    page = pte_pfn(k, pte)
    folio = k.page[page * _P + PAGE_HEAD]
    if flags & VM_SHARED:
        k.event[EV_file_shared_fault * NR_ORDERS] += 1
        k.phys[vmf.pte] = pte_mkwrite(k, pte_mkdirty(k, pte_mkyoung(k, pte)))
        return 0
    base = folio * _P
    if k.page[base + PAGE_FLAGS] & PG_anon:
        reuse = bool(k.page[page * _P + PAGE_FLAGS] & PG_exclusive)
        if not reuse and not k.page[base + PAGE_ORDER] and k.page[base + PAGE_REFCOUNT] == 1:
            page_move_anon_rmap(k, folio, page, vma)
            reuse = True
        if reuse:
            k.phys[vmf.pte] = pte_mkwrite(k, pte_mkdirty(k, pte_mkyoung(k, pte)))
            k.vmstat[VM_pgreuse] += 1
            k.event[EV_wp_reuse * NR_ORDERS] += 1
            return 0
    return wp_page_copy(k, vmf)


def do_fault_around(k: Arena, vmf: VmFault) -> int:
    """
    Map the cached pages around a read fault on a file; return how many besides the faulting one.

    Mirrors: mm/memory.c do_fault_around(), v6.4: the aligned window of fault_around_bytes, inside the
    VMA and the page table.
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
    mapped = 0
    shmem = filemap.is_shmem(k, file)
    for at in range(start, end):
        if at == offset or k.phys[table + at] or not filemap.has_page(k, file, index + at):
            continue
        if shmem and not filemap.filemap_get_folio(k, file, index + at):
            continue
        page = filemap.filemap_fault(k, file, index + at)
        if not page:
            break
        set_file_pte(k, vmf, table + at, page, write=False)
        mapped += 1
    return mapped


def set_file_pte(k: Arena, vmf: VmFault, pte: int, page: int, write: bool) -> None:
    """Map a page-cache page; writable only for a write to a shared mapping."""
    entry = pte_mkyoung(k, mk_pte(k, page, k.vma[vmf.vma * _V + VMA_PAGE_PROT]))
    if write:
        entry = pte_mkwrite(k, pte_mkdirty(k, entry))
    k.phys[pte] = entry
    k.page[page * _P + PAGE_REFCOUNT] += 1
    folio_add_file_rmap(k, page)
    add_mm_counter(k, vmf.mm, MM_FILEPAGES, 1)


def do_fault(k: Arena, vmf: VmFault) -> int:
    """Serve a fault on a file mapping that maps nothing yet: read, private write or shared write."""
    base = vmf.vma * _V
    file = k.vma[base + VMA_FILE]
    index = linear_page_index(k, vmf.vma, vmf.address)
    if not filemap.has_page(k, file, index):
        return VM_FAULT_SIGBUS
    page = filemap.filemap_fault(k, file, index)
    if not page:
        return VM_FAULT_OOM
    write = bool(vmf.flags & FAULT_FLAG_WRITE)
    if write and not k.vma[base + VMA_FLAGS] & VM_SHARED:
        return do_cow_fault(k, vmf, page)
    set_file_pte(k, vmf, vmf.pte, page, write)
    if write:
        k.event[EV_file_shared_fault * NR_ORDERS] += 1
        return 0
    k.event[EV_file_read_fault * NR_ORDERS] += 1
    if k.knobs.fault_around_bytes > k.page_size:
        k.event[EV_file_around_pages * NR_ORDERS] += do_fault_around(k, vmf)
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
    k.phys[vmf.pte] = pte_mkwrite(k, pte_mkdirty(k, entry))
    folio_add_new_anon_rmap_range(k, new, new, 1, vmf.vma, vmf.address)
    add_mm_counter(k, vmf.mm, MM_ANONPAGES, 1)
    k.event[EV_file_write_fault * NR_ORDERS] += 1
    return 0


def handle_mm_fault(k: Arena, vma: int, address: int, flags: int) -> int:
    """
    Serve one fault of the current task and return 0 or VM_FAULT_* bits.

    The caller has checked that the VMA holds address and allows the access. A fault that was served
    is a minor fault of the task.
    """
    k.vmstat[VM_pgfault] += 1
    error = __handle_mm_fault(k, vma, address, flags)
    if not error:
        k.task[k.current * _T + TASK_MINFLT] += 1
    return error


def __handle_mm_fault(k: Arena, vma: int, address: int, flags: int) -> int:
    mm = k.vma[vma * _V + VMA_MM]
    pte = pte_alloc_map(k, mm, address)
    if not pte:
        return VM_FAULT_OOM
    entry = k.phys[pte]
    vmf = VmFault(vma, mm, address & k.page_mask, flags, pte, entry)
    if not entry:
        if not k.vma[vma * _V + VMA_FILE]:
            return do_anonymous_page(k, vmf)
        return do_fault(k, vmf)
    if flags & FAULT_FLAG_WRITE and not pte_write(k, entry):
        return do_wp_page(k, vmf)
    k.event[EV_spurious_fault * NR_ORDERS] += 1
    entry = pte_mkyoung(k, entry)
    k.phys[pte] = pte_mkdirty(k, entry) if flags & FAULT_FLAG_WRITE else entry
    return 0


def tlb_capacity(k: Arena) -> int:
    """
    Return how many pages one mmu_gather takes before it must flush.

    8, and as many batch pages of pointers as hold at most 10000 (mm/mmu_gather.c, v6.4).
    """
    most = k.page_size // 8 - 2
    return 8 + 10000 // most * most


def tlb_gather_mmu(k: Arena) -> None:
    """Begin to unmap: the gather is empty."""
    k.run[RUN_ROOM] = tlb_capacity(k)


def unmap_page_range(k: Arena, vma: int, start: int, end: int) -> None:
    """Unmap what a VMA maps in [start, end), page table by page table."""
    mm = k.vma[vma * _V + VMA_MM]
    address = next_table(k, mm, start, end)
    while address < end:
        stop = pmd_addr_end(k, address, end)
        zap_pte_range(k, vma, mm, pte_offset_map(k, mm, address), stop - address >> k.page_shift)
        address = next_table(k, mm, stop, end)


def zap_pte_range(k: Arena, vma: int, mm: int, pte: int, nr: int) -> None:
    """
    Unmap a run of nr entries of one table (patch 7, spec 1.7).

    Pages of one folio that follow one another go in one batch in an anonymous VMA; a batch ends where
    the mmu_gather is full. The folio that lost its last reference is freed at once.
    """
    run = k.run
    run[RUN_PTE] = pte
    run[RUN_NR] = nr
    run[RUN_MM] = mm
    run[RUN_BATCH] = k.config.zap_batch and not k.vma[vma * _V + VMA_FILE]
    zap = k.ops.zap_ptes
    while True:
        zap()
        reason = run[RUN_REASON]
        if reason == EXIT_FREE:
            free_anon_folio(k, run[RUN_FOLIO])
        elif reason == EXIT_DONE:
            return
        elif reason == EXIT_DEFERRED_SPLIT:
            folio = run[RUN_FOLIO]
            deferred_split_folio(k, folio)
            if not k.page[folio * _P + PAGE_REFCOUNT]:
                free_anon_folio(k, folio)
        elif reason == EXIT_FULL:
            run[RUN_ROOM] = tlb_capacity(k)
        else:
            zap_other_pte(k, mm)


def zap_other_pte(k: Arena, mm: int) -> None:
    """Unmap the one entry at RUN_PTE: a page-cache page or the zero page."""
    run = k.run
    pte = run[RUN_PTE]
    entry = k.phys[pte]
    k.phys[pte] = 0
    run[RUN_PTE] = pte + 1
    run[RUN_NR] -= 1
    if pte_special(k, entry):
        k.event[EV_zap_anon * NR_ORDERS] += 1
        return
    assert pte_present(k, entry), "there is no swap"
    page = pte_pfn(k, entry)
    k.event[EV_zap_file * NR_ORDERS] += 1
    add_mm_counter(k, mm, MM_FILEPAGES, -1)
    folio_remove_file_rmap(k, page)
    run[RUN_ROOM] = (run[RUN_ROOM] or tlb_capacity(k)) - 1
    filemap.put_page(k, page)


def zap_page_range(k: Arena, vma: int, start: int, end: int) -> None:
    """Unmap what a VMA maps in [start, end), which lies in it; page tables stay (MADV_DONTNEED)."""
    update_hiwater_rss(k, k.vma[vma * _V + VMA_MM])
    tlb_gather_mmu(k)
    unmap_page_range(k, vma, start, end)
