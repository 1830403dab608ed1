# SPDX-License-Identifier: GPL-2.0-only
"""``virtmm import``: from files of a format to a trace, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from virtmm.tools.trace.format import TraceWriter
from virtmm.tools.trace.importers import accesses, perfscript, proc, strace
from virtmm.tools.trace.importers.source import Emit, Imported, Options, Progress
from virtmm.tools.trace.paths import Cleaner

import virtmm

Importer = Callable[[list[Path], Options, Emit, Progress], Imported]

FORMATS: dict[str, Importer] = {
    "perf": perfscript.read,
    "strace": strace.read,
    "proc": proc.read,
    "lackey": accesses.reader(accesses.lackey),
    "drmemtrace": accesses.reader(accesses.drmemtrace),
}


def size_of(fmt: str, files: Sequence[Path]) -> int:
    """Return what the progress of an import goes up to: bytes, or snapshots."""
    if fmt == "proc":
        return len(files)
    return sum(file.stat().st_size for file in files[:1] if file.is_file())


def import_trace(
    fmt: str,
    files: Sequence[Path],
    output: str | os.PathLike[str],
    options: Options,
    progress: Progress = lambda _: None,
) -> int:
    """
    Import files of a format.

    Args:
        fmt: one of FORMATS.
        output: the trace; it says in its metadata what the format cannot tell (``limits``).

    Returns:
        The number of events.

    Raises:
        TraceError: file, line, what is wrong with it, what to do.
    """
    with TraceWriter(output, {"page_size": options.page_size}) as writer:
        about = FORMATS[fmt](list(files), options, writer.append_row, progress)
        writer.metadata |= {
            "recorder": f"virtmm {virtmm.__version__} (import {fmt})",
            "command": Cleaner()(about.command),
            "source": [file.name for file in files],
            "fault_around_bytes": None,
            "losses": {"events": about.lost},
            "limits": about.limits,
            **about.more,
        }
    return writer.num_events
