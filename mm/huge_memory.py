# SPDX-License-Identifier: GPL-2.0-only
"""
Transparent huge pages: who may have which folio size, and memory mapped by a PMD entry.

Mirrors: mm/huge_memory.c and include/linux/huge_mm.h, v6.12; behaviour of other releases is a flag
of the configuration (arena.py). A huge entry has a page table in reserve (deposited), as in the
kernel, so that splitting it never needs memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import count_work, set_ptes
from .folio import (
    clear_huge_page,
    count_task_folio,
    folio_put,
    mem_cgroup_charge,
    update_hiwater_rss,
    vma_alloc_movable_folio,
)
from .layout import (
    MM_ANONPAGES,
    MM_HUGE_PTE,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_NEXT,
    PAGE_REFCOUNT,
    REFUSED_ALLOC,
    REFUSED_CHARGE,
    VMA_END,
    VMA_FLAGS,
    VMA_MM,
    VMA_PAGE_PROT,
    VMA_START,
    ZONE_HUGE_ZERO,
    EV_anon_fault,
    EV_fork_anon,
    EV_wp_reuse,
    EV_zap_anon,
    EV_zero_page_fault,
    MTHP_anon_fault_alloc,
    MTHP_anon_fault_fallback,
    MTHP_anon_fault_fallback_charge,
    PG_exclusive,
    PG_huge_zero,
    PG_reserved,
    VM_pgreuse,
    VM_thp_fault_alloc,
    VM_thp_fault_fallback,
    VM_thp_split_pmd,
    VM_thp_zero_page_alloc,
)
from .page_alloc import (
    GFP_TRANSHUGE,
    GFP_TRANSHUGE_LIGHT,
    alloc_pages,
)
from .pgtable import (
    mk_pte,
    pmd_alloc,
    pmd_mkhuge,
    pmd_offset,
    pmd_to_pte,
    pmd_trans_huge,
    populate,
    pte_alloc_one,
    pte_free,
    pte_mkdirty,
    pte_mkold,
    pte_mkspecial,
    pte_mkwrite,
    pte_mkyoung,
    pte_modify,
    pte_pfn,
    pte_special,
    pte_wrprotect,
)
from .rmap import (
    folio_add_new_anon_rmap_range,
    folio_add_rmap_pmd,
    folio_move_anon_rmap,
    folio_remove_rmap_pmd,
    folio_split_rmap_pmd,
)
from .split_queue import deferred_split_folio
from .vm_flags import (
    FAULT_FLAG_WRITE,
    VM_FAULT_FALLBACK,
    VM_FAULT_OOM,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_WRITE,
)

if TYPE_CHECKING:
    from .arena import Arena
    from .folio import VmFault


# Policy


def has_transparent_hugepage(k: Arena) -> bool:
    """Return whether the kernel was built with THP; the hardware we model always has it."""
    return k.config.transparent_hugepage


def hugepage_vma_check(k: Arena, flags: int) -> bool:
    """
    Return whether policy would give an anonymous VMA with these VM_* flags a PMD-sized folio.

    Mirrors: mm/huge_memory.c hugepage_vma_check(smaps=false, in_pf=true, enforce_sysfs=true),
    v6.4: the VMA's size and alignment are not looked at.
    """
    if not k.config.transparent_hugepage or flags & VM_NOHUGEPAGE:
        return False
    if k.knobs.enabled == "always":
        return True
    return k.knobs.enabled == "madvise" and bool(flags & VM_HUGEPAGE)


def thp_vma_allowable_orders(k: Arena, vma: int, orders: int) -> int:
    """
    Return those of a mask of orders that policy allows a fault in the VMA.

    Mirrors: thp_vma_allowable_orders(in fault, enforce sysfs), v6.12. A kernel of the series has
    one size, the PMD's, ruled by the top-level file alone.
    """
    return thp_allowable_orders(k, k.vma[vma * _V + VMA_FLAGS], orders)


def thp_allowable_orders(k: Arena, flags: int, orders: int) -> int:
    """
    Return those of a mask of orders that policy allows a VMA with these VM_* flags.

    A user's policy is asked itself, whatever sysfs says; only MADV_NOHUGEPAGE is stronger.
    """
    if not k.config.transparent_hugepage or flags & VM_NOHUGEPAGE:
        return 0
    if k.ladder.by_user:
        return orders
    if k.config.policy != "mthp":
        return orders & 1 << k.pmd_order if hugepage_vma_check(k, flags) else 0
    knobs = k.knobs
    mask = knobs.always
    if flags & VM_HUGEPAGE:
        mask |= knobs.madvise
    if knobs.enabled == "always" or (flags & VM_HUGEPAGE and knobs.enabled != "never"):
        mask |= knobs.inherit
    return orders & mask


def thp_vma_suitable_order(k: Arena, vma: int, address: int, order: int) -> bool:
    """Return whether the aligned block of an order around address lies in the VMA."""
    size = k.page_size << order
    low = address & -size
    return k.vma[vma * _V + VMA_START] <= low and low + size <= k.vma[vma * _V + VMA_END]


def vma_thp_gfp_mask(k: Arena, vma: int) -> int:
    """
    Return the allocation flags of a large folio: whether to reclaim for it, as ``defrag`` says
    (spec 5.5).

    Mirrors: vma_thp_gfp_mask(), v6.12; waking kswapd (defer) makes no room in time.
    """
    defrag = k.knobs.defrag
    hinted = bool(k.vma[vma * _V + VMA_FLAGS] & VM_HUGEPAGE)
    if defrag == "always" or (hinted and defrag in ("madvise", "defer+madvise")):
        return GFP_TRANSHUGE
    return GFP_TRANSHUGE_LIGHT


def highest_order(orders: int) -> int:
    """Return the largest order of a mask that is not empty."""
    return orders.bit_length() - 1


# Deposited page tables


def pgtable_trans_huge_deposit(k: Arena, mm: int, table: int) -> None:
    """Keep a page table in reserve for a huge entry of mm."""
    k.page[table * _P + PAGE_NEXT] = k.mm[mm * _M + MM_HUGE_PTE]
    k.mm[mm * _M + MM_HUGE_PTE] = table


def pgtable_trans_huge_withdraw(k: Arena, mm: int) -> int:
    """Return a page table of the reserve."""
    table = k.mm[mm * _M + MM_HUGE_PTE]
    k.mm[mm * _M + MM_HUGE_PTE] = k.page[table * _P + PAGE_NEXT]
    k.page[table * _P + PAGE_NEXT] = 0
    return table


# Faults


def mm_get_huge_zero_folio(k: Arena) -> int:
    """
    Return the huge zero folio, made at its first use; 0 when memory is short.

    SIMPLIFIED: it is kept for good, where the kernel's shrinker frees it when nobody maps it, and no
    peak counts it.
    """
    folio = k.zone[ZONE_HUGE_ZERO]
    if not folio:
        folio = alloc_pages(k, k.pmd_order)
        if not folio:
            return 0
        k.ops.prep_compound_page(folio, k.pmd_order, PG_reserved | PG_huge_zero)
        if k.config.phys_backing:
            k.ops.clear_huge_page(folio, 1 << k.pmd_order, 0)
        k.zone[ZONE_HUGE_ZERO] = folio
        k.vmstat[VM_thp_zero_page_alloc] += 1
    return folio


def do_huge_pmd_anonymous_page(k: Arena, vmf: VmFault, place: int) -> int:
    """
    Serve a fault on an empty PMD slot with a PMD-sized folio, or the huge zero folio for a read.

    Mirrors: do_huge_pmd_anonymous_page(), v6.12 (spec 5.4), after its first checks: the block lies
    in the VMA, which has its anon_vma, also for a read.

    Returns: 0, VM_FAULT_OOM, or VM_FAULT_FALLBACK: go on with smaller sizes.
    """
    vma, mm = vmf.vma, vmf.mm
    if not vmf.flags & FAULT_FLAG_WRITE and k.knobs.use_zero_page:
        table = pte_alloc_one(k, mm)
        if not table:
            return VM_FAULT_OOM
        zero = mm_get_huge_zero_folio(k)
        if not zero:
            pte_free(k, mm, table)
            k.vmstat[VM_thp_fault_fallback] += 1
            return VM_FAULT_FALLBACK
        entry = pte_mkspecial(k, mk_pte(k, zero, k.vma[vma * _V + VMA_PAGE_PROT]))
        pgtable_trans_huge_deposit(k, mm, table)
        k.phys[place] = pmd_mkhuge(k, pte_mkyoung(k, entry))
        count_work(k, write=1)
        k.event[EV_zero_page_fault * NR_ORDERS] += 1
        return 0
    return __do_huge_pmd_anonymous_page(k, vmf, place)


def __do_huge_pmd_anonymous_page(k: Arena, vmf: VmFault, place: int) -> int:
    """Map a new PMD-sized folio where ``place`` is none."""
    folio = vma_alloc_anon_folio_pmd(k, vmf.vma, vmf.address, vmf.why)
    if not folio:
        return VM_FAULT_FALLBACK
    table = pte_alloc_one(k, vmf.mm)
    if not table:
        folio_put(k, folio)
        return VM_FAULT_OOM
    pgtable_trans_huge_deposit(k, vmf.mm, table)
    map_anon_folio_pmd(k, vmf, place, folio)
    return 0


def map_anon_folio_pmd(k: Arena, vmf: VmFault, place: int, folio: int) -> None:
    """Map a new PMD-sized folio by the entry at ``place``; its page table is in reserve already."""
    vma, mm, order = vmf.vma, vmf.mm, k.pmd_order
    entry = mk_pte(k, folio, k.vma[vma * _V + VMA_PAGE_PROT])
    entry = pte_mkyoung(k, pte_mkdirty(k, entry))
    if k.vma[vma * _V + VMA_FLAGS] & VM_WRITE:
        entry = pte_mkwrite(k, entry)
    start = vmf.address & -k.pmd_size
    folio_add_new_anon_rmap_range(k, folio, folio, 1 << order, vma, start, by_pmd=True)
    k.phys[place] = pmd_mkhuge(k, entry)
    count_work(k, write=1)
    k.mm[mm * _M + MM_ANONPAGES] += 1 << order
    deferred_split_folio(k, folio, partially_mapped=False)
    k.vmstat[VM_thp_fault_alloc] += 1
    k.mthp_stat[MTHP_anon_fault_alloc * NR_ORDERS + order] += 1
    k.event[EV_anon_fault * NR_ORDERS + order] += 1
    count_task_folio(k, order)


def vma_alloc_anon_folio_pmd(k: Arena, vma: int, address: int, why: dict[int, int]) -> int:
    """
    Return a charged, zeroed PMD-sized folio; 0, with the counters moved, when it cannot be had.

    Args:
        why: order -> REFUSED_*; what was the matter is added.
    """
    order = k.pmd_order
    folio = vma_alloc_movable_folio(k, order, vma_thp_gfp_mask(k, vma))
    if folio and not mem_cgroup_charge(k):
        folio_put(k, folio)
        folio = 0
        why[order] = REFUSED_CHARGE
        k.mthp_stat[MTHP_anon_fault_fallback_charge * NR_ORDERS + order] += 1
    if folio:
        clear_huge_page(k, vma, folio, address, 1 << order)
    else:
        why.setdefault(order, REFUSED_ALLOC)
        k.vmstat[VM_thp_fault_fallback] += 1
        k.mthp_stat[MTHP_anon_fault_fallback * NR_ORDERS + order] += 1
    return folio


def do_huge_pmd_wp_page(k: Arena, vmf: VmFault, place: int) -> int:
    """
    Serve a write to a read-only huge entry: reuse the folio, or split the entry and fall back.

    Mirrors: do_huge_pmd_wp_page(), v6.12 (spec 5.6). From 6.13 (huge_zero_cow) a write to the huge
    zero folio puts a folio of its own in its place.
    """
    vma, pmd = vmf.vma, k.phys[place]
    if pte_special(k, pmd):
        if k.config.huge_zero_cow:
            return do_huge_zero_wp_pmd(k, vmf, place)
        __split_huge_pmd(k, vma, place)
        return VM_FAULT_FALLBACK
    folio = pte_pfn(k, pmd)
    base = folio * _P
    if not k.page[base + PAGE_FLAGS] & PG_exclusive:
        if k.page[base + PAGE_REFCOUNT] != 1:
            __split_huge_pmd(k, vma, place)
            return VM_FAULT_FALLBACK
        folio_move_anon_rmap(k, folio, vma)
        k.page[base + PAGE_FLAGS] |= PG_exclusive
    pmd = pte_mkdirty(k, pte_mkyoung(k, pmd))
    k.phys[place] = pte_mkwrite(k, pmd) if k.vma[vma * _V + VMA_FLAGS] & VM_WRITE else pmd
    count_work(k, read=2, write=1, tlbi=1)
    k.vmstat[VM_pgreuse] += 1
    k.event[EV_wp_reuse * NR_ORDERS] += 1
    return 0


def do_huge_zero_wp_pmd(k: Arena, vmf: VmFault, place: int) -> int:
    """Put a new folio in the place of the huge zero folio, whatever the size's knob says now (6.13)."""
    folio = vma_alloc_anon_folio_pmd(k, vmf.vma, vmf.address, vmf.why)
    if not folio:
        __split_huge_pmd(k, vmf.vma, place)
        return VM_FAULT_FALLBACK
    map_anon_folio_pmd(k, vmf, place, folio)
    return 0


# Splitting, unmapping, copying and changing huge entries


def __split_huge_pmd(k: Arena, vma: int, place: int) -> None:
    """
    Replace a huge entry by a page table that maps the same; never fails, the folio stays whole.

    Mirrors: __split_huge_pmd_locked(), v6.12 (spec 5.10).
    """
    mm = k.vma[vma * _V + VMA_MM]
    if k.fast is not None:
        k.fast.split_huge_pmd(mm, place)
        return
    pmd = k.phys[place]
    nr = 1 << k.pmd_order
    table = pgtable_trans_huge_withdraw(k, mm)
    populate(k, place, table)
    count_work(k, read=1, write=2, tlbi=1)
    first = table << k.table_shift
    entry = pmd_to_pte(k, pmd)
    if pte_special(k, pmd):
        keep = entry & ~k.pfn_mask
        for i in range(nr):
            k.phys[first + i] = keep | k.zero_pfn << k.pfn_shift
        count_work(k, write=nr)
    else:
        folio = pte_pfn(k, pmd)
        k.page[folio * _P + PAGE_REFCOUNT] += nr - 1
        folio_split_rmap_pmd(k, folio, mm, nr)
        set_ptes(k, first, entry, nr)
    k.vmstat[VM_thp_split_pmd] += 1


def split_huge_pmd_address(k: Arena, vma: int, address: int) -> None:
    """Split the huge entry over address unless it begins there: a VMA is about to end at address."""
    if not address & (k.pmd_size - 1):
        return
    place = pmd_offset(k, k.vma[vma * _V + VMA_MM], address)
    if place and pmd_trans_huge(k, k.phys[place]):
        __split_huge_pmd(k, vma, place)


def zap_huge_pmd(k: Arena, vma: int, place: int) -> None:
    """Unmap all of what a huge entry maps; its folio is freed with its last reference."""
    mm = k.vma[vma * _V + VMA_MM]
    pmd, k.phys[place] = k.phys[place], 0
    count_work(k, read=1, write=1)
    pte_free(k, mm, pgtable_trans_huge_withdraw(k, mm))
    if pte_special(k, pmd):
        k.event[EV_zap_anon * NR_ORDERS] += 1
        return
    folio = pte_pfn(k, pmd)
    update_hiwater_rss(k, mm)
    k.mm[mm * _M + MM_ANONPAGES] -= 1 << k.pmd_order
    k.event[EV_zap_anon * NR_ORDERS + k.pmd_order] += 1 << k.pmd_order
    folio_remove_rmap_pmd(k, folio, mm)
    folio_put(k, folio)


def copy_huge_pmd(k: Arena, mm: int, source: int, address: int) -> bool:
    """
    Share what a huge entry maps with a child at the same address; False without memory for tables.

    Tables made stay. An entry that was split while memory for them was made is left alone: look at it
    again.
    """
    place = pmd_alloc(k, mm, address)
    table = pte_alloc_one(k, mm) if place else 0
    if not table:
        return False
    pmd = k.phys[source]
    if not pmd_trans_huge(k, pmd):  # a shrinker that made room split it
        pte_free(k, mm, table)
        return True
    pgtable_trans_huge_deposit(k, mm, table)
    if not pte_special(k, pmd):
        folio, nr = pte_pfn(k, pmd), 1 << k.pmd_order
        k.page[folio * _P + PAGE_REFCOUNT] += 1
        folio_add_rmap_pmd(k, folio, mm)
        k.page[folio * _P + PAGE_FLAGS] &= ~PG_exclusive
        k.mm[mm * _M + MM_ANONPAGES] += nr
        k.event[EV_fork_anon * NR_ORDERS + k.pmd_order] += nr
        pmd = pte_wrprotect(k, pmd)
        k.phys[source] = pmd
        count_work(k, read=1, write=1)
    k.phys[place] = pte_mkold(k, pmd)
    count_work(k, read=1, write=1)
    return True


def change_huge_pmd(k: Arena, vma: int, place: int) -> None:
    """Give a huge entry its VMA's protection; write permission comes back at once if it is exclusive."""
    base = vma * _V
    pmd = k.phys[place]
    new = pmd_mkhuge(k, pte_modify(k, pmd, k.vma[base + VMA_PAGE_PROT]))
    exclusive = k.page[pte_pfn(k, pmd) * _P + PAGE_FLAGS] & PG_exclusive
    if exclusive and k.vma[base + VMA_FLAGS] & VM_WRITE:
        new = pte_mkwrite(k, new)
    k.phys[place] = new
    count_work(k, read=1, write=2)


def move_huge_pmd(k: Arena, mm: int, source: int, to: int) -> bool:
    """Move a PMD entry, huge or of a table, to another aligned address; False without memory or room."""
    place = pmd_alloc(k, mm, to)
    if not place or k.phys[place]:
        return False
    k.phys[place], k.phys[source] = k.phys[source], 0
    count_work(k, read=1, write=2, tlbi=1)
    return True
