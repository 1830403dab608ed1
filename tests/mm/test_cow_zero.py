# SPDX-License-Identifier: GPL-2.0-only
"""A write to the zero page takes the room of a first write (spec 2, R3)."""

import pytest
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.vm_flags import VM_FAULT_OOM

from .cow import by_order, contents, fill, writable


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
