# SPDX-License-Identifier: GPL-2.0-only
"""The command line: ``virtmm record``, ``inspect``, ``replay``, ``compare`` and their like."""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from virtmm.tools.predict.check import parse_setting, predict_check, prediction_notes
from virtmm.tools.predict.real import RealError
from virtmm.tools.predict.real import require as require_real
from virtmm.tools.predict.show import render as render_prediction
from virtmm.tools.replay.parallel import Run, WorkerError, available_cores, replay_all
from virtmm.tools.replay.replay import replay as run_replay
from virtmm.tools.report.cost import CostError
from virtmm.tools.report.inspection import render as render_inspection
from virtmm.tools.report.table import FORMATS, ReportError, render
from virtmm.tools.report.why import render_why
from virtmm.tools.scenario.parse import ScenarioError
from virtmm.tools.scenario.parse import parse as parse_scenario
from virtmm.tools.scenario.run import run as run_scenario
from virtmm.tools.scenario.show import show as show_scenario
from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.generate import GENERATORS, parameters, parse_parameters
from virtmm.tools.trace.generate import generate as run_generate
from virtmm.tools.trace.importers.run import FORMATS as IMPORT_FORMATS
from virtmm.tools.trace.importers.run import import_trace, size_of
from virtmm.tools.trace.importers.source import Options
from virtmm.tools.trace.inspection import inspect as run_inspect
from virtmm.tools.trace.record import describe
from virtmm.tools.trace.record import record as run_record
from virtmm.tools.trace.schema import TraceError

import virtmm
from virtmm.boot import BootError, check_policy, check_settings
from virtmm.kbuild import BuildError, load_core_of
from virtmm.kconfig import ArchError, ConfigError, defconfigs, host_arch, resolve
from virtmm.policy import PolicyError, load_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from virtmm.kconfig import ResolvedConfig
    from virtmm.policy import Policy

ERRORS = (
    ArchError,
    BootError,
    BuildError,
    ConfigError,
    CostError,
    PolicyError,
    RealError,
    ReportError,
    ScenarioError,
    TraceError,
    WorkerError,
)
TRACE = click.Path(path_type=Path)
PREDICT_SIZES = ("none", "16", "64", "128", "16,32,64", "2048")


class OneLine(click.Group):
    """A group whose commands end with one line and status 2 when something is wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command."""
        with one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with one_line(ctx):
            if sys.stdout is None:
                raise SystemExit(fail("standard output is closed; give it a file, or use -o"))
            return super().invoke(ctx)


@contextmanager
def one_line(ctx: click.Context) -> Iterator[None]:
    """Turn our exceptions, and click's about wrong usage, into the line."""
    try:
        yield
    except ERRORS as e:
        raise SystemExit(fail(str(e))) from None
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as e:
        path = (e.ctx or ctx).command_path
        raise SystemExit(fail(f"{e.format_message().rstrip('.')}; see {path} --help")) from None


def fail(message: str) -> int:
    """Print what went wrong, a line for each thing, and return the exit status for it."""
    for line in message.splitlines():
        click.echo(f"virtmm: {line}", err=True)
    return 2


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
        try:
            click.echo(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as e:
            # What the interpreter would try to write at its end fails again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(fail(f"standard output: cannot write: {e.strerror}")) from None
        return
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    if output.exists() and not output.is_file():
        part = output  # a device or a pipe keeps its name
    try:
        part.write_text(text + "\n")
        if part != output:
            part.replace(output)
    except OSError as e:
        if part != output:
            with suppress(OSError):
                part.unlink()
        raise unwritable(output, e.strerror or str(e)) from None


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    """Yield a function (what, units done of it) that moves a bar on a terminal and does nothing elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=False,  # by a thread, which has no place in a process that forks
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, completed=done, refresh=True)


def split_sets(sets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return (Kconfig assignments, run-time knobs) of --set; Kconfig symbols are upper case."""
    symbols = [s for s in sets if re.match(r"(CONFIG_)?[A-Z][A-Z0-9_]*=", s)]
    return symbols, [s for s in sets if s not in symbols]


def own_knobs(
    config: ResolvedConfig, knobs: list[str], others: Iterable[ResolvedConfig]
) -> list[str]:
    """Return the knobs meant for one kernel of several: a size's are for those that have per-size knobs."""
    if config.get("ANON_POLICY_MTHP") or not any(c.get("ANON_POLICY_MTHP") for c in others):
        return knobs
    return [k for k in knobs if not re.match(r"(hugepages-)?\d+kB|thp_anon=", k)]


def kernel_config(arch: str, name: str, symbols: list[str]) -> ResolvedConfig:
    """Return the kernel of a name in a list of kernels, NAME or NAME+FRAGMENT+…, as replay calls it."""
    defconfig, *fragments = [name] if Path(name).exists() else name.split("+")
    return resolve(arch, defconfig, fragments, symbols)


def own_policies(configs: Mapping[str, ResolvedConfig], policy: Policy | None) -> dict[str, Policy]:
    """
    Return the policy of each kernel that asks one: those with large folios.

    Raises:
        ConfigError: there is a policy, and no kernel asks it.
    """
    if policy is None:
        return {}
    asking = {n: policy for n, c in configs.items() if not c.get("ANON_POLICY_BASE")}
    for name, config in configs.items():
        if name in asking or not asking:
            check_policy(config, policy)
    return asking


def check_why(why: bool, fmt: str) -> None:
    """Refuse --why where there is no place for it."""
    if why and fmt == "csv":
        raise click.UsageError("--why is not for csv: it is text or md, and always part of json")


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(virtmm.__version__, prog_name="virtmm")
def main() -> None:
    """A virtual Linux memory-management kernel: what large anonymous folios do to a program."""


# Options behind COMMAND are COMMAND's.
@main.command(context_settings={"allow_interspersed_args": False})
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


SET_HELP = (
    "Kconfig symbol (LARGE_ANON_FOLIO=y, MEMORY_MB=512) or run-time knob (enabled=always); "
    "may be repeated."
)
OUTPUT_HELP = "File to write; default: standard output."
format_option = click.option(
    "--format",
    "fmt",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="text and md are tables; json and csv have the figures unrounded.",
)
policy_option = click.option(
    "--policy",
    "policy_file",
    type=TRACE,
    metavar="FILE.py",
    help="Ask thp_get_order() of this file for the size of each folio (Documentation/policies.md), "
    "in every kernel with large folios.",
)
why_option = click.option(
    "--why",
    is_flag=True,
    help="Say below the table why faults got no larger folios (text and md; json has it always).",
)
arch_option = click.option(
    "--arch",
    default="arm64",
    show_default=True,
    help="Architecture of the virtual machine, a folder below arch/.",
)


@main.command()
@click.argument("trace", type=TRACE)
@arch_option
@click.option(
    "--defconfig",
    default="defconfig",
    show_default=True,
    help="Named kernel (anonfolio_basic), or the path of a .config file.",
)
@click.option(
    "--fragment",
    "fragments",
    multiple=True,
    metavar="NAME",
    help="Fragment on top of it (64k, debug), or a path; may be repeated.",
)
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help=SET_HELP)
@policy_option
@why_option
@format_option
@click.option("-o", "--output", type=TRACE, help=OUTPUT_HELP)
def replay(
    trace: Path,
    arch: str,
    defconfig: str,
    fragments: tuple[str, ...],
    sets: tuple[str, ...],
    policy_file: Path | None,
    why: bool,
    fmt: str,
    output: Path | None,
) -> None:
    """Replay TRACE under one kernel. --format json gives every counter."""
    check_output(output, [trace])
    check_why(why, fmt)
    policy = load_policy(policy_file) if policy_file else None
    symbols, knobs = split_sets(sets)
    config = resolve(arch, defconfig, fragments, symbols)
    check_settings(config, knobs)
    if policy:
        check_policy(config, policy)
    name = "+".join((defconfig, *fragments))
    with TraceReader(trace) as reader, progress_bar(reader.num_events) as show:
        result = run_replay(
            reader, config, name, knobs, policy=policy, progress=lambda done: show(name, done)
        )
    text = json.dumps(result, indent=1) if fmt == "json" else render([result], fmt)
    if why and fmt != "json":
        text += "\n" + render_why([result], fmt, mappings=True)
    write(text, output)


@main.command()
@click.argument("traces", nargs=-1, required=True, type=TRACE)
@arch_option
@click.option(
    "--kernels",
    metavar="NAME,NAME...",
    help="Named kernels, comma separated, the first is the baseline, with fragments as in "
    "anonfolio_basic+v2; default: all of the architecture.",
)
@click.option("--set", "sets", multiple=True, metavar="NAME=VALUE", help=SET_HELP)
@policy_option
@why_option
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Replays at a time, a process each; default: one for each core there is.",
)
@format_option
@click.option("-o", "--output", type=TRACE, help=OUTPUT_HELP)
def compare(
    traces: tuple[Path, ...],
    arch: str,
    kernels: str | None,
    sets: tuple[str, ...],
    policy_file: Path | None,
    why: bool,
    jobs: int | None,
    fmt: str,
    output: Path | None,
) -> None:
    """Replay each TRACE under each kernel and print what it would have cost: one table."""
    # Whatever is wrong is found before anything is compiled or replayed.
    check_output(output, traces)
    check_why(why, fmt)
    policy = load_policy(policy_file) if policy_file else None
    symbols, knobs = split_sets(sets)
    names = defconfigs(arch) if kernels is None else [n.strip() for n in kernels.split(",")]
    configs = {name: kernel_config(arch, name, symbols) for name in names}
    settings = {
        name: own_knobs(config, knobs, configs.values()) for name, config in configs.items()
    }
    not_booted = without_memory(configs, settings)
    policies = own_policies(configs, policy)
    total = 0
    for trace in traces:
        with TraceReader(trace) as reader:
            total += reader.num_events
        if [t.stem for t in traces].count(trace.stem) > 1:
            raise ReportError(
                f"{trace}: two traces are called {trace.stem}; give one file another name"
            )
    runs = [
        Run(trace, config, name, settings[name], policies.get(name))
        for trace in traces
        for name, config in configs.items()
    ]
    with progress_bar(total * len(configs)) as show:
        results = replay_all(runs, jobs or available_cores(), show)
    text = render(results, fmt, not_booted=not_booted)
    if why and fmt != "json":
        text += "\n" + render_why(results, fmt)
    write(text, output)


def without_memory(
    configs: dict[str, ResolvedConfig], settings: dict[str, list[str]]
) -> dict[str, str]:
    """
    Take the kernels that have too little memory to boot out of ``configs``; return why they do not.

    Raises:
        BootError: none has enough.
        ConfigError: settings that one does not know.
    """
    reasons: dict[str, str] = {}
    for name, config in configs.items():
        try:
            check_settings(config, settings[name])
        except BootError as e:
            reasons[name] = str(e)
    if len(reasons) == len(configs):
        raise BootError(next(iter(reasons.values())))
    for name in reasons:
        del configs[name]
    return reasons


@main.command("predict-check", context_settings={"allow_interspersed_args": False})
@click.option(
    "--sizes",
    "wanted",
    multiple=True,
    metavar="KB,KB...",
    help="Folio sizes in kB that are always on (16,32,64 or 64=madvise); none = base pages. May be "
    f"repeated; default: {' '.join(PREDICT_SIZES)}.",
)
@click.option(
    "--defconfig",
    default="linux-6.18",
    show_default=True,
    help="Named kernel that predicts, the nearest to the one that runs here.",
)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Real runs.")
@click.option("--trace", "keep", type=TRACE, help="Keep the recorded trace in this file.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(("text", "md", "json")),
    default="text",
    show_default=True,
)
@click.option("-o", "--output", type=TRACE, help=OUTPUT_HELP)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def predict_check_command(
    wanted: tuple[str, ...],
    defconfig: str,
    repeat: int,
    keep: Path | None,
    fmt: str,
    output: Path | None,
    command: tuple[str, ...],
) -> None:
    """
    Predict what COMMAND would do here under other folio sizes, and look whether it does.

    COMMAND is run once to be recorded, then --repeat times under each setting of
    /sys/kernel/mm/transparent_hugepage, which is restored (root, Linux with multi-size THP). Its
    standard output is dropped. Folio counts are the whole machine's: nothing else should run.
    """
    check_output(output, [])
    wanted = wanted or PREDICT_SIZES
    settings = [parse_setting(text) for text in wanted]
    require_real(settings)
    config = resolve(host_arch(), defconfig)
    with progress_bar(1 + 2 * len(wanted)) as show:
        done = iter(range(2 + 2 * len(wanted)))
        rows = predict_check(
            command,
            wanted,
            config,
            defconfig,
            repeat=repeat,
            keep=keep,
            progress=lambda what: show(what, next(done)),
        )
    write(render_prediction(rows, fmt, prediction_notes(defconfig, repeat, rows)), output)


@main.command()
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


@main.command("import")
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


@main.command()
@click.argument("kind", type=click.Choice(tuple(GENERATORS)))
@click.option("-o", "--output", type=TRACE, required=True, help="Trace file to write.")
@click.option("--param", "words", multiple=True, metavar="NAME=NUMBER", help=parameters_help())
def generate(kind: str, output: Path, words: tuple[str, ...]) -> None:
    """Make a trace by rule: KIND is a pattern of memory use, the same parameters the same trace."""
    check_output(output, [])
    events = run_generate(kind, output, parse_parameters(kind, words))
    click.echo(f"{output}: {events} events", err=True)


@main.group()
def scenario() -> None:
    """Question a kernel with small programs of memory calls."""


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose the kernel a scenario is put to."""
    for option in (
        click.option(
            "--set", "sets", multiple=True, metavar="SYMBOL=VALUE", help="Kconfig symbol."
        ),
        click.option(
            "--fragment", "fragments", multiple=True, metavar="NAME", help="Fragment on top."
        ),
        click.option(
            "--defconfig", default="linux-7.3", show_default=True, help="Named kernel, or a path."
        ),
        arch_option,
    ):
        command = option(command)
    return command


def scenario_config(
    arch: str, defconfig: str, fragments: tuple[str, ...], sets: tuple[str, ...]
) -> ResolvedConfig:
    """Return the kernel for scenarios: its memory has contents, since they read what they wrote."""
    return resolve(arch, defconfig, fragments, [*sets, "PHYS_BACKING=y"])


@scenario.command("run")
@click.argument("files", nargs=-1, required=True, type=TRACE)
@policy_option
@scenario_options
@click.option("--work", is_flag=True, help="Add the page-table work of each command.")
def scenario_run(
    files: tuple[Path, ...],
    work: bool,
    policy_file: Path | None,
    arch: str,
    defconfig: str,
    fragments: tuple[str, ...],
    sets: tuple[str, ...],
) -> None:
    """Print the kernel's answer to each scenario file: one JSON object a line."""
    policy = load_policy(policy_file) if policy_file else None
    config = scenario_config(arch, defconfig, fragments, sets)
    if policy:
        check_policy(config, policy)
    for file in files:  # refuse a bad scenario before any is run
        parse_scenario(file, 1 << int(config["PAGE_SHIFT"]))
    check_settings(config, [])
    load_core_of(config)  # once, not in every worker
    with ProcessPoolExecutor() as pool:
        many = len(files)
        given = [config] * many, [policy] * many, [work] * many
        for answer in pool.map(run_scenario, files, *given, chunksize=4):
            click.echo(json.dumps(answer))


@scenario.command("show")
@click.argument("file", type=TRACE)
@scenario_options
def scenario_show(
    file: Path, arch: str, defconfig: str, fragments: tuple[str, ...], sets: tuple[str, ...]
) -> None:
    """Draw the kernel's answer to a scenario: the pages of each process, coloured by folio order."""
    config = scenario_config(arch, defconfig, fragments, sets)
    show_scenario(run_scenario(file, config), Console(highlight=False))
