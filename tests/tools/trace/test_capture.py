# SPDX-License-Identifier: GPL-2.0-only
"""What outlives the command, recordings that end early, and who may record."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from virtmm.tools.trace import host, record
from virtmm.tools.trace.format import (
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    TraceError,
    TraceReader,
)

from .live import BACKENDS, able, recorded, rows_of

BUSY = """
import mmap, time
print("up", flush=True)
while True:
    area = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, 1 << 20, 4096):
        area[at] = 1
    area.close()
    time.sleep(0.001)
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_children_that_outlive_the_command(
    temporary: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], backend: str
) -> None:
    program = "(sleep 2; (sleep 0.2; true) & ) & exit 3"
    path = tmp_path / "t.parquet"
    summary = recorded(path, "sh", "-c", program, backend=backend)
    if summary is None:
        return
    assert (summary.exit_status, summary.partial) == (3, "")
    assert summary.events["exit"] == summary.processes >= 4
    assert "the command has ended, 1 of its processes run on" in capfd.readouterr().err
    started = time.monotonic()
    summary = recorded(path, "sh", "-c", "sleep 20 & exit 0", backend=backend, wait=0.1)
    assert summary is not None
    assert time.monotonic() - started < 15
    assert summary.partial == "1 of the command's processes ran on"
    (pid,) = [row[12] for row in rows_of(path) if row[3] == KIND_FORK]
    os.kill(pid, signal.SIGKILL)  # it was left alone


def start(path: Path, *command: str, backend: str = "perf") -> subprocess.Popen[str]:
    """Start the command line on a program that says when it is up."""
    arguments = [sys.executable, "-m", "virtmm", "record", "--backend", backend, "-o", str(path)]
    recorder = subprocess.Popen(
        [*arguments, "--", *(command or (sys.executable, "-I", "-S", "-c", BUSY))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert recorder.stdout is not None
    assert recorder.stdout.readline() == "up\n"
    time.sleep(0.3)
    return recorder


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_recording_and_keeps_it(
    temporary: Path,
    tmp_path: Path,
    replay: Callable[[Path], Counter[str]],
    backend: str,
    number: signal.Signals,
) -> None:
    if not able(backend):
        return
    path = tmp_path / "t.parquet"
    recorder = start(path, backend=backend)
    recorder.send_signal(number)
    said = recorder.communicate(timeout=120)[1]
    assert f"partial: ended by {number.name}" in said
    # Python turns SIGINT into an exception, and ends itself by the same signal
    assert recorder.returncode == 128 + number
    with TraceReader(path) as reader:
        assert reader.metadata["partial"] is True
        assert reader.metadata["partial_reason"] == f"ended by {number.name}"
    problems = replay(path)
    assert problems.pop("fault") > 500
    assert not +problems


def test_a_program_that_ignores_the_signal_is_killed(temporary: Path, tmp_path: Path) -> None:
    if not able("perf"):
        return
    path = tmp_path / "t.parquet"
    recorder = start(path, "sh", "-c", "trap '' INT TERM; echo up; while true; do sleep 0.1; done")
    recorder.send_signal(signal.SIGINT)
    said = recorder.communicate(timeout=120)[1]
    assert "partial: ended by SIGINT" in said
    assert recorder.returncode == 128 + signal.SIGKILL
    assert {row[3] for row in rows_of(path)} >= {KIND_EXEC, KIND_FAULT, KIND_EXIT}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_recorder_leaves_nothing(temporary: Path, tmp_path: Path, backend: str) -> None:
    if not able(backend):
        return
    path = tmp_path / "t.parquet"
    recorder = start(path, "sh", "-c", "echo up; exec sleep 3", backend=backend)
    helpers = [int(pid) for pid in children(recorder.pid) if comm(pid) in ("perf", "strace")]
    assert len(helpers) == 1 + (backend == "user")
    recorder.kill()
    recorder.communicate()
    for pid in helpers:
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["temporary"]


def children(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return text.split()


def comm(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize(
    ("backend", "victim"), [("perf", "perf"), ("user", "perf"), ("user", "strace")]
)
def test_when_perf_or_strace_is_killed_the_rest_is_kept(
    temporary: Path, tmp_path: Path, backend: str, victim: str
) -> None:
    if not able(backend):
        return
    path = tmp_path / "t.parquet"
    recorder = start(path, backend=backend)
    (pid,) = (pid for pid in children(recorder.pid) if comm(pid) == victim)
    os.kill(int(pid), signal.SIGKILL)
    said = recorder.communicate(timeout=120)[1]
    name = "perf record" if victim == "perf" else victim
    if not path.exists():  # what perf had in memory is gone, and that may be all
        assert victim == "perf"
        assert recorder.returncode == 2
        assert f"virtmm: {name} failed (status -9); no trace was written" in said.splitlines()
        return
    assert recorder.returncode == 128 + signal.SIGTERM
    with TraceReader(path) as reader:
        assert reader.metadata["partial_reason"] == f"{name} failed (status -9)"
    assert f"partial: {name} failed (status -9)" in said


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_killed_program_leaves_a_partial_trace(
    temporary: Path, tmp_path: Path, backend: str
) -> None:
    path = tmp_path / "t.parquet"
    summary = recorded(path, "sh", "-c", "kill -9 $$", backend=backend)
    if summary is not None:
        assert summary.exit_status == 137
        assert summary.partial == "the command was ended by SIGKILL"
        assert "partial: the command was ended by SIGKILL" in record.describe(summary)
        summary = recorded(path, "sh", "-c", "kill -40 $$", backend=backend)
        assert summary is not None
        assert summary.partial == "the command was ended by signal 40"


@pytest.mark.parametrize(("size", "status"), [("3m", 2), ("24m", 128 + signal.SIGTERM)])
def test_a_full_disk(temporary: Path, tmp_path: Path, size: str, status: int) -> None:
    """perf cannot go on; what it wrote becomes a trace, if there is room for that at all."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not able("perf"):
        return
    script = (
        f"mount -t tmpfs -o size={size} none {disk} && {sys.executable} -m virtmm record"
        f" -o {disk}/t.parquet -- {sys.executable} -I -S -c '{BUSY}' >/dev/null;"
        f" echo status $?; ls -A {disk}; cp {disk}/t.parquet {tmp_path} 2>/dev/null"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    path = tmp_path / "t.parquet"
    assert "No space left on device" in done.stderr
    if status == 2:
        assert done.stdout.split() == ["status", "2"]
        assert done.stderr.startswith("virtmm: ")
        assert done.stderr.count("\n") == 1
    else:
        assert done.stdout.split() == ["status", str(status), "t.parquet"]
        with TraceReader(path) as reader:
            assert reader.metadata["partial"] is True
            assert "perf record failed (" in reader.metadata["partial_reason"]
            assert reader.num_events > 50_000


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_interrupted_while_converting(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    number = signal.SIGINT if how is KeyboardInterrupt else signal.SIGTERM
    monkeypatch.setattr(
        record.Converter, "finish", lambda _self: os.kill(os.getpid(), number) or time.sleep(5)
    )
    path = tmp_path / "t.parquet"
    if able():
        with pytest.raises(how):
            record.record(["true"], path)
    assert not path.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    "said", ["first\nthis perf is too old", "Error:\nthis perf is too old\nConsider a new one."]
)
def test_perf_that_fails(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    perf = tmp_path / "perf"
    perf.write_text(f"#!/bin/sh\ncat >&2 <<.\n{said}\n.\nexit 3\n")
    perf.chmod(0o755)
    needs = host.Needs("perf", str(perf), ("a:b",))
    monkeypatch.setattr(host, "choose", lambda _backend: needs)
    with pytest.raises(TraceError, match=r"perf record failed \(this perf is too old\)"):
        record.record(["true"], tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_recording_as_an_ordinary_user(temporary: Path, tmp_path: Path) -> None:
    """Really as one, where we are root."""
    if os.geteuid() or not able("user") or int(host.PARANOID.read_text()) > 2:
        return
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        os.chown(folder, 65534, 65534)
        # Python itself may be out of that user's reach: all is imported before.
        script = (
            "import ctypes, os, pyarrow.compute\n"
            "from virtmm.tools.trace.record import record\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after exec\n"
            f"record(['sh', '-c', 'true & wait'], '{folder}/t', wait=9)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        with TraceReader(folder / "t") as reader:
            assert reader.metadata["processes"] == 2
            assert reader.metadata["backend"] == "user"
            assert len(reader.metadata["limits"]) == 2 - (int(host.PARANOID.read_text()) < 2)
    finally:
        shutil.rmtree(folder)
