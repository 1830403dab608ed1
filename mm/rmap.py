# SPDX-License-Identifier: GPL-2.0-only
"""
Reverse map: who maps a folio, and how often.

Mapcounts count from 0 = unmapped. A large folio also counts its mapped pages and all mappings of its
pages (layout.py, FOLIO_*). PG_exclusive on a page says that its one mapping may write in place.

An anon_vma stands for the VMAs that may map a set of anonymous folios: a VMA gets one at its first
write fault, a split VMA shares it, a forked VMA is linked to its parent's and gets one of its own. Links
(avc) are in two lists: those of a VMA from the oldest anon_vma to its own, and those of an anon_vma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import ANON_VMA_RECORD as _A
from .arena import AVC_RECORD as _C
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .huge_memory import deferred_split_folio
from .layout import (
    ANON_VMA_AVC,
    ANON_VMA_NUM_ACTIVE,
    ANON_VMA_NUM_CHILDREN,
    ANON_VMA_PARENT,
    ANON_VMA_ROOT,
    AVC_ANON_VMA,
    AVC_NEXT,
    AVC_NEXT_VMA,
    AVC_PREV,
    AVC_VMA,
    FOLIO_NR_PAGES_MAPPED,
    PAGE_FLAGS,
    PAGE_INDEX,
    PAGE_INDEX_HI,
    PAGE_MAPCOUNT,
    PAGE_MAPPING,
    PAGE_ORDER,
    SLAB_ANON_VMA,
    SLAB_AVC,
    VMA_ANON_VMA,
    VMA_AVC,
    VMA_PGOFF,
    VMA_START,
    PG_exclusive,
    PG_swapbacked,
    VM_nr_anon_pages,
    VM_nr_mapped,
)
from .slab import slab_alloc, slab_free

if TYPE_CHECKING:
    from .arena import Arena


def linear_page_index(k: Arena, vma: int, address: int) -> int:
    """Return the page index of address in what the VMA maps."""
    base = vma * _V
    return (address - k.vma[base + VMA_START] >> k.page_shift) + k.vma[base + VMA_PGOFF]


def folio_add_new_anon_rmap_range(
    k: Arena, folio: int, page: int, nr: int, vma: int, address: int
) -> None:
    """
    Map nr pages of a new folio once each, exclusively, from address on (v1 patch 4).

    Mirrors: folio_add_new_anon_rmap_range() of the series; the folio's mapping and index are set, its
    pages count as mapped anonymous memory.
    """
    words = k.page
    base = folio * _P
    words[base + PAGE_FLAGS] |= PG_swapbacked
    words[base + PAGE_MAPPING] = k.vma[vma * _V + VMA_ANON_VMA]
    index = linear_page_index(k, vma, address) - (page - folio)
    words[base + PAGE_INDEX] = index & 0xFFFFFFFF
    words[base + PAGE_INDEX_HI] = index >> 32
    if nr == 1 and not words[base + PAGE_ORDER]:
        words[base + PAGE_MAPCOUNT] = 1
        words[base + PAGE_FLAGS] |= PG_exclusive
    else:
        k.ops.folio_add_new_anon_rmap(folio, page, nr)
    k.vmstat[VM_nr_anon_pages] += nr


def folio_remove_rmap_range(k: Arena, folio: int, page: int, nr: int) -> None:
    """
    Take one mapping from each of nr pages of an anonymous folio (v1 patch 5).

    A large folio of which this unmapped a page while others stay mapped goes on the deferred split queue.
    """
    unmapped = k.ops.folio_remove_rmap_range(folio, page, nr)
    k.vmstat[VM_nr_anon_pages] -= unmapped
    base = folio * _P
    if k.page[base + PAGE_ORDER] and unmapped and k.page[base + FOLIO_NR_PAGES_MAPPED]:
        deferred_split_folio(k, folio)


def page_remove_rmap(k: Arena, folio: int, page: int) -> None:
    """
    Take one mapping from one page of an anonymous folio.

    A large folio is queued for splitting whenever this was the page's last mapping, even the folio's
    last (v1 patch 6): the folio then leaves the queue when it is freed.
    """
    unmapped = k.ops.folio_remove_rmap_range(folio, page, 1)
    k.vmstat[VM_nr_anon_pages] -= unmapped
    if k.page[folio * _P + PAGE_ORDER] and unmapped:
        deferred_split_folio(k, folio)


def folio_add_file_rmap(k: Arena, page: int) -> None:
    """Map a page-cache page once more."""
    base = page * _P + PAGE_MAPCOUNT
    k.vmstat[VM_nr_mapped] += not k.page[base]
    k.page[base] += 1


def folio_remove_file_rmap(k: Arena, page: int) -> None:
    """Take one mapping from a page-cache page."""
    base = page * _P + PAGE_MAPCOUNT
    k.page[base] -= 1
    k.vmstat[VM_nr_mapped] -= not k.page[base]


def page_move_anon_rmap(k: Arena, folio: int, page: int, vma: int) -> None:
    """Make the one process that maps a page its owner: exclusive, in the VMA's own anon_vma."""
    k.page[folio * _P + PAGE_MAPPING] = k.vma[vma * _V + VMA_ANON_VMA]
    k.page[page * _P + PAGE_FLAGS] |= PG_exclusive


def vma_chain(k: Arena, vma: int) -> list[int]:
    """Return the anon_vmas that a VMA is linked to, oldest first."""
    chain, avc = [], k.vma[vma * _V + VMA_AVC]
    while avc:
        chain.append(k.avc[avc * _C + AVC_ANON_VMA])
        avc = k.avc[avc * _C + AVC_NEXT_VMA]
    return chain


def anon_vma_chain_is_singular(k: Arena, vma: int) -> bool:
    """Return whether a VMA is linked to exactly one anon_vma: it was not inherited by fork."""
    avc = k.vma[vma * _V + VMA_AVC]
    return avc != 0 and not k.avc[avc * _C + AVC_NEXT_VMA]


def _anon_vma_chain_link(k: Arena, vma: int, anon_vma: int) -> bool:
    """Link a VMA to an anon_vma, last in the VMA's list; False when there is no memory for it."""
    link = slab_alloc(k, SLAB_AVC, k.avc, _C)
    if not link:
        return False
    avc = k.avc
    avc[link * _C + AVC_VMA] = vma
    avc[link * _C + AVC_ANON_VMA] = anon_vma
    head = k.anon_vma[anon_vma * _A + ANON_VMA_AVC]
    avc[link * _C + AVC_NEXT] = head
    if head:
        avc[head * _C + AVC_PREV] = link
    k.anon_vma[anon_vma * _A + ANON_VMA_AVC] = link
    last = k.vma[vma * _V + VMA_AVC]
    if not last:
        k.vma[vma * _V + VMA_AVC] = link
        return True
    while avc[last * _C + AVC_NEXT_VMA]:
        last = avc[last * _C + AVC_NEXT_VMA]
    avc[last * _C + AVC_NEXT_VMA] = link
    return True


def _anon_vma_alloc(k: Arena) -> int:
    anon_vma = slab_alloc(k, SLAB_ANON_VMA, k.anon_vma, _A)
    if anon_vma:
        base = anon_vma * _A
        k.anon_vma[base + ANON_VMA_ROOT] = anon_vma
        k.anon_vma[base + ANON_VMA_PARENT] = anon_vma
        k.anon_vma[base + ANON_VMA_NUM_CHILDREN] = 1  # a root is its own parent
    return anon_vma


def anon_vma_prepare(k: Arena, vma: int, mergeable: int) -> bool:
    """
    Give a VMA an anon_vma unless it has one; False when there is no memory for it.

    Args:
        mergeable: a neighbour's anon_vma that it can share (find_mergeable_anon_vma()), or 0.
    """
    base = vma * _V + VMA_ANON_VMA
    if k.vma[base]:
        return True
    anon_vma = mergeable or _anon_vma_alloc(k)
    if not anon_vma or not _anon_vma_chain_link(k, vma, anon_vma):
        return False
    k.vma[base] = anon_vma
    k.anon_vma[anon_vma * _A + ANON_VMA_NUM_ACTIVE] += 1
    return True


def anon_vma_clone(k: Arena, to: int, source: int) -> bool:
    """
    Link ``to`` to every anon_vma that ``source`` is linked to; False when there is no memory for it.

    A forked VMA without an anon_vma of its own takes one that no VMA uses any longer and that has at
    most one child, so that repeated forks do not grow the tree without end.
    """
    own = k.vma[source * _V + VMA_ANON_VMA]
    for anon_vma in vma_chain(k, source):
        if not _anon_vma_chain_link(k, to, anon_vma):
            return False
        base = anon_vma * _A
        if (
            own
            and not k.vma[to * _V + VMA_ANON_VMA]
            and k.anon_vma[base + ANON_VMA_NUM_CHILDREN] < 2
            and not k.anon_vma[base + ANON_VMA_NUM_ACTIVE]
        ):
            k.vma[to * _V + VMA_ANON_VMA] = anon_vma
    used = k.vma[to * _V + VMA_ANON_VMA]
    if used:
        k.anon_vma[used * _A + ANON_VMA_NUM_ACTIVE] += 1
    return True


def anon_vma_fork(k: Arena, vma: int, parent_vma: int) -> bool:
    """Link a forked VMA to its parent's anon_vmas and give it its own; False without memory."""
    parent = k.vma[parent_vma * _V + VMA_ANON_VMA]
    if not parent:
        return True
    k.vma[vma * _V + VMA_ANON_VMA] = 0
    if not anon_vma_clone(k, vma, parent_vma):
        return False
    if k.vma[vma * _V + VMA_ANON_VMA]:
        return True
    anon_vma = _anon_vma_alloc(k)
    if not anon_vma or not _anon_vma_chain_link(k, vma, anon_vma):
        return False
    base = anon_vma * _A
    k.anon_vma[base + ANON_VMA_ROOT] = k.anon_vma[parent * _A + ANON_VMA_ROOT]
    k.anon_vma[base + ANON_VMA_PARENT] = parent
    k.anon_vma[base + ANON_VMA_NUM_CHILDREN] = 0
    k.anon_vma[base + ANON_VMA_NUM_ACTIVE] = 1
    k.anon_vma[parent * _A + ANON_VMA_NUM_CHILDREN] += 1
    k.vma[vma * _V + VMA_ANON_VMA] = anon_vma
    return True


def unlink_anon_vmas(k: Arena, vma: int) -> None:
    """Unlink a VMA that goes away from its anon_vmas and free those that nothing is linked to."""
    avc = k.avc
    own = k.vma[vma * _V + VMA_ANON_VMA]
    if own:
        k.anon_vma[own * _A + ANON_VMA_NUM_ACTIVE] -= 1
        k.vma[vma * _V + VMA_ANON_VMA] = 0
    link = k.vma[vma * _V + VMA_AVC]
    k.vma[vma * _V + VMA_AVC] = 0
    unused = []
    while link:
        base = link * _C
        following, anon_vma = avc[base + AVC_NEXT_VMA], avc[base + AVC_ANON_VMA]
        after, before = avc[base + AVC_NEXT], avc[base + AVC_PREV]
        if before:
            avc[before * _C + AVC_NEXT] = after
        else:
            k.anon_vma[anon_vma * _A + ANON_VMA_AVC] = after
        if after:
            avc[after * _C + AVC_PREV] = before
        slab_free(k, SLAB_AVC, avc, _C, link)
        if not before and not after:
            parent = k.anon_vma[anon_vma * _A + ANON_VMA_PARENT]
            k.anon_vma[parent * _A + ANON_VMA_NUM_CHILDREN] -= 1
            unused.append(anon_vma)
        link = following
    for anon_vma in unused:
        slab_free(k, SLAB_ANON_VMA, k.anon_vma, _A, anon_vma)
