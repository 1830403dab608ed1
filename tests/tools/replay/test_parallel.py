# SPDX-License-Identifier: GPL-2.0-only
"""Replays side by side: what they give, what is said when one fails, and that none is left over."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe

import pytest
from virtmm.tools.commands import replay
from virtmm.tools.replay import parallel
from virtmm.tools.replay.parallel import Run, available_cores, replay_all
from virtmm.tools.trace.format import TraceWriter
from virtmm.tools.trace.schema import TraceError

from virtmm import build_core, kbuild, topdir
from virtmm.kconfig import resolve

A = 0x7F0000000000
SERIES = ("baseline_4k", "anonfolio_basic", "baseline_16k")


def make_trace(path, pages=32, stranger_at=None):
    """Write a trace; at that page (the last, before ``pages``) comes a process that was never started."""
    with TraceWriter(path, {"page_size": 4096, "command": "./prog"}) as writer:
        writer.append(time=0, pid=7, kind="exec")
        writer.append(time=1, pid=7, kind="mmap", addr=A, len=pages * 4096, prot=3, flags=0x22)
        for n in range(pages):
            pid = 8 if n == stranger_at else 7
            writer.append(time=2 + n, pid=pid, kind="fault", addr=A + n * 4096, prot=2)
    return path


@pytest.fixture
def traces(tmp_path):
    return [make_trace(tmp_path / "a.parquet"), make_trace(tmp_path / "b.parquet", 500)]


def runs_of(traces):
    return [Run(t, resolve("arm64", name), name) for t in traces for name in SERIES]


def refused(result, text):
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"virtmm: {text}\n")


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_the_table_does_not_depend_on_the_jobs(virtmm, traces, fmt):
    tables = [
        virtmm("compare", *traces, "--why", "--format", fmt, "--jobs", jobs) for jobs in (1, 2, 5)
    ]
    assert [t.exit_code for t in tables] == [0, 0, 0]
    assert tables[0].stdout == tables[1].stdout == tables[2].stdout


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_results_come_in_order_and_the_progress_is_of_all(traces, jobs):
    runs, seen = runs_of(traces), []
    results = replay_all(runs, jobs, lambda name, done: seen.append((name, done)))
    assert [(r["trace"]["name"], r["kernel"]) for r in results] == [
        (t.stem, name) for t in traces for name in SERIES
    ]
    assert {name for name, _ in seen} == {run.name for run in runs}
    done = [n for _, n in seen]
    assert done == sorted(done)
    assert done[-1] == 3 * (34 + 502)


def test_they_run_in_processes_of_their_own(traces, tmp_path, virtmm):
    policy = tmp_path / "mine.py"
    policy.write_text(
        "import os, pathlib\n"
        f"pathlib.Path({str(tmp_path)!r}, f'pid-{{os.getpid()}}').touch()\n"
        "def thp_get_order(vma, address, tva_type, orders):\n    return 0\n"
    )
    args = ["compare", *traces, "--kernels", "anonfolio_basic", "--policy", policy, "--jobs"]
    for jobs, processes in ((1, 1), (2, 3)):  # this one has tried the file
        assert virtmm(*args, jobs).exit_code == 0
        ran = list(tmp_path.glob("pid-*"))
        assert len(ran) == processes
        for file in ran:
            file.unlink()


def test_cores_are_compiled_once_and_before(traces, tmp_path, monkeypatch):
    compile_core, log = build_core.compile_core, tmp_path / "log"

    def noted(*args):
        with log.open("a") as f:
            f.write(f"{os.getpid()}\n")
        compile_core(*args)

    monkeypatch.setenv("VIRTMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kbuild, "_loaded", {})
    monkeypatch.setattr(build_core, "compile_core", noted)
    config = resolve("arm64", "baseline_4k")
    replay_all([Run(t, config, "k") for t in traces], 2)
    assert log.read_text() == f"{os.getpid()}\n"


def test_as_many_jobs_as_there_are_cores(virtmm, traces, monkeypatch):
    asked = []

    def replays(runs, jobs, *_):
        asked.append(jobs)
        raise TraceError("enough")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7})
    monkeypatch.setattr(replay, "replay_all", replays)
    assert available_cores() == 3
    virtmm("compare", *traces)
    virtmm("compare", *traces, "-j", 8)
    assert asked == [3, 8]


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_error_is_that_of_the_first_run_that_fails(virtmm, tmp_path, jobs):
    """Though the second trace's comes long before it."""
    late = make_trace(tmp_path / "late.parquet", 20000, stranger_at=19999)
    early = make_trace(tmp_path / "early.parquet", 32, stranger_at=0)
    output = tmp_path / "out"
    args = ["--kernels", "baseline_4k", "--jobs", jobs, "-o", output]
    refused(
        virtmm("compare", late, early, *args),
        f"{late}: row 20001: process 8 was never started; record the program from its start",
    )
    assert not output.exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_policy_that_fails_in_a_process_is_one_line(virtmm, traces, tmp_path, jobs):
    policy = tmp_path / "mine.py"
    policy.write_text("def thp_get_order(vma, address, tva_type, orders):\n    return 7\n")
    result = virtmm("compare", *traces, "--policy", policy, "--jobs", jobs)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"virtmm: {traces[0]}: row 2: mine.py: thp_get_order()")
    assert result.stderr.count("\n") == 1


def test_a_process_that_the_system_kills(virtmm, traces, tmp_path):
    policy = tmp_path / "mine.py"
    policy.write_text(
        "import os\n"
        "def thp_get_order(vma, address, tva_type, orders):\n    os.kill(os.getpid(), 9)\n"
    )
    args = ["--kernels", "baseline_4k,anonfolio_basic", "--policy", policy, "--jobs", 2]
    refused(
        virtmm("compare", *traces, *args),
        f"{traces[0]}: the process that replayed it under anonfolio_basic was killed by SIGKILL; "
        "if this machine ran out of memory, try --jobs 1",
    )


def test_a_process_whose_parent_has_gone_says_nothing(traces, capfd):
    ours, its = Pipe(duplex=False)
    parallel._work(runs_of(traces)[0], its, [ours])
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_ends_all_at_once(traces, tmp_path):
    """The terminal sends it to every process of the command."""
    policy = tmp_path / "mine.py"
    policy.write_text(
        "import os, pathlib, time\n"
        "def thp_get_order(vma, address, tva_type, orders):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'pid-{{os.getpid()}}').touch()\n"
        "    time.sleep(3600)\n"
    )
    kernels = ["--kernels", "anonfolio_basic", "--policy", policy, "--jobs", 2]
    command = [sys.executable, "-m", "virtmm", "compare", *traces, *kernels]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=topdir(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 60
        while len(pids := [int(p.name[4:]) for p in tmp_path.glob("pid-*")]) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err == "virtmm: interrupted; no result was written\n"
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
