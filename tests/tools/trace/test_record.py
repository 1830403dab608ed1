# SPDX-License-Identifier: GPL-2.0-only
"""
Recording: real where this machine can, else the line that says what is missing.

No test is skipped for want of perf or root: ``recorded`` checks the refusal instead.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from virtmm.tools.replay.relayout import RangeMap
from virtmm.tools.trace import capture, filepages, host, record
from virtmm.tools.trace.format import (
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    TraceError,
    TraceReader,
)
from virtmm.tools.trace.program import Program

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
MISSING = ("perf is not installed", "strace is not installed", "need root", "tracefs is not mounted",
           "no tracepoint", "needs Linux", "tracepoints of page faults are known of", "perf_event_paranoid",
           "ptrace_scope", "perf record failed", "strace failed", "perf saw nothing")  # fmt: skip
BACKENDS = ("perf", "user")


def able(backend: str | None = None) -> bool:
    try:
        host.choose(backend)
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
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def recorded(path: Path, *command: str, **options: Any) -> record.Summary | None:
    """Record; None if this machine cannot, after a look at how it says so."""
    try:
        return record.record(command or COMMAND, path, **options)
    except TraceError as error:
        if able(options.get("backend")):
            raise
        assert any(words in str(error) for words in MISSING)
        assert "\n" not in str(error)
        assert not path.exists()
        return None


@pytest.mark.parametrize("backend", BACKENDS)
def test_recording(
    temporary: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    replay: Callable[[Path], Counter[str]],
    backend: str,
) -> None:
    path = tmp_path / "t.parquet"
    summary = recorded(path, backend=backend)
    if summary is None:
        return
    assert capfd.readouterr() == ("out\n", "err\n")
    assert summary.exit_status == 5
    assert summary.processes == 3
    assert (summary.events["fork"], summary.events["exec"], summary.events["exit"]) == (2, 2, 3)
    assert abs(summary.minflt - summary.faults) <= (40 if backend == "perf" else 300)
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
    assert metadata["backend"] == backend
    assert metadata["limits"] == list(summary.limits)
    assert bool(summary.limits) is (backend == "user")
    assert (metadata["partial"], metadata["partial_reason"]) == (False, "")
    overhead = metadata["overhead"]
    assert 0 < metadata["duration_ns"] <= overhead["wall_ns"]
    assert overhead["recorder_cpu_ns"] == round(summary.recorder_cpu * 1e9) > 0
    words = record.describe(summary)
    assert "exit status 5" in words
    assert all(limit in words for limit in summary.limits)
    assert "partial" not in words


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
    class Lossy(capture.PerfData):
        def records(self, *args: Any, **options: Any) -> Iterator[Any]:
            yield from super().records(*args, **options)
            self.lost += 5

    monkeypatch.setattr(capture, "PerfData", Lossy)
    path = tmp_path / "t.parquet"
    for backend in BACKENDS:
        if able(backend):
            with pytest.raises(TraceError, match=r"lost 5 events.*--allow-lost"):
                record.record(["true"], path, backend=backend)
            assert not path.exists()
    summary = recorded(path, "true", allow_lost=True)
    if summary is not None:
        assert summary.lost == 5
        assert "5 events lost" in record.describe(summary)
        with TraceReader(path) as reader:
            assert reader.metadata["losses"] == {"events": 5}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_call_ends_in_what_the_kernel_says_is_mapped(
    temporary: Path, tmp_path: Path, replay: Callable[[Path], Counter[str]], backend: str
) -> None:
    """Threads, forks of all kinds, MAP_FIXED, mremap, brk, growing stacks, files, shared memory."""
    program = tmp_path / "calls"
    source = Path(__file__).parent / "data" / "calls.c"
    subprocess.run(["gcc", "-O1", "-w", "-pthread", source, "-o", program], check=True)
    path, maps = tmp_path / "t.parquet", tmp_path / "maps"
    summary = recorded(path, str(program), str(maps), str(tmp_path / "file"), backend=backend)
    if summary is None:
        return
    assert (summary.exit_status, summary.processes) == (0, 6)
    problems = replay(path)
    assert problems.pop("fault") == summary.faults
    assert not +problems
    told = mappings_at_exit(path)
    dumps = {int(dump.name.partition(".")[2]): dump for dump in tmp_path.glob("maps.*")}
    assert len(dumps) == 3
    for pid, dump in dumps.items():
        assert told[pid] == mapped(dump.read_text())


def joined(ranges: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours of one protection as one: the kernel keeps more of them apart than we compare."""
    result: list[tuple[int, int, int]] = []
    for start, end, prot in ranges:
        if result and (result[-1][1], result[-1][2]) == (start, prot):
            result[-1] = (result[-1][0], end, prot)
        else:
            result.append((start, end, prot))
    return result


def mapped(text: str) -> list[tuple[int, int, int]]:
    """What /proc/PID/maps says: (start, end, protection)."""
    found = []
    for words in (line.split() for line in text.splitlines()):
        start, end = (int(word, 16) for word in words[0].split("-"))
        if not start >> 63:
            prot = sum(1 << bit for bit, letter in enumerate("rwx") if letter in words[1])
            found.append((start, end, prot))
    return joined(found)


def mappings_at_exit(path: Path) -> dict[int, list[tuple[int, int, int]]]:
    """What each process of a trace has mapped when it ends."""
    spaces: dict[int, RangeMap[tuple[int, int]]] = {}
    heaps: dict[int, int] = {}
    told = {}
    with TraceReader(path) as reader:
        rows = [row for batch in reader.batches() for row in batch]
    for _, pid, _, kind, addr, length, addr2, len2, prot, flags, _, _, arg in rows:
        if kind == KIND_EXEC:
            spaces[pid], heaps[pid] = RangeMap(), 0
        space, end = spaces[pid], addr + length
        if kind == KIND_MMAP:
            space.set(addr, end, (prot, flags & 0x100))
        elif kind == KIND_MUNMAP:
            space.clear(addr, end)
        elif kind == KIND_MPROTECT:
            for low, high, (_, grows) in space.clear(addr, end):
                space.set(low, high, (prot, grows))
        elif kind == KIND_MREMAP:
            old = space.at(addr)
            assert old is not None
            if not flags & 4:
                space.clear(addr, end)
            space.set(addr2, addr2 + len2, old[2])
        elif kind == KIND_BRK:
            now, before = (end + 4095) & ~4095, heaps[pid] or addr
            space.clear(min(now, before), before)
            space.set(before, now, (3, 0))
            heaps[pid] = now
        elif kind == KIND_FORK:
            spaces[arg] = space if flags & 0x100 else space.copy()
            heaps[arg] = heaps[pid]
        elif kind == KIND_FAULT and space.at(addr) is None:
            above = space.above(addr)
            assert above is not None
            space.set(addr & ~4095, above[0], above[2])
        elif kind == KIND_EXIT:
            told[pid] = joined(
                [(s, *(space.ranges[s][0], space.ranges[s][1][0])) for s in space.starts]
            )
    return told


def test_recording_adds_no_fault(temporary: Path, tmp_path: Path) -> None:
    """The program's own count is the same without a recorder, give or take the luck of the machine."""
    counts: dict[str, set[int]] = {"": set(), "perf": set(), "user": set()}
    for _ in range(3):
        program = Program(["/bin/true"], aslr=False)
        program.start()
        assert program.wait(())
        program.close()
        counts[""].add(program.minflt)
        for backend in BACKENDS:
            path = tmp_path / "t.parquet"
            summary = recorded(path, "/bin/true", backend=backend)
            if summary is None:
                continue
            counts[backend].add(summary.minflt)
            assert (summary.processes, summary.events["fork"]) == (1, 0)
            with TraceReader(path) as reader:
                rows = [row for batch in reader.batches() for row in batch]
            assert len({row[1] for row in rows}) == 1
            if backend == "perf" or not os.geteuid():
                # what exec fills itself is in the kernel's count and no event
                assert 0 <= summary.minflt - summary.faults <= 15
    for backend in BACKENDS:
        if counts[backend]:
            assert min(abs(a - b) for a in counts[backend] for b in counts[""]) <= 1


# What outlives the command, and recordings that end early.


@pytest.mark.parametrize("backend", BACKENDS)
def test_children_that_outlive_the_command(
    temporary: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], backend: str
) -> None:
    program = "(sleep 0.7; (sleep 0.2; true) & ) & exit 3"
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


def rows_of(path: Path) -> list[tuple[int, ...]]:
    with TraceReader(path) as reader:
        return [row for batch in reader.batches() for row in batch]


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


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no command to record"):
        record.record([], tmp_path / "t.parquet")
    for target in (tmp_path, tmp_path / "none" / "t.parquet"):
        with pytest.raises(TraceError, match="cannot write a trace there"):
            record.record(["true"], target)


# What is missing, one line each.


def refusal(backend: str | None) -> str:
    with pytest.raises(TraceError) as caught:
        host.choose(backend)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A Linux machine with all that recording needs, and its superuser."""
    monkeypatch.setattr(host.platform, "system", lambda: "Linux")
    monkeypatch.setattr(host.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(host.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_existing", list)
    monkeypatch.setattr(host, "PARANOID", tmp_path / "paranoid")
    monkeypatch.setattr(host, "PTRACE_SCOPE", tmp_path / "scope")
    return monkeypatch


def test_refusals(linux: pytest.MonkeyPatch) -> None:
    assert host.choose("perf").events == (*host.REQUIRED_EVENTS, *host.OPTIONAL_EVENTS)
    linux.setattr(host.shutil, "which", lambda _name: None)
    for backend in (None, *BACKENDS):
        assert "apt install linux-perf" in refusal(backend)
    linux.setattr(host.shutil, "which", lambda name: name if name == "perf" else None)
    assert "apt install strace" in refusal("user")
    linux.setattr(host.os, "geteuid", lambda: 1000)
    assert "apt install strace" in refusal(None)
    assert "sudo" in refusal("perf")
    linux.setattr(host.os, "geteuid", lambda: 0)
    linux.setattr(host, "_existing", lambda names: list(names[3:]))
    assert "no tracepoint exceptions:page_fault_user (3 missing)" in refusal("perf")
    assert "no tracepoint" in refusal(None)  # and what the other needs is missing too

    def fail(_names: Any) -> list[str]:
        raise OSError(1, "", "mount tracefs")

    linux.setattr(host, "_existing", fail)
    assert "mount tracefs: Operation not permitted" in refusal("perf")
    linux.setattr(host.platform, "machine", lambda: "aarch64")
    assert "known of x86_64 only, this is aarch64; record with --backend user" in refusal("perf")
    linux.setattr(host.platform, "system", lambda: "Plan 9")
    assert "needs Linux" in refusal(None)


def test_choice(linux: pytest.MonkeyPatch) -> None:
    assert host.choose(None).backend == "perf"
    assert host.choose("user").backend == "user"
    linux.setattr(host.platform, "machine", lambda: "aarch64")
    assert host.choose(None).backend == "user"
    linux.setattr(host.platform, "machine", lambda: "x86_64")
    linux.setattr(host.os, "geteuid", lambda: 1000)
    assert host.choose(None).backend == "user"


def test_what_an_ordinary_user_may(linux: pytest.MonkeyPatch) -> None:
    inferred = "whether a fault was a read or a write is inferred"
    host.PARANOID.write_text("3\n")
    assert host.choose("user").events == ("page-faults", "dummy")  # root may all
    assert host.choose("user").limits == (inferred,)
    linux.setattr(host.os, "geteuid", lambda: 1000)
    assert "sysctl kernel.perf_event_paranoid=2" in refusal("user")
    host.PARANOID.write_text("2\n")
    needs = host.choose("user")
    assert needs.events == ("page-faults:u", "dummy:u")
    assert needs.limits[0].startswith("faults inside the kernel are not seen")
    assert needs.limits[1:] == (inferred,)
    host.PARANOID.write_text("1\n")
    assert host.choose("user").limits == (inferred,)
    host.PTRACE_SCOPE.write_text("2\n")
    assert "sysctl kernel.yama.ptrace_scope=1" in refusal("user")


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


def test_every_file_page_needs_tracepoints(tmp_path: Path) -> None:
    if able("user"):
        with pytest.raises(TraceError, match="--every-file-page needs the back-end perf"):
            record.record(["true"], tmp_path / "t", backend="user", every_file_page=True)


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
