# SPDX-License-Identifier: GPL-2.0-only
"""Predicted beside measured, as a table to read, Markdown or JSON."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from virtmm.tools.predict.check import Row

HEADER = ("Command", "Sizes kB", "Faults predicted", "measured", "±", "Peak RSS", "±", "Folios")


def render(rows: Sequence[Row], fmt: str, notes: Iterable[str] = ()) -> str:
    """Return the table; ``fmt`` is text, md or json."""
    if fmt == "json":
        return _json(rows, notes)
    lines = [_cells(row) for row in rows]
    lines.append(_summary(rows))
    if fmt == "md":
        head = [HEADER, ("---",) * 2 + ("--:",) * 5 + ("---",)]
        escaped = [[c.replace("|", "\\|") for c in cells] for cells in [*head, *lines]]
        text = "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)
        return text + "".join(f"\n{note}\n" for note in notes)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(HEADER):
        table.add_column(name, justify="right" if 2 <= i <= 6 else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    out = io.StringIO()
    console = Console(file=out, width=120, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def _cells(row: Row) -> list[str]:
    rss = f"{row.measured['maxrss'] / 1048576:.1f}MiB"
    folios = []
    for size in sorted({*row.predicted["folios"], *row.measured["folios"]}):
        mine, real = (side["folios"].get(size, 0) for side in (row.predicted, row.measured))
        folios.append(f"{size >> 10}K {mine:,}/{real:,}")
    return [
        row.command,
        row.setting,
        f"{row.predicted['minflt']:,}",
        f"{row.measured['minflt']:,}",
        percent(row.error("minflt")),
        rss,
        percent(row.error("maxrss")),
        " ".join(folios),
    ]


def percent(value: float | None) -> str:
    """Return a signed percentage; empty without one."""
    return "" if value is None else f"{value:+.2f}%"


def _errors(rows: Sequence[Row], what: str) -> list[float]:
    return [abs(e) for row in rows if (e := row.error(what)) is not None]


def _summary(rows: Sequence[Row]) -> list[str]:
    faults, rss = _errors(rows, "minflt"), _errors(rows, "maxrss")
    middle = [f"{statistics.median(e):.2f}%" if e else "" for e in (faults, rss)]
    worst = [f"{max(e):.2f}%" if e else "" for e in (faults, rss)]
    return [
        "median error",
        "worst",
        "",
        "",
        f"{middle[0]} {worst[0]}",
        "",
        f"{middle[1]} {worst[1]}",
        "",
    ]


def _json(rows: Sequence[Row], notes: Iterable[str]) -> str:
    def side(values: Any) -> dict[str, Any]:
        folios = {str(size): n for size, n in sorted(values["folios"].items())}
        return {**values, "folios": folios}

    document = {
        "format": "virtmm-predict-check",
        "version": 1,
        "notes": list(notes),
        "rows": [
            {
                "command": row.command,
                "sizes": row.setting,
                "predicted": side(row.predicted),
                "measured": side(row.measured),
                "runs": row.runs,
                "spread": row.spread,
                "minflt_error_percent": row.error("minflt"),
                "maxrss_error_percent": row.error("maxrss"),
            }
            for row in rows
        ],
    }
    return json.dumps(document, indent=2)
