# SPDX-License-Identifier: GPL-2.0-only
"""
Boot stage: choose how this host zeroes and copies memory, by measuring once a process.

What has been measured is speed only: whichever method csrc/zero.c uses, memory is the same after it.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Mapping, Sequence
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from virtmm.mm.layout import METHOD_CLEAR, METHOD_COPY, METHOD_SIZE_1, METHOD_SIZE_2, METHOD_SIZE_3

if TYPE_CHECKING:
    from virtmm.kbuild import Core

#: Bytes that each class of sizes is measured with.
SIZES = (4096, METHOD_SIZE_1, METHOD_SIZE_2, METHOD_SIZE_3)
# More than a core's own caches hold, so that a block is in none of them when its turn comes again.
_POOL = 8 << 20
#: Bytes that a method zeroes or copies in its turn, and those in the cache, which take less time.
_WORK, _HOT = 128 << 10, 1 << 20
_TURNS, _LONG_TURNS = 21, 9  # the second where a block is more than that
#: After so many turns methods are left out whose time is so many times another's.
_TRIAL, _HOPELESS = 2, 1.25
# No more than this may libc's method be behind; less is noise, and the next boot would choose otherwise.
_TIE = 1.05


#: Of each method one figure by column.
Times = Mapping[int, Sequence[float]]


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
    Return the methods for this host; measured when the first machine with contents boots (30 ms).

    Memory just freed is in the cache and fresh memory is not, and a method may be good at one only. So
    the choice is the one whose worse case of the two is nearest to the best method's; where libc's is
    within 5 percent of that, libc's.
    """
    global _chosen
    if _chosen is None:
        with mmap.mmap(-1, 2 * _POOL, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pool:
            pool.madvise(mmap.MADV_HUGEPAGE)  # as the machine's memory has
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


def nearest_to_best(times: Times) -> int:
    """
    Return the method whose larger ratio to the shortest time of a column is smallest.

    It is the first of csrc/zero.c, libc's, unless that is clearly worse.
    """
    worst = _worst_ratios(times)
    best = min(worst, key=lambda n: worst[n])
    first = min(worst)
    return first if worst[first] <= worst[best] * _TIE else best


def _worst_ratios(times: Times) -> dict[int, float]:
    """Return of each method the larger ratio to the shortest time of a column."""
    shortest = [min(column) for column in zip(*times.values(), strict=True)]
    return {n: max(t / s for t, s in zip(times[n], shortest, strict=True)) for n in times}


def _times(core: Core, to: Any, source: Any, size: int, usable: list[int]) -> Times:
    """
    Return method -> its time for the same work in the cache, and not; the first one's = 1.

    Medians of what neighbouring turns took in relation: what slows the host for a while slows all. The
    shortest would be of a block that by chance was in a cache, which takes a third of what others do.
    """
    run, blocks, hot_blocks = core.lib.method_run, max(_WORK // size, 1), max(_HOT // size, 1)
    copy = source != core.ffi.NULL
    seen: dict[int, list[tuple[int, int]]] = {n: [] for n in usable}
    at = 0
    for turn in range(_LONG_TURNS if size > _WORK else _TURNS):
        if turn == _TRIAL:
            worst = _worst_ratios(_relative(seen))
            most = min(worst.values()) * _HOPELESS
            seen = {n: seen[n] for n in seen if n == usable[0] or worst[n] <= most}
        # Forwards and backwards, as what ran before leaves its traces in the caches.
        for n in sorted(seen, reverse=turn % 2 == 1):
            place = to + at, source + at if copy else source
            start = perf_counter_ns()
            run(n, *place, size, size, blocks)
            cold = perf_counter_ns()
            run(n, *place, size, 0, hot_blocks)
            hot = perf_counter_ns()
            seen[n].append((hot - cold, cold - start))
            at = (at + size * blocks) % _POOL
    return _relative(seen)


def _relative(seen: Mapping[int, Sequence[tuple[int, int]]]) -> Times:
    """Return method -> by column the median of its turns' ratios to the first method's."""
    first = list(zip(*seen[min(seen)], strict=True))
    return {
        n: [
            median(t / max(f, 1) for t, f in zip(column, own, strict=True))
            for column, own in zip(zip(*turns, strict=True), first, strict=True)
        ]
        for n, turns in seen.items()
    }
