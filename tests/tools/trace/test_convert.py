# SPDX-License-Identifier: GPL-2.0-only
"""From perf's records to rows: what each call becomes, and when."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from virtmm.tools.trace import perfdata
from virtmm.tools.trace.convert import MAP_GROWSDOWN, MAP_STACK, Converter, trim
from virtmm.tools.trace.format import FAULT_KERNEL, FAULT_PRESENT, KINDS, File
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.perfdata import Event, Record

PAGE = 4096
ROOT = 100
EVENTS = {
    "exceptions:page_fault_user": {"address": (8, 8, False), "error_code": (24, 8, False)},
    "exceptions:page_fault_kernel": {"address": (8, 8, False), "error_code": (24, 8, False)},
    "task:task_newtask": {"clone_flags": (32, 8, False)},
    "sched:sched_process_exec": {"filename": (8, 4, False)},
}


class Machine:
    """Makes records as perf would, one nanosecond after the other, from the first exec on."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        events = {name: Event(name, 0, fields) for name, fields in EVENTS.items()}
        clean = Cleaner([("/home/me", "~")])
        self.converter = Converter(ROOT, events, PAGE, self.rows.append, clean)
        self.time = 1000

    def feed(
        self,
        kind: int,
        data: bytes,
        *,
        event: str = "",
        pid: int = ROOT,
        tid: int = 0,
        misc: int = 0,
    ) -> None:
        self.converter.feed(Record(self.time, kind, misc, event, pid, tid or pid, data))
        self.time += 1

    def sample(self, event: str, data: bytes, **who: int) -> None:
        self.feed(perfdata.RECORD_SAMPLE, data, event=event, **who)

    def fault(self, address: int, error: int, where: str = "user", **who: int) -> None:
        data = struct.pack("<8x3Q", address, 0, error)
        self.sample(f"exceptions:page_fault_{where}", data, **who)

    def enter(self, call: str, *args: int, **who: int) -> None:
        data = struct.pack(f"<16x{len(args)}Q", *args)
        self.sample(f"syscalls:sys_enter_{call}", data, **who)

    def leave(self, call: str, result: int, **who: int) -> None:
        self.sample(f"syscalls:sys_exit_{call}", struct.pack("<16xq", result), **who)

    def call(self, call: str, *args: int, result: int = 0, **who: int) -> None:
        self.enter(call, *args, **who)
        self.leave(call, result, **who)

    def mmap2(
        self, addr: int, length: int, name: str, *, offset: int = 0, prot: int = 3, flags: int = 2,
        inode: int = 0, **who: int,
    ) -> None:  # fmt: skip
        data = struct.pack("<ii3QIIQQII", 0, 0, addr, length, offset, 8, 1, inode, 0, prot, flags)
        self.feed(perfdata.RECORD_MMAP2, data + name.encode() + b"\0", **who)

    def comm(self, **who: int) -> None:
        self.feed(perfdata.RECORD_COMM, b"", misc=perfdata.MISC_COMM_EXEC, **who)

    def exec_done(self, path: str, **who: int) -> None:
        text = path.encode() + b"\0"
        data = struct.pack("<8xI8x", 20 | len(text) << 16) + text
        self.sample("sched:sched_process_exec", data, **who)

    def exec(self, path: str = "/bin/x", **who: int) -> None:
        self.comm(**who)
        self.exec_done(path, **who)

    def fork(self, child: int, parent: int = ROOT, flags: int = 0x1200000, tid: int = 0) -> None:
        body = struct.pack("<iiiiQ", child, parent, tid or child, parent, 0)
        self.feed(perfdata.RECORD_FORK, body, pid=parent)
        self.sample("task:task_newtask", struct.pack("<32xQ", flags), pid=parent)

    def exit(self, **who: int) -> None:
        self.feed(perfdata.RECORD_EXIT, b"", **who)

    def seen(self) -> list[dict[str, Any]]:
        """Rows so far, without zeros, the kind by name and without the time."""
        names = ("time", "pid", "tid", "kind", "addr", "len", "addr2", "len2", "prot", "flags",
                 "offset", "file", "arg")  # fmt: skip
        rows = [dict(zip(names, row, strict=True)) for row in self.rows]
        for row in rows:
            row["kind"] = KINDS[row["kind"]]
        assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
        return [{k: v for k, v in row.items() if v and k not in ("time", "tid")} for row in rows]


@pytest.fixture
def machine() -> Machine:
    """A machine whose program has just been executed."""
    machine = Machine()
    machine.exec()
    machine.rows.clear()
    return machine


def only(machine: Machine) -> dict[str, Any]:
    """The one row there is."""
    (row,) = machine.seen()
    assert row.pop("pid") == ROOT
    return row


def test_exec_comes_first_with_its_program_and_mappings() -> None:
    machine = Machine()
    machine.fault(0x1000, 2)  # before exec: ours, not the program's
    machine.call("brk", 0, result=0x5000)
    machine.exit(pid=55)
    machine.comm()
    machine.mmap2(0x7FF000, 0x21000, "[stack]")
    machine.mmap2(0x400000, 0x9000, "/home/me/x", prot=1, inode=9)
    machine.mmap2(0x402000, 0x2000, "/home/me/x", prot=5, inode=9, offset=0x2000)
    machine.mmap2(0x409000, 0x1000, "//anon")
    machine.mmap2(0x500000, 0x2000, "[vdso]", prot=5)
    machine.fault(0x409010, 2, "kernel")
    assert machine.rows == []
    machine.exec_done("/home/me/x")
    rows = machine.seen()
    assert [row["kind"] for row in rows] == ["exec", *["mmap"] * 5, "fault"]
    assert rows[0] == {"pid": ROOT, "kind": "exec", "file": File("~/x", 0, 0)}
    assert rows[1]["flags"] == 2 | 0x20 | 0x10 | MAP_GROWSDOWN | MAP_STACK
    assert "file" not in rows[1]
    assert (rows[2]["addr"], rows[2]["len"]) == (0x400000, 0x2000)  # the reservation is undone
    assert rows[3]["offset"] == 0x2000
    assert rows[3]["file"].path == "~/x"
    assert rows[4]["flags"] == 0x32
    assert rows[5]["file"] == File("[vdso]", ((8 << 12 | 1) << 40) & (2**64 - 1), 0)
    assert machine.rows[0][0] == 0


def test_mmap_of_a_file_has_the_calls_range_not_the_merged_one(machine: Machine) -> None:
    machine.enter("mmap", 0, 0x1800, 1, 0x2, 3, 0x4000)
    machine.mmap2(0x10000, 0x9000, "/lib/y", inode=5)
    machine.leave("mmap", 0x12000)
    row = only(machine)
    assert row.pop("file").path == "/lib/y"
    assert row == {
        "kind": "mmap", "addr": 0x12000, "len": 0x2000, "prot": 1, "flags": 2, "offset": 0x4000,
    }  # fmt: skip


def test_anonymous_mmap(machine: Machine) -> None:
    machine.enter("mmap", 0, 0x1000, 3, 0x21, 2**64 - 1, 0)
    machine.mmap2(0x10000, 0x1000, "/dev/zero", inode=5, flags=1)  # how perf names shared memory
    machine.leave("mmap", 0x10000)
    assert only(machine) == {"kind": "mmap", "addr": 0x10000, "len": 0x1000, "prot": 3, "flags": 33}


@pytest.mark.parametrize(
    ("call", "args", "result", "row"),
    [
        ("munmap", (0x1000, 0x1001), 0, {"addr": 0x1000, "len": 0x2000}),
        ("mprotect", (0x1000, 0x1000, 5), 0, {"addr": 0x1000, "len": 0x1000, "prot": 5}),
        ("madvise", (0x1000, 5, 14), 0, {"addr": 0x1000, "len": 0x1000, "arg": 14}),
        ("mremap", (0x1000, 1, 0x1800, 1, 0), 0x9000,
         {"addr": 0x1000, "len": 0x1000, "addr2": 0x9000, "len2": 0x2000, "flags": 1}),
    ],
)  # fmt: skip
def test_calls(
    machine: Machine, call: str, args: tuple[int, ...], result: int, row: dict[str, int]
) -> None:
    machine.call(call, *args, result=-22)
    assert machine.rows == []
    machine.call(call, *args, result=result)
    assert only(machine) == {"kind": call, **row}


def test_calls_without_length_and_pkey(machine: Machine) -> None:
    for call in ("munmap", "mprotect", "madvise"):
        machine.call(call, 0x1000, 0, 3)
    machine.call("pkey_mprotect", 0x1000, 0x1000, 3, 1)
    assert only(machine) == {"kind": "mprotect", "addr": 0x1000, "len": 0x1000, "prot": 3}


def test_brk(machine: Machine) -> None:
    machine.call("brk", 0, result=0x5000)
    machine.call("brk", 0x8010, result=0x8010)
    machine.call("brk", 0x1, result=0x8010)  # refused
    machine.call("brk", 0x6000, result=0x6000)
    assert [(row["addr"], row.get("len", 0)) for row in machine.seen()] == [
        (0x5000, 0), (0x5000, 0x3010), (0x5000, 0x1000),
    ]  # fmt: skip


def test_brk_that_moves_at_once(machine: Machine) -> None:
    machine.enter("brk", 0x8000)
    machine.mmap2(0x5000, 0x3000, "[heap]")
    machine.leave("brk", 0x8000)
    assert only(machine) == {"kind": "brk", "addr": 0x5000, "len": 0x3000}


def test_faults(machine: Machine) -> None:
    machine.fault(0x1234, 4, tid=101)
    machine.fault(0x1234, 7)
    machine.fault(0x1234, 0x14)
    machine.fault(0x1234, 2, "kernel")
    machine.fault(0xFFFFFFFFFF600000, 0x14)
    machine.fault(0x1234, 2, pid=4711)
    assert [(row[2], row[4], row[8], row[9]) for row in machine.rows] == [
        (101, 0x1234, 1, 0),
        (ROOT, 0x1234, 2, FAULT_PRESENT),
        (ROOT, 0x1234, 4, 0),
        (ROOT, 0x1234, 2, FAULT_KERNEL),
    ]


def test_fork_thread_exec_exit(machine: Machine) -> None:
    machine.fork(200)
    machine.fork(ROOT, tid=101, flags=0x10100)  # a thread
    machine.fork(300, flags=0x4111)  # vfork
    machine.exec("/bin/y", pid=300)
    machine.exit()  # the leader; its thread goes on
    machine.exit(pid=300)
    machine.exit(pid=200)
    machine.exit(tid=101)
    machine.fault(1, 2)
    rows = [(r["kind"], r["pid"], r.get("arg"), r.get("flags")) for r in machine.seen()]
    assert rows == [
        ("fork", ROOT, 200, 0x1200000),
        ("fork", ROOT, 300, 0x4100),
        ("exec", 300, None, None),
        ("exit", 300, None, None),
        ("exit", 200, None, None),
        ("exit", ROOT, None, None),
    ]


def test_forked_heap_is_a_copy_a_borrowed_one_is_not(machine: Machine) -> None:
    machine.call("brk", 0, result=0x5000)
    machine.fork(200)
    machine.fork(300, flags=0x4100)
    machine.call("brk", 0x6000, result=0x6000, pid=300)
    machine.call("brk", 0, result=0x6000)  # the same heap: nothing new
    machine.call("brk", 0x7000, result=0x7000, pid=200)
    rows = [(r["pid"], r["len"]) for r in machine.seen() if r["kind"] == "brk" and "len" in r]
    assert rows == [(300, 0x1000), (200, 0x2000)]


def test_exec_by_another_thread_ends_the_others(machine: Machine) -> None:
    machine.fork(ROOT, tid=101, flags=0x10100)
    machine.exit()  # the leader gives way
    machine.exec("/bin/y")
    machine.exit()
    assert [row["kind"] for row in machine.seen()] == ["exec", "exit"]


def test_killed_within_calls(machine: Machine) -> None:
    machine.fork(200)
    machine.enter("munmap", 0x1000, 0x1000, pid=200)
    machine.fault(0x5000, 2)
    machine.exit(pid=200)
    machine.fork(300)
    machine.comm(pid=300)
    machine.exit(pid=300)
    kinds = [row["kind"] for row in machine.seen()]
    assert kinds == ["fork", "fault", "exit", "fork", "exec", "exit"]


def test_what_takes_away_counts_from_its_entry(machine: Machine) -> None:
    """Another thread gets the range before munmap() has returned."""
    machine.enter("munmap", 0x1000, 0x1000, tid=101)
    machine.enter("mmap", 0, 0x1000, 3, 0x22, 0, 0, tid=102)
    machine.mmap2(0x1000, 0x1000, "//anon", tid=102)
    machine.fault(0x1008, 6, tid=102)
    machine.leave("mmap", 0x1000, tid=102)
    assert machine.rows == []
    machine.leave("munmap", 0, tid=101)
    assert [row["kind"] for row in machine.seen()] == ["munmap", "mmap", "fault"]


def test_unfinished_calls_are_dropped_at_the_end(machine: Machine) -> None:
    machine.enter("munmap", 0x1000, 0x1000)
    machine.fault(0x5000, 2)
    assert machine.rows == []
    machine.converter.finish()
    assert [row["kind"] for row in machine.seen()] == ["fault"]


def test_shared_memory_segments(machine: Machine) -> None:
    machine.enter("shmat", 3, 0, 0)
    machine.mmap2(0x10000, 0x4000, "/SYSV00000000", inode=3, flags=1)
    machine.leave("shmat", 0x10000)
    machine.call("shmdt", 0x10000)
    machine.call("shmdt", 0x10000)
    rows = [(row["kind"], row["addr"], row["len"]) for row in machine.seen()]
    assert rows == [("mmap", 0x10000, 0x4000), ("munmap", 0x10000, 0x4000)]


def test_stack_growth_is_no_event(machine: Machine) -> None:
    machine.mmap2(0x7F0000, 0x30000, "[stack]")
    assert machine.rows == []


def test_trim_leaves_others_alone() -> None:
    def row(addr: int, length: int, path: str) -> tuple[Any, ...]:
        return (0, 1, 1, 0, addr, length, 0, 0, 1, 2, 0, File(path, 1, 1) if path else None, 0)

    rows = [row(0, 8, "a"), row(2, 2, "b"), row(3, 1, ""), row(20, 4, "a"), row(4, 2, "a"), None]
    assert trim(rows) == [row(0, 4, "a"), *rows[1:]]
