# SPDX-License-Identifier: GPL-2.0-only
"""Executable file mappings in large folios: which folios there are, how they are mapped and unmapped."""

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import FILE_RECORD, PAGE_RECORD
from virtmm.mm.debug_vm import validate
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.pgtable import pte_pfn, pte_write
from virtmm.mm.vm_flags import (
    MADV_DONTDUMP,
    MADV_DONTNEED,
    MAP_FIXED,
    MAP_SHARED,
    VM_FAULT_SIGBUS,
)

READ, RW, RX, RWX = 1, 3, 5, 7
#: fragments -> pages of 64K
PAGES = {(): 16, ("16k",): 4, ("64k",): 1}


def text(m, first, pages, pgoff=0, *, prot=RX, file=None, pid=1, size=None, **kw):
    """Map part of a file of ``size`` pages; return the file."""
    file = file or m.open(7, (size or pgoff + pages) * m.page_size)
    m.map(first, first + pages, pid, prot=prot, file=file, pgoff=pgoff, **kw)
    return file


def executable(m, page):
    bits = m.k.arch.pte.exec
    return m.entry(page) & bits.mask == bits.on


def cont(m, pid=1):
    """Return the pages, from BASE on, whose entries carry the contiguous bit."""
    found = m.mapped_pages(pid, m.at(0), m.at(1 << 10))
    return [p.address - m.at(0) >> m.k.page_shift for p in found if p.cont]


def blocks(m, file):
    """Return (first page, pages) of every folio of a file that is cached."""
    base = file * FILE_RECORD
    at, nr = (m.k.file[base + f] for f in (layout.FILE_CACHE, layout.FILE_PAGES))
    found = {}
    for index, page in enumerate(m.k.page_cache[at : at + nr].tolist()):
        if page:
            head = m.k.page[page * PAGE_RECORD + layout.PAGE_HEAD]
            found.setdefault(head, []).append(index)
    return sorted((pages[0], len(pages)) for pages in found.values())


@pytest.mark.parametrize("fragments", PAGES, ids=str)
def test_a_fault_maps_the_whole_folio_at_once(lab, fragments):
    m, nr = lab("exefolio", fragments=fragments), PAGES[fragments]
    file = text(m, 0, 3 * nr)
    m.read(nr + nr // 2)
    assert blocks(m, file) == [(nr, nr)]
    assert m.orders(nr, 2 * nr) == [nr.bit_length() - 1] * nr
    assert m.memory()["page_cache"] == 65536
    assert m.rss(1) == 65536
    assert m.vmstat()["nr_mapped"] == nr
    assert m.events()["file_read_fault"] == 1
    assert m.events()["file_around_pages"] == nr - 1
    assert all(executable(m, page) for page in range(nr, 2 * nr))
    assert not any(pte_write(m.k, m.entry(page)) for page in range(nr, 2 * nr))
    assert cont(m) == (list(range(16, 32)) if fragments == () else [])
    if nr > 1:
        assert m.head(nr, layout.FOLIO_NR_PAGES_MAPPED) == nr
        assert m.head(nr, layout.FOLIO_LARGE_MAPCOUNT) == nr
        assert m.head(nr, layout.PAGE_REFCOUNT) == 2 * nr


@pytest.mark.parametrize(
    "defconfig, kw",
    [("contpte", {}), ("exefolio", {"prot": READ}), ("exefolio", {"prot": RW})],
)
def test_who_gets_single_pages(lab, defconfig, kw):
    """A kernel without EXEC_FOLIO; mappings that are not executable."""
    m = lab(defconfig)
    file = text(m, 0, 32, **kw)
    m.read(20)
    assert blocks(m, file) == [(page, 1) for page in range(16, 32)]
    assert cont(m) == []


def test_shared_anonymous_memory_gets_single_pages(lab):
    m = lab("exefolio")
    m.map(0, 32, prot=RWX, flags=MAP_SHARED)
    m.write(20)
    assert m.orders(16, 32) == [None] * 4 + [0] + [None] * 11
    assert m.memory()["page_cache"] == m.page_size


def test_addresses_that_do_not_fit_the_file_are_not_contiguous(lab):
    """The window of fault-around meets two folios then; what is not mapped of them takes memory too."""
    m = lab("exefolio")
    file = text(m, 0, 64, pgoff=4, size=80)
    m.read(20)
    assert blocks(m, file) == [(16, 16), (32, 16)]
    assert m.folio(16) == (4, 4)
    assert m.folio(31) == (4, 3)
    assert m.rss(1) == 65536
    assert m.memory()["page_cache"] == 2 * 65536
    assert cont(m) == []


@pytest.mark.parametrize(
    "pgoff, pages, size, expected",
    [
        (0, 32, 32, [(0, 16), (16, 16)]),
        (0, 27, 27, [(0, 16), (16, 8), (24, 2), (26, 1)]),  # the end of the file
        (0, 17, 64, [(0, 16), (16, 1)]),  # the end of the mapping
        (5, 27, 32, [(5, 1), (6, 2), (8, 8), (16, 16)]),  # its start
        (18, 5, 64, [(18, 2), (20, 2), (22, 1)]),
    ],
)
def test_folios_end_where_mapping_or_file_end(lab, pgoff, pages, size, expected):
    m = lab("exefolio")
    file = text(m, pgoff, pages, pgoff, size=size)
    for page in reversed(range(pgoff, pgoff + pages)):
        m.read(page)
    assert blocks(m, file) == expected
    assert m.rss(1) == pages * m.page_size


def test_a_file_that_ends_inside_the_mapping(lab):
    m = lab("exefolio")
    file = text(m, 0, 32)
    m.k.file[file * FILE_RECORD + layout.FILE_PAGES] = 22  # truncated behind the mapping's back
    m.read(17)
    assert blocks(m, file) == [(16, 4), (20, 2)]
    assert m.touch(1, m.at(22), False) == VM_FAULT_SIGBUS


@pytest.mark.parametrize("cached, order", [(3, 0), (12, 0), (17, 4)])
def test_a_folio_does_not_take_the_place_of_cached_pages(lab, cached, order):
    """Readahead gives up large folios at the first page that it meets in the cache."""
    m = lab("exefolio", knobs=("fault_around_bytes=4096",))
    file = text(m, 64, 32, prot=READ)
    m.read(64 + cached)
    text(m, 0, 32, file=file)
    m.read(8)
    assert m.orders(8, 9) == [order]
    assert [n for at, n in blocks(m, file) if at == cached] == [1]


def test_without_a_large_block_single_pages_are_read(lab):
    m = lab("exefolio", "FAULT_INJECTION=y", inject=FaultInjection(alloc={4: range(10)}))
    file = text(m, 0, 32)
    m.read(20)
    assert blocks(m, file) == [(page, 1) for page in range(16, 32)]
    assert not m.vmstat()["oom_kill"]


def test_memory_that_runs_out_still_maps_the_page_that_was_asked_for(lab):
    """Its neighbours have none left: the fault is served all the same."""
    m = lab("exefolio", "FAULT_INJECTION=y", inject=FaultInjection())
    m.map(100, 101)
    m.write(100)  # the page table is there
    m.k.inject.alloc = {4: range(99), 0: range(m.k.inject._allocs[0] + 2, 99)}
    text(m, 0, 32)
    m.read(20)
    assert m.orders(16, 32) == [None] * 4 + [0] + [None] * 11
    assert m.events()["file_around_pages"] == 0


def test_fault_around_decides_what_is_mapped_not_what_is_read(lab):
    m = lab("exefolio", knobs=("fault_around_bytes=16384",))
    file = text(m, 0, 32)
    m.read(21)
    assert blocks(m, file) == [(16, 16)]
    assert m.orders(16, 32) == [None] * 4 + [4] * 4 + [None] * 8
    assert m.head(20, layout.FOLIO_NR_PAGES_MAPPED) == 4
    assert m.head(20, layout.PAGE_REFCOUNT) == 16 + 4
    assert m.memory()["page_cache"] == 65536
    for page in (17, 25, 29):
        m.read(page)
    assert m.memory()["page_cache"] == 65536
    assert m.vmstat()["nr_mapped"] == 16


def test_pages_mapped_before_are_left_alone(lab):
    m = lab("exefolio")
    text(m, 0, 32)
    m.read(16)
    m.advise(18, 20, MADV_DONTNEED)
    m.advise(30, 32, MADV_DONTNEED)
    assert cont(m) == []
    m.read(19)
    assert m.orders(16, 32) == [4] * 16
    assert m.head(16, layout.FOLIO_LARGE_MAPCOUNT) == 16
    assert m.events()["file_around_pages"] == 15 + 3


def test_two_processes_share_the_folios(lab):
    m = lab("exefolio")
    assert m.spawn(2) == 0
    file = text(m, 0, 32)
    text(m, 0, 32, file=file, pid=2)
    m.read(20)
    m.read(17, pid=2)
    assert [m.entry(p) & m.k.pfn_mask for p in range(16, 32)] == [
        m.entry(p, 2) & m.k.pfn_mask for p in range(16, 32)
    ]
    assert m.memory()["page_cache"] == 65536
    assert m.word(16, layout.PAGE_MAPCOUNT) == 2
    assert m.head(16, layout.FOLIO_LARGE_MAPCOUNT) == 32
    assert m.head(16, layout.FOLIO_NR_PAGES_MAPPED) == 16
    assert m.vmstat()["nr_mapped"] == 16
    assert cont(m) == cont(m, 2) == list(range(16, 32))
    m.exit(2)
    assert m.head(16, layout.FOLIO_LARGE_MAPCOUNT) == 16
    assert m.vmstat()["nr_mapped"] == 16


def test_exit_leaves_the_folios_in_the_cache(lab):
    m = lab("exefolio")
    file = text(m, 0, 32)
    m.read(0, 16)
    pfn = pte_pfn(m.k, m.entry(0))
    m.exit(1)
    assert blocks(m, file) == [(0, 16), (16, 16)]
    assert m.vmstat()["nr_mapped"] == 0
    assert m.k.page[pfn * PAGE_RECORD + layout.PAGE_REFCOUNT] == 16
    assert m.k.page[pfn * PAGE_RECORD + layout.FOLIO_LARGE_MAPCOUNT] == 0
    assert m.memory()["page_cache"] == 2 * 65536
    assert m.events()["zap_file"] == 32


@pytest.mark.parametrize("defconfig", ["exefolio", "linux-7.3"])
def test_unmapping_a_part_unfolds_the_block_and_keeps_the_folio(lab, defconfig):
    m = lab(defconfig, "EXEC_FOLIO=y")
    file = text(m, 0, 48)
    m.read(0, 16, 32)
    m.unmap(4, 20)
    assert m.orders(0, 48) == [4] * 4 + [None] * 16 + [4] * 28
    assert cont(m) == list(range(32, 48))
    assert m.head(0, layout.FOLIO_NR_PAGES_MAPPED) == 4
    assert m.head(20, layout.FOLIO_LARGE_MAPCOUNT) == 12
    assert m.rss(1) == 32 * m.page_size
    assert m.vmstat()["nr_mapped"] == 32
    assert m.events()["zap_file"] == 16
    assert not m.queued()
    assert blocks(m, file) == [(0, 16), (16, 16), (32, 16)]


def test_fork_leaves_text_to_the_childs_own_faults(lab):
    m = lab("exefolio")
    text(m, 0, 32)
    m.read(20)
    assert m.fork(1, 2) == 0
    assert m.orders(16, 32, 2) == [None] * 16
    m.read(20, pid=2)
    assert cont(m, 2) == list(range(16, 32))
    assert m.memory()["page_cache"] == 65536


@pytest.mark.parametrize("defconfig", ["exefolio", "linux-7.3"])
def test_a_private_write_copies_one_page_and_fork_copies_the_rest(lab, defconfig):
    m = lab(defconfig, "EXEC_FOLIO=y")
    text(m, 0, 32, prot=RWX)
    m.read(0, 16)
    m.write(20)
    assert m.orders(0, 32) == [4] * 20 + [0] + [4] * 11
    assert cont(m) == list(range(16))
    assert m.head(16, layout.FOLIO_NR_PAGES_MAPPED) == 15
    assert m.vmstat()["nr_mapped"] == 31
    assert m.vmstat()["nr_anon_pages"] == 1
    assert m.rss(1) == 32 * m.page_size
    assert m.events()["file_write_fault"] == 1
    assert m.fork(1, 2) == 0
    assert m.orders(0, 32, 2) == m.orders(0, 32)
    assert cont(m) == cont(m, 2) == list(range(16))
    assert m.head(16, layout.FOLIO_LARGE_MAPCOUNT) == 30
    assert m.rss(2) == 32 * m.page_size
    m.exit(1)
    assert m.head(16, layout.FOLIO_LARGE_MAPCOUNT, 2) == 15
    assert m.vmstat()["nr_mapped"] == 31


def test_fork_of_a_block_in_two_mappings_folds_with_its_last_page(lab):
    """The contiguous bit that its only page in the second mapping carries does not hinder."""
    m = lab("exefolio")
    text(m, 0, 32, prot=RWX)
    m.read(16)
    m.write(0)
    m.advise(31, 32, MADV_DONTDUMP)
    assert m.fork(1, 2) == 0
    assert cont(m) == cont(m, 2) == list(range(16, 32))


def test_a_first_write_reads_the_folio_and_maps_the_copy_alone(lab):
    m = lab("exefolio")
    file = text(m, 0, 32, prot=RWX)
    m.write(20)
    assert blocks(m, file) == [(16, 16)]
    assert m.orders(16, 32) == [None] * 4 + [0] + [None] * 11
    assert m.memory()["page_cache"] == 65536


@pytest.mark.parametrize("defconfig", ["exefolio", "linux-7.3"])
def test_protecting_a_part_unfolds_and_protecting_the_rest_folds(lab, defconfig):
    m = lab(defconfig, "EXEC_FOLIO=y")
    text(m, 0, 32)
    m.read(0, 16)
    assert m.mprotect(1, m.at(8), 8 * m.page_size, READ) == 0
    assert cont(m) == list(range(16, 32))
    assert m.mprotect(1, m.at(16), 16 * m.page_size, READ) == 0
    assert cont(m) == list(range(16, 32))
    assert [executable(m, page) for page in range(32)] == [True] * 8 + [False] * 24
    assert not any(m.events()["mprotect_anon"].values())


def test_moving_text_keeps_folios(lab):
    m = lab("exefolio")
    text(m, 0, 32)
    m.read(0, 16)
    size = 32 * m.page_size
    assert m.mremap(1, m.at(0), size, m.at(68), size, 2) == 0
    assert m.orders(68, 100) == [4] * 32
    assert cont(m) == []
    assert m.mremap(1, m.at(68), size, m.at(128), size, 2) == 0
    assert cont(m) == list(range(128, 160))
    validate(m.k)


def test_segments_over_a_library_as_ld_so_maps_them(lab):
    """
    Text begins at page 5 of the file: small folios up to the next 64K, and at its end.

    A fault before page 16 would map 16 pages from page 5 on, and leave the block in two ranges.
    """
    m = lab("exefolio")
    file = text(m, 0, 64, prot=READ)
    m.read(0)
    text(m, 5, 40, 5, file=file, flags=MAP_FIXED)
    m.read(16, *range(5, 45))
    # the read-only mapping had fault-around cache pages 0 to 15
    assert blocks(m, file) == [(i, 1) for i in range(16)] + [(16, 16), (32, 8), (40, 4), (44, 1)]
    assert cont(m) == list(range(16, 32))


def test_the_data_of_text_is_one_files(lab):
    """Every page of a folio keeps its own bytes; a copy takes its page's."""
    m = lab("exefolio", "PHYS_BACKING=y")
    file = text(m, 0, 32, prot=RWX, flags=MAP_SHARED)
    for page in range(16, 32):
        assert m.store(1, m.at(page), page) == 0
    text(m, 64, 32, prot=RWX, file=file)
    assert m.store(1, m.at(64 + 20) + 1, 99) == 0
    assert [m.load(1, m.at(64 + page)) for page in range(16, 32)] == list(range(16, 32))
    assert m.load(1, m.at(20) + 1) == 0
