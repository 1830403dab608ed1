# SPDX-License-Identifier: GPL-2.0-only
"""
Measure whether an event costs the same however many there are (``python -m scripts.flat_cost``).

Sweeps, each on one core and in processor time, the best of some runs:

``events``
    Replays of ever longer traces that do the same over and over, reading included. A replay that is not
    timed goes before: the first of a process of Python imports, compiles and warms what all later ones
    find, once and not for each event.
``processes``
    Replays of one number of processes and their events, of which ever more live at a time and take turns of
    128 events; those that live at a time use ever more memory together. The lines have the same events, but
    in another order: starting and ending a process costs more than what else it does here, so that few
    processes that live long are no measure for many that do not.
``split``
    The same number of events by ever more processes at a time, but one amount of memory, that of
    ``processes`` at its most, which they divide: a control for what memory alone does. Starts and ends are
    as many as processes here. No limit is set for it.
``local``, ``random``
    First writes of the same pages, cut into ever more VMAs; in order of address, and in any. One page of
    each VMA is written before, untimed, so that what is done once for a VMA does not count.
``mmap``
    mmap() and munmap() of a page beside ever more VMAs, at random places. No limit is set for it.

A ratio is the cost against that of the sweep's first line; ``--json`` prints the figures unrounded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from virtmm.tools.replay.replay import Replay
from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.generate import generate, parse_parameters

from virtmm.accesses import Accesses
from virtmm.kconfig import default_arch, resolve
from virtmm.machine import Machine

ARCH = default_arch()
MEMORY = "MEMORY_MB=16384"
BASE = 1 << 36
#: Pages that a process of the first sweeps writes again and again, 2^11 events a pass.
PAGES = 2048
#: Passes of each process of the second and third sweep.
PASSES = 2
#: Events that a line of the first replays in each turn at least; a short replay is easily disturbed.
MANY = 10**6
#: Most that the dearest line of a sweep may cost against the cheapest; issue 6, acceptance 5.
LIMITS = {"events": 1.3, "processes": 1.3, "local": 1.3, "random": 2.0}

EVENTS = (10**5, 10**6, 10**7, 10**8)
PROCESSES = (1, 10, 100, 1000)
VMAS = (10, 100, 1000, 10_000, 50_000)


class Cost(NamedTuple):
    """One line: a sweep, its number of events, processes or VMAs, and what an event cost there."""

    sweep: str
    number: int
    events: int
    nanoseconds: float


def best(
    sweep: str,
    runs: int,
    lines: Mapping[int, Callable[[], tuple[int, float]]],
    least: int = 1,
) -> Iterator[Cost]:
    """
    Yield the lines of a sweep, by number, with the nanoseconds of an event in the quickest of some runs.

    All lines are run in turn, so that what else the machine does is no line's alone; a line of fewer events
    than ``least`` as often in each turn as has so many.
    """
    found: dict[int, list[tuple[int, float]]] = {number: [] for number in lines}
    for _ in range(runs):
        for number, measure in lines.items():
            done = 0
            while done < least:
                found[number].append(measure())
                done += found[number][-1][0]
    for number, each in found.items():
        quickest = min(seconds / events for events, seconds in each)
        yield Cost(sweep, number, each[0][0], quickest * 1e9)


def booted(kernel: str) -> Machine:
    """Return a machine with room for all of it."""
    return Machine(resolve(ARCH, kernel, sets=[MEMORY]))


def replayed(trace: Path, kernel: str) -> tuple[int, float]:
    """Return how many events a trace has, and the seconds that its replay took."""
    with booted(kernel) as machine:
        start = time.process_time()
        with TraceReader(trace) as reader:
            run = Replay(machine, reader)
            run.run()
        spent = time.process_time() - start
    if run.segv or run.refused:
        raise SystemExit(f"{trace.name}: {run.segv} accesses, {run.refused} calls refused")
    return reader.num_events, spent


def strided(
    sweep: str, kernel: str, runs: int, lines: Mapping[int, dict[str, int]], least: int = 1
) -> Iterator[Cost]:
    """Yield the lines of a sweep over traces of processes that write pages in passes, by parameters."""
    with tempfile.TemporaryDirectory() as folder:
        measures = {}
        for number, parameters in lines.items():
            trace = Path(folder) / f"{sweep}-{number}.parquet"
            words = [f"{name}={value}" for name, value in parameters.items()]
            generate("strided", trace, parse_parameters("strided", words))
            measures[number] = partial(replayed, trace, kernel)
        yield from best(sweep, runs, measures, least)


def events_sweep(kernel: str, runs: int, most: int) -> Iterator[Cost]:
    """Return the cost of an event in traces of up to ``most`` events."""
    lines = {n: {"pages": PAGES, "passes": -(-n // PAGES)} for n in EVENTS if n <= most}
    list(strided("warm-up", kernel, 1, dict(list(lines.items())[:1])))
    return strided("events", kernel, runs, lines, MANY)


def processes_sweeps(kernel: str, runs: int, most: int) -> Iterator[Cost]:
    """Yield the costs of an event of up to ``most`` processes at a time, with ever more memory and not."""
    numbers = [number for number in PROCESSES if number <= most]
    top = max(numbers, default=1)
    lines = {n: {"processes": n, "passes": PASSES, "pages": PAGES} for n in numbers}
    more = {n: line | {"generations": top // n} for n, line in lines.items()}
    yield from strided("processes", kernel, runs, more)
    same = {n: line | {"pages": PAGES * top // n} for n, line in lines.items()}
    yield from strided("split", kernel, runs, same)


def written(machine: Machine, pages: npt.NDArray[np.uint64]) -> float:
    """Let process 1 write pages, given by address; return the seconds it took."""
    words = np.ones((len(pages), 2), np.uint64)
    words[:, 0] = pages
    accesses = Accesses(words.reshape(-1).data, 1)
    accesses.tasks[0] = machine.task_record(1)
    start = time.process_time()
    done, error = machine.touch_many(accesses, 0, len(pages))
    spent = time.process_time() - start
    if error:
        raise SystemExit(f"access {done} of {len(pages)}: VM_FAULT {error:#x}")
    return spent


def cut(machine: Machine, vmas: int, pages: int) -> tuple[npt.NDArray[np.uint64], int]:
    """
    Map about so many pages as so many VMAs, three pages apart, and write the first page of each.

    Returns:
        The addresses of the VMAs, and pages in each.
    """
    page, each = machine.page_size, max(pages // vmas, 2)
    machine.spawn(1)
    starts = BASE + np.arange(vmas, dtype=np.uint64) * np.uint64((each + 3) * page)
    for start in starts.tolist():
        if error := machine.mmap(1, start, each * page):
            raise SystemExit(f"mmap of VMA {start:#x}: error {error}")
    written(machine, starts)
    return starts, each


def first_writes(kernel: str, vmas: int, pages: int, *, anyhow: bool) -> tuple[int, float]:
    """Write all pages but the first of so many VMAs, in order or anyhow; return events and seconds."""
    with booted(kernel) as machine:
        starts, each = cut(machine, vmas, pages)
        inside = np.arange(1, each, dtype=np.uint64) * np.uint64(machine.page_size)
        others = (starts[:, None] + inside).reshape(-1)
        if anyhow:
            others = np.random.default_rng(1).permutation(others)
        return len(others), written(machine, others)


def mappings(kernel: str, vmas: int, pages: int) -> tuple[int, float]:
    """Map a page between VMAs and unmap it, at 1,000 places; return events and seconds."""
    with booted(kernel) as machine:
        starts, each = cut(machine, vmas, pages)
        page = machine.page_size
        places = (np.random.default_rng(1).choice(starts, 1000) + (each + 1) * page).tolist()
        start = time.process_time()
        for place in places:
            machine.mmap(1, place, page)
            machine.munmap(1, place, page)
        return 2 * len(places), time.process_time() - start


def vmas_sweeps(kernel: str, runs: int, most: int, pages: int) -> Iterator[Cost]:
    """Yield the costs of a first write, in order and not, and of mapping a page, for up to ``most`` VMAs."""
    sweeps: dict[str, Callable[[int], tuple[int, float]]] = {
        "local": lambda n: first_writes(kernel, n, pages, anyhow=False),
        "random": lambda n: first_writes(kernel, n, pages, anyhow=True),
        "mmap": lambda n: mappings(kernel, n, pages),
    }
    for sweep, measure in sweeps.items():
        lines = {number: partial(measure, number) for number in VMAS if number <= most}
        yield from best(sweep, runs, lines)


def by_sweep(costs: Sequence[Cost]) -> dict[str, list[Cost]]:
    """Return the lines of each sweep, in order."""
    return {
        sweep: [cost for cost in costs if cost.sweep == sweep]
        for sweep in dict.fromkeys(cost.sweep for cost in costs)
    }


def spread(costs: Sequence[Cost]) -> float:
    """Return the dearest line's cost against the cheapest's."""
    each = [cost.nanoseconds for cost in costs]
    return max(each) / min(each)


def render(costs: Sequence[Cost]) -> str:
    """Return the table: costs with their ratios, and below each sweep its spread and the limit of that."""
    lines = [f"{'Sweep':<11}{'Number':>12}{'Events':>14}{'ns/event':>11}{'Ratio':>8}"]
    for sweep, of in by_sweep(costs).items():
        lines += [
            f"{sweep:<11}{cost.number:>12,}{cost.events:>14,}{cost.nanoseconds:>11.1f}"
            f"{cost.nanoseconds / of[0].nanoseconds:>8.2f}"
            for cost in of
        ]
        limit = f", at most {LIMITS[sweep]}" if sweep in LIMITS else ""
        lines.append(f"{'':<11}dearest to cheapest {spread(of):.2f}{limit}")
    return "\n".join(lines)


def as_json(costs: Sequence[Cost]) -> str:
    """Return the same as JSON: by sweep its lines, spread and limit, null where there is none."""
    found = {
        sweep: {
            "costs": [
                cost._asdict() | {"ratio": cost.nanoseconds / of[0].nanoseconds} for cost in of
            ],
            "spread": spread(of),
            "limit": LIMITS.get(sweep),
        }
        for sweep, of in by_sweep(costs).items()
    }
    return json.dumps(found, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description="Measure whether the cost of an event is flat.")
    parser.add_argument("--kernel", default="baseline_4k", help=f"of {ARCH} (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each line; the best counts")
    parser.add_argument("--events", type=int, default=EVENTS[-1], help="most in a trace")
    parser.add_argument("--processes", type=int, default=PROCESSES[-1], help="most at a time")
    parser.add_argument("--vmas", type=int, default=VMAS[-1], help="most in a process")
    parser.add_argument("--pages", type=int, default=1 << 19, help="cut into VMAs")
    parser.add_argument("--json", action="store_true", help="print figures, not a table")
    given = parser.parse_args(arguments)
    costs = [
        *events_sweep(given.kernel, given.runs, given.events),
        *processes_sweeps(given.kernel, given.runs, given.processes),
        *vmas_sweeps(given.kernel, given.runs, given.vmas, given.pages),
    ]
    print(as_json(costs) if given.json else render(costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
