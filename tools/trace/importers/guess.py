# SPDX-License-Identifier: GPL-2.0-only
"""
Read or write of faults that were recorded without it (perf's software event ``page-faults``).

A second fault on a page that nobody took away tells that it was a write and the first a read. So does
one on a page that a fork shared, for the second half. What is left is taken as what the mapping is
for: written where it can be, else executed or read.

SIMPLIFIED: a writable page that is only ever read counts as written, unless it is a file's and shared.
Of the sample traces' faults that makes 3 in a thousand wrong (gcc) and 2 in ten thousand (Python).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtmm.tools.trace.importers.source import Emit
from virtmm.tools.trace.schema import (
    FAULT_PRESENT,
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MREMAP,
    KIND_MUNMAP,
)
from virtmm.tools.trace.spaces import Mapping, Spaces

LIMIT = "read or write of a fault: told by a second fault on its page, else taken from the mapping"

_READ, _WRITE, _EXEC = 1, 2, 4
_CLONE_VM = 0x100
_SETTLED = -1  # the page is there, and how it came is no longer asked
_TAKES_AWAY = frozenset((4, 8, 9, 21))  # MADV_DONTNEED FREE REMOVE PAGEOUT


class Accesses:
    """
    Takes rows as an importer makes them, holds all, and hands them on with their accesses.

    Memory is in proportion to the rows. ``uncertain`` counts the faults that were not told.
    """

    def __init__(self, page_size: int) -> None:
        self.uncertain = 0
        self._mask = -page_size
        self._spaces = Spaces(page_size)
        self._rows: list[list[Any]] = []
        #: pid -> page -> the row of its fault, or _SETTLED; shared after CLONE_VM as spaces are
        self._pages: dict[int, dict[int, int]] = {}

    def add(self, row: tuple[Any, ...]) -> None:
        """Take a row; of a fault the access is ignored."""
        at = len(self._rows)
        self._rows.append(list(row))
        if row[3] == KIND_FAULT:
            self._fault(at, row)
            return
        if row[3] == KIND_BRK and (space := self._spaces.live.get(row[1])):
            # What the heap no longer covers.
            self._forget(row[1], (row[4] + row[5] - 1 | ~self._mask) + 1, space.heap[1])
        special = row[3] == KIND_MMAP and row[11] is not None and row[11].path.startswith("[")
        file = int(row[11] is not None)
        self._spaces.apply((*row[:11], file, row[12]), special)
        self._change(row)

    def _change(self, row: tuple[Any, ...]) -> None:
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

    def _fault(self, at: int, row: tuple[Any, ...]) -> None:
        mine = self._pages.get(row[1])
        if mine is None:
            return
        page = row[4] & self._mask
        before = mine.get(page)
        space = self._spaces.live.get(row[1])
        mapping = space.at(row[4]) if space is not None else None
        if before is None or mapping is None or not mapping.prot & _WRITE:
            mine[page] = at
            self._rows[at][8] = _usual(mapping)
            self.uncertain += 1
            return
        if before != _SETTLED and self._rows[before][8] == _WRITE:
            self._rows[before][8] = _READ
            self.uncertain -= 1
        self._rows[at][8] = _WRITE
        self._rows[at][9] |= FAULT_PRESENT
        mine[page] = _SETTLED

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield all rows."""
        return map(tuple, self._rows)

    def finish(self, emit: Emit) -> None:
        """Hand all rows on."""
        for row in self.rows():
            emit(row)


def _usual(mapping: Mapping | None) -> int:
    """Return the access that most first touches of a mapping are."""
    if mapping is None:
        return _READ
    if mapping.prot & _WRITE and not (mapping.file and mapping.shared):
        return _WRITE
    return _EXEC if mapping.prot & _EXEC else _READ
