# SPDX-License-Identifier: GPL-2.0-only
"""
The memory operations that are timed, on a virtual machine with one process.

The benchmarks of tests/benchmarks, ``make bench-real`` and ``python -m scripts.profile`` share them;
tests/benchmarks/real.c has the same under the same names.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtmm.accesses import Accesses
from virtmm.kconfig import ResolvedConfig
from virtmm.machine import Machine

BASE = 1 << 36
PARENT, CHILD = 1, 2
READ, READ_WRITE = 1, 3
INODE = 7
#: Mappings that mmap_munmap makes and removes.
CALLS = 1000


class Lab:
    """
    A booted machine whose process 1 maps, touches and unmaps one range.

    Args:
        folio: bytes of the folios that a first write gets on this machine.
        size: bytes of the range, whole folios.
        settings: run-time knobs, ``NAME=VALUE``.
    """

    def __init__(
        self, config: ResolvedConfig, folio: int, size: int, settings: Sequence[str] = ()
    ) -> None:
        self.machine = Machine(config, settings)
        self.folio, self.size = folio, size
        self.page_size = self.machine.page_size
        self.pages = size // self.page_size
        self.folios = size // folio
        self.machine.spawn(PARENT)
        self.file = self.machine.open(INODE, size)
        self._write_pages = self._accesses(self.page_size, 1)
        self._write_folios = self._accesses(folio, 1)
        self._read_pages = self._accesses(self.page_size, 0)

    def _accesses(self, step: int, write: int) -> Accesses:
        """Return the accesses of touch_many() for one byte in every ``step`` bytes."""
        words = array("Q")
        for address in range(BASE, BASE + self.size, step):
            words.extend((address, write))
        accesses = Accesses(memoryview(words), 1)
        accesses.tasks[0] = self.machine.task_record(PARENT)
        return accesses

    def _touch(self, accesses: Accesses) -> None:
        nr = len(accesses.words) // 2
        _check(self.machine.touch_many(accesses, 0, nr) == (nr, 0))

    def map(self) -> None:
        """Map the range, anonymous and untouched."""
        _check(self.machine.mmap(PARENT, BASE, self.size) == 0)

    def map_file(self) -> None:
        """Map a cached file in its place, privately."""
        _check(self.machine.mmap(PARENT, BASE, self.size, file=self.file) == 0)

    def unmap(self) -> None:
        """Unmap the range."""
        _check(self.machine.munmap(PARENT, BASE, self.size) == 0)

    def populate(self) -> None:
        """Map the range and write to every folio."""
        self.map()
        self.write_folios()

    def share(self) -> None:
        """Populate the range and fork."""
        self.populate()
        self.fork()

    def write_folios(self) -> None:
        """Write one byte in every folio."""
        self._touch(self._write_folios)

    def write_pages(self) -> None:
        """Write one byte in every page."""
        self._touch(self._write_pages)

    def read_pages(self) -> None:
        """Read one byte in every page."""
        self._touch(self._read_pages)

    def fork(self) -> None:
        """Fork the process."""
        _check(self.machine.fork(PARENT, CHILD) == 0)

    def exit(self) -> None:
        """End the child."""
        self.machine.exit(CHILD)

    def exit_and_unmap(self) -> None:
        """End the child and unmap the range."""
        self.exit()
        self.unmap()

    def protect(self) -> None:
        """Make the range read-only."""
        _check(self.machine.mprotect(PARENT, BASE, self.size, READ) == 0)

    def map_and_unmap(self) -> None:
        """Make and remove a mapping of one folio, CALLS times."""
        machine, folio = self.machine, self.folio
        for _ in range(CALLS):
            machine.mmap(PARENT, BASE, folio)
            machine.munmap(PARENT, BASE, folio)

    def nothing(self) -> None:
        """Do nothing."""

    def faults(self) -> int:
        """Return the faults that the machine had so far."""
        return self.machine.vmstat()["pgfault"]


class Operation(NamedTuple):
    """
    An operation on a Lab.

    Attributes:
        unit: what a second is counted in beside pages: ``faults`` or ``calls``.
        calls: how many calls the timed part makes; 0 = count the faults it takes.
        prepare, run, finish: before, what is timed, behind; the range is unmapped before and behind.
    """

    unit: str
    calls: int
    prepare: Callable[[Lab], None]
    run: Callable[[Lab], None]
    finish: Callable[[Lab], None]


OPERATIONS = {
    "first_touch": Operation("faults", 0, Lab.map, Lab.write_folios, Lab.unmap),
    "first_read": Operation("faults", 0, Lab.map, Lab.read_pages, Lab.unmap),
    "file_read": Operation("faults", 0, Lab.map_file, Lab.read_pages, Lab.unmap),
    "munmap": Operation("calls", 1, Lab.populate, Lab.unmap, Lab.nothing),
    "fork": Operation("calls", 1, Lab.populate, Lab.fork, Lab.exit_and_unmap),
    "exit": Operation("calls", 1, Lab.share, Lab.exit, Lab.unmap),
    "copy_on_write": Operation("faults", 0, Lab.share, Lab.write_pages, Lab.exit_and_unmap),
    "mprotect": Operation("calls", 1, Lab.populate, Lab.protect, Lab.unmap),
    "mmap_munmap": Operation("calls", 2 * CALLS, Lab.nothing, Lab.map_and_unmap, Lab.nothing),
}


class Timed(NamedTuple):
    """One measurement: nanoseconds, and the faults that happened meanwhile."""

    ns: int
    faults: int


def measure(lab: Lab, name: str) -> Timed:
    """Do an operation once and return what it took."""
    operation = OPERATIONS[name]
    operation.prepare(lab)
    faults = lab.faults()
    began = time.perf_counter_ns()
    operation.run(lab)
    ns = time.perf_counter_ns() - began
    faults = lab.faults() - faults
    operation.finish(lab)
    return Timed(ns, faults)


def settings_of(folio_kib: int, page_kib: int) -> list[str]:
    """Return the knobs that make a multi-size THP kernel give out folios of one size alone."""
    if folio_kib == page_kib:
        return ["enabled=never"]
    return ["enabled=never", f"{folio_kib}kB=always"]


def _check(fine: bool) -> None:
    if not fine:
        raise RuntimeError("the virtual machine refused an operation that is to be timed")
