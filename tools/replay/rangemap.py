# SPDX-License-Identifier: GPL-2.0-only
"""Ranges of addresses that do not overlap, each with a value."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class RangeMap(Generic[T]):
    """Disjoint half-open ranges of addresses, each with a value: (start, end, value) in order."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, T]] = []
        self._ends: list[int] = []

    def copy(self) -> Self:
        """Return an independent copy."""
        other = type(self)()
        other.ranges, other._ends = self.ranges.copy(), self._ends.copy()
        return other

    def at(self, address: int) -> tuple[int, int, T] | None:
        """Return (start, end, value) of the range that holds address."""
        i = bisect_right(self._ends, address)
        if i == len(self.ranges) or self.ranges[i][0] > address:
            return None
        return self.ranges[i]

    def above(self, address: int) -> tuple[int, int, T] | None:
        """Return the first range that starts above address."""
        i = bisect_right(self._ends, address)
        if i < len(self.ranges) and self.ranges[i][0] <= address:
            i += 1
        return self.ranges[i] if i < len(self.ranges) else None

    def any(self, start: int, end: int) -> bool:
        """Return whether a range shares an address with [start, end)."""
        i = bisect_right(self._ends, start)
        return i < len(self.ranges) and self.ranges[i][0] < end

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return the ranges that share an address with [start, end), whole, in order."""
        ranges = self.ranges
        i = j = bisect_right(self._ends, start)
        while j < len(ranges) and ranges[j][0] < end:
            j += 1
        return ranges[i:j]

    def cut(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return what is in [start, end), cut to it."""
        found = self.overlapping(start, end)
        if found:
            first, last, value = found[0]
            found[0] = max(first, start), last, value
            first, last, value = found[-1]
            found[-1] = first, min(last, end), value
        return found

    def clear(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Take [start, end) out and return what was there, cut to it."""
        found = self.cut(start, end)
        if found:
            self._put(start, end, len(found), [])
        return found

    def set(self, start: int, end: int, value: T) -> None:
        """Give [start, end) a value; it takes the place of what was there."""
        if start >= end:
            return
        ranges, i = self.ranges, bisect_right(self._ends, start)
        if i == len(ranges) or ranges[i][0] >= end:
            self._replace(i, i, [(start, end, value)])
        else:
            self._put(start, end, len(self.overlapping(start, end)), [(start, end, value)])

    def _put(self, start: int, end: int, nr: int, new: list[tuple[int, int, T]]) -> None:
        """Put what is new into [start, end), in the place of the ``nr`` > 0 ranges that overlap it."""
        i = bisect_right(self._ends, start)
        first, _, value = self.ranges[i]
        if first < start:
            new.insert(0, (first, start, value))
        _, last, value = self.ranges[i + nr - 1]
        if last > end:
            new.append((end, last, value))
        self._replace(i, i + nr, new)

    def _replace(self, i: int, j: int, new: list[tuple[int, int, T]]) -> None:
        """Replace the ranges from index i to j."""
        self.ranges[i:j] = new
        self._ends[i:j] = [end for _, end, _ in new]


def joined(ranges: Iterable[tuple[int, int, T]]) -> list[tuple[int, int, T]]:
    """Return the ranges in order; those that touch or overlap and have one value become one."""
    result: list[tuple[int, int, T]] = []
    for start, end, value in sorted(ranges, key=lambda r: r[:2]):
        if result and start <= result[-1][1] and value == result[-1][2]:
            result[-1] = (result[-1][0], max(end, result[-1][1]), value)
        elif start < end:
            result.append((start, end, value))
    return result
