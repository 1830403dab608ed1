# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm new-arch`` and ``virtmm arch-check``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from virtmm.tools.commands.kernels import arch_option
from virtmm.tools.commands.output import TRACE
from virtmm.tools.report.cost import cost_tables

from virtmm import topdir
from virtmm.arch_check import arch_check
from virtmm.kconfig import ArchError
from virtmm.new_arch import (
    new_arch,
    parse_page,
    parse_shape,
    place_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def ask(
    option: str, given: str | None, question: str, read: Callable[[str], object], default: str = ""
) -> str:
    """
    Return what an option says, or the answer at the terminal: words that ``read`` can read.

    A wrong answer is asked for again.

    Raises:
        ArchError: ``given`` is wrong.
        UsageError: nothing is given, there is no default, and no terminal to ask at.
    """
    if given is None and not (sys.stdin and sys.stdin.isatty()):
        if not default:
            raise click.UsageError(f"{option}: is not given, and there is no terminal to ask at")
        given = default
    if given is not None:
        read(given)
        return given

    def answer(text: str) -> str:
        try:
            read(text)
        except ArchError as e:
            raise click.UsageError(str(e)) from None
        return text

    return str(click.prompt(question, default=default or None, value_proc=answer))


@click.command("new-arch")
@click.argument("name", required=False)
@click.option("--page", help="Bytes of a base page: 4K, 8K, 16K, 32K, 64K.")
@click.option("--levels", help="Index bits of each level, from the root, like 9,9,9,9: 2 to 5.")
@click.option("--cont", help="Last-level entries of a contiguous block; 0 = none, the default.")
@click.option("--in", "parent", type=TRACE, help="Folder to write it in; default: arch/.")
def new_arch_command(
    name: str | None, page: str | None, levels: str | None, cont: str | None, parent: Path | None
) -> None:
    """
    Write the folder of a new architecture NAME, which boots as it is (Documentation/arch/porting.md).

    What is not given is asked for.
    """
    where = parent or topdir() / "arch"
    name = ask("NAME", name, "Name", lambda text: place_for(text, where))
    page = ask("--page", page, "Base page (4K, 8K, 16K, 32K, 64K)", parse_page)
    levels = ask(
        *("--levels", levels, "Index bits of each level, from the root (like 9,9,9,9)"),
        lambda text: parse_shape(page, text, "0"),
    )
    cont = ask(
        *("--cont", cont, "Entries of a contiguous block (0 = none)"),
        lambda text: parse_shape(page, levels, text),
        "0",
    )
    folder = new_arch(name, parse_shape(page, levels, cont), where)
    which = f"--arch-dir {folder}" if parent else f"--arch {name}"
    click.echo(f"{folder}: put the true bits into arch.py, then run virtmm arch-check {which}")


@click.command("arch-check")
@arch_option
def arch_check_command(arch: str, arch_dir: Path | None) -> None:
    """
    Check an architecture on each of its kernels: a line a check.

    The exit status is 1 when a check FAILED, and 2 when there is no such architecture.
    """
    failed = False
    for outcome in arch_check(arch, arch_dir, cost_tables):
        click.echo(f"{outcome.check:12} {outcome.status:8} {outcome.text}")
        failed |= outcome.status == "FAILED"
    if failed:
        raise SystemExit(1)
