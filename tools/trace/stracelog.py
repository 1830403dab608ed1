# SPDX-License-Identifier: GPL-2.0-only
"""
Where the kernel's tracepoints may not be read: the memory calls as strace tells them.

strace stops a thread around each call, and stamps the time while it is stopped. So a line's time is
between what the thread did before the call and the call, and a ``resumed`` line's time between the
call and what the thread does next. A call that no other line interrupted has one line, with no
exact time of its end; it ends before the next line, and before its thread faults in user mode.

What is made of it are the records that the tracepoints would have given.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from virtmm.tools.trace.perfdata import (
    MISC_CPUMODE,
    MISC_KERNEL,
    PAGE_FAULTS,
    RECORD_EXIT,
    RECORD_FORK,
    RECORD_SAMPLE,
    Event,
    Record,
)
from virtmm.tools.trace.schema import TraceError

CALLS = (
    "mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "execve", "execveat", "?fork",
    "?vfork", "clone", "?clone3", "?pkey_mprotect", "shmat", "shmdt", "io_setup",
    "?map_shadow_stack",
)  # fmt: skip
# Numbers instead of names, nothing but these calls, time and duration in ns, no chatter.
OPTIONS = (
    "-f", "-qq", "-X", "raw", "-e", "signal=none", "-e", "trace=" + ",".join(CALLS),
    "--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns",
)  # fmt: skip

# The tracepoints that are imitated.
EVENTS = {
    name: Event(name, 0, fields)
    for name, fields in (
        ("task:task_newtask", {"clone_flags": (32, 8, False)}),
        ("sched:sched_process_exec", {"filename": (8, 4, False)}),
    )
}

_CLONES = {"fork": 0, "vfork": 0x4100, "clone": 0, "clone3": 0}  # flags where none are printed
_EXECS = ("execve", "execveat")
_PENDING = 1_000_000_000  # ns that a call without an end of its own may hold other rows up

_LINE = re.compile(
    r"(?P<tid>\d+) +(?P<sec>\d+)\.(?P<ns>\d{9}) (?:<\.\.\. (?P<resumed>\w+) resumed>|(?P<name>\w+)\()"
    r"(?P<rest>.*)"
)
_SUPERSEDED = re.compile(r"(\d+) .*\+\+\+ superseded by execve in pid (\d+) \+\+\+")
_RESULT = re.compile(r"\) += (-?\w+|\?)(?: .*?)??(?: <(\d+)\.(\d{9})>)?$")
_FLAGS = re.compile(r"flags=(\w+)")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\([0-7]{1,3}|x[0-9a-f]{2}|.)")
_LETTERS = {"n": 10, "t": 9, "r": 13, "v": 11, "f": 12}


class Line(NamedTuple):
    """One line: thread, time and duration in ns, the call's name, arguments as text, result if any."""

    tid: int
    time: int
    duration: int
    name: str
    resumed: bool
    text: str
    result: int | None
    unfinished: bool


def parse(text: str) -> Line | None:
    """Read one line; None for one that tells no call. Raises TraceError for what strace never prints."""
    match = _LINE.match(text)
    if match is None:
        if re.match(r"\d+ +\d+\.\d+ (\+\+\+|---)", text) or not text.strip():
            return None
        raise TraceError(f"strace printed {text.strip()[:60]!r}; is it older than 5.3?")
    rest, unfinished, _ = match["rest"].partition("<unfinished ...>")
    result, duration = None, 0
    if not unfinished:
        found = _RESULT.search(rest)
        if found and found[2]:
            duration = int(found[2] + found[3])
        # "= ?" is a call that its thread did not live to see the end of, or will make again
        result = -4 if found is None or found[1] == "?" else int(found[1], 0)
        rest = rest[: found.start()] if found else rest
    return Line(
        int(match["tid"]),
        int(match["sec"]) * 1_000_000_000 + int(match["ns"]),
        duration,
        match["resumed"] or match["name"],
        match["resumed"] is not None,
        rest,
        result,
        bool(unfinished),
    )


def numbers(text: str) -> list[int]:
    """Return a call's arguments that are numbers; what is none, and NULL, is 0."""
    found = []
    for word in text.split(","):
        try:
            found.append(int(word.strip(), 0) & (2**64 - 1))
        except ValueError:
            found.append(0)
    return found


def unquote(text: str) -> bytes:
    """Return the bytes of the first string in a call's arguments; empty if there is none."""
    match = _STRING.search(text)
    if match is None:
        return b""

    def byte(found: re.Match[str]) -> str:
        word = found[1]
        if word[0] in "01234567":
            return chr(int(word, 8))
        return chr(int(word[1:], 16)) if word[0] == "x" else chr(_LETTERS.get(word, ord(word[0])))

    return _ESCAPE.sub(byte, match[1]).encode("latin-1", "replace")


class Merged:
    """Merge perf's records and strace's lines into the records of the tracepoints, by time."""

    def __init__(self, root: int) -> None:
        self._groups = {root: root}  # thread -> process
        self._flags: dict[int, int] = {}  # thread in clone() -> flags
        self._paths: dict[int, bytes] = {}  # thread in execve() -> program
        self._open: dict[int, str] = {}  # thread -> call that it is in
        self._pending: tuple[int, int, Record] | None = (
            None  # deadline, thread, the end of its call
        )

    def records(self, records: Iterable[Record], lines: Iterable[str]) -> Iterator[Record]:
        """Yield the records in time order."""
        told = self._lines(lines)
        line = next(told, None)
        for record in records:
            while line is not None and line.time <= record.time:
                yield from self._line(line)
                line = next(told, None)
            yield from self._record(record)
        while line is not None:
            yield from self._line(line)
            line = next(told, None)
        yield from self._settle(2**63)

    def _lines(self, lines: Iterable[str]) -> Iterator[Line]:
        """Parse; a last line that was cut short is no line."""
        last = 0
        for text in lines:
            if not text.endswith("\n"):
                return
            if found := _SUPERSEDED.match(text):
                # The thread that called execve() has the leader's number from now on.
                leader, thread = int(found[1]), int(found[2])
                if thread in self._open:
                    self._open[leader] = self._open.pop(thread)
                    self._paths[leader] = self._paths.pop(thread, b"")
            elif line := parse(text):
                last = max(last, line.time)  # the clock may have been set back
                yield line._replace(time=last)

    def _settle(self, time: int) -> Iterator[Record]:
        """Let the call end that has been waiting for its end."""
        if self._pending is not None:
            deadline, _, record = self._pending
            self._pending = None
            yield record._replace(time=min(time, deadline))

    def _record(self, record: Record) -> Iterator[Record]:
        if self._pending is not None:
            deadline, tid, _ = self._pending
            outside = record.tid == tid and (
                record.type == RECORD_EXIT
                or (record.event == PAGE_FAULTS and record.misc & MISC_CPUMODE != MISC_KERNEL)
            )
            if outside or record.time >= deadline:
                yield from self._settle(record.time)
        yield record
        if record.type == RECORD_FORK:
            pid, parent, tid, parent_tid = struct.unpack_from("<4i", record.data)
            self._groups[tid] = pid
            if pid != parent:
                flags = struct.pack("<32xQ", self._flags.get(parent_tid, 0))
                yield record._replace(
                    type=RECORD_SAMPLE, event="task:task_newtask", pid=parent, tid=parent_tid,
                    data=flags,
                )  # fmt: skip
        elif record.type == RECORD_EXIT:
            for table in (self._groups, self._flags, self._paths, self._open):
                table.pop(record.tid, None)

    def _line(self, line: Line) -> Iterator[Record]:
        yield from self._settle(line.time)
        tid = line.tid
        if not line.resumed:
            self._open[tid] = line.name
            if line.name in _EXECS:
                self._paths[tid] = unquote(line.text)
            elif line.name in _CLONES:
                flags = _FLAGS.search(line.text)
                self._flags[tid] = int(flags[1], 0) if flags else _CLONES[line.name]
            else:
                data = struct.pack("<16x6Q", *(numbers(line.text) + [0] * 6)[:6])
                yield self._sample(line, f"syscalls:sys_enter_{line.name}", data)
        if line.unfinished or self._open.pop(tid, None) != line.name or line.result is None:
            return
        if line.name in _EXECS:
            path = self._paths.pop(tid, b"") + b"\0"
            if line.result:
                return
            data = struct.pack("<8xI", 12 | len(path) << 16) + path
            end = self._sample(line, "sched:sched_process_exec", data)
        elif line.name in _CLONES:
            return
        else:
            result = line.result if line.result < 2**63 else line.result - 2**64
            data = struct.pack("<16xq", result)
            end = self._sample(line, f"syscalls:sys_exit_{line.name}", data)
        if line.resumed:
            yield end
        else:
            self._pending = line.time + line.duration + _PENDING, tid, end

    def _sample(self, line: Line, event: str, data: bytes) -> Record:
        group = self._groups.get(line.tid, line.tid)
        return Record(line.time, RECORD_SAMPLE, 0, event, group, line.tid, data)
