# SPDX-License-Identifier: GPL-2.0-only
"""Put a scenario to a machine and write down its answer, in the form in which real kernels answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtmm.tools.scenario.parse import (
    REGION_SIZE,
    ScenarioError,
    parse,
    region_address,
    region_letter,
)

from virtmm.kconfig import ConfigError
from virtmm.machine import Machine
from virtmm.policy import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from virtmm.tools.scenario.parse import Command

    from virtmm.kconfig import ResolvedConfig
    from virtmm.machine import MappedPage
    from virtmm.policy import Policy

_MAP_FLAGS = 0x100000 | 0x4000  # MAP_FIXED_NOREPLACE, MAP_NORESERVE
_MREMAP_MAYMOVE_FIXED = 3
#: What `stats` reports of hugepages-<N>kB/stats.
_STATS = (
    "anon_fault_alloc",
    "anon_fault_fallback",
    "split",
    "split_failed",
    "split_deferred",
    "swpout",
    "nr_anon",
    "nr_anon_partially_mapped",
)
#: Knobs that every scenario begins with, whatever .config says.
INITIAL = ("enabled=madvise", "defrag=madvise", "use_zero_page=1")


@dataclass
class Run:
    """One scenario on one machine."""

    machine: Machine
    path: Path
    pids: dict[str, int] = field(default_factory=dict)
    regions: dict[str, list[str]] = field(default_factory=dict)
    steps: list[dict[str, int]] = field(default_factory=list)
    observations: list[dict[str, Any]] = field(default_factory=list)
    _next_pid: int = 1

    def execute(self, command: Command) -> None:
        """Carry out one command."""
        handler: Callable[..., None] = getattr(self, f"_{command.name}")
        try:
            handler(command.line, *command.words)
        except PolicyError as e:
            raise PolicyError(f"{self.path}:{command.line}: {e}") from None

    def _set(self, line: int, knob: str, value: str) -> None:
        try:
            self.machine.set(knob, value)
        except ConfigError as e:
            raise ScenarioError(f"{self.path}:{line}: {e}") from None

    def _proc(self, _line: int, name: str) -> None:
        self._add(name)
        self.machine.spawn(self.pids[name])
        self.regions[name] = []

    def _add(self, name: str) -> None:
        self.pids[name] = self._next_pid
        self._next_pid += 1

    def _call(self, line: int, result: int) -> bool:
        self.steps.append({"line": line, "errno": -result})
        return result == 0

    def _give(self, name: str, address: int) -> None:
        letter = region_letter(address)
        if letter not in self.regions[name]:
            self.regions[name].append(letter)

    def _mmap(self, line: int, name: str, address: int, length: int, prot: int = 3) -> None:
        pid = self.pids[name]
        if self._call(line, self.machine.mmap(pid, address, length, prot, _MAP_FLAGS)):
            self._give(name, address)

    def _munmap(self, line: int, name: str, address: int, length: int) -> None:
        self._call(line, self.machine.munmap(self.pids[name], address, length))

    def _mprotect(self, line: int, name: str, address: int, length: int, prot: int) -> None:
        self._call(line, self.machine.mprotect(self.pids[name], address, length, prot))

    def _mremap(self, line: int, name: str, address: int, old: int, to: int, new: int) -> None:
        result = self.machine.mremap(self.pids[name], address, old, to, new, _MREMAP_MAYMOVE_FIXED)
        if self._call(line, result):
            self._give(name, to)

    def _madvise(self, line: int, name: str, address: int, length: int, advice: int) -> None:
        self._call(line, self.machine.madvise(self.pids[name], address, length, advice))

    def _mlock(self, line: int, name: str, address: int, length: int) -> None:
        self._call(line, self.machine.mlock(self.pids[name], address, length))

    def _munlock(self, line: int, name: str, address: int, length: int) -> None:
        self._call(line, self.machine.munlock(self.pids[name], address, length))

    def _touch(
        self, line: int, name: str, write: int, address: int, length: int, stride: int = 0
    ) -> None:
        machine, pid = self.machine, self.pids[name]
        before = machine.minflt(pid)
        segv = total = 0
        value = 1 + line % 250
        for at in range(address, address + length, stride or machine.page_size):
            if write:
                segv += machine.store(pid, at, value) != 0
                continue
            byte = machine.load(pid, at)
            if byte < 0:
                segv += 1
            else:
                total += byte
        step = {"line": line, "errno": 0, "minflt": machine.minflt(pid) - before, "segv": segv}
        self.steps.append(step if write else {**step, "sum": total})

    def _fork(self, line: int, name: str, child: str) -> None:
        self._add(child)
        self._call(line, self.machine.fork(self.pids[name], self.pids[child]))
        self.regions[child] = self.regions[name].copy()

    def _exit(self, _line: int, name: str) -> None:
        self.machine.exit(self.pids.pop(name))
        del self.regions[name]

    def _observe(self, _line: int, label: str) -> None:
        numbers: dict[int, int] = {}
        pages = {
            name: {
                letter: list(self._runs(self.pids[name], region_address(letter), numbers))
                for letter in letters
            }
            for name, letters in self.regions.items()
        }
        stats = {
            size.removeprefix("hugepages-"): kept
            for size, counts in self.machine.hugepages().items()
            if (kept := {name: counts[name] for name in _STATS if counts.get(name)})
        }
        self.observations.append({"label": label, "pages": pages, "stats": stats})

    def _runs(self, pid: int, start: int, numbers: dict[int, int]) -> Iterator[str]:
        """Yield the runs of a region; folios get their numbers by first appearance."""
        first = last = -1
        what: tuple[object, ...] = ()
        text = ""
        for page in self.machine.mapped_pages(pid, start, start + REGION_SIZE):
            index = (page.address - start) // self.machine.page_size
            now = _attributes(page, index)
            if index == last + 1 and now == what:
                last = index
                continue
            if text:
                yield f"{first}-{last} {text}"
            first, last, what = index, index, now
            text = _describe(page, numbers)
        if text:
            yield f"{first}-{last} {text}"


def _attributes(page: MappedPage, index: int) -> tuple[object, ...]:
    """Return what two neighbouring pages of one run have in common."""
    if page.zero:
        return ("zero", page.order)
    return (page.folio, page.offset - index, page.mapcount, page.exclusive, page.cont)


def _describe(page: MappedPage, numbers: dict[int, int]) -> str:
    if page.zero:
        return "zero"
    number = numbers.setdefault(page.folio, len(numbers))
    text = (
        f"f{number}+{page.offset} order={page.order} map={page.mapcount} excl={int(page.exclusive)}"
    )
    return f"{text} cont" if page.cont else text


def run(
    path: Path, config: ResolvedConfig, policy: Policy | None = None, work: bool = False
) -> dict[str, Any]:
    """
    Return the answer of a kernel to a scenario, as spec/scenario.md has it, with "scenario": its name.

    Args:
        policy: chooses folio sizes in the place of the kernel.
        work: add "work": for each command that did any, its line and the counters of WORK
            (csrc/arena.def) that it moved. No real kernel answers that.

    Raises:
        ScenarioError: the file is not in the language, or the architecture has no room for its regions.
        PolicyError: the policy failed.
        ConfigError, BuildError, ArchError, BootError: the kernel cannot be had.
    """
    with Machine(config, INITIAL, policy=policy) as machine:
        return question(machine, path, work)


def question(machine: Machine, path: Path, work: bool = False) -> dict[str, Any]:
    """
    Return what a machine, booted and with nothing done yet, answers to a scenario file; as run().

    Raises:
        ScenarioError, PolicyError: as run().
    """
    if region_address("Z") + REGION_SIZE > machine.task_size:
        raise ScenarioError(
            f"{path}: the regions of a scenario lie above the {machine.task_size >> 20} MiB of "
            f"addresses that {machine.config.arch} has; use another architecture"
        )
    for size in machine.sizes():
        machine.set(size, "never")
    scenario = Run(machine, path)
    moved = []
    for command in parse(path, machine.page_size):
        before = machine.work()
        scenario.execute(command)
        done = {k: n - before[k] for k, n in machine.work().items() if n != before[k]}
        if done:
            moved.append({"line": command.line, **done})
    answer: dict[str, Any] = {
        "scenario": path.stem,
        "release": f"virtmm-{machine.config.get('COST_RELEASE')}",
        "machine": machine.uname_machine,
        "page_size": machine.page_size,
        "observations": scenario.observations,
        "steps": scenario.steps,
    }
    return {**answer, "work": moved} if work else answer
