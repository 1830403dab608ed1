# SPDX-License-Identifier: GPL-2.0-only
"""The events of a batch as accesses and memory calls, which the machine does a run at a time."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
from virtmm.tools.trace.schema import (
    FAULT_KERNEL,
    KIND_BRK,
    KIND_FAULT,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MUNMAP,
)

from virtmm.accesses import (
    CALL_BRK,
    CALL_FILE,
    CALL_FLAGS,
    CALL_LENGTH,
    CALL_MMAP,
    CALL_MPROTECT,
    CALL_MUNMAP,
    CALL_PGOFF,
    CALL_PROT,
    CALL_SLOT,
    CALL_START,
    CALL_WHAT,
    CALL_WORDS,
    Accesses,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from virtmm.tools.trace.batch import Batch
    from virtmm.tools.trace.schema import Row

    Array = npt.NDArray[Any]

_PROT_WRITE = 2
#: Of the recorded protection: read, write, execute, and arm64's memory tags (PROT_MTE).
PROT = 0x27
_MAP_FIXED = 0x10
#: All bits of a trace but MAP_FIXED_NOREPLACE.
_MAP_FLAGS = 0xFFEFFFFF
_CALLS = {
    KIND_MMAP: CALL_MMAP,
    KIND_MUNMAP: CALL_MUNMAP,
    KIND_MPROTECT: CALL_MPROTECT,
    KIND_BRK: CALL_BRK,
}


def at_its_address(flags: Any) -> Any:
    """Return the MAP_* bits that map memory where the recording had it, whatever is there."""
    return flags & _MAP_FLAGS | _MAP_FIXED


class Events:
    """
    The events of a batch, numbered from 0.

    Attributes:
        pids: the processes that they are of; a process's slot is its place here.
        accesses: the same events, for the machine.
    """

    def __init__(self, batch: Batch, first: int, page: int, files: int) -> None:
        """
        Take a batch whose first row has the number ``first`` in the trace.

        Args:
            page: bytes of the machine's pages; 0 = calls are not the machine's, whose addresses differ.
            files: of TraceReader.files.
        """
        columns = batch.columns
        pids, slots = _numbered(columns["pid"])
        self.pids: list[int] = pids.tolist()
        self._slots = {pid: slot for slot, pid in enumerate(self.pids)}
        self._first, self._batch = first, batch
        # One by one, views are quicker than arrays.
        self._addresses, self._flags = columns["addr"].data, columns["flags"].data
        self._kinds = columns["kind"].data
        calls = np.flatnonzero(columns["kind"] != KIND_FAULT)
        words = np.empty((len(batch), 2), np.uint64)
        words[:, 0] = columns["addr"]
        words[:, 1] = slots << 1 | (columns["prot"] & _PROT_WRITE != 0)
        words[calls, 0] = np.arange(len(calls))
        words[calls, 1] = len(pids) << 1
        table = _calls(batch[calls], slots[calls], page)
        self.accesses = Accesses(words.reshape(-1).data, len(pids), table.reshape(-1).data, files)

    def __len__(self) -> int:
        return len(self._batch)

    def __getitem__(self, i: int) -> tuple[int, int, bool, bool]:
        """Return pid, recorded address, whether it wrote, and whether the kernel met it, of a fault."""
        word = self.accesses.words[2 * i + 1]
        kernel = self._flags[i] & FAULT_KERNEL != 0
        return self.pids[word >> 1], self._addresses[i], word & 1 != 0, kernel

    def call(self, i: int) -> Row | None:
        """Return the row of an event that is no fault."""
        return None if self._kinds[i] == KIND_FAULT else self._batch.row(i)

    def row(self, i: int) -> int:
        """Return the number in the trace of an event."""
        return self._first + i

    def attend_all(self, tasks: Mapping[int, int], layouts: Mapping[int, int]) -> None:
        """Say so of all processes, by pid; one that is left out has 0."""
        for array_of, given in ((self.accesses.tasks, tasks), (self.accesses.layouts, layouts)):
            if given:
                array_of[: len(self.pids)] = array("Q", [given.get(pid, 0) for pid in self.pids])

    def attend(self, pid: int, task: int, layout: int) -> None:
        """
        Say how the events of a process are to be done from now on; it may have none in the batch.

        Args:
            task: its record in the machine; 0 = each needs to be looked at.
            layout: where its addresses are told (virtmm/accesses.py); 0 = in the trace.
        """
        slot = self._slots.get(pid)
        if slot is not None:
            self.accesses.tasks[slot] = task
            self.accesses.layouts[slot] = layout


def _numbered(values: Array) -> tuple[Array, Array]:
    """Return np.unique(values, return_inverse=True), sooner where equal values follow one another."""
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    found, of = np.unique(values[first], return_inverse=True)
    return found, np.repeat(of, np.diff(first, append=len(values)))


def _calls(batch: Batch, slots: Array, page: int) -> Array:
    """Return the table of calls, of shape [rows, CALL_WORDS], of rows that are no faults."""
    columns = batch.columns
    table = np.zeros((max(len(batch), 1), CALL_WORDS), np.uint64)
    if not page or not len(batch):
        return table
    kinds = columns["kind"]
    for kind, call in _CALLS.items():
        table[kinds == kind, CALL_WHAT] = call
    table[:, CALL_SLOT] = slots
    table[:, CALL_START] = columns["addr"]
    table[:, CALL_LENGTH] = columns["len"]
    table[:, CALL_PROT] = columns["prot"] & PROT
    table[:, CALL_FLAGS] = at_its_address(columns["flags"])
    if batch.files is not None:
        table[:, CALL_FILE] = batch.files
    table[:, CALL_PGOFF] = columns["offset"] // page
    return table
