# SPDX-License-Identifier: GPL-2.0-only
"""
Import what ``perf script`` printed of a recording of the events that ``virtmm record`` uses.

The text becomes the records it was made from, and those go the way of a recording: one converter
makes the rows of both. Wanted are the lines of

    perf script --show-mmap-events --show-task-events --show-lost-events --ns
        -F comm,pid,tid,time,event,trace

The error codes of faults are read as x86 has them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from virtmm.tools.trace import perfdata
from virtmm.tools.trace.access import Accesses, Row
from virtmm.tools.trace.convert import Converter
from virtmm.tools.trace.importers.source import Emit, Imported, Lines, Options, Progress
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.perfdata import Event, Record
from virtmm.tools.trace.schema import KIND_FAULT, KIND_FORK, TraceError

FAULT_USER, FAULT_KERNEL = "exceptions:page_fault_user", "exceptions:page_fault_kernel"
NEWTASK, EXEC = "task:task_newtask", "sched:sched_process_exec"
#: Where the fields lie in the data that ``*_data`` make.
EVENTS = {
    name: Event(name, 0, fields)
    for name, fields in {
        FAULT_USER: {"address": (8, 8, False), "error_code": (24, 8, False)},
        FAULT_KERNEL: {"address": (8, 8, False), "error_code": (24, 8, False)},
        NEWTASK: {"clone_flags": (32, 8, False)},
        EXEC: {"filename": (8, 4, False)},
    }.items()
}
_SOFTWARE = re.compile(r"(?:page-|minor-)?faults(?::\w+)?")

_HEAD = re.compile(
    r" *(.*?) +(-?\d+)(?:/(-?\d+))? +(?:\[\d+\] +)?(\d+)\.(\d{6}|\d{9}): +(?:\d+ +)?"
    r"(?:(PERF_RECORD_\w+)(.*)|([\w-]+(?::[\w-]+)*): *(.*))"
)
_MAPPED = re.compile(
    r" (-?\d+)/(-?\d+): \[(0x[0-9a-f]+|0)\((0x[0-9a-f]+|0)\) @ (0x[0-9a-f]+|0) "
    r"([0-9a-f]+):([0-9a-f]+) (\d+) \d+\]: ([r-][w-][x-][sp]) (.*)"
)
_COMM = re.compile(r"( exec)?: .*:(-?\d+)/(-?\d+)")
_TASK = re.compile(r"\((-?\d+):(-?\d+)\):\((-?\d+):(-?\d+)\)")
_PAGE_FAULT = re.compile(r"address=(\w+) .*error_code=(0x[0-9a-f]+|0)")
_ARGUMENT = re.compile(r": (0x[0-9a-f]+)")
_RESULT = re.compile(r"(0x[0-9a-f]+)")
_FLAGS = re.compile(r"clone_flags=(?:0x)?([0-9a-f]+)")
_FILENAME = re.compile(r"filename=(.*) pid=-?\d+ old_pid=")
_ADDRESS = re.compile(r"([0-9a-f]+)(?: *| +[0-9a-f]+(?: .*)?)")

LIMIT_GUESS = (
    "read or write of a fault: told by a second fault on its page, else taken from the mapping"
)
LIMIT_THP = "whether the program ran with transparent huge pages is not known"
LIMIT_KERNEL = "faults of the kernel on the program's behalf look like its own"
LIMIT_USER = "faults of the kernel on the program's behalf were not recorded"

STEP = (
    "print it with perf script --show-mmap-events --show-task-events --show-lost-events --ns "
    "-F comm,pid,tid,time,event,{}"
)


def fault_data(address: int, error: int) -> bytes:
    """Return the data of a page-fault event."""
    return struct.pack("<8x3Q", address, 0, error)


def call_data(*numbers: int) -> bytes:
    """Return the data of a call's entry (its arguments), or of its exit (the result)."""
    return struct.pack(f"<16x{len(numbers)}Q", *(n & 0xFFFFFFFFFFFFFFFF for n in numbers))


def newtask_data(flags: int) -> bytes:
    """Return the data of task_newtask."""
    return struct.pack("<32xQ", flags)


def exec_data(filename: str) -> bytes:
    """Return the data of sched_process_exec."""
    name = filename.encode()[:65000] + b"\0"
    return struct.pack("<8xI", len(name) << 16 | 12) + name


class Held:
    """Rows whose faults do not say their access, until all are there; in proportion to their number."""

    def __init__(self, page_size: int) -> None:
        self.accesses = Accesses(page_size)
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Take a row; what access a fault has is made up, the event has no error code."""
        if row[3] == KIND_FAULT:
            row = (*row[:8], 0, *row[9:])
        self.accesses.note(row)
        self.rows.append(row)


class PerfScript:
    """
    The records of a text of perf script.

    Attributes:
        lost: events that perf lost.
        exact, software: faults of the tracepoints, and of the software event, without access.
        user_only: that event was recorded for user mode alone.
        process: thread -> process, as far as it was told.
        calls: entries of calls, by name. program: what was executed first.
    """

    def __init__(self, lines: Lines, step: str) -> None:
        self.lines = lines
        self.lost = 0
        self.exact = self.software = 0
        self.user_only = False
        self.calls: dict[str, int] = {}
        self.program = ""
        self._step = step
        self.process: dict[int, int] = {}
        self._time = 0

    def records(self) -> Iterator[Record]:
        """Yield the records, as perfdata.PerfData does."""
        for line in self.lines:
            if not line or line.startswith("#"):
                continue
            found = _HEAD.fullmatch(line)
            if found is None:
                raise self.lines.wrong(f"not a line of perf script: {line[:60]!r}", self._step)
            time = int(found[4]) * 10**9 + int(found[5].ljust(9, "0"))
            if found[3] is not None:
                pid, tid = int(found[2]), int(found[3])
                self.process[tid] = pid
            else:
                tid = int(found[2])
                pid = self.process.get(tid, tid)
            try:
                if found[6]:
                    record = self._other(found[6], found[7], time, pid, tid)
                else:
                    record = self._sample(found[8], found[9], time, pid, tid)
            except struct.error:
                raise self.lines.wrong("a number of more than 64 bits", self._step) from None
            if record is None:
                continue
            if time < self._time:
                raise self.lines.wrong("the time goes back", self._step)
            self._time = time
            yield record

    def _bad(self, name: str) -> TraceError:
        return self.lines.wrong(f"{name} without the fields it should have", self._step)

    def _other(self, name: str, text: str, time: int, pid: int, tid: int) -> Record | None:
        """Return the record of mmap, comm, fork or exit; count losses; None for others."""
        kind, misc, data = 0, 0, b""
        if name == "PERF_RECORD_MMAP2":
            mapped = _MAPPED.fullmatch(text)
            if mapped is None:
                if " <" in text:
                    raise self.lines.wrong(
                        "a mapping without inode", "record with perf record --no-buildid-mmap"
                    )
                raise self._bad(name)
            kind, data = perfdata.RECORD_MMAP2, _mmap2_data(mapped)
            pid, tid = int(mapped[1]), int(mapped[2])
        elif name == "PERF_RECORD_COMM":
            comm = _COMM.fullmatch(text)
            if comm is None:
                raise self._bad(name)
            kind, pid, tid = perfdata.RECORD_COMM, int(comm[2]), int(comm[3])
            misc = perfdata.MISC_COMM_EXEC if comm[1] else 0
            self.process[tid] = pid
        elif name in ("PERF_RECORD_FORK", "PERF_RECORD_EXIT"):
            task = _TASK.fullmatch(text)
            if task is None:
                raise self._bad(name)
            child, child_tid, parent, parent_tid = map(int, task.groups())
            data = struct.pack("<4i", child, parent, child_tid, parent_tid)
            if name == "PERF_RECORD_FORK":
                kind, pid, tid = perfdata.RECORD_FORK, parent, parent_tid
                self.process[child_tid] = child
            else:
                kind, pid, tid = perfdata.RECORD_EXIT, child, child_tid
        elif name.startswith("PERF_RECORD_LOST"):
            number = re.search(r"\d+", text)
            self.lost += int(number[0]) if number else 1
        return Record(time, kind, misc, "", pid, tid, data) if kind and pid > 0 else None

    def _sample(self, name: str, text: str, time: int, pid: int, tid: int) -> Record | None:
        """Return the record of an event that is used; None for others."""
        found: re.Match[str] | None
        if name in (FAULT_USER, FAULT_KERNEL):
            found = _PAGE_FAULT.match(text)
            if found is None:
                raise self._bad(name)
            if not found[1].startswith("0x"):
                return None  # a symbol of the kernel
            self.exact += 1
            data = fault_data(int(found[1], 16), int(found[2], 16))
        elif _SOFTWARE.fullmatch(name):
            found = _ADDRESS.fullmatch(text)
            if found is None:
                raise self.lines.wrong(
                    f"{name} without an address", "record with perf record -d, and " + self._step
                )
            self.software += 1
            self.user_only |= name.endswith(":u")
            name, data = FAULT_USER, fault_data(int(found[1], 16), 0)
        elif name == NEWTASK:
            found = _FLAGS.search(text)
            if found is None:
                raise self._bad(name)
            data = newtask_data(int(found[1], 16))
        elif name == EXEC:
            found = _FILENAME.match(text)
            if found is None:
                raise self._bad(name)
            self.program = self.program or found[1]
            data = exec_data(found[1])
        elif name.startswith("syscalls:sys_enter_"):
            self.calls[name[19:]] = self.calls.get(name[19:], 0) + 1
            data = call_data(*(int(word, 16) for word in _ARGUMENT.findall(text)[:6]))
        elif name.startswith("syscalls:sys_exit_"):
            found = _RESULT.match(text)
            if found is None:
                raise self._bad(name)
            data = call_data(int(found[1], 16))
        else:
            return None
        return Record(time, perfdata.RECORD_SAMPLE, 0, name, pid, tid, data)


def _mmap2_data(found: re.Match[str]) -> bytes:
    """Return the data of an MMAP2 record."""
    pid, tid = int(found[1]), int(found[2])
    start, length, offset = (int(found[at], 16) for at in (3, 4, 5))
    major, minor, inode = int(found[6], 16), int(found[7], 16), int(found[8])
    prot = sum(1 << at for at in range(3) if found[9][at] != "-")
    flags = 1 if found[9][3] == "s" else 2  # MAP_SHARED, MAP_PRIVATE
    numbers = struct.pack(
        "<2i3Q2I2Q2I", pid, tid, start, length, offset, major, minor, inode, 0, prot, flags
    )
    return numbers + found[10].encode() + b"\0"


def root_of(record: Record) -> bool:
    """Tell whether a process becomes a program here."""
    return record.type == perfdata.RECORD_COMM and bool(record.misc & perfdata.MISC_COMM_EXEC)


def read(files: list[Path], options: Options, emit: Emit, progress: Progress) -> Imported:
    """Import one text of perf script."""
    lines = Lines(files[0], progress)
    if len(files) > 1:
        raise TraceError(f"{files[1]}: one text of perf script at a time; print all into one file")
    script = PerfScript(lines, STEP.format("trace"))
    # The software event has no access: all rows must be seen before the first goes out.
    held = Held(options.page_size) if _software_first(files[0]) else None
    converter: Converter | None = None
    for record in script.records():
        if converter is None:
            if not root_of(record):
                continue
            out = held.add if held else emit
            converter = Converter(record.pid, EVENTS, options.page_size, out, Cleaner())
        converter.feed(record)
        if script.software and script.exact:
            raise lines.wrong(
                "two kinds of page-fault events", "record either exceptions:* or page-faults"
            )
    return finished(lines, script, converter, held, emit)


def _software_first(path: Path) -> bool:
    """Tell whether the faults of a text are those of the software event."""
    for line in Lines(path):
        found = _HEAD.fullmatch(line)
        if found and found[8] and (found[8] == FAULT_USER or _SOFTWARE.fullmatch(found[8])):
            return found[8] != FAULT_USER
    return False


def finished(
    lines: Lines,
    script: PerfScript,
    converter: Converter | None,
    held: Held | None,
    emit: Emit,
) -> Imported:
    """Hand out what is left, and say what was imported. Raises TraceError if it is no whole trace."""
    if converter is None:
        raise TraceError(
            f"{lines.path}: no program begins in it (PERF_RECORD_COMM exec); record from the start, and "
            + STEP.format("trace")
        )
    converter.finish()
    if not converter.count[KIND_FAULT]:
        raise TraceError(
            f"{lines.path}: no page fault in it; record {FAULT_USER} and {FAULT_KERNEL} with -c 1"
        )
    if not script.calls.get("mmap"):
        raise TraceError(
            f"{lines.path}: no call of mmap in it; record the tracepoints syscalls:sys_{{enter,exit}}_* "
            "of mmap, munmap, mremap, mprotect, madvise and brk, or use strace and --faults"
        )
    result = Imported(
        script.program, [LIMIT_THP], script.lost, more={"processes": converter.count[KIND_FORK] + 1}
    )
    if held is not None:
        for row in held.rows:
            emit(held.accesses.settle(row))
        result.limits += [
            f"{LIMIT_GUESS} ({held.accesses.uncertain} of {converter.count[KIND_FAULT]} faults)",
            LIMIT_USER if script.user_only else LIMIT_KERNEL,
        ]
    return result
