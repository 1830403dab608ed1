# SPDX-License-Identifier: GPL-2.0-only
"""
Read /proc/PID/maps and smaps, and turn mappings into the rows of a program that just started.

SIMPLIFIED: what one call mapped may be several lines, and several calls' one; each line becomes one
mapping of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtmm.tools.trace.importers.source import Lines, identity
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.schema import KIND_BRK, KIND_EXEC, KIND_MMAP, File

_LINE = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) ([r-][w-][x-][sp]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +(.*))?"
)
_FIELD = re.compile(r"[A-Za-z_]+: ")
_STEP = "give a copy of /proc/PID/maps or smaps"

_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 1, 2, 0x10, 0x20
_MAP_GROWSDOWN, _MAP_STACK = 0x100, 0x20000


@dataclass
class Vma:
    """
    One line of maps, sizes in bytes.

    ``rss`` is None if the file has no sizes (maps), ``anonymous`` and ``swap`` 0 then.
    """

    start: int
    end: int
    prot: int
    shared: bool
    offset: int
    file: File | None
    name: str
    rss: int | None = None
    anonymous: int = 0
    swap: int = 0


def read_maps(path: Path, page_size: int) -> list[Vma]:
    """
    Return the mappings of a maps or smaps file, those of the kernel's half left out.

    Raises TraceError: file, line, what is wrong with it.
    """
    lines = Lines(path)
    clean = Cleaner()
    vmas: list[Vma] = []
    end = 0
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            if not vmas or not _FIELD.match(line):
                raise lines.wrong("not a line of a maps file", _STEP)
            _size(lines, vmas[-1], line)
            continue
        start, last, offset = (int(found[at], 16) for at in (1, 2, 4))
        if start >= last or (start | last | offset) % page_size:
            raise lines.wrong(
                f"{found[1]}-{found[2]} is no range of pages of {page_size} bytes",
                "say the machine's with --page-size",
            )
        if start < end:
            raise lines.wrong("the mapping lies before the end of the one above", _STEP)
        end = last
        vmas.append(_vma(found, start, last, offset, clean))
    if not vmas:
        raise lines.wrong("no mapping in it", _STEP)
    return [vma for vma in vmas if not vma.start >> 63]


def _vma(found: re.Match[str], start: int, end: int, offset: int, clean: Cleaner) -> Vma:
    inode, name = int(found[7]), found[8] or ""
    prot = sum(1 << at for at in range(3) if found[3][at] != "-")
    shared = found[3][3] == "s"
    file = None
    if shared and name == "/dev/zero (deleted)":
        inode = 0  # how the kernel names shared anonymous memory
    if inode:
        path = clean(name.removesuffix(" (deleted)"))
        file = File(path, identity(int(found[5], 16), int(found[6], 16), inode), 0)
    elif name.startswith(("[vdso", "[vvar", "[uprobes", "[sigpage")):
        file = File(name, 0, 0)
    return Vma(start, end, prot, shared, offset if inode else 0, file, name)


def _size(lines: Lines, vma: Vma, line: str) -> None:
    name, _, rest = line.partition(":")
    if name in ("Rss", "Anonymous", "Swap"):
        number = rest.removesuffix("kB").strip()
        if not number.isdigit():
            raise lines.wrong(f"{name} without a size in kB", _STEP)
        size = int(number) << 10
        if name == "Rss":
            vma.rss = size
        elif name == "Swap":
            vma.swap = size
        else:
            vma.anonymous = size


def start_rows(pid: int, vmas: Iterable[Vma], time: int, program: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows that start a process with these mappings, none of their pages touched."""

    def row(kind: int, vma: Vma | None = None, **more: Any) -> tuple[Any, ...]:
        if vma is None:
            return (time, pid, pid, kind, more.get("addr", 0), more.get("len", 0), 0, 0, 0, 0, 0,
                    more.get("file"), 0)  # fmt: skip
        flags = (_MAP_SHARED if vma.shared else _MAP_PRIVATE) | _MAP_FIXED
        if vma.file is None:
            flags |= _MAP_ANONYMOUS
        if vma.name.startswith("[stack"):
            flags |= _MAP_GROWSDOWN | _MAP_STACK
        return (time, pid, pid, kind, vma.start, vma.end - vma.start, 0, 0, vma.prot, flags,
                vma.offset, vma.file, 0)  # fmt: skip

    yield row(KIND_EXEC, file=File(program, 0, 0))
    heap_start = heap_end = 0
    for vma in vmas:
        # A part of the heap with another protection is a mapping in its place.
        if vma.name == "[heap]" and vma.prot == 3 and vma.start == (heap_end or vma.start):
            if not heap_start:
                heap_start = vma.start
                yield row(KIND_BRK, addr=heap_start)
            heap_end = vma.end
            yield row(KIND_BRK, addr=heap_start, len=heap_end - heap_start)
        else:
            yield row(KIND_MMAP, vma)
