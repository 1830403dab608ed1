# SPDX-License-Identifier: GPL-2.0-only
"""
Time memory operations on this machine's own kernel and on a virtual one, in turns (``make bench-real``).

The real kernel is asked by tests/benchmarks/real.c, the virtual one is mainline of the nearest release
on this machine's architecture. Both run on one CPU, and a ratio is the median of the ratios of
neighbouring measurements. The sizes of folios are those that the real kernel's settings give, and
no setting is changed; ``--sizes``, as root, puts sizes in force for the run.

The virtual machine keeps no contents of pages (``--set PHYS_BACKING=y`` makes it), and a real process
has some twenty mappings more than a virtual one: its program's, its libraries', its stack.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from virtmm.arch.params import ArchError
from virtmm.tools.predict import real
from virtmm.tools.predict.real import RealError

from scripts.document import TOP
from scripts.operations import CALLS, OPERATIONS, Lab, Timed, measure, settings_of
from virtmm.boot import BootError
from virtmm.kbuild import BuildError
from virtmm.kconfig import ConfigError, ResolvedConfig, defconfigs, host_arch, resolve

SOURCE = TOP / "tests" / "benchmarks" / "real.c"
#: Folio sizes beside the base page, KiB.
SIZES = (16, 64, 2048)
#: First touch of a machine's memory, once: the host zeroes page records and page tables on the way.
COLD = "first_touch_cold"
#: So many times the memory that others work on: records are zeroed by a huge page, for 256 MiB.
COLD_TIMES = 4
#: Operations that have the same cost for every size, but for the huge zero page of a read.
BASE_ONLY = ("mmap_munmap",)
READ_SIZES = (2048,)
#: Operation, KiB or 0 for the base page -> least ratio, or rate of the virtual kernel (issue 6).
WANTED = (
    ("first_touch", 0, "ratio", 10),
    ("first_touch", 0, "faults_per_second", 15e6),
    ("first_touch", 64, "pages_per_second", 100e6),
    (COLD, 0, "ratio", 10),
    (COLD, 0, "faults_per_second", 15e6),
    (COLD, 64, "pages_per_second", 100e6),
    ("munmap", 64, "pages_per_second", 200e6),
    ("fork", 64, "pages_per_second", 200e6),
    ("mprotect", 64, "pages_per_second", 200e6),
)
#: Faults that a process may have beside those of the memory it touches: its stack, its program.
STRAY_FAULTS = 8


@dataclass
class Row:
    """
    The measurements of one operation with folios of one size, in pairs.

    Attributes:
        pages: that one measurement works on; 0 = it does not touch memory.
        calls: that it makes; 0 = its faults are counted.
        real: empty when the real kernel has no such folios.
    """

    operation: str
    folio_kib: int
    unit: str
    pages: int
    calls: int
    real: list[Timed] = field(default_factory=list)
    virtual: list[Timed] = field(default_factory=list)

    def ratio(self) -> float | None:
        """Return how many times as fast the virtual kernel is; None without the real one."""
        if not self.real:
            return None
        pairs = zip(self.real, self.virtual, strict=True)
        return median(mine.ns / other.ns for mine, other in pairs)

    def figures(self, timed: Sequence[Timed]) -> dict[str, float]:
        """Return the medians of a side: ns, units and pages a second."""
        ns = median(t.ns for t in timed)
        units = self.calls or median(t.faults for t in timed)
        found = {"ns": ns, f"{self.unit}_per_second": units * 1e9 / ns}
        if self.pages:
            found["pages_per_second"] = self.pages * 1e9 / ns
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the row as --json prints it."""
        return {
            "operation": self.operation,
            "folio_kib": self.folio_kib,
            "unit": self.unit,
            "pages": self.pages,
            "real": self.figures(self.real) if self.real else None,
            "virtual": self.figures(self.virtual),
            "ratio": self.ratio(),
        }


class RealKernel:
    """
    The running kernel, asked by a program for each measurement.

    Attributes:
        hints: KiB of a folio -> the advice that gives it; sizes that cannot be had are not in it.
        missing: KiB -> why not.
    """

    def __init__(self, mib: int) -> None:
        self.program = real.compiled(SOURCE)
        self.mib = mib
        self.page_kib = os.sysconf("SC_PAGESIZE") >> 10
        self.hints = {self.page_kib: "nohuge"}
        self.missing: dict[int, str] = {}

    def measure(self, operation: str, hint: str, step_kib: int, times: int = 1) -> Timed:
        """Run the program once, on so many times the memory."""
        command = [str(self.program), operation, hint, str(step_kib), str(times * self.mib)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
            raise RealError(f"{SOURCE.name} {' '.join(command[1:])}: {said}; try a smaller --mib")
        return parse(done.stdout)

    def look_for(self, kib: int) -> None:
        """Find out how folios of a size are had: touch all pages and count the faults."""
        folios, seen = (self.mib << 10) // kib, []
        for hint in ("none", "huge"):
            faults = self.measure("probe", hint, kib).faults
            if folios <= faults <= folios + STRAY_FAULTS:
                self.hints[kib] = hint
                return
            seen.append(faults)
        knob = real.sizes().get(kib)
        if knob is None:
            why = "this kernel has no such size"
        elif real.chosen(knob) == "never":
            why = f"hugepages-{kib}kB/enabled is never"
        else:
            why = (
                f"hugepages-{kib}kB/enabled is {real.chosen(knob)}, but memory for {folios:,} "
                f"folios took {seen[-1]:,} faults: another size comes first"
            )
        self.missing[kib] = why


def parse(text: str) -> Timed:
    """Return what real.c printed; RealError when it is something else."""
    found = re.fullmatch(r"(\d+) (\d+)\n", text)
    if not found or not int(found[1]):
        raise RealError(f"{SOURCE.name} printed {text!r}; expected nanoseconds and faults")
    return Timed(int(found[1]), int(found[2]))


def nearest(release: str, kernels: Sequence[str]) -> str:
    """
    Return the mainline kernel for a release: the newest that is not newer, else the oldest.

    Args:
        release: as uname prints it.
        kernels: names of defconfigs, those of mainline ``linux-<release>``.
    """

    def number(text: str) -> tuple[int, ...]:
        found = re.match(r"(?:linux-)?(\d+)\.(\d+)", text)
        return (int(found[1]), int(found[2])) if found else ()

    mainline = sorted((k for k in kernels if k.startswith("linux-")), key=number)
    if not mainline:
        raise RealError("this machine's architecture has no kernel linux-*; name one by --kernel")
    older = [k for k in mainline if number(k) <= number(release)]
    return older[-1] if older else mainline[0]


def choose(kernel: str | None = None) -> tuple[str, str]:
    """Return the architecture of this machine and a kernel of it, the nearest unless one is named."""
    arch = host_arch()
    return arch, kernel or nearest(platform.release(), defconfigs(arch))


def configure(arch: str, kernel: str, mib: int, sets: Sequence[str] = ()) -> ResolvedConfig:
    """Return the configuration of a virtual kernel whose operations work on some MiB."""
    return resolve(arch, kernel, sets=[f"MEMORY_MB={max(1024, 8 * mib)}", *sets])


def operations_of(kib: int, page_kib: int) -> list[str]:
    """Return the operations that are worth timing with folios of a size."""
    base = kib == page_kib
    names = [n for n in OPERATIONS if n != "file_read"]
    if not base:
        names = [n for n in names if n not in BASE_ONLY]
    return [n for n in names if n != "first_read" or base or kib in READ_SIZES]


def compare(
    config: ResolvedConfig, mib: int, repeat: int, force: Sequence[int] = ()
) -> tuple[list[Row], dict[int, str]]:
    """
    Measure everything; return the rows and the sizes that the real kernel does not give.

    Args:
        mib: memory that each operation works on.
        repeat: measurements of each.
        force: sizes, KiB, to put in force for their part of the run; needs root.

    Raises:
        RealError, ConfigError, BuildError, BootError.
    """
    kernel = RealKernel(mib)
    page_kib = (1 << int(config["PAGE_SHIFT"])) >> 10
    if page_kib != kernel.page_kib:
        raise RealError(
            f"this machine has {kernel.page_kib}K pages and the virtual kernel {page_kib}K; "
            "choose another by --kernel, or PAGE_SHIFT by --set"
        )
    rows: list[Row] = []
    for kib in (page_kib, *SIZES):
        with real.settings({kib: "madvise"}) if kib in force else contextlib.nullcontext():
            if kib != page_kib:
                kernel.look_for(kib)
            rows += _compare_size(kernel, config, kib, repeat)
            rows.append(_compare_cold(kernel, config, kib, repeat))
    return rows, kernel.missing


def _compare_size(
    kernel: RealKernel, config: ResolvedConfig, kib: int, repeat: int
) -> Iterator[Row]:
    """Measure the operations with folios of one size."""
    lab = Lab(config, kib << 10, kernel.mib << 20, settings_of(kib, kernel.page_kib))
    hint = kernel.hints.get(kib)
    with lab.machine:
        for name in operations_of(kib, kernel.page_kib):
            operation = OPERATIONS[name]
            pages = 0 if name == "mmap_munmap" else lab.pages
            row = Row(name, kib, operation.unit, pages, operation.calls)
            for turn in range(repeat):
                if hint and turn % 2:
                    row.real.append(kernel.measure(name, hint, kib))
                measure(lab, name)  # as real.c does, lest one finds the caches full of the other's
                row.virtual.append(measure(lab, name))
                if hint and not turn % 2:
                    row.real.append(kernel.measure(name, hint, kib))
            yield row


def _compare_cold(kernel: RealKernel, config: ResolvedConfig, kib: int, repeat: int) -> Row:
    """Measure first touches on machines just booted; the real kernel has its page records since it did."""
    size, settings = COLD_TIMES * kernel.mib << 20, settings_of(kib, kernel.page_kib)
    hint = kernel.hints.get(kib)
    row = Row(COLD, kib, "faults", (size >> 10) // kernel.page_kib, 0)
    for _ in range(repeat):
        if hint:
            row.real.append(kernel.measure("first_touch", hint, kib, COLD_TIMES))
        lab = Lab(config, kib << 10, size, settings)
        with lab.machine:
            row.virtual.append(measure(lab, "first_touch"))
    return row


def verdicts(rows: Sequence[Row], page_kib: int) -> list[str]:
    """Return a line for each figure that issue 6 asks for."""
    by_name = {(r.operation, 0 if r.folio_kib == page_kib else r.folio_kib): r for r in rows}
    lines = []
    for operation, kib, figure, least in WANTED:
        row = by_name.get((operation, kib))
        if row is None:
            continue
        got = row.ratio() if figure == "ratio" else row.figures(row.virtual)[figure]
        what = f"{operation} {row.folio_kib}K: {figure.replace('_', ' ')}"
        if got is None:
            lines.append(f"{what}: not measured")
        else:
            said = "yes" if got >= least else "NO"
            lines.append(f"{what} {rate(got)}, wanted {rate(least)}: {said}")
    return lines


def rate(value: float) -> str:
    """Return a rate or a ratio with three digits."""
    for unit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


HEADER = (
    *("operation", "folio", "unit", "real /s", "real pages/s"),
    *("virtual /s", "virtual pages/s", "virtual : real"),
)


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row of the table."""
    sides: list[str] = []
    for timed in (row.real, row.virtual):
        found: Mapping[str, float] = row.figures(timed) if timed else {}
        sides += [
            rate(found[name]) if name in found else "-"
            for name in (f"{row.unit}_per_second", "pages_per_second")
        ]
    ratio = row.ratio()
    return (
        row.operation,
        f"{row.folio_kib}K",
        row.unit,
        *sides,
        "-" if ratio is None else f"{ratio:.3g}",
    )


def text_table(rows: Sequence[Row]) -> str:
    """Return the table for a terminal."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        left = [c.ljust(w) for c, w in zip(line[:3], widths, strict=False)]
        right = [c.rjust(w) for c, w in zip(line[3:], widths[3:], strict=True)]
        text += "  ".join([*left, *right]).rstrip() + "\n"
    return text


def pin() -> None:
    """Stay on one CPU, as the programs started from here then do too."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def sizes(text: str) -> list[int]:
    """Return the sizes, KiB, of ``--sizes``."""
    found = [int(part) for part in text.split(",") if part.isdigit()]
    if len(found) != len(text.split(",")) or not set(found) <= set(SIZES):
        raise argparse.ArgumentTypeError(f"{text!r}: choose of {','.join(map(str, SIZES))}")
    return found


def positive(text: str) -> int:
    """Return a number above zero."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kernel", help="virtual kernel; else mainline nearest to the running one")
    parser.add_argument("--mib", type=positive, default=64, help="memory of an operation, even")
    parser.add_argument("--repeat", type=positive, default=15, help="measurements of each")
    parser.add_argument("--set", action="append", default=[], metavar="SYMBOL=VALUE")
    parser.add_argument("--sizes", type=sizes, default=[], metavar="KIB,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    args = parser.parse_args(argv)
    try:
        if args.mib % 2:
            raise RealError(f"--mib {args.mib}: name an even number, since a huge page has 2 MiB")
        if args.sizes:
            real.require([dict.fromkeys(args.sizes, "madvise")])
        arch, kernel = choose(args.kernel)
        config = configure(arch, kernel, args.mib, args.set)
        pin()
        rows, missing = compare(config, args.mib, args.repeat, args.sizes)
        if args.json:
            found = report(rows, missing, kernel, args)
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    except (RealError, ArchError, BootError, BuildError, ConfigError, OSError) as e:
        print(f"bench-real: {e}", file=sys.stderr)
        return 2
    print(f"real: Linux {platform.release()}; virtual: {' '.join([arch, kernel, *args.set])}")
    print(
        f"medians of {args.repeat}, {args.mib} MiB, one CPU; mmap_munmap: {CALLS} pairs of calls\n"
    )
    print(text_table(rows))
    for kib, why in missing.items():
        print(f"{kib}K on the real kernel: {why}")
    print("\n".join(verdicts(rows, os.sysconf("SC_PAGESIZE") >> 10)))
    return 0


def report(
    rows: Sequence[Row], missing: Mapping[int, str], kernel: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Return what --json writes."""
    return {
        "format": "virtmm-bench-real",
        "version": 1,
        "real": platform.release(),
        "virtual": kernel,
        "set": args.set,
        "mib": args.mib,
        "repeat": args.repeat,
        "missing": {str(kib): why for kib, why in missing.items()},
        "rows": [row.as_json() for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
