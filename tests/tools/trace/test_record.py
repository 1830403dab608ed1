# SPDX-License-Identifier: GPL-2.0-only
"""Recording: real where this machine can, else the line that says what is missing."""

from __future__ import annotations

import io
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from virtmm.tools.replay.relayout import RangeMap
from virtmm.tools.trace import capture, record
from virtmm.tools.trace.format import (
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    TraceError,
    TraceReader,
)
from virtmm.tools.trace.program import Program

from .live import BACKENDS, MISSING, able, recorded


@pytest.fixture(autouse=True)
def _plain_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded has no sanitizer in it, also when the recorder has (scripts/sanitize.py)."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recording(
    temporary: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    replay: Callable[[Path], Counter[str]],
    backend: str,
) -> None:
    path = tmp_path / "t.parquet"
    summary = recorded(path, backend=backend)
    if summary is None:
        return
    assert capfd.readouterr() == ("out\n", "err\n")
    assert summary.exit_status == 5
    assert summary.processes == 3
    assert (summary.events["fork"], summary.events["exec"], summary.events["exit"]) == (2, 2, 3)
    assert abs(summary.minflt - summary.faults) <= (40 if backend == "perf" else 300)
    problems = replay(path)
    assert problems.pop("fault") == summary.faults
    assert not +problems
    with TraceReader(path) as reader:
        rows = [row for batch in reader.batches() for row in batch]
        metadata = reader.metadata
    (area,) = (row for row in rows if row[3] == KIND_MMAP and row[5] == 300 * 4096)
    assert area[8] == 3
    assert area[11] == 0
    assert [row[4] for row in rows if row[3] == KIND_MADVISE and row[12] == 4] == [area[4]]
    writes = Counter(
        row[1] for row in rows if row[3] == KIND_FAULT and area[4] <= row[4] < area[4] + area[5]
    )
    assert writes[area[1]] == 300
    assert sorted(writes.values()) == [100, 300]
    assert {row[0] for row in rows} >= {0}
    assert metadata["exit_status"] == 5
    assert metadata["losses"] == {"events": 0}
    assert metadata["thp"] == "disabled"
    assert metadata["duration_ns"] == rows[-1][0] == summary.duration_ns
    assert metadata["backend"] == backend
    assert metadata["limits"] == list(summary.limits)
    assert bool(summary.limits) is (backend == "user")
    assert (metadata["partial"], metadata["partial_reason"]) == (False, "")
    overhead = metadata["overhead"]
    assert 0 < metadata["duration_ns"] <= overhead["wall_ns"]
    assert overhead["recorder_cpu_ns"] == round(summary.recorder_cpu * 1e9) > 0
    words = record.describe(summary)
    assert "exit status 5" in words
    assert all(limit in words for limit in summary.limits)
    assert "partial" not in words


@pytest.mark.parametrize("aslr", [False, True])
def test_settings_of_the_program(
    temporary: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], aslr: bool
) -> None:
    files = ("/proc/self/personality", "/proc/self/status")
    if recorded(tmp_path / "t.parquet", "cat", *files, aslr=aslr) is None:
        return
    words = capfd.readouterr().out.split()
    assert bool(int(words[0], 16) & 0x40000) is not aslr
    assert words[words.index("THP_enabled:") + 1] == "0"


def test_command_that_does_not_exist(temporary: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(TraceError) as caught:
        record.record(["/no/such/program"], path)
    words = ("/no/such/program: No such file or directory",) if able() else MISSING
    assert any(word in str(caught.value) for word in words)
    assert not path.exists()


def test_lost_events(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lossy(capture.PerfData):
        def records(self, *args: Any, **options: Any) -> Iterator[Any]:
            yield from super().records(*args, **options)
            self.lost += 5

    monkeypatch.setattr(capture, "PerfData", Lossy)
    path = tmp_path / "t.parquet"
    for backend in BACKENDS:
        if able(backend):
            with pytest.raises(TraceError, match=r"lost 5 events.*--allow-lost"):
                record.record(["true"], path, backend=backend)
            assert not path.exists()
    summary = recorded(path, "true", allow_lost=True)
    if summary is not None:
        assert summary.lost == 5
        assert "5 events lost" in record.describe(summary)
        with TraceReader(path) as reader:
            assert reader.metadata["losses"] == {"events": 5}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_call_ends_in_what_the_kernel_says_is_mapped(
    temporary: Path, tmp_path: Path, replay: Callable[[Path], Counter[str]], backend: str
) -> None:
    """Threads, forks of all kinds, MAP_FIXED, mremap, brk, growing stacks, files, shared memory."""
    program = tmp_path / "calls"
    source = Path(__file__).parent / "data" / "calls.c"
    subprocess.run(["gcc", "-O1", "-w", "-pthread", source, "-o", program], check=True)
    path, maps = tmp_path / "t.parquet", tmp_path / "maps"
    summary = recorded(path, str(program), str(maps), str(tmp_path / "file"), backend=backend)
    if summary is None:
        return
    assert (summary.exit_status, summary.processes) == (0, 6)
    problems = replay(path)
    assert problems.pop("fault") == summary.faults
    assert not +problems
    told = mappings_at_exit(path)
    dumps = {int(dump.name.partition(".")[2]): dump for dump in tmp_path.glob("maps.*")}
    assert len(dumps) == 3
    for pid, dump in dumps.items():
        assert told[pid] == mapped(dump.read_text())


def joined(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours of one protection as one: the kernel keeps more of them apart than we compare."""
    result: list[tuple[int, int, int]] = []
    for start, end, prot in ranges:
        if result and (result[-1][1], result[-1][2]) == (start, prot):
            result[-1] = (result[-1][0], end, prot)
        else:
            result.append((start, end, prot))
    return result


def mapped(text: str) -> list[tuple[int, int, int]]:
    """What /proc/PID/maps says: (start, end, protection)."""
    found = []
    for words in (line.split() for line in text.splitlines()):
        start, end = (int(word, 16) for word in words[0].split("-"))
        if not start >> 63:
            prot = sum(1 << bit for bit, letter in enumerate("rwx") if letter in words[1])
            found.append((start, end, prot))
    return joined(found)


def mappings_at_exit(path: Path) -> dict[int, list[tuple[int, int, int]]]:
    """What each process of a trace has mapped when it ends."""
    spaces: dict[int, RangeMap[tuple[int, int]]] = {}
    heaps: dict[int, int] = {}
    told = {}
    with TraceReader(path) as reader:
        rows = [row for batch in reader.batches() for row in batch]
    for _, pid, _, kind, addr, length, addr2, len2, prot, flags, _, _, arg in rows:
        if kind == KIND_EXEC:
            spaces[pid], heaps[pid] = RangeMap(), 0
        space, end = spaces[pid], addr + length
        if kind == KIND_MMAP:
            space.set(addr, end, (prot, flags & 0x100))
        elif kind == KIND_MUNMAP:
            space.clear(addr, end)
        elif kind == KIND_MPROTECT:
            for low, high, (_, grows) in space.clear(addr, end):
                space.set(low, high, (prot, grows))
        elif kind == KIND_MREMAP:
            old = space.at(addr)
            assert old is not None
            if not flags & 4:
                space.clear(addr, end)
            space.set(addr2, addr2 + len2, old[2])
        elif kind == KIND_BRK:
            now, before = (end + 4095) & ~4095, heaps[pid] or addr
            space.clear(min(now, before), before)
            space.set(before, now, (3, 0))
            heaps[pid] = now
        elif kind == KIND_FORK:
            spaces[arg] = space if flags & 0x100 else space.copy()
            heaps[arg] = heaps[pid]
        elif kind == KIND_FAULT and space.at(addr) is None:
            above = space.above(addr)
            assert above is not None
            space.set(addr & ~4095, above[0], above[2])
        elif kind == KIND_EXIT:
            told[pid] = joined((start, end, value[0]) for start, end, value in space.ranges)
    return told


def test_recording_adds_no_fault(temporary: Path, tmp_path: Path) -> None:
    """The program's own count is the same without a recorder, give or take the luck of the machine."""
    counts: dict[str, set[int]] = {"": set(), "perf": set(), "user": set()}
    for _ in range(3):
        program = Program(["/bin/true"], aslr=False)
        program.start()
        assert program.wait(())
        program.close()
        counts[""].add(program.minflt)
        for backend in BACKENDS:
            path = tmp_path / "t.parquet"
            summary = recorded(path, "/bin/true", backend=backend)
            if summary is None:
                continue
            counts[backend].add(summary.minflt)
            assert (summary.processes, summary.events["fork"]) == (1, 0)
            with TraceReader(path) as reader:
                rows = [row for batch in reader.batches() for row in batch]
            assert len({row[1] for row in rows}) == 1
            if backend == "perf" or not os.geteuid():
                # what exec fills itself is in the kernel's count and no event
                assert 0 <= summary.minflt - summary.faults <= 15
    for backend in BACKENDS:
        if counts[backend]:
            assert min(abs(a - b) for a in counts[backend] for b in counts[""]) <= 1


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no command to record"):
        record.record([], tmp_path / "t.parquet")
    os.mkfifo(tmp_path / "pipe")
    for target, why in (
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "t.parquet", "cannot write a trace there"),
        (tmp_path / "pipe", "is no regular file"),
    ):
        with pytest.raises(TraceError, match=why):
            record.record(["true"], target)


def test_progress_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # rich draws nothing on a dumb terminal
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=80)
        monkeypatch.setattr(record, "Console", lambda console=console, **_: console)
        with record._progress(100) as progress:
            progress(50)
        assert ("converting" in out.getvalue()) is terminal
