# SPDX-License-Identifier: GPL-2.0-only
"""
Import snapshots of /proc/PID: a trace that starts with processes as they are, pages and all.

A snapshot is a folder, /proc/PID itself or a copy: ``smaps`` or ``maps``, and ``pagemap``, which says
which pages are there. A copied pagemap holds eight bytes for each page of each mapping in the order
of maps, one after the other (the original is mostly holes: the entry of a page lies at its number
times eight).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from virtmm.tools.trace.importers.maps import Vma, read_maps, start_rows
from virtmm.tools.trace.importers.source import Emit, Imported, Options, Progress, unreadable
from virtmm.tools.trace.schema import KIND_FAULT, KIND_MPROTECT, TraceError

# Documentation/admin-guide/mm/pagemap.rst
_PRESENT, _SWAPPED, _FILE = 63, 62, 61
_READ, _WRITE = 1, 2
_PAGES_AT_ONCE = 1 << 17

LIMITS = (
    "a snapshot: when and in which order pages were touched is not known, they are touched by address",
    "pages that processes share since a fork count for each of them",
)
LIMIT_ZERO = "an anonymous page that is the zero page is taken as written"
LIMIT_MAPS = "maps alone: which pages were touched is not known, none is"
LIMIT_GUESS = "smaps alone: the first pages of a mapping are taken as the touched ones"


def read(files: list[Path], options: Options, emit: Emit, progress: Progress) -> Imported:
    """Import folders, each a process; its number is the folder's name, if that is one."""
    result = Imported(limits=list(LIMITS))
    used: set[int] = set()
    time = 0
    for folder in files:
        pid = int(folder.name) if folder.name.isascii() and folder.name.isdigit() else 0
        if pid in used or not 0 < pid < 1 << 31:
            pid = max(used, default=0) + 1
        used.add(pid)
        source = folder / "smaps"
        if not source.exists():
            source = folder / "maps"
        if not source.exists():
            raise TraceError(
                f"{folder}: neither smaps nor maps in it; name /proc/PID or a copy of it"
            )
        vmas = read_maps(source, options.page_size)
        program = next((v.file.path for v in vmas if v.file and v.file.inode and v.prot & 4), "")
        result.command = result.command or program
        touched = list(_touched(folder, source, vmas, options, result))
        # Pages written before their memory became read-only: what relocation leaves, for one.
        closed = [v for v in vmas if not v.prot & _WRITE and any(
            access == _WRITE for _, access in _within(touched, v))]  # fmt: skip
        opened = [replace(v, prot=v.prot | _WRITE) if v in closed else v for v in vmas]
        for row in start_rows(pid, opened, time, program):
            emit(row)
        for at, (address, access) in enumerate(touched, time):
            emit((at, pid, pid, KIND_FAULT, address, 0, 0, 0, access, 0, 0, None, 0))
        time += len(touched)
        for vma in closed:
            emit((time, pid, pid, KIND_MPROTECT, vma.start, vma.end - vma.start, 0, 0, vma.prot, 0, 0,
                  None, 0))  # fmt: skip
        progress(len(used))
    return result


def _within(touched: list[tuple[int, int]], vma: Vma) -> list[tuple[int, int]]:
    """Return what was touched of a mapping; all of it is in order of addresses."""
    low, high = bisect_left(touched, (vma.start, 0)), bisect_left(touched, (vma.end, 0))
    return touched[low:high]


def _touched(
    folder: Path, source: Path, vmas: list[Vma], options: Options, result: Imported
) -> Iterator[tuple[int, int]]:
    """Yield address and access of each page that is there."""
    pagemap = folder / "pagemap"
    if pagemap.exists():
        limit, pages = LIMIT_ZERO, _from_pagemap(pagemap, vmas, options.page_size)
    elif source.name == "smaps":
        limit, pages = LIMIT_GUESS, _from_smaps(source, vmas, options)
    else:
        limit, pages = LIMIT_MAPS, iter(())
    if limit not in result.limits:
        result.limits.append(limit)
    yield from pages


def _from_pagemap(pagemap: Path, vmas: list[Vma], page: int) -> Iterator[tuple[int, int]]:
    total = sum(vma.end - vma.start for vma in vmas) // page * 8
    try:
        size = pagemap.stat().st_size
        packed = size == total
        if size and not packed and size < vmas[-1].end // page * 8:
            raise TraceError(
                f"{pagemap}: {size} bytes are neither the original nor {total}, eight for each page of "
                "the mappings; copy it again, together with maps"
            )
        with pagemap.open("rb", buffering=0) as stream:
            for vma in vmas:
                for start in range(vma.start, vma.end, _PAGES_AT_ONCE * page):
                    count = min(_PAGES_AT_ONCE, (vma.end - start) // page)
                    if not packed:
                        stream.seek(start // page * 8)
                    data = b""
                    while len(data) < count * 8 and (more := stream.read(count * 8 - len(data))):
                        data += more
                    yield from _entries(
                        np.frombuffer(data[: len(data) & -8], "<u8"), vma, start, page
                    )
    except OSError as error:
        raise unreadable(pagemap, error) from None


def _entries(
    entries: npt.NDArray[np.uint64], vma: Vma, start: int, page: int
) -> Iterator[tuple[int, int]]:
    there = (entries >> np.uint64(_SWAPPED) & np.uint64(3)) != 0
    from_file = (entries >> np.uint64(_FILE) & np.uint64(1)) != 0
    for at in np.flatnonzero(there).tolist():
        yield start + at * page, _access(vma, bool(from_file[at]))


def _access(vma: Vma, from_file: bool) -> int:
    """Return what made a page: a write makes an anonymous one, a read maps a file's."""
    if vma.file is None:
        return _WRITE if vma.prot & 2 or not vma.shared else _READ
    return _READ if from_file or vma.shared else _WRITE


def _from_smaps(source: Path, vmas: list[Vma], options: Options) -> Iterator[tuple[int, int]]:
    page = options.page_size
    for vma in vmas:
        if vma.rss is None:
            raise TraceError(
                f"{source}: {vma.start:x}-{vma.end:x} has no Rss; copy /proc/PID/smaps again"
            )
        size = vma.rss + vma.swap
        if size not in (0, vma.end - vma.start) and not options.guess_pages:
            raise TraceError(
                f"{source}: {size >> 10} of {(vma.end - vma.start) >> 10} kB of "
                f"{vma.start:x}-{vma.end:x} are there, which pages only pagemap tells; copy it too, or "
                "take the first ones with --guess-pages"
            )
        written = min(vma.anonymous + vma.swap, size)
        for at in range(0, min(size, vma.end - vma.start), page):
            yield vma.start + at, _access(vma, at >= written)
