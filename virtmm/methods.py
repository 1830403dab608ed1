# SPDX-License-Identifier: GPL-2.0-only
"""
Boot stage: choose how this host zeroes and copies memory, by measuring once a process.

What has been measured is speed only: whichever method csrc/zero.c uses, memory is the same after it.
"""

from __future__ import annotations

import mmap
from array import array
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from virtmm.mm.layout import METHOD_CLEAR, METHOD_COPY, METHOD_SIZE_1, METHOD_SIZE_2, METHOD_SIZE_3

if TYPE_CHECKING:
    from virtmm.kbuild import Core

#: Bytes that each class of sizes is measured with.
SIZES = (4096, METHOD_SIZE_1, METHOD_SIZE_2, 2 * METHOD_SIZE_3)
# More than a core's own caches hold, so that a block is in none of them when its turn comes again.
_POOL = 8 << 20
_WORK = 256 << 10
_TURNS = 3
# Differences below this are noise, and the next boot would choose otherwise.
_TIE = 1.03


class Choice(NamedTuple):
    """
    What was chosen.

    Attributes:
        numbers: for the array ``method``: the methods by class of size, of zeroing and of copying.
        names: "zeroing" and "copying" -> method name by class of size.
    """

    numbers: array[int]
    names: dict[str, tuple[str, ...]]


_chosen: Choice | None = None


def choose(core: Core) -> Choice:
    """
    Return the methods for this host; measured when the first machine with contents boots (20 ms).

    Memory just freed is in the cache and fresh memory is not, and a method may be good at one only. So
    the choice is the one whose worse case of the two is nearest to the best method's.
    """
    global _chosen
    if _chosen is None:
        with mmap.mmap(-1, 2 * _POOL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pool:
            buffer = core.ffi.from_buffer("char[]", pool)
            # The first touch of each page is the host's work, and none of the methods'.
            core.lib.method_run(0, buffer, core.ffi.NULL, 2 * _POOL, 0, 1)
            names: list[str] = []
            while (name := core.lib.method_name(len(names))) != core.ffi.NULL:
                names.append(core.ffi.string(name).decode())
            usable = [n for n in range(len(names)) if core.lib.method_usable(n)]
            numbers = array("Q", [0] * 8)
            for source, first in ((core.ffi.NULL, METHOD_CLEAR), (buffer + _POOL, METHOD_COPY)):
                for i, size in enumerate(SIZES):
                    times = _times(core, buffer, source, size, usable)
                    numbers[first + i] = nearest_to_best(times)
            core.ffi.release(buffer)
        found = {
            what: tuple(names[n] for n in numbers[first : first + len(SIZES)])
            for what, first in (("zeroing", METHOD_CLEAR), ("copying", METHOD_COPY))
        }
        _chosen = Choice(numbers, found)
    return _chosen


def nearest_to_best(times: dict[int, tuple[int, int]]) -> int:
    """
    Return the method whose larger ratio to the shortest time of a column is smallest.

    Of several that are as good as each other the first of csrc/zero.c, which begins with libc's.
    """
    best = [max(min(column), 1) for column in zip(*times.values(), strict=True)]
    worst = {n: max(t / b for t, b in zip(times[n], best, strict=True)) for n in times}
    return min(n for n in times if worst[n] <= min(worst.values()) * _TIE)


def _times(
    core: Core, to: Any, source: Any, size: int, usable: list[int]
) -> dict[int, tuple[int, int]]:
    """Return method -> nanoseconds for the same work in the cache, and not; the shortest of each."""
    run, blocks = core.lib.method_run, max(_WORK // size, 1)
    hot_blocks = max(4 * _WORK // size, 1)
    found = dict.fromkeys(usable, (1 << 60, 1 << 60))
    at = 0
    for _ in range(_TURNS):
        for n in usable:
            copy = source != core.ffi.NULL
            start = perf_counter_ns()
            run(n, to + at, source + at if copy else source, size, size, blocks)
            cold = perf_counter_ns()
            run(n, to + at, source + at if copy else source, size, 0, hot_blocks)
            hot = perf_counter_ns()
            found[n] = min(found[n][0], hot - cold), min(found[n][1], cold - start)
            at = (at + size * blocks) % _POOL
    return found
