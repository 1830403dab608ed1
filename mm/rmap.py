# SPDX-License-Identifier: GPL-2.0-only
"""
Reverse map: who maps a folio, and how often.

Mapcounts count from 0 = unmapped. A large folio also counts its pages with a mapcount,
all mappings of its pages, and its huge entries, which are in no page's mapcount (FOLIO_*).
PG_exclusive on a page says that its one mapping may write in place.

An anon_vma stands for the VMAs that may map a set of anonymous folios: a VMA gets one at its first
write fault, a split VMA shares it, a forked VMA is linked to its parent's and gets one of its own.
Links (avc) are in two lists: those of a VMA from the oldest anon_vma to its own, and those of an
anon_vma.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import ANON_VMA_RECORD as _A
from .arena import AVC_RECORD as _C
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
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
    FOLIO_ENTIRE_MAPCOUNT,
    FOLIO_LARGE_MAPCOUNT,
    FOLIO_MAYBE_SHARED,
    FOLIO_NR_PAGES_MAPPED,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_INDEX,
    PAGE_INDEX_HI,
    PAGE_MAPCOUNT,
    PAGE_MAPPING,
    PAGE_ORDER,
    SLAB_ANON_VMA,
    SLAB_AVC,
    VMA_ANON_VMA,
    VMA_AVC,
    VMA_MM,
    VMA_PGOFF,
    VMA_START,
    ZONE_SLAB,
    PG_exclusive,
    PG_swapbacked,
    VM_nr_anon_pages,
    VM_nr_mapped,
    WORK_rmap_add,
    WORK_rmap_remove,
)
from .slab import slab_alloc, slab_free
from .split_queue import deferred_split_folio

if TYPE_CHECKING:
    from .arena import Arena


def linear_page_index(k: Arena, vma: int, address: int) -> int:
    """Return the page index of address in what the VMA maps."""
    base = vma * _V
    return (address - k.vma[base + VMA_START] >> k.page_shift) + k.vma[base + VMA_PGOFF]


def folio_add_new_anon_rmap_range(
    k: Arena, folio: int, page: int, nr: int, vma: int, address: int, *, by_pmd: bool = False
) -> None:
    """
    Map nr pages of a new folio once each, exclusively, from address on (v1 patch 4).

    Mirrors: folio_add_new_anon_rmap_range() of the series, folio_add_new_anon_rmap() since v6.8:
    the folio's mapping and index are set, its pages count as mapped anonymous memory. With by_pmd
    one huge entry maps all of it, and the exclusive mark is on the head page alone. Without
    ANON_RMAP_ADD_RANGE each page takes a call of its own, with the same outcome.
    """
    k.work[WORK_rmap_add] += 1 if by_pmd or k.config.rmap_add_range else nr
    words = k.page
    base = folio * _P
    words[base + PAGE_FLAGS] |= PG_swapbacked
    words[base + PAGE_MAPPING] = k.vma[vma * _V + VMA_ANON_VMA]
    index = linear_page_index(k, vma, address) - (page - folio)
    words[base + PAGE_INDEX] = index & 0xFFFFFFFF
    words[base + PAGE_INDEX_HI] = index >> 32
    large = words[base + PAGE_ORDER]
    if by_pmd:
        words[base + FOLIO_ENTIRE_MAPCOUNT] = 1
        words[base + FOLIO_LARGE_MAPCOUNT] = 1
        words[base + PAGE_FLAGS] |= PG_exclusive
    elif not large:
        words[base + PAGE_MAPCOUNT] = 1
        words[base + PAGE_FLAGS] |= PG_exclusive
    else:
        k.ops.folio_add_new_anon_rmap(folio, page, nr)
    if large and k.config.mm_id:
        k.ops.folio_add_mm(folio, k.vma[vma * _V + VMA_MM], 1 if by_pmd else nr)
    k.vmstat[VM_nr_anon_pages] += nr


def folio_dup_anon_rmap_ptes(k: Arena, folio: int, page: int, nr: int, mm: int) -> None:
    """Map nr pages of an anonymous folio once more, in a child's mm; none is exclusive any longer."""
    k.work[WORK_rmap_add] += 1 if k.config.policy == "mthp" else nr
    mapped = k.ops.folio_dup_anon_rmap_ptes(folio, page, nr)
    base = folio * _P
    if not k.page[base + PAGE_ORDER]:
        k.vmstat[VM_nr_anon_pages] += mapped
        return
    if not k.page[base + FOLIO_ENTIRE_MAPCOUNT]:
        k.vmstat[VM_nr_anon_pages] += mapped
    if k.config.mm_id:
        k.ops.folio_add_mm(folio, mm, nr)


def page_remove_rmap(k: Arena, folio: int, page: int, mm: int) -> None:
    """Take one mapping of mm from one page of an anonymous folio."""
    folio_remove_rmap_ptes(k, folio, page, 1, mm)


def folio_remove_rmap_ptes(k: Arena, folio: int, page: int, nr: int, mm: int) -> None:
    """
    Take one mapping of mm from each of nr pages of an anonymous folio, outside the series' own code.

    Up to 6.4 page by page: a large folio is queued for splitting whenever this was a page's last
    mapping, even the folio's last (v1 patch 6), and then leaves the queue when it is freed. Since
    v6.10 only while others stay.
    """
    by_page = k.config.policy != "mthp"
    k.work[WORK_rmap_remove] += nr if by_page else 1
    _remove_rmap(k, folio, page, nr, mm, by_page)


def folio_remove_rmap_range(k: Arena, folio: int, page: int, nr: int, mm: int) -> None:
    """
    Take one mapping of mm from each of nr pages of an anonymous folio (v1 patch 5).

    A large folio is queued for splitting if a page lost its last mapping while others keep theirs.
    Without ANON_RMAP_REMOVE_RANGE each page takes a call of page_remove_rmap().
    """
    if not k.config.rmap_remove_range:
        for each in range(page, page + nr):
            page_remove_rmap(k, folio, each, mm)
        return
    k.work[WORK_rmap_remove] += 1
    _remove_rmap(k, folio, page, nr, mm, False)


def _remove_rmap(k: Arena, folio: int, page: int, nr: int, mm: int, even_last: bool) -> None:
    unmapped = k.ops.folio_remove_rmap_range(folio, page, nr)
    base = folio * _P
    if not k.page[base + PAGE_ORDER]:
        k.vmstat[VM_nr_anon_pages] -= unmapped
        return
    if k.config.mm_id:
        k.ops.folio_sub_mm(folio, mm, nr)
    if unmapped and not k.page[base + FOLIO_ENTIRE_MAPCOUNT]:
        k.vmstat[VM_nr_anon_pages] -= unmapped
        if even_last or k.page[base + FOLIO_NR_PAGES_MAPPED]:
            deferred_split_folio(k, folio)


def folio_add_rmap_pmd(k: Arena, folio: int, mm: int) -> None:
    """Map a PMD-sized folio once more, by a huge entry of mm."""
    words, base = k.page, folio * _P
    k.work[WORK_rmap_add] += 1
    if not words[base + FOLIO_ENTIRE_MAPCOUNT]:
        k.vmstat[VM_nr_anon_pages] += (1 << k.pmd_order) - words[base + FOLIO_NR_PAGES_MAPPED]
    words[base + FOLIO_ENTIRE_MAPCOUNT] += 1
    words[base + FOLIO_LARGE_MAPCOUNT] += 1
    if k.config.mm_id:
        k.ops.folio_add_mm(folio, mm, 1)


def folio_remove_rmap_pmd(k: Arena, folio: int, mm: int) -> None:
    """Take a huge entry's mapping from a folio; queued if that unmapped some of its pages but not all."""
    words, base = k.page, folio * _P
    k.work[WORK_rmap_remove] += 1
    words[base + FOLIO_ENTIRE_MAPCOUNT] -= 1
    words[base + FOLIO_LARGE_MAPCOUNT] -= 1
    if k.config.mm_id:
        k.ops.folio_sub_mm(folio, mm, 1)
    if words[base + FOLIO_ENTIRE_MAPCOUNT]:
        return
    left = words[base + FOLIO_NR_PAGES_MAPPED]
    k.vmstat[VM_nr_anon_pages] -= (1 << k.pmd_order) - left
    if 0 < left < 1 << k.pmd_order:
        deferred_split_folio(k, folio)


def folio_split_rmap_pmd(k: Arena, folio: int, mm: int, nr: int) -> None:
    """Turn a huge entry's mapping into one of each page; an exclusive folio's pages all become exclusive."""
    words, base = k.page, folio * _P
    exclusive = words[base + PAGE_FLAGS] & PG_exclusive
    k.work[WORK_rmap_add] += 1 if k.config.policy == "mthp" else nr
    k.work[WORK_rmap_remove] += 1
    k.ops.folio_dup_anon_rmap_ptes(folio, folio, nr)  # all its pages were and stay mapped
    words[base + FOLIO_ENTIRE_MAPCOUNT] -= 1
    words[base + FOLIO_LARGE_MAPCOUNT] -= 1
    if exclusive:
        for page in range(folio, folio + nr):
            words[page * _P + PAGE_FLAGS] |= PG_exclusive
    if k.config.mm_id:
        k.ops.folio_add_mm(folio, mm, nr)
        k.ops.folio_sub_mm(folio, mm, 1)


def folio_maybe_mapped_shared(k: Arena, folio: int) -> bool:
    """
    Return whether more than one mm may map a folio.

    A small folio's mapcount says it. For a large one with MM_ID its owners are counted (6.15);
    before, the mapcount of its first page is taken for all (folio_likely_mapped_shared()).
    """
    words, base = k.page, folio * _P
    if not words[base + PAGE_ORDER]:
        return words[base + PAGE_MAPCOUNT] > 1
    if k.config.mm_id:
        return bool(words[base + FOLIO_MAYBE_SHARED])
    total, nr = words[base + FOLIO_LARGE_MAPCOUNT], 1 << words[base + PAGE_ORDER]
    if total <= 1:
        return False
    if words[base + FOLIO_ENTIRE_MAPCOUNT] or total > nr:
        return True
    return words[base + PAGE_MAPCOUNT] > 1


def page_mapcount(k: Arena, folio: int, page: int) -> int:
    """Return how many entries of all processes map a page."""
    count = k.page[page * _P + PAGE_MAPCOUNT]
    if k.page[folio * _P + PAGE_ORDER]:
        count += k.page[folio * _P + FOLIO_ENTIRE_MAPCOUNT]
    return count


def folio_add_file_rmap(k: Arena, page: int, nr: int = 1) -> None:
    """Map nr pages of a page-cache folio once more; file pages are never exclusive."""
    folio = k.page[page * _P + PAGE_HEAD]
    k.vmstat[VM_nr_mapped] += k.ops.folio_dup_anon_rmap_ptes(folio, page, nr)


def folio_remove_file_rmap(k: Arena, page: int, nr: int = 1) -> None:
    """Take one mapping from each of nr pages of a page-cache folio; it is never queued for splitting."""
    folio = k.page[page * _P + PAGE_HEAD]
    k.vmstat[VM_nr_mapped] -= k.ops.folio_remove_rmap_range(folio, page, nr)


def folio_move_anon_rmap(k: Arena, folio: int, vma: int) -> None:
    """Let a folio that only this VMA maps belong to the VMA's own anon_vma."""
    k.page[folio * _P + PAGE_MAPPING] = k.vma[vma * _V + VMA_ANON_VMA]


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


def _can_link(k: Arena, nr: int) -> bool:
    """Return whether there is memory for so many links."""
    head = ZONE_SLAB + SLAB_AVC
    room = len(k.avc) // _C - 1 - k.zone[head + 1]
    unused = k.zone[head]
    while unused and room < nr:
        room += 1
        unused = k.avc[unused * _C]
    return room >= nr


def _anon_vma_alloc(k: Arena, vma: int) -> int:
    """Return a new anon_vma that the VMA is linked to; 0 when there is no memory for it."""
    anon_vma = slab_alloc(k, SLAB_ANON_VMA, k.anon_vma, _A)
    if not anon_vma:
        return 0
    base = anon_vma * _A
    k.anon_vma[base + ANON_VMA_ROOT] = anon_vma
    k.anon_vma[base + ANON_VMA_PARENT] = anon_vma
    k.anon_vma[base + ANON_VMA_NUM_CHILDREN] = 1  # a root is its own parent
    if _anon_vma_chain_link(k, vma, anon_vma):
        return anon_vma
    slab_free(k, SLAB_ANON_VMA, k.anon_vma, _A, anon_vma)
    return 0


def anon_vma_prepare(k: Arena, vma: int, mergeable: int) -> bool:
    """
    Give a VMA an anon_vma unless it has one; False when there is no memory for it: then it has none.

    Args:
        mergeable: a neighbour's anon_vma that it can share (find_mergeable_anon_vma()), or 0.
    """
    base = vma * _V + VMA_ANON_VMA
    if k.vma[base]:
        return True
    if mergeable and not _anon_vma_chain_link(k, vma, mergeable):
        return False
    anon_vma = mergeable or _anon_vma_alloc(k, vma)
    if not anon_vma:
        return False
    k.vma[base] = anon_vma
    k.anon_vma[anon_vma * _A + ANON_VMA_NUM_ACTIVE] += 1
    return True


def anon_vma_clone(k: Arena, to: int, source: int) -> bool:
    """
    Link ``to`` to every anon_vma that ``source`` is linked to; False when there is no memory for
    it: then it has neither links nor an anon_vma.

    A forked VMA without an anon_vma of its own takes one that no VMA uses any longer and that has
    at most one child, so that repeated forks do not grow the tree without end.
    """
    own = k.vma[source * _V + VMA_ANON_VMA]
    chain = vma_chain(k, source)
    if not _can_link(k, len(chain)):
        k.vma[to * _V + VMA_ANON_VMA] = 0  # which does not count it yet
        return False
    for anon_vma in chain:
        _anon_vma_chain_link(k, to, anon_vma)
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
    anon_vma = _anon_vma_alloc(k, vma)
    if not anon_vma:
        unlink_anon_vmas(k, vma)
        return False
    base = anon_vma * _A
    k.anon_vma[base + ANON_VMA_ROOT] = k.anon_vma[parent * _A + ANON_VMA_ROOT]
    k.anon_vma[base + ANON_VMA_PARENT] = parent
    k.anon_vma[base + ANON_VMA_NUM_CHILDREN] = 0
    k.anon_vma[base + ANON_VMA_NUM_ACTIVE] = 1
    k.anon_vma[parent * _A + ANON_VMA_NUM_CHILDREN] += 1
    k.vma[vma * _V + VMA_ANON_VMA] = anon_vma
    return True


def take_anon_vmas(k: Arena, to: int, source: int) -> None:
    """Let a VMA that has none have the anon_vmas of one that goes away."""
    for field in (VMA_ANON_VMA, VMA_AVC):
        k.vma[to * _V + field] = k.vma[source * _V + field]
        k.vma[source * _V + field] = 0
    link = k.vma[to * _V + VMA_AVC]
    while link:
        k.avc[link * _C + AVC_VMA] = to
        link = k.avc[link * _C + AVC_NEXT_VMA]


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
