# SPDX-License-Identifier: GPL-2.0-only
"""Helpers of the trace tests: a naive replay of mappings, and a small valid trace."""

from __future__ import annotations

import bisect
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from virtmm.tools.trace.convert import CLONE_VM, MAP_GROWSDOWN
from virtmm.tools.trace.format import (
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    TraceReader,
    TraceWriter,
)

STACK_LIMIT = 8 << 20
MREMAP_DONTUNMAP = 4


@dataclass
class Space:
    """An address space as sorted, disjoint pieces [start, end, prot, grows down]."""

    pieces: list[list[int]] = field(default_factory=list)
    heap_end: int = 0

    def copy(self) -> Space:
        return Space([list(p) for p in self.pieces], self.heap_end)

    def find(self, addr: int) -> int:
        """Index of the first piece that ends above addr."""
        return bisect.bisect_right(self.pieces, addr, key=lambda p: p[1])

    def cut(self, addr: int) -> None:
        at = self.find(addr)
        if at < len(self.pieces) and self.pieces[at][0] < addr:
            start, end, prot, grows = self.pieces[at]
            self.pieces[at : at + 1] = [[start, addr, prot, grows], [addr, end, prot, 0]]

    def unmap(self, start: int, end: int) -> int:
        """Unmap; return how many bytes were mapped."""
        self.cut(start)
        self.cut(end)
        first, last = self.find(start), self.find(end - 1) if end > start else 0
        last = self.find(end - 1)
        if last < len(self.pieces) and self.pieces[last][0] < end:
            last += 1
        gone = self.pieces[first:last]
        self.pieces[first:last] = []
        return sum(p[1] - p[0] for p in gone)

    def map(self, start: int, end: int, prot: int, grows: int = 0) -> None:
        self.unmap(start, end)
        if end > start:
            self.pieces.insert(self.find(start), [start, end, prot, grows])

    def covered(self, start: int, end: int) -> int:
        return sum(max(0, min(end, p[1]) - max(start, p[0])) for p in self.pieces)

    def touch(self, addr: int, page: int) -> int | None:
        """The protection at addr, growing a stack if need be; None if nothing is there."""
        at = self.find(addr)
        if at == len(self.pieces):
            return None
        piece = self.pieces[at]
        if addr < piece[0]:
            if not piece[3] or piece[1] - addr > STACK_LIMIT:
                return None
            piece[0] = addr & ~(page - 1)
        return piece[2]


def replay_mappings(path: Path) -> Counter[str]:
    """Replay a trace's mappings and count what does not fit, by what it is; plus ``fault``."""
    spaces: dict[int, Space] = {}
    problems: Counter[str] = Counter()
    with TraceReader(path) as reader:
        mask = reader.page_size - 1
        for rows in reader.batches():
            for row in rows:
                _step(row, spaces, problems, mask)
    return problems


def _step(
    row: tuple[int, ...], spaces: dict[int, Space], problems: Counter[str], mask: int
) -> None:
    _, pid, _, kind, addr, length, addr2, len2, prot, flags, _, _, arg = row
    if kind == KIND_EXEC:
        spaces[pid] = Space()
        return
    space = spaces.get(pid)
    if space is None:
        problems["event of an unknown process"] += 1
        return
    end = addr + length
    if kind == KIND_FAULT:
        problems["fault"] += 1
        allowed = space.touch(addr, mask + 1)
        if allowed is None:
            problems["fault outside mappings"] += 1
        elif prot & ~allowed & ~1:
            problems["fault against the protection"] += 1
    elif kind == KIND_MMAP:
        space.map(addr, end, prot, flags & MAP_GROWSDOWN)
    elif kind == KIND_MUNMAP:
        problems["munmap of nothing"] += not space.unmap(addr, end)
    elif kind == KIND_MPROTECT:
        at = space.find(addr)
        grows = space.pieces[at][3] if at < len(space.pieces) else 0
        problems["mprotect over a hole"] += space.covered(addr, end) != length
        space.map(addr, end, prot, grows if space.pieces[at][0] == addr else 0)
    elif kind == KIND_MREMAP:
        problems["mremap of a hole"] += not space.covered(addr, end)
        old = space.touch(addr, mask + 1) or 0
        if not flags & MREMAP_DONTUNMAP and length:
            space.unmap(addr, end)
        space.map(addr2, addr2 + len2, old)
    elif kind == KIND_BRK:
        now = (end + mask) & ~mask
        before = space.heap_end or (addr + mask) & ~mask
        if now > before:
            problems["brk over a mapping"] += space.covered(before, now) > 0
            space.map(before, now, 3)
        else:
            space.unmap(now, before)
        space.heap_end = now
    elif kind == KIND_FORK:
        spaces[arg] = space if flags & CLONE_VM else space.copy()
    elif kind == KIND_EXIT:
        del spaces[pid]


@pytest.fixture
def replay() -> Callable[[Path], Counter[str]]:
    return replay_mappings


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of three events."""
    path = tmp_path / "t.parquet"
    with TraceWriter(path, {"page_size": 4096, "command": "true"}) as writer:
        writer.append(time=0, pid=7, kind="exec")
        writer.append(time=5, pid=7, kind="mmap", addr=0x10000, len=0x2000, prot=3, flags=0x22)
        writer.append(time=9, pid=7, kind="fault", addr=0x10008, prot=2)
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; nothing may be left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
