# SPDX-License-Identifier: GPL-2.0-only
"""
Zeroing and copying the contents of folios, as a ratio to memset and memcpy of libc, and to the best method.

The tables show what mm/ pays for a call from Python. The ratio is taken apart from that, in C
(timing.c): many calls of the core's function and as many of libc's, in turns; it is the median of the
turns' ratios, so that noise that both meet cancels out. "Same folio" is one folio again and again,
"64 MiB of folios" a walk over so much memory. "Best" are libc, string instructions and vector stores,
whichever was fastest in the same turns; what boot chose stands below.
"""

import random
from statistics import median

import pytest
from virtmm.mm.ranges import PyRanges

from virtmm import methods
from virtmm.methods import choose

pytestmark = pytest.mark.benchmark(max_time=0.3)

KIB = 1024
SIZES = (4, 16, 64, 256, 2048)
TURNS = 151
# Bytes that one side works on in a turn, or one folio: over and over in the same, or on through a pool.
# Little, so that what slows the machine for a while slows all sides.
SAME, NEXT = 4 * 1024 * KIB, 512 * KIB
POOL = 64 * 1024 * KIB

SECTION = "zeroing and copying: speed, libc or the best method of the same run = 1.00"

sizes = pytest.mark.parametrize("kib", SIZES, ids=lambda kib: f"{kib}K")


def function(booted, name):
    """Return the address of a function of the core."""
    ffi = booted.core.ffi
    return int(ffi.cast("uintptr_t", ffi.addressof(booted.core.lib, name)))


@pytest.fixture
def place(booted, timing):
    """A function (number of a pool) -> (its first pfn, its host address); the memory is present."""
    lib, ffi = timing
    phys = int(booted.core.ffi.cast("uintptr_t", booted.vk.phys))
    shift = booted.arena.page_shift

    def pool(number):
        # The upper half of memory was never handed out.
        pfn = booted.arena.config.nr_pages // 2 + number * (POOL >> shift)
        address = ffi.cast("char *", phys + (pfn << shift))
        lib.clear_libc(address, POOL, 1, 1)
        return pfn, address

    return pool


@pytest.fixture
def rivals(booted, timing):
    """A function (to, source or 0, size) -> functions like libc's, of each method with cached stores."""
    core, (lib, ffi) = booted.core, timing
    run = function(booted, "method_run")

    def each(to, source, size):
        def rival(number):
            return lambda at, pool, calls: lib.run_method(
                run,
                number,
                ffi.cast("char *", to + at),
                ffi.cast("char *", source and source + at),
                size,
                pool,
                calls,
            )

        found = {}
        while (name := core.lib.method_name(len(found))) != core.ffi.NULL:
            found[len(found)] = core.ffi.string(name).decode()
        usable = core.lib.method_usable
        return [rival(n) for n, name in found.items() if usable(n) and name != "stream"]

    return each


@pytest.fixture
def ratio(benchmark, note, rivals):
    """A function that interleaves core(at, pool, calls), libc's and the methods, and notes the ratios."""

    def compare(name, size, core, libc, to, source=0):
        found = {}
        rng = random.Random(size)
        sides = [core, libc, *rivals(to, source, size)]
        for where, work in (("same folio", SAME), ("64 MiB of folios", NEXT)):
            calls = max(work // size, 1)
            step = calls * size if work == NEXT else 0
            times = [[] for _ in sides]
            at = 0
            for _ in range(TURNS):
                # Each leaves the caches in a state of its own to the next.
                for i in rng.sample(range(len(sides)), len(sides)):
                    times[i].append(sides[i](at, calls + 1 if step else 1, calls))
                    at = (at + step) % POOL
            mine, *others = map(median, times)
            found[f"{where}, libc"] = others[0] / mine
            found[f"{where}, best"] = min(others) / mine
        benchmark.extra_info["ratio"] = found
        note(SECTION, f"{name} {size // KIB}K", **{w: f"{r:.2f}" for w, r in found.items()})

    return compare


@pytest.fixture(scope="module", autouse=True)
def chosen(booted):
    """Let the core use what this host's boot chooses."""
    booted.arena.method[:8] = choose(booted.core).numbers


@pytest.mark.parametrize("what", ["zeroing", "copying"])
def test_choice(benchmark, booted, monkeypatch, note, what):
    """What boot pays once a process, and what it gets."""
    benchmark.group = "choice of methods"

    def again():
        monkeypatch.setattr(methods, "_chosen", None)
        return choose(booted.core)

    names = benchmark.pedantic(again, rounds=3).names[what]
    note(
        "methods that boot chose", what, **dict(zip(("4K", "16K", "64K", "2M"), names, strict=True))
    )


@sizes
@pytest.mark.parametrize("fault", ["first", "middle"])
def test_clear_huge_page(benchmark, booted, timing, place, ratio, kib, fault):
    """First is what a program does that fills memory upwards; middle goes page by page throughout."""
    lib, ffi = timing
    benchmark.group = f"zero {kib}K"
    size = kib * KIB
    shift = booted.arena.page_shift
    nr = size >> shift
    page = nr // 2 if fault == "middle" else 0
    pfn, address = place(0)
    vk = ffi.cast("void *", int(booted.core.ffi.cast("uintptr_t", booted.vk)))
    clear = function(booted, "clear_huge_page")
    ratio(
        f"zero, {fault} page",
        size,
        lambda at, *calls: lib.clear_core(clear, vk, pfn + (at >> shift), nr, page, *calls),
        lambda at, *calls: lib.clear_libc(address + at, size, *calls),
        int(ffi.cast("uintptr_t", address)),
    )
    benchmark(booted.arena.ops.clear_huge_page, pfn, nr, page)


@sizes
def test_clear_huge_page_twin(benchmark, booted, place, kib):
    benchmark.group = f"zero {kib}K"
    nr = kib * KIB >> booted.arena.page_shift
    benchmark(PyRanges(booted.arena).clear_huge_page, place(0)[0], nr, 0)


@sizes
def test_copy_pages(benchmark, booted, timing, place, ratio, kib):
    lib, ffi = timing
    benchmark.group = f"copy {kib}K"
    size = kib * KIB
    shift = booted.arena.page_shift
    nr = size >> shift
    (to, to_address), (source, source_address) = place(0), place(1)
    vk = ffi.cast("void *", int(booted.core.ffi.cast("uintptr_t", booted.vk)))
    copy = function(booted, "copy_pages")
    ratio(
        "copy",
        size,
        lambda at, *calls: lib.copy_core(
            copy, vk, to + (at >> shift), source + (at >> shift), nr, *calls
        ),
        lambda at, *calls: lib.copy_libc(to_address + at, source_address + at, size, *calls),
        int(ffi.cast("uintptr_t", to_address)),
        int(ffi.cast("uintptr_t", source_address)),
    )
    benchmark(booted.arena.ops.copy_pages, to, source, nr)


@sizes
def test_copy_pages_twin(benchmark, booted, place, kib):
    benchmark.group = f"copy {kib}K"
    nr = kib * KIB >> booted.arena.page_shift
    benchmark(PyRanges(booted.arena).copy_pages, place(0)[0], place(1)[0], nr)
