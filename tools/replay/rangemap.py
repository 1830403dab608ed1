# SPDX-License-Identifier: GPL-2.0-only
"""Ranges of addresses that do not overlap, each with a value."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class RangeMap(Generic[T]):
    """Disjoint half-open ranges of addresses, each with a value."""

    starts: list[int] = field(default_factory=list)
    ranges: dict[int, tuple[int, T]] = field(default_factory=dict)  # start -> end, value

    def copy(self) -> RangeMap[T]:
        """Return an independent copy."""
        return RangeMap(self.starts.copy(), self.ranges.copy())

    def at(self, address: int) -> tuple[int, int, T] | None:
        """Return (start, end, value) of the range that holds address."""
        i = bisect_right(self.starts, address) - 1
        if i < 0:
            return None
        start = self.starts[i]
        end, value = self.ranges[start]
        return (start, end, value) if address < end else None

    def above(self, address: int) -> tuple[int, int, T] | None:
        """Return the first range that starts above address."""
        i = bisect_right(self.starts, address)
        if i == len(self.starts):
            return None
        start = self.starts[i]
        return (start, *self.ranges[start])

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return the ranges that share an address with [start, end), whole, in order."""
        i = max(bisect_right(self.starts, start) - 1, 0)
        found = []
        while i < len(self.starts) and self.starts[i] < end:
            first = self.starts[i]
            last, value = self.ranges[first]
            if last > start:
                found.append((first, last, value))
            i += 1
        return found

    def cut(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return what is in [start, end), cut to it."""
        return [
            (max(first, start), min(last, end), value)
            for first, last, value in self.overlapping(start, end)
        ]

    def clear(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Take [start, end) out and return what was there, cut to it."""
        removed = self.cut(start, end)
        for first, last, value in self.overlapping(start, end):
            del self.starts[bisect_right(self.starts, first) - 1]
            del self.ranges[first]
            if first < start:
                self._insert(first, start, value)
            if last > end:
                self._insert(end, last, value)
        return removed

    def set(self, start: int, end: int, value: T) -> None:
        """Give [start, end) a value; it takes the place of what was there."""
        if start < end:
            self.clear(start, end)
            self._insert(start, end, value)

    def _insert(self, start: int, end: int, value: T) -> None:
        insort(self.starts, start)
        self.ranges[start] = (end, value)


def joined(ranges: Iterable[tuple[int, int, T]]) -> list[tuple[int, int, T]]:
    """Return the ranges in order; those that touch or overlap and have one value become one."""
    result: list[tuple[int, int, T]] = []
    for start, end, value in sorted(ranges, key=lambda r: r[:2]):
        if result and start <= result[-1][1] and value == result[-1][2]:
            result[-1] = (result[-1][0], max(end, result[-1][1]), value)
        elif start < end:
            result.append((start, end, value))
    return result
