# SPDX-License-Identifier: GPL-2.0-only
"""strace's lines, and their merge with perf's records into those that tracepoints would give."""

from __future__ import annotations

import gzip
import io
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtmm.tools.trace import perfdata, stracelog
from virtmm.tools.trace.access import Accesses
from virtmm.tools.trace.convert import Converter
from virtmm.tools.trace.format import KIND_FAULT, KINDS, TraceError, TraceWriter
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.perfdata import PAGE_FAULTS, PerfData, Record
from virtmm.tools.trace.stracelog import Merged, numbers, parse, unquote

DATA = Path(__file__).parent / "data"
# `/bin/sh -c "/bin/true & wait"`, recorded by each back-end: perf's data without other processes'
# mappings, strace's lines as they were; and the pid of the shell.
PERF, USER = ("perf.gz", 27986), ("user.gz", 28039)


def line(text: str, time: int = 5, tid: int = 7) -> str:
    return f"{tid}  1700000000.{time:09} {text}\n"


BASE = 1700000000 * 10**9


def test_lines() -> None:
    found = parse(line("mmap(NULL, 8192, 0x3, 0x22, -1, 0x26000) = 0x7f00 <0.000000004>"))
    assert found is not None
    assert (found.tid, found.time, found.duration) == (7, BASE + 5, 4)
    assert (found.name, found.resumed, found.unfinished, found.result) == (
        "mmap",
        False,
        False,
        0x7F00,
    )
    assert numbers(found.text) == [0, 8192, 3, 0x22, 2**64 - 1, 0x26000]
    found = parse(line("munmap(0x1000, 65536 <unfinished ...>"))
    assert found is not None
    assert (found.unfinished, found.result, numbers(found.text)) == (True, None, [0x1000, 65536])
    found = parse(line("<... munmap resumed>) = 0 <0.000000010>"))
    assert found is not None
    assert (found.name, found.resumed, found.result) == ("munmap", True, 0)
    for text, result in (
        ("munmap(0x1, 4096) = -1 EINVAL (Invalid argument) <0.000000004>", -1),
        ("mmap(NULL, 4096, 0x3, 0x22, -1, 0) = ? <unavailable>", -4),
        ("brk(NULL)                         = 0x55e000 <0.000000004>", 0x55E000),
    ):
        found = parse(line(text))
        assert found is not None
        assert found.result == result
    assert parse(line("--- SIGCHLD {si_signo=SIGCHLD} ---")) is None
    assert parse(line("+++ exited with 0 +++")) is None
    with pytest.raises(TraceError, match=r"strace printed 'mmap\(NULL.*older than 5\.3"):
        parse("mmap(NULL, 8192, 0x3, 0x22, -1, 0) = 0x7f00\n")


def test_strings() -> None:
    assert unquote(r'"/bin/x", ["x"], 0x55 /* 3 vars */') == b"/bin/x"
    assert unquote(r'"/a\"b\\c\303\244\n\t/d"') == b'/a"b\\c\xc3\xa4\n\t/d'
    assert unquote("0x1234, NULL") == b""


def fault(time: int, *, tid: int = 7, kernel: bool = False) -> Record:
    data = struct.pack("<2Q", 0x400000, 0x1000 + time)
    return Record(
        BASE + time, perfdata.RECORD_SAMPLE, 1 if kernel else 2, PAGE_FAULTS, 7, tid, data
    )


def other(kind: int, time: int, data: bytes = b"", tid: int = 7) -> Record:
    return Record(BASE + time, kind, 0, "", 7, tid, data)


def merged(records: list[Record], text: str) -> list[tuple[int, str, int]]:
    """Time, what, and thread of what the merge gives."""
    names = {
        perfdata.RECORD_MMAP2: "mmap2",
        perfdata.RECORD_FORK: "fork",
        perfdata.RECORD_EXIT: "exit",
    }
    found = Merged(7).records(records, io.StringIO(text))
    return [(r.time - BASE, r.event.rpartition(":")[2] or names[r.type], r.tid) for r in found]


MMAP = "mmap(NULL, 4096, 0x3, 0x22, -1, 0) = 0x7f00 <0.000000004>"


def test_a_call_ends_before_its_thread_goes_on() -> None:
    records = [fault(3), other(perfdata.RECORD_MMAP2, 30), fault(35, tid=8), fault(40, kernel=True),
               fault(50)]  # fmt: skip
    assert merged(records, line(MMAP, 10)) == [
        (3, PAGE_FAULTS, 7),
        (10, "sys_enter_mmap", 7),
        (30, "mmap2", 7),
        (35, PAGE_FAULTS, 8),
        (40, PAGE_FAULTS, 7),  # in the call, by the kernel
        (50, "sys_exit_mmap", 7),
        (50, PAGE_FAULTS, 7),
    ]


def test_a_call_ends_before_the_next_line_the_thread_and_a_limit() -> None:
    text = line(MMAP, 10) + line("munmap(0x7f00, 4096) = 0 <0.000000004>", 20, 8)
    assert [(t, e) for t, e, _ in merged([], text)][:3] == [
        (10, "sys_enter_mmap"),
        (20, "sys_exit_mmap"),
        (20, "sys_enter_munmap"),
    ]
    assert merged([other(perfdata.RECORD_EXIT, 30)], line(MMAP, 10))[1:] == [
        (30, "sys_exit_mmap", 7),
        (30, "exit", 7),
    ]
    late = 3 * 10**9
    assert merged([fault(late, tid=8)], line(MMAP, 10))[1][:2] == (10**9 + 14, "sys_exit_mmap")


def test_interleaved_calls() -> None:
    text = (
        line("mmap(NULL, 4096, 0x3, 0x22, -1, 0 <unfinished ...>", 10)
        + line("munmap(0x1000, 4096 <unfinished ...>", 11, 8)
        + line("<... mmap resumed>) = 0x7f00 <0.000000004>", 12)
        + line("<... munmap resumed>) = 0 <0.000000004>", 13, 8)
        + line("<... brk resumed>) = 0 <0.000000004>", 14, 9)  # began before we looked
    )
    assert merged([], text) == [
        (10, "sys_enter_mmap", 7),
        (11, "sys_enter_munmap", 8),
        (12, "sys_exit_mmap", 7),
        (13, "sys_exit_munmap", 8),
    ]


@pytest.mark.parametrize(
    ("call", "flags"),
    [
        ("fork()", 0),
        ("vfork(", 0x4100),
        ("clone(child_stack=NULL, flags=0x1200000|17, child_tidptr=0x7f)", 0x1200000),
        ("clone3({flags=0x4100, exit_signal=17, stack=0x7f}, 88)", 0x4100),
    ],
)
def test_flags_of_a_fork(call: str, flags: int) -> None:
    forked = other(perfdata.RECORD_FORK, 15, struct.pack("<4iQ", 9, 7, 9, 8, 0))
    text = line(call + " <unfinished ...>", 10, 8) + line("<... x resumed>) = 9 <0.0>", 20, 8)
    records = list(Merged(7).records([forked], io.StringIO(text)))
    assert [r.event for r in records] == ["", "task:task_newtask"]
    new = records[1]
    assert (new.pid, new.tid, new.time) == (7, 8, BASE + 15)
    assert stracelog.EVENTS[new.event].reader("clone_flags")(new.data) == (flags,)


def test_exec_by_another_thread() -> None:
    thread = other(perfdata.RECORD_FORK, 1, struct.pack("<4iQ", 7, 7, 9, 7, 0))
    text = (
        line(
            'execve("/bin/no", ["no"], 0x1) = -1 ENOENT (No such file or directory) <0.000000009>',
            5,
            9,
        )
        + line('execve("/bin/y", ["y"], 0x1 <unfinished ...>', 10, 9)
        + "7  1700000000.000000011 +++ superseded by execve in pid 9 +++\n"
        + line("<... execve resumed>) = 0 <0.000000009>", 20)
    )
    (done,) = [r for r in Merged(7).records([thread], io.StringIO(text)) if r.event]
    assert (done.event, done.pid, done.tid) == ("sched:sched_process_exec", 7, 7)
    field = stracelog.EVENTS[done.event].fields["filename"]
    assert perfdata.data_loc(done.data, field) == "/bin/y"


def test_a_last_line_cut_short_is_no_line() -> None:
    text = line(MMAP, 10) + line(MMAP, 20)[:-5]
    assert [e for _, e, _ in merged([], text)] == ["sys_enter_mmap", "sys_exit_mmap"]


def converted(name: str, pid: int, path: Path) -> list[tuple[Any, ...]]:
    """Convert a stored sample as record does; return its rows."""
    plain = path.with_suffix(".data")
    plain.write_bytes(gzip.decompress((DATA / name).read_bytes()))
    lines = DATA / name.replace("gz", "strace")
    accesses = Accesses(4096, fetches_told=True)
    rows: list[tuple[Any, ...]] = []
    with plain.open("rb") as file:
        source = PerfData(file)
        events = {**stracelog.EVENTS, **source.events}
        for emit in (accesses.note, lambda row: rows.append(accesses.settle(row))):
            converter = Converter(pid, events, 4096, emit, Cleaner([]))
            records = source.records(lambda _done: None, release=False)
            if lines.exists():
                records = Merged(pid).records(records, lines.read_text().splitlines(keepends=True))
            for record in records:
                converter.feed(record)
            converter.finish()
        assert source.lost == 0
        source.close()
    with TraceWriter(path, {"page_size": 4096}) as writer:
        for row in rows:
            writer.append_row(row)
    return rows


def test_both_back_ends_tell_the_same(
    tmp_path: Path, replay: Callable[[Path], Counter[str]]
) -> None:
    seen = []
    for name, pid in (PERF, USER):
        path = tmp_path / f"{pid}.parquet"
        rows = converted(name, pid, path)
        problems = replay(path)
        assert problems.pop("fault") > 100
        assert not +problems
        numbers: dict[int, int] = {0: 0}
        seen.append([])
        for row in rows:
            who = numbers.setdefault(row[1], len(numbers))
            arg = numbers.setdefault(row[12], len(numbers)) if KINDS[row[3]] == "fork" else row[12]
            file = row[11] and row[11].path
            seen[-1].append((who, *row[3:11], file, arg))
    calls = [Counter(row for row in rows if row[1] != KIND_FAULT) for rows in seen]
    assert calls[0] == calls[1]
    assert {KINDS[row[1]]: n for row, n in calls[0].items() if row[1] in (6, 7, 8)} == {
        "fork": 1, "exec": 1, "exit": 1,
    }  # fmt: skip
    # The shell gives the names of its programs; a fault's place is the same, and its access but for
    # pages that were mapped around another fault (bit 0 of the flags) and those the kernel met.
    places = [
        Counter((row[0], row[2], row[6]) for row in rows if row[1] == KIND_FAULT) for rows in seen
    ]
    kernel = sum(1 for row in seen[0] if row[1] == KIND_FAULT and row[7] & 2)
    assert kernel > 0
    assert sum((places[0] - places[1]).values()) <= kernel + 2
    assert sum((places[1] - places[0]).values()) <= 2
