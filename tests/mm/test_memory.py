# SPDX-License-Identifier: GPL-2.0-only
"""The rules of the v1 series, one by one. Page numbers are those of spec 5.17."""

import pytest
from virtmm.mm import layout
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.vm_flags import (
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_POPULATE_WRITE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
)
from virtmm.mm.zap import tlb_capacity

INJECT = "FAULT_INJECTION=y"
ALWAYS = range(1, 1000)


# The order rule


def test_an_empty_block_inside_the_vma_gets_the_largest_order(lab):
    m = lab()
    m.map(0, 32)
    m.write(5)
    assert m.orders(0, 17) == [4] * 16 + [None]
    assert m.folio(5) == (4, 5)
    assert m.rss(1) == 16 * m.page_size
    m.write(20)
    assert m.orders(16, 32) == [4] * 16
    assert m.minflt() == 2


def test_vma_edges_lower_the_order(lab):
    m = lab()
    m.map(3, 40)
    m.write(5)
    assert m.orders(3, 9) == [None, 2, 2, 2, 2, None]
    m.write(3)
    assert m.folio(3) == (0, 0)
    m.write(39)
    assert m.orders(32, 40) == [3] * 8


def test_a_block_that_ends_with_the_vma_fits(lab):
    m = lab()
    m.map(4, 8)
    m.write(7)
    assert m.orders(4, 8) == [2] * 4


def test_populated_entries_lower_the_order(lab):
    m = lab()
    m.map(9, 10)
    m.write(9)
    m.map(0, 9)
    m.map(10, 16)
    m.write(2)
    assert m.orders(0, 8) == [3] * 8
    m.write(14)
    assert m.orders(12, 16) == [2] * 4
    m.write(10)
    assert m.folio(10) == (0, 0)


def test_the_zero_page_blocks_a_block(lab):
    m = lab()
    m.map(0, 16)
    m.read(6)
    assert m.folio(6) == "zero"
    m.write(7)
    assert m.folio(7) == (0, 0)
    m.write(6)
    assert m.folio(6) == (0, 0)
    m.write(3)
    assert m.orders(0, 4) == [2] * 4


def test_reads_map_one_zero_page_however_large_the_maximum(lab):
    m = lab()
    m.map(0, 32)
    m.read(0, 1)
    assert m.orders(0, 3) == ["zero", "zero", None]
    assert m.minflt() == 2
    assert m.rss(1) == 0
    assert m.memory()["anon"] == 0


def test_a_fault_never_reaches_into_the_next_page_table(lab):
    m = lab()
    m.map(500, 530)
    m.write(511)
    assert m.orders(504, 514) == [3] * 8 + [None] * 2
    m.write(512)
    assert m.orders(512, 528) == [4] * 16


def test_a_remembered_populated_entry_gives_the_same_order_as_a_scan(lab):
    """For every populated page and every faulting one: the largest empty aligned block of both sides."""
    m = lab()
    m.map(0, 16)
    for set_page in range(16):
        for fault in range(16):
            if fault == set_page:
                continue
            m.read(set_page)
            m.write(fault)
            blocks = [k for k in (4, 3, 2) if set_page >> k != fault >> k]
            assert m.folio(fault)[0] == max(blocks, default=0), (set_page, fault)
            m.advise(0, 16, MADV_DONTNEED)


def test_every_order_from_the_maximum_down_to_two_and_never_one(lab):
    m = lab()
    m.map(0, 2)
    m.write(0)
    assert m.orders(0, 2) == [0, None]
    m.map(16, 19)
    m.write(16)
    assert m.orders(16, 19) == [0, None, None]


# The two maxima


@pytest.mark.parametrize("fragments, nothp, thp", [((), 4, 4), (("16k",), 2, 7), (("64k",), 0, 5)])
def test_the_maximum_depends_on_thp_eligibility(lab, fragments, nothp, thp):
    m = lab(fragments=fragments)
    m.map(0, 256)
    m.write(0)
    assert m.folio(0)[0] == nothp
    m.advise(128, 256, MADV_HUGEPAGE)
    m.write(128)
    assert m.folio(128)[0] == thp


def test_thp_always_makes_every_mapping_eligible(lab):
    m = lab(fragments=["16k"], knobs=["enabled=always"])
    m.map(0, 256)
    m.write(0)
    assert m.folio(0)[0] == 7


def test_thp_never_and_madvise_nohugepage_still_get_large_folios(lab):
    """v1's quirk, which v3 changed: the refusal chooses the other maximum, not order 0."""
    m = lab(fragments=["16k"], knobs=["enabled=never"])
    m.map(0, 128)
    m.advise(0, 128, MADV_HUGEPAGE)
    m.write(0)
    assert m.folio(0)[0] == 2
    m = lab()
    m.map(0, 32)
    m.advise(0, 32, MADV_NOHUGEPAGE)
    m.write(0)
    assert m.folio(0)[0] == 4


def test_without_thp_in_the_kernel_everything_is_one_page(lab):
    m = lab("anonfolio_basic", "TRANSPARENT_HUGEPAGE=n", "TRANSPARENT_HUGEPAGE_MADVISE=n")
    m.map(0, 32)
    m.write(5)
    assert m.orders(4, 7) == [None, 0, None]


def test_base_pages_when_switched_off_or_not_opted_in(lab):
    for m in (lab("baseline_4k"), lab("baseline_4k", arch="x86")):
        m.map(0, 32)
        m.write(5)
        assert m.orders(4, 7) == [None, 0, None]


# What a new folio looks like


def test_state_after_a_large_fault(lab):
    m = lab()
    m.map(0, 16)
    m.write(9)
    for page in range(16):
        assert m.word(page, layout.PAGE_MAPCOUNT) == 1
        assert m.word(page, layout.PAGE_FLAGS) & layout.PG_exclusive
    assert m.head(0, layout.PAGE_REFCOUNT) == 16
    assert m.head(0, layout.FOLIO_NR_PAGES_MAPPED) == 16
    assert m.head(0, layout.PAGE_FLAGS) & layout.PG_swapbacked
    pte = m.k.arch.pte
    entries = [m.entry(page) for page in range(16)]
    for entry in entries:
        for attr in (pte.young, pte.dirty, pte.write, pte.present):
            assert entry & attr.mask == attr.on
    step = 1 << m.k.pfn_shift
    assert [e - entries[0] for e in entries] == [i * step for i in range(16)]
    assert m.vmstat()["nr_anon_pages"] == 16
    assert m.stat("anon_fault_alloc", 4) == m.stat("nr_anon", 4) == 1
    assert m.processes()[0].folios == {4: 1}
    assert m.touch(1, m.at(3), True) == 0
    assert m.minflt() == 1


# The ladder


def test_allocation_failure_takes_the_next_lower_order(lab):
    m = lab("anonfolio_basic", INJECT, inject=FaultInjection(alloc={4: {1}, 3: {1}}))
    m.map(0, 32)
    m.write(5)
    assert m.orders(3, 9) == [None, 2, 2, 2, 2, None]
    assert m.stat("anon_fault_fallback", 4) == m.stat("anon_fault_fallback", 3) == 1
    m.write(20)
    assert m.folio(20)[0] == 4


def test_the_ladder_skips_order_one_and_ends_in_oom(lab):
    fail = FaultInjection(alloc={4: ALWAYS, 3: ALWAYS, 2: ALWAYS, 1: ALWAYS})
    m = lab("anonfolio_basic", INJECT, inject=fail)
    m.map(0, 32)
    m.write(5)
    assert m.folio(5) == (0, 0)
    assert 1 not in fail._allocs
    fail.alloc[0] = ALWAYS
    assert m.touch(1, m.at(6), True) == VM_FAULT_OOM
    assert m.minflt() == 1


def test_charge_failure_is_oom_without_a_smaller_try(lab):
    m = lab("anonfolio_basic", INJECT, inject=FaultInjection(charge={1}))
    m.map(0, 32)
    assert m.touch(1, m.at(5), True) == VM_FAULT_OOM
    assert m.memory()["anon"] == 0
    assert m.orders(0, 16) == [None] * 16
    m.write(5)
    assert m.folio(5)[0] == 4


@pytest.mark.parametrize("page, order", [(0, 3), (9, 3), (12, 2), (14, 0)])
def test_a_lost_race_is_tried_again_one_order_smaller(lab, page, order):
    """Another thread maps ``page`` of the block [0, 16) before the lock; we fault on page 12 or 4."""
    fault = 4 if page > 7 else 12
    if order == 2:
        fault = 8
    if order == 0:
        fault = 13
    m = lab("anonfolio_basic", INJECT, inject=FaultInjection(populate={1: page}))
    m.map(0, 16)
    m.write(fault)
    assert m.folio(page) == (0, 0)
    assert m.folio(fault)[0] == order
    assert m.minflt() == 1


def test_a_race_lost_on_the_faulting_page_itself_is_over(lab):
    m = lab("anonfolio_basic", INJECT, inject=FaultInjection(populate={1: 5}))
    m.map(0, 16)
    m.write(5)
    assert m.orders(0, 16) == [None] * 5 + [0] + [None] * 10
    assert m.memory()["anon"] == m.page_size
    assert m.minflt() == 1


def test_fragmented_memory_takes_the_ladder_by_itself(lab):
    """No injection: when no block of 16 pages is free, the fault gets what there is."""
    m = lab("anonfolio_basic", "MEMORY_MB=16")
    m.map(0, 4096)
    pages = 0
    while m.touch(1, m.at(pages), True) == 0:
        pages += 1
    orders = [m.folio(p)[0] for p in range(pages)]
    assert orders[0] == 4
    assert m.vmstat()["allocstall_movable"]
    assert orders[-1] < 4
    assert m.touch(1, m.at(pages), True) == VM_FAULT_OOM


# Batched zap and the deferred split queue


def test_a_partly_unmapped_folio_is_queued_once_and_pinned(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    m.unmap(8, 16)
    assert m.queued() == 1
    assert m.stat("split_deferred", 4) == 1
    assert m.rss(1) == 8 * m.page_size
    assert m.memory()["anon"] == 16 * m.page_size
    m.unmap(4, 8)
    assert m.stat("split_deferred", 4) == 1
    m.unmap(0, 4)
    assert m.queued() == 0
    assert m.memory()["anon"] == 0


def test_a_wholly_unmapped_folio_is_never_queued(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    m.unmap(0, 16)
    assert m.vmstat()["thp_deferred_split_page"] == 0
    m.map(0, 16)
    m.write(0)
    m.exit(1)
    assert m.vmstat()["thp_deferred_split_page"] == 0


def test_page_by_page_zap_queues_a_folio_that_goes_as_a_whole(lab):
    """What patch 7 saves: without it patch 6 queues every large folio on its way out."""
    m = lab("anonfolio_basic", "ANON_ZAP_BATCH=n")
    m.map(0, 16)
    m.write(0)
    m.unmap(0, 16)
    assert m.vmstat()["thp_deferred_split_page"] == 1
    assert m.queued() == 0
    assert m.memory()["anon"] == 0


def test_a_folio_across_two_vmas_is_queued_by_one_munmap(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    assert m.mprotect(1, m.at(8), 8 * m.page_size, PROT_READ) == 0
    m.unmap(0, 16)
    assert m.vmstat()["thp_deferred_split_page"] == 1
    assert m.queued() == 0


def test_a_batch_ends_where_the_gather_is_full(lab):
    m = lab()
    room = tlb_capacity(m.k)
    assert room == 8 + 19 * 510
    pages = room + 16
    m.map(0, pages)
    for page in range(0, pages, 16):
        m.write(page)
    m.unmap(0, pages)
    cut = room % 16 != 0
    assert cut
    assert m.vmstat()["thp_deferred_split_page"] == 1
    assert m.memory()["anon"] == 0


def test_dontneed_in_the_middle_keeps_the_folio(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    m.advise(4, 8, MADV_DONTNEED)
    assert m.orders(0, 16) == [4] * 4 + [None] * 4 + [4] * 8
    assert m.head(0, layout.PAGE_REFCOUNT) == 12
    assert m.queued() == 1
    m.write(5)
    assert m.orders(4, 8) == [2] * 4


# Write-protect faults


def test_an_exclusive_page_is_reused_and_a_shared_one_copied(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    m.fork(1, 2)
    assert m.word(3, layout.PAGE_MAPCOUNT) == 2
    m.write(3)
    assert m.folio(3) == (0, 0)
    assert m.folio(3, pid=2) == (4, 3)
    assert m.queued() == 0
    m.exit(2)
    assert m.queued() == 1
    m.write(4)
    assert m.folio(4) == (0, 0), (
        "6.4 copies a once shared page of a large folio, even its last mapping"
    )
    m.write(3)
    assert m.vmstat()["pgreuse"] == 0


def test_a_small_folio_with_one_reference_is_taken_over(lab):
    m = lab("baseline_4k")
    m.map(0, 4)
    m.write(0)
    m.fork(1, 2)
    m.exit(2)
    before = m.entry(0) >> m.k.pfn_shift & 0xFFFF
    m.write(0)
    assert m.entry(0) >> m.k.pfn_shift & 0xFFFF == before
    assert m.vmstat()["pgreuse"] == 1
    assert m.word(0, layout.PAGE_FLAGS) & layout.PG_exclusive


def test_fork_write_protects_both_sides_and_the_child_is_old(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    m.fork(1, 2)
    pte = m.k.arch.pte
    for pid in (1, 2):
        assert all(
            m.entry(p, pid) & pte.write.mask == pte.write.off & pte.write.mask for p in range(16)
        )
    assert m.entry(0) & pte.young.mask == pte.young.on
    assert m.entry(0, 2) & pte.young.mask == pte.young.off
    assert m.head(0, layout.PAGE_REFCOUNT) == 32
    assert not m.word(0, layout.PAGE_FLAGS) & layout.PG_exclusive


@pytest.mark.parametrize("defconfig", ["baseline_4k", "anonfolio_basic", "baseline_64k"])
def test_data_is_intact_across_fork_and_cow(lab, defconfig):
    m = lab(defconfig, "PHYS_BACKING=y")
    m.map(0, 40)
    for page in range(1, 40):
        assert m.load(1, m.at(page) + 7) == 0
        assert m.store(1, m.at(page) + 7, page) == 0
    m.fork(1, 2)
    for page in range(1, 40, 3):
        m.store(2, m.at(page) + 7, 100 + page)
    for page in range(2, 40, 3):
        m.store(1, m.at(page) + 7, 200 + page % 50)
    for page in range(1, 40):
        parent = 200 + page % 50 if page % 3 == 2 else page
        child = 100 + page if page % 3 == 1 else page
        assert m.load(1, m.at(page) + 7) == parent
        assert m.load(2, m.at(page) + 7) == child
    m.exit(2)
    m.unmap(0, 40)
    m.map(0, 40)
    assert {m.load(1, m.at(page) + 7) for page in range(40)} == {0}


def test_fresh_memory_reads_zero_where_freed_pages_come_back(lab):
    m = lab("anonfolio_basic", "PHYS_BACKING=y", "MEMORY_MB=16")
    for _ in range(4):
        m.map(0, 1024)
        for page in range(0, 1024, 5):
            assert m.load(1, m.at(page) + 11) == 0
            assert m.store(1, m.at(page) + 11, 255) == 0
        m.unmap(0, 1024)


# Who may access what


def test_access_outside_or_against_the_protection_is_sigsegv(lab):
    m = lab()
    assert m.touch(1, m.at(0), False) == VM_FAULT_SIGSEGV
    m.map(0, 4, prot=PROT_READ)
    assert m.touch(1, m.at(0), True) == VM_FAULT_SIGSEGV
    m.read(0)
    m.map(8, 12, prot=0)
    assert m.touch(1, m.at(8), False) == VM_FAULT_SIGSEGV
    assert m.minflt() == 1


def test_populate_counts_as_faults_of_the_caller(lab):
    m = lab()
    m.map(0, 32)
    m.advise(0, 32, MADV_POPULATE_WRITE)
    assert m.orders(0, 32) == [4] * 32
    assert m.minflt() == 2


# Files


def test_a_read_fault_on_a_file_maps_what_is_around(lab):
    m = lab()
    file = m.open(7, 40 * m.page_size)
    m.map(3, 40, prot=PROT_READ, file=file)
    m.read(20)
    mapped = [p for p in range(3, 40) if m.entry(p)]
    assert mapped == list(range(16, 32))
    assert m.events()["file_read_fault"] == 1
    assert m.events()["file_around_pages"] == 15
    m.read(3)
    assert [p for p in range(3, 40) if m.entry(p)] == list(range(3, 32))
    assert m.memory()["page_cache"] == 29 * m.page_size


def test_a_private_write_to_a_file_page_copies_one_page(lab):
    m = lab()
    file = m.open(7, 16 * m.page_size)
    m.map(0, 16, file=file)
    m.read(4)
    m.write(4, 5)
    assert m.folio(4) == (0, 0)
    assert m.events()["file_write_fault"] == 2
    m.write(4)
    assert m.minflt() == 3
    m.unmap(0, 16)
    m.map(0, 16, prot=PROT_READ, file=file)
    m.read(0)
    assert m.memory()["anon"] == 0
    assert m.memory()["page_cache"] == 16 * m.page_size


def test_shared_mappings_of_a_file_share_its_pages(lab):
    m = lab("anonfolio_basic", "PHYS_BACKING=y")
    file = m.open(7, 16 * m.page_size)
    m.map(0, 16, file=file, flags=MAP_SHARED)
    m.map(32, 48, file=file, flags=MAP_SHARED)
    m.store(1, m.at(5), 9)
    assert m.load(1, m.at(37)) == 9
    m.fork(1, 2)
    m.store(2, m.at(5), 10)
    assert m.load(1, m.at(5)) == 10
    assert m.memory()["anon"] == 0


def test_shared_anonymous_memory_goes_with_its_last_mapping(lab):
    m = lab("anonfolio_basic", "PHYS_BACKING=y")
    m.map(0, 16, flags=MAP_SHARED)
    m.fork(1, 2)
    m.store(2, m.at(3), 42)
    assert m.load(1, m.at(3)) == 42
    m.exit(1)
    assert m.memory()["page_cache"] > 0
    m.exit(2)
    assert m.memory()["page_cache"] == 0


def test_beyond_the_end_of_a_file_is_sigbus(lab):
    m = lab()
    file = m.open(7, 4 * m.page_size)
    m.map(0, 4, file=file)
    m.k.file[file * 8 + layout.FILE_PAGES] = 2  # truncated behind the mapping's back
    assert m.touch(1, m.at(3), False) == VM_FAULT_SIGBUS
    m.read(1)
    assert not m.entry(2)


def test_mprotect_gives_write_back_to_exclusive_pages_only(lab):
    m = lab()
    m.map(0, 16)
    m.write(0)
    m.fork(1, 2)
    m.write(3)
    for prot in (PROT_READ, PROT_READ | PROT_WRITE):
        assert m.mprotect(1, m.at(0), 16 * m.page_size, prot) == 0
    write = m.k.arch.pte.write
    writable = [p for p in range(16) if m.entry(p) & write.mask == write.on]
    assert writable == [3]
