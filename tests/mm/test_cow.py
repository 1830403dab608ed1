# SPDX-License-Identifier: GPL-2.0-only
"""The copy-on-write paths of the ``anonfolio`` kernel together, and on contiguous entries."""

import pytest
from virtmm.mm.vm_flags import MADV_DONTFORK

from .conftest import BASE
from .cow import by_order, contents, exclusive_but_read_only, fill, writable

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
