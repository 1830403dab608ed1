# SPDX-License-Identifier: GPL-2.0-only
"""
Replay: the events of a trace, one after another, on a booted machine; what it cost as a result.

A fault of the trace is an access: under another kernel it may find its page mapped already, and
then costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtmm.tools.replay.accesses import PROT, Events, at_its_address
from virtmm.tools.replay.executables import executables
from virtmm.tools.replay.figures import figures, identity, out_of_memory
from virtmm.tools.replay.relayout import AddressSpace, AddressSpaceError
from virtmm.tools.report.cost import load_costs
from virtmm.tools.trace.schema import (
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    TraceError,
)

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

_MAP_FIXED = 0x10
_MAP_GROWSDOWN = 0x100
#: A fault so near below the stack that exec mapped is on the stack.
_STACK_GROWS = 8 << 20
#: Advice that takes memory away, so that it must not reach beyond what it was given for:
#: DONTNEED FREE REMOVE DONTFORK WIPEONFORK COLD PAGEOUT DONTNEED_LOCKED
_DESTRUCTIVE_ADVICE = frozenset((4, 8, 9, 10, 18, 20, 21, 24))


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
    _tasks: dict[int, int] = field(default_factory=dict)  # by pid, as told to Events.attend()
    _layouts: dict[int, int] = field(default_factory=dict)
    _events: Events = field(init=False)  # of the batch

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
            TraceError: the trace contradicts itself, or a program does not fit into the addresses, or
                what there is into the machine's tables.
            OutOfMemoryError: the machine has none left; ``row`` is the event.
        """
        done = 0
        page = 0 if self.relayout else self.machine.page_size
        for batch in self.reader.batches():
            self._events = Events(batch, done, page, len(self.reader.files))
            for index, file in self._files.items():
                self._events.accesses.files[index] = file
            self._events.attend_all(self._tasks, self._layouts)
            self._replay()
            done += len(batch)
            progress(done)

    def _call(self, event: Row) -> None:
        pid, kind = event[1], event[3]
        if kind != KIND_EXEC:
            self._check_known(pid)
        try:
            self._handlers[kind](event)
        except AddressSpaceError:
            raise self._no_room(pid) from None

    def _check_known(self, pid: int) -> None:
        if not self.machine.has(pid):
            raise TraceError(
                f"{self.reader.path}: row {self.row}: process {pid} was never started; "
                "record the program from its start"
            )

    def _attend(self, pid: int) -> None:
        """Note what a process is to the machine from now on; 0 = look at each access."""
        if not self.machine.fast:
            return
        special = pid in self._starting or pid in self._stacks
        task = 0 if special else self.machine.task_record(pid)
        space = self.spaces.get(pid) if task else None
        layout = space.pieces.moved.where if space else 0
        for known, now in ((self._tasks, task), (self._layouts, layout)):
            if now:
                known[pid] = now
            else:
                known.pop(pid, None)
        self._events.attend(pid, task, layout)

    def _replay(self) -> None:
        """Replay the events of the batch, as many together as can be."""
        machine, events = self.machine, self._events
        at, end = 0, len(events)
        moved = at if self.relayout else end
        while at < end:
            error = 0
            if machine.fast:
                if moved == at:
                    moved = machine.move_many(events.accesses, at, end)
                at, error = machine.touch_many(events.accesses, at, moved)
                if at == end:
                    break
            self.row = events.row(at)
            if error:
                self._fault_error(error)
            elif call := events.call(at):
                self._call(call)
            else:
                self._touch_one(*events[at])
            at += 1
            moved = max(moved, at)

    def _touch_one(self, pid: int, address: int, write: bool, kernel: bool) -> None:
        """Replay a fault of a process that needs to be looked at, of ``row``."""
        self._check_known(pid)
        if self._starting and not kernel:
            self._starting.pop(pid, None)
        if pid in self._stacks:
            try:
                self._fill_stack(pid, address)
            except AddressSpaceError:
                raise self._no_room(pid) from None
        self._attend(pid)
        if self.relayout:
            moved = self.spaces[pid].address(address)
            if moved is None:
                self.segv += 1
                return
            address = moved
        error = self.machine.touch(pid, address, write)
        if error:
            self._fault_error(error)

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

    def _check_started(self, pid: int, error: int) -> None:
        """End the replay when a process got no address space; nothing that it does could be replayed."""
        self._check(error)
        if error:
            raise TraceError(
                f"{self.reader.path}: row {self.row}: process {pid}: a table of the machine is full, of "
                "address spaces, mappings or processes; replay a recording of fewer processes"
            )

    def _file(self, index: int) -> int:
        if not index:
            return 0
        if index not in self._files:
            file = self.reader.files[index]
            number = self.machine.open(file.inode, file.size)
            if not number:
                raise TraceError(
                    f"{self.reader.path}: row {self.row}: {file.path}, {file.size} bytes: a machine has no "
                    f"place for it beside {len(self._files)} other files; leave it out of the trace"
                )
            self._files[index] = self._events.accesses.files[index] = number
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
                prot & PROT,
                grows=bool(flags & _MAP_GROWSDOWN),
                part_of=self._object(pid, file),
            )
            self._make(pid, calls)
        error = self.machine.mmap(
            pid,
            start,
            length,
            prot & PROT,
            at_its_address(flags),
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
        pid, start, length, prot = event[1], event[4], event[5], event[8] & PROT
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
        self._check_started(child, self.machine.fork(pid, child, flags & CLONE_VM))
        self.commands[child] = self.programs[child, 0] = self.commands.get(pid, "")
        if self.relayout:
            space = self.spaces[pid]
            self.spaces[child] = space if flags & CLONE_VM else space.copy()
        self._attend(pid)
        self._attend(child)

    def _exec(self, event: Row) -> None:
        pid = event[1]
        if not self.machine.has(pid):  # the recorder's own fork, before the recording began
            self._check_started(pid, self.machine.spawn(pid))
        self._check_started(pid, self.machine.exec(pid))
        self._stacks.pop(pid, None)
        self._starting[pid] = 0
        self.commands[pid] = self.reader.files[event[11]].path.rpartition("/")[2]
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
        self._attend(pid)

    def _exit(self, event: Row) -> None:
        if event[1] in self._stacks:
            self._fill_stack(event[1])
        self.machine.exit(event[1])
        self.spaces.pop(event[1], None)
        self._execs.pop(event[1], None)
        self._attend(event[1])


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
    folder = arch_dir or config.arch_dir or topdir() / "arch" / config.arch
    with Machine(config, settings, arch_dir=arch_dir, policy=policy) as machine:
        release = str(config["COST_RELEASE"])
        costs = load_costs(folder, machine.page_size, release, machine.k.pmd_order)
        run = Replay(machine, reader)
        oom = None
        try:
            run.run(progress)
        except OutOfMemoryError:
            oom = out_of_memory(run)
        except PolicyError as e:
            raise PolicyError(f"{reader.path}: row {run.row}: {e}") from e
        result = identity(run, kernel, settings, costs)
        if policy is not None:
            result["policy"] = {"file": policy.path.name, "hash": policy.hash}
        return {**result, **figures(run, costs), "oom": oom}
