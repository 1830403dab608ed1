# SPDX-License-Identifier: GPL-2.0-only
"""
The page cache, as far as memory mapped from it needs it, and shared anonymous memory.

A file has one element of ``k.page_cache`` a page: the pfn, or 0 while nothing mapped it. The cache
holds as many references to a folio as it has pages.

SIMPLIFIED: a regular file is always completely cached, so every file fault is minor; a page takes
memory from the moment a fault first maps it and keeps it to the end. Contents are zero. Of what
readahead brings in for executable mappings (EXEC_FOLIO) only the aligned blocks take memory that a
fault or a fault-around maps a page of: the rest of the window is left out. So are pages that read()
or the readahead of other mappings had cached in small folios before: a real kernel has fewer large
ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import FILE_RECORD as _F
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .layout import (
    FILE_CACHE,
    FILE_CAPACITY,
    FILE_INODE,
    FILE_PAGES,
    FILE_SHMEM,
    FILE_VMAS,
    PAGE_HEAD,
    PAGE_INDEX,
    PAGE_INDEX_HI,
    PAGE_MAPPING,
    PAGE_REFCOUNT,
    SLAB_FILE,
    VMA_END,
    VMA_FILE,
    VMA_FLAGS,
    VMA_PGOFF,
    VMA_START,
    ZONE_CACHE,
    ZONE_CACHE_END,
    PG_file,
    PG_lru,
)
from .page_alloc import folio_alloc, folio_free
from .slab import slab_alloc, slab_free
from .vm_flags import VM_EXEC

if TYPE_CHECKING:
    from .arena import Arena

_AT_ONCE = 1 << 16  # elements of page_cache


def file_open(k: Arena, inode: int, pages: int) -> int:
    """Return a new file of so many pages; 0 when a table is full."""
    if not _has_place(k, pages):
        return 0
    file = slab_alloc(k, SLAB_FILE, k.file, _F)
    if file:
        k.file[file * _F + FILE_INODE] = inode
        file_extend(k, file, pages)
    return file


def _has_place(k: Arena, pages: int) -> bool:
    """Return whether page_cache has elements left for so many pages."""
    return k.zone[ZONE_CACHE_END] + 1 + pages <= len(k.page_cache)


def file_extend(k: Arena, file: int, pages: int) -> bool:
    """
    Let a file be at least so many pages long; those that are cached stay cached.

    Returns:
        False when page_cache has no place for them; then the file is as before.
    """
    base = file * _F
    have = k.file[base + FILE_CAPACITY]
    if pages > have:
        if not _has_place(k, pages):
            return False
        old, new = k.file[base + FILE_CACHE], k.zone[ZONE_CACHE_END] + 1
        k.zone[ZONE_CACHE_END] = new + pages
        _move_cache(k, old, new, have)
        k.file[base + FILE_CACHE] = new
        k.file[base + FILE_CAPACITY] = pages
    if pages > k.file[base + FILE_PAGES]:
        k.file[base + FILE_PAGES] = pages
    return True


def _move_cache(k: Arena, old: int, new: int, pages: int) -> None:
    """Move elements of page_cache; where none is set the host has no memory, and needs none after it."""
    for at in range(0, pages, _AT_ONCE):
        nr = min(_AT_ONCE, pages - at)
        part = k.page_cache[old + at : old + at + nr]
        zeros = bytes(4 * nr)
        if part.tobytes() != zeros:
            k.page_cache[new + at : new + at + nr] = part
            part[:] = memoryview(zeros).cast("I")


def shmem_file_setup(k: Arena, pages: int) -> int:
    """Return the unnamed file behind a new shared anonymous mapping; 0 when a table is full."""
    file = file_open(k, 0, pages)
    if file:
        k.file[file * _F + FILE_SHMEM] = 1
    return file


def get_file(k: Arena, file: int) -> None:
    """Note one more VMA that maps the file."""
    k.file[file * _F + FILE_VMAS] += 1


def put_file(k: Arena, file: int) -> None:
    """Note that a VMA of the file is gone; shared anonymous memory goes with its last one."""
    base = file * _F
    k.file[base + FILE_VMAS] -= 1
    if k.file[base + FILE_VMAS] or not k.file[base + FILE_SHMEM]:
        return
    cache = k.file[base + FILE_CACHE]
    for at in range(cache, cache + k.file[base + FILE_PAGES]):
        pfn = k.page_cache[at]
        if pfn:
            k.page_cache[at] = 0
            put_page(k, pfn)
    if cache + k.file[base + FILE_CAPACITY] == k.zone[ZONE_CACHE_END]:  # else its place is lost
        k.zone[ZONE_CACHE_END] = cache - 1
    slab_free(k, SLAB_FILE, k.file, _F, file)


def filemap_get_folio(k: Arena, file: int, index: int) -> int:
    """Return the cached page of a file, or 0 when it is not cached or behind the end."""
    base = file * _F
    if index >= k.file[base + FILE_PAGES]:
        return 0
    return k.page_cache[k.file[base + FILE_CACHE] + index]


def filemap_fault(k: Arena, vma: int, index: int) -> int:
    """
    Return the page of a VMA's file, read in (or zeroed, for shared anonymous memory) if it was not
    cached.

    Returns: its pfn; 0 when memory is short. The file must have the page.
    """
    file = k.vma[vma * _V + VMA_FILE]
    at = k.file[file * _F + FILE_CACHE] + index
    executable = k.vma[vma * _V + VMA_FLAGS] & VM_EXEC and not is_shmem(k, file)
    if not k.page_cache[at] and executable and k.config.exec_folio_order:
        exec_readahead(k, vma, index)
    return k.page_cache[at] or filemap_add_folio(k, file, index, 0)


def exec_readahead(k: Arena, vma: int, index: int) -> None:
    """
    Read in the block of exec_folio_order around a page, for an executable mapping, in large folios.

    Mirrors: do_sync_mmap_readahead() for VM_EXEC and page_cache_ra_order(), v6.17 (spec 4): the block
    is cut to the VMA and to the file, and filled from its start by folios as large as are aligned
    in the file and fit. Where one is cached already, or memory is short, it ends: the rest is left
    to single pages.

    SIMPLIFIED: the kernel exefolio has this rule too; that of 2023 did not cut the block to the VMA, so
    that text which begins in the middle of a block had all of it in one folio.
    """
    most, base = k.config.exec_folio_order, vma * _V
    file = k.vma[base + VMA_FILE]
    first = k.vma[base + VMA_PGOFF]
    behind = first + (k.vma[base + VMA_END] - k.vma[base + VMA_START] >> k.page_shift)
    block = index & -(1 << most)
    at = max(block, first)
    end = min(block + (1 << most), behind, k.file[file * _F + FILE_PAGES])
    cache = k.file[file * _F + FILE_CACHE]
    while at < end:
        order = most
        while at & ((1 << order) - 1) or at + (1 << order) > end:
            order -= 1
        cached = any(k.page_cache[cache + at : cache + at + (1 << order)].tolist())
        if cached or not filemap_add_folio(k, file, at, order):
            return
        at += 1 << order


def filemap_add_folio(k: Arena, file: int, index: int, order: int) -> int:
    """Cache a new folio for the 2**order pages of a file from index on; 0 when memory is short."""
    folio = folio_alloc(k, order, PG_file | PG_lru, ZONE_CACHE)
    if not folio:
        return 0
    nr, base = 1 << order, folio * _P
    k.page[base + PAGE_REFCOUNT] = nr
    k.page[base + PAGE_MAPPING] = file
    k.page[base + PAGE_INDEX] = index & 0xFFFFFFFF
    k.page[base + PAGE_INDEX_HI] = index >> 32
    if k.config.phys_backing:
        k.ops.clear_huge_page(folio, nr, 0)
    at = k.file[file * _F + FILE_CACHE] + index
    for i in range(nr):
        k.page_cache[at + i] = folio + i
    return folio


def put_page(k: Arena, page: int, nr: int = 1) -> None:
    """Drop nr references to the folio of a page-cache page; frees it with the last."""
    folio = k.page[page * _P + PAGE_HEAD]
    base = folio * _P
    k.page[base + PAGE_REFCOUNT] -= nr
    if not k.page[base + PAGE_REFCOUNT]:
        folio_free(k, folio, ZONE_CACHE)


def has_page(k: Arena, file: int, index: int) -> bool:
    """Return whether the file is long enough to have the page."""
    return index < k.file[file * _F + FILE_PAGES]


def is_shmem(k: Arena, file: int) -> bool:
    """Return whether the file is shared anonymous memory, whose pages come into being by faults."""
    return bool(k.file[file * _F + FILE_SHMEM])
