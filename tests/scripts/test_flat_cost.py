# SPDX-License-Identifier: GPL-2.0-only
"""The measurement of flat cost: what it counts. What it finds is the machine's business."""

import json

import pytest
from virtmm.scripts import flat_cost
from virtmm.scripts.flat_cost import Cost


def test_every_sweep_is_measured(monkeypatch, capsys):
    """Each line with as many events as it says; all faults, none in Python but what it cannot do alone."""
    monkeypatch.setattr(flat_cost, "EVENTS", (10**4, 2 * 10**4, 10**9))
    monkeypatch.setattr(flat_cost, "MANY", 10**4)
    most = ["--events", "20000", "--processes", "10", "--vmas", "100", "--pages", "2000"]
    assert flat_cost.main(["--json", "--runs", "1", *most]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {name: [c["number"] for c in sweep["costs"]] for name, sweep in found.items()}
    assert counts == {
        "events": [10**4, 2 * 10**4],
        "processes": [1, 10],
        "split": [1, 10],
        "local": [10, 100],
        "random": [10, 100],
        "mmap": [10, 100],
    }
    events = [c["events"] for sweep in found.values() for c in sweep["costs"]]
    assert events[:2] == [passes * 2049 + 4 for passes in (5, 10)]
    assert events[2:6] == [10 * (2 * 2049 + 4)] * 2 + [2 * 20481 + 4, 10 * (2 * 2049 + 4)]
    assert events[6:] == [10 * 199, 100 * 19] * 2 + [2000, 2000]
    assert all(c["nanoseconds"] > 0 for sweep in found.values() for c in sweep["costs"])
    assert found["random"]["limit"] == 2 and found["mmap"]["limit"] is None


def test_the_quickest_run_counts_and_short_lines_run_more_often():
    left = {1: [(10, 4e-8), (10, 3e-8), (10, 5e-8), (10, 9e-8)], 2: [(20, 4e-8), (20, 8e-8)]}
    costs = flat_cost.best("s", 2, {n: (lambda n=n: left[n].pop(0)) for n in left}, 20)
    assert [(c.number, c.events, round(c.nanoseconds, 3)) for c in costs] == [
        (1, 10, 3.0),
        (2, 20, 2.0),
    ]
    assert left == {1: [], 2: []}


def test_the_table_has_ratios_to_the_first_and_between_the_ends():
    costs = [
        Cost("random", 10, 1000, 50.0),
        Cost("random", 50_000, 900, 40.0),
        Cost("mmap", 10, 5, 1),
    ]
    assert flat_cost.render(costs).splitlines()[1:] == [
        "random               10         1,000       50.0    1.00",
        "random           50,000           900       40.0    0.80",
        "           dearest to cheapest 1.25, at most 2.0",
        "mmap                 10             5        1.0    1.00",
        "           dearest to cheapest 1.00",
    ]


def test_what_does_not_fit_is_one_line():
    with pytest.raises(SystemExit, match=r"^mmap of VMA 0x1000000000: error -12$"):
        flat_cost.mappings("baseline_4k", 2, 1 << 38)
