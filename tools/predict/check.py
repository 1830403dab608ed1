# SPDX-License-Identifier: GPL-2.0-only
"""
Record a command once with base pages, predict it under other folio sizes, and run it under them.

Prediction and measurement are of the same run of the program as far as that is possible: address-space
randomisation is off and its input is the same.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtmm.tools.predict import real
from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.record import record

if TYPE_CHECKING:
    from virtmm.kconfig import ResolvedConfig

#: A setting: folio size in KiB -> always, madvise or inherit; the others are never.
Setting = Mapping[int, str]


@dataclass(frozen=True)
class Row:
    """
    One command under one setting.

    Attributes:
        predicted, measured: "minflt", "maxrss" (bytes), and "folios" (bytes of a folio -> number).
        runs: how many real runs the medians are of.
        spread: largest minus smallest measured number of minor faults.
    """

    command: str
    setting: str
    predicted: Mapping[str, Any]
    measured: Mapping[str, Any]
    runs: int
    spread: int

    def named(self, command: str) -> Row:
        """Return the row with another name for the command."""
        return replace(self, command=command)

    def error(self, what: str) -> float | None:
        """Return how far the prediction is off in percent of the measurement; None without one."""
        found = self.measured[what]
        return (self.predicted[what] / found - 1) * 100 if found else None


def parse_setting(text: str) -> dict[int, str]:
    """
    Return a setting from ``16,32,64`` or ``64=madvise``; ``none`` is every size never.

    Raises:
        RealError: not of that form.
    """
    if text == "none":
        return {}
    found = {}
    for part in text.split(","):
        kb, _, state = part.strip().removesuffix("kB").partition("=")
        if not kb.isdigit() or state not in ("", "always", "madvise", "inherit"):
            raise real.RealError(
                f"{text!r}: write none, or sizes in kB such as 16,32,64 or 64=madvise"
            )
        found[int(kb)] = state or "always"
    return found


def prediction_notes(kernel: str, repeat: int, rows: Sequence[Row] = ()) -> list[str]:
    """Return the lines below a table of predictions."""
    failed = {
        f"{r.command}: ended with status {r.measured['status']}"
        for r in rows
        if r.measured["status"]
    }
    return [
        *sorted(failed),
        f"Predicted by {kernel} from one recording with base pages; measured on Linux "
        f"{platform.release().split('-')[0]}, medians of {repeat} runs.",
        "Folios: predicted/measured by size; measured for the whole machine.",
    ]


def knobs(setting: Setting) -> list[str]:
    """Return a setting as the virtual kernel's run-time knobs; the PMD size does not inherit."""
    never = dict.fromkeys(real.sizes(), "never")
    return [f"{kb}kB={state}" for kb, state in {**never, **setting}.items()]


def predict(trace: Path, config: ResolvedConfig, kernel: str, setting: Setting) -> dict[str, Any]:
    """Return what a replay says: minor faults, folios by size in bytes, peak RSS of a process."""
    with TraceReader(trace) as reader:
        result = replay(reader, config, kernel, knobs(setting))
    page = result["page_size"]
    folios = {page << int(order): n for order, n in result["folios"].items() if int(order)}
    return {
        "minflt": result["minflt"],
        "maxrss": result["memory"]["peak_rss"],
        "folios": folios,
        "refused": result["refused_calls"],
        "segv": result["segv"],
    }


def measure(command: Sequence[str], setting: Setting, repeat: int) -> tuple[dict[str, Any], int]:
    """Return (medians of real runs under a setting, spread of their minor faults)."""
    with real.settings(setting):
        runs = [real.run(command) for _ in range(repeat)]
    found = sorted({size for r in runs for size in r.folios})
    middle = {
        "minflt": round(statistics.median(r.minflt for r in runs)),
        "maxrss": round(statistics.median(r.maxrss for r in runs)),
        "folios": {s: round(statistics.median(r.folios.get(s, 0) for r in runs)) for s in found},
        "status": max(r.status for r in runs),
    }
    return middle, max(r.minflt for r in runs) - min(r.minflt for r in runs)


def predict_check(
    command: Sequence[str],
    wanted: Sequence[str],
    config: ResolvedConfig,
    kernel: str,
    *,
    repeat: int = 3,
    keep: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """
    Return a row for each setting: what a replay predicts and what this machine's kernel does.

    Args:
        wanted: settings as parse_setting() takes them.
        config, kernel: the virtual kernel and what to call it.
        repeat: real runs of each setting; figures are their medians.
        keep: where to leave the trace.
        progress: told what is done next.

    Raises:
        RealError, TraceError: what is wrong with the machine or the command.
    """
    name = shlex.join(command)
    with tempfile.TemporaryDirectory(prefix="virtmm-predict-") as folder:
        trace = keep or Path(folder, "trace.parquet")
        progress(f"{command[0]}: recording")
        with _silent():
            record(command, trace)
        rows = []
        for text in wanted:
            setting = parse_setting(text)
            progress(f"{command[0]} {text}: replaying")
            predicted = predict(trace, config, kernel, setting)
            progress(f"{command[0]} {text}: running")
            measured, spread = measure(command, setting, repeat)
            rows.append(Row(name, text, predicted, measured, repeat, spread))
    return rows


@contextmanager
def _silent() -> Iterator[None]:
    """Send standard output to nowhere, for what is started too: the command runs many times."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
