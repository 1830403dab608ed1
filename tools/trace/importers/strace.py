# SPDX-License-Identifier: GPL-2.0-only
"""
Import a text of strace, with the page faults and mappings that perf saw in the same run.

    perf record -k realtime -e page-faults -c 1 -d -- strace -f -ttt -o calls.txt COMMAND
    perf script --show-mmap-events --show-task-events --ns -F comm,pid,tid,time,event,addr

Both have the time of day. strace tells calls, their arguments and results; perf the faults, the
processes, and what exec maps. Neither needs root. A call is taken to end where the thread's next
event comes: strace prints when it began.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from virtmm.tools.trace import perfdata
from virtmm.tools.trace.convert import Converter
from virtmm.tools.trace.importers.perfscript import (
    EVENTS,
    EXEC,
    NEWTASK,
    STEP,
    Held,
    PerfScript,
    call_data,
    exec_data,
    finished,
    newtask_data,
    root_of,
)
from virtmm.tools.trace.importers.source import Emit, Imported, Lines, Options, Progress
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.perfdata import Record
from virtmm.tools.trace.schema import TraceError

LIMIT = "a call ends where its thread's next event comes; within a microsecond threads may be out of order"

_STEP = "trace with strace -f -ttt -o FILE COMMAND"
_LINE = re.compile(r"(?:\[pid +(\d+)\] |(\d+) +)(\d+)\.(\d{6}) (.*)")
_WHOLE = re.compile(r"(\w+)\((.*)\) += (-?\w+|\?)(?: .*)?")
_BEGUN = re.compile(r"(\w+)\((.*?),? *<unfinished \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>.* = (-?\w+|\?)(?: .*)?")
_SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+")
_COMMENT = re.compile(r" */\*.*?\*/")
_HUGE = re.compile(r"(\d+)<<MAP_HUGE_SHIFT")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_CLONE_FLAGS = re.compile(r"flags=([\w|]+)")

# Linux UAPI: asm-generic/mman*.h, mman.h, sched.h, ipc.h; the same for x86, arm64 and riscv.
_NAMES = {
    "NULL": 0, "PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4,
    "PROT_GROWSDOWN": 0x1000000, "PROT_GROWSUP": 0x2000000,
    "MAP_SHARED": 1, "MAP_PRIVATE": 2, "MAP_SHARED_VALIDATE": 3, "MAP_FIXED": 0x10,
    "MAP_ANONYMOUS": 0x20, "MAP_32BIT": 0x40, "MAP_GROWSDOWN": 0x100, "MAP_DENYWRITE": 0x800,
    "MAP_EXECUTABLE": 0x1000, "MAP_LOCKED": 0x2000, "MAP_NORESERVE": 0x4000, "MAP_POPULATE": 0x8000,
    "MAP_NONBLOCK": 0x10000, "MAP_STACK": 0x20000, "MAP_HUGETLB": 0x40000, "MAP_SYNC": 0x80000,
    "MAP_FIXED_NOREPLACE": 0x100000, "MAP_FILE": 0,
    "MREMAP_MAYMOVE": 1, "MREMAP_FIXED": 2, "MREMAP_DONTUNMAP": 4,
    "MADV_NORMAL": 0, "MADV_RANDOM": 1, "MADV_SEQUENTIAL": 2, "MADV_WILLNEED": 3,
    "MADV_DONTNEED": 4, "MADV_FREE": 8, "MADV_REMOVE": 9, "MADV_DONTFORK": 10, "MADV_DOFORK": 11,
    "MADV_MERGEABLE": 12, "MADV_UNMERGEABLE": 13, "MADV_HUGEPAGE": 14, "MADV_NOHUGEPAGE": 15,
    "MADV_DONTDUMP": 16, "MADV_DODUMP": 17, "MADV_WIPEONFORK": 18, "MADV_KEEPONFORK": 19,
    "MADV_COLD": 20, "MADV_PAGEOUT": 21, "MADV_POPULATE_READ": 22, "MADV_POPULATE_WRITE": 23,
    "MADV_DONTNEED_LOCKED": 24, "MADV_COLLAPSE": 25,
    "SHM_RDONLY": 0o10000, "SHM_RND": 0o20000, "SHM_REMAP": 0o40000, "SHM_EXEC": 0o100000,
}  # fmt: skip
_CLONE = {
    "CLONE_VM": 0x100, "CLONE_FS": 0x200, "CLONE_FILES": 0x400, "CLONE_SIGHAND": 0x800,
    "CLONE_PIDFD": 0x1000, "CLONE_PTRACE": 0x2000, "CLONE_VFORK": 0x4000, "CLONE_PARENT": 0x8000,
    "CLONE_THREAD": 0x10000, "CLONE_NEWNS": 0x20000, "CLONE_SYSVSEM": 0x40000,
    "CLONE_SETTLS": 0x80000, "CLONE_PARENT_SETTID": 0x100000, "CLONE_CHILD_CLEARTID": 0x200000,
    "CLONE_UNTRACED": 0x800000, "CLONE_CHILD_SETTID": 0x1000000,
}  # fmt: skip
_FORKS = {"fork": 0, "vfork": 0x4100}
#: Call -> the positions of the arguments that are numbers, all it has.
_ARGUMENTS = {"mmap": 6, "munmap": 2, "mremap": 5, "mprotect": 3, "pkey_mprotect": 4, "madvise": 3,
              "brk": 1, "shmat": 3, "shmdt": 1}  # fmt: skip


@dataclass(slots=True)
class Call:
    """
    A line of strace: a call that is entered, left, or both (``entered`` and a result); or that a
    thread's execve, ``result`` being the thread, goes on under the number of its process.

    ``args`` are numbers; of execve there are none, ``text`` is the program then. ``flags`` are those
    of clone.
    """

    tid: int
    name: str
    entered: bool
    args: tuple[int, ...] = ()
    text: str = ""
    flags: int = 0
    result: int | None = None
    over: bool = False


class Strace:
    """The calls of a text of strace, those that matter to memory."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.first_tid = 0
        self.first = self.last = 0  # times, ns
        self.command = ""

    def calls(self) -> Iterator[tuple[int, Call]]:
        """Yield (time in ns, call)."""
        for line in self.lines:
            found = _LINE.fullmatch(line)
            if found is None:
                if line.startswith("strace: "):
                    continue
                raise self.lines.wrong(f"not a line of strace -f -ttt: {line[:60]!r}", _STEP)
            time = int(found[3]) * 10**9 + int(found[4]) * 1000
            if time < self.last:
                raise self.lines.wrong("the time goes back", _STEP)
            self.last = time
            self.first = self.first or time
            tid = int(found[1] or found[2])
            self.first_tid = self.first_tid or tid
            if superseded := _SUPERSEDED.match(found[5]):
                yield time, Call(tid, "superseded", False, result=int(superseded[1]))
                continue
            if found[5].startswith(("+++", "---")):
                continue
            yield time, self._call(tid, found[5])

    def _call(self, tid: int, text: str) -> Call:
        if whole := _WHOLE.fullmatch(text):
            call = self._entry(tid, whole[1], whole[2])
            call.result, call.over = _number(whole[3]), True
            return call
        if begun := _BEGUN.fullmatch(text):
            return self._entry(tid, begun[1], begun[2])
        if resumed := _RESUMED.fullmatch(text):
            return Call(tid, resumed[1], False, result=_number(resumed[2]), over=True)
        if " resumed>" in text or text.endswith(("<unfinished ...>", "<detached ...>")):
            return Call(tid, "", False)
        raise self.lines.wrong(f"not a call: {text[:60]!r}", _STEP)

    def _entry(self, tid: int, name: str, text: str) -> Call:
        call = Call(tid, name, True)
        if name in _ARGUMENTS:
            words = _COMMENT.sub("", text).split(", ")
            if name == "mmap":
                del words[4:-1]  # a descriptor with its path (-y) may have commas
                words.insert(4, "0")
            if name == "mremap":
                words += ["0"] * (5 - len(words))
            if len(words) != _ARGUMENTS[name]:
                raise self.lines.wrong(f"{name} with {len(words)} arguments", _STEP)
            numbers = [self._value(word) for word in words]
            call.args = tuple(numbers)
        elif name in ("execve", "execveat"):
            path = _QUOTED.search(text)
            call.text = path[1] if path else ""
            self.command = self.command or " ".join(_QUOTED.findall(text)[1:])
        elif name in ("clone", "clone3"):
            flags = _CLONE_FLAGS.search(text)
            words = flags[1].split("|") if flags else []
            call.flags = sum(_CLONE.get(word, 0) for word in words)
        call.flags |= _FORKS.get(name, 0)
        return call

    def _value(self, word: str) -> int:
        value = 0
        for name in word.split("|"):
            if name in _NAMES:
                value |= _NAMES[name]
            elif huge := _HUGE.fullmatch(name):
                value |= int(huge[1]) << 26
            else:
                number = _number(name)
                if number is None:
                    raise self.lines.wrong(f"no number or name known: {name!r}", _STEP)
                value |= number
        return value


def _number(word: str) -> int | None:
    """Return a number in C's notation; None if it is none."""
    try:
        if len(word) > 1 and word[0] == "0" and word.isdigit():
            return int(word, 8)
        return int(word, 0)
    except ValueError:
        return None


@dataclass
class Merge:
    """Feeds a converter with records made of calls, between those of perf."""

    converter: Converter
    process: dict[int, int]  # thread -> process
    time: int = 0
    _in: dict[int, Call] = field(default_factory=dict)  # calls that have not ended
    _flags: dict[int, int] = field(default_factory=dict)  # of the clone that a thread is in
    _program: dict[int, str] = field(default_factory=dict)  # of the execve that a thread is in

    def call(self, time: int, call: Call) -> None:
        """Take a line of strace."""
        self.time = max(self.time, time)
        tid = call.tid
        self._end(tid)
        if call.name == "superseded" and call.result is not None:
            self._program[tid] = self._program.pop(call.result, "")
            return
        program = self._program.pop(tid, "")
        if program and not (call.name == "execve" and not call.entered):
            self._feed(tid, EXEC, exec_data(program))
        if call.entered:
            if call.name in _ARGUMENTS:
                self._feed(tid, f"syscalls:sys_enter_{call.name}", call_data(*call.args))
                self._in[tid] = call
            elif call.text and call.result in (0, None):
                self._program[tid] = call.text
            self._flags[tid] = call.flags
        elif call.name in _ARGUMENTS and call.result is not None:
            self._feed(tid, f"syscalls:sys_exit_{call.name}", call_data(call.result))
        elif program and call.result == 0:
            self._feed(tid, EXEC, exec_data(program))

    def record(self, record: Record) -> None:
        """Take a record of perf."""
        self.time = max(self.time, record.time)
        if record.type != perfdata.RECORD_MMAP2:
            self._end(record.tid)
        self.converter.feed(record._replace(time=self.time))
        if record.type == perfdata.RECORD_FORK:
            self._feed(record.tid, NEWTASK, newtask_data(self._flags.get(record.tid, 0)))

    def _end(self, tid: int) -> None:
        """End the call that a thread was in, if strace said how it ended."""
        call = self._in.get(tid)
        if call is None or not call.over:
            return
        del self._in[tid]
        if call.result is not None:
            self._feed(tid, f"syscalls:sys_exit_{call.name}", call_data(call.result))

    def _feed(self, tid: int, event: str, data: bytes) -> None:
        pid = self.process.get(tid, tid)
        kind = perfdata.RECORD_SAMPLE
        self.converter.feed(Record(self.time, kind, 0, event, pid, tid, data))

    def finish(self) -> None:
        """End all calls."""
        for tid in list(self._in):
            self._end(tid)


def read(files: list[Path], options: Options, emit: Emit, progress: Progress) -> Imported:
    """Import one text of strace, and the faults of ``--faults``."""
    if options.faults is None:
        raise TraceError(
            f"{files[0]}: strace knows no page faults; give those of the same run with --faults FILE"
        )
    if len(files) > 1:
        raise TraceError(f"{files[1]}: one text of strace at a time; trace with -f and -o, not -ff")
    strace = Strace(Lines(files[0], progress))
    script = PerfScript(Lines(options.faults), STEP.format("addr"))
    held = Held(options.page_size)
    merge: Merge | None = None
    root = 0
    calls: Iterator[tuple[int, Call | Record]] = iter(strace.calls())
    records: Iterator[tuple[int, Call | Record]] = ((r.time, r) for r in script.records())
    for time, item in heapq.merge(calls, records, key=itemgetter(0)):
        if isinstance(item, Call):
            script.calls[item.name] = script.calls.get(item.name, 0) + item.entered
            root = root or item.tid
            if merge is None:
                early = item
                continue
            merge.call(time, item)
            continue
        if merge is None:
            if not root_of(item) or item.pid != root:
                continue
            converter = Converter(root, EVENTS, options.page_size, held.add, Cleaner())
            merge = Merge(converter, script.process)
            merge.record(item)
            merge.call(time, early)  # execve is entered before the program begins
            continue
        merge.record(item)
    if merge is None:
        raise TraceError(
            f"{options.faults}: process {root} of {files[0]} begins no program in it, in its time; make "
            "both in one run, perf with -k realtime, and " + STEP.format("addr")
        )
    merge.finish()
    result = finished(script.lines, script, merge.converter, held, emit)
    result.command = strace.command
    result.limits.append(LIMIT)
    return result
