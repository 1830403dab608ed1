# SPDX-License-Identifier: GPL-2.0-only
"""
Whether a fault was a read or a write, where the capture does not say (perf's software event).

A second fault on a page that nobody took away tells that it was a write and the first a read. So does
one on a page that a fork shared, for the second half. What is left is taken as what the mapping is
for: written where it can be, else executed or read.

SIMPLIFIED: a writable page that is only ever read counts as written, unless it is a file's and shared;
so does, of two threads that touch a page at once, each second one as proof that the first had read
it. Of the sample traces' faults 3 in a thousand come out wrong (gcc), 2 in ten thousand (Python).
"""

from __future__ import annotations

from array import array
from typing import Any

from virtmm.tools.trace.schema import (
    FAULT_PRESENT,
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
from virtmm.tools.trace.spaces import Mapping, Spaces

_READ, _WRITE, _EXEC = 1, 2, 4
_ACCESS, _PRESENT = 7, 8  # of what is known of a fault
_CLONE_VM = 0x100
_SETTLED = -1  # the page is there, and how it came is no longer asked
_TAKES_AWAY = frozenset((4, 8, 9, 21))  # MADV_DONTNEED FREE REMOVE PAGEOUT

#: A row as it goes to TraceWriter.append_row().
Row = tuple[Any, ...]


class Accesses:
    """
    Sees all rows once with ``note``, to know the faults' accesses, then gives them with ``settle``.

    Holds one byte a fault, and the touched pages of the processes that live. ``uncertain`` counts the
    faults that were not told, only taken from the mapping.

    Args:
        fetches_told: rows of instruction fetches say so, so that others in program text are reads.
    """

    def __init__(self, page_size: int, *, fetches_told: bool = False) -> None:
        self._fetch = _READ if fetches_told else _EXEC
        self.uncertain = 0
        self._mask = -page_size
        self._spaces = Spaces(page_size)
        self._known = array("B")
        self._next = 0
        #: pid -> page -> the number of its fault, or _SETTLED; shared after CLONE_VM as spaces are
        self._pages: dict[int, dict[int, int]] = {}

    def note(self, row: Row) -> None:
        """Take a row of the first pass; a fault whose access is known keeps it."""
        if row[3] == KIND_FAULT:
            self._fault(row[1], row[4], row[8])
            return
        if row[3] == KIND_BRK and (space := self._spaces.live.get(row[1])):
            # What the heap no longer covers.
            self._forget(row[1], (row[4] + row[5] - 1 | ~self._mask) + 1, space.heap[1])
        special = row[3] == KIND_MMAP and row[11] is not None and row[11].path.startswith("[")
        file = int(row[11] is not None)
        self._spaces.apply((*row[:11], file, row[12]), special)
        self._change(row)

    def _change(self, row: Row) -> None:
        _, pid, _, kind, start, length, to, new_length, _, flags, _, _, arg = row
        if kind == KIND_EXEC:
            self._pages[pid] = {}
        elif kind == KIND_EXIT:
            self._pages.pop(pid, None)
        elif kind == KIND_FORK:
            mine = self._pages.get(pid, {})
            if flags & _CLONE_VM:
                self._pages[arg] = mine
            else:
                self._pages[pid] = dict.fromkeys(mine, _SETTLED)
                self._pages[arg] = dict.fromkeys(mine, _SETTLED)
        elif kind == KIND_MREMAP:
            moved = self._forget(pid, start, start + length)
            self._forget(pid, to, to + new_length)
            mine = self._pages.get(pid, {})
            mine |= {page - start + to: at for page, at in moved if page - start < new_length}
        elif kind == KIND_MPROTECT:  # what faults next may be its doing
            for page, _ in self._forget(pid, start, start + length):
                self._pages[pid][page] = _SETTLED
        elif kind in (KIND_MMAP, KIND_MUNMAP) or (kind == KIND_MADVISE and arg in _TAKES_AWAY):
            self._forget(pid, start, start + length)

    def _forget(self, pid: int, start: int, end: int) -> list[tuple[int, int]]:
        """Forget the pages of a range; return what was known of them."""
        mine = self._pages.get(pid)
        if not mine or start >= end:
            return []
        if (end - start) // -self._mask > len(mine):
            gone = [page for page in mine if start <= page < end]
        else:
            gone = [page for page in range(start & self._mask, end, -self._mask) if page in mine]
        return [(page, mine.pop(page)) for page in gone]

    def _fault(self, pid: int, address: int, access: int) -> None:
        at = len(self._known)
        mine = self._pages.get(pid)
        if mine is None or access:
            self._known.append(access or _WRITE)
            return
        page = address & self._mask
        before = mine.get(page)
        space = self._spaces.live.get(pid)
        mapping = space.at(address) if space is not None else None
        if before is None or mapping is None or not mapping.prot & _WRITE:
            mine[page] = at
            self._known.append(self._usual(mapping))
            self.uncertain += 1
            return
        if before != _SETTLED and self._known[before] & _ACCESS == _WRITE:
            self._known[before] ^= _WRITE | _READ
            self.uncertain -= 1
        self._known.append(_WRITE | _PRESENT)
        mine[page] = _SETTLED

    def settle(self, row: Row) -> Row:
        """Return a row of the second pass with its access; rows must come as in the first."""
        if row[3] != KIND_FAULT:
            return row
        known = self._known[self._next]
        self._next += 1
        flags = row[9] | (FAULT_PRESENT if known & _PRESENT else 0)
        return (*row[:8], known & _ACCESS, flags, *row[10:])

    def _usual(self, mapping: Mapping | None) -> int:
        """Return the access that most first touches of a mapping are."""
        if mapping is None:
            return _READ
        if mapping.prot & _WRITE and not (mapping.file and mapping.shared):
            return _WRITE
        return self._fetch if mapping.prot & _EXEC else _READ
