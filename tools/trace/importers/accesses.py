# SPDX-License-Identifier: GPL-2.0-only
"""
Import memory traces, one line an access: valgrind's lackey and DynamoRIO's drmemtrace.

Of all accesses the first to each page is kept, and the first write to a page that was only read
before: what a kernel with base pages sees. They have addresses only, so a maps file must say what is
mapped. A row's time is the number of its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from virtmm.tools.replay.rangemap import RangeMap
from virtmm.tools.trace.importers.maps import read_maps, start_rows
from virtmm.tools.trace.importers.source import Emit, Imported, Lines, Options, Progress
from virtmm.tools.trace.schema import FAULT_PRESENT, KIND_EXIT, KIND_FAULT, TraceError

_READ, _WRITE, _EXEC = 1, 2, 4
#: (tid, access, address, size) of one line.
Access = tuple[int, int, int, int]

LIMITS = (
    "addresses only: all of the maps file is mapped from the start to the end, memory that the program "
    "gave back and took again is touched once",
    "one process; what the kernel touches for it (read(), the stack at exec) is not seen",
    "times are line numbers",
)

_LACKEY = re.compile(r"(I | S| L| M) +([0-9a-f]+),(\d+)")
_LACKEY_ACCESS = {"I ": _EXEC, " L": _READ, " S": _WRITE, " M": _WRITE}
_VALGRIND = re.compile(r"(?:==|--)(\d+)(?:==|--)")
_MEMREF = re.compile(
    r" *\d+(?: +\d+)?: +(?:W\d+\.)?T?(\d+) +(?:(ifetch|read|write|[\w-]+) +(\d+) byte\(s\) @ 0x([0-9a-f]+)"
    r"|<(?:marker|thread|entry)\b| +[0-9a-f]+\b)"
)
_MEMREF_ACCESS = {"ifetch": _EXEC, "read": _READ, "write": _WRITE}


def lackey(lines: Lines) -> Iterator[Access]:
    """Yield the accesses of ``valgrind --tool=lackey --trace-mem=yes``."""
    pid = 1
    for line in lines:
        found = _LACKEY.fullmatch(line)
        if found is not None:
            yield pid, _LACKEY_ACCESS[found[1]], int(found[2], 16), int(found[3])
        elif valgrind := _VALGRIND.match(line):
            pid = int(valgrind[1])
        elif line:
            raise lines.wrong(
                f"not a line of lackey: {line[:40]!r}",
                "make it with valgrind --tool=lackey --trace-mem=yes --log-file=FILE",
            )


def drmemtrace(lines: Lines) -> Iterator[Access]:
    """Yield the accesses of what drmemtrace's ``view`` tool prints."""
    begun = False
    for line in lines:
        found = _MEMREF.match(line)
        if found is None:
            if line.startswith("View tool results"):
                break
            # A header comes before, and a rule wherever threads change.
            if not begun or not line or line.startswith("---"):
                continue
            raise lines.wrong(
                f"not a line of the view tool: {line[:40]!r}",
                "make it with drrun -t drmemtrace -tool view",
            )
        begun = True
        access = _MEMREF_ACCESS.get(found[2] or "")
        if access is not None and len(found[4].lstrip("0")) < 16:
            yield int(found[1]), access, int(found[4], 16), int(found[3])
    if not begun:
        raise lines.wrong("no memref in it", "make it with drrun -t drmemtrace -tool view")


def reader(parse: Callable[[Lines], Iterator[Access]]) -> Callable[..., Imported]:
    """Return the importer of a format."""

    def read(files: list[Path], options: Options, emit: Emit, progress: Progress) -> Imported:
        """Import one memory trace."""
        if options.maps is None:
            raise TraceError(f"{files[0]}: has addresses only; say what is mapped with --maps FILE")
        if len(files) > 1:
            raise TraceError(
                f"{files[1]}: one memory trace at a time; import each to a trace of its own"
            )
        vmas = read_maps(options.maps, options.page_size)
        mapped: RangeMap[bool] = RangeMap()
        for vma in vmas:
            mapped.set(vma.start, vma.end, vma.file is not None and vma.shared)
        program = next((v.file.path for v in vmas if v.file and v.file.inode and v.prot & 4), "")
        lines = Lines(files[0], progress)
        pages = _Pages(options.page_size)
        pid = outside = 0
        for tid, access, address, size in parse(lines):
            if not pid:
                pid = tid
                for row in start_rows(pid, vmas, 0, program):
                    emit(row)
            for page, flags in pages.touch(access, address, size):
                at = max(address, page)
                if mapped.at(at) is None:
                    if not options.skip_outside:
                        raise lines.wrong(
                            f"an access to {at:#x}, where {options.maps} maps nothing",
                            "give the maps file of this run, taken later, or count such accesses with "
                            "--skip-outside",
                        )
                    outside += 1
                    continue
                emit((lines.number, pid, tid, KIND_FAULT, at, 0, 0, 0, access, flags, 0, None, 0))
        if not pid:
            raise lines.wrong("no access in it", "give the file with the accesses")
        emit((lines.number, pid, pid, KIND_EXIT, 0, 0, 0, 0, 0, 0, 0, None, 0))
        limits = list(LIMITS)
        if outside:
            limits.append(f"{outside} pages were touched outside the maps file and left out")
        return Imported(program, limits, more={"outside": outside})

    return read


class _Pages:
    """Which pages were read and written so far."""

    def __init__(self, page_size: int) -> None:
        self._mask = -page_size
        self._page = page_size
        self._read: set[int] = set()
        self._written: set[int] = set()

    def touch(self, access: int, address: int, size: int) -> list[tuple[int, int]]:
        """Return (page's address, FAULT_*) for each page on which the access would fault."""
        first = address & self._mask
        last = (address + max(size, 1) - 1) & self._mask
        done = self._written if access == _WRITE else self._read
        if first == last and first in done:
            return []
        found = []
        for page in range(first, last + 1, self._page):
            if page in done:
                continue
            found.append((page, FAULT_PRESENT if page in self._read else 0))
            self._read.add(page)
            if access == _WRITE:
                self._written.add(page)
        return found
