# SPDX-License-Identifier: GPL-2.0-only
"""
Recording: real where this machine can, else the line that says what is missing.

No test is skipped for want of perf or root: ``recorded`` checks the refusal instead.
"""

from __future__ import annotations

import io
import os
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from virtmm.tools.trace import filepages, host, record
from virtmm.tools.trace.format import KIND_FAULT, KIND_MADVISE, KIND_MMAP, TraceError, TraceReader

PROGRAM = """
import mmap, os, sys
size = 300 * 4096
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096):
    area[at] = 1
area.madvise(mmap.MADV_DONTNEED, 0, 4096)
pid = os.fork()
if not pid:
    for at in range(0, size // 3, 4096):
        area[at] = 2
    os._exit(0)
os.waitpid(pid, 0)
os.posix_spawn("/bin/true", ["true"], {})
os.wait()
print("out")
print("err", file=sys.stderr)
sys.exit(5)
"""
COMMAND = (sys.executable, "-I", "-S", "-c", PROGRAM)
MISSING = ("perf is not installed", "needs root", "tracefs is not mounted", "no tracepoint",
           "needs Linux", "perf record failed", "perf saw nothing")  # fmt: skip


def able() -> bool:
    try:
        host.require()
    except TraceError:
        return False
    return True


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; nothing may be left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def recorded(path: Path, *command: str, **options: Any) -> record.Summary | None:
    """Record; None if this machine cannot, after a look at how it says so."""
    try:
        return record.record(command or COMMAND, path, **options)
    except TraceError as error:
        if able():
            raise
        assert any(words in str(error) for words in MISSING)
        assert "\n" not in str(error)
        assert not path.exists()
        return None


def test_recording(
    temporary: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    replay: Callable[[Path], Counter[str]],
) -> None:
    path = tmp_path / "t.parquet"
    summary = recorded(path)
    if summary is None:
        return
    assert capfd.readouterr() == ("out\n", "err\n")
    assert summary.exit_status == 5
    assert summary.processes == 3
    assert (summary.events["fork"], summary.events["exec"], summary.events["exit"]) == (2, 2, 3)
    assert abs(summary.minflt - summary.faults) <= 40
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
    assert "exit status 5" in record.describe(summary)


def test_every_file_page(
    temporary: Path, tmp_path: Path, replay: Callable[[Path], Counter[str]]
) -> None:
    plain, every = tmp_path / "plain.parquet", tmp_path / "every.parquet"
    base = recorded(plain)
    if base is None:
        return
    if not filepages.FilePages.supported():
        # Then the system-wide knob was tried; it may not be ours to turn.
        try:
            record.record(COMMAND, every, every_file_page=True)
        except TraceError as error:
            assert "fault_around_bytes" in str(error)
            return
    else:
        recorded(every, every_file_page=True)
    problems = replay(every)
    assert problems.pop("fault") > base.faults + 100
    assert not +problems
    with TraceReader(every) as reader:
        assert reader.metadata["every_file_page"] is True
        assert reader.metadata["fault_around_bytes"] == reader.page_size
        touched = Counter(
            (row[1], row[4] // 4096)
            for batch in reader.batches()
            for row in batch
            if row[3] == KIND_FAULT and row[8] == 4 and not row[9]
        )
    assert len(touched) > 100


def test_every_file_page_survives_threads_signals_and_forks(
    temporary: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = """
import os, signal, subprocess, threading
hits = []
signal.signal(signal.SIGCHLD, lambda *_: hits.append(1))
def work():
    for _ in range(5):
        subprocess.run(["/bin/sh", "-c", "true & true"], check=True)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for _ in range(5):
    pid = os.fork()
    if not pid:
        os.execv("/bin/true", ["true"])
    os.waitpid(pid, 0)
os.kill(os.getpid(), signal.SIGTERM)
"""
    path = tmp_path / "t.parquet"
    every = filepages.FilePages.supported()
    summary = recorded(path, sys.executable, "-I", "-c", program, every_file_page=every)
    if summary is not None:
        assert summary.exit_status == 128 + signal.SIGTERM
        assert summary.processes >= 1 + 15 + 5
    assert capfd.readouterr() == ("", "")


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
    class Lossy(record.PerfData):
        def records(self, progress: Callable[[int], None]) -> Iterator[Any]:
            yield from super().records(progress)
            self.lost = 5

    monkeypatch.setattr(record, "PerfData", Lossy)
    path = tmp_path / "t.parquet"
    if able():
        with pytest.raises(TraceError, match=r"lost 5 events.*--allow-lost"):
            record.record(["true"], path)
        assert not path.exists()
    summary = recorded(path, "true", allow_lost=True)
    if summary is not None:
        assert summary.lost == 5
        assert "5 events lost" in record.describe(summary)
        with TraceReader(path) as reader:
            assert reader.metadata["losses"] == {"events": 5}


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_interrupted(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: type[BaseException]
) -> None:
    pids = []

    def wait(program: host.Program) -> int:
        pids.append(program.pid)
        if how is SystemExit:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        raise how

    monkeypatch.setattr(host.Program, "wait", wait)
    path = tmp_path / "t.parquet"
    if able():
        with pytest.raises(how):
            record.record(["sleep", "60"], path)
        assert len(pids) == 1
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)
    assert not path.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_perf_that_fails(temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\necho first >&2\necho 'this perf is too old' >&2\nexit 3\n")
    perf.chmod(0o755)
    monkeypatch.setattr(host, "require", lambda: (str(perf), ["a:b"]))
    monkeypatch.setattr(record, "_prepare_perf", lambda: None)
    with pytest.raises(TraceError, match=r"perf record failed \(this perf is too old\)"):
        record.record(["true"], tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no command to record"):
        record.record([], tmp_path / "t.parquet")
    for target in (tmp_path, tmp_path / "none" / "t.parquet"):
        with pytest.raises(TraceError, match="cannot write a trace there"):
            record.record(["true"], target)


# What is missing, one line each.


def refusal() -> str:
    with pytest.raises(TraceError) as caught:
        host.require()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.platform, "system", lambda: "Linux")
    monkeypatch.setattr(host.shutil, "which", lambda _name: None)
    assert "apt install linux-perf" in refusal()
    monkeypatch.setattr(host.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    assert "sudo" in refusal()
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_existing", lambda names: list(names[3:]))
    assert "no tracepoint exceptions:page_fault_user (3 missing)" in refusal()

    def fail(_names: Any) -> list[str]:
        raise OSError(1, "", "mount tracefs")

    monkeypatch.setattr(host, "_existing", fail)
    assert "mount tracefs: Operation not permitted" in refusal()
    monkeypatch.setattr(host.platform, "system", lambda: "Plan 9")
    assert "needs Linux" in refusal()


# Fault-around for the whole system: set, restored however it ends, one at a time.


def test_fault_around(tmp_path: Path) -> None:
    knob = tmp_path / "fault_around_bytes"
    knob.write_text("65536\n")
    with host.fault_around(4096, knob) as before:
        assert before == 65536
        assert knob.read_text() == "4096\n"
        with (
            pytest.raises(TraceError, match="another recording holds it"),
            host.fault_around(1, knob),
        ):
            pass
        assert knob.read_text() == "4096\n"
    assert knob.read_text() == "65536\n"


def test_fault_around_is_restored_after_a_kill(tmp_path: Path) -> None:
    knob = tmp_path / "fault_around_bytes"
    knob.write_text("65536\n")
    pid = os.fork()
    if not pid:
        with host.fault_around(4096, knob):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while knob.read_text() != "65536\n" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert knob.read_text() == "65536\n"


def test_fault_around_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no debugfs"), host.fault_around(1, tmp_path / "none"):
        pass
    assert "lockdown" in host._why_not(1)
    assert host.fault_around_now() in (None, *(4096 << n for n in range(10)))


def test_seccomp_filter_stops_only_file_mappings() -> None:
    """Run the filter in a little interpreter of its five instructions."""
    code = [struct.unpack_from("<HBBI", filepages._filter_code(), at) for at in range(0, 64, 8)]

    def verdict(number: int, arch: int, flags: int) -> int:
        data = {0: number, 4: arch, 40: flags}
        at = value = 0
        while True:
            op, true, false, k = code[at]
            at += 1
            if op == 0x20:
                value = data[k]
            elif op == 0x15:
                at += true if value == k else false
            elif op == 0x45:
                at += true if value & k else false
            else:
                return k

    trace, allow = 0x7FF00000, 0x7FFF0000
    assert verdict(9, 0xC000003E, 2) == trace
    assert verdict(9, 0xC000003E, 0x22) == allow
    assert verdict(10, 0xC000003E, 2) == allow
    assert verdict(9, 0x40000003, 2) == allow


def test_progress_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # rich draws nothing on a dumb terminal
    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=80)
        monkeypatch.setattr(record, "Console", lambda console=console, **_: console)
        with record._progress(100) as progress:
            progress(50)
        assert ("converting" in out.getvalue()) is terminal
