# SPDX-License-Identifier: GPL-2.0-only
"""Zeroing and copying by each method that this CPU has, and the order of pages."""

import ctypes
import faulthandler
import mmap
import os

import pytest
from virtmm.mm.layout import METHOD_CLEAR, METHOD_SIZE_3

from virtmm.boot import boot
from virtmm.kconfig import resolve

CLASSES = 4
#: Pages of the largest run: 4K pages of the class of the largest sizes.
PAGES = METHOD_SIZE_3 // 4096 + 3


@pytest.fixture(scope="module")
def booted():
    booted = boot(resolve("arm64", "baseline_4k", sets=["MEMORY_MB=64", "PHYS_BACKING=y"]))
    yield booted
    booted.close()


def usable(lib, ffi):
    """Return number -> name of the methods that can run here."""
    found = {}
    number = 0
    while (name := lib.method_name(number)) != ffi.NULL:
        if lib.method_usable(number):
            found[number] = ffi.string(name).decode()
        number += 1
    return found


def test_libc_is_the_first_and_every_cpu_has_vectors(booted):
    found = usable(booted.core.lib, booted.core.ffi)
    assert found[0] == "libc"
    assert "vector" in found.values()
    assert not booted.core.lib.method_usable(len(found) + 100)


@pytest.mark.parametrize("nr", (1, 4, 16, 17, PAGES))
def test_each_method_zeroes_and_copies_just_those_pages(booted, nr):
    k, ops = booted.arena, booted.arena.ops
    first = k.config.nr_pages - 3 * PAGES
    before = k.method[: 2 * CLASSES].tolist()
    words = 1 << k.table_shift
    memory = k.phys[first * words : (first + nr + 2) * words].cast("B")
    source = k.phys[(first + PAGES + 2) * words : (first + PAGES + 2 + nr) * words].cast("B")
    size = k.page_size
    try:
        for number, name in usable(booted.core.lib, booted.core.ffi).items():
            for i in range(2 * CLASSES):
                k.method[METHOD_CLEAR + i] = number
            for fault in {None, 0, nr // 2, nr - 1}:
                memory[:] = b"\xa5" * len(memory)
                if fault is None:
                    ops.clear_pages(first + 1, nr)
                else:
                    ops.clear_huge_page(first + 1, nr, fault)
                expected = b"\xa5" * size + bytes(nr * size) + b"\xa5" * size
                assert memory == expected, (name, fault)
            content = os.urandom(nr * size)
            source[:] = content
            ops.copy_pages(first + 1, first + PAGES + 2, nr)
            assert memory == b"\xa5" * size + content + b"\xa5" * size, name
    finally:
        for i, number in enumerate(before):
            k.method[METHOD_CLEAR + i] = number


@pytest.mark.parametrize("method", ("libc", "vector", "stream"))
@pytest.mark.parametrize("fault", (0, 3, 8, 15))
def test_the_faulting_page_comes_last(booted, fault, method):
    """A process for which it is read-only dies of it, and has zeroed all others by then."""
    nr, size = 16, mmap.PAGESIZE
    ffi, lib = booted.core.ffi, booted.core.lib
    # A CPU without stores that go past the caches has libc's method once more here.
    numbers = {name: number for number, name in usable(lib, ffi).items()}
    chosen = ffi.new("uint64_t[]", [numbers.get(method, 0)] * 2 * CLASSES)
    with mmap.mmap(-1, nr * size, flags=mmap.MAP_SHARED) as memory:
        memory[:] = b"\xa5" * nr * size
        buffer = ffi.from_buffer(memory)
        child = os.fork()
        if not child:
            faulthandler.disable()
            address = int(ffi.cast("uintptr_t", buffer)) + fault * size
            ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), 1)
            vk = ffi.new("struct vk *")
            vk.phys, vk.method = ffi.cast("uint64_t *", buffer), chosen
            lib.clear_huge_page(vk, 0, nr * size // 4096, fault * size // 4096)
            os._exit(0)
        assert os.waitpid(child, 0)[1] != 0
        left = [i for i in range(nr) if memory[i * size : (i + 1) * size] != bytes(size)]
        assert left == [fault]
        ffi.release(buffer)
