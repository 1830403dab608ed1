# SPDX-License-Identifier: GPL-2.0-only
"""What ``virtmm inspect`` finds in small traces, and in the samples."""

from pathlib import Path

import pytest
from virtmm.tools.trace.format import FAULT_KERNEL, FAULT_PRESENT, File, TraceReader, TraceWriter
from virtmm.tools.trace.generate import generate, parse_parameters
from virtmm.tools.trace.inspection import SLOTS, Region, inspect

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
A = 0x7F0000000000
PAGE = 4096


@pytest.fixture
def look(tmp_path):
    """Return a function: events -> result."""

    def look(*events, **metadata):
        path = tmp_path / "t.parquet"
        with TraceWriter(path, {"page_size": PAGE} | metadata) as writer:
            for time, event in enumerate(events):
                writer.append(time=time, **({"pid": 1} | event))
        with TraceReader(path) as reader:
            return inspect(reader)

    return look


def exec_(name="prog", pid=1):
    return {"kind": "exec", "pid": pid, "file": File(f"/usr/bin/{name}", 0, 0)}


def mmap(addr, pages, pid=1, prot=3, flags=0x22, file=None):
    return {"kind": "mmap", "pid": pid, "addr": addr, "len": pages * PAGE, "prot": prot,
            "flags": flags, "file": file}  # fmt: skip


def fault(addr, access=2, pid=1, flags=0, tid=None):
    return {"kind": "fault", "pid": pid, "tid": tid, "addr": addr, "prot": access, "flags": flags}


def test_processes(look):
    result = look(
        exec_("make"),
        mmap(A, 4),
        {"kind": "fork", "arg": 2},
        exec_("cc", 2),
        mmap(A, 2, 2),
        fault(A, pid=2),
        fault(A + PAGE, 1, pid=2, tid=3),
        {"kind": "exit", "pid": 2},
    )
    make, cc = result["processes"]
    assert (make["pid"], make["parent"], make["commands"], make["ended_ns"]) == (
        1,
        None,
        ["make"],
        None,
    )
    assert (cc["pid"], cc["parent"], cc["commands"]) == (2, 1, ["make", "cc"])
    assert (cc["started_ns"], cc["ended_ns"], cc["threads"]) == (2, 7, 2)
    assert (cc["first_touches"], cc["written"], cc["peak_mappings"]) == (2, 1, 1)
    assert result["events"]["fault"] == 2


def test_a_number_that_comes_again_is_another_process(look):
    result = look(exec_(), {"kind": "exit"}, exec_("other"), {"kind": "exit"})
    assert [p["commands"] for p in result["processes"]] == [["prog"], ["other"]]


def test_touched_memory(look):
    file = File("/usr/bin/prog", 9, 1 << 20)
    result = look(
        exec_(),
        mmap(A, 8),
        mmap(A + 64 * PAGE, 8, prot=5, flags=2, file=file),
        fault(A),
        fault(A + PAGE, 1),
        fault(A + PAGE, 2, flags=FAULT_PRESENT),
        fault(A + 64 * PAGE, 4),
        fault(A + 2 * PAGE, 2, flags=FAULT_KERNEL),
        fault(A + 32 * PAGE),
    )
    touched = result["touched"]
    assert touched["kinds"] == {
        "anonymous": {"read": 1, "write": 2},
        "file text": {"read": 1, "write": 0},
    }
    assert (touched["first"], touched["bytes"]) == (4, 4 * PAGE)
    assert (touched["again"], touched["kernel"], touched["outside"]) == (1, 1, 1)
    assert result["mappings"] == {"peak": 2, "kinds": {"anonymous": 1, "file text": 1}}


@pytest.mark.parametrize(
    ("pages", "sequential", "strided", "random"),
    [
        ([0, 1, 2, 3, 4], 4, 0, 0),
        ([4, 3, 2], 2, 0, 0),
        ([0, 8, 16, 24], 0, 2, 1),
        ([0, 9, 3, 20], 0, 0, 3),
    ],
)
def test_order(look, pages, sequential, strided, random):
    result = look(exec_(), mmap(A, 64), *(fault(A + n * PAGE) for n in pages))
    order = result["order"]
    assert [order[k]["touches"] for k in order] == [sequential, strided, random]
    assert sum(order[k]["share"] for k in order) == pytest.approx(1, abs=1e-3)


def test_two_mappings_in_turns_are_two_orders(look):
    """A program that fills two buffers side by side is sequential, not random."""
    both = [fault(base + n * PAGE) for n in range(8) for base in (A, A + 256 * PAGE)]
    result = look(exec_(), mmap(A, 64), mmap(A + 256 * PAGE, 64), *both)
    assert result["order"]["sequential"]["touches"] == 14
    assert [r["touches"] for r in result["regions"]] == [8, 8]


def test_drawn_order_stays_short_and_right():
    region = Region(1, 0, "anonymous")
    for page in range(10000):
        region.touch(page)
    drawn = region.positions()
    assert SLOTS // 2 <= len(drawn) <= SLOTS
    assert drawn == sorted(drawn)
    assert drawn[0] < 0.03
    assert drawn[-1] > 0.97
    assert sum(count for _, count in region._slots) == 10000


def test_random_is_seen(tmp_path):
    path = tmp_path / "t.parquet"
    generate("sparse", path, parse_parameters("sparse", []))
    with TraceReader(path) as reader:
        result = inspect(reader)
    assert result["order"]["random"]["share"] > 0.99
    assert result["recording"]["generator"]["kind"] == "sparse"
    assert all(0.3 < p < 0.7 for p in result["regions"][0]["positions"][:-1])


def test_many_mappings_do_not_lose_counts(tmp_path):
    """Of short-lived mappings by the thousand only the most touched are kept, all are counted."""
    path = tmp_path / "t.parquet"
    generate("churn", path, parse_parameters("churn", ["rounds=9000", "pages=2", "live=9000"]))
    with TraceReader(path) as reader:
        result = inspect(reader)
    assert result["order"]["sequential"]["touches"] == 9000
    assert result["touched"]["first"] == 18001


def test_metadata_passes_through(look):
    result = look(exec_(), partial=True, limits=["no writes"], losses={"events": 3}, command="x")
    assert result["recording"] == {
        "partial": True,
        "limits": ["no writes"],
        "losses": {"events": 3},
        "command": "x",
    }


def test_gcc_sample():
    seen = []
    with TraceReader(SAMPLES / "gcc.parquet") as reader:
        result = inspect(reader, seen.append)
        assert seen[-1] == reader.num_events == sum(result["events"].values())
        assert result["events"]["fault"] == 21206
    touched = result["touched"]
    assert touched["first"] + touched["again"] + touched["outside"] == 21206
    assert touched["outside"] == 0
    assert [p["commands"][-1] for p in result["processes"]] == ["gcc", "cc1", "as"]
    rules = {(f["rule"], f["page_size"]) for f in result["lint"]}
    # Debian links x86 programs for 4K pages.
    assert {("elf-packed", 65536), ("elf-offset", 65536), ("brk-step", 16384)} <= rules
