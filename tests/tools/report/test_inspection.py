# SPDX-License-Identifier: GPL-2.0-only
"""The text of ``virtmm inspect``."""

from pathlib import Path

from virtmm.tools.report.inspection import drawn, render, size
from virtmm.tools.trace.format import File, TraceReader, TraceWriter
from virtmm.tools.trace.inspection import inspect

SAMPLES = Path(__file__).resolve().parents[3] / "samples"


def text_of(path):
    with TraceReader(path) as reader:
        return render(inspect(reader)).splitlines()


def test_sizes():
    assert [size(n) for n in (12, 4096, 5 << 20, 3 << 30)] == ["12B", "4.0KiB", "5.0MiB", "3.0GiB"]


def test_positions_are_bars():
    assert drawn([0.0, 0.5, 1.0]) == "▁▅█"


def test_gcc_sample():
    lines = text_of(SAMPLES / "gcc.parquet")
    assert lines[0] == "gcc.parquet: 21,629 events in 1.410 s, 3 processes, 4K pages"
    tree = [line.split()[0] for line in lines if " first touches, " in line]
    assert len(tree) == 3
    depths = [len(line) - len(line.lstrip()) for line in lines if " first touches, " in line]
    assert depths == [2, 4, 4]
    assert any(line.startswith("  lost") and line.endswith("0 events") for line in lines)
    assert any("elf-packed: 16K" in line and "64K" in line for line in lines)
    assert sum("▁" in line for line in lines) == 8
    assert max(map(len, lines)) < 200


def test_what_is_not_known_is_said(tmp_path):
    path = tmp_path / "t.parquet"
    head = {"page_size": 4096, "partial": True, "limits": ["read or write"]}
    with TraceWriter(path, head) as writer:
        writer.append(time=0, pid=1, kind="exec", file=File("/bin/x", 0, 0))
    text = "\n".join(text_of(path))
    assert "partial      ends before the program did" in text
    head |= {"partial_reason": "the disk is full", "limits": "one phrase"}
    with TraceWriter(path, head) as writer:
        writer.append(time=0, pid=1, kind="exec", file=File("/bin/x", 0, 0))
    again = "\n".join(text_of(path))
    assert "partial      the disk is full" in again
    assert "not known    one phrase" in again
    assert "not known    read or write" in text
    assert "lost         not known" in text
    assert "command      unknown" in text
    assert "nothing found" in text


def test_many_processes_are_cut(tmp_path):
    path = tmp_path / "t.parquet"
    with TraceWriter(path, {"page_size": 4096}) as writer:
        for pid in range(1, 101):
            writer.append(time=pid, pid=pid, kind="exec", file=File("/bin/x", 0, 0))
    lines = text_of(path)
    assert "  and 76 more; --format json has all" in lines
