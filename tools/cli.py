# SPDX-License-Identifier: GPL-2.0-only
"""The command line: ``virtmm record``, ``replay``, ``compare``."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from virtmm.tools.replay.replay import replay as run_replay
from virtmm.tools.report.cost import CostError
from virtmm.tools.report.table import FORMATS, ReportError, render
from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.record import describe
from virtmm.tools.trace.record import record as run_record
from virtmm.tools.trace.schema import TraceError

import virtmm
from virtmm.boot import BootError
from virtmm.kbuild import BuildError
from virtmm.kconfig import ArchError, ConfigError, defconfigs, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ERRORS = (ArchError, BootError, BuildError, ConfigError, CostError, ReportError, TraceError)
TRACE = click.Path(path_type=Path)


class OneLine(click.Group):
    """A group whose commands end with one line and status 2 when something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn our exceptions into the line."""
        try:
            return super().invoke(ctx)
        except ERRORS as e:
            raise SystemExit(fail(str(e))) from None


def fail(message: str) -> int:
    """Print one line about what went wrong and return the exit status for it."""
    click.echo(f"virtmm: {message}", err=True)
    return 2


def write(text: str, output: Path | None) -> None:
    """Print the text, or write it to a file whole or not at all."""
    if output is None:
        click.echo(text)
        return
    part = output.with_name(f".{output.name}.part")
    try:
        part.write_text(text + "\n")
        part.replace(output)
    except OSError as e:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
        raise SystemExit(fail(f"{output}: cannot write: {e.strerror}; choose another -o")) from None


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    """Yield a function (what, units done of it) that moves a bar on a terminal and does nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done)


def split_sets(sets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return (Kconfig assignments, run-time knobs) of --set; Kconfig symbols are upper case."""
    symbols = [s for s in sets if re.match(r"(CONFIG_)?[A-Z][A-Z0-9_]*=", s)]
    return symbols, [s for s in sets if s not in symbols]


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(virtmm.__version__, prog_name="virtmm")
def main() -> None:
    """A virtual Linux memory-management kernel: what large anonymous folios do to a program."""


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("-o", "--output", type=TRACE, required=True, help="Trace file to write.")
@click.option("--allow-lost", is_flag=True, help="Keep the trace even if perf lost events.")
@click.option("--aslr", is_flag=True, help="Leave address-space randomisation on.")
@click.option(
    "--every-file-page",
    is_flag=True,
    help="Turn fault-around off system-wide for the recording, so that each file page is seen.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def record(
    output: Path, allow_lost: bool, aslr: bool, every_file_page: bool, command: tuple[str, ...]
) -> None:
    """Record COMMAND and all its children: every memory call and page fault (root, Linux perf)."""
    summary = run_record(
        command, output, allow_lost=allow_lost, aslr=aslr, every_file_page=every_file_page
    )
    click.echo(describe(summary), err=True)
    if summary.exit_status:
        sys.exit(summary.exit_status)


@main.command()
@click.argument("trace", type=TRACE)
@click.option("--arch", default="arm64", show_default=True, help="Architecture.")
@click.option("--defconfig", default="defconfig", show_default=True, help="Named kernel.")
@click.option("--fragment", "fragments", multiple=True, help="Fragment on top; may be repeated.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=VALUE",
    help="Kconfig symbol (LARGE_ANON_FOLIO=y) or run-time knob (enabled=always).",
)
@click.option("--format", "fmt", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("-o", "--output", type=TRACE, help="Write there instead of to standard output.")
def replay(
    trace: Path,
    arch: str,
    defconfig: str,
    fragments: tuple[str, ...],
    sets: tuple[str, ...],
    fmt: str,
    output: Path | None,
) -> None:
    """Replay TRACE under one kernel. --format json gives every counter."""
    symbols, knobs = split_sets(sets)
    config = resolve(arch, defconfig, fragments, symbols)
    with TraceReader(trace) as reader, progress_bar(reader.num_events) as show:
        name = "+".join((defconfig, *fragments))
        result = run_replay(reader, config, name, knobs, progress=lambda done: show(name, done))
    write(json.dumps(result, indent=1) if fmt == "json" else render([result], fmt), output)


@main.command()
@click.argument("traces", nargs=-1, required=True, type=TRACE)
@click.option("--arch", default="arm64", show_default=True, help="Architecture.")
@click.option("--kernels", help="Named kernels, comma separated; default: all of the architecture.")
@click.option(
    "--set", "sets", multiple=True, metavar="NAME=VALUE", help="As in replay, for every kernel."
)
@click.option("--format", "fmt", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("-o", "--output", type=TRACE, help="Write there instead of to standard output.")
def compare(
    traces: tuple[Path, ...],
    arch: str,
    kernels: str | None,
    sets: tuple[str, ...],
    fmt: str,
    output: Path | None,
) -> None:
    """Replay each TRACE under each kernel and print what it would have cost: one table."""
    symbols, knobs = split_sets(sets)
    names = kernels.split(",") if kernels else [n for n in defconfigs(arch) if n != "defconfig"]
    configs = {name: resolve(arch, name, sets=symbols) for name in names}
    sizes = []
    for trace in traces:  # refuse a broken trace before any work is done on another
        with TraceReader(trace) as reader:
            sizes.append(reader.num_events)
    results = []
    with progress_bar(sum(sizes) * len(configs)) as show:
        done = 0
        for trace, size in zip(traces, sizes, strict=True):
            for name, config in configs.items():
                with TraceReader(trace) as reader:
                    what = f"{trace.stem} {name}"
                    results.append(
                        run_replay(
                            reader,
                            config,
                            name,
                            knobs,
                            progress=lambda n, what=what, done=done: show(what, done + n),  # type: ignore[misc]
                        )
                    )
                done += size
    write(render(results, fmt), output)
