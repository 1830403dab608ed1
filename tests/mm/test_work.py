# SPDX-License-Identifier: GPL-2.0-only
"""What each operation reads, writes and invalidates: the table of Documentation/contpte.md."""

import pytest
from virtmm.mm.vm_flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_POPULATE_WRITE,
    PROT_READ,
    PROT_WRITE,
)
from virtmm.mm.zap import tlb_capacity

NONE = {"pte_read": 0, "pte_write": 0, "tlbi": 0}


@pytest.fixture
def m(lab):
    """Return a kernel without contiguous entries, with a folio of 16 pages and four single pages."""
    m = lab("linux-6.12", "ARM64_CONTPTE=n", knobs=["64kB=always"])
    m.map(0, 20)
    m.write(0, 16, 17, 18, 19)
    return m


def work(m, call, *words):
    """Return (reads, writes, TLB invalidations) of a call."""
    before = m.work()
    call(*words)
    after = m.work()
    assert after["contpte_fold"] == after["contpte_unfold"] == 0
    return tuple(after[name] - before[name] for name in NONE)


def move(m, first, end, to):
    size = (end - first) * m.page_size
    assert m.mremap(1, m.at(first), size, m.at(to), size, 3) == 0


def protect(m, first, end, prot):
    assert m.mprotect(1, m.at(first), (end - first) * m.page_size, prot) == 0


def test_first_touches_write_what_they_map(m):
    m.map(32, 64)
    assert work(m, m.write, 32) == (0, 16, 0)
    assert work(m, m.read, 48) == (0, 1, 0)


def test_unmapping_looks_then_clears_and_flushes_once_a_call(m):
    assert work(m, m.unmap, 0, 20) == (40, 20, 1)
    assert work(m, m.unmap, 0, 20) == (0, 0, 0)


def test_zero_pages_and_file_pages_are_unmapped_alike(m):
    m.map(32, 36)
    m.read(32, 33)
    assert work(m, m.advise, 32, 36, MADV_DONTNEED) == (4, 2, 1)
    assert m.mmap(1, m.at(40), m.page_size, PROT_READ, 2, m.open(7, m.page_size)) == 0
    assert work(m, m.read, 40) == (0, 1, 0)
    assert work(m, m.unmap, 40, 41) == (2, 1, 1)


@pytest.mark.parametrize(("defconfig", "spare"), [("anonfolio_basic", 0), ("linux-6.12", 1)])
def test_a_full_gather_is_flushed(lab, defconfig, spare):
    """From 6.9 there must be room for a run and its length."""
    m = lab(defconfig)
    most = tlb_capacity(m.k) - spare
    for pages, flushes in ((most, 1), (most + 1, 2)):
        m.map(0, pages)
        m.advise(0, pages, MADV_POPULATE_WRITE)
        assert work(m, m.unmap, 0, pages)[2] == flushes


def test_exit_flushes_once(m):
    m.map(40, 42)
    m.write(40)
    assert work(m, m.exit, 1) == (42, 21, 1)


def test_fork_reads_write_protects_writes_the_child_and_flushes(m):
    assert work(m, m.fork, 1, 2) == (20 + 20, 20 + 20, 1)
    assert work(m, m.fork, 1, 3) == (20, 20, 1)


def test_a_copy_replaces_one_entry(m):
    m.fork(1, 2)
    assert work(m, lambda: m.write(3, pid=2)) == (2, 2, 1)
    m.map(32, 33)
    m.read(32)
    assert work(m, m.write, 32) == (2, 2, 1)


def test_reuse_changes_one_entry(m):
    m.fork(1, 2)
    m.exit(2)
    assert work(m, m.write, 16) == (2, 1, 1)


@pytest.mark.parametrize("defconfig", ["linux-6.12", "linux-7.3"])
def test_mprotect_clears_and_writes_and_flushes_once_a_vma(lab, defconfig):
    m = lab(defconfig, "ARM64_CONTPTE=n", knobs=["64kB=always"])
    m.map(0, 20)
    m.write(0, 16)
    assert work(m, protect, m, 0, 20, PROT_READ) == (34, 34, 1)
    assert work(m, protect, m, 18, 20, PROT_READ | PROT_WRITE) == (0, 0, 0)


def test_a_move_takes_entries_or_a_whole_table(m):
    assert work(m, move, m, 0, 20, 100) == (40, 40, 1)
    whole = m.k.pmd_size >> m.k.page_shift
    m.map(whole, 2 * whole)
    m.write(whole)
    assert work(m, move, m, whole, 2 * whole, 4 * whole) == (1, 2, 1)


def test_ageing_reads_twice_and_writes(m):
    assert work(m, m.advise, 0, 16, MADV_COLD) == (32, 16, 1)
    assert work(m, m.advise, 0, 16, MADV_FREE) == (32, 16, 1)


def test_a_part_that_is_freed_splits_the_folio_by_migration_entries(m):
    assert work(m, m.advise, 0, 8, MADV_FREE) == (8 + 3 * 16 + 8 + 8, 3 * 16 + 8, 2)


def test_huge_entries_count_as_one(lab):
    m = lab("linux-6.12", knobs=["2048kB=always"])
    nr = 512
    m.map(0, nr)
    assert work(m, m.write, 0) == (0, 1, 0)
    assert work(m, m.fork, 1, 2) == (2, 2, 1)
    m.exit(2)
    assert work(m, m.write, 0) == (2, 1, 1)
    assert work(m, protect, m, 0, nr, PROT_READ) == (1, 2, 1)
    assert work(m, move, m, 0, nr, nr) == (1, 2, 1)
    assert work(m, m.advise, nr + 1, nr + 2, MADV_DONTFORK) == (1, 2 + nr, 1)
    m.map(2 * nr, 3 * nr)
    m.write(2 * nr)
    assert work(m, m.unmap, 2 * nr, 3 * nr) == (1, 1, 1)


def test_collapse_looks_twice_clears_and_writes_one(lab):
    m = lab("linux-6.12", "ARM64_CONTPTE=n")
    m.map(0, 512)
    m.write(0, 1)
    assert work(m, m.advise, 0, 512, MADV_COLLAPSE) == (3 * 2 + 1, 2 + 2, 1)
