# SPDX-License-Identifier: GPL-2.0-only
"""
Memory traces: a real one of lackey, and one in drmemtrace's documented format.

DynamoRIO is not among Debian's packages, so its sample is written by hand: the columns of the view
tool, with markers, a second thread, an instruction over a page's end, a prefetch and a kernel address.
"""

from pathlib import Path

import pytest
from virtmm.tools.trace.format import FAULT_PRESENT, TraceError

DATA = Path(__file__).resolve().parent.parent / "data"
LACKEY, LACKEY_MAPS = DATA / "lackey.txt", DATA / "lackey-maps.txt"
MEMREF, MEMREF_MAPS = DATA / "drmemtrace.txt", DATA / "drmemtrace-maps.txt"
K = 1024
PAGE = 4 * K


def test_lackey(load, replay):
    trace = load("lackey", LACKEY, maps=LACKEY_MAPS)
    problems = replay(trace.path)
    assert problems.pop("fault") == trace.count("fault")
    assert not +problems
    assert trace.metadata["command"] == "/opt/demo/accesses"
    assert any("line numbers" in limit for limit in trace.metadata["limits"])


def test_what_the_program_did_is_what_is_there(load):
    """accesses.c: 64 pages written, 32 others read, 16 of those written after."""
    trace = load("lackey", LACKEY, maps=LACKEY_MAPS)
    block = next(r for r in trace.of("mmap") if r[5] == 1 << 20 and r[4] < 1 << 32)
    inside = [r for r in trace.of("fault") if block[4] <= r[4] < block[4] + block[5]]
    pages = [((r[4] - block[4]) // PAGE, r[8], r[9]) for r in inside]
    assert pages == [
        *((n, 2, 0) for n in range(64)),
        *((100 + n, 1, 0) for n in range(32)),
        *((100 + n, 2, FAULT_PRESENT) for n in range(16)),
    ]


def test_code_is_executed(load):
    trace = load("lackey", LACKEY, maps=LACKEY_MAPS)
    assert [r[4] for r in trace.of("fault") if r[8] == 4] == [0x401000]


def lackey(tmp_path, *lines):
    path = tmp_path / "l.txt"
    path.write_text("==9== Lackey\n" + "".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def maps(tmp_path):
    path = tmp_path / "maps"
    path.write_text("00400000-00404000 rw-p 00000000 00:00 0 \n")
    return path


def test_an_access_over_a_page_end_touches_both(load, tmp_path, maps):
    trace = load("lackey", lackey(tmp_path, " S 00400ffc,8"), maps=maps)
    assert [r[4] for r in trace.of("fault")] == [0x400FFC, 0x401000]


def test_first_touches_only(load, tmp_path, maps):
    lines = (
        " L 00400000,8",
        " L 00400008,8",
        " S 00400010,8",
        " S 00400018,8",
        " M 00401000,4",
        " L 00401000,4",
    )
    trace = load("lackey", lackey(tmp_path, *lines), maps=maps)
    got = [(r[0], r[4], r[8], r[9]) for r in trace.of("fault")]
    assert got == [
        (2, 0x400000, 1, 0),
        (4, 0x400010, 2, FAULT_PRESENT),
        (6, 0x401000, 2, 0),  # a modify asks for the page to write
    ]
    assert {r[1] for r in trace.rows} == {9}


def test_outside_of_the_maps_is_an_error(load, tmp_path, maps):
    path = lackey(tmp_path, " L 00400000,8", " S 00500000,8")
    with pytest.raises(TraceError) as error:
        load("lackey", path, maps=maps)
    assert str(error.value).startswith(
        f"{path}:3: an access to 0x500000, where {maps} maps nothing; "
    )
    assert not list(tmp_path.glob("*.parquet"))


def test_outside_is_counted_on_demand(load, tmp_path, maps):
    lines = " L 00400000,8", " S 00500000,8", " S 00500008,8", " S 00501000,8"
    trace = load("lackey", lackey(tmp_path, *lines), maps=maps, skip_outside=True)
    assert trace.count("fault") == 1
    assert trace.metadata["outside"] == 2
    assert "2 pages were touched outside" in trace.metadata["limits"][-1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("X 00400000,8", "l.txt:2: not a line of lackey: 'X 00400000,8'; make it with valgrind"),
        (" L 0040000g,8", "l.txt:2: not a line of lackey"),
        (" L 00400000", "l.txt:2: not a line of lackey"),
        ("==9== nothing", "l.txt:2: no access in it"),
    ],
)
def test_broken_lackey(load, tmp_path, maps, line, says):
    with pytest.raises(TraceError) as error:
        load("lackey", lackey(tmp_path, line), maps=maps)
    assert says in str(error.value)


def test_maps_are_needed(load):
    with pytest.raises(TraceError, match="addresses only; say what is mapped with --maps"):
        load("lackey", LACKEY)
    with pytest.raises(TraceError, match="one memory trace at a time"):
        load("lackey", LACKEY, LACKEY, maps=LACKEY_MAPS)


def test_drmemtrace(load):
    trace = load("drmemtrace", MEMREF, maps=MEMREF_MAPS)
    got = [(r[1], r[2], r[4], r[8], r[9]) for r in trace.of("fault")]
    assert got == [
        (5001, 5001, 0x401000, 4, 0),
        (5001, 5001, 0x7FFD00000FF8, 2, 0),
        (5001, 5001, 0x402000, 4, 0),  # the end of an instruction that began a page before
        (5001, 5001, 0x404010, 1, 0),
        (5001, 5002, 0x404014, 2, FAULT_PRESENT),
    ]
    assert trace.metadata["command"] == "/opt/demo/threads"


def test_drmemtrace_of_old(load, tmp_path):
    """Before version 5 the columns were fewer and threads had a T."""
    path = tmp_path / "old.txt"
    path.write_text(
        "Output format:\n<record#>: T<tid> <record details>\n-----\n"
        "        1: T5001 <marker: version 4>\n"
        "        2: T5001 ifetch       4 byte(s) @ 0x0000000000401000 48 83 ec 08 sub\n"
        "        3: T5001 read         8 byte(s) @ 0x0000000000404000 by PC 0x0000000000401000\n"
    )
    faults = load("drmemtrace", path, maps=MEMREF_MAPS).of("fault")
    assert [(r[2], r[4], r[8]) for r in faults] == [(5001, 0x401000, 4), (5001, 0x404000, 1)]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("read         4 byte(s) @ 0x", "read 4 bytes at ", ":18: not a line of the view tool"),
        ("0x0000000000404014 by", "0x0000000000604014 by", ":27: an access to 0x604014"),
    ],
)
def test_broken_drmemtrace(load, edited, old, new, says):
    path = edited("drmemtrace.txt", old, new)
    with pytest.raises(TraceError) as error:
        load("drmemtrace", path, maps=MEMREF_MAPS)
    assert says in str(error.value)


def test_no_memref(load, tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("Output format:\nnothing\n")
    with pytest.raises(TraceError, match=r"d.txt:2: no memref in it; make it with drrun"):
        load("drmemtrace", path, maps=MEMREF_MAPS)
