# SPDX-License-Identifier: GPL-2.0-only
"""An answer for people: what each process maps, drawn page by page, folios coloured by order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 64  # pages a line
_COLOURS = ("white", "grey50", "cyan", "green", "yellow", "magenta", "red", "blue")
_RUN = re.compile(
    r"(?P<first>\d+)-(?P<last>\d+) "
    r"(?:(?P<what>zero|swap)|f(?P<folio>\d+)\+(?P<at>\d+) order=(?P<order>\d+) map=(?P<map>\d+)"
    r" excl=(?P<excl>[01])(?P<cont> cont)?)"
)


def show(answer: dict[str, Any], console: Console) -> None:
    """
    Print every observation of an answer, and the calls that failed.

    A letter is a page of a folio (neighbouring folios have different ones; lower case: mapped once,
    upper case: shared), ``0`` the zero page, ``-`` nothing; lines with nothing are left out.
    """
    size = answer["page_size"] >> 10
    console.print(f"[bold]{answer['scenario']}[/bold]  {answer['machine']}, {size}K pages")
    for step in answer["steps"]:
        if step["errno"] or step.get("segv"):
            console.print(
                f"  line {step['line']}: errno {step['errno']}, segv {step.get('segv', 0)}"
            )
    for observation in answer["observations"]:
        console.print(f"\n[bold]{observation['label']}[/bold]")
        for process, regions in observation["pages"].items():
            for letter, runs in regions.items():
                console.print(f"  {process} {letter}" + ("" if runs else "  nothing mapped"))
                for line in _lines(runs):
                    console.print(line)
        for size_name, counts in observation["stats"].items():
            text = ", ".join(f"{name} {value}" for name, value in counts.items())
            console.print(f"  {size_name}: {text}")
    console.print(_legend(answer))


def colour(order: int) -> str:
    """Return the colour of an order."""
    return _COLOURS[order % len(_COLOURS)]


def _legend(answer: dict[str, Any]) -> Text:
    orders = {
        int(m["order"])
        for o in answer["observations"]
        for regions in o["pages"].values()
        for runs in regions.values()
        for m in (_RUN.fullmatch(run) for run in runs)
        if m and m["order"]
    }
    text = Text("\norders:" if orders else "")
    for order in sorted(orders):
        text.append(f" {order}={answer['page_size'] << order >> 10}kB", style=colour(order))
    return text


def _lines(runs: list[str]) -> Iterator[Text]:
    """Yield the lines of a region that map something, each with the number of its first page."""
    pages: dict[int, tuple[str, str]] = {}
    for run in runs:
        match = _RUN.fullmatch(run)
        if not match:
            raise ValueError(f"not a run of pages: {run}")
        for page in range(int(match["first"]), int(match["last"]) + 1):
            pages[page] = _cell(match)
    for start in sorted({page // WIDTH * WIDTH for page in pages}):
        line = Text(f"  {start:>8} ")
        for page in range(start, start + WIDTH):
            line.append(*pages.get(page, ("-", "grey23")))
        yield line


def _cell(match: re.Match[str]) -> tuple[str, str]:
    if match["what"]:
        return ("0" if match["what"] == "zero" else "s"), "grey50"
    letter = chr(ord("a") + int(match["folio"]) % 26)
    style = colour(int(match["order"])) + (" underline" if match["cont"] else "")
    return (letter if match["map"] == "1" else letter.upper()), style
