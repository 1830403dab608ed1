# SPDX-License-Identifier: GPL-2.0-only
"""
The compare table: one row per trace and kernel, as text, JSON, CSV or Markdown.

The first kernel of each trace is its baseline; the others show their change against it. A result
that ran out of memory covers only a part of its trace: it is shown as that and compared with
nothing.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from virtmm.tools.report.result import TLB_KINDS, TLB_WAYS, ReportError, Result, read_results

import virtmm

__all__ = ["FORMATS", "ReportError", "Row", "make_rows", "render"]

FORMATS = ("text", "json", "csv", "md")
BAR_CELLS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SUFFIXES = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    Attributes:
        result: what was counted.
        first: the first row of its trace, the baseline.
        minflt_change, instructions_change, peak_change: percent against the baseline; None for the
            baseline itself, against nothing, and where either ran out of memory.
        minflt_share, instructions_share: 0 ... 1, of the largest of the trace.
    """

    result: Result
    first: bool
    minflt_change: float | None
    instructions_change: float | None
    peak_change: float | None
    minflt_share: float
    instructions_share: float


def make_rows(sources: Iterable[Path | Mapping[str, Any]]) -> list[Row]:
    """
    Return the rows of the table, traces together in order of appearance.

    Args:
        sources: result files, or results as replay makes them.

    Raises:
        ReportError: see read_results(); or one trace twice under the same kernel.
    """
    traces: dict[str, list[Result]] = {}
    for result in read_results(sources):
        traces.setdefault(result.trace, []).append(result)
    rows = []
    for trace, results in traces.items():
        seen = [(r.arch, r.kernel) for r in results]
        for arch, kernel in seen:
            if seen.count((arch, kernel)) > 1:
                raise ReportError(f"trace {trace}: two results of {arch} {kernel}; name one apart")
        base = results[0]
        most_faults = max(r.minflt for r in results) or 1
        most_instructions = max(r.instructions["total"] for r in results) or 1
        for r in results:
            rows.append(
                Row(
                    result=r,
                    first=r is base,
                    minflt_change=_change(r, base, r.minflt, base.minflt),
                    instructions_change=_change(
                        r, base, r.instructions["total"], base.instructions["total"]
                    ),
                    peak_change=_change(r, base, r.memory["peak"], base.memory["peak"]),
                    minflt_share=r.minflt / most_faults,
                    instructions_share=r.instructions["total"] / most_instructions,
                )
            )
    return rows


def _change(result: Result, base: Result, value: int, old: int) -> float | None:
    if result is base or result.oom or base.oom or not old:
        return None
    return round((value / old - 1) * 100, 2)


def render(
    results: Iterable[Path | Mapping[str, Any]],
    fmt: str = "text",
    *,
    width: int | None = None,
    color: bool | None = None,
    not_booted: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """
    Return the compare table, with a final newline.

    Args:
        results: result files, or results as replay makes them.
        fmt: one of FORMATS.
        width: columns of the text table; default: the terminal's, 100 without one.
        color: escape sequences in the text table; default: only if stdout is a terminal.
        not_booted: kernels that have no results, and why they do not boot.

    Raises:
        ReportError: unknown format, or what make_rows() raises.
    """
    if fmt not in FORMATS:
        raise ReportError(f"unknown format {fmt!r}: use one of {', '.join(FORMATS)}")
    rows = make_rows(results)
    if fmt == "json":
        return _json(rows, not_booted)
    if fmt == "csv":
        return _csv(rows, not_booted)
    notes = [f"{kernel} does not boot: {reason}" for kernel, reason in not_booted.items()]
    notes += _notes(rows)
    if fmt == "md":
        return _markdown(rows, notes)
    return _text(rows, notes, width, color)


# --- JSON and CSV: full figures ---------------------------------------------------------------


def _json(rows: Sequence[Row], not_booted: Mapping[str, str]) -> str:
    document = {
        "format": "virtmm-compare",
        "version": 1,
        "virtmm": virtmm.__version__,
        "rows": [
            {
                "trace": row.result.trace,
                "trace_hash": row.result.trace_hash,
                "kernel": row.result.kernel,
                "arch": row.result.arch,
                "page_size": row.result.page_size,
                "config_hash": row.result.raw["config_hash"],
                "core_hash": row.result.raw["core_hash"],
                "baseline": row.first,
                "minflt": row.result.minflt,
                "minflt_change_percent": row.minflt_change,
                "instructions": dict(row.result.instructions),
                "instructions_change_percent": row.instructions_change,
                "cost_table": row.result.cost_table,
                "folios": {str(order): n for order, n in row.result.folios.items()},
                "refused_orders": row.result.raw.get("refused_orders", {}),
                "policy": row.result.raw.get("policy"),
                "memory": dict(row.result.memory),
                "peak_change_percent": row.peak_change,
                "tlb": {kind: dict(counts) for kind, counts in row.result.tlb.items()},
                "segv": row.result.segv,
                "refused_calls": row.result.refused_calls,
                "oom": row.result.oom,
                "simplified": list(row.result.simplified),
            }
            for row in rows
        ],
        "not_booted": dict(not_booted),
    }
    return json.dumps(document, indent=2) + "\n"


def _csv(rows: Sequence[Row], not_booted: Mapping[str, str]) -> str:
    lines: list[dict[str, Any]] = [
        {
            "trace": row.result.trace,
            "arch": row.result.arch,
            "kernel": row.result.kernel,
            "page_size": row.result.page_size,
            "minflt": row.result.minflt,
            "minflt_change_percent": _blank(row.minflt_change),
            "instructions": row.result.instructions["total"],
            "instructions_change_percent": _blank(row.instructions_change),
            "folios": " ".join(f"{o}:{n}" for o, n in row.result.folios.items()),
            "peak_memory": row.result.memory["peak"],
            "peak_memory_change_percent": _blank(row.peak_change),
            "max_page_tables": row.result.memory["max_page_tables"],
            **{
                f"tlb_{kind}_{name}": row.result.tlb[kind][name]
                for kind in TLB_KINDS
                for name in ("bytes", *TLB_WAYS)
            },
            "cost_table": row.result.cost_table,
            "oom": _oom(row.result),
        }
        for row in rows
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    writer.writerows({"kernel": k, "oom": f"does not boot: {r}"} for k, r in not_booted.items())
    return out.getvalue()


def _blank(change: float | None) -> str:
    return "" if change is None else f"{change:.2f}"


def _oom(result: Result) -> str:
    return f"out of memory at event {result.oom['event']}" if result.oom else ""


# --- text and Markdown: figures to read ----------------------------------------------------------


def compact(value: float, digits: int = 3, base: int = 1000) -> str:
    """Return a number rounded to about ``digits`` digits: 900, 1.23k, 34.0k, 812M."""
    for suffix in _SUFFIXES:
        decimals = max(digits - len(str(int(value))), 0) if suffix else 0
        # Compared as it would be printed: 999.6 is 1.00k, never 1000.
        if round(value, decimals) < base or suffix == _SUFFIXES[-1]:
            break
        value /= base
    text = f"{value:.{decimals}f}"
    if decimals and len(text) > digits + 1:  # 9.996 became 10.00
        text = f"{value:.{decimals - 1}f}"
    return text + suffix


def _bytes(value: int) -> str:
    text = compact(value, base=1024).replace("k", "K")
    return text + ("iB" if text[-1].isalpha() else "B")


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change:+.1f}%"


def _folios(result: Result) -> str:
    if result.oom:
        return _oom(result)
    return " ".join(f"{o}:{compact(n, 2)}" for o, n in result.folios.items()) or "none"


def _tlb(result: Result, kind: str) -> str:
    """Return TLB entries per MiB in three digits: 256, 73.1, 0.50."""
    value = result.tlb_per_mib(kind)
    if value is None:
        return "-"
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _kernel(result: Result, several: bool) -> str:
    return f"{result.arch} {result.kernel}" if several else result.kernel


def _notes(rows: Sequence[Row]) -> list[str]:
    """Return the lines below the table: what ran out of memory, prices used, simplifications."""
    several_traces, _ = _several(rows)
    notes = []
    tables: dict[str, list[str]] = {}
    settings: dict[str, list[str]] = {}
    for row in rows:
        r = row.result
        name = f"{r.trace}, {r.kernel}" if several_traces else r.kernel
        if r.oom:
            notes.append(
                f"{name}: {_oom(r)}, pid {r.oom['pid']} ({r.oom['command']}) held "
                f"{_bytes(r.oom['held'])}; its figures end there"
            )
        if r.segv:
            notes.append(f"{name}: {r.segv} segmentation faults in the trace's processes")
        if r.refused_calls:
            notes.append(
                f"{name}: {r.refused_calls} memory calls refused that the recorded kernel granted"
            )
        knobs = " ".join(r.raw.get("settings", ()))
        if r.raw.get("policy"):
            knobs = ", ".join(filter(None, (knobs, f"folio sizes by {r.raw['policy']['file']}")))
        if knobs and r.kernel not in settings.setdefault(knobs, []):
            settings[knobs].append(r.kernel)
        kernels = tables.setdefault(r.cost_table, [])
        if r.kernel not in kernels:
            kernels.append(r.kernel)
    priced = "; ".join(
        f"{table} ({', '.join(kernels)})" if len(tables) > 1 else table
        for table, kernels in tables.items()
    )
    notes += [f"{', '.join(kernels)}: {knobs}" for knobs, kernels in settings.items()]
    notes.append(
        "TLB/MiB: TLB entries that a MiB of data, and of text, takes as mapped; not misses"
    )
    notes.append(f"Instructions priced by {priced}")
    simplified = dict.fromkeys(s for row in rows for s in row.result.simplified)
    return notes + [f"SIMPLIFIED: {s.removeprefix('SIMPLIFIED:').strip()}" for s in simplified]


def _several(rows: Sequence[Row]) -> tuple[bool, bool]:
    """Return whether there are several traces, and several architectures."""
    traces = {row.result.trace for row in rows}
    return len(traces) > 1, len({row.result.arch for row in rows}) > 1


def _markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    traces, arches = _several(rows)
    header = ["Kernel", "Minor faults", "±", "Instructions", "±", "Folios by order"]
    header += ["Peak memory", "±", "Page tables", "TLB/MiB data", "TLB/MiB text"]
    rule = ["---", *["--:"] * 4, "---", *["--:"] * 5]
    if traces:
        header, rule = ["Trace", *header], ["---", *rule]
    lines = [header, rule]
    for row in rows:
        r = row.result
        cells = [r.trace] if traces else []
        cells += [_kernel(r, arches), f"{r.minflt:,}", _percent(row.minflt_change)]
        cells += [compact(r.instructions["total"]), _percent(row.instructions_change), _folios(r)]
        cells += [_bytes(r.memory["peak"]), _percent(row.peak_change)]
        cells += [_bytes(r.memory["max_page_tables"]), *(_tlb(r, kind) for kind in TLB_KINDS)]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return table + "".join(f"\n{note}\n" for note in notes)


@dataclass(frozen=True)
class _Layout:
    """How the text table is drawn: bars; changes in columns of their own or below the figure."""

    bars: bool
    beside: bool
    tables: bool  # with page tables
    fold: bool  # two orders of folios a line
    plain: bool  # ASCII only


# From the roomiest: bars are not worth folding the table, page tables not a further line a kernel.
_LAYOUTS = (
    (True, True, True, False),
    (False, True, True, False),
    (False, True, False, False),
    (False, True, False, True),
    (False, False, False, True),
)


def _text(rows: Sequence[Row], notes: Sequence[str], width: int | None, color: bool | None) -> str:
    width = width or shutil.get_terminal_size((100, 24)).columns
    color = sys.stdout.isatty() if color is None else color
    plain = "utf" not in (sys.stdout.encoding or "utf").lower()
    layouts = (_Layout(*how, plain) for how in _LAYOUTS)
    layout = next((x for x in layouts if _natural_width(rows, x) <= width), None)
    if layout is None:
        return _blocks(rows, notes, width)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    console.print(_table(rows, layout))
    for note in notes:
        console.print(Text(note, style="dim"))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


def _blocks(rows: Sequence[Row], notes: Sequence[str], width: int) -> str:
    """Return a few lines for each row, where no table fits; only words are wrapped, no figure is cut."""
    traces, arches = _several(rows)
    lines = []
    for row in rows:
        r = row.result
        figures = {
            "Minor faults": f"{r.minflt:,} {_percent(row.minflt_change)}",
            "Kernel instr.": f"{compact(r.instructions['total'])} {_percent(row.instructions_change)}",
            "Folios": _folios(r),
            "Peak memory": f"{_bytes(r.memory['peak'])} {_percent(row.peak_change)}",
            "TLB/MiB": " ".join(f"{kind} {_tlb(r, kind)}" for kind in TLB_KINDS),
        }
        lines.append(" ".join([r.trace] * traces + [_kernel(r, arches)]))
        for name, figure in figures.items():
            lines += _wrapped(f"  {name:<13}  {figure.rstrip()}", width, indent=17)
    for note in notes:
        lines += _wrapped(note, width)
    return "\n".join(lines) + "\n"


def _wrapped(line: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _natural_width(rows: Sequence[Row], layout: _Layout) -> int:
    """Return the columns a table needs if folios by order may take two lines, or as many as they like."""
    wide = Console(file=io.StringIO(), width=10_000)
    longest = max(len(_folios(row.result)) for row in rows)
    most = len("0:100 2:100") if layout.fold else max(16, (longest + 1) // 2 + 3)
    table = _table(rows, layout, folios=most)
    return wide.measure(table).maximum


def _table(rows: Sequence[Row], layout: _Layout, folios: int | None = None) -> Table:
    """Return the table; ``folios``: at most so many columns for the folios by order."""
    traces, arches = _several(rows)
    table = Table(
        box=box.ASCII if layout.plain else box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )
    if traces:
        table.add_column("\nTrace", overflow="fold")
    table.add_column("\nKernel", no_wrap=True)
    for name in ("Minor\nfaults", "Kernel\ninstr."):
        table.add_column(name, justify="right", no_wrap=True)
        if layout.beside:
            table.add_column("", justify="right", no_wrap=True)
        if layout.bars:
            table.add_column("", no_wrap=True, min_width=BAR_CELLS)
    table.add_column("Folios\nby order", overflow="fold", max_width=folios)
    table.add_column("Peak\nmemory", justify="right", no_wrap=True)
    if layout.beside:
        table.add_column("", justify="right", no_wrap=True)
    if layout.tables:
        table.add_column("Page\ntables", justify="right", no_wrap=True)
    table.add_column("TLB/MiB\ndata text", justify="right", no_wrap=True)
    for row in rows:
        r = row.result
        cells: list[str | Text] = [r.trace if row.first else ""] if traces else []
        cells.append(_kernel(r, arches))
        cells += _figure(f"{r.minflt:,}", row.minflt_change, layout, row.minflt_share)
        total = compact(r.instructions["total"])
        cells += _figure(total, row.instructions_change, layout, row.instructions_share)
        cells.append(Text(_folios(r), style="bold red" if r.oom else ""))
        cells += _figure(_bytes(r.memory["peak"]), row.peak_change, layout)
        if layout.tables:
            cells.append(_bytes(r.memory["max_page_tables"]))
        cells.append(" ".join(f"{_tlb(r, kind):>4}" for kind in TLB_KINDS))
        table.add_row(*cells)
    return table


def _figure(
    figure: str, change: float | None, layout: _Layout, share: float | None = None
) -> list[str | Text]:
    """Return the cells of one figure: with its change and, for a share of the largest, its bar."""
    cells: list[str | Text] = []
    if layout.beside:
        cells += [figure, _coloured(change)]
    else:
        below = Text("\n") + _coloured(change) if change is not None else Text()
        cells.append(Text(figure) + below)
    if layout.bars and share is not None:
        cells.append(Text(bar(share, layout.plain), style="blue"))
    return cells


def _coloured(change: float | None) -> Text:
    style = "" if change is None or abs(change) < 0.05 else "green" if change < 0 else "red"
    return Text(_percent(change), style=style)


def bar(share: float, plain: bool = False) -> str:
    """Return a bar for a share of 0 ... 1, BAR_CELLS long at 1; ``plain``: ASCII only."""
    if plain:
        return "#" * round(share * BAR_CELLS)
    full, eighths = divmod(round(share * BAR_CELLS * 8), 8)
    return "█" * full + _EIGHTHS[eighths].strip()
