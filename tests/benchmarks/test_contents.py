# SPDX-License-Identifier: GPL-2.0-only
"""
Zeroing and copying the contents of folios, as a ratio to memset and memcpy of libc.

The tables show what mm/ pays for a call from Python. The ratio is taken apart from that, in C
(timing.c): many calls of the core's function and as many of libc's, in turns; it is the median of the
turns' ratios, so that noise that both meet cancels out. "Same folio" is one folio again and again,
"64 MiB of folios" a walk over so much memory.
"""

from statistics import median

import pytest
from virtmm.mm.ranges import PyRanges

pytestmark = pytest.mark.benchmark(max_time=0.3)

KIB = 1024
SIZES = (4, 16, 64, 256, 2048)
TURNS = 51
# Bytes that one side of a turn works on: over and over in one folio, or once through a pool of them.
WORK = 16 * 1024 * KIB
POOL = 64 * 1024 * KIB

SECTION = "zeroing and copying: speed, libc of the same run = 1.00"

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
def ratio(benchmark, note):
    """A function that interleaves core(pool, calls) and libc(pool, calls) and notes both ratios."""

    def compare(name, size, core, libc):
        found = {}
        for where, blocks, calls in (
            ("same folio", 1, WORK // size),
            ("64 MiB of folios", POOL // size, POOL // size),
        ):
            core(blocks, calls)
            turns = []
            for turn in range(TURNS):
                first, second = (core, libc) if turn % 2 else (libc, core)
                times = {first: first(blocks, calls)}
                times[second] = second(blocks, calls)
                turns.append(times[libc] / times[core])
            found[where] = median(turns)
        benchmark.extra_info["ratio_to_libc"] = found
        note(SECTION, f"{name} {size // KIB}K", **{w: f"{r:.2f}" for w, r in found.items()})

    return compare


@sizes
@pytest.mark.parametrize("fault", ["first", "middle"])
def test_clear_huge_page(benchmark, booted, timing, place, ratio, kib, fault):
    """First is what a program does that fills memory upwards; middle goes page by page throughout."""
    lib, ffi = timing
    benchmark.group = f"zero {kib}K"
    size = kib * KIB
    nr = size >> booted.arena.page_shift
    page = nr // 2 if fault == "middle" else 0
    pfn, address = place(0)
    vk = ffi.cast("void *", int(booted.core.ffi.cast("uintptr_t", booted.vk)))
    clear = function(booted, "clear_huge_page")
    ratio(
        f"zero, {fault} page",
        size,
        lambda pool, calls: lib.clear_core(clear, vk, pfn, nr, page, pool, calls),
        lambda pool, calls: lib.clear_libc(address, size, pool, calls),
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
    nr = size >> booted.arena.page_shift
    (to, to_address), (source, source_address) = place(0), place(1)
    vk = ffi.cast("void *", int(booted.core.ffi.cast("uintptr_t", booted.vk)))
    copy = function(booted, "copy_pages")
    ratio(
        "copy",
        size,
        lambda pool, calls: lib.copy_core(copy, vk, to, source, nr, pool, calls),
        lambda pool, calls: lib.copy_libc(to_address, source_address, size, pool, calls),
    )
    benchmark(booted.arena.ops.copy_pages, to, source, nr)


@sizes
def test_copy_pages_twin(benchmark, booted, place, kib):
    benchmark.group = f"copy {kib}K"
    nr = kib * KIB >> booted.arena.page_shift
    benchmark(PyRanges(booted.arena).copy_pages, place(0)[0], place(1)[0], nr)
