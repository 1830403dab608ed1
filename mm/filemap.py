# SPDX-License-Identifier: GPL-2.0-only
"""
The page cache, as far as memory mapped from it needs it, and shared anonymous memory.

A file has one element of ``k.page_cache`` a page: the pfn, or 0 while nothing mapped it.

SIMPLIFIED: a regular file is always completely cached, so every file fault is minor; a page takes
memory from the moment a fault first maps it and keeps it to the end. Contents are zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import FILE_RECORD as _F
from .arena import PAGE_RECORD as _P
from .layout import (
    FILE_CACHE,
    FILE_CAPACITY,
    FILE_INODE,
    FILE_PAGES,
    FILE_SHMEM,
    FILE_VMAS,
    PAGE_INDEX,
    PAGE_INDEX_HI,
    PAGE_MAPPING,
    PAGE_REFCOUNT,
    SLAB_FILE,
    ZONE_CACHE,
    ZONE_CACHE_END,
    PG_file,
    PG_lru,
)
from .page_alloc import folio_alloc, folio_free
from .slab import slab_alloc, slab_free

if TYPE_CHECKING:
    from .arena import Arena


def file_open(k: Arena, inode: int, pages: int) -> int:
    """Return a new file of so many pages; 0 when the table is full."""
    file = slab_alloc(k, SLAB_FILE, k.file, _F)
    if file:
        k.file[file * _F + FILE_INODE] = inode
        file_extend(k, file, pages)
    return file


def file_extend(k: Arena, file: int, pages: int) -> None:
    """Let a file be at least so many pages long; those that are cached stay cached."""
    base = file * _F
    have = k.file[base + FILE_CAPACITY]
    if pages > have:
        old, new = k.file[base + FILE_CACHE], k.zone[ZONE_CACHE_END] + 1
        k.zone[ZONE_CACHE_END] = new + pages
        if have:
            k.page_cache[new : new + have] = k.page_cache[old : old + have]
            k.page_cache[old : old + have] = memoryview(bytes(4 * have)).cast("I")
        k.file[base + FILE_CACHE] = new
        k.file[base + FILE_CAPACITY] = pages
    if pages > k.file[base + FILE_PAGES]:
        k.file[base + FILE_PAGES] = pages


def shmem_file_setup(k: Arena, pages: int) -> int:
    """Return the unnamed file behind a new shared anonymous mapping; 0 when the table is full."""
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
    slab_free(k, SLAB_FILE, k.file, _F, file)


def filemap_get_folio(k: Arena, file: int, index: int) -> int:
    """Return the cached page of a file, or 0 when it is not cached or behind the end."""
    base = file * _F
    if index >= k.file[base + FILE_PAGES]:
        return 0
    return k.page_cache[k.file[base + FILE_CACHE] + index]


def filemap_fault(k: Arena, file: int, index: int) -> int:
    """
    Return the page of a file, read in (or zeroed, for shared anonymous memory) if it was not
    cached.

    Returns: its pfn; 0 when memory is short. The file must have the page.
    """
    at = k.file[file * _F + FILE_CACHE] + index
    pfn = k.page_cache[at]
    if not pfn:
        pfn = folio_alloc(k, 0, PG_file | PG_lru, ZONE_CACHE)
        if not pfn:
            return 0
        base = pfn * _P
        k.page[base + PAGE_MAPPING] = file
        k.page[base + PAGE_INDEX] = index & 0xFFFFFFFF
        k.page[base + PAGE_INDEX_HI] = index >> 32
        if k.config.phys_backing:
            k.ops.clear_huge_page(pfn, 1, 0)
        k.page_cache[at] = pfn
    return pfn


def put_page(k: Arena, pfn: int) -> None:
    """Drop a reference to a page-cache page; frees it with the last."""
    base = pfn * _P
    k.page[base + PAGE_REFCOUNT] -= 1
    if not k.page[base + PAGE_REFCOUNT]:
        folio_free(k, pfn, ZONE_CACHE)


def has_page(k: Arena, file: int, index: int) -> bool:
    """Return whether the file is long enough to have the page."""
    return index < k.file[file * _F + FILE_PAGES]


def is_shmem(k: Arena, file: int) -> bool:
    """Return whether the file is shared anonymous memory, whose pages come into being by faults."""
    return bool(k.file[file * _F + FILE_SHMEM])
