# SPDX-License-Identifier: GPL-2.0-only
"""
Whether a fault was a read or a write, where the capture does not say.

The software event of a page fault has the address and no more. What can be known: memory that may not
be written was read; memory that may be was written, for a first touch nearly always is; but when the
same page faults again, though nothing happened to it meanwhile, the first touch was a read (the
kernel gave it the zero page, or the file's) and the second the write.

SIMPLIFIED: a page that is only ever read, in memory that may be written, counts as written; so does,
of two threads that touch a page at once, each second one as proof that the first had read it.
"""

from __future__ import annotations

from array import array
from typing import Any

from virtmm.tools.replay.rangemap import RangeMap
from virtmm.tools.trace.schema import (
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
)

_READ, _WRITE = 1, 2
_CLONE_VM = 0x100
_MAP_GROWSDOWN = 0x100
_MREMAP_DONTUNMAP = 4
_DISCARDS = (4, 8, 9)  # MADV_DONTNEED, FREE, REMOVE

Row = tuple[Any, ...]


class _Space:
    """An address space: (protection, grows down) by address; pages touched -> number of the fault."""

    def __init__(self, other: _Space | None = None) -> None:
        self.prot: RangeMap[tuple[int, int]] = other.prot.copy() if other else RangeMap()
        self.touched: dict[int, int] = {}
        self.heap: int = other.heap if other else 0

    def at(self, address: int) -> int:
        """Return the protection that an access meets."""
        found = self.prot.at(address)
        if found is None:
            found = self.prot.above(address)
            return found[2][0] if found and found[2][1] else 0
        return found[2][0]

    def forget(self, start: int, end: int, shift: int) -> None:
        """Take it that the pages of a range will fault anew, whatever came before."""
        first, last = start >> shift, (end - 1 >> shift) + 1
        if last - first < len(self.touched):
            for page in range(first, last):
                self.touched.pop(page, None)
        else:
            for page in [page for page in self.touched if first <= page < last]:
                del self.touched[page]


class Accesses:
    """
    Sees all rows once with ``note``, to know the faults' accesses, then gives them with ``settle``.

    Holds one byte a fault, and the touched pages of the processes that live.
    """

    def __init__(self, page_size: int) -> None:
        self._shift = page_size.bit_length() - 1
        self._mask = page_size - 1
        self._spaces: dict[int, _Space] = {}
        self._known = array("B")
        self._next = 0

    def note(self, row: Row) -> None:
        """Take a row of the first pass."""
        _, pid, _, kind, addr, length, addr2, len2, prot, flags, _, _, arg = row
        if kind == KIND_EXEC:
            self._spaces[pid] = _Space()
            return
        space = self._spaces.get(pid)
        if space is None:
            if kind == KIND_FAULT:
                self._known.append(prot or _WRITE)
            return
        if kind == KIND_FAULT:
            self._fault(space, addr, prot)
        elif kind == KIND_FORK:
            self._spaces[arg] = space if flags & _CLONE_VM else _Space(space)
            if not flags & _CLONE_VM:
                space.touched.clear()  # a second write is copy on write now
        elif kind == KIND_EXIT:
            del self._spaces[pid]
        else:
            self._change(space, kind, (addr, addr + length, addr2, addr2 + len2), prot, flags, arg)

    def _fault(self, space: _Space, addr: int, prot: int) -> None:
        page = addr >> self._shift
        before = space.touched.get(page)
        space.touched[page] = len(self._known)
        may = space.at(addr)
        if not prot:
            prot = _WRITE if may & _WRITE else _READ
            if before is not None and may & _WRITE and self._known[before] == _WRITE:
                self._known[before] = _READ
        self._known.append(prot)

    def _change(
        self, space: _Space, kind: int, ends: tuple[int, int, int, int], prot: int, flags: int,
        arg: int,
    ) -> None:  # fmt: skip
        start, end, start2, end2 = ends
        ranges = space.prot
        if kind == KIND_MMAP:
            ranges.set(start, end, (prot, flags & _MAP_GROWSDOWN))
        elif kind == KIND_MUNMAP:
            ranges.clear(start, end)
        elif kind == KIND_MPROTECT:
            for low, high, (_, grows) in ranges.clear(start, end):
                ranges.set(low, high, (prot, grows))
        elif kind == KIND_MREMAP:
            old = ranges.at(start)
            if end > start and not flags & _MREMAP_DONTUNMAP:
                ranges.clear(start, end)
            ranges.set(start2, end2, old[2] if old else (3, 0))
            space.forget(start2, end2, self._shift)
        elif kind == KIND_BRK:
            end = (end + self._mask) & ~self._mask
            before = space.heap or (start + self._mask) & ~self._mask
            space.heap = end
            if end > before:
                ranges.set(before, end, (3, 0))
                return
            ranges.clear(end, before)
            start, end = end, before
        elif kind != KIND_MADVISE or arg not in _DISCARDS:
            return
        if end > start:
            space.forget(start, end, self._shift)

    def settle(self, row: Row) -> Row:
        """Return a row of the second pass with its access; rows must come as in the first."""
        if row[3] != KIND_FAULT:
            return row
        access = self._known[self._next]
        self._next += 1
        return (*row[:8], access, *row[9:])
