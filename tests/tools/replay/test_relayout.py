# SPDX-License-Identifier: GPL-2.0-only
"""Addresses laid out anew: each rule by example."""

import random
from array import array

import pytest
from virtmm.tools.replay.rangemap import RangeMap, joined
from virtmm.tools.replay.relayout import (
    HEAP_ROOM,
    STACK_ROOM,
    AddressSpace,
    AddressSpaceError,
    Piece,
    Pieces,
)

from virtmm.accesses import Accesses

R = 4096
TOP = 1 << 47
BASE = 0x7F0000000000
NONE, READ, RW, RX = 0, 1, 3, 5
DONTUNMAP = 4


def space_of(size, *maps):
    space = AddressSpace(size, TOP, R)
    for at, pages, prot in maps:
        space.mmap(BASE + at * R, pages * R, 0, prot)
    return space


def test_a_mapping_stays_where_it_was_when_it_can():
    space = AddressSpace(16384, TOP, R)
    assert space.mmap(BASE, 8 * R, 0, RW) == (BASE, 32768, [])
    assert space.address(BASE + 5 * R + 7) == BASE + 5 * R + 7


def test_neighbours_stay_neighbours():
    """Rule 1: directly below the mapping above; directly above the one below."""
    space = space_of(65536, (16, 1, RW))
    assert space.mmap(BASE + 13 * R, 3 * R, 0, RW)[0] == BASE
    space = space_of(65536, (0, 1, RW))
    assert space.mmap(BASE + R, 2 * R, 0, RW)[0] == BASE + 65536


def test_a_file_keeps_its_position_in_the_page():
    space = AddressSpace(65536, TOP, R)
    low, size, _ = space.mmap(
        BASE, 4 * R, 30 * R, READ
    )  # page 30 of a file is 14 * 4K in 64K page 1
    assert (low, size) == (BASE, 2 * 65536)
    assert space.address(BASE) == BASE + 14 * R


@pytest.mark.parametrize("start, length", [(TOP - R, R), (TOP - 5 * R, 5 * R)])
@pytest.mark.parametrize("offset", [0, 3 * R])
def test_the_top_of_the_address_space(start, length, offset):
    space = AddressSpace(65536, TOP, R)
    low, size, _ = space.mmap(start, length, offset, RW)
    assert low + size <= TOP
    again, size, _ = space.mmap(start - R, R, 0, RW)
    assert again + size <= low


def test_the_lowest_page_is_never_used():
    space = AddressSpace(65536, TOP, R)
    assert space.mmap(R, R, 0, RW)[0] >= 65536


def test_a_fixed_mapping_on_whole_pages_stays():
    """Rule 2: aligned to S, its pages are replaced; else it gets pages of its own."""
    space = space_of(16384, (0, 16, NONE))
    assert space.mmap(BASE + 4 * R, 4 * R, 0, RW) == (BASE + 16384, 16384, [])
    low, size, calls = space.mmap(BASE + 9 * R, 4 * R, 0, RW)
    assert size == 16384
    assert not BASE <= low < BASE + 16 * R
    assert calls == []  # no page lost its last recorded one


def test_a_fixed_mapping_over_several_mappings_unmaps_what_it_empties():
    space = space_of(16384, (0, 5, RW), (5, 5, RW), (10, 6, RW))
    first, third = space.address(BASE) + 16384, space.address(BASE + 10 * R)
    second = space.address(BASE + 5 * R)
    calls = space.mmap(BASE + 4 * R, 10 * R, 0, READ)[2]
    gone = sorted((a, a + n) for name, (a, n) in calls)
    parts = [(first, first + 16384), (second, second + 32768), (third, third + 16384)]
    assert gone == [(a, b) for a, b, _ in joined((a, b, 0) for a, b in parts)]


def test_a_page_goes_with_its_last_recorded_page():
    space = space_of(16384, (0, 8, RW))
    assert space.munmap(BASE, 3 * R) == []
    assert space.munmap(BASE + 6 * R, 2 * R) == []
    assert space.munmap(BASE + 2 * R, 3 * R) == [("munmap", (BASE, 16384))]
    assert space.munmap(BASE, 8 * R) == [("munmap", (BASE + 16384, 16384))]
    assert not space.taken.ranges


def test_a_page_allows_what_any_recorded_page_allows():
    space = space_of(16384, (0, 8, RW))
    assert space.mprotect(BASE, 4 * R, READ) == [("mprotect", (BASE, 16384, READ))]
    # The guard page of a stack of 4 pages does not close the page.
    assert space.mprotect(BASE + 4 * R, R, NONE) == [("mprotect", (BASE + 16384, 16384, RW))]
    assert space.mprotect(BASE + 3 * R, R, RX) == [("mprotect", (BASE, 16384, RX))]
    assert space.mprotect(BASE + 3 * R, 5 * R, NONE) == [
        ("mprotect", (BASE, 16384, READ)),
        ("mprotect", (BASE + 16384, 16384, NONE)),
    ]


def test_advice():
    """What takes memory away stays inside; a hint reaches around."""
    space = space_of(16384, (0, 12, RW))
    assert space.inside(BASE + R, 10 * R) == [(BASE + 16384, BASE + 32768)]
    assert space.inside(BASE + R, 2 * R) == []
    assert space.around(BASE + R, 4 * R) == [(BASE, BASE + 32768)]


def test_the_heap_shrinks_and_grows():
    space = AddressSpace(65536, TOP, R)
    start = 0x541000
    assert space.brk(start, 0) == [("brk", (0x540000, 0x540000))]
    assert space.brk(start, 0x21000) == [("brk", (0x540000, 0x561000))]
    assert space.address(start + 0x20FFF) == 0x560FFF
    assert space.brk(start, 0x8000) == [("brk", (0x540000, 0x548000))]
    assert space.address(start + 0x8000) is None
    assert space.taken.ranges == [(0x540000, 0x550000, RW)]
    space.brk(start, 0x30000)
    assert space.taken.ranges[-1][1] == 0x570000


def test_the_heap_is_usable_to_the_end_of_its_last_page():
    space = AddressSpace(65536, TOP, R)
    space.brk(0x541234, 0x100)  # nothing: still in the page of bss that the start lies in
    assert not space.taken.ranges
    space.brk(0x541234, 0x1000)
    assert space.address(0x542FFF) is not None


def test_the_heap_starts_elsewhere():
    """PR_SET_MM_START_BRK: the old heap stays mapped."""
    space = AddressSpace(65536, TOP, R)
    space.brk(0x541000, 0x5000)
    space.brk(0x741000, 0x5000)
    assert space.address(0x541000) == 0x540000
    assert space.address(0x741000) not in (None, 0x540000)


def test_nothing_is_put_in_the_way_of_the_heap():
    space = AddressSpace(65536, TOP, R)
    space.brk(0x541000, 0x1000)
    low, *_ = space.mmap(0x560000, R, 0, RW)
    assert not 0x540000 <= low < 0x540000 + HEAP_ROOM
    assert space.brk(0x541000, 0x1F000) == [("brk", (0x540000, 0x55F000))]


def test_a_stack_grows_down_and_nothing_else_does():
    space = AddressSpace(65536, TOP, R)
    top = TOP - R
    low, size, _ = space.mmap(top - 33 * R, 33 * R, 0, RW, grows=True)
    assert (low + size, size) == (TOP, 3 * 65536)
    below = space.mmap(top - 40 * R, R, 0, RW)[0]
    assert below + 65536 <= low - STACK_ROOM
    space.mmap(BASE, R, 0, RW)
    space.munmap(top - 40 * R, R)
    assert space.address(BASE - R) is None
    shift = low - (top - 33 * R)
    assert space.address(top - 300 * R) == top - 300 * R + shift
    assert space.taken.at(top - 300 * R + shift)
    assert space.address(top - 300 * R - 8) == top - 300 * R - 8 + shift  # a recorded page below


def test_mremap_moves_whole_pages_with_a_call_and_keeps_distances():
    space = space_of(65536, (0, 40, RW))
    to = BASE + 100 * R
    calls = space.mremap(BASE, 40 * R, to, 50 * R)
    new = space.address(to)
    assert calls == [("mremap", (BASE, 3 * 65536, new, 4 * 65536, 0))]
    assert space.address(to + 49 * R) == new + 49 * R
    assert space.address(BASE) is None


def test_mremap_of_a_part_with_borders_inside_pages():
    """The page at a border moves, and stays for those who remain; growth goes behind the end."""
    space = space_of(16384, (0, 12, RW))
    to = BASE + 100 * R
    calls = space.mremap(BASE + 2 * R, 7 * R, to, 14 * R)
    new = space.address(to) - 2 * R
    assert [c[1] for c in calls] == [
        (BASE, 16384, new, 16384, DONTUNMAP),
        (BASE + 16384, 16384, new + 16384, 16384, 0),
        (BASE + 32768, 16384, new + 32768, 16384, DONTUNMAP),
        (new + 32768, 16384, new + 32768, 32768, 0),
    ]
    assert space.taken.at(BASE)
    assert not space.taken.at(BASE + 16384)


def test_mremap_in_place():
    space = space_of(16384, (0, 4, RW), (20, 4, RW))
    assert space.mremap(BASE, 4 * R, BASE, 6 * R) == [("mremap", (BASE, 16384, BASE, 32768, 0))]
    assert space.mremap(BASE, 6 * R, BASE, 7 * R) == [
        ("mremap", (BASE + 16384, 16384, BASE + 16384, 16384, 0))
    ]
    assert space.mremap(BASE, 7 * R, BASE, 2 * R) == [("munmap", (BASE + 16384, 16384))]


def test_mremap_in_place_moves_when_the_next_page_is_taken():
    space = space_of(16384, (0, 4, RW), (5, 1, RW))
    assert space.address(BASE + 5 * R) == BASE + 16384
    [(name, args)] = space.mremap(BASE, 4 * R, BASE, 5 * R, 1)
    assert (name, args[:2], args[3:]) == ("mremap", (BASE, 16384), (32768, 1))
    assert space.address(BASE) == args[2] != BASE


def test_mremap_of_nothing_and_of_shared_memory_again():
    space = space_of(16384, (0, 5, RW))
    assert space.mremap(BASE + 50 * R, R, BASE, R)[1:] == []
    space = space_of(16384, (0, 5, RW))
    [(name, args)] = space.mremap(BASE + R, 0, BASE + 50 * R, 4 * R)
    assert (name, args[:2], args[3]) == ("mremap", (BASE, 0), 32768)
    assert space.address(BASE + 50 * R) == args[2] + R
    assert space.address(BASE + R) == BASE + R


def test_mremap_dontunmap_keeps_both():
    space = space_of(16384, (0, 4, RW))
    [(_, args)] = space.mremap(BASE, 4 * R, BASE + 50 * R, 4 * R, 1 | DONTUNMAP)
    assert args == (BASE, 16384, space.address(BASE + 50 * R), 16384, 1 | DONTUNMAP)
    assert space.address(BASE) == BASE


def test_range_map():
    ranges = RangeMap()
    ranges.set(10, 20, "a")
    ranges.set(15, 30, "b")
    ranges.set(5, 5, "nothing")
    assert ranges.ranges == [(10, 15, "a"), (15, 30, "b")]
    assert ranges.clear(12, 18) == [(12, 15, "a"), (15, 18, "b")]
    assert ranges.at(12) is None
    assert ranges.above(11) == (18, 30, "b")
    assert ranges.cut(0, 11) == [(10, 11, "a")]
    assert joined([(4, 6, 1), (0, 4, 1), (6, 7, 2), (9, 9, 1)]) == [(0, 6, 1), (6, 7, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_what_a_dictionary_of_addresses_says(seed, machine_of, configure):
    """And the machine finds in them what Python does."""
    rng, size, pieces, known = random.Random(seed), 60, Pieces(), {}
    machine = machine_of(configure("arm64-baseline-4k"))
    for _ in range(60):
        start, end = sorted(rng.sample(range(size), 2))
        before = {at: known[at] for at in known if start <= at < end}
        if rng.random() < 0.6:
            piece = Piece(rng.randrange(-5, 5) * R, RW)
            pieces.set(start, end, piece)
            known |= dict.fromkeys(range(start, end), piece)
        else:
            cut = pieces.clear(start, end)
            assert {at: v for low, high, v in cut for at in range(low, high)} == before
            known = {at: v for at, v in known.items() if at not in before}
        if rng.random() < 0.1:
            pieces = pieces.copy()
        found = [pieces.at(at) for at in range(size)]
        assert [f and f[2] for f in found] == [known.get(at) for at in range(size)]
        assert all(f[0] <= at < f[1] for at, f in enumerate(found) if f)
        assert pieces.any(start, end) == any(at in known for at in range(start, end))
        accesses = Accesses(memoryview(array("Q", [n for at in range(size) for n in (at, 1)])), 1)
        accesses.layouts[0] = pieces.moved.where
        for at in range(size):
            assert machine.move_many(accesses, at, at + 1) == at + (at in known)
        moved = [(at + known[at].shift) % 2**64 if at in known else at for at in range(size)]
        assert accesses.words.tolist()[0::2] == moved


# A smaller space (rule 5)

SMALL = 0xF0000000
PROGRAM, LIBRARY, STACK = 0x555555554000, 0x7FFFF7DD5000, 0x7FFFFFFDE000
KEEP = 1 << 21


def small(page=R, top=SMALL):
    return AddressSpace(page, top, R, TOP)


def test_a_smaller_space_keeps_order_and_low_bits():
    space = small()
    places = [
        space.mmap(at, 16 * R, 0, RW, grows=at == STACK)[0] for at in (PROGRAM, LIBRARY, STACK)
    ]
    assert places == sorted(places) and places[-1] + 16 * R <= SMALL
    for at, place in zip((PROGRAM, LIBRARY, STACK), places, strict=True):
        assert place % KEEP == at % KEEP
    assert places[0] // KEEP == (PROGRAM // KEEP) * (SMALL * 15 // 16) // TOP
    assert space.address(LIBRARY + 5 * R + 9) == places[1] + 5 * R + 9


def test_neighbours_stay_neighbours_in_a_smaller_space():
    space = small()
    low = space.mmap(LIBRARY, 16 * R, 0, RX)[0]
    assert space.mmap(LIBRARY + 16 * R, 4 * R, 0, RW)[0] == low + 16 * R
    assert space.mmap(LIBRARY - 8 * R, 8 * R, 0, RW)[0] == low - 8 * R


def test_places_that_fall_together_move_down_by_whole_steps():
    space = small()
    first = space.mmap(LIBRARY, 16 * R, 0, RW)[0]
    second = space.mmap(LIBRARY - 40 * KEEP, 16 * R, 0, RW)[0]
    assert second < first and first - second == KEEP
    # Where no such place is left, any will do.
    crowded = small(top=8 << 20)
    spread = [crowded.mmap(LIBRARY + n * 40 * KEEP, R, 0, RW)[0] for n in range(-8, 1)]
    assert len({place % KEEP for place in spread}) > 1
    assert len(set(spread)) == 9


@pytest.mark.parametrize("page", [R, 8192])
def test_a_program_that_does_not_fit(page):
    space = small(page)
    with pytest.raises(AddressSpaceError):
        space.mmap(LIBRARY - SMALL, SMALL, 0, RW)
    for n in range(3):
        space.mmap(n << 40, 1 << 30, 0, RW)
    with pytest.raises(AddressSpaceError):
        space.mmap(5 << 40, 1 << 30, 0, RW)


def test_the_heap_of_a_smaller_space():
    space = small()
    space.mmap(PROGRAM, 16 * R, 0, RW)
    heap = PROGRAM + (1 << 30)
    assert space.heap_room == SMALL // 4
    assert space.brk(heap, 0)
    ((_, (start, end)),) = space.brk(heap, SMALL // 4)
    assert end - start == SMALL // 4 and end <= SMALL
    low, size, _ = space.mmap(heap - 4 * R, 2 * R, 0, RW)
    assert low + size <= start or low >= end
    with pytest.raises(AddressSpaceError):
        space.brk(heap, SMALL)


def test_the_heap_may_go_beyond_its_room_where_nothing_is():
    space = AddressSpace(65536, TOP, R)
    space.brk(0x400000, 0)
    ((_, (start, end)),) = space.brk(0x400000, HEAP_ROOM + (1 << 30))
    assert end - start == HEAP_ROOM + (1 << 30)
    space.mmap(0x400000 + 2 * HEAP_ROOM, R, 0, RW)
    with pytest.raises(AddressSpaceError):
        space.brk(0x400000, 3 * HEAP_ROOM)
