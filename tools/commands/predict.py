# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm predict-check``."""

from __future__ import annotations

from pathlib import Path

import click
from virtmm.tools.commands.output import OUTPUT_HELP, TRACE, check_output, progress_bar, write
from virtmm.tools.predict.check import parse_setting, predict_check, prediction_notes
from virtmm.tools.predict.real import require as require_real
from virtmm.tools.predict.show import render as render_prediction

from virtmm.kconfig import host_arch, resolve

PREDICT_SIZES = ("none", "16", "64", "128", "16,32,64", "2048")


@click.command("predict-check", context_settings={"allow_interspersed_args": False})
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
