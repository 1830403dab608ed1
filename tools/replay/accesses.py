# SPDX-License-Identifier: GPL-2.0-only
"""The faults of a batch as accesses, which the machine does a run at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from virtmm.tools.trace.schema import FAULT_KERNEL, KIND_FAULT

from virtmm.accesses import Accesses

if TYPE_CHECKING:
    from virtmm.tools.trace.batch import Batch

_PROT_WRITE = 2


class Faults:
    """
    The faults of a batch, numbered from 0.

    Attributes:
        pids: the processes that they are of; a process's slot is its place here.
        accesses: the same faults, for the machine.
    """

    def __init__(self, batch: Batch, first: int) -> None:
        """Take the faults of a batch whose first row has this number in the trace."""
        columns = batch.columns
        rows = np.flatnonzero(columns["kind"] == KIND_FAULT)
        pids, slots = np.unique(columns["pid"][rows], return_inverse=True)
        self.pids: list[int] = pids.tolist()
        self._slots = {pid: slot for slot, pid in enumerate(self.pids)}
        self._first, self._rows = first, rows.data  # one by one, views are quicker than arrays
        self._addresses, self._flags = columns["addr"].data, columns["flags"].data
        words = np.empty((len(rows), 2), np.uint64)
        words[:, 0] = columns["addr"][rows]
        words[:, 1] = slots << 1 | (columns["prot"][rows] & _PROT_WRITE != 0)
        self.accesses = Accesses(words.reshape(-1).data, len(self.pids))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> tuple[int, int, bool, bool]:
        """Return pid, recorded address, whether it wrote, and whether the kernel met it."""
        row, word = self._rows[i], self.accesses.words[2 * i + 1]
        kernel = self._flags[row] & FAULT_KERNEL != 0
        return self.pids[word >> 1], self._addresses[row], word & 1 != 0, kernel

    def row(self, i: int) -> int:
        """Return the row of the trace that a fault is."""
        return self._first + self._rows[i]

    def attend(self, pid: int, task: int, layout: int) -> None:
        """
        Say how the accesses of a process are to be done from now on; it may have none in the batch.

        Args:
            task: its record in the machine; 0 = each needs to be looked at.
            layout: where its addresses are told (virtmm/accesses.py); 0 = in the trace.
        """
        slot = self._slots.get(pid)
        if slot is not None:
            self.accesses.tasks[slot] = task
            self.accesses.layouts[slot] = layout
