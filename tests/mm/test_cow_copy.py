# SPDX-License-Identifier: GPL-2.0-only
"""A write to a shared folio copies all of it (spec 2, R2)."""

import pytest
from virtmm.mm import layout
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.vm_flags import MADV_DONTNEED, MADV_HUGEPAGE, PROT_READ, VM_FAULT_OOM

from .cow import ALWAYS, by_order, contents, fill, mremap, protect, shared, writable


def test_a_shared_folio_is_copied_whole(anonfolio):
    m = anonfolio()
    m.map(0, 32)
    fill(m, *range(32))
    m.fork(1, 2)
    rss = m.rss(2)
    assert m.store(2, m.at(5) + 9, 77) == 0
    assert m.orders(0, 32, pid=2) == [4] * 32
    assert m.word(5, layout.PAGE_HEAD) != m.word(5, layout.PAGE_HEAD, 2)
    assert writable(m, 0, 32, pid=2) == list(range(16))
    assert writable(m, 0, 32) == []
    assert by_order(m, "wp_copy") == {4: 1}
    assert m.minflt(2) == 1
    assert m.rss(2) == rss
    assert m.queued() == 0
    assert m.head(5, layout.PAGE_REFCOUNT) == m.head(5, layout.PAGE_REFCOUNT, 2) == 16
    assert contents(m, *range(32), pid=2) == contents(m, *range(32)) == list(range(1, 33))
    assert m.load(2, m.at(5) + 9) == 77
    assert m.load(1, m.at(5) + 9) == 0


def test_without_it_one_page_is_copied(anonfolio):
    m = shared(anonfolio("ANON_COW_COPY=n"))
    m.write(5, pid=2)
    assert m.orders(4, 7, pid=2) == [4, 0, 4]
    assert m.folio(5, pid=2) == (0, 0)
    assert by_order(m, "wp_copy") == {0: 1}


def test_the_work_of_unmapping_a_copied_folio(anonfolio):
    """One call to take away the old mappings; page by page without the series' patch 5."""
    for sets, calls in ((), 1), (("EXPERT=y", "ANON_RMAP_REMOVE_RANGE=n"), 16):
        m = anonfolio(*sets)
        m.map(0, 16)
        m.write(0)
        m.fork(1, 2)
        m.write(0)
        assert m.work()["rmap_remove"] == calls
        assert m.queued() == 0


@pytest.mark.parametrize("kept, fault, order", [((0, 16), 9, 4), ((2, 16), 9, 3), ((2, 15), 9, 2),
                                               ((2, 11), 9, 0), ((4, 8), 5, 2), ((6, 9), 6, 0)])  # fmt: skip
def test_of_a_partly_unmapped_folio_an_aligned_part_is_copied(anonfolio, kept, fault, order):
    m = shared(anonfolio())
    for first, end in ((0, kept[0]), (kept[1], 16)):
        if first < end:
            m.advise(first, end, MADV_DONTNEED)
    m.write(fault)
    block = fault >> order << order
    assert writable(m, 0, 16) == list(range(block, block + (1 << order)))
    assert m.folio(fault) == (order, fault - block)
    assert by_order(m, "wp_copy") == {order: 1}
    assert contents(m, *range(*kept)) == list(range(kept[0] + 1, kept[1] + 1))


def test_a_copy_leaves_the_rest_of_its_source_to_the_split_queue(anonfolio):
    m = shared(anonfolio("ANON_COW_REUSE=n"))
    m.advise(
        8,
        16,
        MADV_DONTNEED,
    )
    m.exit(2)
    assert m.queued() == 1, "eight pages lost their last mapping with the child"
    m.write(3)
    assert m.orders(0, 8) == [3] * 8
    assert m.queued() == 0, "nothing maps the source any longer"
    assert m.memory()["anon"] == 8 * m.page_size
    m.map(16, 32)
    fill(m, *range(16, 32))
    m.fork(1, 3)
    m.advise(22, 24, MADV_DONTNEED)
    m.exit(3)
    m.write(28)
    assert m.orders(24, 32) == [3] * 8
    assert m.orders(16, 22) == [4] * 6
    assert m.queued() == 1
    assert contents(m, *range(16, 22), *range(24, 32)) == [*range(17, 23), *range(25, 33)]


def test_of_a_moved_folio_the_part_aligned_where_it_is_now_is_copied(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    mremap(m, 0, 16, 66)  # two pages off
    m.fork(1, 2)
    m.write(74)
    assert writable(m, 64, 84) == list(range(72, 80))
    assert m.folio(74) == (3, 2)
    m.write(67)
    assert writable(m, 64, 72) == [67], "[64, 68) begins before the VMA"
    m.write(69)
    assert m.folio(69) == (2, 1)
    assert by_order(m, "wp_copy") == {0: 1, 2: 1, 3: 1}
    assert [m.load(1, m.at(page) + 3) for page in range(66, 82)] == list(range(1, 17))
    assert [m.load(2, m.at(page) + 3) for page in range(66, 82)] == list(range(1, 17))


def test_a_copy_ends_with_the_vma(anonfolio):
    m = shared(anonfolio())
    protect(m, 0, 6, PROT_READ)
    m.write(8)
    assert writable(m, 0, 16) == list(range(8, 16))
    m.write(7)
    assert writable(m, 0, 8) == [7]
    assert m.touch(1, m.at(2), True) != 0


def test_a_page_that_was_made_writable_parts_the_block(anonfolio):
    m = shared(anonfolio("ANON_COW_REUSE=n"))
    m.write(0, pid=2)
    m.fork(2, 3)
    m.advise(9, 10, MADV_DONTNEED, pid=2)
    m.write(9, pid=2)
    assert m.folio(9, pid=2) == (0, 0)
    m.write(3, pid=2)
    assert writable(m, 0, 16, pid=2) == [*range(8), 9]
    m.write(15, pid=2)
    assert writable(m, 8, 16, pid=2) == [9, *range(12, 16)]


def test_a_small_shared_folio_is_copied_alone(anonfolio):
    m = anonfolio()
    m.map(0, 2)
    fill(m, 0, 1)
    m.fork(1, 2)
    m.write(0)
    assert writable(m, 0, 2) == [0]
    assert by_order(m, "wp_copy") == {0: 1}


def test_a_copy_is_no_larger_than_policy_allows(anonfolio):
    """A huge page that a child shares is copied 16 pages at a time."""
    m = anonfolio("MEMORY_MB=64")
    pages = m.k.pmd_size // m.page_size
    m.map(0, pages)
    m.advise(0, pages, MADV_HUGEPAGE)
    fill(m, 0)
    m.fork(1, 2)
    assert m.vmstat()["thp_fault_alloc"] == 1
    fill(m, 100)
    assert m.orders(95, 113) == [m.k.pmd_order, *[4] * 16, m.k.pmd_order]
    assert contents(m, 0, 100, pid=2) == [1, 0]


def test_a_file_page_is_copied_alone(anonfolio):
    m = anonfolio()
    file = m.open(7, 16 * m.page_size)
    m.map(0, 16, file=file)
    m.read(0)
    m.write(4)
    assert writable(m, 0, 16) == [4]
    assert m.events()["file_write_fault"] == 1
    assert by_order(m, "wp_copy") == {}


def test_no_memory_for_a_copy_takes_the_next_lower_order(anonfolio):
    inject = FaultInjection()
    m = shared(anonfolio(inject=inject))
    inject.alloc = {4: ALWAYS, 3: ALWAYS}
    m.write(6)
    assert writable(m, 0, 16) == list(range(4, 8))
    assert m.stat("anon_fault_fallback", 4) == m.stat("anon_fault_fallback", 3) == 1
    inject.alloc |= {2: ALWAYS}
    m.write(0)
    assert writable(m, 0, 4) == [0]
    inject.alloc |= {0: ALWAYS}
    assert m.touch(1, m.at(1), True) == VM_FAULT_OOM
    assert contents(m, *range(16)) == list(range(1, 17))
    assert 1 not in inject._allocs


def test_a_failed_charge_of_a_copy_is_oom(anonfolio):
    inject = FaultInjection()
    m = shared(anonfolio(inject=inject))
    inject.charge = {inject._charges + 1}
    anon = m.memory()["anon"]
    assert m.touch(1, m.at(6), True) == VM_FAULT_OOM
    assert m.memory()["anon"] == anon
    assert writable(m, 0, 16) == []
    m.write(6)
    assert writable(m, 0, 16) == list(range(16))


def test_a_lost_race_copies_one_order_less(anonfolio):
    inject = FaultInjection()
    m = shared(anonfolio(inject=inject))
    inject.populate = {inject._attempts + 1: 9}
    m.write(3)
    assert m.folio(9) == (0, 0)
    assert m.orders(0, 16) == [3] * 8 + [4, 0] + [4] * 6
    assert writable(m, 0, 16) == [*range(8), 9]
    assert m.minflt() == 2
    assert contents(m, *range(16)) == contents(m, *range(16), pid=2) == list(range(1, 17))


def test_a_race_lost_on_the_copied_page_itself_is_over(anonfolio):
    inject = FaultInjection()
    m = shared(anonfolio(inject=inject))
    inject.populate = {inject._attempts + 1: 3}
    m.write(3)
    assert writable(m, 0, 16) == [3]
    assert by_order(m, "wp_copy") == {}
    assert contents(m, *range(16)) == list(range(1, 17))


def test_a_shrinker_that_splits_the_source_while_room_is_made(anonfolio):
    m = shared(anonfolio("ANON_COW_REUSE=n"))
    m.advise(12, 16, MADV_DONTNEED)
    m.exit(2)
    assert m.queued() == 1
    shrink, free = m.k.shrinkers[0], m.k.zone[layout.ZONE_WMARK_MIN]

    def make_room(k):
        k.zone[layout.ZONE_WMARK_MIN] = free
        return shrink(k)

    m.k.shrinkers[0] = make_room
    m.k.zone[layout.ZONE_WMARK_MIN] = m.k.zone[layout.ZONE_NR_FREE]
    m.write(3)
    assert m.orders(0, 12) == [0] * 12
    assert writable(m, 0, 12) == [3]
    assert contents(m, *range(12)) == list(range(1, 13))
