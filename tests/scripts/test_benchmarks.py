# SPDX-License-Identifier: GPL-2.0-only
"""What the script keeps of a run of the benchmarks, and what the document and the stored run consist of."""

import json
import os
import re
import subprocess
import sys

import pytest
from virtmm.scripts import bench_real, benchmarks
from virtmm.scripts.document import section

DOCUMENT = benchmarks.OUTPUT.read_text(encoding="utf-8")
RUN = {
    "machine_info": {
        "node": "host.example",
        "python_version": "3.11.7",
        "cpu": {"arch": "X86_64", "brand_raw": "A CPU", "flags": ["fpu"]},
    },
    "commit_info": {"id": "abc", "branch": "topic"},
    "datetime": "2026-11-25T07:00:00",
    "version": "5",
    "summary": {"paths": {"fork 4K": {"C": "9", "Python": "3"}, "exit 4K": {"ratio": "2"}}},
    "benchmarks": [
        {
            **dict.fromkeys(("group", "name", "fullname", "param"), "x"),
            "params": {"order": 2},
            "options": {"timer": "perf_counter"},
            "extra_info": {"pages_per_second": 123456.789},
            "stats": {"median": 0.00123456, "rounds": 7, "outliers": "1;0", "data": [1.0, 2.0]},
        }
    ],
}


def test_a_stored_run_tells_nothing_of_whose_machine_it_was():
    kept = benchmarks.baseline(RUN)
    assert "host.example" not in json.dumps(kept) and "topic" not in json.dumps(kept)
    assert kept["machine_info"] == {
        "cpu": {"arch": "X86_64", "brand_raw": "A CPU"},
        "python_version": "3.11.7",
    }
    (one,) = kept["benchmarks"]
    assert one["stats"] == {"median": 0.001235, "rounds": 7, "outliers": "1;0"}
    assert one["extra_info"] == {"pages_per_second": 123500.0}
    assert one["params"] == {"order": 2}


def test_a_stored_run_has_a_benchmark_a_line():
    run = RUN | {"benchmarks": RUN["benchmarks"] * 2}
    text = benchmarks.lines(benchmarks.baseline(run))
    assert json.loads(text) == benchmarks.baseline(run)
    assert [line.startswith('{"group"') for line in text.splitlines()] == [False, True, True, False]


def test_the_summary_becomes_tables():
    assert benchmarks.summary(RUN) == (
        "**paths**\n\n|  | C | Python | ratio |\n| --- | --- | --- | --- |\n"
        "| fork 4K | 9 | 3 |  |\n| exit 4K |  |  | 2 |\n"
    )


def test_of_what_machine():
    assert benchmarks.machine(RUN) == "A CPU, Python 3.11.7, 2026-11-25.\n"


def test_a_stored_run_can_be_compared_with(tmp_path):
    """By pytest-benchmark itself: a run, stored as if a thousand times slower, and one beside it."""
    one = "tests/benchmarks/test_buddy.py::test_alloc[C-9]"
    pytest_ = [sys.executable, "-m", "pytest", "-q", one, "--benchmark-only"]
    run, kept = tmp_path / "run.json", tmp_path / "kept.json"
    # A worker of pytest-xdist measures nothing, and neither would what it starts.
    env = {key: value for key, value in os.environ.items() if "XDIST" not in key}

    def start(option):
        done = subprocess.run(
            [*pytest_, option],
            cwd=benchmarks.TOP,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    start(f"--benchmark-json={run}")
    found = json.loads(run.read_text())
    assert "alloc, order 9" in benchmarks.summary(found)
    assert found["benchmarks"][0]["extra_info"]["pages_per_second"] > 0
    for name in ("min", "max", "mean", "median"):
        found["benchmarks"][0]["stats"][name] *= 1000
    kept.write_text(json.dumps(benchmarks.baseline(found)))
    output = start(f"--benchmark-compare={kept}")
    assert "(NOW)" in output
    times = re.search(r"tenth or more -*\n *([\d.]+)  test_buddy.py::test_alloc\[C-9\]", output)
    assert float(times[1]) > 10


def test_the_stored_run_has_c_and_python():
    kept = json.loads(benchmarks.BASELINE.read_text())
    names = {one["fullname"] for one in kept["benchmarks"]}
    for language in ("C", "Python"):
        assert f"tests/benchmarks/test_buddy.py::test_alloc[{language}-0]" in names
        assert f"tests/benchmarks/test_paths.py::test_operation[munmap-64-{language}]" in names


def test_the_document_has_the_tables_that_the_script_writes():
    tables = section(DOCUMENT, "summary", benchmarks.OUTPUT)
    for title in (
        "buddy allocator",
        "zeroing and copying",
        "whole paths",
        "replay",
        "page-table loops",
    ):
        assert f"**{title}" in tables
    assert (
        section(DOCUMENT, "real", benchmarks.OUTPUT)
        .splitlines()[2]
        .startswith(f"| {' | '.join(bench_real.HEADER)} |")
    )


def test_a_run_that_fails_writes_nothing(monkeypatch):
    monkeypatch.setattr(benchmarks.sys, "executable", "false")
    with pytest.raises(SystemExit, match="the run failed; nothing was written"):
        benchmarks.main([])
    assert benchmarks.OUTPUT.read_text(encoding="utf-8") == DOCUMENT
