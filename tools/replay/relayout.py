# SPDX-License-Identifier: GPL-2.0-only
"""
Lay a trace out anew for base pages larger than those it was recorded with.

A program that runs on a kernel with 16K or 64K pages is given other addresses: every mapping starts
and ends on a page of its own. The rule, for a recording page r and a larger page S:

1. A new mapping gets whole pages of S for itself. Its first byte keeps its position in the file modulo S,
   so that file pages hold what they would hold. It goes
   directly below or above a neighbour that it touched in the recording, else where it was, rounded
   down to S; if that is taken, to the nearest free place below, else above.
2. A mapping made over part of another stays in place if it begins and ends on pages of S there;
   otherwise rule 1 gives it new pages (ELF segments 4K apart, which a linker for large pages puts apart).
3. An address keeps its distance to the start of its mapping, through mremap and brk too.
4. A page of S lives as long as any recorded page in it. munmap, MADV_DONTNEED and the like, and
   mprotect without write access, take only pages of S none of whose other recorded pages is in
   use; mprotect with write access takes every page of S it touches.

SIMPLIFIED: the program's own choices that depend on the page size (malloc's trim and growth steps, stack and
arena sizes) stay as recorded; kernels with larger pages are shown with slightly more partly used
pages than a program built for them has.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field

Span = tuple[int, int, int]


@dataclass
class RangeMap:
    """Disjoint half-open ranges of addresses, each with a value."""

    starts: list[int] = field(default_factory=list)
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)  # start -> end, value

    def copy(self) -> RangeMap:
        """Return an independent copy."""
        return RangeMap(self.starts.copy(), self.ranges.copy())

    def at(self, address: int) -> Span | None:
        """Return (start, end, value) of the range that holds address."""
        i = bisect_right(self.starts, address) - 1
        if i < 0:
            return None
        start = self.starts[i]
        end, value = self.ranges[start]
        return (start, end, value) if address < end else None

    def overlapping(self, start: int, end: int) -> list[Span]:
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

    def clear(self, start: int, end: int) -> list[Span]:
        """Take [start, end) out and return what was there, cut to it."""
        removed = []
        for first, last, value in self.overlapping(start, end):
            del self.starts[bisect_right(self.starts, first) - 1]
            del self.ranges[first]
            if first < start:
                self._insert(first, start, value)
            if last > end:
                self._insert(end, last, value)
            removed.append((max(first, start), min(last, end), value))
        return removed

    def set(self, start: int, end: int, value: int) -> None:
        """Give [start, end) a value; it takes the place of what was there."""
        if start < end:
            self.clear(start, end)
            self._insert(start, end, value)

    def _insert(self, start: int, end: int, value: int) -> None:
        insort(self.starts, start)
        self.ranges[start] = (end, value)

    def above(self, address: int) -> Span | None:
        """Return the first range that starts above address."""
        i = bisect_right(self.starts, address)
        if i == len(self.starts):
            return None
        start = self.starts[i]
        return (start, *self.ranges[start])


class AddressSpace:
    """
    One address space in both layouts, all in bytes.

    ``pieces`` maps recorded addresses to the distance to their new ones; ``taken`` holds the new
    pages in use. Every method takes recorded addresses and returns new ones.
    """

    def __init__(self, page_size: int, task_size: int) -> None:
        self.page = page_size
        self.top = task_size
        self.pieces = RangeMap()
        self.taken = RangeMap()
        self.stacks: set[int] = set()  # distances of pieces that grow down
        self.heap = 0  # recorded start of the heap
        self.heap_new = 0

    def copy(self) -> AddressSpace:
        """Return what a forked child has."""
        child = AddressSpace(self.page, self.top)
        child.pieces, child.taken = self.pieces.copy(), self.taken.copy()
        child.stacks = self.stacks.copy()
        child.heap, child.heap_new = self.heap, self.heap_new
        return child

    def _down(self, address: int) -> int:
        return address // self.page * self.page

    def _up(self, address: int) -> int:
        return -(-address // self.page) * self.page

    def _free(self, start: int, end: int) -> bool:
        return start >= self.page and end <= self.top and not self.taken.overlapping(start, end)

    def _place(self, wants: list[int], length: int) -> int:
        """Return the start of ``length`` free bytes: the first of ``wants`` that is free, or near it."""
        for want in wants:
            if self._free(want, want + length):
                return want
        at = min(wants[-1], self.top - length)
        while at >= self.page:
            blocking = self.taken.overlapping(at, at + length)
            if not blocking:
                return at
            at = self._down(blocking[0][0] - length)
        at = wants[-1]
        while blocking := self.taken.overlapping(at, at + length):
            at = self._up(blocking[-1][1])
        return at

    def _whole_pages(self, removed: list[Span]) -> list[tuple[int, int]]:
        """
        Return the new ranges of pages that no recorded page uses any longer, merged where they touch.

        ``removed`` has left ``pieces`` already.
        """
        ranges: list[tuple[int, int]] = []
        for start, end, shift in removed:
            low, high = self._down(start + shift), self._up(end + shift)
            if self._used(low - shift, start, shift):
                low += self.page
            if self._used(end, high - shift, shift):
                high -= self.page
            if ranges and ranges[-1][1] == low and low < high:
                ranges[-1] = (ranges[-1][0], high)
            elif low < high:
                ranges.append((low, high))
        return ranges

    def _used(self, start: int, end: int, shift: int) -> bool:
        return start < end and any(v == shift for *_, v in self.pieces.overlapping(start, end))

    def mmap(self, start: int, length: int, offset: int) -> tuple[int, int, list[tuple[int, int]]]:
        """
        Return (new start, new length, new ranges to unmap first) of a mapping of a file at offset.

        The new file offset is ``offset`` rounded down to the page.
        """
        end = start + length
        removed = self.pieces.clear(start, end)
        unmap = self._whole_pages(removed)
        inside = offset % self.page
        if (
            len({shift for *_, shift in removed}) == 1
            and removed[0][0] == start
            and removed[-1][1] == end
        ):
            new = start + removed[0][2]
            if (
                new % self.page == inside == 0
                and (self._down(new), self._up(end + removed[0][2])) in unmap
            ):
                self.pieces.set(start, end, removed[0][2])
                return new, self._up(length), []
        for low, high in unmap:
            self.taken.clear(low, high)
        size = self._up(inside + length)
        new = self._place(self._wants(start, end, size), size)
        self.taken.set(new, new + size, 0)
        self.pieces.set(start, end, new + inside - start)
        return new, size, unmap

    def _wants(self, start: int, end: int, size: int) -> list[int]:
        wants = []
        above = self.pieces.at(end)
        if above and above[0] == end:
            wants.append(self._down(end + above[2]) - size)
        below = self.pieces.at(start - 1) if start else None
        if below and below[1] == start:
            wants.append(self._up(start + below[2]))
        return [*wants, self._down(start)]

    def stack(self, start: int) -> None:
        """Let the mapping that begins at start grow down by faults."""
        piece = self.pieces.at(start)
        if piece:
            self.stacks.add(piece[2])

    def munmap(self, start: int, length: int) -> list[tuple[int, int]]:
        """Return the new ranges to unmap."""
        ranges = self._whole_pages(self.pieces.clear(start, start + length))
        for low, high in ranges:
            self.taken.clear(low, high)
        return ranges

    def inside(self, start: int, length: int) -> list[tuple[int, int]]:
        """Return the new ranges of pages all of whose recorded pages lie in the range."""
        kept = self.pieces.clear(start, start + length)
        ranges = self._whole_pages(kept)
        for span in kept:
            self.pieces.set(*span)
        return ranges

    def around(self, start: int, length: int) -> list[tuple[int, int]]:
        """Return the new ranges of pages any of whose recorded pages lies in the range."""
        end = start + length
        ranges: list[tuple[int, int]] = []
        for first, last, shift in self.pieces.overlapping(start, end):
            low = self._down(max(first, start) + shift)
            high = self._up(min(last, end) + shift)
            if ranges and ranges[-1][1] >= low >= ranges[-1][0]:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], high))
            else:
                ranges.append((low, high))
        return ranges

    def brk(self, start: int, length: int) -> tuple[int, int]:
        """Return the new (start, end) of the heap."""
        if start != self.heap:
            self.heap = start
            self.heap_new = self._place(self._wants(start, start + 1, self.page), self.page)
        shift = self.heap_new - start
        old = self.pieces.at(start)
        if old and old[2] == shift:
            self.pieces.clear(start, old[1])
            self.taken.clear(self.heap_new, self._up(old[1] + shift))
        self.pieces.set(start, start + length, shift)
        self.taken.set(self.heap_new, self._up(self.heap_new + length), 0)
        return self.heap_new, self.heap_new + length

    def mremap(
        self, start: int, old_len: int, to: int, new_len: int, keep: bool
    ) -> tuple[tuple[int, int, int, int] | None, list[tuple[int, int]]]:
        """
        Return ((new start, old length, new target, new length) or None, new ranges to unmap first).

        Args:
            keep: the old range stays mapped (MREMAP_DONTUNMAP).
        """
        piece = self.pieces.at(start)
        if piece is None:
            return None, []
        shift = piece[2]
        unmap = self.munmap(to, new_len) if to != start else []
        removed = [s for s in self.pieces.clear(start, start + old_len) if s[2] == shift]
        whole = self._whole_pages(removed)
        inside = (start + shift) % self.page
        if to == start and new_len <= old_len:
            self.pieces.set(start, start + new_len, shift)
            tail = self._whole_pages([(start + new_len, start + old_len, shift)])
            for low, high in tail:
                self.taken.clear(low, high)
            return None, tail
        if not whole:
            self.pieces.set(to, to + min(old_len, new_len), start + shift - to)
            return None, unmap
        low, high = whole[0][0], whole[-1][1]
        size = self._up(inside + new_len)
        if to == start and self._free(high, low + size):
            new = low
        else:  # the source is still there: the two must not overlap
            new = self._place(self._wants(to, to + new_len, size), size)
        if keep:
            self.pieces.set(start, start + old_len, shift)
        else:
            self.taken.clear(low, high)
        self.taken.set(new, new + size, 0)
        self.pieces.set(to, to + new_len, new + inside - to)
        return (low, high - low, new, size), unmap

    def address(self, address: int) -> int | None:
        """Return the new address of an access; None when the recording has nothing mapped there."""
        piece = self.pieces.at(address)
        if piece:
            return address + piece[2]
        above = self.pieces.above(address)
        if above and above[2] in self.stacks:
            new = self._down(address + above[2])
            self.pieces.set(new - above[2], above[0], above[2])
            self.taken.set(new, self._up(above[0] + above[2]), 0)
            return address + above[2]
        return None
