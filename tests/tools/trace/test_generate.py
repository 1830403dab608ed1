# SPDX-License-Identifier: GPL-2.0-only
"""Generators: the same parameters the same trace, what is in it, and that every kernel replays it."""

import itertools
from collections import Counter

import numpy as np
import pytest
from virtmm.tools.replay.replay import replay as run_replay
from virtmm.tools.trace.format import (
    BATCH_ROWS,
    FAULT_PRESENT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MMAP,
    KINDS,
    TraceError,
    TraceReader,
)
from virtmm.tools.trace.generate import (
    GENERATORS,
    PAGE,
    generate,
    parameters,
    parse_parameters,
    shuffled,
)

from virtmm.kconfig import resolve

SMALL = {
    "strided": ["pages=256", "stride=8", "passes=2", "mappings=4", "processes=2"],
    "sparse": ["pages=1000", "percent=25", "passes=2", "mappings=3", "processes=2"],
    "churn": ["rounds=40", "pages=5", "live=8", "processes=2"],
    "fork-server": ["children=20", "live=3", "pages=64", "written=10", "processes=2"],
    "arenas": ["arenas=3", "kib=1024", "step=132", "passes=2", "processes=2"],
}
# Faults: one of each process's stack, and those of the pattern.
FAULTS = {
    "strided": 2 * (1 + 2 * 256),
    "sparse": 2 * (1 + 2 * 250),
    "churn": 2 * (1 + 40 * 5),
    "fork-server": 2 * (1 + 64 + 20 * 10),
    "arenas": 2 * (1 + 2 * 3 * 3 * 33),
}


def make(path, kind, words=()):
    generate(kind, path, parse_parameters(kind, words))
    return path


def rows(path):
    with TraceReader(path) as reader:
        return list(itertools.chain.from_iterable(reader.batches()))


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_trace_is_consistent_and_has_what_was_asked_for(tmp_path, replay, kind):
    path = make(tmp_path / "t.parquet", kind, SMALL[kind])
    problems = replay(path)
    assert problems.pop("fault") == FAULTS[kind]
    # A forked heap is not told to this naive replay; that the pages are there is.
    assert not +problems
    kinds = Counter(KINDS[row[3]] for row in rows(path))
    assert kinds["exec"] == 2
    assert kinds["exit"] == 2 + kinds["fork"]
    with TraceReader(path) as reader:
        assert reader.metadata["generator"]["kind"] == kind
        assert reader.metadata["generator"]["parameters"] == parse_parameters(kind, SMALL[kind])
        assert reader.num_events == len(rows(path))


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_same_parameters_give_the_same_trace(tmp_path, kind):
    first = make(tmp_path / "a.parquet", kind, SMALL[kind])
    second = make(tmp_path / "b.parquet", kind, SMALL[kind])
    assert rows(first) == rows(second)


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k", "anonfolio_basic", "linux-7.3"])
@pytest.mark.parametrize("kind", GENERATORS)
def test_every_kernel_replays_it(tmp_path, kind, kernel):
    path = make(tmp_path / "t.parquet", kind, SMALL[kind])
    with TraceReader(path) as reader:
        result = run_replay(reader, resolve("arm64", kernel), kernel)
    assert (result["segv"], result["refused_calls"], result["oom"]) == (0, 0, None)
    assert result["memory"]["anon"] == 0
    if kernel == "baseline_4k":
        assert result["minflt"] == FAULTS[kind]
    else:
        assert 0 < result["minflt"] <= FAULTS[kind]


@pytest.mark.parametrize("arch", ["powerpc", "riscv", "x86"])
def test_addresses_are_user_space_everywhere(tmp_path, arch):
    path = make(tmp_path / "t.parquet", "arenas", SMALL["arenas"])
    with TraceReader(path) as reader:
        result = run_replay(reader, resolve(arch, "linux-6.12"), "linux-6.12")
    assert (result["segv"], result["refused_calls"]) == (0, 0)


def test_strided_goes_in_steps(tmp_path):
    path = make(tmp_path / "t.parquet", "strided", ["pages=64", "stride=16"])
    pages = [row[4] // PAGE for row in rows(path) if row[3] == KIND_FAULT][1:]
    assert np.diff(pages[:4]).tolist() == [16, 16, 16]
    assert sorted(pages) == list(range(pages[0], pages[0] + 64))


@pytest.mark.parametrize("count", [1, 2, 3, 100, 4096, 70000])
def test_shuffled_is_a_permutation(count):
    order = np.concatenate(list(shuffled(count, 1)))
    assert sorted(order.tolist()) == list(range(count))
    if count > 99:
        other = np.concatenate(list(shuffled(count, 2)))
        assert (order != other).mean() > 0.9
        # No order is left: neighbours are as far apart as any two are on average.
        assert np.abs(np.diff(order)).mean() == pytest.approx(count / 3, rel=0.2)


def test_sparse_seeds_differ(tmp_path):
    one = make(tmp_path / "a.parquet", "sparse", ["pages=1000", "seed=1"])
    two = make(tmp_path / "b.parquet", "sparse", ["pages=1000", "seed=2"])
    assert [r[4] for r in rows(one)] != [r[4] for r in rows(two)]


def test_children_copy_what_they_write_and_so_many_live_at_a_time(tmp_path):
    path = make(tmp_path / "t.parquet", "fork-server", SMALL["fork-server"][:4])
    most, live = 0, {1}
    for row in rows(path):
        if row[3] == KIND_FORK:
            assert row[12] not in live
            live.add(row[12])
            most = max(most, len(live))
        elif KINDS[row[3]] == "exit":
            live.remove(row[1])
        elif row[3] == KIND_FAULT and row[1] != 1:
            assert row[9] & FAULT_PRESENT
    assert most == 1 + 3


def test_many_mappings_and_processes(tmp_path):
    path = make(tmp_path / "t.parquet", "strided", ["pages=60", "mappings=60", "processes=50"])
    starts = {row[4] for row in rows(path) if row[3] == KIND_MMAP and row[1] == 7}
    assert len(starts) == 61
    order = [row[1] for row in rows(path) if row[3] == KIND_FAULT]
    assert len(set(order)) == 50
    assert order != sorted(order)  # they take turns


def test_a_generation_follows_when_one_has_ended(tmp_path):
    words = ["pages=60", "processes=3"]
    one = rows(make(tmp_path / "a.parquet", "strided", words))
    three = rows(make(tmp_path / "b.parquet", "strided", [*words, "generations=3"]))
    assert [row[1:] for row in three] == 3 * [row[1:] for row in one]
    with TraceReader(tmp_path / "b.parquet") as reader:
        assert reader.metadata["processes"] == 9


def test_only_the_last_batch_is_short(tmp_path):
    path = make(tmp_path / "t.parquet", "strided", ["pages=4096", "passes=20", "processes=2"])
    with TraceReader(path) as reader:
        assert [len(batch) for batch in reader.batches()] == [
            BATCH_ROWS,
            BATCH_ROWS,
            reader.num_events - 2 * BATCH_ROWS,
        ]


def test_it_tells_how_far_it_is(tmp_path):
    seen, words = [], ["pages=65536", "passes=2", "processes=2"]
    events = generate("strided", tmp_path / "t", parse_parameters("strided", words), seen.append)
    assert len(seen) >= 4 and seen == sorted(seen)
    assert seen[0] < 2 * BATCH_ROWS
    assert events - BATCH_ROWS < seen[-1] <= events


@pytest.mark.parametrize("kind", GENERATORS)
def test_batches_stay_small_however_long_the_trace(kind):
    huge = {
        "strided": {"pages": 10**9, "stride": 1},
        "sparse": {"pages": 10**9},
        "churn": {"rounds": 10**9},
        "fork-server": {"children": 10**9},
        "arenas": {"kib": 10**9},
    }[kind]
    first = itertools.islice(GENERATORS[kind](1, **huge), 20)
    assert all(len(batch["kind"]) <= 4 * BATCH_ROWS for batch in first)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("paegs=3", "no parameter 'paegs'; it has: processes, generations, pages"),
        ("pages", "pages=: not a number"),
        ("pages=0", "pages=0: not a number above 0"),
        ("pages=1k", "pages=1k: not a number"),
        ("pages=-1", "pages=-1: not a number"),
        ("mappings=99999", "mappings=99999: more than pages=16384"),
        ("processes=4194305", "processes=4194305: more than Linux has pids; give at most 4194304"),
    ],
)
def test_wrong_parameters(word, says):
    with pytest.raises(TraceError, match=says):
        parse_parameters("strided", [word])


@pytest.mark.parametrize(("kind", "word"), [("sparse", "percent=101"), ("arenas", "used=101")])
def test_more_than_all(kind, word):
    with pytest.raises(TraceError, match="more than all"):
        parse_parameters(kind, [word])


def test_too_much_memory_leaves_no_file(tmp_path):
    with pytest.raises(TraceError, match="need more than 192 GiB"):
        make(tmp_path / "t.parquet", "strided", ["pages=100000000", "mappings=2"])
    assert not list(tmp_path.iterdir())


def test_parameters_have_defaults():
    for kind in GENERATORS:
        assert all(isinstance(v, int) and v > 0 for v in parameters(kind).values())
