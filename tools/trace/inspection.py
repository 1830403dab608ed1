# SPDX-License-Identifier: GPL-2.0-only
"""
What is in a trace, as a result that ``virtmm inspect`` prints: read once, in constant memory.

A *first touch* is a fault on a page that was not mapped. Its order is told for each mapping by
itself, since a program works on several at a time: a touch is *sequential* if it is on the page next
to the one before, *strided* if it is as far from it as that was from its own predecessor, else
*random*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtmm.tools.trace.lint import Lint
from virtmm.tools.trace.schema import (
    FAULT_KERNEL,
    FAULT_PRESENT,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MMAP,
    KINDS,
    Row,
)
from virtmm.tools.trace.spaces import KINDS_OF_MAPPING, Space, Spaces, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtmm.tools.trace.format import TraceReader

SLOTS = 48  # columns of the drawn order of a mapping
_REGIONS_KEPT, _REGIONS_HELD = 1024, 8192
REGIONS_SHOWN = 8
_WRITE = 2
#: What the result says of the recording: keys of the metadata, passed on where they are there.
ABOUT = (
    "command",
    "recorder",
    "kernel",
    "machine",
    "exit_status",
    "thp",
    "aslr",
    "fault_around_bytes",
    "backend",
    "overhead",
    "partial",
    "partial_reason",
    "limits",
    "losses",
    "minflt",
    "maxrss_kb",
    "source",
    "generator",
)


@dataclass
class Region:
    """First touches of one mapping: their order, and where they were, in at most SLOTS steps."""

    pid: int
    start: int
    kind: str
    touches: int = 0
    sequential: int = 0
    strided: int = 0
    random: int = 0
    low: int = 2**64
    high: int = 0
    _last: int = -1
    _delta: int = 0
    _width: int = 1
    _slots: list[list[int]] = field(default_factory=list)

    def touch(self, page: int) -> None:
        """Note a first touch of a page (its number)."""
        if self._last >= 0:
            delta = page - self._last
            if delta in (1, -1):
                self.sequential += 1
            elif delta == self._delta:
                self.strided += 1
            else:
                self.random += 1
            self._delta = delta
        self._last = page
        self.low, self.high = min(self.low, page), max(self.high, page)
        if self.touches == SLOTS * self._width:  # full: two slots become one
            pairs = zip(self._slots[::2], self._slots[1::2], strict=True)
            self._slots = [[a[0] + b[0], a[1] + b[1]] for a, b in pairs]
            self._width *= 2
        if self.touches % self._width == 0:
            self._slots.append([0, 0])
        slot = self._slots[-1]
        slot[0] += page
        slot[1] += 1
        self.touches += 1

    def positions(self) -> list[float]:
        """Return where the touches were on average in each step: 0 lowest, 1 highest page."""
        span = max(self.high - self.low, 1)
        return [round((total / count - self.low) / span, 3) for total, count in self._slots]


@dataclass
class Life:
    """One process."""

    pid: int
    parent: int
    started: int
    ended: int | None = None
    commands: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    events: int = 0
    touches: int = 0
    writes: int = 0
    peak_mappings: int = 0


@dataclass
class Inspection:
    """Reads the rows of a trace, and counts."""

    reader: TraceReader
    lives: list[Life] = field(default_factory=list)
    kinds: list[int] = field(default_factory=lambda: [0] * len(KINDS))
    touched: dict[str, list[int]] = field(default_factory=dict)  # kind of mapping -> reads, writes
    regions: dict[tuple[int, int], Region] = field(default_factory=dict)
    order: list[int] = field(default_factory=lambda: [0] * 3)
    peak_kinds: dict[str, int] = field(default_factory=dict)
    present: int = 0
    kernel: int = 0
    outside: int = 0
    _live: dict[int, Life] = field(default_factory=dict)
    _images: dict[int, int] = field(default_factory=dict)  # pid -> number of its address space

    def __post_init__(self) -> None:
        """Start with no process."""
        self.spaces = Spaces(self.reader.page_size)
        self.lint = Lint(self.reader.page_size)
        self._shift = self.reader.page_size.bit_length() - 1

    def run(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """Read all rows; return the result."""
        done, end = 0, 0
        for batch in self.reader.batches():
            for number, row in enumerate(batch, done):
                kind = row[3]
                self.kinds[kind] += 1
                life = self._live.get(row[1])
                if kind == KIND_FAULT:
                    self._fault(row, life)
                else:
                    life = self._change(number, row, life)
                if life is not None:
                    life.events += 1
                    life.threads.add(row[2])
            done += len(batch)
            end = int(batch.columns["time"][-1])
            progress(done)
        return self._result(end)

    def _change(self, number: int, row: Row, life: Life | None) -> Life | None:
        """Take an event that is no fault; return whose it is."""
        pid, kind = row[1], row[3]
        file = self.reader.files[row[11]]
        if kind == KIND_EXEC:
            life = life or self._born(pid, 0, row[0])
            self._images[pid] = number
            life.commands.append(Path(file.path).name)
            self.lint.commands[pid] = life.commands[-1]
        space = self.spaces.live.get(pid)
        if space is not None or kind == KIND_EXEC:
            self.lint.look(number, row, space or Space(), file)
        self.spaces.apply(row, special=kind == KIND_MMAP and file.path.startswith("["))
        if kind == KIND_FORK:
            child = self._born(row[12], pid, row[0])
            self._images[row[12]] = number
            child.commands = life.commands[-1:] if life else []
            self.lint.commands[row[12]] = child.commands[-1] if child.commands else ""
            self._peak(child, self.spaces.live.get(row[12], Space()))
        elif kind == KIND_EXIT:
            if life is not None:
                life.ended = row[0]
            self._live.pop(pid, None)
        elif space is not None and life is not None:
            self._peak(life, space)
        return life

    def _born(self, pid: int, parent: int, time: int) -> Life:
        life = self._live[pid] = Life(pid, parent, time)
        self.lives.append(life)
        return life

    def _peak(self, life: Life, space: Space) -> None:
        count = len(space.mappings.ranges)
        if count > life.peak_mappings:
            life.peak_mappings = count
            if count > sum(self.peak_kinds.values()):
                self.peak_kinds = {k: n for k in KINDS_OF_MAPPING if (n := space.kinds[k])}

    def _fault(self, row: Row, life: Life | None) -> None:
        pid, address, access, flags = row[1], row[4], row[8], row[9]
        if flags & FAULT_KERNEL:
            self.kernel += 1
        else:
            self.lint.started(pid)
        space = self.spaces.live.get(pid)
        mapping = space.at(address) if space is not None else None
        if space is None or mapping is None:
            self.outside += 1
            return
        if flags & FAULT_PRESENT:
            self.present += 1
            return
        write = access & _WRITE != 0
        kind = kind_of(mapping)
        self.touched.setdefault(kind, [0, 0])[write] += 1
        if life is not None:
            life.touches += 1
            life.writes += write
        origin = space.origins.at(address)
        start = space.heap[0] if kind == "heap" else origin[2] if origin else address
        if kind == "stack":
            start = -1  # grows down: it has no start that stays
        key = self._images[pid], start
        region = self.regions.get(key)
        if region is None or region.kind != kind:
            if region is not None:  # another mapping was there
                self._count(self.regions.pop(key))
            if len(self.regions) >= _REGIONS_HELD:
                self._drop(_REGIONS_KEPT)
            region = self.regions[key] = Region(pid, start, kind)
        region.touch(address >> self._shift)

    def _count(self, region: Region) -> None:
        for at, number in enumerate((region.sequential, region.strided, region.random)):
            self.order[at] += number

    def _drop(self, keep: int) -> None:
        """Keep the regions with most touches; count the order of the others."""
        ranked = sorted(self.regions.items(), key=lambda item: -item[1].touches)
        for _, region in ranked[keep:]:
            self._count(region)
        self.regions = dict(ranked[:keep])

    def _result(self, end: int) -> dict[str, Any]:
        shown = sorted(self.regions.values(), key=lambda r: (-r.touches, r.pid, r.start))
        self._drop(0)
        total = sum(self.order)
        metadata = self.reader.metadata
        names = {life.pid: life.commands[-1] if life.commands else "" for life in self.lives}
        return {
            "format": "virtmm-inspection",
            "version": 1,
            "trace": self.reader.path.name,
            "page_size": self.reader.page_size,
            "recording": {key: metadata[key] for key in ABOUT if key in metadata},
            "duration_ns": end,
            "events": dict(zip(KINDS, self.kinds, strict=True)),
            "processes": [_process(life) for life in self.lives],
            "mappings": {"peak": sum(self.peak_kinds.values()), "kinds": self.peak_kinds},
            "touched": {
                "first": sum(map(sum, self.touched.values())),
                "bytes": sum(map(sum, self.touched.values())) << self._shift,
                "kinds": {
                    kind: {"read": self.touched[kind][0], "write": self.touched[kind][1]}
                    for kind in KINDS_OF_MAPPING
                    if kind in self.touched
                },
                "again": self.present,
                "kernel": self.kernel,
                "outside": self.outside,
            },
            "order": {
                name: {"touches": n, "share": round(n / total, 4) if total else 0.0}
                for name, n in zip(("sequential", "strided", "random"), self.order, strict=True)
            },
            "regions": [
                {
                    "pid": region.pid,
                    "command": names.get(region.pid, ""),
                    "kind": region.kind,
                    "start": region.low << self._shift,
                    "bytes": (region.high - region.low + 1) << self._shift,
                    "touches": region.touches,
                    "sequential": region.sequential,
                    "strided": region.strided,
                    "random": region.random,
                    "positions": region.positions(),
                }
                for region in shown[:REGIONS_SHOWN]
            ],
            "lint": self.lint.result(),
        }


def _process(life: Life) -> dict[str, Any]:
    return {
        "pid": life.pid,
        "parent": life.parent or None,
        "commands": life.commands,
        "started_ns": life.started,
        "ended_ns": life.ended,
        "threads": len(life.threads),
        "events": life.events,
        "first_touches": life.touches,
        "written": life.writes,
        "peak_mappings": life.peak_mappings,
    }


def inspect(
    reader: TraceReader, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """
    Read a trace and tell what is in it.

    Args:
        progress: called after each batch with the rows done so far.

    Raises:
        TraceError: the trace is damaged.
    """
    return Inspection(reader).run(progress)
