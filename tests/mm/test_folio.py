# SPDX-License-Identifier: GPL-2.0-only
"""New anonymous folios are zeroed in the architecture's way, memory tags included (patches 1 and 2)."""

import shutil
from types import SimpleNamespace

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD, RangeOps
from virtmm.mm.folio import (
    free_anon_folio,
    vma_alloc_movable_folio,
    vma_alloc_zeroed_movable_folio,
)
from virtmm.mm.page_alloc import GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE_LIGHT
from virtmm.mm.ranges import PyRanges
from virtmm.mm.split import deferred_split_scan
from virtmm.mm.vm_flags import (
    EINVAL,
    MADV_HUGEPAGE,
    MAP_SHARED,
    PROT_MTE,
    PROT_READ,
    PROT_WRITE,
)
from virtmm.mm.vma import vma_lookup

from virtmm import topdir

RW = PROT_READ | PROT_WRITE
UPWARDS = list(range(16))
LAST_5 = [15, 14, 13, 12, 11, 10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5]


class Memory:
    """The arena's memory, noting which pages are zeroed, in order."""

    def __init__(self, phys, words):
        self.phys, self.words, self.zeroed = phys, words, []

    def __setitem__(self, place, value):
        if isinstance(place, slice):
            self.zeroed += range(place.start // self.words, place.stop // self.words)
        self.phys[place] = value

    def __getitem__(self, place):
        return self.phys[place]


def zeroing(m, page, write=True):
    """Touch a page and return the pages of its folio in the order in which they were zeroed."""
    k = m.k
    memory = Memory(k.phys, 1 << k.table_shift)
    ops, phys = k.ops, k.phys
    k.phys, k.ops = memory, PyRanges(k)
    try:
        assert m.touch(1, m.at(page), write) == 0
    finally:
        k.phys, k.ops = phys, ops
    folio = m.word(page, layout.PAGE_HEAD)
    order = m.head(page, layout.PAGE_ORDER)
    return [p - folio for p in memory.zeroed if folio <= p < folio + (1 << order)]


def boot(lab, defconfig, *sets, **kw):
    m = lab(defconfig, "PHYS_BACKING=y", "MEMORY_MB=256", "FAST_FAULT=n", *sets, **kw)
    m.map(0, 64)
    m.write(63)  # so that tables are there
    return m


# The order of zeroing


@pytest.mark.parametrize("sets", [(), ("EXPERT=y", "ANON_CLEAR_LAST=n")])
def test_the_series_has_the_allocator_zero_on_arm64(lab, sets):
    assert zeroing(boot(lab, "anonfolio_basic", *sets), 5) == UPWARDS


@pytest.fixture
def riscv(tmp_path):
    """Return a folder of riscv, which zeroes by clear_huge_page(), opted in with the orders of arm64."""
    folder = tmp_path / "riscv"
    shutil.copytree(topdir() / "arch" / "riscv", folder)
    text = (folder / "Kconfig").read_text()
    select = "def_bool y\n\tselect ARCH_SUPPORTS_LARGE_ANON_FOLIO\n"
    text = text.replace("def_bool y\n", select, 1)
    for kind in ("NOTHP", "THP"):
        text += f"\nconfig ARCH_LARGE_ANON_FOLIO_{kind}_ORDER_MAX\n\tint\n\tdefault 4\n"
    (folder / "Kconfig").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("sets", "order"),
    [((), LAST_5), (("EXPERT=y", "ANON_CLEAR_LAST=n"), UPWARDS)],
    ids=["patch 1", "without it"],
)
def test_elsewhere_the_faulting_page_is_last(lab, riscv, sets, order):
    m = boot(lab, "baseline_4k", "LARGE_ANON_FOLIO=y", *sets, arch="riscv", arch_dir=riscv)
    assert zeroing(m, 5) == order


@pytest.mark.parametrize("arch", ["arm64", "x86", "riscv"])
def test_mainline_zeroes_large_folios_the_generic_way(lab, arch):
    m = boot(lab, "linux-6.12", arch=arch, knobs=("64kB=always",))
    assert zeroing(m, 5) == LAST_5


def test_a_huge_page_is_zeroed_the_generic_way_in_any_kernel(lab):
    m = lab("anonfolio_basic", "PHYS_BACKING=y", "MEMORY_MB=256", "FAST_FAULT=n", arch="arm64")
    m.map(0, 1024)
    m.advise(0, 1024, MADV_HUGEPAGE)
    k, calls = m.k, []
    ops = k.ops
    k.ops = SimpleNamespace(
        **{name: getattr(ops, name) for name in dir(RangeOps) if name[0] != "_"}
    )
    k.ops.clear_huge_page = lambda *args: calls.append(args)
    m.write(700)
    k.ops = ops
    assert [nr_fault for _, *nr_fault in calls if nr_fault[0] > 1] == [[512, 700 - 512]]


def test_what_was_there_before_is_gone(lab):
    """The C loops: a page that comes back from the allocator reads as zero."""
    m = boot(lab, "anonfolio_basic")
    for page in range(16):
        m.store(1, m.at(page) + 7, 0xA5)
    m.unmap(0, 64)
    m.map(0, 64)
    assert not any(m.load(1, m.at(page) + 7) for page in range(16))


def test_the_allocation_flags_say_whether_to_reclaim(lab):
    m = boot(lab, "anonfolio_basic")
    asked = []
    m.k.shrinkers[:] = [lambda k: asked.append(k)]
    vma = vma_lookup(m.k, m._mm(1), m.at(0))
    while vma_alloc_movable_folio(m.k, 10, GFP_TRANSHUGE_LIGHT):
        pass
    for gfp, times in ((GFP_TRANSHUGE_LIGHT, 0), (GFP_HIGHUSER_MOVABLE, 1)):
        assert vma_alloc_zeroed_movable_folio(m.k, vma, m.at(0), gfp, 10) == 0
        assert len(asked) == times
    for pfn in range(0, m.k.zone[layout.ZONE_FRONTIER], 1024):
        if m.k.page[pfn * PAGE_RECORD + layout.PAGE_ORDER] == 10:
            free_anon_folio(m.k, pfn)


# Memory tags


def tagged(m, first, end):
    return [
        bool(m.word(page, layout.PAGE_FLAGS) & layout.PG_mte_tagged) for page in range(first, end)
    ]


def tags(m):
    work = m.work()
    return work["tag_clear"], work["tag_sync"]


def test_tags_go_with_the_page_where_a_mapping_has_them(lab):
    m = lab("anonfolio_basic")
    m.map(0, 32, prot=RW | PROT_MTE)
    m.write(5, 16)
    assert (tags(m), m.orders(0, 32)) == ((32, 0), [4] * 32)
    assert tagged(m, 0, 32) == [True] * 32
    m.map(32, 64)
    m.write(40)
    assert tags(m) == (32, 0) and tagged(m, 32, 48) == [False] * 16
    m.unmap(0, 32)
    m.map(0, 16)
    m.write(0)
    assert tagged(m, 0, 16) == [False] * 16, "a page that is used again has no tags"


def test_mainline_clears_the_tags_of_a_large_folio_apart(lab):
    m = lab("linux-6.12", knobs=("64kB=always",))
    m.map(0, 24, prot=RW | PROT_MTE)
    m.write(5)
    assert tags(m) == (0, 16)
    m.write(20)
    assert tags(m) == (1, 16), "one page: the architecture's own way, as ever"


def test_mprotect_gives_tags_and_never_takes_them(lab):
    m = lab("anonfolio_basic")
    m.map(0, 16)
    assert m.mprotect(1, m.at(0), 16 * m.page_size, RW | PROT_MTE) == 0
    assert m.mprotect(1, m.at(0), 16 * m.page_size, RW) == 0
    m.write(3)
    assert tags(m) == (16, 0)


def test_tags_are_for_anonymous_memory_on_arm64(lab):
    m = lab("baseline_4k")
    file = m.open(1, 1 << 20)
    size = 4 * m.page_size
    assert m.mmap(1, m.at(0), size, RW | PROT_MTE, file=file) == -EINVAL
    assert m.mmap(1, m.at(0), size, RW, file=file) == 0
    assert m.mprotect(1, m.at(0), size, RW | PROT_MTE) == -EINVAL
    assert m.mmap(1, m.at(8), size, RW | PROT_MTE, MAP_SHARED) == 0
    assert m.mprotect(1, m.at(8), size, RW | PROT_MTE) == 0
    m = lab("baseline_4k", arch="x86")
    m.map(0, 4, prot=RW | PROT_MTE)
    m.write(0)
    assert tags(m) == (0, 0) and not m.word(0, layout.PAGE_FLAGS) & layout.PG_mte_tagged


def test_a_split_leaves_each_page_its_tags(lab):
    m = lab("anonfolio_basic")
    m.map(0, 16, prot=RW | PROT_MTE)
    m.write(0)
    m.unmap(0, 4)
    assert deferred_split_scan(m.k)
    assert m.orders(4, 16) == [0] * 12
    assert tagged(m, 4, 16) == [True] * 12
