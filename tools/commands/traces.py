# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm record``, ``import``, ``generate`` and ``inspect``: traces made and looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from virtmm.tools.commands.output import OUTPUT_HELP, TRACE, check_output, progress_bar, write
from virtmm.tools.report.inspection import render as render_inspection
from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.generate import GENERATORS, parameters, parse_parameters
from virtmm.tools.trace.generate import generate as run_generate
from virtmm.tools.trace.importers.run import FORMATS as IMPORT_FORMATS
from virtmm.tools.trace.importers.run import import_trace, size_of
from virtmm.tools.trace.importers.source import Options
from virtmm.tools.trace.inspection import inspect as run_inspect
from virtmm.tools.trace.record import describe
from virtmm.tools.trace.record import record as run_record


# Options behind COMMAND are COMMAND's.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-o", "--output", type=TRACE, required=True, help="Trace file to write.")
@click.option("--allow-lost", is_flag=True, help="Keep the trace even if perf lost events.")
@click.option("--aslr", is_flag=True, help="Leave address-space randomisation on.")
@click.option(
    "--every-file-page",
    is_flag=True,
    help="Turn fault-around off system-wide for the recording, so that each file page is seen.",
)
@click.option(
    "--backend",
    type=click.Choice(("perf", "user")),
    help="perf: tracepoints, as root. user: page faults and strace, less exact. "
    "Default: the first that works.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to go on with processes that outlive COMMAND; default: to their end, or Ctrl-C.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def record(command: tuple[str, ...], output: Path, **options: Any) -> None:
    """
    Record COMMAND and all its children: every memory call and page fault (Linux, perf).

    Ctrl-C ends it early; what was recorded is kept, marked partial.
    """
    summary = run_record(command, output, **options)
    click.echo(describe(summary), err=True)
    if summary.exit_status:
        sys.exit(summary.exit_status)


@click.command()
@click.argument("trace", type=TRACE)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="json has all processes and the figures unrounded.",
)
@click.option("-o", "--output", type=TRACE, help=OUTPUT_HELP)
def inspect(trace: Path, fmt: str, output: Path | None) -> None:
    """Tell what is in TRACE, and what of it larger base pages would break."""
    check_output(output, [trace])
    with TraceReader(trace) as reader, progress_bar(reader.num_events) as show:
        result = run_inspect(reader, lambda done: show(trace.stem, done))
    write(json.dumps(result, indent=1) if fmt == "json" else render_inspection(result), output)


@click.command("import")
@click.argument("fmt", metavar="FORMAT", type=click.Choice(tuple(IMPORT_FORMATS)))
@click.argument("files", nargs=-1, required=True, type=TRACE)
@click.option("-o", "--output", type=TRACE, required=True, help="Trace file to write.")
@click.option("--maps", type=TRACE, help="/proc/PID/maps of the program (lackey, drmemtrace).")
@click.option("--faults", type=TRACE, help="Text of perf script of the same run (strace).")
@click.option(
    "--page-size",
    type=click.Choice(("4096", "16384", "65536")),
    default="4096",
    show_default=True,
    help="Bytes of a page of the machine that the files are from.",
)
@click.option(
    "--skip-outside",
    is_flag=True,
    help="Leave out, and count, accesses outside the mappings (lackey, drmemtrace).",
)
@click.option(
    "--guess-pages",
    is_flag=True,
    help="Without pagemap, take the first pages of each mapping as the touched ones (proc).",
)
def import_(
    fmt: str,
    files: tuple[Path, ...],
    output: Path,
    maps: Path | None,
    faults: Path | None,
    page_size: str,
    skip_outside: bool,
    guess_pages: bool,
) -> None:
    """
    Make a trace of FILES that another tool wrote.

    FORMAT is perf (text of perf script), strace (with --faults), proc (folders like /proc/PID),
    lackey (valgrind, with --maps) or drmemtrace (DynamoRIO's view tool, with --maps).
    """
    check_output(output, [f for f in (*files, maps, faults) if f])
    options = Options(int(page_size), maps, faults, skip_outside, guess_pages)
    with progress_bar(size_of(fmt, files)) as show:
        events = import_trace(fmt, files, output, options, lambda done: show(fmt, done))
    click.echo(f"{output}: {events} events", err=True)


def parameters_help() -> str:
    """Return the generators' parameters and defaults for --help."""
    words = (
        f"{kind}: " + " ".join(f"{name}={value}" for name, value in parameters(kind).items())
        for kind in GENERATORS
    )
    return "Parameter; may be repeated. " + "; ".join(words)


@click.command()
@click.argument("kind", type=click.Choice(tuple(GENERATORS)))
@click.option("-o", "--output", type=TRACE, required=True, help="Trace file to write.")
@click.option("--param", "words", multiple=True, metavar="NAME=NUMBER", help=parameters_help())
def generate(kind: str, output: Path, words: tuple[str, ...]) -> None:
    """Make a trace by rule: KIND is a pattern of memory use, the same parameters the same trace."""
    check_output(output, [])
    given = parse_parameters(kind, words)
    with progress_bar(None) as show:
        events = run_generate(kind, output, given, lambda done: show(kind, done))
    click.echo(f"{output}: {events} events", err=True)
