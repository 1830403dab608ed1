# SPDX-License-Identifier: GPL-2.0-only
"""Mainline multi-size THP: policy, PMD-mapped memory, what releases changed. Numbers are those of spec 5."""

import pytest
from virtmm.mm import layout
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.vm_flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MAP_NORESERVE,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_OOM,
)

NEW, OLD = "linux-7.3", "linux-6.12"
# 32 pages to a PMD: small enough to look at each.
PPC = {"arch": "powerpc"}
PMD = 32
HUGE = "2048kB=always"


def pmd_mapped(m, page=0, pid=1):
    """Return whether a page is mapped by a huge entry."""
    found = list(m.mapped_pages(pid, m.at(page), m.at(page + 1)))
    return m.entry(page, pid) == 0 and bool(found)


def pages(m, first, end, pid=1):
    return list(m.mapped_pages(pid, m.at(first), m.at(end)))


def map_huge(lab, defconfig=NEW, *sets, **kw):
    m = lab(defconfig, *sets, knobs=[HUGE], **PPC, **kw)
    m.map(0, 2 * PMD)
    m.write(3)
    assert pmd_mapped(m)
    return m


# Policy of the sizes below the PMD's


def test_only_enabled_sizes_are_tried(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(3, 40)
    m.write(5)
    assert m.folio(5) == (0, 0), "16K would fit, but is not enabled"
    m.write(20)
    assert m.orders(16, 32) == [4] * 16


def test_hints_choose_the_sizes(lab):
    m = lab(NEW, knobs=["16kB=always", "64kB=madvise", "32kB=inherit"])
    m.map(0, 96)
    m.write(0)
    assert m.folio(0)[0] == 2
    m.advise(32, 64, MADV_HUGEPAGE)
    m.write(32)
    assert m.folio(32)[0] == 4
    m.advise(64, 96, MADV_NOHUGEPAGE)
    m.write(64)
    assert m.folio(64)[0] == 0
    m.set("enabled", "always")
    m.write(8)
    assert m.folio(8)[0] == 3
    m.set("enabled", "never")
    m.write(40 + 8)
    assert m.folio(48)[0] == 4, "inherit is gone, madvise is not"


def test_a_failed_charge_falls_back_too(lab):
    m = lab(
        NEW,
        "FAULT_INJECTION=y",
        knobs=["16kB=always", "64kB=always"],
        inject=FaultInjection(charge={1}),
    )
    m.map(0, 16)
    m.write(5)
    assert m.folio(5)[0] == 2
    assert m.stat("anon_fault_fallback", 4) == m.stat("anon_fault_fallback_charge", 4) == 1


def test_a_lost_race_is_over(lab):
    """Unlike v1 nothing smaller is tried: the access faults again."""
    m = lab(
        NEW,
        "FAULT_INJECTION=y",
        knobs=["16kB=always", "64kB=always"],
        inject=FaultInjection(populate={1: 9}),
    )
    m.map(0, 16)
    m.write(2)
    assert m.minflt() == 2
    assert m.folio(2)[0] == 2


# PMD-mapped memory


def test_a_huge_page_is_one_entry(lab):
    m = map_huge(lab)
    found = pages(m, 0, PMD)
    assert [(p.offset, p.order, p.mapcount, p.exclusive) for p in found] == [
        (i, 5, 1, True) for i in range(PMD)
    ]
    assert m.minflt() == 1
    assert m.rss(1) == PMD * m.page_size
    assert m.vmstat()["thp_fault_alloc"] == 1
    m.write(*range(PMD))
    assert m.minflt() == 1


def test_it_needs_its_block_inside_the_vma_and_an_empty_slot(lab):
    m = lab(NEW, knobs=[HUGE], **PPC)
    m.map(1, PMD + 1)
    m.write(5)
    assert m.folio(5) == (0, 0)
    m.map(PMD + 1, 3 * PMD)
    m.write(2 * PMD)
    assert pmd_mapped(m, 2 * PMD)


def test_a_failed_allocation_takes_smaller_sizes(lab):
    inject = FaultInjection(alloc={5: {1}})
    m = lab(NEW, "FAULT_INJECTION=y", knobs=[HUGE, "256kB=always"], inject=inject, **PPC)
    m.map(0, PMD)
    m.write(1)
    assert m.folio(1) == (2, 1)
    assert m.vmstat()["thp_fault_fallback"] == m.stat("anon_fault_fallback", 5) == 1


def test_a_part_unmapped_splits_the_entry_not_the_folio(lab):
    m = map_huge(lab)
    m.advise(8, 16, MADV_DONTNEED)
    assert m.orders(0, PMD) == [5] * 8 + [None] * 8 + [5] * 16
    assert m.vmstat()["thp_split_pmd"] == 1
    assert m.stat("split_deferred", 5) == m.stat("nr_anon_partially_mapped", 5) == 1
    assert m.memory()["anon"] == PMD * m.page_size
    m.unmap(0, 2 * PMD)
    assert m.memory()["anon"] == 0
    assert m.stat("nr_anon_partially_mapped", 5) == 0


def test_all_unmapped_is_never_partial(lab):
    m = map_huge(lab)
    m.unmap(0, PMD)
    assert m.vmstat()["thp_split_pmd"] == m.stat("split_deferred", 5) == 0
    assert m.memory()["anon"] == 0
    assert m.memory()["page_tables"] > 0


def test_a_vma_does_not_end_inside_an_entry(lab):
    m = map_huge(lab)
    assert m.mprotect(1, m.at(8), 8 * m.page_size, PROT_READ) == 0
    assert m.orders(0, PMD) == [5] * PMD
    assert m.stat("split_deferred", 5) == 0
    assert m.mprotect(1, m.at(0), 2 * PMD * m.page_size, PROT_READ | PROT_WRITE) == 0
    before = m.minflt()
    m.write(*range(PMD))
    assert m.minflt() == before, "exclusive pages get write permission back at once"


def test_mprotect_of_all_keeps_the_entry(lab):
    m = map_huge(lab)
    for prot in (PROT_READ, 0, PROT_READ | PROT_WRITE):
        assert m.mprotect(1, m.at(0), PMD * m.page_size, prot) == 0
    assert pmd_mapped(m)
    before = m.minflt()
    m.write(7)
    assert m.minflt() == before


def test_fork_shares_the_entry_and_a_write_copies_one_page(lab):
    m = map_huge(lab)
    m.fork(1, 2)
    assert pmd_mapped(m, pid=2)
    assert {(p.mapcount, p.exclusive) for p in pages(m, 0, PMD)} == {(2, False)}
    m.write(9, pid=2)
    assert m.orders(8, 11, pid=2) == [5, 0, 5]
    assert pmd_mapped(m)
    assert [p.mapcount for p in pages(m, 8, 11)] == [2, 1, 2]
    m.exit(2)
    before = m.minflt()
    m.write(0, 1)
    assert m.minflt() == before + 1
    assert pmd_mapped(m), "the one reference that is left is taken over"


def test_a_move_to_an_aligned_place_keeps_the_entry(lab):
    m = map_huge(lab)
    size = PMD * m.page_size
    assert m.mremap(1, m.at(0), size, m.at(4 * PMD), size, 3) == 0
    assert pmd_mapped(m, 4 * PMD)
    assert m.mremap(1, m.at(4 * PMD), size, m.at(6 * PMD + 1), size, 3) == 0
    assert m.orders(6 * PMD + 1, 7 * PMD + 1) == [5] * PMD
    assert m.stat("split_deferred", 5) == 0


def test_data_is_intact_below_huge_entries(lab):
    m = lab(NEW, "PHYS_BACKING=y", knobs=[HUGE, "256kB=always"], **PPC)
    m.map(0, 2 * PMD)
    for page in range(2 * PMD):
        assert m.load(1, m.at(page)) == 0
        assert m.store(1, m.at(page) + 5, page + 1) == 0
    m.fork(1, 2)
    m.store(2, m.at(4) + 5, 200)
    m.store(1, m.at(PMD + 4) + 5, 201)
    m.advise(8, 12, MADV_DONTNEED)
    m.advise(20, 24, MADV_FREE)
    want = [page + 1 for page in range(2 * PMD)]
    child = want.copy()
    child[4], want[PMD + 4], want[8:12] = 200, 201, [0] * 4
    assert [m.load(1, m.at(p) + 5) for p in range(2 * PMD)] == want
    assert [m.load(2, m.at(p) + 5) for p in range(2 * PMD)] == child


# The huge zero page


def test_a_read_maps_the_huge_zero_page(lab):
    m = lab(NEW, knobs=[HUGE], **PPC)
    m.map(0, PMD)
    m.read(3)
    assert [p.zero for p in pages(m, 0, PMD)] == [True] * PMD
    assert m.rss(1) == 0
    assert m.memory()["anon"] == 0
    m.set("use_zero_page", "0")
    m.map(PMD, 2 * PMD)
    m.read(PMD)
    assert not pages(m, PMD, 2 * PMD)[0].zero


@pytest.mark.parametrize(("defconfig", "huge"), [(OLD, False), (NEW, True)])
def test_a_write_to_it_makes_a_huge_page_since_6_13(lab, defconfig, huge):
    m = lab(defconfig, knobs=[HUGE], **PPC)
    m.map(0, PMD)
    m.read(3)
    m.write(4)
    assert pmd_mapped(m) is huge
    if not huge:
        assert m.orders(3, 6) == ["zero", 0, "zero"]


# What releases changed


@pytest.mark.parametrize(("defconfig", "order"), [(OLD, 0), (NEW, 4)])
def test_a_folio_that_was_shared_is_reused_since_6_15(lab, defconfig, order):
    m = lab(defconfig, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    m.fork(1, 2)
    m.exit(2)
    m.write(3)
    assert m.folio(3)[0] == order


def test_with_three_owners_the_third_is_not_counted(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    for child in (2, 3):
        m.fork(1, child)
    m.exit(2)
    m.write(3)
    assert m.folio(3)[0] == 0, "process 3 maps it still"
    m.exit(3)
    m.write(4)
    assert m.folio(4)[0] == 4


@pytest.mark.parametrize(("defconfig", "errno"), [(OLD, -14), (NEW, 0)])
def test_a_move_may_span_mappings_since_6_17(lab, defconfig, errno):
    m = lab(defconfig)
    m.map(0, 4)
    m.map(6, 8, prot=PROT_READ)
    m.write(0)
    size = 8 * m.page_size
    assert m.mremap(1, m.at(0), size, m.at(64), size, 3) == errno
    if not errno:
        assert m.folio(64) == (0, 0)
        assert m.touch(1, m.at(70), False) == 0
        assert m.touch(1, m.at(68), False) != 0


@pytest.mark.parametrize(("defconfig", "vmas"), [(OLD, 2), (NEW, 1)])
def test_a_mapping_with_pages_merges_with_one_that_has_none_since_6_16(lab, defconfig, vmas):
    m = lab(defconfig)
    m.map(0, 4, flags=MAP_NORESERVE)  # else memory that was writable once is accounted
    m.write(0)
    m.map(4, 8, prot=PROT_READ, flags=MAP_NORESERVE)
    assert m.mprotect(1, m.at(0), 4 * m.page_size, PROT_READ) == 0
    assert m.k.mm[m._mm(1) * 16 + layout.MM_MAP_COUNT] == vmas


def test_between_two_that_do_not_fit_each_other_the_lower_one_is_taken(lab):
    m = lab(NEW)
    m.map(0, 4)
    m.map(8, 12)
    m.write(0, 8)
    m.map(4, 8)
    slots = m.k.vma_start[m._mm(1) * layout.MAX_MAP_COUNT :][:2].tolist()
    assert slots == [m.at(0), m.at(8)]


# Splitting


def test_madv_free_of_a_part_splits_at_once(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    m.advise(0, 4, MADV_FREE)
    assert m.orders(0, 16) == [0] * 16
    assert m.stat("split", 4) == m.stat("split_deferred", 4) == 1
    assert m.stat("nr_anon", 4) == 0


def test_madv_free_and_cold_of_all_do_not_split(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    for advice in (MADV_FREE, MADV_COLD):
        m.advise(0, 16, advice)
    assert m.orders(0, 16) == [4] * 16
    young = m.k.arch.pte.young
    assert m.entry(5) & young.mask == young.off


def test_a_shared_folio_is_not_split(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    m.fork(1, 2)
    m.advise(0, 4, MADV_FREE)
    assert m.orders(0, 16) == [4] * 16


def test_zero_filled_pages_become_the_zero_page_when_split(lab):
    m = lab(NEW, "PHYS_BACKING=y", knobs=["64kB=always"])
    m.map(0, 16)
    m.store(1, m.at(2), 7)
    m.advise(0, 4, MADV_COLD)
    assert m.orders(0, 4) == ["zero", "zero", 0, "zero"]
    assert m.rss(1) == m.page_size
    assert m.load(1, m.at(2)) == 7
    assert m.memory()["anon"] == m.page_size


def test_the_shrinker_gives_back_what_partly_mapped_folios_pin(lab):
    m = lab(NEW, "MEMORY_MB=16", knobs=["64kB=always"])
    m.map(0, 2048)
    m.write(*range(0, 2048, 16))
    for page in range(0, 2048, 16):
        m.unmap(page + 1, page + 16)
    pinned = m.memory()["anon"]
    m.map(8192, 16384)
    page = 8192
    while m.touch(1, m.at(page), True) == 0:
        page += 1
    assert m.stat("split", 4) == 128
    assert m.rss(1) > pinned
    assert m.touch(1, m.at(page), True) == VM_FAULT_OOM, "when nothing helps, it is a result"


@pytest.mark.parametrize(
    ("defrag", "advice", "order"),
    [("madvise", MADV_NOHUGEPAGE, 0), ("madvise", MADV_HUGEPAGE, 4), ("never", MADV_HUGEPAGE, 0)],
)
def test_defrag_says_who_may_reclaim_for_a_large_folio(lab, defrag, advice, order):
    m = lab(NEW, "MEMORY_MB=16", knobs=["64kB=always", f"defrag={defrag}"])
    m.map(8300, 8301)
    m.read(8300)  # the page table is there before memory is short
    m.map(0, 4096)
    page = 0
    while m.touch(1, m.at(page), True) == 0:
        page += 16
    for block in range(0, page, 16):
        m.unmap(block + 1, block + 16)
    m.map(8192, 8208)
    m.set("64kB", "madvise")
    m.advise(8192, 8208, advice)
    m.write(8192)
    assert m.folio(8192)[0] == order


def test_underused_huge_pages_are_split_when_memory_is_short(lab):
    m = lab(NEW, "PHYS_BACKING=y", knobs=[HUGE, "khugepaged/max_ptes_none=16"], **PPC)
    m.map(0, 2 * PMD)
    for page in (0, *range(PMD, 2 * PMD)):
        m.store(1, m.at(page), 1)
    assert m.queued() == 2
    assert [shrink(m.k) for shrink in m.k.shrinkers] == [True]
    assert m.orders(0, PMD) == [0] + ["zero"] * (PMD - 1)
    assert pmd_mapped(m, PMD), "a full one only leaves the queue"
    assert m.queued() == 0


# Collapse


def test_collapse_makes_one_folio_of_many(lab):
    m = lab(NEW, "PHYS_BACKING=y", **PPC)
    m.map(0, PMD)
    for page in range(0, PMD, 3):
        m.store(1, m.at(page) + 9, page + 1)
    m.read(1)
    m.advise(0, PMD, MADV_COLLAPSE)
    assert pmd_mapped(m)
    assert m.rss(1) == PMD * m.page_size
    assert m.memory()["anon"] == PMD * m.page_size
    data = [m.load(1, m.at(p) + 9) for p in range(PMD)]
    assert data == [p + 1 if p % 3 == 0 else 0 for p in range(PMD)]


def test_collapse_is_refused_where_it_cannot_be(lab):
    m = lab(NEW, **PPC)
    m.map(0, PMD)
    size = PMD * m.page_size
    assert m.madvise(1, m.at(0), size, MADV_COLLAPSE) == -22, "nothing is mapped there"
    m.write(0)
    m.advise(0, PMD, MADV_NOHUGEPAGE)
    assert m.madvise(1, m.at(0), size, MADV_COLLAPSE) == -22
    assert m.madvise(1, m.at(4 * PMD), size, MADV_COLLAPSE) == -12


# The series with PMD-sized pages


def test_a_kernel_of_the_series_tries_the_huge_page_first(lab):
    m = lab("anonfolio_basic", knobs=["enabled=always"])
    m.map(0, 1024)
    m.write(600)
    assert pmd_mapped(m, 512)
    m.write(5)
    assert pmd_mapped(m, 0)
    assert m.processes()[0].folios == {9: 2}
    assert m.queued() == 0, "6.4 queues no folio at its fault"


def test_layout_has_room_for_what_folios_keep():
    """A large folio keeps its state in tail records 1 to 3; an order-2 folio has just those."""
    fields = [v for k, v in vars(layout).items() if k.startswith("FOLIO_")]
    assert len(set(fields)) == len(fields)
    assert max(fields) < 4 * 8


# What a reviewer asked for


def test_no_gather_cuts_a_folio_on_mainline(lab):
    m = lab(NEW, knobs=["64kB=always"])
    pages = 20000
    m.map(0, pages)
    m.write(*range(0, pages, 16))
    m.unmap(0, pages)
    assert m.stat("split_deferred", 4) == 0
    assert m.memory()["anon"] == 0


def test_only_pmd_sized_folios_count_as_thp_deferred_split_page(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    m.unmap(0, 8)
    assert m.stat("split_deferred", 4) == 1
    assert m.vmstat()["thp_deferred_split_page"] == 0
    m = map_huge(lab)
    m.unmap(0, 8)
    assert m.vmstat()["thp_deferred_split_page"] == 1


def test_the_huge_zero_page_is_replaced_whatever_the_knob_says_now(lab):
    m = lab(NEW, knobs=[HUGE], **PPC)
    m.map(0, PMD)
    m.read(3)
    m.set("2048kB", "never")
    tables = m.events()["pt_page_alloc"]
    m.write(4)
    assert pmd_mapped(m)
    assert m.events()["pt_page_alloc"] == tables, "the table in reserve is used again"


def test_pageout_without_swap_splits(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    m.advise(0, 16, MADV_PAGEOUT)
    assert m.orders(0, 16) == [0] * 16
    assert m.stat("split", 4) == 1


def test_a_whole_page_table_moves_as_one(lab):
    m = lab(NEW, knobs=["512kB=always"], **PPC)
    m.map(0, PMD)
    m.write(*range(PMD))
    tables = m.events()["pt_page_alloc"]
    size = PMD * m.page_size
    assert m.mremap(1, m.at(0), size, m.at(2 * PMD), size, 3) == 0
    assert m.orders(2 * PMD, 3 * PMD) == [3] * PMD
    assert m.events()["mremap_pages"] == 0
    assert m.events()["pt_page_alloc"] == tables


@pytest.mark.parametrize(
    ("defconfig", "sets", "again"), [(OLD, (), 0), (NEW, (), 0), (NEW, ("PT_RECLAIM=y",), 5)]
)
def test_dontneed_of_a_whole_table_frees_it_with_pt_reclaim(lab, defconfig, sets, again):
    """Mainline has it since 6.14, powerpc has not."""
    m = lab(defconfig, *sets, **PPC)
    m.map(0, PMD)
    m.write(0)
    m.advise(0, PMD, MADV_DONTNEED)
    m.set("2048kB", "always")
    m.write(0)
    [page] = pages(m, 0, 1)
    assert page.order == again


def test_what_locked_memory_grows_by_is_there_at_once(lab):
    m = lab(NEW)
    m.map(0, 2)
    assert m.mlock(1, m.at(0), 2 * m.page_size) == 0
    size = m.page_size
    assert m.mremap(1, m.at(0), 2 * size, m.at(0), 6 * size) == 0
    assert m.orders(0, 6) == [0] * 6


@pytest.mark.parametrize(("defconfig", "errno"), [(OLD, -14), (NEW, -22)])
def test_an_unmapped_source_is_found_before_a_bad_target_up_to_6_16(lab, defconfig, errno):
    m = lab(defconfig)
    size = m.page_size
    assert m.mremap(1, m.at(0), size, m.at(8) + 1, size, 3) == errno


@pytest.mark.parametrize("advice", [5, 30, -1])
def test_unknown_advice_is_einval(lab, advice):
    m = lab(NEW)
    m.map(0, 1)
    assert m.madvise(1, m.at(0), m.page_size, advice) == -22
    assert m.madvise(1, m.at(0), 0, MADV_DONTNEED) == 0
