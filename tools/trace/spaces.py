# SPDX-License-Identifier: GPL-2.0-only
"""
The mappings of every process of a trace, followed event by event.

What is mapped where, of which kind, and from which call it came; not which pages are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from virtmm.tools.replay.rangemap import RangeMap
from virtmm.tools.trace.schema import (
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FORK,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    Row,
)

_CLONE_VM = 0x100
_MAP_SHARED = 1
_MAP_GROWSDOWN = 0x100
_MREMAP_DONTUNMAP = 4
_WRITE, _EXEC = 2, 4
STACK_LIMIT = 8 << 20  # how far below its start a stack is taken to grow

#: What a mapping is; ``kind_of`` decides.
KINDS_OF_MAPPING = (
    "heap",
    "stack",
    "anonymous",
    "shared anonymous",
    "file text",
    "file data",
    "file read-only",
    "file shared",
    "special",
)


class Mapping(NamedTuple):
    """
    What one run of addresses maps. Neighbours with equal ones are one mapping, as in the kernel.

    ``delta`` is address minus file offset, 0 without a file; ``file`` an index into the reader's.
    """

    prot: int
    shared: bool
    file: int = 0
    delta: int = 0
    special: bool = False
    heap: bool = False
    grows: bool = False


def kind_of(m: Mapping) -> str:
    """Name the kind of a mapping, one of ``KINDS_OF_MAPPING``."""
    if m.special:
        return "special"
    if not m.file:
        if m.shared:
            return "shared anonymous"
        return "heap" if m.heap else "stack" if m.grows else "anonymous"
    if m.shared:
        return "file shared"
    return "file text" if m.prot & _EXEC else "file data" if m.prot & _WRITE else "file read-only"


@dataclass
class Space:
    """
    One address space.

    Attributes:
        mappings: what is mapped.
        origins: mapped addresses -> start of the call that mapped them: page alignment counts from
            there, since a kernel with larger pages puts that start on a page.
        heap: (start, end) of brk, (0, 0) before.
        kinds: how many mappings of each kind there are.
    """

    page: int = 4096
    mappings: RangeMap[Mapping] = field(default_factory=RangeMap)
    origins: RangeMap[int] = field(default_factory=RangeMap)
    heap: tuple[int, int] = (0, 0)
    kinds: Counter[str] = field(default_factory=Counter)

    def copy(self) -> Space:
        """Return what a forked child has."""
        return Space(
            self.page, self.mappings.copy(), self.origins.copy(), self.heap, self.kinds.copy()
        )

    def at(self, address: int) -> Mapping | None:
        """Return what an access finds; a stack grows to it."""
        found = self.mappings.at(address)
        if found is not None:
            return found[2]
        above = self.mappings.above(address)
        if above is not None and above[2].grows and above[0] - address <= STACK_LIMIT:
            page = address & -self.page
            with self._counted(page, above[0]):
                self._put(page, above[0], above[2])
            self.origins.set(page, above[0], above[0])
            return above[2]
        return None

    def covers(self, start: int, end: int) -> bool:
        """Tell whether all of a range is mapped."""
        return sum(high - low for low, high, _ in self.mappings.cut(start, end)) == end - start

    @contextmanager
    def _counted(self, start: int, end: int) -> Iterator[None]:
        """Keep ``kinds`` right while a range is changed; its neighbours may merge or be cut."""
        for *_, mapping in self.mappings.overlapping(start - 1, end + 1):
            self.kinds[kind_of(mapping)] -= 1
        yield
        for *_, mapping in self.mappings.overlapping(start - 1, end + 1):
            self.kinds[kind_of(mapping)] += 1

    def _put(self, start: int, end: int, mapping: Mapping) -> None:
        """Map a range, and merge it with equal neighbours."""
        left, right = self.mappings.at(start - 1), self.mappings.at(end)
        if left is not None and left[2] == mapping:
            start = left[0]
        if right is not None and right[2] == mapping:
            end = right[1]
        self.mappings.set(start, end, mapping)

    def map(self, start: int, end: int, mapping: Mapping) -> None:
        """Map a range anew."""
        with self._counted(start, end):
            self._put(start, end, mapping)
        self.origins.set(start, end, start)

    def unmap(self, start: int, end: int) -> None:
        """Unmap a range."""
        with self._counted(start, end):
            self.mappings.clear(start, end)
        self.origins.clear(start, end)

    def protect(self, start: int, end: int, prot: int) -> None:
        """Change the protection of what is mapped in a range."""
        with self._counted(start, end):
            for low, high, mapping in self.mappings.clear(start, end):
                self._put(low, high, mapping._replace(prot=prot))

    def move(self, start: int, length: int, to: int, new_length: int, flags: int) -> None:
        """Do what mremap did."""
        old = self.mappings.at(start)
        if old is None:
            return
        mapping = old[2]
        if mapping.file:
            mapping = mapping._replace(delta=mapping.delta + to - start)
        if length and not flags & _MREMAP_DONTUNMAP:
            self.unmap(start, start + length)
        self.map(to, to + new_length, mapping)

    def set_heap(self, start: int, length: int) -> None:
        """Make the heap as long as brk did."""
        mask = self.page - 1
        before = (max(self.heap[1], start) + mask) & ~mask
        now = (start + length + mask) & ~mask
        if now > before:
            with self._counted(before, now):
                self._put(before, now, Mapping(3, shared=False, heap=True))
            self.origins.set(before, now, start & ~mask)
        elif now < before:
            self.unmap(now, before)
        self.heap = start, start + length


def mapping_of(row: Row, special: bool) -> Mapping:
    """Return what an mmap row maps."""
    flags, file = row[9], 0 if special else row[11]
    return Mapping(
        row[8] & 7,
        shared=bool(flags & _MAP_SHARED),
        file=file,
        delta=row[4] - row[10] if file else 0,
        special=special,
        grows=bool(flags & _MAP_GROWSDOWN),
    )


@dataclass
class Spaces:
    """The address spaces of a trace's living processes: pid -> Space, shared after CLONE_VM."""

    page_size: int
    live: dict[int, Space] = field(default_factory=dict)

    def apply(self, row: Row, special: bool = False) -> None:
        """Follow one event; faults change nothing. ``special``: an mmap of the kernel's own pages."""
        _, pid, _, kind, addr, length, addr2, len2, prot, flags, _, _, arg = row
        if kind == KIND_EXEC:
            self.live[pid] = Space(self.page_size)
            return
        space = self.live.get(pid)
        if space is None:
            return
        if kind == KIND_MMAP:
            space.map(addr, addr + length, mapping_of(row, special))
        elif kind == KIND_MUNMAP:
            space.unmap(addr, addr + length)
        elif kind == KIND_MPROTECT:
            space.protect(addr, addr + length, prot & 7)
        elif kind == KIND_MREMAP:
            space.move(addr, length, addr2, len2, flags)
        elif kind == KIND_BRK:
            space.set_heap(addr, length)
        elif kind == KIND_FORK:
            self.live[arg] = space if flags & _CLONE_VM else space.copy()
        elif kind == KIND_EXIT:
            del self.live[pid]
