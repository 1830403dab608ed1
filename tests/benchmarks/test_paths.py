# SPDX-License-Identifier: GPL-2.0-only
"""
Whole paths through the Python kernel, from Machine's call down: faults, unmapping, fork, a replay.

Each round starts from the same state, which is made untimed. The kernel's own counters are asserted,
so that what was timed is what the name says; times are not.
"""

import pytest
from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import TraceReader

from virtmm import topdir
from virtmm.kconfig import resolve
from virtmm.machine import Machine

pytestmark = pytest.mark.benchmark

SECTION = "whole paths through the Python kernel (median)"
# Issue 2, acceptance 5.
WANTED = 30_000
BASE = 1 << 36
PAGES = 8192
ROUNDS = 8
# Pages of the folio that a write fault allocates.
KERNELS = {
    "base pages": ("baseline_4k", 1, ()),
    "64K folios": ("anonfolio_basic", 16, ()),
    "64K folios, zeroed": ("anonfolio_basic", 16, ("PHYS_BACKING=y",)),
}


class Lab:
    """A machine with process 1, which has PAGES pages of anonymous memory, none of them touched."""

    def __init__(self, defconfig, folio, sets):
        self.folio = folio
        self.machine = Machine(resolve("arm64", defconfig, sets=["MEMORY_MB=1024", *sets]))
        self.size = PAGES * self.machine.page_size
        self.each_page = range(BASE, BASE + self.size, self.machine.page_size)
        self.each_folio = self.each_page[::folio]
        self.machine.spawn(1)
        self.map()

    def map(self):
        assert self.machine.mmap(1, BASE, self.size) == 0

    def unmap(self):
        assert self.machine.munmap(1, BASE, self.size) == 0

    def touch_folios(self):
        touch = self.machine.touch
        for address in self.each_folio:
            touch(1, address, True)

    def touch_pages(self):
        touch = self.machine.touch
        for address in self.each_page:
            touch(1, address, True)

    def count(self, event):
        """Return a counter of events that is kept by folio order, all orders together."""
        return sum(self.machine.events()[event].values())


@pytest.fixture(params=KERNELS)
def lab(request):
    lab = Lab(*KERNELS[request.param])
    lab.name = request.param
    with lab.machine:
        yield lab


@pytest.fixture
def run(benchmark, note):
    def measure(what, kernel, unit, number, target, setup=None, teardown=None, rounds=ROUNDS):
        """Time target(), which does so many units of work, and note units a second."""
        benchmark.group = what
        benchmark.pedantic(target, setup=setup, teardown=teardown, rounds=rounds, warmup_rounds=1)
        if benchmark.stats is not None:
            rate = number / benchmark.stats.stats.median
            benchmark.extra_info[f"{unit}_per_second"] = rate
            wanted = {"wanted": f">= {WANTED:,}"} if what == "first touch" else {}
            note(SECTION, f"{what}, {kernel}", **{"a second": f"{rate:,.0f}", "": unit}, **wanted)

    return measure


def test_first_touch(run, lab):
    def fresh():
        lab.unmap()
        lab.map()

    faults = len(lab.each_folio)
    run("first touch", lab.name, "faults", faults, lab.touch_folios, fresh)
    assert lab.count("anon_fault") % faults == 0
    assert lab.count("anon_fault") == lab.machine.vmstat()["pgfault"]


def test_touch_of_mapped_memory(run, lab):
    """No fault at all: what each access of a program costs beside its faults."""
    lab.touch_pages()
    faults = lab.count("anon_fault")
    run("touch again", lab.name, "pages", PAGES, lab.touch_pages)
    assert lab.count("anon_fault") == faults


def test_zap(run, lab):
    """munmap of memory that was touched throughout; freeing the folios is part of it."""

    def touched():
        lab.map()
        lab.touch_folios()

    lab.unmap()
    run("zap", lab.name, "pages", PAGES, lab.unmap, touched)
    assert lab.count("zap_anon") % PAGES == 0


def test_fork(run, lab):
    lab.touch_folios()
    run(
        "fork",
        lab.name,
        "pages",
        PAGES,
        lambda: lab.machine.fork(1, 2),
        teardown=lambda *_: lab.machine.exit(2),
    )
    assert lab.count("fork_anon") % PAGES == 0


def test_copy_on_write(run, lab):
    """The parent writes every page while a child holds them too."""

    def shared():
        lab.unmap()
        lab.map()
        lab.touch_folios()
        lab.machine.fork(1, 2)

    run(
        "copy on write",
        lab.name,
        "faults",
        PAGES,
        lab.touch_pages,
        shared,
        lambda *_: lab.machine.exit(2),
    )
    assert lab.count("wp_copy") % PAGES == 0


@pytest.mark.parametrize("kernel", ["baseline_4k", "anonfolio_basic", "baseline_64k"])
def test_replay(run, kernel):
    """A replay from opening the trace to the result, as virtmm compare does it for each kernel."""
    config = resolve("arm64", kernel)
    path = topdir() / "samples" / "gcc.parquet"
    results = []

    def whole():
        with TraceReader(path) as reader:
            results.append(replay(reader, config, kernel))

    with TraceReader(path) as reader:
        events = reader.num_events
    run("replay of gcc", kernel, "events", events, whole, rounds=4)
    assert all(result == results[0] for result in results)
