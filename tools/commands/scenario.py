# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm scenario``."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from virtmm.tools.commands.kernels import arch_option, policy_option
from virtmm.tools.commands.output import TRACE
from virtmm.tools.scenario.parse import parse as parse_scenario
from virtmm.tools.scenario.run import run as run_scenario
from virtmm.tools.scenario.show import show as show_scenario

from virtmm.boot import check_policy, check_settings
from virtmm.kbuild import load_core_of
from virtmm.kconfig import defconfigs, resolve
from virtmm.policy import load_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtmm.kconfig import ResolvedConfig


@click.group()
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
            "--defconfig", help="Named kernel, or a path; default: the newest linux-* of ARCH."
        ),
        arch_option,
    ):
        command = option(command)
    return command


def scenario_config(
    arch: str,
    arch_dir: Path | None,
    defconfig: str | None,
    fragments: tuple[str, ...],
    sets: tuple[str, ...],
) -> ResolvedConfig:
    """Return the kernel for scenarios: its memory has contents, since they read what they wrote."""
    if defconfig is None:
        mainline = [name for name in defconfigs(arch, arch_dir) if name.startswith("linux-")]
        defconfig = mainline[-1] if mainline else "linux-*"
    return resolve(arch, defconfig, fragments, [*sets, "PHYS_BACKING=y"], arch_dir)


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
    arch_dir: Path | None,
    defconfig: str | None,
    fragments: tuple[str, ...],
    sets: tuple[str, ...],
) -> None:
    """Print the kernel's answer to each scenario file: one JSON object a line."""
    policy = load_policy(policy_file) if policy_file else None
    config = scenario_config(arch, arch_dir, defconfig, fragments, sets)
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
    file: Path,
    arch: str,
    arch_dir: Path | None,
    defconfig: str | None,
    fragments: tuple[str, ...],
    sets: tuple[str, ...],
) -> None:
    """Draw the kernel's answer to a scenario: the pages of each process, coloured by folio order."""
    config = scenario_config(arch, arch_dir, defconfig, fragments, sets)
    show_scenario(run_scenario(file, config), Console(highlight=False))
