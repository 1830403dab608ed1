# SPDX-License-Identifier: GPL-2.0-only
"""Address spaces come and go: a new one at exec, a copy at fork, teardown with the last user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import read_blocks, set_pte, set_ptes, wrprotect_ptes
from .folio import add_mm_counter
from .huge_memory import copy_huge_pmd
from .layout import (
    MM_ANONPAGES,
    MM_BRK,
    MM_FILEPAGES,
    MM_START_BRK,
    MM_USERS,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    RUN_ADDRESS,
    SLAB_MM,
    VMA_ANON_VMA,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_MM,
    VMA_PGOFF,
    VMA_START,
    EV_exit_vma,
    EV_fork_anon,
    EV_fork_vma,
    EV_fork_vma_anon,
    PG_anon,
    WORK_pte_read,
    WORK_tlbi,
)
from .mmap import unmap_region
from .pgtable import (
    next_pmd,
    pgd_alloc,
    pgd_free,
    pmd_addr_end,
    pmd_trans_huge,
    pte_alloc_map,
    pte_in_table,
    pte_mkold,
    pte_pfn,
    pte_special,
    pte_wrprotect,
)
from .rmap import anon_vma_fork, folio_add_file_rmap, folio_dup_anon_rmap_ptes
from .slab import slab_alloc, slab_free
from .vm_flags import VM_DONTCOPY, VM_LOCKED, VM_WIPEONFORK
from .vma import slots, vm_area_alloc, vma_link

if TYPE_CHECKING:
    from .arena import Arena, FastPaths


def mm_alloc(k: Arena) -> int:
    """Return a new, empty address space with one user; 0 when memory is short."""
    mm = slab_alloc(k, SLAB_MM, k.mm, _M)
    if not mm:
        return 0
    if not pgd_alloc(k, mm):
        slab_free(k, SLAB_MM, k.mm, _M, mm)
        return 0
    k.mm[mm * _M + MM_USERS] = 1
    return mm


def mmput(k: Arena, mm: int) -> None:
    """Drop one user of an address space; the last one's leaving tears it down."""
    k.mm[mm * _M + MM_USERS] -= 1
    if not k.mm[mm * _M + MM_USERS]:
        exit_mmap(k, mm)


def exit_mmap(k: Arena, mm: int) -> None:
    """Unmap everything and free the page tables and the mm itself."""
    if k.fast is not None:
        k.fast.exit_mmap(mm, k.current)
        return
    first, last = slots(k, mm)
    k.event[EV_exit_vma * NR_ORDERS] += last - first
    if last > first:
        unmap_region(k, mm, list(k.vma_index[first:last]))
    pgd_free(k, mm)
    slab_free(k, SLAB_MM, k.mm, _M, mm)


def dup_mm(k: Arena, old: int) -> int:
    """
    Return a copy of an address space that shares its anonymous pages, as fork does; 0 without
    memory.

    Mirrors: kernel/fork.c dup_mmap(): MADV_DONTFORK VMAs are left out, MADV_WIPEONFORK ones come
    empty.
    """
    mm = mm_alloc(k)
    if not mm:
        return 0
    for field in (MM_START_BRK, MM_BRK):
        k.mm[mm * _M + field] = k.mm[old * _M + field]
    k.work[WORK_tlbi] += 1  # the parent's, at the end, whether or not it lost any rights
    if not dup_mmap(k, mm, old):
        mmput(k, mm)
        return 0
    return mm


def _fast(k: Arena) -> FastPaths | None:
    """Return what C does as a whole: it makes tables, and asks no injected failure."""
    return None if k.injecting else k.fast


def dup_mmap(k: Arena, mm: int, old: int) -> bool:
    """Copy the VMAs of an mm into a child's, and share their pages; False when memory is short."""
    first, last = slots(k, old)
    slot, fast = first, _fast(k)
    while True:
        if fast is not None:
            done = fast.dup_mmap(mm, old, slot - first)
            if done < 0:
                return False
            slot = first + done
        if slot == last:
            return True
        vma = k.vma_index[slot]
        slot += 1
        base = vma * _V
        if fast is not None:  # there was no memory for a table, which Python asks the shrinkers for
            new = k.vma_index[slots(k, mm)[1] - 1]
            if not copy_page_range(k, new, vma, k.run[RUN_ADDRESS]):
                return False
        elif k.vma[base + VMA_FLAGS] & VM_DONTCOPY:
            continue
        elif not _dup_vma(k, mm, vma):
            return False
        k.event[EV_fork_vma * NR_ORDERS] += 1
        k.event[EV_fork_vma_anon * NR_ORDERS] += k.vma[base + VMA_ANON_VMA] != 0


def _dup_vma(k: Arena, mm: int, vma: int) -> bool:
    base = vma * _V
    start, end, flags = (k.vma[base + field] for field in (VMA_START, VMA_END, VMA_FLAGS))
    new = vm_area_alloc(
        k, mm, start, end, flags & ~VM_LOCKED, k.vma[base + VMA_PGOFF], k.vma[base + VMA_FILE]
    )
    if not new:
        return False
    vma_link(k, new)
    if flags & VM_WIPEONFORK or not k.vma[base + VMA_ANON_VMA]:
        return True  # only file pages, if any: the child's own faults find them again
    return anon_vma_fork(k, new, vma) and copy_page_range(k, new, vma, start)


def copy_page_range(k: Arena, new: int, vma: int, start: int) -> bool:
    """Map in a child's VMA what its parent's maps from start on; False without memory for tables."""
    mm, parent = k.vma[new * _V + VMA_MM], k.vma[vma * _V + VMA_MM]
    end = k.vma[vma * _V + VMA_END]
    stop, fast = start, _fast(k)
    while True:
        if fast is not None:
            stop = fast.copy_page_range(new, vma, stop)
        address, place = next_pmd(k, parent, stop, end)
        if not place:
            return True
        stop = pmd_addr_end(k, address, end)
        pmd = k.phys[place]
        if pmd_trans_huge(k, pmd):
            if not copy_huge_pmd(k, mm, place, address):
                return False
            if not pmd_trans_huge(k, k.phys[place]):
                stop = address
        else:
            source = pte_in_table(k, pmd, address)
            nr = stop - address >> k.page_shift
            skip = k.ops.check_ptes_none(source, nr)
            if skip < nr:
                to = pte_alloc_map(k, mm, address)
                if not to:
                    return False
                copy_pte_range(k, mm, source + skip, to + skip, nr - skip)


def any_writable(k: Arena, pte: int, nr: int) -> bool:
    """Return whether one of nr entries may be written through."""
    write = k.arch.pte.write
    return any(e & write.mask == write.on for e in k.phys[pte : pte + nr].tolist())


def copy_pte_range(k: Arena, mm: int, source: int, to: int, nr: int) -> None:
    """
    Share a run of nr entries of one table with a child (spec 5.10).

    Anonymous pages lose their exclusive mark and both sides write permission; the child's entries
    are old. Runs of one folio's pages with equal bits go in one batch, file pages too.
    """
    page = k.page
    write, young = k.arch.pte.write, k.arch.pte.young
    ignore = write.mask | young.mask | k.cont_bit
    end, looks = source + nr, 0
    while True:
        skip = k.ops.check_ptes_none(source, end - source)
        source, to = source + skip, to + skip
        if source >= end:
            k.work[WORK_pte_read] += looks
            return
        entry = k.phys[source] & ~k.cont_bit
        if pte_special(k, entry):
            looks += 1
            set_pte(k, to, pte_mkold(k, entry))
            source, to = source + 1, to + 1
            continue
        first = pte_pfn(k, entry)
        folio = page[first * _P + PAGE_HEAD]
        base = folio * _P
        order = page[base + PAGE_ORDER]
        most = min(folio + (1 << order) - first, end - source)
        batch = k.ops.folio_pte_batch(source, ignore, most) if most > 1 else 1
        looks += batch
        if k.cont_nr:
            read_blocks(k, source, batch)
        page[base + PAGE_REFCOUNT] += batch
        if not page[base + PAGE_FLAGS] & PG_anon:
            folio_add_file_rmap(k, first, batch)
            add_mm_counter(k, mm, MM_FILEPAGES, batch)
            set_ptes(k, to, pte_mkold(k, entry), batch)
            source, to = source + batch, to + batch
            continue
        folio_dup_anon_rmap_ptes(k, folio, first, batch, mm)
        add_mm_counter(k, mm, MM_ANONPAGES, batch)
        if entry & write.mask == write.on or (batch > 1 and any_writable(k, source, batch)):
            wrprotect_ptes(k, source, batch)
        set_ptes(k, to, pte_mkold(k, pte_wrprotect(k, entry)), batch)
        k.event[EV_fork_anon * NR_ORDERS + order] += batch
        source, to = source + batch, to + batch
