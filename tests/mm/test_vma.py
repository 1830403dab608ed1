# SPDX-License-Identifier: GPL-2.0-only
"""VMAs: lookup, split, merge, and which of them may share an anon_vma (spec 5.12)."""

import itertools
import random

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import ANON_VMA_RECORD, MM_RECORD, VMA_RECORD
from virtmm.mm.debug_vm import validate
from virtmm.mm.rmap import vma_chain
from virtmm.mm.vm_flags import (
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_SIGSEGV,
)
from virtmm.mm.vma import SYSCTL_MAX_MAP_COUNT, find_slot, slots, split_vma, vma_lookup, vmas_in

BASE = 0x100000  # pages
RW = PROT_READ | PROT_WRITE


class World:
    """A machine spoken to in pages from BASE on."""

    def __init__(self, machine):
        self.m, self.k = machine, machine.k
        assert machine.spawn(1) == 0

    def at(self, page):
        return (BASE + page) * self.k.page_size

    def call(self, name, first, end, *rest, pid=1):
        size = (end - first) * self.k.page_size
        assert getattr(self.m, name)(pid, self.at(first), size, *rest) == 0

    def map(self, first, end, prot=RW, flags=0, *rest, pid=1):
        self.call("mmap", first, end, prot, flags, *rest, pid=pid)

    def protect(self, first, end, prot, pid=1):
        self.call("mprotect", first, end, prot, pid=pid)

    def write(self, *pages, pid=1):
        for page in pages:
            assert self.m.touch(pid, self.at(page), True) == 0

    def mm(self, pid=1):
        return self.m._mm(pid)

    def vma(self, page, pid=1):
        return vma_lookup(self.k, self.mm(pid), self.at(page))

    def get(self, page, field, pid=1):
        return self.k.vma[self.vma(page, pid) * VMA_RECORD + field]

    def spans(self, pid=1):
        """Return the VMAs as (first page, page behind the last)."""
        validate(self.k)
        k = self.k
        found = []
        for vma in k.vma_index[slice(*slots(k, self.mm(pid)))]:
            start, end = (k.vma[vma * VMA_RECORD + f] for f in (layout.VMA_START, layout.VMA_END))
            found.append(((start >> k.page_shift) - BASE, (end >> k.page_shift) - BASE))
        return found


@pytest.fixture
def w(configure, machine_of):
    return World(machine_of(configure("x86-baseline-4k")))


# The set


def test_lookup_knows_every_address(w):
    for first, end in ((0, 3), (3, 4), (10, 12)):
        w.map(first, end, flags=MAP_SHARED)
    mapped = {*range(4), 10, 11}
    for page in range(-2, 15):
        assert bool(w.vma(page)) == (page in mapped)
    assert vma_lookup(w.k, w.mm(), w.at(4) - 1) == w.vma(3)
    assert w.vma(2) != w.vma(3)
    assert [
        len(vmas_in(w.k, w.mm(), w.at(a), w.at(b))) for a, b in ((4, 10), (3, 11), (-9, 99))
    ] == [
        0,
        2,
        3,
    ]
    first = slots(w.k, w.mm())[0]
    assert [find_slot(w.k, w.mm(), w.at(p)) - first for p in (-1, 0, 3, 4, 11, 12)] == [
        0,
        0,
        1,
        2,
        2,
        3,
    ]


def test_random_maps_and_unmaps_leave_what_a_list_says(w):
    rng, pages = random.Random(1), [0] * 64
    for i in range(1, 300):
        first = rng.randrange(60)
        end = first + rng.randrange(1, 64 - first)
        if rng.random() < 0.5:
            w.map(first, end, RW, MAP_FIXED | MAP_SHARED)
            pages[first:end] = [i] * (end - first)
        else:
            w.call("munmap", first, end)
            pages[first:end] = [0] * (end - first)
        runs = [p for p in range(65) if p == 0 or p == 64 or pages[p] != pages[p - 1]]
        assert w.spans() == [(a, b) for a, b in itertools.pairwise(runs) if pages[a]]


def test_two_address_spaces_do_not_see_one_another(w):
    assert w.m.spawn(2) == 0
    w.map(0, 4)
    w.map(2, 9, pid=2)
    assert (w.spans(1), w.spans(2)) == ([(0, 4)], [(2, 9)])


# Splitting


def test_a_split_gives_both_parts_their_offset(w):
    file = w.m.open(5, 100 * w.k.page_size)
    w.map(0, 20, PROT_READ, 0, file, 30)
    w.protect(5, 8, RW)
    assert w.spans() == [(0, 5), (5, 8), (8, 20)]
    assert [w.get(p, layout.VMA_PGOFF) for p in (0, 5, 8)] == [30, 35, 38]
    assert w.k.file[file * 8 + layout.FILE_VMAS] == 3
    w.call("munmap", 0, 20)
    assert w.k.file[file * 8 + layout.FILE_VMAS] == 0


def test_parts_of_a_split_vma_keep_its_anon_vma(w):
    w.map(0, 20)
    w.write(3)
    w.protect(5, 8, PROT_READ)
    anon_vma = w.get(0, layout.VMA_ANON_VMA)
    assert anon_vma
    assert [vma_chain(w.k, w.vma(p)) for p in (0, 5, 8)] == [[anon_vma]] * 3
    assert w.k.anon_vma[anon_vma * ANON_VMA_RECORD + layout.ANON_VMA_NUM_ACTIVE] == 3


def test_an_address_space_has_room_for_so_many_vmas(w):
    w.map(0, 4)
    w.k.mm[w.mm() * MM_RECORD + layout.MM_MAP_COUNT] = SYSCTL_MAX_MAP_COUNT
    vma = w.k.vma_index[slots(w.k, w.mm())[0]]
    assert split_vma(w.k, vma, w.at(2)) == 0
    assert w.m.mmap(1, w.at(100), w.k.page_size) == -12
    w.k.mm[w.mm() * MM_RECORD + layout.MM_MAP_COUNT] = 1
    assert w.spans() == [(0, 4)]


# Merging


def test_equal_neighbours_are_one(w):
    w.map(0, 4)
    w.map(8, 12)
    w.map(4, 8)
    assert w.spans() == [(0, 12)]
    assert w.m.events()["mmap_merge"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.protect(4, 8, PROT_READ),
        lambda w: w.call("madvise", 4, 8, MADV_HUGEPAGE),
        lambda w: w.call("madvise", 4, 8, MADV_NOHUGEPAGE),
    ],
)
def test_flags_keep_neighbours_apart_until_they_are_equal_again(w, change):
    w.map(0, 12)
    change(w)
    assert w.spans() == [(0, 4), (4, 8), (8, 12)]
    w.protect(0, 12, PROT_READ)
    for advice in (MADV_HUGEPAGE, MADV_NOHUGEPAGE):
        w.call("madvise", 0, 12, advice)
    assert w.spans() == [(0, 12)]


def test_one_call_over_parts_of_which_some_already_are_as_asked(w):
    """The changed part swallows its neighbour, and the walk goes on behind both."""
    w.map(0, 12)
    w.protect(0, 4, PROT_READ)
    w.protect(8, 12, PROT_READ)
    w.protect(0, 12, RW)
    assert w.spans() == [(0, 12)]


def test_files_merge_only_where_their_offsets_meet(w):
    file = w.m.open(5, 100 * w.k.page_size)
    w.map(0, 4, RW, 0, file, 10)
    w.map(4, 8, RW, 0, file, 14)
    w.map(8, 12, RW, 0, file, 30)
    w.map(12, 16)
    assert w.spans() == [(0, 8), (8, 12), (12, 16)]
    other = w.m.open(6, 100 * w.k.page_size)
    w.map(16, 18, RW, 0, other, 0)
    assert w.spans()[-1] == (16, 18)


def test_shared_anonymous_mappings_are_each_a_file(w):
    w.map(0, 4, RW, MAP_SHARED)
    w.map(4, 8, RW, MAP_SHARED)
    assert w.spans() == [(0, 4), (4, 8)]


def test_two_anon_vmas_do_not_merge(w):
    w.map(0, 4)
    w.write(0)
    w.map(8, 12)
    w.write(8)
    w.map(4, 8)  # without one itself, so it joins a neighbour
    assert len(w.spans()) == 2
    assert w.get(0, layout.VMA_ANON_VMA) != w.get(8, layout.VMA_ANON_VMA)


def test_a_neighbour_is_asked_for_its_anon_vma_first(w):
    """find_mergeable_anon_vma: parts that differ in rights only can then be one again."""
    w.map(0, 8)
    w.protect(4, 8, PROT_READ)
    w.write(0)
    w.protect(4, 8, PROT_READ | PROT_WRITE | 4)
    w.write(4)
    assert w.get(0, layout.VMA_ANON_VMA) == w.get(4, layout.VMA_ANON_VMA)
    w.protect(4, 8, RW)
    assert w.spans() == [(0, 8)]


def test_a_forked_process_stops_merging(w):
    """An inherited anon_vma has more than one link, so no VMA without one may join it (spec 5.12)."""
    w.map(0, 4)
    w.write(0)
    assert w.m.fork(1, 2) == 0
    assert len(vma_chain(w.k, w.vma(0, 1))) == 1
    assert len(vma_chain(w.k, w.vma(0, 2))) == 2
    w.map(4, 8, pid=1)
    w.map(4, 8, pid=2)
    assert (w.spans(1), w.spans(2)) == ([(0, 8)], [(0, 4), (4, 8)])


def test_repeated_forks_reuse_what_nobody_needs(w):
    """A process that forks and leaves its child behind does not grow a chain without end."""
    w.map(0, 4)
    w.write(0)
    for pid in range(1, 20):
        assert w.m.fork(pid, pid + 1) == 0
        w.m.exit(pid)
        assert len(vma_chain(w.k, w.vma(0, pid + 1))) <= 3
    w.m.exit(20)
    assert w.k.zone[layout.ZONE_ANON] == 0


# A stack


def test_the_heap_extends_itself_and_nothing_else(w):
    """Growth joins the heap, not the mapping below that ends where the heap begins, nor one above."""
    w.map(0, 4)
    w.map(10, 12)
    heap = w.at(4)
    for end in (6, 8, 10):
        assert w.m.brk(1, heap, w.at(end)) == 0
        assert w.spans() == [(0, 4), (4, end), (10, 12)]
    assert w.m.brk(1, heap, w.at(11)) == -12, "something is there"
    assert w.m.brk(1, heap, w.at(7)) == 0
    assert w.spans() == [(0, 4), (4, 7), (10, 12)]


def test_a_stack_grows_to_the_page_that_faulted(w):
    w.map(1000, 1002, RW, MAP_GROWSDOWN)
    w.write(990)
    assert w.spans() == [(990, 1002)]
    assert w.get(990, layout.VMA_PGOFF) == BASE + 990


def test_a_stack_keeps_its_distance_from_what_lies_below(w):
    w.map(0, 2)
    w.map(1000, 1002, RW, MAP_GROWSDOWN)
    assert w.m.touch(1, w.at(257), True) == VM_FAULT_SIGSEGV
    assert w.m.touch(1, w.at(258), True) == 0
    assert w.spans() == [(0, 2), (258, 1002)]


def test_a_stack_does_not_grow_below_the_first_page_of_what_it_maps(w):
    size = w.k.page_size
    low = (4 - BASE) * size + w.at(0)
    assert w.m.mmap(1, low, size, RW, MAP_GROWSDOWN) == 0
    assert w.m.touch(1, low, True) == 0
    assert w.m.mremap(1, low, size, w.at(100), size) == 0
    assert w.m.touch(1, w.at(96), True) == 0
    assert w.m.touch(1, w.at(95), True) == VM_FAULT_SIGSEGV
