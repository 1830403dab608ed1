# SPDX-License-Identifier: GPL-2.0-only
"""Contiguous PTEs: when a block folds and unfolds (spec 3)."""

import pytest
from virtmm.mm.contpte import pte_cont
from virtmm.mm.vm_flags import MADV_DONTNEED, MADV_FREE, PROT_EXEC, PROT_READ, PROT_WRITE

NEW = "linux-7.3"


def folded(m, first, end, pid=1):
    """Return for each block of 16 pages whether all, none or some of its entries have the bit."""
    found = []
    for block in range(first, end, m.k.cont_nr):
        bits = {pte_cont(m.k, m.entry(p, pid)) for p in range(block, block + m.k.cont_nr)}
        found.append(bits.pop() if len(bits) == 1 else "mixed")
    return found


@pytest.fixture
def m(lab):
    m = lab(NEW, knobs=["128kB=always"])
    m.map(0, 64)
    m.write(0)
    return m


def test_a_folio_of_whole_blocks_is_folded_at_once(m):
    assert m.k.cont_nr == 16
    assert folded(m, 0, 64) == [True, True, False, False]


def test_smaller_folios_never_are_even_side_by_side(lab):
    m = lab(NEW, knobs=["32kB=always"])
    m.map(0, 16)
    m.write(0, 8)
    assert folded(m, 0, 16) == [False]


@pytest.mark.parametrize("fragment, nr", [("16k", 128), ("64k", 32)])
def test_block_sizes(lab, fragment, nr):
    m = lab(NEW, fragments=[fragment], knobs=["2048kB=always"])
    assert m.k.cont_nr == nr
    m.map(0, nr)
    m.write(0)
    assert folded(m, 0, nr) == [True]


def test_without_the_option_no_entry_has_the_bit(lab):
    m = lab(NEW, "ARM64_CONTPTE=n", knobs=["128kB=always"])
    m.map(0, 32)
    m.write(0)
    assert m.orders(0, 32) == [5] * 32
    assert m.k.cont_bit == 0


def test_a_part_that_goes_unfolds_the_blocks_at_the_edges_only(m):
    m.advise(12, 16, MADV_DONTNEED)
    assert folded(m, 0, 32)[1] is True
    assert [pte_cont(m.k, m.entry(p)) for p in range(12)] == [False] * 12


def test_fork_keeps_blocks_folded_on_both_sides(m):
    m.fork(1, 2)
    assert folded(m, 0, 32) == folded(m, 0, 32, pid=2) == [True, True]
    m.write(3)
    assert folded(m, 0, 32)[1] is True
    assert not any(pte_cont(m.k, m.entry(p)) for p in range(16))
    assert folded(m, 0, 32, pid=2) == [True, True]


def test_reuse_page_by_page_never_folds_again(m):
    m.fork(1, 2)
    m.exit(2)
    m.write(*range(32))
    assert m.orders(0, 32) == [5] * 32
    assert folded(m, 0, 32) == [False, False]


def test_mprotect_of_a_whole_block_folds_it_again(m):
    size = 16 * m.page_size
    for prot in (PROT_READ, PROT_READ | PROT_WRITE):
        assert m.mprotect(1, m.at(0), size, prot) == 0
        assert folded(m, 0, 32) == [True, True]
    assert m.mprotect(1, m.at(4), 8 * m.page_size, PROT_READ) == 0
    assert folded(m, 0, 32) == [False, True]


def test_a_move_folds_where_address_and_frame_are_aligned_together(m):
    size = 32 * m.page_size
    assert m.mremap(1, m.at(0), size, m.at(160), size, 3) == 0
    assert folded(m, 160, 192) == [True, True]
    assert m.mremap(1, m.at(160), size, m.at(300), size, 3) == 0
    assert m.orders(300, 332) == [5] * 32
    assert not any(pte_cont(m.k, m.entry(p)) for p in range(300, 332))


def test_young_and_dirty_are_those_of_the_block(m):
    m.advise(0, 32, MADV_FREE)
    dirty = m.k.arch.pte.dirty
    assert m.entry(0) & dirty.mask == dirty.off
    m.write(5)
    assert {m.entry(p) & dirty.mask for p in range(16)} == {dirty.on}
    assert {m.entry(p) & dirty.mask for p in range(16, 32)} == {dirty.off}


@pytest.mark.parametrize(("defconfig", "folds"), [("linux-6.12", True), (NEW, False)])
def test_two_halves_made_alike_fold_again_up_to_6_16(lab, defconfig, folds):
    """From 6.17 mprotect writes each half by itself: neither is a whole block."""
    m = lab(defconfig, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    size = m.page_size
    assert m.mprotect(1, m.at(8), 8 * size, PROT_READ | PROT_EXEC) == 0
    assert m.mprotect(1, m.at(0), 16 * size, PROT_READ) == 0
    assert folded(m, 0, 16) == [folds]


def test_pages_without_rights_are_not_folded_at_fork(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    assert m.mprotect(1, m.at(0), 16 * m.page_size, 0) == 0
    m.fork(1, 2)
    assert folded(m, 0, 16, pid=2) == [False]
