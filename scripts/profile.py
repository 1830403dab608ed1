# SPDX-License-Identifier: GPL-2.0-only
"""
Where the time of a replay goes, and how far that is from what the machine could do at best.

``python -m scripts.profile`` measures and writes the tables of Documentation/profile.md;
``python -m scripts.profile --print [TRACE ...]`` prints them, of traces of one's own. All figures are
of the machine that it ran on: nothing compares them.

Timers lie around the calls of Machine, around the batches that C serves, and around the reading of
the trace; what is left is the replay's own loop. A call's time is without that of calls in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from virtmm.mm.layout import NR_ORDERS
from virtmm.tools.replay.replay import Replay
from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.schema import TraceError

from scripts.bounds import bandwidth, bare_decode, bytes_moved, event_bytes, operation_bounds
from scripts.document import TOP, replace_section, section, table
from virtmm.kconfig import ConfigError, ResolvedConfig, default_arch, resolve
from virtmm.machine import Machine

OUTPUT = TOP / "Documentation" / "profile.md"
SAMPLES = tuple(TOP / "samples" / f"{name}.parquet" for name in ("gcc", "python"))
ARCH, KERNELS = default_arch(), ("baseline_4k", "anonfolio_basic", "linux-7.3")
REPEAT = 5
#: The kernel whose replay perf samples.
FUNCTIONS_OF = "anonfolio_basic"
#: What its table begins a function of the core with, and the least percent that it shows.
CORE, LEAST_OF_CORE, LEAST = "C core:", 0.05, 0.5

#: Faults that Python may serve, by the event that counts them.
FAULT_EVENTS = (
    *("anon_fault", "zero_page_fault", "wp_reuse", "wp_copy", "wp_zero", "spurious_fault"),
    *("file_read_fault", "file_write_fault", "file_shared_fault"),
)
#: Calls of Machine that do next to nothing: timing them would cost more than they do.
UNTIMED = frozenset(
    ("has", "task_record", "current_pid", "vmstat", "close", "rss", "open", "events", "work")
)
READ, LOOP, IN_C, NO_FAULT = "read and decode", "replay loop", "accesses in C", "no fault, refused"


@dataclass
class Clock:
    """
    Time by name, each without what is timed inside it.

    Attributes:
        ns, calls: by name.
        lost: ns that went into telling one fault from another.
    """

    ns: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    _inner: list[int] = field(default_factory=lambda: [0])

    def count(self, function: Callable[..., int], many: bool) -> Callable[..., int]:
        """
        Return a function of the core, timed.

        Args:
            many: it takes the number of its first access second and returns the one that it did not do;
                else it does one access and returns 1, or 0.
        """
        clock, inner = time.perf_counter_ns, self._inner

        def timed(*args: Any) -> int:
            began = clock()
            done = function(*args)
            ns = clock() - began
            self.ns[IN_C] += ns
            self.calls[IN_C] += done - args[1] if many else done
            inner[-1] += ns
            return done

        return timed

    def wrap(
        self, function: Callable[..., Any], name: str | Callable[[], Callable[[], str]]
    ) -> Callable[..., Any]:
        """
        Return the function, timed.

        Args:
            name: what it counts as; or a function called before that gives one to ask afterwards. What
                these take counts for nobody.
        """
        clock, inner = time.perf_counter_ns, self._inner

        def timed(*args: Any, **kw: Any) -> Any:
            before = clock()
            ask = name if isinstance(name, str) else name()
            inner.append(0)
            began = clock()
            try:
                return function(*args, **kw)
            finally:
                ns = clock() - began
                own = ns - inner.pop()
                what = ask if isinstance(ask, str) else ask()
                self.ns[what] += own
                self.calls[what] += 1
                whole = clock() - before
                self.lost += whole - ns
                inner[-1] += whole

        return timed


class Profile(NamedTuple):
    """
    One replay.

    Attributes:
        rows: (what, how often, ns), in order.
        bytes: of entries, page records and trace columns that it reads or writes.
    """

    events: int
    ns: int
    rows: list[tuple[str, int, int]]
    bytes: int


def profile(path: Path, config: ResolvedConfig, settings: Sequence[str]) -> Profile:
    """Replay a trace once with timers."""
    clock = Clock()
    with TraceReader(path) as reader, Machine(config, settings) as machine:
        _watch(clock, machine, reader)
        began = time.perf_counter_ns()
        Replay(machine, reader).run()
        ns = time.perf_counter_ns() - began - clock.lost
        clock.ns[LOOP] = ns - sum(clock.ns.values())
        clock.calls[LOOP] = clock.calls[READ] = reader.num_events
        moved = bytes_moved(machine) + reader.num_events * event_bytes(reader.path)
        names = sorted(clock.ns, key=_order)
        rows = [(name, clock.calls[name], clock.ns[name]) for name in names]
        return Profile(reader.num_events, ns, rows, moved)


def _order(name: str) -> tuple[int, str]:
    first = (READ, LOOP, IN_C)
    if name in first:
        return first.index(name), name
    return (3 if name.startswith("in Python: ") else 4), name


def _watch(clock: Clock, machine: Machine, reader: TraceReader) -> None:
    """Put timers into a machine and a reader."""
    names = [n for n, f in vars(Machine).items() if callable(f) and not n.startswith("_")]
    for name in names:
        if name not in UNTIMED and not name.startswith("touch"):
            setattr(machine, name, clock.wrap(getattr(machine, name), name))
    totals = _fault_totals(machine)

    def kind() -> Callable[[], str]:
        before = totals()
        return lambda: (
            "in Python: "
            + next(
                (n for n, a, b in zip(FAULT_EVENTS, before, totals(), strict=True) if a != b),
                NO_FAULT,
            )
        )

    machine._touch = clock.wrap(machine._touch, kind)  # type: ignore[method-assign]
    fast = machine._fast
    if fast is not None:
        for name in ("touch", "touch_many"):
            setattr(fast, name, clock.count(getattr(fast, name), name == "touch_many"))
    batches = reader.batches

    def read(*args: Any, **kw: Any) -> Iterator[Any]:
        source = iter(batches(*args, **kw))
        following = clock.wrap(lambda: next(source, None), READ)
        while (batch := following()) is not None:
            yield batch

    reader.batches = read  # type: ignore[method-assign]


def _fault_totals(machine: Machine) -> Callable[[], list[int]]:
    """Return a function that gives the counts of FAULT_EVENTS, all orders together."""
    names, event = list(machine.events()), machine.k.event
    places = [names.index(name) * NR_ORDERS for name in FAULT_EVENTS]
    return lambda: [sum(event[at : at + NR_ORDERS]) for at in places]


def in_c(path: Path, kernel: str, times: int = 400) -> str:
    """
    Return the functions that took most of some replays, as perf samples them; without timers.

    So many replays that starting Python is a small part. Functions of its interpreter and of libraries
    are not told apart; numpy's linear algebra, which nothing here uses, is not to start threads.
    """
    if not shutil.which("perf"):
        return "`perf` is not installed on the machine that these figures are of.\n"
    with tempfile.TemporaryDirectory(prefix="virtmm-profile-") as folder:
        data = f"{folder}/perf.data"
        again = [sys.executable, "-m", "scripts.profile", "--replays", str(times)]
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "2500", "-o", data, "--"]
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        report = ["perf", "report", "-i", data, "--stdio", "--no-children", "-q", "-t", ";"]
        for command in (
            [*record, *again, "--kernel", kernel, str(path)],
            [*report, "-F", "overhead,dso,sym"],
        ):
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=TOP, env=env
            )
            if done.returncode:
                said = (done.stderr.strip() or "no output").splitlines()[-1]
                return f"`perf` did not work on the machine that these figures are of: {said}\n"
    return functions(done.stdout)


def functions(report: str) -> str:
    """Return the table of what perf report printed: ``overhead;object;[.] function`` a line."""
    shares: dict[str, float] = defaultdict(float)
    for line in report.splitlines():
        parts = [part.strip() for part in line.split(";")]
        if len(parts) != 3 or not parts[0].endswith("%"):
            continue
        share, place, symbol = float(parts[0].rstrip("%")), parts[1], parts[2].partition("] ")[2]
        symbol = symbol.removesuffix("@plt")  # the way into another function, part of it here
        if place.startswith("_core"):
            name = f"{CORE} `{symbol}`"
        elif place.startswith(("[kernel", "[guest", "[unknown")):
            name = "this machine's kernel"
        else:
            name = place.partition(".so")[0].partition(".cpython")[0]
        shares[name] += share
    rows = [
        (name, f"{share:.1f} %")
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= (LEAST_OF_CORE if name.startswith(CORE) else LEAST)
    ]
    return table(("where", "share"), rows)


# --- the tables -----------------------------------------------------------------------------------


def _config(kernel: str) -> tuple[ResolvedConfig, list[str]]:
    config = resolve(ARCH, kernel)
    return config, ["64kB=always"] if config.get("ANON_POLICY_MTHP") else []


def best_profile(path: Path, kernel: str, repeat: int = REPEAT) -> Profile:
    """Return the profile whose time is the median of some."""
    config, settings = _config(kernel)
    found = sorted((profile(path, config, settings) for _ in range(repeat)), key=lambda p: p.ns)
    return found[len(found) // 2]


def only_replay(path: Path, kernel: str) -> None:
    """Replay a trace without timers."""
    config, settings = _config(kernel)
    with TraceReader(path) as reader, Machine(config, settings) as machine:
        Replay(machine, reader).run()


def time_table(profiles: dict[str, Profile]) -> str:
    """Return where the time of one trace went, kernels side by side."""
    names = sorted({what for p in profiles.values() for what, _, _ in p.rows}, key=_order)
    rows = []
    for name in names:
        cells = [name]
        for p in profiles.values():
            found = next((row for row in p.rows if row[0] == name), None)
            if not found or not found[1]:
                cells += ["-"] * 3
                continue
            _, often, ns = found
            cells += [f"{often:,}", f"{ns / p.ns:.1%}", f"{ns / often:,.0f}"]
        rows.append(cells)
    total = ["all"]
    for p in profiles.values():
        total += [f"{p.events:,}", "100.0%", f"{p.ns / p.events:,.0f}"]
    header = [t for k in profiles for t in (f"`{k}`: number", "share", "ns each")]
    return table(("", *header), [*rows, total])


def replay_bounds(paths: Sequence[Path], profiles: dict[Path, dict[str, Profile]]) -> str:
    """Return the distance of whole replays to a bare decode loop and to the bandwidth."""
    rate, rows = bandwidth(), []
    for path in paths:
        bare = bare_decode(path)
        for kernel, p in profiles[path].items():
            least = p.bytes * 1e9 / rate
            rows.append(
                (
                    path.stem,
                    f"`{kernel}`",
                    f"{p.ns / p.events:,.0f}",
                    f"{bare / p.events:,.0f}",
                    f"{p.ns / bare:,.1f}",
                    f"{p.bytes / p.events:,.0f}",
                    f"{least / p.events:,.1f}",
                    f"{p.ns / least:,.0f}",
                )
            )
    header = ("trace", "kernel", "ns an event", "bare decode", "times", "bytes an event")
    return table((*header, "ns of moving them", "times"), rows)


def machine_line() -> str:
    """Return what machine these figures are of."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{model}, Python {python}; copying memory moves {bandwidth() / 1e9:.1f} GB/s.\n"


def sections(paths: Sequence[Path], repeat: int = REPEAT) -> dict[str, str]:
    """Measure; return name of a section -> its text."""
    profiles = {
        path: {kernel: best_profile(path, kernel, repeat) for kernel in KERNELS} for path in paths
    }
    found = {"machine": machine_line()}
    found |= {path.stem: time_table(profiles[path]) for path in paths}
    found["replays"] = replay_bounds(paths, profiles)
    return found | {"functions": in_c(paths[0], FUNCTIONS_OF)}


def main(argv: list[str] | None = None) -> int:
    """Measure, write or print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE")
    parser.add_argument("--print", action="store_true", help="print instead of writing profile.md")
    parser.add_argument("--repeat", type=int, default=REPEAT, help="replays, of which the median")
    parser.add_argument("--replays", type=int, help="only replay so often (perf looks at that)")
    parser.add_argument("--kernel", default=FUNCTIONS_OF, help="with --replays")
    args = parser.parse_args(argv)
    if args.replays:
        for path in args.traces * args.replays:
            only_replay(path, args.kernel)
        return 0
    if args.traces and not args.print:
        print("profile: the document is of the samples; add --print", file=sys.stderr)
        return 2
    try:
        found = sections(args.traces or SAMPLES, max(args.repeat, 1))
    except (TraceError, ConfigError) as e:
        print(f"profile: {e}", file=sys.stderr)
        return 2
    if not args.traces:
        found["operations"] = operation_bounds()
    if args.print:
        print("\n".join(f"{name}\n\n{text}" for name, text in found.items()), end="")
        return 0
    document = OUTPUT.read_text(encoding="utf-8")
    for name in found:
        section(document, name, OUTPUT)
    for name, text in found.items():
        document = replace_section(document, name, text, OUTPUT)
    OUTPUT.write_text(document, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
