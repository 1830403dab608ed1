# SPDX-License-Identifier: GPL-2.0-only
"""Each invariant of the validators, broken by hand: VmBug says so."""

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import FILE_RECORD, MM_RECORD, PAGE_RECORD, VMA_RECORD
from virtmm.mm.debug_vm import VmBug, validate, validate_buddy, validate_contiguous
from virtmm.mm.pgtable import pte_mkspecial, pte_offset_map, pte_pfn
from virtmm.mm.vma import slots

START = 0x40000000
PAGE = 4096


class Victim:
    """A healthy machine with one of everything, and names for its parts."""

    def __init__(self, machine):
        self.m, self.k = machine, machine.k
        m = machine
        assert m.spawn(1) == 0
        assert m.mmap(1, START, 64 * PAGE) == 0
        self.file = m.open(7, 2 * PAGE)
        assert m.mmap(1, START + 100 * PAGE, 2 * PAGE, 1, 2, self.file) == 0
        for page in (0, 16, 100):
            assert m.touch(1, START + page * PAGE, page != 100) == 0
        assert m.touch(1, START + 40 * PAGE, False) == 0
        assert m.munmap(1, START + 24 * PAGE, 8 * PAGE) == 0  # half of the second folio: queued
        self.mm = m._mm(1)
        self.folio, self.half, self.cached = (self.pfn(page) for page in (0, 16, 100))
        self.table = self.pte(0) >> self.k.table_shift
        self.slot = slots(self.k, self.mm)[0]
        self.block = next(
            self.k.zone[layout.ZONE_FREE_LIST + o]
            for o in range(11)
            if self.k.zone[layout.ZONE_FREE_LIST + o]
        )
        validate(self.k)

    def pte(self, page):
        return pte_offset_map(self.k, self.mm, START + page * PAGE)

    def pfn(self, page):
        return pte_pfn(self.k, self.k.phys[self.pte(page)])

    def page(self, pfn, field, change):
        self.k.page[pfn * PAGE_RECORD + field] = change(self.k.page[pfn * PAGE_RECORD + field])

    def vma(self, slot, field, value):
        self.k.vma[self.k.vma_index[self.slot + slot] * VMA_RECORD + field] = value

    def move(self, page, to):
        self.k.phys[self.pte(to)], self.k.phys[self.pte(page)] = self.k.phys[self.pte(page)], 0


def add(array, index, nr=1):
    """Return a breakage: add to a word of an array that is not per page."""

    def change(v):
        getattr(v.k, array)[index(v) if callable(index) else index] += nr

    return change


def plus(n):
    return lambda old: old + n


def flip(bit):
    return lambda old: old ^ bit


def put(value):
    return lambda _: value


def set_pte(page, change):
    def breakage(v):
        v.k.phys[v.pte(page)] = change(v, v.k.phys[v.pte(page)])

    return breakage


ZONE = {name: getattr(layout, f"ZONE_{name}") for name in ("NR_FREE", "ANON", "CACHE", "TABLE")}
BREAKAGES = {
    "vma start": (lambda v: v.vma(0, layout.VMA_START, START + PAGE), "not its VMA's start"),
    "vma mm": (lambda v: v.vma(0, layout.VMA_MM, 5), "another mm's"),
    "vma empty": (lambda v: v.vma(0, layout.VMA_END, START), "overlaps or is empty"),
    "vma overlap": (lambda v: v.vma(0, layout.VMA_END, START + 60 * PAGE), "overlaps or is empty"),
    "vma unaligned": (lambda v: v.vma(0, layout.VMA_END, START + 24 * PAGE - 1), "not aligned"),
    "page outside": (lambda v: v.move(0, 26), "outside any VMA"),
    "rights": (lambda v: v.vma(0, layout.VMA_FLAGS, 1), "is writable, its VMA is not"),
    "index": (lambda v: v.page(v.folio, layout.PAGE_INDEX, plus(5)), "whose index is another"),
    "writable, shared": (
        lambda v: v.page(v.folio + 3, layout.PAGE_FLAGS, flip(layout.PG_exclusive)),
        "is writable, its page is not exclusive",
    ),
    "not present": (set_pte(0, lambda v, e: e & ~v.k.arch.pte.present.mask), "not present"),
    "special": (set_pte(0, lambda v, e: pte_mkspecial(v.k, e)), "not the zero page"),
    "lost entry": (set_pte(0, lambda v, e: 0), "anon pages mapped, counted"),
    "anon rss": (add("mm", lambda v: v.mm * MM_RECORD + layout.MM_ANONPAGES), "anon pages mapped"),
    "file rss": (add("mm", lambda v: v.mm * MM_RECORD + layout.MM_FILEPAGES), "file pages mapped"),
    "mm tables": (
        add("mm", lambda v: v.mm * MM_RECORD + layout.MM_PGTABLES),
        "page tables, counted",
    ),
    "table order": (lambda v: v.page(v.table, layout.PAGE_ORDER, plus(1)), "of order 1 at depth"),
    "tags": (
        lambda v: v.page(v.cached, layout.PAGE_FLAGS, flip(layout.PG_mte_tagged)),
        "has memory tags",
    ),
    "all tables": (add("vmstat", layout.VM_nr_page_table_pages), "page tables in all"),
    "vm anon": (add("vmstat", layout.VM_nr_anon_pages), "anonymous pages mapped"),
    "vm mapped": (add("vmstat", layout.VM_nr_mapped), "file pages mapped"),
    **{
        f"zone {name}": (add("zone", at), "free, counted" if name == "NR_FREE" else "holds")
        for name, at in ZONE.items()
    },
    "blocks": (add("zone", lambda v: layout.ZONE_NR_BLOCKS + order(v)), "free blocks"),
    "block flag": (
        lambda v: v.page(v.block, layout.PAGE_FLAGS, flip(layout.PG_buddy)),
        "not marked",
    ),
    "block order": (lambda v: v.page(v.block, layout.PAGE_ORDER, plus(1)), "of another order"),
    "unmerged": (lambda v: split_by_hand(v), "has a free buddy"),
    "mapped and free": (lambda v: map_free(v), "is free and mapped"),
    "no reference": (
        lambda v: v.page(v.table, layout.PAGE_REFCOUNT, put(0)),
        "neither free nor held",
    ),
    "no user": (lambda v: v.page(v.table, layout.PAGE_FLAGS, put(0)), "name no single user"),
    "two users": (
        lambda v: v.page(v.folio, layout.PAGE_FLAGS, flip(layout.PG_file)),
        "no single user",
    ),
    "head": (lambda v: v.page(v.folio + 3, layout.PAGE_HEAD, put(v.half)), "has another head"),
    "mapcount": (lambda v: v.page(v.folio + 3, layout.PAGE_MAPCOUNT, plus(1)), "times, counted"),
    "anon references": (lambda v: v.page(v.folio, layout.PAGE_REFCOUNT, plus(1)), "references"),
    "file references": (lambda v: v.page(v.cached, layout.PAGE_REFCOUNT, plus(1)), "references"),
    "pages mapped": (
        lambda v: v.page(v.folio, layout.FOLIO_NR_PAGES_MAPPED, plus(1)),
        "pages mapped",
    ),
    "mappings": (lambda v: v.page(v.folio, layout.FOLIO_LARGE_MAPCOUNT, plus(1)), "mappings"),
    "exclusive": (lambda v: share_by_hand(v), "exclusive and mapped 2 times"),
    "queued unmarked": (
        lambda v: v.page(
            v.half, layout.PAGE_FLAGS, flip(layout.PG_deferred | layout.PG_partially_mapped)
        ),
        "unmarked",
    ),
    "queue length": (add("zone", layout.ZONE_SPLIT_QUEUE_LEN), "queued for splitting"),
    "queue lost": (lambda v: lose_queue(v), "queued for splitting"),
    "small queued": (lambda v: queue_small(v), "queued but small"),
    "file queued": (
        lambda v: v.page(v.cached, layout.PAGE_FLAGS, flip(layout.PG_deferred)),
        "no folio of this file",
    ),
    "file of another": (
        lambda v: v.page(v.cached, layout.PAGE_MAPPING, plus(1)),
        "no folio of this file",
    ),
    "file index": (lambda v: v.page(v.cached, layout.PAGE_INDEX, plus(1)), "says 1"),
    "file too long": (
        add("file", lambda v: v.file * FILE_RECORD + layout.FILE_PAGES),
        "not its own",
    ),
    "behind the cache": (add("zone", layout.ZONE_CACHE_END, -1), "not its own"),
    "not cached": (lambda v: uncache(v), "pages cached, counted"),
}


def set_block(change):
    """Return a breakage of all entries of the contiguous block."""

    def breakage(v):
        for page in range(16):
            set_pte(page, change)(v)

    return breakage


CONTIGUOUS = {
    "bit": (set_pte(3, lambda v, e: e ^ v.k.cont_bit), "breaks at"),
    "rights": (set_pte(3, lambda v, e: e ^ v.k.arch.pte.write.mask), "breaks at"),
    "next page": (set_pte(15, lambda v, e: e + (1 << v.k.pfn_shift)), "breaks at"),
    "hole": (set_pte(15, lambda v, e: 0), "breaks at"),
    "first lost": (set_pte(0, lambda v, e: e ^ v.k.cont_bit), "not aligned"),
    "one alone": (set_pte(17, lambda v, e: e | v.k.cont_bit), "not aligned"),
    "frame": (set_block(lambda v, e: e + (1 << v.k.pfn_shift)), "not aligned"),
    "folio": (lambda v: v.page(v.folio, layout.PAGE_ORDER, put(3)), "not aligned"),
    "special": (set_block(lambda v, e: pte_mkspecial(v.k, e)), "not aligned"),
    "no access": (set_block(lambda v, e: e ^ v.k.arch.pte.present.mask), "not aligned"),
}


def order(v):
    return v.k.page[v.block * PAGE_RECORD + layout.PAGE_ORDER]


def split_by_hand(v):
    """Put both halves of a free block in the list below, consistently."""
    k = v.k
    for have in range(1, 11):
        pfn = k.zone[layout.ZONE_FREE_LIST + have]
        if pfn:
            break
    base, half = pfn * PAGE_RECORD, (pfn + (1 << have - 1)) * PAGE_RECORD
    k.zone[layout.ZONE_FREE_LIST + have] = k.page[base + layout.PAGE_NEXT]
    k.zone[layout.ZONE_NR_BLOCKS + have] -= 1
    first = k.zone[layout.ZONE_FREE_LIST + have - 1]
    for at, following in ((half, first), (base, half // PAGE_RECORD)):
        k.page[at + layout.PAGE_FLAGS] = layout.PG_buddy
        k.page[at + layout.PAGE_ORDER] = have - 1
        k.page[at + layout.PAGE_NEXT] = following
    k.zone[layout.ZONE_FREE_LIST + have - 1] = pfn
    k.zone[layout.ZONE_NR_BLOCKS + have - 1] += 2


def map_free(v):
    """Map a free page, with all counters as for an anonymous page."""
    k = v.k
    free = max(validate_buddy(k))
    k.phys[v.pte(41)] = k.phys[v.pte(0)] + ((free - v.folio) << k.pfn_shift)
    v.page(free, layout.PAGE_HEAD, put(v.folio))
    k.mm[v.mm * MM_RECORD + layout.MM_ANONPAGES] += 1


def share_by_hand(v):
    """Map an exclusive page a second time, with all counters right."""
    v.k.phys[v.pte(41)] = v.k.phys[v.pte(0)]
    v.k.mm[v.mm * MM_RECORD + layout.MM_ANONPAGES] += 1
    for field in (layout.PAGE_MAPCOUNT, layout.PAGE_REFCOUNT, layout.FOLIO_LARGE_MAPCOUNT):
        v.page(v.folio, field, plus(1))


def uncache(v):
    cached = v.k.page[v.cached * PAGE_RECORD + layout.PAGE_MAPPING]
    v.k.page_cache[v.k.file[cached * FILE_RECORD + layout.FILE_CACHE]] = 0


def lose_queue(v):
    v.k.zone[layout.ZONE_SPLIT_QUEUE] = 0


def queue_small(v):
    """Queue a page of the page cache behind the folio that is there."""
    v.page(v.half, layout.FOLIO_DEFERRED_NEXT, put(v.cached))
    v.page(v.cached, layout.PAGE_FLAGS, flip(layout.PG_deferred))
    v.k.zone[layout.ZONE_SPLIT_QUEUE_LEN] += 1


@pytest.mark.parametrize("name", BREAKAGES)
def test_what_is_broken_is_found(configure, machine_of, name):
    breakage, message = BREAKAGES[name]
    victim = Victim(machine_of(configure("arm64-anonfolio-4k")))
    breakage(victim)
    with pytest.raises(VmBug, match=message):
        validate(victim.k)


@pytest.mark.parametrize("name", CONTIGUOUS)
def test_a_contiguous_block_that_is_broken_is_found(configure, machine_of, name):
    breakage, message = CONTIGUOUS[name]
    victim = Victim(machine_of(configure("arm64-anonfolio-4k", "ARM64_CONTPTE=y")))
    breakage(victim)
    with pytest.raises(VmBug, match=message):
        validate_contiguous(victim.k, victim.mm)


def test_young_and_dirty_may_differ_in_a_contiguous_block(configure, machine_of):
    victim = Victim(machine_of(configure("arm64-anonfolio-4k", "ARM64_CONTPTE=y")))
    marks = victim.k.arch.pte.young.mask | victim.k.arch.pte.dirty.mask
    set_pte(3, lambda v, e: e ^ marks)(victim)
    validate(victim.k)


def test_a_machine_with_debug_vm_looks_after_each_call(configure, machine_of):
    m = machine_of(configure("arm64-anonfolio-4k", "DEBUG_VM=y"))
    assert m.spawn(1) == 0
    assert m.mmap(1, START, PAGE) == 0
    m.k.zone[layout.ZONE_ANON] += 1
    with pytest.raises(VmBug, match="holds"):
        m.munmap(1, START, PAGE)


def test_a_machine_without_it_does_not(configure, machine_of):
    m = machine_of(configure("arm64-anonfolio-4k"))
    m.k.zone[layout.ZONE_ANON] += 1
    assert m.spawn(1) == 0
