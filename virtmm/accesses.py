# SPDX-License-Identifier: GPL-2.0-only
"""Reads, writes and memory calls of many processes, collected so that one call does a run of them."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from virtmm.mm.layout import (
    CALL_BRK,
    CALL_FILE,
    CALL_FLAGS,
    CALL_LENGTH,
    CALL_MMAP,
    CALL_MPROTECT,
    CALL_MUNMAP,
    CALL_OTHER,
    CALL_PGOFF,
    CALL_PROT,
    CALL_SLOT,
    CALL_START,
    CALL_WHAT,
    CALL_WORDS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CALL_BRK",
    "CALL_FILE",
    "CALL_FLAGS",
    "CALL_LENGTH",
    "CALL_MMAP",
    "CALL_MPROTECT",
    "CALL_MUNMAP",
    "CALL_OTHER",
    "CALL_PGOFF",
    "CALL_PROT",
    "CALL_SLOT",
    "CALL_START",
    "CALL_WHAT",
    "CALL_WORDS",
    "Accesses",
    "Moved",
]


class Accesses:
    """
    Accesses of one byte each, in order, for Machine.touch_many() and move_many().

    What a process is known by may change between calls; its slot, a small number, stays. The slot behind
    those of processes is that of memory calls, which stand between the accesses: an element of it has the
    number of the call in the place of an address.

    Attributes:
        words: u64, two an access: its address, and twice the slot of its process, plus 1 for a write.
        tasks: of each slot Machine.task_record() of the process; 0 = its accesses are not to be done.
        layouts: of each slot where Moved has the process's addresses; 0 = nowhere.
        calls: u64, CALL_WORDS each, with what Machine's method of that name takes.
        files: of each number that a call names Machine.open()'s; 0 = it is not open yet.
        slots: how many processes there are; the slot of calls.
        pointers: to words, tasks, layouts, calls and files, for C.
    """

    def __init__(
        self, words: memoryview, slots: int, calls: memoryview | None = None, files: int = 1
    ) -> None:
        self.words = words
        self.tasks = array("Q", bytes(8 * (slots + 1)))
        self.layouts = array("Q", bytes(8 * (slots + 1)))
        self.calls = calls or memoryview(bytes(8 * CALL_WORDS)).cast("Q")
        self.files = array("Q", bytes(8 * files))
        self.slots = slots
        self.pointers: tuple[Any, ...] | None = None

    def task(self, i: int) -> int:
        """Return the record of the process that an access or a call is of."""
        slot = self.words[2 * i + 1] >> 1
        if slot == self.slots:
            slot = self.calls[self.words[2 * i] * CALL_WORDS + CALL_SLOT]
        return self.tasks[slot]


class Moved:
    """
    Ranges of addresses with the distance of each to where the machine has it.

    A list of disjoint ranges in order, by index, that C can search too.

    Attributes:
        where: address of this table, for Accesses.layouts; good as long as the object lives.
    """

    def __init__(self) -> None:
        self._words = array("Q")  # start, end, distance (modulo 2^64) of each range
        self._head = array("Q", (0, 0))  # where the words are, and how many
        self.where = self._head.buffer_info()[0]

    def replace(self, i: int, j: int, new: Iterable[tuple[int, int, int]]) -> None:
        """Put (start, end, distance) of other ranges in the place of those from index i to j."""
        words = array("Q")
        for start, end, shift in new:
            words.extend((start, end, shift % 2**64))
        self._words[3 * i : 3 * j] = words
        self._head[0], self._head[1] = self._words.buffer_info()

    def copy(self) -> Moved:
        """Return an independent copy."""
        other = Moved()
        other._words = self._words[:]
        other._head[0], other._head[1] = other._words.buffer_info()
        return other
