# SPDX-License-Identifier: GPL-2.0-only
"""What importers share: text files read line by line, options, and what they say of a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtmm.tools.trace.schema import TraceError

Emit = Callable[[tuple[Any, ...]], None]
Progress = Callable[[int], None]
_LINES_A_MOVE = 4096


@dataclass(frozen=True)
class Options:
    """
    What the formats need to be told.

    Attributes:
        page_size: of the machine that the files come from, bytes.
        maps: /proc/PID/maps of the program, for traces that have only addresses.
        faults: what perf script printed of the page faults, for strace.
        skip_outside: count accesses outside the mappings instead of refusing them.
        guess_pages: take the first pages of a mapping as the touched ones where only their number
            is known.
    """

    page_size: int = 4096
    maps: Path | None = None
    faults: Path | None = None
    skip_outside: bool = False
    guess_pages: bool = False


@dataclass
class Imported:
    """What an importer tells of the trace that it made: keys of the metadata."""

    command: str = ""
    limits: list[str] = field(default_factory=list)
    lost: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Lines:
    """
    The lines of a text file, without their ends.

    ``number`` is that of the last one. ``progress`` is told the bytes read so far, now and then.
    Raises TraceError: the file cannot be read.
    """

    def __init__(self, path: Path, progress: Progress = lambda _: None) -> None:
        self.path = path
        self.number = 0
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        done = 0
        try:
            with self.path.open(encoding="utf-8", errors="replace") as stream:
                for self.number, line in enumerate(stream, 1):
                    done += len(line)
                    if self.number % _LINES_A_MOVE == 0:
                        self._progress(done)
                    yield line.rstrip("\n")
        except OSError as error:
            raise unreadable(self.path, error) from None

    def wrong(self, what: str, step: str) -> TraceError:
        """Return the error for the last line."""
        return TraceError(f"{self.path}:{self.number}: {what}; {step}")


def unreadable(path: Path, error: OSError) -> TraceError:
    """Return the error for a file that cannot be read."""
    return TraceError(f"{path}: cannot read: {error.strerror}; name another file")


def identity(major: int, minor: int, inode: int) -> int:
    """Return the identity of a file, as a recording has it (schema: ``inode``)."""
    return (inode ^ ((major << 12 | minor & 0xFFF) << 40)) & 0xFFFFFFFFFFFFFFFF
