# SPDX-License-Identifier: GPL-2.0-only
"""
What of a trace, recorded with small base pages, goes wrong or costs memory with larger ones.

====================  =========  =====================================================================
rule                  severity   what was seen
====================  =========  =====================================================================
``fixed-address``     breaks     MAP_FIXED at an address on no larger page, not over an own mapping
``file-offset``       breaks     a file mapped from an offset on no larger page
``elf-offset``        breaks     ELF segments whose distances in memory and in the file differ
``elf-packed``        breaks     ELF segments of different protection within one larger page
``range-start``       breaks     a call for part of a mapping, from an address on no larger page
``range-end``         spills     a call for part of a mapping, which ends within a larger page
``brk-step``          grows      a heap that ends within a larger page
``partial-page``      grows      mappings that end within a larger page
====================  =========  =====================================================================

Where a program asks the kernel for the page size and does its sums with it, the range rules do not
strike; a trace cannot tell. Positions count from where the call mapped: with larger pages that start
lies on one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from virtmm.tools.trace.schema import (
    KIND_BRK,
    KIND_EXEC,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    KINDS,
    File,
    Row,
)
from virtmm.tools.trace.spaces import Space

PAGE_SIZES = (16384, 65536)

_MAP_FIXED = 0x10 | 0x100000  # and MAP_FIXED_NOREPLACE
_RANGES = (KIND_MUNMAP, KIND_MPROTECT, KIND_MADVISE, KIND_MREMAP)
_SPILLS = {
    KIND_MUNMAP: "unmaps up to {} behind it too",
    KIND_MPROTECT: "changes the protection of up to {} behind it too",
    KIND_MADVISE: "applies to up to {} behind it too",
    KIND_MREMAP: "moves up to {} behind it too",
}
_UNLESS = "unless the program asks for the page size"


@dataclass
class Finding:
    """
    One thing found: where first, how often.

    Attributes:
        row, pid, command: of the first time. what: the call then. effect: what would happen.
        count, bytes: how often, and the memory it costs at most, summed up. pids: where.
    """

    rule: str
    severity: str
    page_size: int
    row: int
    pid: int
    command: str
    what: str
    effect: str
    count: int = 0
    bytes: int = 0
    pids: set[int] = field(default_factory=set)

    def result(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "page_size": self.page_size,
            "row": self.row,
            "pid": self.pid,
            "command": self.command,
            "what": self.what,
            "effect": self.effect,
            "count": self.count,
            "bytes": self.bytes,
            "processes": len(self.pids),
        }


def size_text(size: int) -> str:
    """Return a page size or the like in the kernel's short form."""
    return f"{size >> 10}K" if size < 1 << 20 else f"{size >> 20}M"


@dataclass
class Lint:
    """Look at each event that is no fault, before it happens to its address space."""

    page_size: int
    commands: dict[int, str] = field(default_factory=dict)  # pid -> what it runs, kept by the user
    findings: dict[tuple[str, int, str], Finding] = field(default_factory=dict)
    _starting: set[int] = field(default_factory=set)  # exec is still mapping the program
    #: (pid, file) -> the first segment of it that was mapped, and the last
    _loads: dict[tuple[int, int], tuple[Row, Row]] = field(default_factory=dict)
    _row: int = 0

    def look(self, number: int, row: Row, space: Space, file: File) -> None:
        """Check the row of this number; ``file`` is what an mmap maps."""
        self._row = number
        kind, pid = row[3], row[1]
        if kind == KIND_EXEC:
            self._starting.add(pid)
            self._loads = {key: rows for key, rows in self._loads.items() if key[0] != pid}
            return
        if kind == KIND_MMAP:
            if not file.path.startswith("["):
                self._mmap(row, space, file)
            return
        # The program's first own call: exec has mapped all it maps.
        self._starting.discard(pid)
        for size in PAGE_SIZES:
            if size <= self.page_size:
                continue
            if kind in _RANGES:
                self._range(row, space, size)
            elif kind == KIND_BRK and row[4] + row[5] > space.heap[1] > 0 and row[5] % size:
                self._note("brk-step", "grows", size, row, "brk", f"brk({row[4] + row[5]:#x})",
                           "the heap's last page is partly used; to shrink it by less gives back "
                           "nothing", size=size - row[5] % size)  # fmt: skip

    def started(self, pid: int) -> None:
        """Note a fault in user mode: exec has mapped all it maps."""
        self._starting.discard(pid)

    def _note(
        self, rule: str, severity: str, page: int, row: Row, key: str, what: str, effect: str,
        size: int = 0,
    ) -> None:  # fmt: skip
        found = self.findings.get((rule, page, key))
        if found is None:
            name = self.commands.get(row[1], "")
            found = Finding(rule, severity, page, self._row, row[1], name, what, effect)
            self.findings[rule, page, key] = found
        found.count += 1
        found.bytes += size
        found.pids.add(row[1])

    def _mmap(self, row: Row, space: Space, file: File) -> None:
        pid, start, length, flags, offset, index = row[1], row[4], row[5], row[9], row[10], row[11]
        fixed = bool(flags & _MAP_FIXED) and pid not in self._starting
        load = self._loads.get((pid, index)) if fixed or pid in self._starting else None
        if index:
            self._loads[pid, index] = (load[0] if load else row, row)
        over = fixed and space.covers(start, start + length)
        for size in PAGE_SIZES:
            if size <= self.page_size:
                continue
            if load is not None:
                self._segment(row, *load, file, size)
                continue
            text = f"mmap({start:#x}, {length:#x}" + (", MAP_FIXED)" if fixed else ")")
            page = size_text(size)
            if fixed and not over and start % size:
                self._note("fixed-address", "breaks", size, row, "mmap", text,
                           f"EINVAL: the address is not on a {page} page")  # fmt: skip
            if index and offset % size:
                self._note("file-offset", "breaks", size, row, file.path,
                           f"{text} of {file.path} from offset {offset:#x}",
                           f"EINVAL: the offset is not that of a {page} page")  # fmt: skip
            if over:
                self._start(row, space, size, text)
            elif length % size:
                self._note("partial-page", "grows", size, row, "mmap", text,
                           f"takes {page} pages whole", size=size - length % size)  # fmt: skip

    def _segment(self, row: Row, base: Row, last: Row, file: File, size: int) -> None:
        distance = row[4] - base[4]
        what = f"{file.path}: segment at {row[10]:#x}, {distance:#x} behind the first"
        if (distance - (row[10] - base[10])) % size:
            self._note("elf-offset", "breaks", size, row, file.path, what,
                       f"not loaded: address and file offset differ modulo {size_text(size)}; link "
                       f"with -z max-page-size={size}")  # fmt: skip
        elif distance % size and row[8] != last[8]:
            self._note("elf-packed", "breaks", size, row, file.path, what,
                       f"shares a {size_text(size)} page with the segment before it, under the "
                       f"protection of one of them; link with -z max-page-size={size}")  # fmt: skip

    def _start(self, row: Row, space: Space, size: int, what: str) -> bool:
        found = space.origins.at(row[4])
        if found is None or (row[4] - found[2]) % size == 0:
            return False
        self._note("range-start", "breaks", size, row, KINDS[row[3]], what,
                   f"EINVAL: begins within a {size_text(size)} page of the mapping, {_UNLESS}",
                   )  # fmt: skip
        return True

    def _range(self, row: Row, space: Space, size: int) -> None:
        kind, start, length = row[3], row[4], row[5]
        what = f"{KINDS[kind]}({start:#x}, {length:#x})"
        if not length or self._start(row, space, size, what):
            return
        last = space.origins.at(start + length - 1)
        beyond = space.origins.at(start + length)
        if last is None or beyond is None or last[2] != beyond[2]:
            return  # ends where the mapping ends
        if over := (start + length - last[2]) % size:
            rest = f"{size_text(size - self.page_size)}"
            self._note("range-end", "spills", size, row, KINDS[kind], what,
                       f"{_SPILLS[kind].format(rest)}, {_UNLESS}", size=size - over)  # fmt: skip

    def result(self) -> list[dict[str, Any]]:
        """Return the findings: what breaks first, then by page size and row."""
        order = ("breaks", "spills", "grows")
        found = sorted(
            self.findings.values(), key=lambda f: (order.index(f.severity), f.row, f.page_size)
        )
        return [finding.result() for finding in found]
