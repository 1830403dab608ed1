# SPDX-License-Identifier: GPL-2.0-only
"""A write reuses all of a folio that nobody else maps (spec 2, R1)."""

import pytest
from virtmm.mm import layout
from virtmm.mm.vm_flags import MADV_DONTFORK, MADV_DONTNEED, PROT_READ

from .cow import (
    by_order,
    contents,
    exclusive_but_read_only,
    fill,
    mremap,
    protect,
    shared,
    writable,
)


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
    m = shared(anonfolio("ANON_COW_REUSE=n"))
    m.exit(2)
    m.write(5)
    assert m.events()["wp_reuse"] == 0
    assert by_order(m, "wp_copy") == {4: 1}


def test_the_folio_belongs_to_the_vma_that_took_it_over(anonfolio):
    m = shared(anonfolio())
    m.exit(1)
    before = m.head(0, layout.PAGE_MAPPING, pid=2)
    m.write(3, pid=2)
    assert writable(m, 0, 16, pid=2) == list(range(16))
    assert m.head(0, layout.PAGE_MAPPING, pid=2) != before


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
    m = shared(anonfolio())
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
