# SPDX-License-Identifier: GPL-2.0-only
"""The command line: ``virtmm record``, ``inspect``, ``replay``, ``compare`` and their like."""

from __future__ import annotations

import errno
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from virtmm.tools.commands.arch import arch_check_command, new_arch_command
from virtmm.tools.commands.output import fail, full, interrupted
from virtmm.tools.commands.predict import predict_check_command
from virtmm.tools.commands.replay import compare, replay
from virtmm.tools.commands.scenario import scenario
from virtmm.tools.commands.traces import generate, import_, inspect, record
from virtmm.tools.predict.real import RealError
from virtmm.tools.replay.parallel import WorkerError
from virtmm.tools.report.cost import CostError
from virtmm.tools.report.table import ReportError
from virtmm.tools.scenario.parse import ScenarioError
from virtmm.tools.trace.schema import TraceError

import virtmm
from virtmm.boot import BootError
from virtmm.kbuild import BuildError
from virtmm.kconfig import ArchError, ConfigError
from virtmm.policy import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
# Why standard output takes nothing more. Who writes another file tells that there.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class OneLine(click.Group):
    """A group whose commands end with one line when something is wrong (status 2), and at Ctrl-C."""

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
    """Turn our exceptions, click's about wrong usage, and Ctrl-C, into the line."""
    try:
        yield
    except (
        KeyboardInterrupt,
        click.Abort,
    ):  # the latter at a question, and at its end of input too
        raise SystemExit(interrupted()) from None
    except ERRORS as e:
        raise SystemExit(fail(*e.args)) from None
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as e:
        path = (e.ctx or ctx).command_path
        raise SystemExit(fail(f"{e.format_message().rstrip('.')}; see {path} --help")) from None
    except OSError as e:
        if e.errno not in FULL or e.filename:
            raise  # click knows what to do about a reader that has gone away
        raise SystemExit(full(e)) from None


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(virtmm.__version__, prog_name="virtmm")
def main() -> None:
    """A virtual Linux memory-management kernel: what large anonymous folios do to a program."""


for command in (
    arch_check_command,
    compare,
    generate,
    import_,
    inspect,
    new_arch_command,
    predict_check_command,
    record,
    replay,
    scenario,
):
    main.add_command(command)
