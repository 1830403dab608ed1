# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm replay`` and ``virtmm compare``."""

from __future__ import annotations

import json
from pathlib import Path

import click
from virtmm.tools.commands.kernels import (
    SET_HELP,
    arch_option,
    kernel_config,
    own_knobs,
    own_policies,
    policy_option,
    split_sets,
    without_memory,
)
from virtmm.tools.commands.output import (
    OUTPUT_HELP,
    TRACE,
    check_output,
    format_option,
    progress_bar,
    write,
)
from virtmm.tools.replay.parallel import Run, available_cores, replay_all
from virtmm.tools.replay.replay import replay as run_replay
from virtmm.tools.report.table import ReportError, render
from virtmm.tools.report.why import render_why
from virtmm.tools.trace.format import TraceReader

from virtmm.boot import check_policy, check_settings
from virtmm.kconfig import defconfigs, resolve
from virtmm.policy import load_policy

why_option = click.option(
    "--why",
    is_flag=True,
    help="Say below the table why faults got no larger folios (text and md; json has it always).",
)


def check_why(why: bool, fmt: str) -> None:
    """Refuse --why where there is no place for it."""
    if why and fmt == "csv":
        raise click.UsageError("--why is not for csv: it is text or md, and always part of json")


@click.command()
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
    arch_dir: Path | None,
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
    config = resolve(arch, defconfig, fragments, symbols, arch_dir)
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


@click.command()
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
    arch_dir: Path | None,
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
    names = (
        defconfigs(arch, arch_dir) if kernels is None else [n.strip() for n in kernels.split(",")]
    )
    configs = {name: kernel_config(arch, name, symbols, arch_dir) for name in names}
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
