# SPDX-License-Identifier: GPL-2.0-only
"""
CONFIG_DEBUG_VM: what must hold between any two steps, checked by walking everything.

A broken invariant raises VmBug with what was counted and what was found; it is a bug of ours,
never of the program that runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from .arena import FILE_RECORD as _F
from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_LOG_RECORD as _L
from .arena import VMA_RECORD as _V
from .layout import (
    FILE_CACHE,
    FILE_CAPACITY,
    FILE_PAGES,
    FOLIO_DEFERRED_NEXT,
    FOLIO_ENTIRE_MAPCOUNT,
    FOLIO_LARGE_MAPCOUNT,
    FOLIO_MAYBE_SHARED,
    FOLIO_MM0,
    FOLIO_MM1,
    FOLIO_NR_PAGES_MAPPED,
    LOG_FAULTS,
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_HUGE_PTE,
    MM_PGD,
    MM_PGTABLES,
    MM_USERS,
    NR_ORDERS,
    NR_REFUSED,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_INDEX,
    PAGE_INDEX_HI,
    PAGE_MAPCOUNT,
    PAGE_MAPPING,
    PAGE_NEXT,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    REFUSED_FAULTS,
    SLAB_FILE,
    SLAB_MM,
    VMA_END,
    VMA_FAULTS,
    VMA_FLAGS,
    VMA_MM,
    VMA_START,
    ZONE_ANON,
    ZONE_CACHE,
    ZONE_CACHE_END,
    ZONE_FREE_LIST,
    ZONE_FRONTIER,
    ZONE_HUGE_ZERO,
    ZONE_NR_BLOCKS,
    ZONE_NR_FREE,
    ZONE_SLAB,
    ZONE_SPLIT_QUEUE,
    ZONE_SPLIT_QUEUE_LEN,
    ZONE_TABLE,
    ZONE_VMA_LOG,
    PG_anon,
    PG_buddy,
    PG_deferred,
    PG_exclusive,
    PG_file,
    PG_mte_tagged,
    PG_partially_mapped,
    PG_reserved,
    PG_table,
    VM_nr_anon_pages,
    VM_nr_mapped,
    VM_nr_page_table_pages,
)
from .pgtable import (
    pmd_trans_huge,
    pte_pfn,
    pte_present,
    pte_special,
    pte_write,
    walk_page_table,
)
from .refused import NR_COUNTS
from .rmap import linear_page_index
from .vm_flags import VM_WRITE
from .vma import slots, vma_lookup

if TYPE_CHECKING:
    from .arena import Arena

Owners = defaultdict[int, Counter[int]]
_USERS = {PG_anon: ZONE_ANON, PG_file: ZONE_CACHE, PG_table: ZONE_TABLE}


class VmBug(Exception):
    """An invariant of the virtual kernel is broken."""


def _check(ok: bool, what: str) -> None:
    if not ok:
        raise VmBug(what)


def _tables(k: Arena, table: int, depth: int) -> int:
    """Return the pages of a table and of all below it."""
    order = k.page[table * _P + PAGE_ORDER]
    _check(order == k.table_orders[depth], f"table {table:#x} of order {order} at depth {depth}")
    nr = 1 << order
    if depth == len(k.levels):
        return nr
    first = table << k.table_shift
    entries = k.phys[first : first + k.levels[depth][1] + 1].tolist()
    reserve = 1 << k.table_orders[-1]
    below = (
        reserve if pmd_trans_huge(k, e) else _tables(k, pte_pfn(k, e), depth + 1)
        for e in filter(None, entries)
    )
    return nr + sum(below)


def _deposited(k: Arena, mm: int) -> int:
    """Return how many page tables an mm has in reserve."""
    table, count = k.mm[mm * _M + MM_HUGE_PTE], 0
    while table:
        count += 1
        table = k.page[table * _P + PAGE_NEXT]
    return count


def live_mms(k: Arena) -> list[int]:
    """Return the address spaces that exist."""
    return [mm for mm in range(1, k.zone[ZONE_SLAB + SLAB_MM + 1] + 1) if k.mm[mm * _M + MM_USERS]]


def validate(k: Arena) -> None:
    """Check everything; raises VmBug at the first thing that is wrong."""
    mapped: Counter[int] = Counter()
    entire: Counter[int] = Counter()
    owners: Owners = defaultdict(Counter)
    tables = 0
    for mm in live_mms(k):
        validate_vmas(k, mm)
        validate_mm(k, mm, mapped, entire, owners)
        if k.cont_nr:
            validate_contiguous(k, mm)
        count = _tables(k, k.mm[mm * _M + MM_PGD], 0)
        tables += count
        _check(
            count == k.mm[mm * _M + MM_PGTABLES],
            f"mm {mm}: {count} page tables, counted {k.mm[mm * _M + MM_PGTABLES]}",
        )
    _check(tables == k.vmstat[VM_nr_page_table_pages], f"{tables} page tables in all")
    free = validate_buddy(k)
    partly = validate_pages(k, mapped, entire, free, owners)
    validate_split_queue(k)
    validate_cache(k)
    validate_refused(k)
    for folio in partly:
        if not k.config.deferred_split and k.page[folio * _P + PAGE_ORDER] < k.pmd_order:
            continue
        queued = k.page[folio * _P + PAGE_FLAGS] & PG_deferred
        _check(bool(queued), f"folio {folio:#x} is mapped in part, not queued")
    for mm in live_mms(k):
        validate_entries(k, mm)


def validate_refused(k: Arena) -> None:
    """Why VMAs got no larger folios, those that are gone included, adds up to the machine's counts."""
    sums = [0] * NR_COUNTS
    for mm in live_mms(k):
        for vma in k.vma_index[slice(*slots(k, mm))]:
            first = vma * _V + VMA_FAULTS
            sums = [a + b for a, b in zip(sums, k.vma[first : first + NR_COUNTS], strict=True)]
    for record in range(k.zone[ZONE_VMA_LOG] + 1):
        first = record * _L + LOG_FAULTS
        sums = [a + b for a, b in zip(sums, k.vma_log[first : first + NR_COUNTS], strict=True)]
    counted = [k.refused[REFUSED_FAULTS], *k.refused[: NR_REFUSED * NR_ORDERS : NR_ORDERS]]
    _check(sums == counted, f"VMAs' refused orders are {sums}, counted {counted}")


def validate_vmas(k: Arena, mm: int) -> None:
    """VMAs are sorted, not empty, page aligned and do not overlap."""
    first, last = slots(k, mm)
    end = 0
    for slot in range(first, last):
        base = k.vma_index[slot] * _V
        start = k.vma[base + VMA_START]
        _check(k.vma_start[slot] == start, f"mm {mm}: slot {slot - first} is not its VMA's start")
        _check(k.vma[base + VMA_MM] == mm, f"mm {mm}: VMA at {start:#x} is another mm's")
        _check(
            end <= start < k.vma[base + VMA_END], f"mm {mm}: VMA at {start:#x} overlaps or is empty"
        )
        _check(
            not (start | k.vma[base + VMA_END]) & ~k.page_mask, f"VMA at {start:#x} is not aligned"
        )
        end = k.vma[base + VMA_END]


def validate_mm(
    k: Arena, mm: int, mapped: Counter[int], entire: Counter[int], owners: Owners
) -> None:
    """
    Every entry lies in a VMA and the RSS counters equal the walk.

    Args:
        mapped: pfn -> last-level entries that map it; added to.
        entire: folio -> huge entries that map it; added to.
        owners: folio -> mm -> entries that map it, of large folios; added to.
    """
    page, present = k.page, k.arch.pte.present
    shares = defaultdict[int, int](int)
    anon = file = huge_entries = vma = end = 0
    for address, entry, huge in walk_page_table(k, mm):
        if address >= end:
            vma = vma_lookup(k, mm, address)
            _check(vma != 0, f"mm {mm}: {address:#x} is mapped outside any VMA")
            end = k.vma[vma * _V + VMA_END]
        if entry & present.mask != present.on and not pte_present(k, entry):
            raise VmBug(f"mm {mm}: {address:#x} holds {entry:#x}, not present")
        pfn = pte_pfn(k, entry)
        huge_entries += huge
        if huge and address + k.pmd_size > end:
            raise VmBug(f"mm {mm}: the huge entry at {address:#x} leaves its VMA")
        if pte_special(k, entry):
            zero = k.zone[ZONE_HUGE_ZERO] if huge else k.zero_pfn
            _check(pfn == zero, f"mm {mm}: {address:#x} is special but not the zero page")
            continue
        folio = page[pfn * _P + PAGE_HEAD]
        base = folio * _P
        if page[base + PAGE_ORDER]:
            shares[folio] += 1
        if huge:
            entire[pfn] += 1
            anon += 1 << k.pmd_order
            continue
        mapped[pfn] = mapped.get(pfn, 0) + 1
        if page[base + PAGE_FLAGS] & PG_anon:
            anon += 1
        else:
            file += 1
    for name, counter, value in (("anon", MM_ANONPAGES, anon), ("file", MM_FILEPAGES, file)):
        count = k.mm[mm * _M + counter]
        _check(count == value, f"mm {mm}: {value} {name} pages mapped, counted {count}")
    reserve = _deposited(k, mm)
    _check(
        reserve == huge_entries,
        f"mm {mm}: {huge_entries} huge entries, {reserve} tables in reserve",
    )
    for folio, count in shares.items():
        owners[folio][mm] = count


def validate_entries(k: Arena, mm: int) -> None:
    """An entry has no more rights than its VMA and its page give, and the page's index is its place."""
    page, vma, end = k.page, 0, 0
    for address, entry, _ in walk_page_table(k, mm):
        if address >= end:
            vma = vma_lookup(k, mm, address)
            end = k.vma[vma * _V + VMA_END]
        writable = pte_write(k, entry)
        if writable and not k.vma[vma * _V + VMA_FLAGS] & VM_WRITE:
            raise VmBug(f"mm {mm}: {address:#x} is writable, its VMA is not")
        if pte_special(k, entry):
            continue
        pfn = pte_pfn(k, entry)
        folio = page[pfn * _P + PAGE_HEAD]
        base = folio * _P
        index = page[base + PAGE_INDEX] | page[base + PAGE_INDEX_HI] << 32
        if index + pfn - folio != linear_page_index(k, vma, address):
            raise VmBug(f"mm {mm}: {address:#x} maps page {pfn:#x}, whose index is another")
        anon = page[base + PAGE_FLAGS] & PG_anon
        if writable and anon and not page[pfn * _P + PAGE_FLAGS] & PG_exclusive:
            raise VmBug(f"mm {mm}: {address:#x} is writable, its page is not exclusive")


def validate_contiguous(k: Arena, mm: int) -> None:
    """
    Blocks of the contiguous bit are whole: aligned, accessible pages of one folio, equal but for young
    and dirty.
    """
    present = k.arch.pte.present
    ignore = k.arch.pte.young.mask | k.arch.pte.dirty.mask
    step, size = 1 << k.pfn_shift, k.cont_nr << k.page_shift
    first, seen, want = 0, k.cont_nr, 0
    for address, entry, huge in walk_page_table(k, mm):
        if not huge and entry & k.cont_bit and seen == k.cont_nr:
            first, seen, want = address, 0, entry & ~ignore
            pfn = pte_pfn(k, entry)
            folio = k.page[pfn * _P + PAGE_HEAD]
            inside = pfn + k.cont_nr <= folio + (1 << k.page[folio * _P + PAGE_ORDER])
            user = entry & present.mask == present.on and not pte_special(k, entry)
            if first % size or pfn % k.cont_nr or not inside or not user:
                raise VmBug(
                    f"mm {mm}: the contiguous block at {first:#x} is not aligned, accessible pages of a folio"
                )
        if seen < k.cont_nr:
            here = first + (seen << k.page_shift)
            if address != here or entry & ~ignore != want + seen * step:
                raise VmBug(f"mm {mm}: the contiguous block at {first:#x} breaks at {here:#x}")
            seen += 1
    _check(seen == k.cont_nr, f"mm {mm}: the contiguous block at {first:#x} is not whole")


def validate_buddy(k: Arena) -> set[int]:
    """Free lists, counters and merging agree; return the pfns below the frontier that are free."""
    free: set[int] = set()
    frontier = k.zone[ZONE_FRONTIER]
    for order in range(k.config.max_page_order + 1):
        pfn, blocks = k.zone[ZONE_FREE_LIST + order], 0
        while pfn:
            base = pfn * _P
            _check(bool(k.page[base + PAGE_FLAGS] & PG_buddy), f"free block {pfn:#x} is not marked")
            _check(k.page[base + PAGE_ORDER] == order, f"free block {pfn:#x} is of another order")
            _check(not pfn & ((1 << order) - 1), f"free block {pfn:#x} is not aligned")
            buddy = (pfn ^ (1 << order)) * _P
            merged = order < k.config.max_page_order and (
                k.page[buddy + PAGE_FLAGS] & PG_buddy and k.page[buddy + PAGE_ORDER] == order
            )
            _check(not merged, f"free block {pfn:#x} of order {order} has a free buddy")
            block = range(pfn, pfn + (1 << order))
            _check(free.isdisjoint(block), f"free block {pfn:#x} overlaps another")
            free.update(block)
            blocks += 1
            pfn = k.page[base + PAGE_NEXT]
        _check(blocks == k.zone[ZONE_NR_BLOCKS + order], f"order {order}: {blocks} free blocks")
    total = len(free) + k.config.nr_pages - frontier
    _check(total == k.zone[ZONE_NR_FREE], f"{total} pages free, counted {k.zone[ZONE_NR_FREE]}")
    return free


def validate_pages(
    k: Arena, mapped: Counter[int], entire: Counter[int], free: set[int], owners: Owners
) -> list[int]:
    """
    Each page below the frontier is free or used by exactly one thing, with true counts; return the
    folios that are mapped in part only.
    """
    held, partly = Counter[int](), []
    anon_mapped = file_mapped = 0
    for pfn in (*mapped, *entire):
        if pfn in free:
            raise VmBug(f"page {pfn:#x} is free and mapped")
    pfn, frontier = 0, k.zone[ZONE_FRONTIER]
    while pfn < frontier:
        base = pfn * _P
        flags, order = k.page[base + PAGE_FLAGS], k.page[base + PAGE_ORDER]
        nr = 1 << order
        if flags & PG_buddy:
            _check(pfn in free, f"free block {pfn:#x} is in no list")
        elif not flags & PG_reserved:
            if not k.page[base + PAGE_REFCOUNT]:
                raise VmBug(f"page {pfn:#x} is neither free nor held")
            user = _USERS.get(flags & (PG_anon | PG_file | PG_table), 0)
            if not user:
                raise VmBug(f"page {pfn:#x}: flags {flags:#x} name no single user")
            held[user] += nr
            pages = validate_folio(k, pfn, mapped, entire.get(pfn, 0))
            if user == ZONE_ANON and pages < nr:
                partly.append(pfn)
            if user == ZONE_ANON and order and k.config.mm_id:
                validate_owners(k, pfn, owners[pfn])
            anon_mapped += pages if user == ZONE_ANON else 0
            file_mapped += pages if user == ZONE_CACHE else 0
        pfn += nr
    for user in (ZONE_ANON, ZONE_CACHE, ZONE_TABLE):
        _check(
            held[user] == k.zone[user], f"user {user} holds {held[user]}, counted {k.zone[user]}"
        )
    _check(anon_mapped == k.vmstat[VM_nr_anon_pages], f"{anon_mapped} anonymous pages mapped")
    _check(file_mapped == k.vmstat[VM_nr_mapped], f"{file_mapped} file pages mapped")
    return partly


def validate_folio(k: Arena, folio: int, mapped: Counter[int], entire: int) -> int:
    """
    One folio's mapcounts, references and marks are true; return how many of its pages are mapped.

    Args:
        entire: huge entries that map it.
    """
    base = folio * _P
    order = k.page[base + PAGE_ORDER]
    nr = 1 << order
    records = k.page[base : base + nr * _P].tolist()
    counts, marks = records[PAGE_MAPCOUNT::_P], records[PAGE_FLAGS::_P]
    pages = total = 0
    for i, (head, count, mark) in enumerate(
        zip(records[PAGE_HEAD::_P], counts, marks, strict=True)
    ):
        if head != folio:
            raise VmBug(f"page {folio + i:#x} has another head than {folio:#x}")
        found = mapped.get(folio + i, 0)
        if count != found:
            raise VmBug(f"page {folio + i:#x}: mapped {found} times, counted {count}")
        if mark & PG_exclusive and count + entire > 1:
            raise VmBug(f"page {folio + i:#x} is exclusive and mapped {count + entire} times")
        if mark & PG_mte_tagged and not (marks[0] & PG_anon and k.arch.gfp_zerotags):
            raise VmBug(f"page {folio + i:#x} has memory tags, which {k.arch.name} memory has not")
        pages += count > 0
        total += count
    flags = marks[0]
    if flags & PG_table:
        return 0
    extra = nr if flags & PG_file else 0
    refs = records[PAGE_REFCOUNT]
    if refs != total + entire + extra:
        raise VmBug(f"folio {folio:#x}: {refs} references, {total + entire} mappings")
    if order:
        for what, field, value in (
            ("pages mapped", FOLIO_NR_PAGES_MAPPED, pages),
            ("mappings", FOLIO_LARGE_MAPCOUNT, total + entire),
            ("huge entries", FOLIO_ENTIRE_MAPCOUNT, entire),
        ):
            _check(value == records[field], f"folio {folio:#x}: {value} {what}")
        _check(
            not flags & PG_partially_mapped or bool(flags & PG_deferred),
            f"folio {folio:#x} partly mapped but not queued",
        )
    return nr if entire else pages


def validate_owners(k: Arena, folio: int, found: Counter[int]) -> None:
    """
    Who owns a large folio (MM_ID): a slot never counts more than the mm has, and a folio of several
    mms is marked as shared.

    It may count less: what an mm mapped while both slots were taken is in none.
    """
    base = folio * _P
    slots_ = [(k.page[base + s], k.page[base + s + 1]) for s in (FOLIO_MM0, FOLIO_MM1)]
    for mm, count in slots_:
        _check(
            (0 < count <= found[mm]) if mm else not count,
            f"folio {folio:#x}: mm {mm} has {found[mm]} mappings, its slot {count}",
        )
    _check(
        not slots_[0][0] or slots_[0][0] != slots_[1][0],
        f"folio {folio:#x}: one owner in two slots",
    )
    _check(
        sum(n > 0 for n in found.values()) < 2 or bool(k.page[base + FOLIO_MAYBE_SHARED]),
        f"folio {folio:#x} is mapped by several mms but not marked as shared",
    )


def validate_cache(k: Arena) -> None:
    """The page cache and its folios agree: each is naturally aligned in its file and cached whole."""
    cached = 0
    for file in range(1, k.zone[ZONE_SLAB + SLAB_FILE + 1] + 1):
        first, capacity = k.file[file * _F + FILE_CACHE], k.file[file * _F + FILE_CAPACITY]
        _check(
            k.file[file * _F + FILE_PAGES] <= capacity
            and first + capacity <= min(k.zone[ZONE_CACHE_END], len(k.page_cache)),
            f"file {file} has pages that are not its own",
        )
        for index, page in enumerate(k.page_cache[first : first + capacity].tolist()):
            if not page:
                continue
            cached += 1
            folio = k.page[page * _P + PAGE_HEAD]
            record = k.page[folio * _P : folio * _P + _P].tolist()
            _check(
                record[PAGE_FLAGS] & (PG_file | PG_deferred) == PG_file
                and record[PAGE_MAPPING] == file,
                f"file {file}: page {index} is cached in {page:#x}, no folio of this file",
            )
            at = record[PAGE_INDEX] | record[PAGE_INDEX_HI] << 32
            _check(
                at + page - folio == index and not at & ((1 << record[PAGE_ORDER]) - 1),
                f"file {file}: the folio of page {index} says {at}",
            )
    _check(cached == k.zone[ZONE_CACHE], f"{cached} pages cached, counted {k.zone[ZONE_CACHE]}")


def validate_split_queue(k: Arena) -> None:
    """The deferred split queue holds the large folios that are marked, each once."""
    folio, length = k.zone[ZONE_SPLIT_QUEUE], 0
    while folio:
        _check(
            bool(k.page[folio * _P + PAGE_FLAGS] & PG_deferred), f"folio {folio:#x} queued unmarked"
        )
        _check(k.page[folio * _P + PAGE_ORDER] > 1, f"folio {folio:#x} queued but small")
        length += 1
        folio = k.page[folio * _P + FOLIO_DEFERRED_NEXT]
    _check(length == k.zone[ZONE_SPLIT_QUEUE_LEN], f"{length} folios queued for splitting")
