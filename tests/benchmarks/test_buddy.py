# SPDX-License-Identifier: GPL-2.0-only
"""
The buddy allocator: folios of one order out of large blocks and back, in C and in Python.

C is called from C (timing.c), as faults and unmapping call it.
"""

import ctypes

import pytest
from virtmm.mm.layout import ZONE_ANON, ZONE_NR_FREE, PG_anon, PG_lru
from virtmm.mm.page_alloc import folio_alloc, folio_free

from virtmm import kbuild

SECTION = "buddy allocator: folios a second"
PAGES = 8192
ROUNDS = 20
FLAGS = PG_anon | PG_lru

pytestmark = pytest.mark.benchmark
orders = pytest.mark.parametrize("order", [0, 2, 4, 9])


@pytest.fixture
def zone(booted):
    """The zone, and that a test gives back what it takes."""
    zone = booted.arena.zone
    free = zone[ZONE_NR_FREE]
    yield zone
    assert zone[ZONE_NR_FREE] == free


def python_alloc(k, order, folios):
    for i in range(len(folios)):
        folios[i] = folio_alloc(k, order, FLAGS, ZONE_ANON)


def free_all(k, folios):
    for folio in folios:
        folio_free(k, folio, ZONE_ANON)


@pytest.fixture
def core_function(booted):
    """A function of the core that is not for Python to call, so that cffi does not know it: its address."""
    path = next(p for p, (_, lib) in kbuild._loaded.items() if lib is booted.core.lib)
    core = ctypes.CDLL(str(path))
    return lambda name: ctypes.cast(getattr(core, name), ctypes.c_void_p).value


@pytest.fixture
def c_alloc(booted, timing, core_function):
    """folio_alloc() of the core in a loop: (arena, order, u64 array to fill)."""
    lib, ffi = timing
    vk = ffi.cast("void *", int(booted.core.ffi.cast("uintptr_t", booted.vk)))
    function = core_function("folio_alloc")

    def alloc(_, order, folios):
        buffer = ffi.from_buffer("uint64_t[]", folios)
        lib.alloc_core(function, vk, order, FLAGS, ZONE_ANON, buffer, len(folios))

    return alloc


@pytest.fixture
def c_free(booted, timing, core_function):
    """folio_free() of the core in a loop: (arena, u64 array of folios)."""
    lib, ffi = timing
    vk = ffi.cast("void *", int(booted.core.ffi.cast("uintptr_t", booted.vk)))
    function = core_function("folio_free")

    def free(_, folios):
        lib.free_core(function, vk, ZONE_ANON, ffi.from_buffer("uint64_t[]", folios), len(folios))

    return free


@orders
@pytest.mark.parametrize("language", ["C", "Python"])
def test_alloc(benchmark, note_rate, booted, zone, c_alloc, order, language):
    k, alloc = booted.arena, c_alloc if language == "C" else python_alloc
    benchmark.group = f"alloc, order {order}"
    folios = (ctypes.c_uint64 * (PAGES >> order))()

    def give_back():
        if folios[0]:
            free_all(k, folios)

    benchmark.pedantic(
        alloc, args=(k, order, folios), setup=give_back, rounds=ROUNDS, warmup_rounds=1
    )
    assert len(set(folios)) == len(folios) and 0 not in folios
    give_back()
    note_rate(SECTION, f"alloc, order {order}", language, folios=len(folios), pages=PAGES)


@orders
@pytest.mark.parametrize("language", ["C", "Python"])
def test_free(benchmark, note_rate, booted, zone, c_alloc, c_free, order, language):
    k, free = booted.arena, c_free if language == "C" else free_all
    benchmark.group = f"free, order {order}"
    folios = (ctypes.c_uint64 * (PAGES >> order))()
    benchmark.pedantic(
        free,
        args=(k, folios),
        setup=lambda: c_alloc(k, order, folios),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    note_rate(SECTION, f"free, order {order}", language, folios=len(folios), pages=PAGES)
