# SPDX-License-Identifier: GPL-2.0-only
"""Contiguous PTEs: when a block folds and unfolds (spec 3)."""

import pytest
from virtmm.mm.contpte import (
    clear_young_dirty_ptes,
    pte_cont,
    read_ptes,
    set_access_flags,
)
from virtmm.mm.pgtable import pte_mkyoung, pte_offset_map
from virtmm.mm.vm_flags import (
    MADV_COLD,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_FREE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

NEW = "linux-7.3"


def folded(m, first, end, pid=1):
    """Return for each block of 16 pages whether all, none or some of its entries have the bit."""
    found = []
    for block in range(first, end, m.k.cont_nr):
        bits = {pte_cont(m.k, m.entry(p, pid)) for p in range(block, block + m.k.cont_nr)}
        found.append(bits.pop() if len(bits) == 1 else "mixed")
    return found


@pytest.fixture(params=[("arm64", []), ("riscv", ["svnapot"])], ids=["arm64", "riscv"])
def m(lab, request):
    arch, fragments = request.param
    m = lab(NEW, arch=arch, fragments=fragments, knobs=["128kB=always"])
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


@pytest.mark.parametrize("arch", ["arm64", "riscv"])
def test_without_the_option_no_entry_has_the_bit(lab, arch):
    sets = ("ARM64_CONTPTE=n",) if arch == "arm64" else ()
    m = lab(NEW, *sets, arch=arch, knobs=["128kB=always"])
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


# The table of spec 3.4, a row a test, for every page size: one folio of two blocks of n entries.


@pytest.fixture(params=["4k", "16k", "64k"])
def two(request, lab):
    """Return a function that boots a kernel of a page size and maps two blocks of one folio."""
    pages = () if request.param == "4k" else (request.param,)

    def boot(*fragments, defconfig=NEW, knob="", sets=()):
        knob = knob or ("128kB=always" if not pages else "4096kB=always")
        m = lab(defconfig, *sets, fragments=[*pages, *fragments], knobs=[knob])
        m.map(0, 4 * m.k.cont_nr)
        m.write(0)
        return m

    return boot


def done(m, call, *words):
    """Return the work that a call does."""
    before = m.work()
    call(*words)
    return {name: n - before[name] for name, n in m.work().items() if n != before[name]}


def bits(m, attr, first, end, pid=1):
    """Return the different values that a bit has in the entries of some pages."""
    return {m.entry(page, pid) & attr.mask == attr.on for page in range(first, end)}


def test_one_look_reads_the_block(two):
    """ptep_get: young and dirty of one entry are those of all, so all are read."""
    m = two()
    n = m.k.cont_nr
    pte = pte_offset_map(m.k, m._mm(1), m.at(1))
    assert done(m, read_ptes, m.k, pte, 1) == {"pte_read": n}
    assert done(m, read_ptes, m.k, pte + 2 * n, 1) == {"pte_read": 1}


def test_a_batch_goes_on_behind_each_block_by_the_hint(two):
    """pte_batch_hint: one look a block; without it each entry is a look at its block."""
    m = two()
    n = m.k.cont_nr
    pte = pte_offset_map(m.k, m._mm(1), m.at(0))
    assert done(m, read_ptes, m.k, pte + 3, 2 * n - 3) == {"pte_read": 2 * n}
    m = two("contpte-basic")
    pte = pte_offset_map(m.k, m._mm(1), m.at(0))
    assert done(m, read_ptes, m.k, pte + 3, 2 * n - 3) == {"pte_read": (2 * n - 3) * n}


def test_a_single_store_or_clear_unfolds_its_block(two):
    m = two()
    m.fork(1, 2)
    work = done(m, lambda: m.write(3, pid=2))
    assert work["contpte_unfold"] == 1
    assert folded(m, 0, 2 * m.k.cont_nr, pid=2)[1] is True
    assert not any(pte_cont(m.k, m.entry(p, 2)) for p in range(m.k.cont_nr))
    assert folded(m, 0, 2 * m.k.cont_nr) == [True, True]


def test_a_range_that_goes_unfolds_its_edges_only(two):
    m = two()
    n = m.k.cont_nr
    assert "contpte_unfold" not in done(m, m.advise, 0, n, MADV_DONTNEED)
    assert folded(m, n, 2 * n) == [True]
    assert done(m, m.advise, 0, n + 2, MADV_DONTNEED)["contpte_unfold"] == 1
    assert not any(pte_cont(m.k, m.entry(p)) for p in range(n + 2, 2 * n))


def test_old_and_clean_are_marks_of_the_block(two):
    """clear_young_dirty_ptes: a range is widened to the edges of contiguous blocks."""
    m = two()
    n, young, dirty = m.k.cont_nr, m.k.arch.pte.young, m.k.arch.pte.dirty
    pte = pte_offset_map(m.k, m._mm(1), m.at(0))
    clear_young_dirty_ptes(m.k, pte + n - 1, 1, False)
    assert bits(m, young, 0, n) == {False}
    assert bits(m, young, n, 2 * n) == bits(m, dirty, 0, 2 * n) == {True}
    clear_young_dirty_ptes(m.k, pte + n - 1, 2, True)
    assert bits(m, young, 0, 2 * n) == bits(m, dirty, 0, 2 * n) == {False}
    assert folded(m, 0, 2 * n) == [True, True]


@pytest.mark.parametrize(("step", "kept"), [("fold", True), ("batch", True), ("basic", False)])
def test_cold_and_free_keep_blocks_that_they_change_as_a_whole(two, step, kept):
    m = two(f"contpte-{step}")
    n = 2 * m.k.cont_nr
    m.advise(0, n, MADV_COLD)
    assert bits(m, m.k.arch.pte.young, 0, n) == {False}
    assert bits(m, m.k.arch.pte.dirty, 0, n) == {True}
    m.advise(0, n, MADV_FREE)
    assert bits(m, m.k.arch.pte.dirty, 0, n) == {False}
    assert folded(m, 0, n) == [kept, kept]


@pytest.mark.parametrize(("step", "kept"), [("fold", True), ("batch", True), ("basic", False)])
def test_fork_write_protects_whole_blocks(two, step, kept):
    """The child's are written as whole blocks by every kernel."""
    m = two(f"contpte-{step}")
    n = 2 * m.k.cont_nr
    work = done(m, m.fork, 1, 2)
    assert work.get("contpte_unfold", 0) == (0 if kept else 2)
    assert folded(m, 0, n) == [kept, kept]
    assert folded(m, 0, n, pid=2) == [True, True]
    assert bits(m, m.k.arch.pte.write, 0, n) == bits(m, m.k.arch.pte.write, 0, n, pid=2) == {False}


def test_fork_of_a_part_unfolds_the_edge_unless_it_is_read_only(two):
    m = two()
    n = m.k.cont_nr
    m.advise(n // 2, 4 * n, MADV_DONTFORK)
    m.fork(1, 2)
    assert not any(pte_cont(m.k, m.entry(p)) for p in range(n))
    assert folded(m, n, 2 * n) == [True]
    m = two()
    m.fork(1, 2)
    m.advise(n // 2, 4 * n, MADV_DONTFORK)
    m.fork(1, 3)
    assert folded(m, 0, 2 * n) == [True, True]


def test_access_flags_mark_the_block_and_flush_once(two):
    m = two()
    n, young = m.k.cont_nr, m.k.arch.pte.young
    m.advise(0, 2 * n, MADV_COLD)
    pte = pte_offset_map(m.k, m._mm(1), m.at(1))
    entry = pte_mkyoung(m.k, m.entry(1))
    work = done(m, set_access_flags, m.k, pte, entry)
    assert work == {"pte_read": 2 * n, "pte_write": n, "tlbi": 1}
    assert bits(m, young, 0, n) == {True} and bits(m, young, n, 2 * n) == {False}
    assert folded(m, 0, 2 * n) == [True, True]
    assert done(m, set_access_flags, m.k, pte, entry) == {"pte_read": n}


@pytest.mark.parametrize("step", ["fold", "batch", "basic"])
def test_reuse_unfolds_and_the_loss_is_for_good(two, step):
    m = two(f"contpte-{step}")
    n = m.k.cont_nr
    m.fork(1, 2)
    m.exit(2)
    work = done(m, lambda: m.write(*range(2 * n)))
    assert work.get("contpte_unfold", 0) == (0 if step == "basic" else 2)
    assert "contpte_fold" not in work
    assert m.folio(0) == (n.bit_length(), 0)
    assert folded(m, 0, 2 * n) == [False, False]


@pytest.mark.parametrize(("step", "unfolds"), [("fold", 0), ("batch", 0), ("basic", 2)])
def test_teardown_does_not_unfold(two, step, unfolds):
    m = two(f"contpte-{step}")
    assert done(m, m.exit, 1).get("contpte_unfold", 0) == unfolds


@pytest.mark.parametrize(("step", "folds"), [("fold", True), ("batch", False), ("basic", False)])
def test_single_stores_fold_with_the_last_of_a_block(two, step, folds):
    """Up to 6.16 mprotect stores entry by entry."""
    m = two(f"contpte-{step}", defconfig="linux-6.12")
    n = m.k.cont_nr
    assert folded(m, 0, 2 * n) == [True, True]
    work = done(m, m.mprotect, 1, m.at(0), 2 * n * m.page_size, PROT_READ)
    assert work["contpte_unfold"] == 2 and work.get("contpte_fold", 0) == 2 * folds
    assert folded(m, 0, 2 * n) == [folds, folds]


def test_pages_without_rights_are_contiguous_again_when_they_get_some(two):
    m = two()
    n = m.k.cont_nr
    size = 2 * n * m.page_size
    assert m.mprotect(1, m.at(0), size, 0) == 0
    m.fork(1, 2)
    assert folded(m, 0, 2 * n, pid=2) == [False, False]
    assert m.mprotect(1, m.at(0), size, PROT_READ) == 0
    assert folded(m, 0, 2 * n) == [True, True]


PAGES = [(), ("16k",), ("64k",)]


@pytest.mark.parametrize("pages", PAGES, ids=["4k", "16k", "64k"])
@pytest.mark.parametrize("step", ["fold", "batch", "basic"])
def test_a_huge_entry_is_split_into_contiguous_ones(lab, pages, step):
    m = lab(NEW, fragments=[*pages, f"contpte-{step}"])
    m.set(f"{m.k.pmd_size >> 10}kB", "always")
    nr = 1 << m.k.pmd_order
    m.map(0, nr)
    m.write(0)
    m.advise(1, 2, MADV_DONTFORK)
    assert folded(m, 0, nr) == [True] * (nr // m.k.cont_nr)


@pytest.mark.parametrize("pages", PAGES, ids=["4k", "16k", "64k"])
@pytest.mark.parametrize("step", ["fold", "batch", "basic"])
def test_the_kernel_of_the_series_has_blocks_on_each_page_size(lab, pages, step):
    m = lab("contpte", fragments=[*pages, f"contpte-{step}"], knobs=["enabled=always"])
    n = m.k.cont_nr
    m.map(0, 2 * n)
    m.write(0, n)
    m.fork(1, 2)
    assert folded(m, 0, 2 * n, pid=2) == [True, True]
    assert folded(m, 0, 2 * n) == [step != "basic"] * 2
