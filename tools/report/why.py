# SPDX-License-Identifier: GPL-2.0-only
"""
Why not larger: what kept write faults on fresh memory from getting folios of each size.

Two tables, as text or Markdown: by kernel and size, and the mappings that lost most.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from virtmm.tools.report.result import Result, read_results

REASONS = ("edge", "populated", "not_enabled", "alloc", "charge")
TOP_MAPPINGS = 10

_LEGEND = (
    "Write faults on fresh memory that got a smaller folio than this size, by what was wrong with it: "
    "edge: the aligned block is not all in the mapping; populated: something is mapped in it already; "
    "not_enabled: the mapping may not have the size, or the policy passed over it; alloc: no free "
    "memory of that size; charge: the memory cgroup refused it."
)
_LEGEND_MAPPINGS = (
    "The mappings that lost most; each fault counts once, at the largest size its mapping may have."
)


def render_why(
    results: Iterable[Mapping[str, Any]],
    fmt: str = "text",
    *,
    mappings: bool = False,
    width: int | None = None,
) -> str:
    """
    Return why folios were not larger, with a final newline.

    Args:
        results: as replay makes them.
        fmt: "text" or "md".
        mappings: list the TOP_MAPPINGS mappings that lost most, too.
        width: columns of text; default: the terminal's, 100 without one.

    Raises:
        ReportError: see read_results().
    """
    checked = read_results(results)
    tables = [(_LEGEND, _by_size(checked))]
    if mappings:
        tables.append((_LEGEND_MAPPINGS, _by_mapping(checked)))
    draw = _markdown if fmt == "md" else _text
    return "\n".join(draw(legend, rows, width) for legend, rows in tables)


def _by_size(results: Sequence[Result]) -> list[list[str]]:
    """Return the header and a row per trace, kernel and size, larger sizes first."""
    rows = [["Trace", "Kernel", "Size", *REASONS]]
    for r in results:
        counts = r.raw.get("refused_orders", {})
        orders = sorted({int(o) for by_order in counts.values() for o in by_order}, reverse=True)
        for order in orders:
            size = f"{r.page_size << order >> 10}kB"
            cells = [f"{counts.get(reason, {}).get(str(order), 0):,}" for reason in REASONS]
            rows.append([r.trace, r.kernel, size, *cells])
        if not orders:
            rows.append([r.trace, r.kernel, "none", *["0"] * len(REASONS)])
    return rows


def _by_mapping(results: Sequence[Result]) -> list[list[str]]:
    """Return the header and a row per mapping."""
    rows = [["Pid", "Command", "Addresses", "Size", "Kind", "Faults", *REASONS]]
    for r in results:
        for m in r.raw.get("refused_mappings", ())[:TOP_MAPPINGS]:
            cells = [f"{m['refused'].get(reason, 0):,}" for reason in REASONS]
            size = f"{m['end'] - m['start'] >> 10:,}kB"
            place = [f"{m['start']:x}-{m['end']:x}", size, m["kind"]]
            if not m["pid"]:
                place = ["more than the log holds", "", ""]
            rows.append([str(m["pid"]), m["command"], *place, f"{m['faults']:,}", *cells])
    return rows


def _numeric(name: str) -> bool:
    return name in (*REASONS, "Size", "Faults", "Pid")


def _markdown(legend: str, rows: Sequence[Sequence[str]], _width: int | None) -> str:
    rule = ["--:" if _numeric(name) else "---" for name in rows[0]]
    lines = [rows[0], rule, *rows[1:]]
    table = "".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |\n" for r in lines)
    return f"{table}\n{legend}\n"


def _text(legend: str, rows: Sequence[Sequence[str]], width: int | None) -> str:
    out = io.StringIO()
    width = width or shutil.get_terminal_size((100, 24)).columns
    console = Console(file=out, width=width, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(
            name.replace("not_", "not_\n"),
            justify="right" if _numeric(name) else "left",
            overflow="fold",
            no_wrap=name == "Addresses",
        )
    last: list[str] = []
    for row in rows[1:]:
        cells = list(row)
        if "Trace" in rows[0]:  # names that repeat are written once
            cells[0] = "" if row[:1] == last[:1] else row[0]
            cells[1] = "" if row[:2] == last[:2] else row[1]
        last = list(row)
        table.add_row(*cells)
    console.print(table)
    console.print(legend, style="dim")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(line for line in lines if line) + "\n"
