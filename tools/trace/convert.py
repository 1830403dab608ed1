# SPDX-License-Identifier: GPL-2.0-only
"""
Turn perf's records into the rows of a trace.

What comes from where:

===========  ===================================================================================
row          source
===========  ===================================================================================
mmap         sys_{enter,exit}_mmap for the range (MMAP2 tells the merged mapping), MMAP2 for the
             file and for the moment; shmat and the like from MMAP2 alone
munmap ...   sys_{enter,exit}_*; brk keeps where each process's heap began
fork         FORK for the pids, task_newtask, which follows at once, for the flags
exec         COMM with the exec bit for the moment, sched_process_exec for the program, MMAP2
             between the two for what the kernel mapped
exit         EXIT of the last thread
fault        exceptions:page_fault_{user,kernel}, or the software event page-faults
===========  ===================================================================================

The moment of a call matters when threads run side by side. What takes memory away counts from its
entry: another thread can have the same range before the call returns. What adds memory counts from
the moment the kernel made the mapping, under the lock. Whether a call succeeded is known only at
its exit; until then its row is a *slot* in a queue, and no row behind it leaves.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from virtmm.tools.trace import perfdata
from virtmm.tools.trace.host import (
    CALLS,
    FAULT_EVENTS,
    OPTIONAL_CALLS,
    OPTIONAL_MAPPERS,
    TRACEPOINT_MACHINES,
)
from virtmm.tools.trace.paths import Cleaner, FileSizes
from virtmm.tools.trace.perfdata import Event, Record, data_loc
from virtmm.tools.trace.schema import (
    FAULT_KERNEL,
    FAULT_PRESENT,
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    File,
)

# include/uapi/asm-generic/mman*.h, linux/sched.h; x86 and the generic numbers agree on these.
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x100
MAP_STACK = 0x20000
CLONE_VM = 0x100
_CSIGNAL = 0xFF

_ARGUMENTS = struct.Struct("<16x6Q").unpack_from  # common fields and the call's number come first
_RESULT = struct.Struct("<16xq").unpack_from
_MMAP2 = struct.Struct("<8x3Q2IQ8x2I").unpack_from
_TWO_ADDRESSES = struct.Struct("<2Q").unpack_from
_TASK = struct.Struct("<4i").unpack_from


@dataclass(slots=True, eq=False)
class Slot:
    """A row's place in the queue: ``row`` is None until it is known, ``open`` while it is not."""

    time: int
    row: tuple[Any, ...] | None = None
    open: bool = True

    def fill(self, row: tuple[Any, ...] | None) -> None:
        """Settle the row; None drops it."""
        self.row = row
        self.open = False


@dataclass(slots=True)
class Heap:
    """The heap of one address space: start (0 = not known yet) and end, and attached segments."""

    start: int = 0
    end: int = 0
    attached: dict[int, int] = field(default_factory=dict)

    def copy(self) -> Heap:
        """Return what a forked child has."""
        return Heap(self.start, self.end, dict(self.attached))


@dataclass(slots=True)
class Process:
    """A process that is followed; ``exec`` is the exec row and ``mapped`` its mappings meanwhile."""

    heap: Heap
    threads: set[int]
    exec: Slot | None = None
    mapped: list[Slot] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A call that a thread is in."""

    name: str
    args: tuple[int, ...]
    slot: Slot | None = None
    mapping: Record | None = None


class Converter:
    """
    Feed it records in time order; it hands rows to ``emit`` in time order.

    Rows begin with the first exec of the process ``root``: what came before is not the program's.
    ``events`` has the formats of the tracepoints, whose error codes are those of ``machine``; an
    access that is not known (of the software event) is 0. ``count`` has the rows so far by kind code.
    """

    def __init__(
        self,
        root: int,
        events: dict[str, Event],
        page_size: int,
        emit: Callable[[tuple[Any, ...]], None],
        cleaner: Cleaner | None = None,
        machine: str = "x86_64",
    ) -> None:
        self.count = [0] * 10
        self.processes = 0
        self.start = 0
        self.end = 0
        self._root = root
        self._mask = page_size - 1
        self._emit = emit
        self._clean = cleaner or Cleaner([])
        self._size = FileSizes()
        self._files: dict[tuple[str, int, int, int], File] = {}
        self._live: dict[int, Process] = {}
        self._calls: dict[int, Call] = {}
        self._forks: dict[int, tuple[Slot, int, int]] = {}
        self._queue: deque[Slot] = deque()
        self._filename = events["sched:sched_process_exec"].fields["filename"]
        self._clone_flags = events["task:task_newtask"].reader("clone_flags")
        self._decode = TRACEPOINT_MACHINES[machine]
        self._faults = {
            name: (events[name].reader("address", "error_code"), flag)
            for name, flag in zip(FAULT_EVENTS, (0, FAULT_KERNEL), strict=True)
            if name in events
        }
        self._handlers: dict[str | int, Callable[[Record, Process], None]] = {
            "task:task_newtask": self._newtask,
            "sched:sched_process_exec": self._exec_done,
            perfdata.RECORD_MMAP2: self._mmap2,
            perfdata.RECORD_EXIT: self._exit,
        }
        for call in (*CALLS, *OPTIONAL_CALLS):
            self._handlers[f"syscalls:sys_enter_{call}"] = self._enter
            self._handlers[f"syscalls:sys_exit_{call}"] = self._leave

    def feed(self, record: Record) -> None:
        """Take one record."""
        fault = self._faults.get(record.event)
        if fault is not None:
            if record.pid in self._live:
                self._fault(record, *fault)
        elif record.event == perfdata.PAGE_FAULTS:
            if record.pid in self._live:
                self._software_fault(record)
        elif record.type == perfdata.RECORD_FORK:
            self._fork(record)
        elif record.type == perfdata.RECORD_COMM:
            self._comm(record)
        else:
            process = self._live.get(record.pid)
            handler = self._handlers.get(record.event or record.type)
            if process is not None and handler is not None:
                handler(record, process)
        self._drain()

    def finish(self) -> None:
        """Drop what never ended and hand out the rest."""
        for slot in self._queue:
            slot.open = False
        self._drain()

    # The queue.

    def _drain(self) -> None:
        queue = self._queue
        while queue and not queue[0].open:
            row = queue.popleft().row
            if row is not None:
                self._out(row)

    def _out(self, row: tuple[Any, ...]) -> None:
        self.count[row[3]] += 1
        self.end = row[0]
        self._emit(row)

    def _open(self, record: Record) -> Slot:
        slot = Slot(record.time - self.start)
        self._queue.append(slot)
        return slot

    def _now(self, record: Record, kind: int, **columns: Any) -> Slot:
        slot = self._open(record)
        slot.fill(self._row(slot, record, kind, **columns))
        return slot

    @staticmethod
    def _row(
        slot: Slot,
        record: Record,
        kind: int,
        *,
        addr: int = 0,
        length: int = 0,
        addr2: int = 0,
        length2: int = 0,
        prot: int = 0,
        flags: int = 0,
        offset: int = 0,
        file: File | None = None,
        arg: int = 0,
    ) -> tuple[Any, ...]:
        return (slot.time, record.pid, record.tid, kind, addr, length, addr2, length2, prot & 0xFF,
                flags & 0xFFFFFFFF, offset, file, arg)  # fmt: skip

    # Faults.

    def _fault(
        self, record: Record, fields: Callable[[bytes], tuple[int, ...]], flags: int
    ) -> None:
        address, error = fields(record.data)
        access, present = self._decode(error)
        self._fault_row(record, address, access, flags | (present and FAULT_PRESENT))

    def _software_fault(self, record: Record) -> None:
        """An instruction that is met where it was to be fetched from is the one known access."""
        instruction, address = _TWO_ADDRESSES(record.data)
        kernel = record.misc & perfdata.MISC_CPUMODE == perfdata.MISC_KERNEL
        self._fault_row(
            record, address, 4 if instruction == address else 0, FAULT_KERNEL if kernel else 0
        )

    def _fault_row(self, record: Record, address: int, access: int, flags: int) -> None:
        if address >> 63:
            return
        row = (record.time - self.start, record.pid, record.tid, KIND_FAULT, address, 0, 0, 0,
               access, flags, 0, None, 0)  # fmt: skip
        if self._queue:
            self._queue.append(Slot(row[0], row, open=False))
        else:
            self._out(row)

    # Processes.

    def _fork(self, record: Record) -> None:
        pid, parent, tid, parent_tid = _TASK(record.data)
        process = self._live.get(parent)
        if process is None:
            return
        if pid == parent:
            process.threads.add(tid)
            return
        self._live[pid] = Process(process.heap.copy(), {tid})
        self.processes += 1
        self._forks[parent_tid] = self._open(record), parent, pid

    def _newtask(self, record: Record, process: Process) -> None:
        fork = self._forks.pop(record.tid, None)
        if fork is None:
            return
        slot, parent, pid = fork
        flags = self._clone_flags(record.data)[0] & ~_CSIGNAL
        if flags & CLONE_VM and pid in self._live:
            self._live[pid].heap = process.heap
        slot.fill(self._row(slot, record._replace(pid=parent), KIND_FORK, flags=flags, arg=pid))

    def _comm(self, record: Record) -> None:
        if not record.misc & perfdata.MISC_COMM_EXEC:
            return
        pid = record.pid
        if pid not in self._live:
            if pid != self._root or self.start:
                return
            self.start = record.time
            self.processes += 1
        # The other threads are gone, and the one that called exec has the leader's number now.
        self._live[pid] = Process(Heap(), {record.tid}, self._open(record))

    def _exec_done(self, record: Record, process: Process) -> None:
        if process.exec is None:
            return
        path = self._clean(data_loc(record.data, self._filename))
        self._settle_exec(record, process, File(path, 0, 0))

    def _settle_exec(self, record: Record, process: Process, file: File) -> None:
        slot, process.exec = process.exec, None
        if slot is not None:
            slot.fill(self._row(slot, record, KIND_EXEC, file=file))
        for mapped, row in zip(process.mapped, trim([s.row for s in process.mapped]), strict=True):
            mapped.fill(row)
        process.mapped.clear()

    def _exit(self, record: Record, process: Process) -> None:
        call = self._calls.pop(record.tid, None)
        if call is not None and call.slot is not None:
            call.slot.fill(None)
        process.threads.discard(record.tid)
        if process.threads:
            return
        if process.exec is not None:  # killed in the middle of it
            self._settle_exec(record, process, File("", 0, 0))
        del self._live[record.pid]
        self._now(record, KIND_EXIT)

    # Mappings.

    def _file(self, mapping: Record) -> File | None:
        """Return the file of an MMAP2 record, None for anonymous memory."""
        _, _, _, major, minor, inode, _, _ = _MMAP2(mapping.data)
        raw = mapping.data[64:].split(b"\0", 1)[0]
        name = raw.decode(errors="replace")
        if name in ("//anon", "[stack]", "[heap]", ""):
            return None
        key = name, major, minor, inode
        file = self._files.get(key)
        if file is None:
            size = self._size(raw, inode) if inode else 0
            identity = (inode ^ ((major << 12 | minor & 0xFFF) << 40)) & 0xFFFFFFFFFFFFFFFF
            file = self._files[key] = File(self._clean(name), identity, size)
        return file

    def _mmap2(self, record: Record, process: Process) -> None:
        if process.exec is not None:
            process.mapped.append(self._mapped(record, self._open(record), MAP_FIXED))
            return
        call = self._calls.get(record.tid)
        if call is None or call.mapping is not None:
            return  # growth of a stack
        call.mapping = record
        if call.name == "mmap" or call.name in OPTIONAL_MAPPERS:
            call.slot = self._open(record)

    def _mapped(self, record: Record, slot: Slot, more: int) -> Slot:
        """Fill a slot with what an MMAP2 record says."""
        addr, length, offset, _, _, _, prot, flags = _MMAP2(record.data)
        file = self._file(record)
        if file is None:
            flags, offset = flags | MAP_ANONYMOUS, 0
            if record.data[64:].startswith(b"[stack]"):
                flags |= MAP_GROWSDOWN | MAP_STACK
        slot.row = self._row(slot, record, KIND_MMAP, addr=addr, length=length, prot=prot,
                             flags=flags | more, offset=offset, file=file)  # fmt: skip
        return slot

    # Calls.

    def _enter(self, record: Record, _process: Process) -> None:
        name = record.event.partition("sys_enter_")[2]
        # perf cuts a call's arguments to as many as it has.
        call = Call(name, _ARGUMENTS(record.data.ljust(64, b"\0")))
        if name in ("munmap", "mprotect", "pkey_mprotect", "madvise", "brk", "shmdt"):
            call.slot = self._open(record)
        self._calls[record.tid] = call

    def _leave(self, record: Record, process: Process) -> None:
        call = self._calls.pop(record.tid, None)
        if call is None or call.name != record.event.partition("sys_exit_")[2]:
            return
        (result,) = _RESULT(record.data)
        failed = -4096 < result < 0
        slot = call.slot
        if slot is None:
            if failed or call.name not in ("mmap", "mremap"):
                return
            slot = self._open(record)
        row = None if failed else self._call_row(call, slot, record, process, result)
        slot.fill(row)

    def _call_row(
        self, call: Call, slot: Slot, record: Record, process: Process, result: int
    ) -> tuple[Any, ...] | None:
        """Make the row of a call that succeeded; None if it changed nothing."""
        a, mask = call.args, self._mask
        length = (a[1] + mask) & ~mask
        name = call.name
        row = None
        if name == "mmap":
            file = None
            if call.mapping is not None and not a[3] & MAP_ANONYMOUS:
                file = self._file(call.mapping)
            row = self._row(slot, record, KIND_MMAP, addr=result, length=length, prot=a[2],
                            flags=a[3], offset=0 if a[3] & MAP_ANONYMOUS else a[5],
                            file=file)  # fmt: skip
        elif name == "mremap":
            row = self._row(slot, record, KIND_MREMAP, addr=a[0], length=length, addr2=result,
                            length2=(a[2] + mask) & ~mask, flags=a[3])  # fmt: skip
        elif name == "brk":
            row = self._brk(call, slot, record, process.heap, result)
        elif name == "shmdt":
            if length := process.heap.attached.pop(a[0], 0):
                row = self._row(slot, record, KIND_MUNMAP, addr=a[0], length=length)
        elif name in OPTIONAL_MAPPERS:
            if call.mapping is not None:
                row = self._mapped(call.mapping, slot, 0).row
                process.heap.attached[result] = row[5] if row else 0
        elif length and name == "munmap":
            row = self._row(slot, record, KIND_MUNMAP, addr=a[0], length=length)
        elif length and name in ("mprotect", "pkey_mprotect"):
            row = self._row(slot, record, KIND_MPROTECT, addr=a[0], length=length, prot=a[2])
        elif length and name == "madvise":
            row = self._row(slot, record, KIND_MADVISE, addr=a[0], length=length, arg=a[2])
        return row

    def _brk(
        self, call: Call, slot: Slot, record: Record, heap: Heap, result: int
    ) -> tuple[Any, ...] | None:
        """A brk() that cannot do as asked returns the old end; the first one nearly always asks 0."""
        wanted = call.args[0]
        if not heap.start:
            moved = wanted == result and call.mapping is not None
            heap.start = _MMAP2(call.mapping.data)[0] if moved and call.mapping else result
        elif result == heap.end:
            return None
        heap.end = result
        return self._row(slot, record, KIND_BRK, addr=heap.start, length=result - heap.start)


def trim(rows: list[tuple[Any, ...] | None]) -> list[tuple[Any, ...] | None]:
    """
    Undo exec's reservations: shorten the first mapping of a file to where its next one begins.

    For a program or interpreter that the kernel places itself, it maps the first segment as long as
    the whole, to find room, and at once unmaps what the segment does not need; perf shows only the
    first. Rows as Converter makes them.

    SIMPLIFIED: a hole between the first and the second segment stays mapped; nothing touches it.
    """
    result = list(rows)
    first: dict[tuple[int, str], int] = {}
    for at, row in enumerate(rows):
        if row is None or row[11] is None:
            continue
        key = row[11].inode, row[11].path
        base = result[first.setdefault(key, at)]
        if base is not None and base[4] < row[4] < base[4] + base[5]:
            result[first[key]] = (*base[:5], row[4] - base[4], *base[6:])
    return result
