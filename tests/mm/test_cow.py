# SPDX-License-Identifier: GPL-2.0-only
"""The three further fault paths of the ``anonfolio`` kernel: zero page, copy and reuse (spec 2, R1 to R3)."""

import pytest
from virtmm.mm import layout
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.vm_flags import (
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MREMAP_FIXED,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_OOM,
)

from .conftest import BASE

INJECT = "FAULT_INJECTION=y"
ALWAYS = range(1, 1000)
RW = PROT_READ | PROT_WRITE


@pytest.fixture
def anonfolio(lab):
    """Return a function that boots the kernel with folios of up to 16 pages, contents and failures."""
    return lambda *sets, inject=None, **kw: lab(
        "anonfolio", "PHYS_BACKING=y", INJECT, *sets, inject=inject or FaultInjection(), **kw
    )


def mremap(m, first, end, to):
    size = (end - first) * m.page_size
    assert m.mremap(1, m.at(first), size, m.at(to), size, MREMAP_FIXED) == 0


def protect(m, first, end, prot, pid=1):
    assert m.mprotect(pid, m.at(first), (end - first) * m.page_size, prot) == 0


def fill(m, *pages, pid=1):
    """Give each page a content of its own."""
    for page in pages:
        assert m.store(pid, m.at(page) + 3, page + 1) == 0


def contents(m, *pages, pid=1):
    return [m.load(pid, m.at(page) + 3) for page in pages]


def writable(m, first, end, pid=1):
    """Return which pages may be written to without a fault, and are young, dirty and exclusive."""
    pte, found = m.k.arch.pte, []
    for page in range(first, end):
        entry = m.entry(page, pid)
        if entry and entry & pte.write.mask == pte.write.on:
            assert entry & pte.dirty.mask == pte.dirty.on
            assert entry & pte.young.mask == pte.young.on
            assert m.word(page, layout.PAGE_FLAGS, pid) & layout.PG_exclusive
            found.append(page)
    return found


def by_order(m, event):
    return {int(order): n for order, n in m.events()[event].items()}


# R3: a write to the zero page


def test_a_write_to_the_zero_page_gets_what_a_first_write_gets(anonfolio):
    m = anonfolio()
    m.map(0, 32)
    m.read(0, 6, 7)
    m.write(6)
    assert m.orders(0, 17) == [4] * 16 + [None]
    assert writable(m, 0, 32) == list(range(16))
    assert m.rss(1) == 16 * m.page_size
    assert by_order(m, "wp_zero") == {4: 1}
    assert by_order(m, "anon_fault") == {}
    assert m.minflt() == 4
    assert contents(m, 0, 6, 7, 15) == [0] * 4


def test_without_it_a_write_to_the_zero_page_gets_one_page(anonfolio):
    m = anonfolio("ANON_COW_ZERO=n")
    m.map(0, 32)
    m.read(6)
    m.write(6)
    assert m.orders(0, 16) == [None] * 6 + [0] + [None] * 9
    assert by_order(m, "wp_zero") == {0: 1}


def test_a_first_write_beside_the_zero_page_still_makes_room_for_it(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    m.read(6)
    m.write(7)
    assert m.folio(7) == (0, 0)
    assert m.folio(6) == "zero"
    m.write(2)
    assert m.orders(0, 4) == [2] * 4


@pytest.mark.parametrize(
    "first, end, order", [(0, 16, 4), (1, 16, 3), (5, 16, 3), (8, 14, 2), (9, 12, 0), (8, 9, 0)]
)
def test_zero_pages_yield_within_the_vma_only(anonfolio, first, end, order):
    m = anonfolio()
    m.map(first, end)
    fault = min(max(first, 8), end - 1)
    m.read(*range(first, end))
    m.write(fault)
    assert m.folio(fault)[0] == order
    others = [p for p in range(first, end) if p >> order != fault >> order]
    assert {m.folio(p) for p in others} <= {"zero"}
    assert m.rss(1) == m.page_size << order


def test_anonymous_pages_do_not_yield_to_a_write_to_the_zero_page(anonfolio):
    m = anonfolio()
    m.map(3, 4)
    fill(m, 3)
    m.map(0, 3)
    m.map(4, 16)
    m.read(*(p for p in range(16) if p != 3))
    m.write(12)
    assert m.orders(8, 16) == [3] * 8
    m.write(0)
    assert m.folio(0) == (0, 0)
    assert contents(m, 3) == [4]


def test_a_race_on_the_zero_page_is_tried_one_order_smaller(anonfolio):
    m = anonfolio(inject=FaultInjection(populate={1: 3}))
    m.map(0, 16)
    m.read(3, 12)
    m.write(12)
    assert m.folio(3) == (0, 0)
    assert m.orders(8, 16) == [3] * 8
    assert m.rss(1) == 9 * m.page_size
    assert m.minflt() == 3


def test_a_race_on_the_zero_page_that_faulted_is_over(anonfolio):
    m = anonfolio(inject=FaultInjection(populate={1: 12}))
    m.map(0, 16)
    m.read(12)
    m.write(12)
    assert m.folio(12) == (0, 0)
    assert m.memory()["anon"] == m.page_size
    assert by_order(m, "wp_zero") == {}


def test_failures_of_a_write_to_the_zero_page(anonfolio):
    inject = FaultInjection(alloc={4: {1}, 3: {1}}, charge={2})
    m = anonfolio(inject=inject)
    m.map(0, 32)
    m.read(5, 20)
    m.write(5)
    assert m.orders(3, 9) == [None, 2, 2, 2, 2, None]
    assert m.touch(1, m.at(20), True) == VM_FAULT_OOM
    assert m.folio(20) == "zero"
    assert m.memory()["anon"] == 4 * m.page_size


def test_the_zero_pages_of_a_split_huge_zero_entry_yield_too(anonfolio):
    m = anonfolio(knobs=["enabled=always"])
    pages = m.k.pmd_size // m.page_size
    m.map(0, pages)
    m.read(0)
    m.write(100)
    assert m.orders(96, 112) == [4] * 16
    assert m.folio(95) == m.folio(112) == "zero"
    assert m.rss(1) == 16 * m.page_size


# R2: copies


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
    m = anonfolio("ANON_COW_COPY=n")
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
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
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
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
    m = anonfolio("ANON_COW_REUSE=n")
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
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
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    protect(m, 0, 6, PROT_READ)
    m.write(8)
    assert writable(m, 0, 16) == list(range(8, 16))
    m.write(7)
    assert writable(m, 0, 8) == [7]
    assert m.touch(1, m.at(2), True) != 0


def test_a_page_that_was_made_writable_parts_the_block(anonfolio):
    m = anonfolio("ANON_COW_REUSE=n")
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
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
    m = anonfolio(inject=inject)
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
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
    m = anonfolio(inject=inject)
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    inject.charge = {inject._charges + 1}
    anon = m.memory()["anon"]
    assert m.touch(1, m.at(6), True) == VM_FAULT_OOM
    assert m.memory()["anon"] == anon
    assert writable(m, 0, 16) == []
    m.write(6)
    assert writable(m, 0, 16) == list(range(16))


def test_a_lost_race_copies_one_order_less(anonfolio):
    inject = FaultInjection()
    m = anonfolio(inject=inject)
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    inject.populate = {inject._attempts + 1: 9}
    m.write(3)
    assert m.folio(9) == (0, 0)
    assert m.orders(0, 16) == [3] * 8 + [4, 0] + [4] * 6
    assert writable(m, 0, 16) == [*range(8), 9]
    assert m.minflt() == 2
    assert contents(m, *range(16)) == contents(m, *range(16), pid=2) == list(range(1, 17))


def test_a_race_lost_on_the_copied_page_itself_is_over(anonfolio):
    inject = FaultInjection()
    m = anonfolio(inject=inject)
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    inject.populate = {inject._attempts + 1: 3}
    m.write(3)
    assert writable(m, 0, 16) == [3]
    assert by_order(m, "wp_copy") == {}
    assert contents(m, *range(16)) == list(range(1, 17))


def test_a_shrinker_that_splits_the_source_while_room_is_made(anonfolio):
    m = anonfolio("ANON_COW_REUSE=n")
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
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


# R1: reuse


def test_the_first_write_after_the_childs_exit_takes_the_folio_over(anonfolio):
    m = anonfolio()
    m.map(0, 32)
    fill(m, *range(32))
    m.fork(1, 2)
    m.exit(2)
    head, faults = m.word(0, layout.PAGE_HEAD), m.minflt()
    m.write(5)
    assert writable(m, 0, 32) == list(range(16))
    assert m.word(0, layout.PAGE_HEAD) == head
    m.write(*range(16))
    assert m.minflt() == faults + 1
    assert m.events()["wp_reuse"] == m.vmstat()["pgreuse"] == 1
    assert by_order(m, "wp_copy") == {}
    assert m.memory()["anon"] == 32 * m.page_size
    assert contents(m, *range(32)) == list(range(1, 33))


def test_without_it_the_folio_is_copied(anonfolio):
    """As 6.4 does: a page of a large folio that was shared once is not taken over."""
    m = anonfolio("ANON_COW_REUSE=n")
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    m.exit(2)
    m.write(5)
    assert m.events()["wp_reuse"] == 0
    assert by_order(m, "wp_copy") == {4: 1}


def test_the_folio_belongs_to_the_vma_that_took_it_over(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    m.exit(1)
    before = m.head(0, layout.PAGE_MAPPING, pid=2)
    m.write(3, pid=2)
    assert writable(m, 0, 16, pid=2) == list(range(16))
    assert m.head(0, layout.PAGE_MAPPING, pid=2) != before


def exclusive_but_read_only(m, *pages):
    """Take the right to write from exclusive pages, as tracking of writes does; no call of ours does."""
    write = m.k.arch.pte.write
    for page in pages:
        pte = m.pte(page)
        m.k.phys[pte] = m.k.phys[pte] & ~write.mask | write.off


@pytest.mark.parametrize("sets, count", [((), 16), (("ANON_COW_REUSE=n",), 1)])
def test_exclusive_pages_become_writable_together(anonfolio, sets, count):
    m = anonfolio(*sets)
    m.map(0, 32)
    fill(m, *range(32))
    exclusive_but_read_only(m, *range(32))
    m.write(5)
    assert len(writable(m, 0, 32)) == count
    assert 5 in writable(m, 0, 32)
    assert m.events()["wp_reuse"] == 1


def test_a_run_ends_at_writable_missing_and_shared_pages_and_at_the_vma(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    exclusive_but_read_only(m, *(p for p in range(16) if p != 4))
    m.advise(12, 13, MADV_DONTNEED)
    m.k.page[m.pfn(10) * 8 + layout.PAGE_FLAGS] &= ~layout.PG_exclusive
    protect(m, 0, 2, PROT_READ)
    before = m.events()["wp_reuse"]
    m.write(6)
    assert writable(m, 0, 16) == list(range(4, 10))
    m.write(3)
    assert writable(m, 0, 16) == list(range(2, 10))
    m.write(14)
    assert writable(m, 0, 16) == [*range(2, 10), 13, 14, 15]
    m.write(11)
    assert writable(m, 0, 16) == [*range(2, 10), 11, 13, 14, 15]
    assert m.events()["wp_reuse"] == before + 4


def test_a_run_ends_with_the_folio(anonfolio):
    m = anonfolio()
    m.map(0, 48)
    fill(m, *range(48))
    m.fork(1, 2)
    m.exit(2)
    m.write(16)
    assert writable(m, 0, 48) == list(range(16, 32))


def test_a_run_ends_with_the_page_table(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    far = m.k.pmd_size // m.page_size - 6
    mremap(m, 0, 16, far)
    exclusive_but_read_only(m, *range(far, far + 16))
    m.write(far)
    assert writable(m, far, far + 16) == list(range(far, far + 6))
    exclusive_but_read_only(m, *range(far, far + 6))
    m.write(far + 9)
    assert writable(m, far, far + 16) == list(range(far + 6, far + 16))
    m.fork(1, 2)
    m.exit(2)
    m.write(far)
    assert m.events()["wp_reuse"] == 2, "its ten other pages are in another table: copied"
    assert m.folio(far) == (0, 0)


def test_other_references_keep_a_folio_from_being_taken_over(anonfolio):
    """A hole between its mapped pages, another process, another VMA."""
    m = anonfolio()
    m.map(0, 48)
    fill(m, *range(48))
    m.fork(1, 2)
    m.advise(5, 6, MADV_DONTNEED)
    m.write(20, pid=2)
    assert m.events()["wp_reuse"] == 0
    m.exit(2)
    m.write(1)
    assert m.events()["wp_reuse"] == 0
    assert m.orders(0, 5) == [2] * 4 + [4]
    protect(m, 40, 48, PROT_READ)
    m.write(33)
    assert m.events()["wp_reuse"] == 0
    m.write(20)
    assert m.events()["wp_reuse"] == 1


def test_a_partly_unmapped_folio_in_one_run_is_taken_over(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    m.advise(10, 16, MADV_DONTNEED)
    m.exit(2)
    assert m.queued() == 1
    m.write(3)
    assert writable(m, 0, 16) == list(range(10))
    assert m.events()["wp_reuse"] == 1
    assert m.queued() == 1


def test_what_a_child_never_got_is_no_reason_to_copy(anonfolio):
    m = anonfolio()
    m.map(0, 16)
    fill(m, *range(16))
    m.advise(8, 16, MADV_DONTFORK)
    m.fork(1, 2)
    m.write(9)
    assert m.events()["wp_reuse"] == 0, "still writable: no fault"
    assert writable(m, 0, 16) == list(range(8, 16))


def test_a_small_folio_is_reused_as_before(anonfolio):
    m = anonfolio()
    m.map(0, 2)
    fill(m, 0, 1)
    m.fork(1, 2)
    m.exit(2)
    m.write(0)
    assert writable(m, 0, 2) == [0]
    assert m.events()["wp_reuse"] == 1


# Contiguous entries


def contiguous(m, first, end):
    return [p for p in range(first, end) if m.entry(p) & m.k.cont_bit]


def test_copies_and_reused_folios_are_contiguous(lab):
    m = lab("contpte", "PHYS_BACKING=y")
    m.map(0, 32)
    fill(m, *range(32))
    m.fork(1, 2)
    fill(m, 5)
    assert contiguous(m, 0, 32) == list(range(32))
    m.exit(2)
    fill(m, 20)
    assert writable(m, 0, 32) == contiguous(m, 0, 32) == list(range(32))


def test_a_run_that_is_part_of_a_contiguous_block_unfolds_it(lab):
    m = lab("contpte", "PHYS_BACKING=y")
    m.map(0, 32)
    fill(m, *range(32))
    exclusive_but_read_only(m, *range(16))
    m.advise(8, 32, MADV_DONTFORK)
    m.write(2)
    assert writable(m, 0, 16) == list(range(8))
    assert contiguous(m, 0, 32) == list(range(16, 32))


# All together


def test_a_shell_loop_keeps_its_folios(anonfolio):
    """Fork, write on both sides, exit, again: one fault a folio and process, nothing becomes small."""
    m = anonfolio()
    m.map(0, 64)
    fill(m, *range(64))
    for child in range(2, 6):
        m.fork(1, child)
        m.write(*range(0, 64, 5), pid=child)
        m.write(*range(64))
        m.exit(child)
        assert m.minflt() == 4 * child
        m.write(*range(64))
    assert m.orders(0, 64) == [4] * 64
    assert contents(m, *range(64)) == list(range(1, 65))
    assert m.memory()["anon"] == 64 * m.page_size
    assert by_order(m, "anon_fault") == {4: 4}


@pytest.mark.parametrize("fragments, order", [((), 4), (("16k",), 2), (("64k",), 0)])
def test_copies_have_the_largest_order_of_each_page_size(anonfolio, fragments, order):
    m = anonfolio(fragments=fragments)
    m.map(0, 32)
    fill(m, *range(32))
    m.fork(1, 2)
    m.write(8)
    assert by_order(m, "wp_copy") == {order: 1}
    assert BASE % (m.page_size << order) == 0
