# SPDX-License-Identifier: GPL-2.0-only
"""The calls that shape an address space: mmap, munmap, brk, and the stack that grows by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import filemap
from .arena import MM_RECORD as _M
from .arena import VMA_RECORD as _V
from .folio import update_hiwater_rss
from .layout import (
    MM_BRK,
    MM_MAP_COUNT,
    MM_START_BRK,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_PGOFF,
    VMA_START,
)
from .pgtable import free_pgd_range
from .vm_flags import (
    EEXIST,
    EINVAL,
    ENOMEM,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_SHARED,
    PROT_MTE,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_MTE,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from .vma import (
    SYSCTL_MAX_MAP_COUNT,
    find_slot,
    slots,
    split_vma,
    vm_area_alloc,
    vm_area_free,
    vma_link,
    vma_merge,
    vma_prepare_anon,
    vma_unlink,
    vmas_in,
)
from .zap import tlb_finish_mmu, tlb_gather_mmu, unmap_page_range

if TYPE_CHECKING:
    from .arena import Arena

STACK_GUARD_GAP_PAGES = 256


def calc_vm_flags(prot: int, flags: int) -> int:
    """Return the VM_* flags of a mapping with these PROT_* and MAP_* bits."""
    vm_flags = prot & VM_ACCESS_FLAGS
    if flags & MAP_SHARED:
        vm_flags |= VM_SHARED
    if flags & MAP_GROWSDOWN:
        vm_flags |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        vm_flags |= VM_LOCKED
    if flags & MAP_NORESERVE:
        vm_flags |= VM_NORESERVE
    elif vm_flags & VM_WRITE and not vm_flags & VM_SHARED:
        vm_flags |= VM_ACCOUNT
    return vm_flags


def do_mmap(
    k: Arena, mm: int, address: int, length: int, prot: int, flags: int, file: int, pgoff: int
) -> int:
    """
    Map [address, address + length) and return 0, or a negative errno.

    Args:
        length: bytes, rounded up to pages.
        file: 0 = anonymous; pgoff is in pages of the file.

    Mirrors: mm/mmap.c do_mmap() with the address given: MAP_FIXED replaces what is there,
    otherwise something there is -EEXIST. Where memory goes is the caller's business (the trace's).
    """
    length = -(-length // k.page_size) * k.page_size
    if not length or address & ~k.page_mask or address + length > k.task_size:
        return -EINVAL if not length or address & ~k.page_mask else -ENOMEM
    if prot & PROT_MTE and k.arch.gfp_zerotags and file:
        return -EINVAL  # memory with tags is anonymous
    vm_flags = calc_vm_flags(prot, flags)
    if prot & PROT_MTE and k.arch.gfp_zerotags:
        vm_flags |= VM_MTE
    end = address + length
    if k.fast is not None:
        return k.fast.mmap_region(mm, address, end, vm_flags, flags, file, pgoff, k.current)
    return mmap_region(k, mm, address, end, vm_flags, flags, file, pgoff)


def mmap_region(
    k: Arena, mm: int, start: int, end: int, vm_flags: int, flags: int, file: int, pgoff: int
) -> int:
    """Map [start, end) with these VM_* flags, as do_mmap() says of the MAP_* flags; 0 or a negative errno."""
    if vmas_in(k, mm, start, end):
        if not flags & MAP_FIXED or flags & MAP_FIXED_NOREPLACE:
            return -EEXIST
        error = do_munmap(k, mm, start, end - start)
        if error:
            return error
    if k.mm[mm * _M + MM_MAP_COUNT] >= SYSCTL_MAX_MAP_COUNT:
        return -ENOMEM
    pgoff = pgoff if file else start >> k.page_shift
    vma = vm_area_alloc(k, mm, start, end, vm_flags, pgoff, file)
    if not vma:
        return -ENOMEM
    if not file and vm_flags & VM_SHARED:
        file = filemap.shmem_file_setup(k, end - start >> k.page_shift)
        k.vma[vma * _V + VMA_FILE], k.vma[vma * _V + VMA_PGOFF] = file, 0
        if not file:
            vm_area_free(k, vma)
            return -ENOMEM
    vma_link(k, vma)
    vma_merge(k, vma)
    return 0


def do_munmap(k: Arena, mm: int, start: int, length: int) -> int:
    """
    Unmap [start, start + length) and return 0, or a negative errno; holes in the range are fine.

    Mirrors: mm/mmap.c do_vmi_munmap(): VMAs at the edges are split, pages zapped through one
    mmu_gather, page tables that no neighbour needs are freed.
    """
    length = -(-length // k.page_size) * k.page_size
    end = start + length
    if start & ~k.page_mask or not length or end > k.task_size:
        return -EINVAL
    if k.fast is not None:
        return k.fast.do_munmap(mm, start, end, k.current)
    found = vmas_in(k, mm, start, end)
    if not found:
        return 0
    if k.vma[found[0] * _V + VMA_START] < start:
        upper = split_vma(k, found[0], start)
        if not upper:
            return -ENOMEM
        found[0] = upper
    if k.vma[found[-1] * _V + VMA_END] > end and not split_vma(k, found[-1], end):
        return -ENOMEM
    unmap_region(k, mm, found)
    return 0


def unmap_region(k: Arena, mm: int, found: list[int]) -> None:
    """Zap the pages of neighbouring VMAs, free their page tables and the VMAs."""
    update_hiwater_rss(k, mm)
    slot = find_slot(k, mm, k.vma[found[0] * _V + VMA_START])
    first, last = slots(k, mm)
    floor = k.vma[k.vma_index[slot - 1] * _V + VMA_END] if slot > first else 0
    ceiling = k.vma_start[slot + len(found)] if slot + len(found) < last else 0
    gather = tlb_gather_mmu(k)
    for vma in found:
        base = vma * _V
        unmap_page_range(k, vma, k.vma[base + VMA_START], k.vma[base + VMA_END])
    start, end = k.vma[found[0] * _V + VMA_START], k.vma[found[-1] * _V + VMA_END]
    free_pgd_range(k, mm, start, end, floor, ceiling)
    tlb_finish_mmu(k, gather)
    for vma in reversed(found):
        vma_unlink(k, vma)


def do_brk(k: Arena, mm: int, start: int, end: int, prot: int) -> int:
    """
    Make [start, end) the heap and return 0, or a negative errno; end need not be page aligned.

    Mirrors: mm/mmap.c brk(): growth is a private anonymous mapping that extends the heap, shrinking
    is a munmap.
    """
    base = mm * _M
    if end < start:
        return -EINVAL
    if k.mm[base + MM_START_BRK] != start:
        k.mm[base + MM_START_BRK] = start
        k.mm[base + MM_BRK] = start
    old = -(-k.mm[base + MM_BRK] // k.page_size) * k.page_size
    new = -(-end // k.page_size) * k.page_size
    error = 0
    if new > old:
        error = do_brk_flags(k, mm, old, new - old, prot)
    elif new < old:
        error = do_munmap(k, mm, new, old - new)
    if not error:
        k.mm[base + MM_BRK] = end
    return error


def do_brk_flags(k: Arena, mm: int, address: int, length: int, prot: int) -> int:
    """
    Map the heap's growth [address, address + length), where nothing may be; 0 or -ENOMEM.

    It extends the mapping below if that is the heap, and merges with nothing else: since 6.1 not
    with the program's bss, that ends where the heap begins, and not with what is above.
    """
    if address + length > k.task_size:
        return -ENOMEM
    flags = calc_vm_flags(prot, 0)
    if k.fast is not None:
        return k.fast.do_brk_flags(mm, address, address + length, flags)
    if vmas_in(k, mm, address, address + length):
        return -ENOMEM
    if k.mm[mm * _M + MM_MAP_COUNT] >= SYSCTL_MAX_MAP_COUNT:
        return -ENOMEM
    pgoff = address >> k.page_shift
    vma = vm_area_alloc(k, mm, address, address + length, flags, pgoff, 0)
    if not vma:
        return -ENOMEM
    vma_link(k, vma)
    slot, (first, _) = find_slot(k, mm, address), slots(k, mm)
    if slot > first and k.vma_start[slot - 1] >= k.mm[mm * _M + MM_START_BRK]:
        vma_merge(k, vma, just_expand=True)
    return 0


def expand_stack(k: Arena, mm: int, address: int) -> int:
    """
    Grow the stack VMA above address down to its page and return the VMA; 0 = no stack there,
    SIGSEGV.

    SIMPLIFIED: no limit on the stack's size (RLIMIT_STACK); a recorded program kept to its own.
    """
    slot, (first, last) = find_slot(k, mm, address), slots(k, mm)
    if slot == last:
        return 0
    vma = k.vma_index[slot]
    base = vma * _V
    if not k.vma[base + VMA_FLAGS] & VM_GROWSDOWN:
        return 0
    page = address & k.page_mask
    if slot > first:
        before = k.vma_index[slot - 1] * _V
        gap = STACK_GUARD_GAP_PAGES << k.page_shift
        if not k.vma[before + VMA_FLAGS] & VM_GROWSDOWN and page - k.vma[before + VMA_END] < gap:
            return 0
    grow = k.vma[base + VMA_START] - page >> k.page_shift
    if grow > k.vma[base + VMA_PGOFF] or not vma_prepare_anon(k, vma):
        return 0
    k.vma[base + VMA_START] = page
    k.vma[base + VMA_PGOFF] -= grow
    k.vma_start[slot] = page
    return vma
