# SPDX-License-Identifier: GPL-2.0-only
"""The buddy allocator: splitting, merging, the watermark, the frontier, exhaustion at each order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD
from virtmm.mm.debug_vm import validate_buddy
from virtmm.mm.page_alloc import alloc_pages, folio_alloc, folio_free, free_pages

from virtmm.machine import Machine

RESERVED = 2  # page 0 and the zero page


@pytest.fixture
def k(configure, machine_of):
    k = machine_of(configure("arm64-baseline-4k", "C_RANGES=n", "MEMORY_MB=16")).k
    k.zone[layout.ZONE_WMARK_MIN] = 0
    return k


def blocks(k):
    """Return the free blocks of each order that has any."""
    most = k.config.max_page_order + 1
    counts = k.zone[layout.ZONE_NR_BLOCKS : layout.ZONE_NR_BLOCKS + most].tolist()
    return {order: n for order, n in enumerate(counts) if n}


def nr_free(k):
    return k.zone[layout.ZONE_NR_FREE]


def test_a_machine_boots_with_all_but_two_pages_free(k):
    assert nr_free(k) == k.config.nr_pages - RESERVED
    assert k.zone[layout.ZONE_FRONTIER] == 1 << k.config.max_page_order
    assert blocks(k) == dict.fromkeys(range(1, 10), 1)
    validate_buddy(k)


def test_the_smallest_block_that_fits_is_split(k):
    before = blocks(k)
    pfn = alloc_pages(k, 3)
    assert pfn == 8
    assert blocks(k) == {order: n for order, n in before.items() if order != 3}
    assert alloc_pages(k, 3) == 16  # from the block of order 4, whose upper half stays
    assert blocks(k)[3] == 1
    assert 4 not in blocks(k)
    validate_buddy(k)


def test_freeing_merges_back_to_what_was(k):
    before, free = blocks(k), nr_free(k)
    taken = [(alloc_pages(k, order), order) for order in (0, 3, 0, 5, 1, 0, 9)]
    for pfn, order in taken[::2] + taken[1::2]:
        free_pages(k, pfn, order)
        validate_buddy(k)
    assert (blocks(k), nr_free(k)) == (before, free)


def test_only_a_buddy_of_the_same_order_merges(k):
    pages = [alloc_pages(k, 0) for _ in range(6)]
    assert pages == [2, 3, 4, 5, 6, 7]
    free_pages(k, 3, 0)
    free_pages(k, 4, 0)  # neighbours, not buddies
    assert blocks(k)[0] == 2
    free_pages(k, 5, 0)
    assert (blocks(k)[0], blocks(k)[1]) == (1, 1)
    free_pages(k, 2, 0)
    assert 0 not in blocks(k)
    validate_buddy(k)


@pytest.mark.parametrize("order", range(11))
def test_exhaustion_at_each_order(k, order):
    """Every aligned block that the two reserved pages leave is handed out once, then nothing."""
    expected = k.config.nr_pages - (1 << order if order else RESERVED) >> order
    got = []
    while pfn := alloc_pages(k, order):
        assert not pfn & ((1 << order) - 1)
        got.append(pfn)
    assert len(got) == len(set(got)) == expected
    assert nr_free(k) == k.config.nr_pages - RESERVED - (expected << order)
    assert k.vmstat[layout.VM_allocstall_movable] == 1
    validate_buddy(k)
    for pfn in got:
        free_pages(k, pfn, order)
    assert nr_free(k) == k.config.nr_pages - RESERVED
    validate_buddy(k)


def test_a_fragmented_zone_has_memory_but_no_blocks(k):
    pages = []
    while pfn := alloc_pages(k, 0):
        pages.append(pfn)
    for pfn in pages[::2]:
        free_pages(k, pfn, 0)
    assert nr_free(k) == len(pages[::2])
    assert alloc_pages(k, 1) == 0
    assert alloc_pages(k, 0) in pages[::2]


def test_the_watermark_is_left_free(k):
    k.zone[layout.ZONE_WMARK_MIN] = 100
    k.zone[layout.ZONE_NR_FREE] = 100
    assert alloc_pages(k, 0) == 0
    k.zone[layout.ZONE_NR_FREE] = 101
    assert alloc_pages(k, 1) == 0
    assert alloc_pages(k, 0) != 0


@pytest.mark.parametrize(("mb", "kib"), [(16, 512), (64, 1024), (16384, 16384)])
def test_the_watermark_is_min_free_kbytes(configure, machine_of, mb, kib):
    k = machine_of(configure("arm64-baseline-4k", f"MEMORY_MB={mb}")).k
    assert k.zone[layout.ZONE_WMARK_MIN] << k.page_shift >> 10 == kib


def test_the_frontier_moves_only_when_the_lists_are_empty(k):
    block = 1 << k.config.max_page_order
    while k.zone[layout.ZONE_FRONTIER] == block:
        pfn = alloc_pages(k, 0)
    assert pfn == block
    assert k.zone[layout.ZONE_FRONTIER] == 2 * block
    free_pages(k, pfn, 0)
    assert blocks(k) == {10: 1}


@given(calls=st.lists(st.sampled_from((-1, -1, -1, 0, 0, 2, 3, 4, 9)), max_size=40))
def test_folios_leave_and_come_back(configure, calls):
    """Any order of allocation and release (-1): no page is handed out twice, all of them come back."""
    with Machine(configure("arm64-baseline-4k", "C_RANGES=n", "MEMORY_MB=16")) as m:
        k, held, in_use = m.k, [], set()
        free = nr_free(k)
        for order in calls:
            if order < 0 and held:
                folio, pages = held.pop(len(held) // 2)
                folio_free(k, folio, layout.ZONE_ANON)
                in_use -= pages
            elif order >= 0 and (folio := folio_alloc(k, order, layout.PG_anon, layout.ZONE_ANON)):
                pages = set(range(folio, folio + (1 << order)))
                assert in_use.isdisjoint(pages)
                assert k.page[folio * PAGE_RECORD + layout.PAGE_ORDER] == order
                assert k.page[folio * PAGE_RECORD + layout.PAGE_REFCOUNT] == 1
                held.append((folio, pages))
                in_use |= pages
            assert not in_use & validate_buddy(k)
            assert k.zone[layout.ZONE_ANON] == len(in_use) == free - nr_free(k)
        for folio, _ in held:
            folio_free(k, folio, layout.ZONE_ANON)
        most = k.config.max_page_order
        expected = dict.fromkeys(range(1, most), 1)
        whole = (k.zone[layout.ZONE_FRONTIER] >> most) - 1
        assert blocks(k) == expected | ({most: whole} if whole else {})
