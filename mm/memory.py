# SPDX-License-Identifier: GPL-2.0-only
"""
Faults: the part of mm/memory.c that serves anonymous memory, of 6.4 with the v1 series and of
mainline since 6.8.

A fault that could not be served returns a VM_FAULT_* bit; 0 is success, also when the fault was
overtaken and the access must be tried again, as the hardware would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import filemap
from .arena import PAGE_RECORD as _P
from .arena import TASK_RECORD as _T
from .arena import VMA_RECORD as _V
from .contpte import (
    clear_ptes_range,
    read_ptes,
    set_access_flags,
    set_access_flags_range,
    set_pte,
    set_ptes,
)
from .cow import calc_anon_folio_order_copy, wp_reuse_run
from .file_fault import do_fault
from .folio import (
    VmFault,
    add_mm_counter,
    count_task_folio,
    folio_put,
    mem_cgroup_charge,
    vma_alloc_zeroed_movable_folio,
)
from .huge_memory import (
    do_huge_pmd_anonymous_page,
    do_huge_pmd_wp_page,
    thp_vma_allowable_orders,
    thp_vma_suitable_order,
    vma_thp_gfp_mask,
)
from .large_anon_folio import (
    calc_anon_folio_orders_alloc,
    check_ptes_free,
    max_anon_folio_order,
    try_vma_alloc_movable_folio,
)
from .layout import (
    FOLIO_LARGE_MAPCOUNT,
    MM_ANONPAGES,
    MM_FILEPAGES,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    REFUSED_ALLOC,
    REFUSED_CHARGE,
    REFUSED_NOT_ENABLED,
    REFUSED_POPULATED,
    TASK_MINFLT,
    VMA_FILE,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    EV_anon_fault,
    EV_file_shared_fault,
    EV_file_write_fault,
    EV_spurious_fault,
    EV_wp_copy,
    EV_wp_reuse,
    EV_wp_zero,
    EV_zero_page_fault,
    MTHP_anon_fault_alloc,
    MTHP_anon_fault_fallback,
    MTHP_anon_fault_fallback_charge,
    PG_anon,
    PG_exclusive,
    VM_pgfault,
    VM_pgreuse,
)
from .page_alloc import __GFP_NORETRY, GFP_HIGHUSER_MOVABLE
from .pgtable import (
    mk_pte,
    pmd_alloc,
    pmd_trans_huge,
    populate,
    pte_alloc_one,
    pte_in_table,
    pte_mkdirty,
    pte_mkspecial,
    pte_mkwrite,
    pte_mkyoung,
    pte_pfn,
    pte_special,
    pte_write,
)
from .policy import TVA_FALLBACK, TVA_PAGEFAULT, up_to
from .refused import count_refused
from .rmap import (
    folio_add_new_anon_rmap_range,
    folio_maybe_mapped_shared,
    folio_move_anon_rmap,
    folio_remove_file_rmap,
    folio_remove_rmap_range,
)
from .vm_flags import FAULT_FLAG_WRITE, VM_FAULT_FALLBACK, VM_FAULT_OOM, VM_SHARED, VM_WRITE
from .vma import vma_prepare_anon

if TYPE_CHECKING:
    from .arena import Arena


def do_anonymous_page(k: Arena, vmf: VmFault) -> int:
    """
    Serve a fault on anonymous memory that maps nothing yet.

    A read maps the zero page, always one. A write maps the folio that the kernel's policy chooses.
    """
    vma = vmf.vma
    if not vmf.flags & FAULT_FLAG_WRITE:
        entry = pte_mkspecial(k, mk_pte(k, k.zero_pfn, k.vma[vma * _V + VMA_PAGE_PROT]))
        set_pte(k, vmf.pte, pte_mkyoung(k, entry))
        k.event[EV_zero_page_fault * NR_ORDERS] += 1
        return 0
    return do_anonymous_write(k, vmf, EV_anon_fault)


def do_anonymous_write(k: Arena, vmf: VmFault, event: int) -> int:
    """Serve a write to memory that holds only zeroes by a new folio; ``event`` counts it by order."""
    if not vma_prepare_anon(k, vmf.vma):
        return VM_FAULT_OOM
    folio = alloc_anon_folio(k, vmf)
    if folio <= 0:
        return -folio  # VM_FAULT_OOM, or 0: the fault was overtaken
    map_anon_folio_pte(k, vmf, folio, event)
    return 0


def map_anon_folio_pte(k: Arena, vmf: VmFault, folio: int, event: int) -> None:
    """
    Map a new, charged folio by the entries of its block around a write fault.

    The block is empty, or some of its entries map the zero page, which goes (RFCv2 15/17).
    """
    vma = vmf.vma
    order = k.page[folio * _P + PAGE_ORDER]
    nr = 1 << order
    address = vmf.address & -(nr << k.page_shift)
    pte = vmf.pte - (vmf.address - address >> k.page_shift)
    entry = pte_mkyoung(k, mk_pte(k, folio, k.vma[vma * _V + VMA_PAGE_PROT]))
    if k.vma[vma * _V + VMA_FLAGS] & VM_WRITE:
        entry = pte_mkwrite(k, pte_mkdirty(k, entry))
    if vmf.orig_pte:
        clear_ptes_range(k, pte, nr)
    k.page[folio * _P + PAGE_REFCOUNT] = nr
    add_mm_counter(k, vmf.mm, MM_ANONPAGES, nr)
    folio_add_new_anon_rmap_range(k, folio, folio, nr, vma, address)
    k.mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS + order] += 1
    k.event[event * NR_ORDERS + order] += 1
    count_task_folio(k, order)
    set_ptes(k, pte, entry, nr)


def alloc_anon_folio(k: Arena, vmf: VmFault) -> int:
    """
    Return a zeroed, charged folio for a free block around a write fault; -VM_FAULT_OOM, or 0 when
    overtaken.

    The kernel's ladder (policy.py) chooses one of the orders that fit, and again when its allocation
    fails. A failed charge is an allocation that failed in mainline (v6.10, spec 5.5) and
    VM_FAULT_OOM in the series (spec 1.10). When somebody populated the block behind our back the
    page is left to the next fault; v1 tries a smaller block at once. What an edge or a populated
    entry refuse is not counted as a fallback.
    """
    vma, address, get_order = vmf.vma, vmf.address, k.ladder.thp_get_order
    wanted = k.ladder.wanted(k, k.vma[vma * _V + VMA_FLAGS])
    orders = calc_anon_folio_orders_alloc(k, vmf, wanted) | 1
    if 0 <= vmf.choice < k.pmd_order:
        order = vmf.choice
    else:
        order = get_order(
            k, vma, address, TVA_FALLBACK if vmf.choice > 0 else TVA_PAGEFAULT, orders
        )
    v1 = k.config.policy == "v1"
    large = GFP_HIGHUSER_MOVABLE | __GFP_NORETRY if v1 else vma_thp_gfp_mask(k, vma)
    while True:
        gfp = large if order else GFP_HIGHUSER_MOVABLE
        folio = vma_alloc_zeroed_movable_folio(k, vma, address, gfp, order)
        if folio and mem_cgroup_charge(k):
            if still_free(k, vmf, order):
                count_refused(k, vmf, order)
                return folio
            folio_put(k, folio)
            if not v1 or k.phys[vmf.pte] != vmf.orig_pte:
                return 0
            vmf.why[order] = REFUSED_POPULATED
            orders = calc_anon_folio_orders_alloc(k, vmf, orders & (1 << order) - 2) | 1
            order = get_order(k, vma, address, TVA_PAGEFAULT, orders)
            continue
        if folio:
            folio_put(k, folio)
            if k.config.policy != "mthp" or not order:
                return -VM_FAULT_OOM
            k.mthp_stat[MTHP_anon_fault_fallback_charge * NR_ORDERS + order] += 1
        elif not order:
            return -VM_FAULT_OOM
        vmf.why[order] = REFUSED_CHARGE if folio else REFUSED_ALLOC
        k.mthp_stat[MTHP_anon_fault_fallback * NR_ORDERS + order] += 1
        orders &= (1 << order) - 1
        order = get_order(k, vma, address, TVA_FALLBACK, orders)


def still_free(k: Arena, vmf: VmFault, order: int) -> bool:
    """Return whether the block is still free under the lock; only an injected race says no."""
    if k.inject is not None:
        k.inject.populate_behind(k, vmf, order)
    if not order:
        return k.phys[vmf.pte] == vmf.orig_pte
    nr = 1 << order
    index = (vmf.address >> k.page_shift) & (nr - 1)
    return check_ptes_free(k, vmf, vmf.pte - index, nr) == nr


def wp_zero_page(k: Arena, vmf: VmFault) -> int:
    """
    Serve a write to the zero page: one page, or with ANON_COW_ZERO what a first write would get.

    SIMPLIFIED: what RFCv2 takes for empty is a reconstruction. Only a write to the zero page sees zero
    pages so, one to an empty entry next to them does not.
    """
    if k.config.cow_zero:
        return do_anonymous_write(k, vmf, EV_wp_zero)
    if not vma_prepare_anon(k, vmf.vma):
        return VM_FAULT_OOM
    folio = vma_alloc_zeroed_movable_folio(k, vmf.vma, vmf.address, GFP_HIGHUSER_MOVABLE, 0)
    if not folio:
        return VM_FAULT_OOM
    if not mem_cgroup_charge(k):
        folio_put(k, folio)
        return VM_FAULT_OOM
    map_anon_folio_pte(k, vmf, folio, EV_wp_zero)
    return 0


def wp_page_copy(k: Arena, vmf: VmFault) -> int:
    """
    Give the writer of a shared or a file's page a page of its own.

    A page of the page cache is copied alone. With ANON_COW_COPY as much as possible of an anonymous
    folio is copied, to a folio as large (RFCv2 14/17, spec 2, R2); as in v1 a block that another
    thread changed is tried again one order smaller, and a failed charge is VM_FAULT_OOM.
    """
    vma, old = vmf.vma, vmf.orig_pte
    page = pte_pfn(k, old)
    anonymous = k.page[k.page[page * _P + PAGE_HEAD] * _P + PAGE_FLAGS] & PG_anon
    if not vma_prepare_anon(k, vma):
        return VM_FAULT_OOM
    order = 0
    if anonymous and k.config.cow_copy:
        order = max_anon_folio_order(k, k.vma[vma * _V + VMA_FLAGS])
    while True:
        order = calc_anon_folio_order_copy(k, vmf, order)
        new = try_vma_alloc_movable_folio(k, order)
        if not new:
            return VM_FAULT_OOM
        order = k.page[new * _P + PAGE_ORDER]
        if not mem_cgroup_charge(k):
            folio_put(k, new)
            return VM_FAULT_OOM
        if still_mapped(k, vmf, order):
            break
        folio_put(k, new)
        if k.phys[vmf.pte] != old:
            return 0
        order -= 1
    replace_pages(k, vmf, new)
    return 0


def still_mapped(k: Arena, vmf: VmFault, order: int) -> bool:
    """
    Return whether a block to copy is what it was, under the lock.

    An injected race says no, and so does a shrinker that made room and split the folio.
    """
    if order and k.inject is not None:
        k.inject.populate_behind(k, vmf, order)
    return k.phys[vmf.pte] == vmf.orig_pte and calc_anon_folio_order_copy(k, vmf, order) == order


def replace_pages(k: Arena, vmf: VmFault, new: int) -> None:
    """Copy the block of the fault to a new, charged folio and map that instead."""
    vma, mm = vmf.vma, vmf.mm
    order = k.page[new * _P + PAGE_ORDER]
    nr = 1 << order
    index = (vmf.address >> k.page_shift) & (nr - 1)
    address = vmf.address - (index << k.page_shift)
    pte = vmf.pte - index
    page = pte_pfn(k, vmf.orig_pte) - index
    if k.config.phys_backing:
        k.ops.copy_pages(new, page, nr)
    entry = pte_mkyoung(k, mk_pte(k, new, k.vma[vma * _V + VMA_PAGE_PROT]))
    clear_ptes_range(k, pte, nr)
    k.page[new * _P + PAGE_REFCOUNT] = nr
    folio_add_new_anon_rmap_range(k, new, new, nr, vma, address)
    count_task_folio(k, order)
    set_ptes(k, pte, pte_mkwrite(k, pte_mkdirty(k, entry)), nr)
    folio = k.page[page * _P + PAGE_HEAD]
    if k.page[folio * _P + PAGE_FLAGS] & PG_anon:
        folio_remove_rmap_range(k, folio, page, nr, mm)
        folio_put(k, folio, nr)
        k.event[EV_wp_copy * NR_ORDERS + order] += 1
    else:
        add_mm_counter(k, mm, MM_ANONPAGES, 1)
        add_mm_counter(k, mm, MM_FILEPAGES, -1)
        folio_remove_file_rmap(k, page)
        filemap.put_page(k, page)
        k.event[EV_file_write_fault * NR_ORDERS] += 1


def do_wp_page(k: Arena, vmf: VmFault) -> int:
    """Serve a write to a present, read-only page: reuse it if nobody else can see it, else copy."""
    vma, pte = vmf.vma, vmf.orig_pte
    if pte_special(k, pte):
        return wp_zero_page(k, vmf)
    page = pte_pfn(k, pte)
    folio = k.page[page * _P + PAGE_HEAD]
    writable = pte_mkwrite(k, pte_mkdirty(k, pte_mkyoung(k, pte)))
    if k.vma[vma * _V + VMA_FLAGS] & VM_SHARED:
        k.event[EV_file_shared_fault * NR_ORDERS] += 1
        set_access_flags(k, vmf.pte, writable)
        return 0
    if k.page[folio * _P + PAGE_FLAGS] & PG_anon:
        if k.config.cow_reuse:
            first, nr = wp_reuse_run(k, vmf)
            if nr:
                set_access_flags_range(k, first, nr)
                return wp_page_reuse(k)
        exclusive = k.page[page * _P + PAGE_FLAGS] & PG_exclusive
        if exclusive or wp_can_reuse_anon_folio(k, folio, vma):
            k.page[page * _P + PAGE_FLAGS] |= PG_exclusive
            set_access_flags(k, vmf.pte, writable)
            return wp_page_reuse(k)
    return wp_page_copy(k, vmf)


def wp_page_reuse(k: Arena) -> int:
    """Count a write that was made possible in place; however many pages it freed of their protection."""
    k.vmstat[VM_pgreuse] += 1
    k.event[EV_wp_reuse * NR_ORDERS] += 1
    return 0


def wp_can_reuse_anon_folio(k: Arena, folio: int, vma: int) -> bool:
    """
    Return whether a write may take over a page that was shared once.

    A small folio with one reference is taken over. A page of a large one is copied, even if this
    is its last mapping, up to 6.14; from 6.15 (MM_ID) it is reused when one mm alone has mapped
    the folio and more than this page of it.
    """
    words, base = k.page, folio * _P
    if not words[base + PAGE_ORDER]:
        if words[base + PAGE_REFCOUNT] != 1:
            return False
        folio_move_anon_rmap(k, folio, vma)
        return True
    if not k.config.mm_id or folio_maybe_mapped_shared(k, folio):
        return False
    total = words[base + FOLIO_LARGE_MAPCOUNT]
    return total > 1 and total == words[base + PAGE_REFCOUNT]


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
    place = pmd_alloc(k, mm, address)
    if not place:
        return VM_FAULT_OOM
    vmf = VmFault(vma, mm, address & k.page_mask, flags)
    pmd = k.phys[place]
    anonymous = not k.vma[vma * _V + VMA_FILE]
    if not pmd and anonymous:
        error = create_huge_pmd(k, vmf, place)
        if error != VM_FAULT_FALLBACK:
            return error
    elif pmd_trans_huge(k, pmd):
        if not flags & FAULT_FLAG_WRITE or pte_write(k, pmd):
            return spurious_fault(k, place, flags)
        if not vma_prepare_anon(k, vma):
            return VM_FAULT_OOM
        error = do_huge_pmd_wp_page(k, vmf, place)
        if error != VM_FAULT_FALLBACK:
            return error
    return handle_pte_fault(k, vmf, place)


def create_huge_pmd(k: Arena, vmf: VmFault, place: int) -> int:
    """
    Serve a fault on an empty PMD slot by a huge page if the VMA may have one and it fits; else
    VM_FAULT_FALLBACK.
    """
    order = k.pmd_order
    if not thp_vma_allowable_orders(k, vmf.vma, 1 << order):
        return VM_FAULT_FALLBACK
    if not thp_vma_suitable_order(k, vmf.vma, vmf.address, order):
        return VM_FAULT_FALLBACK
    if k.ladder.by_user:
        # The slot is empty and the block lies in the VMA: so it is with every smaller one.
        orders = up_to(order) if vmf.flags & FAULT_FLAG_WRITE else 1 << order
        vmf.choice = k.ladder.thp_get_order(k, vmf.vma, vmf.address, TVA_PAGEFAULT, orders | 1)
        if vmf.choice != order:
            vmf.why[order] = REFUSED_NOT_ENABLED
            return VM_FAULT_FALLBACK
    if not vma_prepare_anon(k, vmf.vma):
        return VM_FAULT_OOM
    error = do_huge_pmd_anonymous_page(k, vmf, place)
    if not error and vmf.flags & FAULT_FLAG_WRITE:
        count_refused(k, vmf, order)
    return error


def handle_pte_fault(k: Arena, vmf: VmFault, place: int) -> int:
    """Serve a fault by a last-level entry, in a table that is made if it is missing."""
    pmd = k.phys[place]
    if not pmd:
        table = pte_alloc_one(k, vmf.mm)
        if not table:
            return VM_FAULT_OOM
        pmd = populate(k, place, table)
    vmf.pte = pte_in_table(k, pmd, vmf.address)
    vmf.orig_pte = k.phys[vmf.pte]
    if not vmf.orig_pte:
        if not k.vma[vmf.vma * _V + VMA_FILE]:
            return do_anonymous_page(k, vmf)
        return do_fault(k, vmf)
    read_ptes(k, vmf.pte, 1)
    if vmf.flags & FAULT_FLAG_WRITE and not pte_write(k, vmf.orig_pte):
        return do_wp_page(k, vmf)
    return spurious_fault(k, vmf.pte, vmf.flags)


def spurious_fault(k: Arena, place: int, flags: int) -> int:
    """Mark an entry that allows the access already as accessed, and dirty for a write."""
    k.event[EV_spurious_fault * NR_ORDERS] += 1
    entry = pte_mkyoung(k, k.phys[place])
    set_access_flags(k, place, pte_mkdirty(k, entry) if flags & FAULT_FLAG_WRITE else entry)
    return 0
