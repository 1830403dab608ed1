# SPDX-License-Identifier: GPL-2.0-only
"""
Traces made by rule instead of recorded: one small function for each kind of program.

A generator yields batches of events in order, as columns, for one process; ``generate`` interleaves
the processes, gives the events their times (one each microsecond) and writes the trace. It holds a
batch for each process, however long the trace. The same parameters give the same events.

Memory begins at 64 GiB and stacks end below 256 GiB, which is user space on every architecture. All
memory is anonymous and private; nothing is known of files, so no file page is missing either.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from virtmm.tools.trace.format import TraceWriter
from virtmm.tools.trace.schema import (
    BATCH_ROWS,
    FAULT_PRESENT,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MUNMAP,
    TraceError,
)

import virtmm

PAGE = 4096
BASE = 64 << 30
STACK_TOP = 0x3FFFFFF000
STACK = 132 << 10  # what exec maps of it at first
EVENT_NS = 1000

_PIDS = 1 << 22  # PID_MAX_LIMIT where pointers have 64 bits
_PRIVATE_ANON = 0x22
_STACK_FLAGS = 0x20122  # private, anonymous, MAP_GROWSDOWN, MAP_STACK
_READ, _WRITE = 1, 2
_READ_WRITE = 3
_DONTNEED = 4

Array = npt.NDArray[Any]
Batch = dict[str, Array]
COLUMNS = ("kind", "pid", "addr", "len", "prot", "flags", "arg")


def _rows(*rows: tuple[int, ...]) -> Batch:
    """Return a batch of a few events, each a tuple of COLUMNS; what is left out at the end is 0."""
    full = [row + (0,) * (len(COLUMNS) - len(row)) for row in rows]
    return {name: np.array(values) for name, values in zip(COLUMNS, zip(*full, strict=True))}  # noqa: B905


def _faults(pid: int, addresses: Array, access: int = _WRITE) -> Iterator[Batch]:
    """Yield batches of faults of one process."""
    for at in range(0, len(addresses), BATCH_ROWS):
        part = addresses[at : at + BATCH_ROWS]
        yield {
            "kind": np.full(len(part), KIND_FAULT),
            "pid": np.full(len(part), pid),
            "addr": part,
            "prot": np.full(len(part), access),
        }


def _templates(shape: tuple[int, ...], *slots: Mapping[str, Any]) -> Batch:
    """
    Return the same short run of events many times over.

    Args:
        shape: how often, any number of dimensions.
        slots: the events of one run: column -> number or array of ``shape``.
    """
    batch = {name: np.zeros((*shape, len(slots)), np.int64) for name in COLUMNS}
    for at, slot in enumerate(slots):
        for name, value in slot.items():
            batch[name][..., at] = value
    return {name: column.reshape(-1) for name, column in batch.items()}


class _Span:
    """Pages in mappings of equal size: each begins on a 64K boundary, with room after it."""

    def __init__(self, pages: int, mappings: int) -> None:
        self.pages, self.each = pages, -(-pages // mappings)
        self.step = (self.each // 16 + 1) * 16 * PAGE
        self.starts = BASE + np.arange(-(-pages // self.each)) * self.step

    def map(self, pid: int) -> Iterator[Batch]:
        """Yield the mmap events."""
        size = self.each * PAGE
        for at in range(0, len(self.starts), BATCH_ROWS):
            yield _templates(
                (len(self.starts[at : at + BATCH_ROWS]),),
                {"kind": KIND_MMAP, "pid": pid, "addr": self.starts[at : at + BATCH_ROWS],
                 "len": size, "prot": _READ_WRITE, "flags": _PRIVATE_ANON},
            )  # fmt: skip

    def addresses(self, index: Array) -> Array:
        """Return the addresses of pages by number."""
        at: Array = BASE + index // self.each * self.step + index % self.each * PAGE
        return at

    def drop(self, pid: int) -> Iterator[Batch]:
        """Yield madvise(MADV_DONTNEED) of all of it."""
        yield from (
            batch
            | {"kind": np.full(len(batch["kind"]), KIND_MADVISE), "arg": batch["arg"] + _DONTNEED}
            for batch in self.map(pid)
        )


def strided(
    pid: int, *, pages: int = 16384, stride: int = 16, passes: int = 1, mappings: int = 1
) -> Iterator[Batch]:
    """
    Write every page: each ``stride``-th first, then those behind them, and so on.

    Between passes everything is given back (MADV_DONTNEED), so each pass faults anew.
    """
    span = _Span(pages, mappings)
    yield from span.map(pid)
    for number in range(passes):
        if number:
            yield from span.drop(pid)
        for first in range(min(stride, pages)):
            for low in range(first, pages, stride * BATCH_ROWS):
                high = min(low + stride * BATCH_ROWS, pages)
                yield from _faults(pid, span.addresses(np.arange(low, high, stride)))


def _mixed(values: Array, key: int) -> Array:
    """Return 64 bits that depend on all bits of each value and on the key."""
    x = (values + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))


def shuffled(count: int, seed: int) -> Iterator[Array]:
    """
    Yield range(count) in random order, in parts.

    A Feistel network of four rounds permutes the numbers of an even count of bits; those beyond the
    range are left out. So no table is needed, however many.
    """
    half = max((count - 1).bit_length() + 1, 2) // 2
    mask = np.uint64((1 << half) - 1)
    for at in range(0, 1 << 2 * half, BATCH_ROWS):
        value = np.arange(at, min(at + BATCH_ROWS, 1 << 2 * half), dtype=np.uint64)
        left, right = value >> np.uint64(half), value & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(right, seed * 4 + turn) & mask)
        value = left << np.uint64(half) | right
        yield value[value < count].astype(np.int64)


def sparse(
    pid: int,
    *,
    pages: int = 65536,
    percent: int = 10,
    passes: int = 1,
    mappings: int = 1,
    seed: int = 1,
) -> Iterator[Batch]:
    """Write ``percent`` of the pages, each once a pass, in random order."""
    span = _Span(pages, mappings)
    yield from span.map(pid)
    for number in range(passes):
        if number:
            yield from span.drop(pid)
        left = pages * percent // 100
        for part in shuffled(pages, seed + number):
            yield from _faults(pid, span.addresses(part[:left]))
            left -= len(part[:left])
            if not left:
                break


def churn(pid: int, *, rounds: int = 4096, pages: int = 16, live: int = 64) -> Iterator[Batch]:
    """Map, write all of it, and unmap the oldest of ``live`` mappings, round after round."""
    step = (pages // 16 + 1) * 16 * PAGE
    at_once = max(BATCH_ROWS // (pages + 2), 1)
    for first in range(0, rounds, at_once):
        number = np.arange(first, min(first + at_once, rounds))
        start = BASE + number % live * step
        size = pages * PAGE
        batch = _templates(
            number.shape,
            {"kind": KIND_MUNMAP, "pid": pid, "addr": start, "len": np.where(number < live, 0, size)},
            {"kind": KIND_MMAP, "pid": pid, "addr": start, "len": size, "prot": _READ_WRITE,
             "flags": _PRIVATE_ANON},
            *({"kind": KIND_FAULT, "pid": pid, "addr": start + page * PAGE, "prot": _WRITE}
              for page in range(pages)),
        )  # fmt: skip
        keep = (batch["kind"] != KIND_MUNMAP) | (batch["len"] > 0)
        yield {name: column[keep] for name, column in batch.items()}


def fork_server(
    pid: int, *, children: int = 256, live: int = 8, pages: int = 4096, written: int = 64
) -> Iterator[Batch]:
    """
    Fill a heap of ``pages``, then fork children that each write ``written`` of them and exit.

    ``live`` children are there at a time. Each writes a run of the heap of its own: copies on write.
    """
    span = _Span(pages, 1)
    yield from span.map(pid)
    for low in range(0, pages, BATCH_ROWS):
        yield from _faults(pid, span.addresses(np.arange(low, min(low + BATCH_ROWS, pages))))
    written = min(written, pages)
    at_once = max(BATCH_ROWS // (written + 2), 1)
    for first in range(0, children + live, at_once):
        number = np.arange(first, min(first + at_once, children + live))
        # Numbers come again when their processes are gone, and differ between servers.
        child = 10000 + pid * (live + 1) + number % (live + 1)
        gone = 10000 + pid * (live + 1) + (number - live) % (live + 1)
        place = number * written % max(pages - written + 1, 1)
        there = number < children
        batch = _templates(
            number.shape,
            {"kind": KIND_EXIT, "pid": np.where(number < live, 0, gone)},
            {"kind": KIND_FORK, "pid": np.where(there, pid, 0), "arg": child},
            *({"kind": KIND_FAULT, "pid": np.where(there, child, 0), "prot": _WRITE,
               "flags": FAULT_PRESENT, "addr": span.addresses(place + page)} for page in range(written)),
        )  # fmt: skip
        keep = batch["pid"] > 0
        yield {name: column[keep] for name, column in batch.items()}


def arenas(
    pid: int, *, arenas: int = 8, kib: int = 65536, step: int = 132, passes: int = 1, used: int = 50
) -> Iterator[Batch]:
    """
    Allocator arenas: each reserves ``kib`` of address space and makes it usable in steps of ``step`` KiB.

    All arenas grow in turns, until ``used`` percent of each is written. Between passes they give back
    all pages (MADV_DONTNEED) and protection, and grow again.
    """
    size, step = -(-kib * 1024 // PAGE) * PAGE, -(-step * 1024 // PAGE) * PAGE
    start = BASE + np.arange(arenas) * (size + 16 * PAGE)
    yield _templates(
        start.shape,
        {
            "kind": KIND_MMAP,
            "pid": pid,
            "addr": start,
            "len": size,
            "flags": _PRIVATE_ANON | 0x4000,
        },
    )
    steps = max(size * used // 100 // step, 1)
    step = min(step, size)
    at_once = max(BATCH_ROWS // (arenas * (step // PAGE + 1)), 1)
    for number in range(passes):
        if number:
            yield _templates(
                start.shape,
                {"kind": KIND_MADVISE, "pid": pid, "addr": start, "len": steps * step, "arg": _DONTNEED},
                {"kind": KIND_MPROTECT, "pid": pid, "addr": start, "len": steps * step},
            )  # fmt: skip
        for first in range(0, steps, at_once):
            turn = np.arange(first, min(first + at_once, steps))[:, None]
            where = start[None, :] + turn * step
            yield _templates(
                where.shape,
                {"kind": KIND_MPROTECT, "pid": pid, "addr": where, "len": step, "prot": _READ_WRITE},
                *({"kind": KIND_FAULT, "pid": pid, "addr": where + at, "prot": _WRITE}
                  for at in range(0, step, PAGE)),
            )  # fmt: skip


#: Of every kind: how many processes run at a time, and how many such sets live one after another.
COUNTS = ("processes", "generations")
GENERATORS: dict[str, Callable[..., Iterator[Batch]]] = {
    "strided": strided,
    "sparse": sparse,
    "churn": churn,
    "fork-server": fork_server,
    "arenas": arenas,
}


def parameters(kind: str) -> dict[str, int]:
    """Return the parameters of a generator, and those of COUNTS, with defaults."""
    own = inspect.signature(GENERATORS[kind]).parameters
    return dict.fromkeys(COUNTS, 1) | {name: p.default for name, p in own.items() if name != "pid"}


def parse_parameters(kind: str, words: Iterable[str]) -> dict[str, int]:
    """Return the parameters with what ``NAME=NUMBER`` words say. Raises TraceError: which word, why."""
    known = parameters(kind)
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise TraceError(f"{kind} has no parameter {name!r}; it has: {', '.join(known)}")
        if not value.isascii() or not value.isdigit() or not int(value):
            raise TraceError(
                f"{name}={value}: not a number above 0; it is {known[name]} by default"
            )
        known[name] = int(value)
    if known["processes"] > _PIDS:
        raise TraceError(
            f"processes={known['processes']}: more than Linux has pids; give at most {_PIDS}"
        )
    if "percent" in known and known["percent"] > 100:
        raise TraceError(f"percent={known['percent']}: more than all; give at most 100")
    if "used" in known and known["used"] > 100:
        raise TraceError(f"used={known['used']}: more than all; give at most 100")
    if "mappings" in known and known["mappings"] > known["pages"]:
        raise TraceError(
            f"mappings={known['mappings']}: more than pages={known['pages']}; each has at least one"
        )
    return known


def _started(pid: int, body: Iterator[Batch]) -> Iterator[Batch]:
    """Yield a process's life: exec, its stack, the first touch of that, the body, exit."""
    low = STACK_TOP - STACK
    yield _rows(
        (KIND_EXEC, pid),
        (KIND_MMAP, pid, low, STACK, _READ_WRITE, _STACK_FLAGS),
        (KIND_FAULT, pid, STACK_TOP - 64, 0, _WRITE),
    )
    yield from body
    yield _rows((KIND_EXIT, pid))


def generate(
    kind: str,
    output: str | os.PathLike[str],
    given: Mapping[str, int],
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """
    Write the trace of a generator.

    Args:
        given: its parameters, all of ``parameters``; ``processes`` run at a time, in turns, and
            as many, of the same pids, when they have ended, for ``generations``.
        progress: called after each batch with the events written so far.

    Returns:
        The number of events.

    Raises:
        TraceError: the file cannot be written, or the memory does not fit below the stack.
    """
    own = {name: value for name, value in given.items() if name not in COUNTS}
    count, generations = (given[name] for name in COUNTS)
    words = " ".join(f"{name}={value}" for name, value in given.items())
    metadata = {
        "page_size": PAGE,
        "command": f"{kind} {words}",
        "recorder": f"virtmm {virtmm.__version__} (generate)",
        "generator": {"kind": kind, "parameters": dict(given)},
        "fault_around_bytes": PAGE,
        "processes": count * generations,
        "losses": {"events": 0},
    }
    with TraceWriter(output, metadata) as writer:
        held: list[Batch] = []
        rows = 0
        for batch in chain.from_iterable(
            _in_turns(_started(pid, GENERATORS[kind](pid, **own)) for pid in range(1, count + 1))
            for _ in range(generations)
        ):
            held.append(batch)
            rows += len(batch["kind"])
            if rows >= BATCH_ROWS:
                held = _write(writer, held, BATCH_ROWS)
                rows = len(held[0]["kind"])
                progress(writer.num_events)
        _write(writer, held, 1)
        writer.metadata["duration_ns"] = writer.num_events * EVENT_NS
    return writer.num_events


def _in_turns(processes: Iterable[Iterator[Batch]]) -> Iterator[Batch]:
    """Yield a batch of each process in turn until all have ended."""
    going: list[Iterator[Batch]] = []
    while True:
        for process in processes:
            batch = next(process, None)
            if batch is not None:
                going.append(process)
                yield batch
        if not going:
            return
        processes, going = going, []


def _write(writer: TraceWriter, batches: list[Batch], multiple: int) -> list[Batch]:
    """Add batches, a multiple of so many events, one after the other in time; return the rest as one."""
    columns = {
        name: np.concatenate([b.get(name, np.zeros(len(b["kind"]), np.int64)) for b in batches])
        for name in COLUMNS
    }
    if int((columns["addr"] + columns["len"]).max(initial=0)) > STACK_TOP:
        raise TraceError("these parameters need more than 192 GiB of addresses; give smaller ones")
    count = len(columns["kind"]) // multiple * multiple
    if count:
        times = (writer.num_events + np.arange(count)) * EVENT_NS
        writer.append_columns(
            {name: column[:count] for name, column in columns.items()} | {"time": times}
        )
    return [{name: column[count:] for name, column in columns.items()}]
