# SPDX-License-Identifier: GPL-2.0-only
"""
Replay: the events of a trace, one after another, on a booted machine; what it cost as a result.

A fault of the trace is an access: under another kernel it may find its page mapped already, and
then costs nothing.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtmm.tools.replay.executables import executables
from virtmm.tools.replay.relayout import AddressSpace, AddressSpaceError
from virtmm.tools.report.cost import CostTable, load_costs
from virtmm.tools.trace.schema import (
    FAULT_KERNEL,
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
    TraceError,
)

import virtmm
from virtmm import topdir
from virtmm.machine import CLONE_VM, Machine, is_oom
from virtmm.policy import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtmm.tools.replay.relayout import Call
    from virtmm.tools.trace.format import TraceReader
    from virtmm.tools.trace.schema import Row

    from virtmm.kconfig import ResolvedConfig
    from virtmm.policy import Policy

_PROT_WRITE = 2
#: Of the recorded protection: read, write, execute, and arm64's memory tags (PROT_MTE).
_PROT = 0x27
_MAP_FIXED = 0x10
_MAP_GROWSDOWN = 0x100
_MAP_FIXED_NOREPLACE = 0x100000
#: A fault so near below the stack that exec mapped is on the stack.
_STACK_GROWS = 8 << 20
#: Advice that takes memory away, so that it must not reach beyond what it was given for:
#: DONTNEED FREE REMOVE DONTFORK WIPEONFORK COLD PAGEOUT DONTNEED_LOCKED
_DESTRUCTIVE_ADVICE = frozenset((4, 8, 9, 10, 18, 20, 21, 24))

#: Mappings that a result lists, those that lost most.
MOST_MAPPINGS = 100

SIMPLIFIED = (
    "file pages are always cached; their faults are minor, contents zero",
    "page cache is not reclaimed and there is no swap: memory that runs out ends the replay",
)
SIMPLIFIED_RELAYOUT = "addresses laid out anew for larger base pages (tools/replay/relayout.py)"
SIMPLIFIED_EXECUTABLES = (
    "executable files moved to addresses that suit large folios (tools/replay/executables.py)"
)
SIMPLIFIED_SMALLER = (
    "mappings moved closer together: the address space is smaller than the recorded one "
    "(tools/replay/relayout.py)"
)
SIMPLIFIED_LARGER = "recorded with larger pages: what was touched within one is known once a page"
SIMPLIFIED_AROUND = "recorded with fault-around: which file pages it mapped is not known"


class OutOfMemoryError(Exception):
    """The machine ran out of memory at an event; it ends the replay and is a result."""


@dataclass
class Replay:
    """
    One trace on one machine.

    Attributes:
        spaces: pid -> the process's address space in both layouts; empty when addresses stay.
        recorded_top: end of the recorded address space if the machine's is smaller, else 0.
        programs: (pid, programs it had started before) -> the command that it ran then.
        segv: accesses that the virtual kernel refused.
        row: the event that is being replayed, counted from 0 as trace files are.
        refused: memory calls that it refused and the recorded kernel had not.
    """

    machine: Machine
    reader: TraceReader
    segv: int = 0
    refused: int = 0
    row: int = 0
    recorded_top: int = 0
    spaces: dict[int, AddressSpace] = field(default_factory=dict)
    commands: dict[int, str] = field(default_factory=dict)
    programs: dict[tuple[int, int], str] = field(default_factory=dict)
    _execs: dict[int, int] = field(default_factory=dict)
    _stacks: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    _starting: dict[int, int] = field(default_factory=dict)  # exec still maps: the last object
    _files: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose between replaying addresses as they are and laying them out anew."""
        machine = self.machine
        if highest := self.reader.highest(machine.task_size):
            self.recorded_top = 1 << highest.bit_length()
        order = machine.k.config.exec_folio_order
        self.exec_align = machine.page_size << order if order else 0
        larger = machine.page_size > self.reader.page_size
        self.relayout = larger or self.recorded_top > 0 or order > 0
        self._executables = executables(self.reader) if order else frozenset()
        self._handlers: dict[int, Callable[[Row], None]] = {
            KIND_MMAP: self._mmap,
            KIND_MUNMAP: self._munmap,
            KIND_MREMAP: self._mremap,
            KIND_MPROTECT: self._mprotect,
            KIND_MADVISE: self._madvise,
            KIND_BRK: self._brk,
            KIND_FORK: self._fork,
            KIND_EXEC: self._exec,
            KIND_EXIT: self._exit,
        }

    def run(self, progress: Callable[[int], None] = lambda _: None) -> None:
        """
        Replay every event.

        Args:
            progress: called after each batch with the rows done so far.

        Raises:
            TraceError: the trace contradicts itself, or a program does not fit into the addresses.
            OutOfMemoryError: the machine has none left; ``row`` is the event.
        """
        touch, handlers, spaces = self.machine.touch, self._handlers, self.spaces
        known, done = self.machine.has, 0
        together = self.machine.fast and not self.relayout
        for batch in self.reader.batches():
            behind = 0  # first row of the batch that no run of faults has done
            for at, event in enumerate(batch):
                if at < behind:
                    continue
                if together and event[3] == KIND_FAULT:
                    behind = self._faults(batch, at, done)
                    if at < behind:
                        continue
                self.row = done + at
                pid, kind = event[1], event[3]
                if not known(pid) and kind != KIND_EXEC:
                    raise TraceError(
                        f"{self.reader.path}: row {self.row}: process {pid} was never started; "
                        "record the program from its start"
                    )
                if kind != KIND_FAULT:
                    try:
                        handlers[kind](event)
                    except AddressSpaceError:
                        raise self._no_room(pid) from None
                    continue
                if self._starting and not event[9] & FAULT_KERNEL:
                    self._starting.pop(pid, None)
                address = event[4]
                if self._stacks and pid in self._stacks:
                    try:
                        self._fill_stack(pid, address)
                    except AddressSpaceError:
                        raise self._no_room(pid) from None
                if spaces:
                    moved = spaces[pid].address(event[4])
                    if moved is None:
                        self.segv += 1
                        continue
                    address = moved
                error = touch(pid, address, bool(event[8] & _PROT_WRITE))
                if error:
                    self._fault_error(error)
            done += len(batch)
            progress(done)

    def _faults(self, batch: Sequence[Row], at: int, done: int) -> int:
        """
        Replay a run of faults of a batch together, from row ``at`` on; return where the run ends.

        It ends at a call, at a process that exec is still making, and at one that was never started.
        """
        starting, stacks, record = self._starting, self._stacks, self.machine.task_record
        words = array("Q")
        for i in range(at, len(batch)):
            event = batch[i]
            pid = event[1]
            if event[3] != KIND_FAULT or pid in starting or pid in stacks or not record(pid):
                break
            words.extend((record(pid), event[4], event[8] & _PROT_WRITE != 0))
        accesses, first, nr = memoryview(words), 0, len(words) // 3
        while first < nr:
            first, error = self.machine.touch_many(accesses, first, nr)
            if error:
                self.row = done + at + first
                self._fault_error(error)
                first += 1
        return at + nr

    def _no_room(self, pid: int) -> TraceError:
        machine = self.machine
        return TraceError(
            f"{self.reader.path}: row {self.row}: process {pid} does not fit into the "
            f"{machine.task_size >> 20} MiB of addresses that {machine.config.arch} gives it; "
            "replay it on another architecture"
        )

    def _fault_error(self, error: int) -> None:
        if is_oom(error):
            raise OutOfMemoryError
        self.segv += 1

    def _check(self, error: int) -> None:
        """Note what the virtual kernel refused; running out of memory ends the replay."""
        if error == -12 and self.machine.vmstat()["oom_kill"]:
            raise OutOfMemoryError
        if error:
            self.refused += 1

    def _file(self, index: int) -> int:
        if not index:
            return 0
        if index not in self._files:
            file = self.reader.files[index]
            self._files[index] = self.machine.open(file.inode, file.size)
        return self._files[index]

    def _fill_stack(self, pid: int, address: int | None = None) -> None:
        """
        Map the stack that exec made for a process, at its first fault on it (None = it had none yet).

        exec writes arguments and environment at the top of the new stack before the program runs,
        through get_user_pages(), which no tracepoint sees. What lies above the page of the first
        fault was filled so, page by page downwards, each a minor fault; the stack grew with them, so
        none could get a large folio. With no fault to go by it is the topmost page alone.
        """
        start, end, prot = self._stacks[pid]
        page, recorded = self.machine.page_size, self.reader.page_size
        if address is not None and not start - _STACK_GROWS <= address < end:
            return
        if address is None or address < start:
            address = end - 2 * recorded
        del self._stacks[pid]
        filled = (address & -recorded) + recorded
        low, top, low_filled = start, end, filled
        if self.relayout:
            space = self.spaces[pid]
            low, length, calls = space.mmap(start, end - start, 0, prot, grows=True)
            self._make(pid, calls)
            top = low + length
            low_filled = (space.address(filled) or top) & -page if filled < end else top
        at = top - page
        flags = _MAP_FIXED | _MAP_GROWSDOWN
        self._check(self.machine.mmap(pid, at, page, prot, flags, by_exec=True))
        while at >= low_filled:
            error = self.machine.touch(pid, at, True)
            if error:
                self._fault_error(error)
            at -= page
        at += page
        if low < at:
            self._check(self.machine.mmap(pid, low, at - low, prot, flags, by_exec=True))

    def _mmap(self, event: Row) -> None:
        _, pid, _, _, start, length, _, _, prot, flags, offset, file, _ = event
        page = self.machine.page_size
        if pid in self._starting and flags & _MAP_GROWSDOWN and not file:
            self._stacks[pid] = (start, start + length, prot & 7)
            return
        if self.relayout:
            space = self.spaces[pid]
            start, length, calls = space.mmap(
                start,
                length,
                offset if file else 0,
                prot & _PROT,
                grows=bool(flags & _MAP_GROWSDOWN),
                part_of=self._object(pid, file),
            )
            self._make(pid, calls)
        flags = flags & ~_MAP_FIXED_NOREPLACE | _MAP_FIXED
        error = self.machine.mmap(
            pid,
            start,
            length,
            prot & _PROT,
            flags,
            self._file(file),
            offset // page,
            by_exec=pid in self._starting,
        )
        self._check(error)

    def _object(self, pid: int, file: int) -> int:
        """Return the executable object that a new mapping belongs to; what exec maps behind it is bss."""
        found = file if self.reader.files[file] in self._executables else 0
        if pid in self._starting:
            found = found if file else self._starting[pid]
            self._starting[pid] = found
        return found

    def _make(self, pid: int, calls: list[Call]) -> None:
        for name, args in calls:
            self._check(getattr(self.machine, name)(pid, *args))

    def _munmap(self, event: Row) -> None:
        pid, start, length = event[1], event[4], event[5]
        if self.relayout:
            self._make(pid, self.spaces[pid].munmap(start, length))
        else:
            self._check(self.machine.munmap(pid, start, length))

    def _mprotect(self, event: Row) -> None:
        pid, start, length, prot = event[1], event[4], event[5], event[8] & _PROT
        if self.relayout:
            self._make(pid, self.spaces[pid].mprotect(start, length, prot))
        else:
            self._check(self.machine.mprotect(pid, start, length, prot))

    def _madvise(self, event: Row) -> None:
        pid, start, length, advice = event[1], event[4], event[5], event[12]
        if not self.relayout:
            self._check(self.machine.madvise(pid, start, length, advice))
            return
        space = self.spaces[pid]
        rule = space.inside if advice in _DESTRUCTIVE_ADVICE else space.around
        for low, high in rule(start, length):
            self._check(self.machine.madvise(pid, low, high - low, advice))

    def _mremap(self, event: Row) -> None:
        _, pid, _, _, start, length, to, new_length, _, flags, *_ = event
        if self.relayout:
            self._make(pid, self.spaces[pid].mremap(start, length, to, new_length, flags))
        else:
            self._check(self.machine.mremap(pid, start, length, to, new_length, flags))

    def _brk(self, event: Row) -> None:
        pid, start, length = event[1], event[4], event[5]
        if self.relayout:
            self._make(pid, self.spaces[pid].brk(start, length))
        else:
            self._check(self.machine.brk(pid, start, start + length))

    def _fork(self, event: Row) -> None:
        pid, flags, child = event[1], event[9], event[12]
        if pid in self._stacks:
            self._fill_stack(pid)
        if self.machine.has(child):
            raise TraceError(
                f"{self.reader.path}: row {self.row}: process {child} exists already; "
                "the trace misses its exit: record again"
            )
        self._check(self.machine.fork(pid, child, flags & CLONE_VM))
        self.commands[child] = self.programs[child, 0] = self.commands.get(pid, "")
        if self.relayout:
            space = self.spaces[pid]
            self.spaces[child] = space if flags & CLONE_VM else space.copy()

    def _exec(self, event: Row) -> None:
        pid = event[1]
        if not self.machine.has(pid):  # the recorder's own fork, before the recording began
            self._check(self.machine.spawn(pid))
        self._check(self.machine.exec(pid))
        self._stacks.pop(pid, None)
        self._starting[pid] = 0
        self.commands[pid] = Path(self.reader.files[event[11]].path).name
        self._execs[pid] = self._execs.get(pid, 0) + 1
        self.programs[pid, self._execs[pid]] = self.commands[pid]
        if self.relayout:
            machine = self.machine
            self.spaces[pid] = AddressSpace(
                machine.page_size,
                machine.task_size,
                self.reader.page_size,
                self.recorded_top,
                self.exec_align,
            )

    def _exit(self, event: Row) -> None:
        if event[1] in self._stacks:
            self._fill_stack(event[1])
        self.machine.exit(event[1])
        self.spaces.pop(event[1], None)
        self._execs.pop(event[1], None)


def replay(
    reader: TraceReader,
    config: ResolvedConfig,
    kernel: str,
    settings: Sequence[str] = (),
    *,
    arch_dir: Path | None = None,
    policy: Policy | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """
    Replay a trace under a configuration and return the result (tools/report/result.py).

    Args:
        kernel: what to call the configuration.
        settings: run-time knobs, ``NAME=VALUE``.
        policy: chooses folio sizes in the place of the configuration's ANON_POLICY.
        progress: called now and then with the number of events done.

    Raises:
        TraceError, ConfigError, BuildError, ArchError, BootError, CostError, PolicyError: what, where,
            next step.
    """
    folder = arch_dir or topdir() / "arch" / config.arch
    with Machine(config, settings, arch_dir=arch_dir, policy=policy) as machine:
        costs = load_costs(folder, machine.page_size, str(config["COST_RELEASE"]))
        run = Replay(machine, reader)
        oom = None
        try:
            run.run(progress)
        except OutOfMemoryError:
            oom = _out_of_memory(run)
        except PolicyError as e:
            raise PolicyError(f"{reader.path}: row {run.row}: {e}") from e
        identity = _identity(run, kernel, settings, costs)
        if policy is not None:
            identity["policy"] = {"file": policy.path.name, "hash": policy.hash}
        return {**identity, **_figures(run, costs), "oom": oom}


def _out_of_memory(run: Replay) -> dict[str, Any]:
    machine = run.machine
    pid = machine.current_pid()
    return {
        "pid": pid,
        "command": run.commands.get(pid, ""),
        "held": machine.rss(pid),
        "event": run.row,
    }


def _identity(
    run: Replay, kernel: str, settings: Sequence[str], costs: CostTable
) -> dict[str, Any]:
    reader, machine = run.reader, run.machine
    command = reader.metadata.get("command", "")
    simplified = [*SIMPLIFIED, *costs.simplified]
    if machine.page_size > reader.page_size:
        simplified.append(SIMPLIFIED_RELAYOUT)
    if run.exec_align:
        simplified.append(SIMPLIFIED_EXECUTABLES)
    if run.recorded_top:
        simplified.append(SIMPLIFIED_SMALLER)
    if machine.page_size < reader.page_size:
        simplified.append(SIMPLIFIED_LARGER)
    if reader.metadata.get("fault_around_bytes") != reader.page_size:
        simplified.append(SIMPLIFIED_AROUND)
    return {
        "format": "virtmm-result",
        "version": 1,
        "virtmm": virtmm.__version__,
        "trace": {
            "name": Path(reader.path).stem,
            "hash": reader.hash,
            "events": reader.num_events,
            "page_size": reader.page_size,
            "command": command if isinstance(command, str) else " ".join(command),
        },
        "kernel": kernel,
        "arch": machine.config.arch,
        "page_size": machine.page_size,
        "config_hash": machine.config.hash,
        "core_hash": machine.core_hash,
        "settings": list(settings),
        "simplified": simplified,
    }


def _figures(run: Replay, costs: CostTable) -> dict[str, Any]:
    machine = run.machine
    page = machine.page_size
    events = machine.events()
    processes = machine.processes()
    folios: dict[int, int] = {}
    for process in processes:
        for order, count in process.folios.items():
            folios[order] = folios.get(order, 0) + count
    memory = machine.memory()
    memory["peak_rss"] = max((p.maxrss for p in processes), default=0) * page
    return {
        "minflt": sum(p.minflt for p in processes),
        "segv": run.segv,
        "refused_calls": run.refused,
        "folios": {str(order): folios[order] for order in sorted(folios)},
        "events": events,
        "instructions": costs.price(events),
        "cost_table": costs.name,
        "memory": memory,
        "tlb": machine.tlb(),
        "vmstat": machine.vmstat(),
        "work": machine.work(),
        "hugepages": machine.hugepages(),
        "refused_orders": machine.refusals(),
        "refused_mappings": [
            {
                "pid": m.pid,
                "command": run.programs.get((m.pid, m.execs), ""),
                "start": m.start,
                "end": m.end,
                "kind": m.kind,
                "faults": m.faults,
                "refused": m.refused,
            }
            for m in machine.refused_mappings()[:MOST_MAPPINGS]
        ],
        "processes": [
            {
                "pid": p.pid,
                "command": run.commands.get(p.pid, ""),
                "minflt": p.minflt,
                "maxrss": p.maxrss * page,
                "folios": {str(order): n for order, n in p.folios.items()},
            }
            for p in processes
        ],
    }
