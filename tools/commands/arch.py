# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm new-arch`` and ``virtmm arch-check``."""

from __future__ import annotations

from pathlib import Path

import click
from virtmm.tools.commands.kernels import arch_option
from virtmm.tools.commands.output import TRACE
from virtmm.tools.report.cost import cost_tables

from virtmm import topdir
from virtmm.arch_check import arch_check
from virtmm.new_arch import new_arch, parse_shape


@click.command("new-arch")
@click.argument("name")
@click.option("--page", prompt="Base page", help="Bytes of a base page: 4K, 8K, 16K, 32K, 64K.")
@click.option(
    "--levels", prompt="Index bits of each level, from the root", help="Like 9,9,9,9: 2 to 5."
)
@click.option(
    "--cont",
    prompt="Entries of a contiguous block (0 = none)",
    default="0",
    help="Last-level entries of a contiguous block; 0 = none.",
)
@click.option("--in", "parent", type=TRACE, help="Folder to write it in; default: arch/.")
def new_arch_command(name: str, page: str, levels: str, cont: str, parent: Path | None) -> None:
    """Write the folder of a new architecture NAME, which boots as it is (Documentation/arch/porting.md)."""
    folder = new_arch(name, parse_shape(page, levels, cont), parent or topdir() / "arch")
    click.echo(f"{folder}: put the true bits into arch.py, then run virtmm arch-check")


@click.command("arch-check")
@arch_option
def arch_check_command(arch: str, arch_dir: Path | None) -> None:
    """Check an architecture on each of its kernels: a line a check, status 1 when one fails."""
    failed = False
    for outcome in arch_check(arch, arch_dir, cost_tables):
        click.echo(f"{outcome.check:12} {outcome.status:8} {outcome.text}")
        failed |= outcome.status == "FAILED"
    if failed:
        raise SystemExit(1)
