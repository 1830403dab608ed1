# SPDX-License-Identifier: GPL-2.0-only
"""Ranges of addresses that do not overlap, each with a value."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class RangeMap(Generic[T]):
    """Disjoint half-open ranges of addresses, each with a value, as three lists in order."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.values: list[T] = []

    def copy(self) -> Self:
        """Return an independent copy."""
        other = type(self)()
        other.starts, other.ends = self.starts.copy(), self.ends.copy()
        other.values = self.values.copy()
        return other

    def __iter__(self) -> Iterator[tuple[int, int, T]]:
        return zip(self.starts, self.ends, self.values, strict=True)

    def at(self, address: int) -> tuple[int, int, T] | None:
        """Return (start, end, value) of the range that holds address."""
        i = bisect_right(self.ends, address)
        if i == len(self.ends) or self.starts[i] > address:
            return None
        return self.starts[i], self.ends[i], self.values[i]

    def above(self, address: int) -> tuple[int, int, T] | None:
        """Return the first range that starts above address."""
        i = bisect_right(self.starts, address)
        if i == len(self.starts):
            return None
        return self.starts[i], self.ends[i], self.values[i]

    def any(self, start: int, end: int) -> bool:
        """Return whether a range shares an address with [start, end)."""
        i = bisect_right(self.ends, start)
        return i < len(self.ends) and self.starts[i] < end

    def overlapping(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return the ranges that share an address with [start, end), whole, in order."""
        i = bisect_right(self.ends, start)
        if i == len(self.ends) or self.starts[i] >= end:
            return []
        j = bisect_left(self.starts, end, i)
        return list(zip(self.starts[i:j], self.ends[i:j], self.values[i:j], strict=True))

    def cut(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Return what is in [start, end), cut to it."""
        return [
            (max(first, start), min(last, end), value)
            for first, last, value in self.overlapping(start, end)
        ]

    def clear(self, start: int, end: int) -> list[tuple[int, int, T]]:
        """Take [start, end) out and return what was there, cut to it."""
        found = self.overlapping(start, end)
        if not found:
            return found
        i = bisect_right(self.ends, start)
        self._delete(i, i + len(found))
        first, _, value = found[0]
        if first < start:
            self._insert(i, first, start, value)
            i += 1
            found[0] = (start, *found[0][1:])
        _, last, value = found[-1]
        if last > end:
            self._insert(i, end, last, value)
            found[-1] = (found[-1][0], end, value)
        return found

    def set(self, start: int, end: int, value: T) -> None:
        """Give [start, end) a value; it takes the place of what was there."""
        if start < end:
            self.clear(start, end)
            self._insert(bisect_left(self.starts, start), start, end, value)

    def _insert(self, i: int, start: int, end: int, value: T) -> None:
        self.starts.insert(i, start)
        self.ends.insert(i, end)
        self.values.insert(i, value)

    def _delete(self, first: int, end: int) -> None:
        del self.starts[first:end]
        del self.ends[first:end]
        del self.values[first:end]


def joined(ranges: Iterable[tuple[int, int, T]]) -> list[tuple[int, int, T]]:
    """Return the ranges in order; those that touch or overlap and have one value become one."""
    result: list[tuple[int, int, T]] = []
    for start, end, value in sorted(ranges, key=lambda r: r[:2]):
        if result and start <= result[-1][1] and value == result[-1][2]:
            result[-1] = (result[-1][0], max(end, result[-1][1]), value)
        elif start < end:
            result.append((start, end, value))
    return result
