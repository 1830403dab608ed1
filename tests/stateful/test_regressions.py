# SPDX-License-Identifier: GPL-2.0-only
"""The smallest programs that ever went wrong, one for each bug."""

import pytest
from virtmm.mm import layout
from virtmm.mm.vm_flags import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_DONTFORK,
    MADV_FREE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PROT_READ,
    VM_FAULT_SIGSEGV,
)
from virtmm.mm.zap import tlb_capacity

from . import invariants
from .driver import Driver
from .flavours import Flavour
from .places import FAR, HUGE

A, B, C = 0x10000000, 0x20000000, 0x40000000
P = 4096


@pytest.fixture(params="yn")
def d(request, configure):
    """Return a driver whose machine is at A, B and C; everything is checked at the end."""
    driver = Driver(configure("arm64-anonfolio-4k", f"C_RANGES={request.param}"))
    yield driver
    invariants.check(driver.k)
    invariants.check_all_free(driver)
    driver.close()


def fail_alloc(d, occasion):
    d.inject.alloc = {0: {d.inject._allocs[0] + occasion}}


def test_mprotect_goes_on_behind_a_vma_that_was_merged_away(d):
    m = d.m
    assert m.mmap(1, A, 8 * P) == 0
    assert m.mprotect(1, A, 4 * P, PROT_READ) == 0
    assert m.mprotect(1, A, 8 * P, 3) == 0
    assert all(m.touch(1, A + i * P, True) == 0 for i in range(8))


def test_advice_passes_over_holes(d):
    m = d.m
    assert m.mmap(1, A, P) == m.mmap(1, A + 2 * P, P) == 0
    assert m.madvise(1, A, 3 * P, MADV_DONTFORK) == -ENOMEM
    assert m.fork(1, 2) == 0
    assert m.touch(2, A + 2 * P, False) == VM_FAULT_SIGSEGV
    m.exit(2)


def test_a_mapping_grows_in_place_only_from_its_end(d):
    m = d.m
    assert m.mmap(1, A, 20 * P) == 0
    assert m.touch(1, A + 19 * P, True) == 0
    assert m.mremap(1, A, 4 * P, A, 8 * P) == -ENOMEM
    assert m.touch(1, A + 19 * P, True) == 0


def test_nothing_moves_beyond_the_end_of_addresses(d):
    m, top = d.m, d.m.task_size
    assert m.mmap(1, top - P, P) == 0
    assert m.mremap(1, top - P, P, top - P, 2 * P) == -EINVAL
    assert m.mremap(1, top - P, P, top, P) == -EINVAL
    assert m.munmap(1, top - P, 2 * P) == -EINVAL


def test_addresses_beyond_the_end_are_not_those_at_the_start(d):
    assert d.m.mmap(1, A, P) == 0
    assert d.m.store(1, A, 1) == 0
    assert d.m.touch(1, d.m.task_size + A, False) == VM_FAULT_SIGSEGV


def test_mremap_of_nothing_duplicates_shared_memory(d):
    m = d.m
    assert m.mmap(1, A, 4 * P, 3, MAP_SHARED) == 0
    assert m.store(1, A + P, 7) == 0
    assert m.mremap(1, A, 0, B, 4 * P) == 0
    assert m.load(1, B + P) == 7
    assert m.mmap(1, C, P) == 0
    assert m.mremap(1, C, 0, C + 8 * P, P) == -EINVAL
    assert m.mremap(1, C + P, 0, C + 8 * P, P) == -EFAULT


def test_a_move_that_leaves_its_source_keeps_the_size(d):
    assert d.m.mmap(1, A, 2 * P) == 0
    assert d.m.mremap(1, A, 2 * P, B, P, MREMAP_DONTUNMAP) == -EINVAL


@pytest.mark.parametrize("flags", [0, MAP_SHARED])
@pytest.mark.parametrize("table", [1, 2])
def test_a_move_without_memory_for_tables_leaves_all_as_it_was(d, flags, table):
    """Neither the file behind the new mapping nor a table made for it stays."""
    m = d.m
    assert m.mmap(1, A, 4 * P, 3, flags) == 0
    assert m.store(1, A, 9) == 0
    fail_alloc(d, table)
    assert m.mremap(1, A, 4 * P, C, 4 * P) == -ENOMEM
    invariants.check(d.k)
    assert m.load(1, A) == 9


@pytest.mark.parametrize("table", range(1, 5))
def test_a_move_that_fails_half_way_goes_back(d, table):
    m, at, to = d.m, A - 2 * P, C - 3 * P
    assert m.mmap(1, at, 4 * P) == 0
    assert all(m.store(1, at + i * P, 5 + i) == 0 for i in range(4))
    fail_alloc(d, table)
    error = m.mremap(1, at, 4 * P, to, 4 * P)
    assert error == (0 if table == 4 else -ENOMEM)
    assert [m.load(1, (at if error else to) + i * P) for i in range(4)] == [5, 6, 7, 8]


def test_a_heap_does_not_end_before_it_starts(d):
    m = d.m
    assert m.mmap(1, A - P, P) == 0
    assert m.brk(1, A, A - P) == -EINVAL
    assert m.touch(1, A - P, True) == 0


def test_a_gather_that_is_full_where_anonymous_memory_ends(d):
    m, nr = d.m, tlb_capacity(d.k)
    assert m.mmap(1, A, nr * P) == 0
    for i in range(nr):
        assert m.touch(1, A + i * P, True) == 0
    assert m.mmap(1, A + nr * P, P, PROT_READ, 0, d.files[0].number) == 0
    assert m.touch(1, A + nr * P, False) == 0
    assert m.munmap(1, A, (nr + 1) * P) == 0
    assert d.k.zone[layout.ZONE_ANON] == 0


def test_populating_what_may_not_be_written_is_einval(d):
    m = d.m
    assert m.mmap(1, A, P, PROT_READ) == 0
    assert m.madvise(1, A, P, MADV_POPULATE_WRITE) == -EINVAL
    assert m.mmap(1, B, P, 3, MAP_SHARED) == 0
    assert m.mremap(1, B, P, B, 2 * P) == 0
    assert m.madvise(1, B, 2 * P, MADV_POPULATE_WRITE) == -EFAULT  # SIGBUS: the memory has one page


def test_a_page_that_another_thread_mapped_is_zero(d):
    m = d.m
    assert m.mmap(1, A, 16 * P) == 0
    for i in range(16):
        assert m.store(1, A + i * P, 5) == 0
    assert m.munmap(1, A, 16 * P) == m.mmap(1, A, 16 * P) == 0
    d.inject.populate = {d.inject._attempts + 1: 3}
    assert m.touch(1, A, True) == 0
    assert m.load(1, A + 3 * P) == 0


BLOCK = (HUGE, (16, 0), (32, 0))


@pytest.fixture(params="yn")
def p(request):
    """Return a driver of a small powerpc machine, whose PMDs have 32 pages of 64K."""
    flavour = Flavour("powerpc", "linux-7.3", c_ranges=request.param, memory_mb=16, tight=True)
    driver = Driver(flavour.config(), (), tight=True)
    driver.step("knob", "enabled", 0)
    yield driver
    invariants.check(driver.k)
    invariants.check_all_free(driver)
    driver.close()


def test_paging_out_pages_of_an_architecture_whose_entries_are_alike_at_all_levels(p):
    p.step("fill", 0, BLOCK, 85, "private")
    p.step("madvise", 0, (HUGE, (24, 0), (16, 0)), MADV_FREE)
    p.step("madvise", 0, BLOCK, MADV_PAGEOUT)
    assert p.k.zone[layout.ZONE_ANON] < 32


def test_a_huge_entry_that_the_shrinker_splits_while_it_moves(p):
    """Splitting gives nothing back here, as the pages are locked: there is no memory for the tables."""
    p.m.set("khugepaged/max_ptes_none", "0")
    at, to = (p.address(p.place((stretch, (16, 0), 1))[0]) for stretch in (HUGE, FAR))
    size = p.k.pmd_size
    to &= -size
    assert p.m.mmap(1, at, size) == p.m.touch(1, at, True) == p.m.mlock(1, at, size) == 0
    assert p.m.mmap(1, A, 256 * p.k.page_size) == p.m.madvise(1, A, size * 8, MADV_NOHUGEPAGE) == 0
    page = 0
    while p.k.zone[layout.ZONE_NR_FREE] > p.k.zone[layout.ZONE_WMARK_MIN]:
        assert p.m.touch(1, A + page * p.k.page_size, True) == 0
        page += 1
    assert p.leaf(1, at >> p.k.page_shift)[2]
    assert p.m.mremap(1, at, size, to, size, MREMAP_FIXED) == -ENOMEM
    assert p.m.store(1, at, 3) == 0


def test_a_page_that_the_shrinker_unmaps_while_it_is_copied(p):
    """A folio of zeroes is split for want of memory for a copy of its page: there is nothing to copy."""
    p.m.set("khugepaged/max_ptes_none", "0")
    at, size = p.address(p.place((HUGE, (16, 0), 1))[0]), p.k.pmd_size
    assert p.m.mmap(1, at, size) == p.m.touch(1, at, True) == p.m.fork(1, 2) == 0
    assert p.m.mmap(1, A, 256 * p.k.page_size) == p.m.madvise(1, A, size * 8, MADV_NOHUGEPAGE) == 0
    page = 0
    while p.k.zone[layout.ZONE_NR_FREE] > p.k.zone[layout.ZONE_WMARK_MIN]:
        assert p.m.touch(1, A + page * p.k.page_size, True) == 0
        page += 1
    assert p.m.store(1, at, 3) == 0
    assert (p.m.load(1, at), p.m.load(2, at)) == (3, 0)
    p.m.exit(2)


def test_part_of_a_contiguous_block_is_forked():
    flavour = Flavour("arm64", "linux-7.3", memory_mb=32)
    d = Driver(flavour.config())
    d.m.set("64kB", "always")
    assert d.m.mmap(1, A, 16 * P) == d.m.touch(1, A, True) == 0
    assert d.leaf(1, A // P)[0] & d.k.cont_bit
    assert d.m.madvise(1, A, 5 * P, MADV_DONTFORK) == d.m.fork(1, 2) == 0
    invariants.check(d.k)
    d.m.exit(2)
    d.close()
