# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots of /proc/PID: mappings and pages as they were, or a line about what is missing."""

import os
import shutil
import struct
from pathlib import Path

import pytest
from virtmm.tools.replay.replay import replay as run_replay
from virtmm.tools.trace.format import KINDS, TraceError, TraceReader
from virtmm.tools.trace.importers.maps import read_maps
from virtmm.tools.trace.importers.proc import LIMIT_GUESS, LIMIT_MAPS, LIMIT_ZERO

from virtmm.kconfig import resolve

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "4242"
PAGE = 4096


@pytest.fixture
def folder(tmp_path):
    """A copy of the sample without pagemap, to be changed."""
    path = tmp_path / "77"
    path.mkdir()
    shutil.copy(SAMPLE / "smaps", path)
    return path


def test_the_sample_is_a_whole_trace(load, replay):
    trace = load("proc", SAMPLE)
    problems = replay(trace.path)
    problems.pop("fault")
    assert not +problems
    assert {r[1] for r in trace.rows} == {4242}
    assert trace.metadata["command"] == "/opt/demo/demo"
    assert LIMIT_ZERO in trace.metadata["limits"]


def test_pages_are_those_of_smaps(load):
    """Page by page from pagemap, sums by mapping from smaps: two answers of one kernel."""
    faults = load("proc", SAMPLE).of("fault")
    vmas = [v for v in read_maps(SAMPLE / "smaps", PAGE) if not v.name.startswith("[v")]
    for vma in vmas:
        there = [r for r in faults if vma.start <= r[4] < vma.end]
        written = [r for r in there if r[8] & 2]
        # The zero page is in pagemap and in neither sum of smaps.
        assert 0 <= len(there) - vma.rss // PAGE <= 1, vma
        if not vma.shared:
            assert 0 <= len(written) - vma.anonymous // PAGE <= 1, vma


def test_the_replay_holds_what_the_program_held(load):
    trace = load("proc", SAMPLE)
    with TraceReader(trace.path) as reader:
        result = run_replay(reader, resolve("x86", "baseline_4k"), "baseline_4k")
    assert (result["segv"], result["refused_calls"]) == (0, 0)
    vmas = read_maps(SAMPLE / "smaps", PAGE)
    anonymous = sum(v.anonymous if not v.shared else 0 for v in vmas)
    shared = sum(v.rss for v in vmas if v.shared and v.file is None)
    assert anonymous <= result["memory"]["anon"] <= anonymous + shared + 2 * PAGE


def test_pages_of_memory_that_was_closed_later(load):
    """Relocated data is written, then made read-only: mapped writable first, so that it can be."""
    trace = load("proc", SAMPLE)
    protections = trace.of("mprotect")
    assert protections
    for row in protections:
        mapped = next(r for r in trace.of("mmap") if r[4] == row[4])
        assert mapped[8] == row[8] | 2
        assert trace.rows.index(row) > trace.rows.index(trace.of("fault")[-1])


def test_a_pagemap_with_holes(load, tmp_path):
    """The original: the entry of a page lies at its number times eight."""
    vmas = read_maps(SAMPLE / "smaps", PAGE)
    packed = (SAMPLE / "pagemap").read_bytes()
    folder = tmp_path / "4242"
    folder.mkdir()
    shutil.copy(SAMPLE / "smaps", folder)
    at = 0
    with (folder / "pagemap").open("wb") as stream:
        for vma in vmas:
            size = (vma.end - vma.start) // PAGE * 8
            os.pwrite(stream.fileno(), packed[at : at + size], vma.start // PAGE * 8)
            at += size
    first = load("proc", SAMPLE).rows
    assert load("proc", folder).rows == first


def test_this_very_process(load, replay):
    trace = load("proc", "/proc/self")
    assert KINDS[trace.rows[0][3]] == "exec"
    assert trace.count("fault") > 100


def test_swapped_pages_were_touched(load, folder):
    (folder / "smaps").write_text(
        "00400000-00403000 rw-p 00000000 00:00 0 \nRss: 4 kB\nSwap: 4 kB\n"
    )
    (folder / "pagemap").write_bytes(struct.pack("<3Q", 1 << 63, 0, 1 << 62))
    assert [r[4] for r in load("proc", folder).of("fault")] == [0x400000, 0x402000]


def test_smaps_alone_does_not_tell_which_pages(load, folder):
    with pytest.raises(TraceError, match=r"which pages only pagemap tells; .* --guess-pages"):
        load("proc", folder)
    trace = load("proc", folder, guess_pages=True)
    assert LIMIT_GUESS in trace.metadata["limits"]
    vmas = read_maps(folder / "smaps", PAGE)
    assert trace.count("fault") == sum(v.rss + v.swap for v in vmas) // PAGE


def test_smaps_alone_is_enough_where_all_or_nothing_is_there(load, folder):
    (folder / "smaps").write_text(
        "00400000-00402000 rw-p 00000000 00:00 0 \nRss: 8 kB\nAnonymous: 8 kB\n"
        "00500000-00502000 rw-p 00000000 00:00 0 \nRss: 0 kB\n"
    )
    assert [r[4] for r in load("proc", folder).of("fault")] == [0x400000, 0x401000]


def test_maps_alone_has_no_pages(load, folder):
    (folder / "smaps").unlink()
    (folder / "maps").write_text("00400000-00402000 rw-p 00000000 00:00 0 \n")
    trace = load("proc", folder)
    assert (trace.count("mmap"), trace.count("fault")) == (1, 0)
    assert LIMIT_MAPS in trace.metadata["limits"]


def test_several_processes(load, folder):
    trace = load("proc", SAMPLE, SAMPLE)
    assert {r[1] for r in trace.rows} == {4242, 4243}
    assert [r[0] for r in trace.rows] == sorted(r[0] for r in trace.rows)


def test_nothing_there(load, tmp_path):
    with pytest.raises(TraceError, match="neither smaps nor maps in it; name /proc/PID or a copy"):
        load("proc", tmp_path)


def test_a_pagemap_of_another_time(load, folder):
    (folder / "pagemap").write_bytes(bytes(80))
    with pytest.raises(
        TraceError, match="80 bytes are neither the original nor 22968, eight for each"
    ):
        load("proc", folder)


def test_smaps_without_sizes(load, folder):
    (folder / "smaps").write_text("00400000-00402000 rw-p 00000000 00:00 0 \n")
    with pytest.raises(TraceError, match="400000-402000 has no Rss"):
        load("proc", folder)
