# SPDX-License-Identifier: GPL-2.0-only
"""What a command prints or writes, what went wrong, and how far it is."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from virtmm.tools.report.table import FORMATS

from virtmm.kconfig import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TRACE = click.Path(path_type=Path)
OUTPUT_HELP = "File to write; default: standard output."
format_option = click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="text and md are tables; json and csv have the figures unrounded.",
)


def fail(*problems: object) -> int:
    """Print what went wrong, a line for each thing, and return the exit status for it."""
    for problem in problems:
        click.echo(f"virtmm: {one_line(str(problem))}", err=True)
    return 2


def full(e: OSError) -> int:
    """Say that standard output takes nothing more and return the exit status for it."""
    # What the interpreter would try to write at its end fails again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return fail(f"standard output: cannot write: {e.strerror}")


def interrupted() -> int:
    """Say that Ctrl-C ended it and return the exit status for it, that of a command that SIGINT killed."""
    if sys.stderr.isatty():
        click.echo(err=True)  # behind the terminal's ^C
    click.echo("virtmm: interrupted; no result was written", err=True)
    return 128 + signal.SIGINT


def unwritable(output: Path, reason: str) -> SystemExit:
    """Return the exit for an output file that cannot be written."""
    return SystemExit(fail(f"{output}: cannot write: {reason}; choose another -o"))


def check_output(output: Path | None, traces: Iterable[Path]) -> None:
    """Refuse an output file that cannot be written, before the work for it is done."""
    if output is None:
        return
    try:
        output.exists()
    except OSError as e:
        raise unwritable(output, e.strerror or str(e)) from None
    if output.is_dir():
        raise unwritable(output, "is a directory")
    if not output.parent.exists():
        raise unwritable(output, f"{output.parent} does not exist")
    if not output.parent.is_dir():
        raise unwritable(output, f"{output.parent} is not a directory")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise unwritable(output, f"no permission in {output.parent}")
    if output.exists() and any(t.exists() and t.samefile(output) for t in traces):
        raise unwritable(output, "it is the trace")


def write(text: str, output: Path | None) -> None:
    """Print the text, or write it to a file whole or not at all."""
    text = text.rstrip("\n")
    if output is None:
        click.echo(text)
        return
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    if output.exists() and not output.is_file():
        part = output  # a device or a pipe keeps its name
    try:
        part.write_text(text + "\n")
        if part != output:
            part.replace(output)
    except BaseException as e:
        if part != output:
            with suppress(OSError):
                part.unlink()
        if isinstance(e, OSError):
            raise unwritable(output, e.strerror or str(e)) from None
        raise


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[str, int], None]]:
    """
    Yield a function (what, units done of it) that moves a bar on a terminal and does nothing elsewhere.

    Args:
        total: units; None = nobody knows, and the bar says how many are done.
    """
    console = Console(stderr=True)
    end = TextColumn("{task.completed:,}") if total is None else TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), end)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=False,  # by a thread, which has no place in a process that forks
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done, refresh=True)
