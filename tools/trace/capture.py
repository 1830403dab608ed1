# SPDX-License-Identifier: GPL-2.0-only
"""
Two ways to capture what a program does, behind one face: perf's tracepoints, or an ordinary user's.

A capture attaches to a waiting process and follows all that comes of it. What it captures goes to
files without a name, so that nothing is left behind however a recording ends; what is in them can be
read to where they end, so that a recording which was cut short can be kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from virtmm.tools.trace import host, stracelog
from virtmm.tools.trace.perfdata import Event, PerfData, Record
from virtmm.tools.trace.schema import TraceError

_READY_TIMEOUT = 60.0  # seconds for perf to open its events on a large machine
_CHATTER = ("Events enabled", "Events disabled", "[ perf record:")
_RESERVE = 8 << 20  # bytes
_PR_SET_PDEATHSIG = 1


@dataclass
class Recorder:
    """A process that records: perf or strace, its output and its messages."""

    process: subprocess.Popen[bytes]
    name: str
    log: BinaryIO
    cpu: float = 0.0  # seconds, once it has ended

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.process.pid

    def wait(self) -> int:
        """Wait for its end and return its status."""
        if self.process.returncode is None:
            _, status, usage = os.wait4(self.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu = usage.ru_utime + usage.ru_stime
        return self.process.returncode

    def stop(self, number: int = signal.SIGINT) -> None:
        """Tell it to finish its file, and wait."""
        if self.process.returncode is None:
            os.kill(self.pid, number)
            self.wait()

    def failure(self) -> str:
        """Return why it failed: the line below perf's "Error:", or the last that it said."""
        self.log.seek(0)
        said = [line.strip() for line in self.log.read().decode(errors="replace").split("\n")]
        said = [line for line in said if line and not line.startswith(_CHATTER)]
        if "Error:" in said[:-1]:
            said = said[: said.index("Error:") + 2]
        return f"{self.name} failed ({said[-1] if said else f'status {self.wait()}'})"

    def failed(self) -> bool:
        """Whether it ended in another way than it was told to."""
        return self.wait() not in (0, -signal.SIGINT, 128 + signal.SIGINT, -signal.SIGTERM)


class PerfCapture:
    """
    perf's tracepoints: all there is to see. Needs root, and x86-64.

    A context manager; what it started is gone when it ends. Raises TraceError with perf's own last
    line when perf does not start.
    """

    clock = "mono"

    def __init__(self, needs: host.Needs, folder: Path) -> None:
        self.needs = needs
        self.recorders: list[Recorder] = []
        self._data = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        # What the trace takes before the first part of the data is given back, should the disk be
        # full by then.
        self._reserve = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by stop()
        os.posix_fallocate(self._reserve.fileno(), 0, _RESERVE)
        self._pipes: list[int] = []

    @property
    def pids(self) -> list[int]:
        """The processes that record."""
        return [recorder.pid for recorder in self.recorders]

    @property
    def cpu(self) -> float:
        """Seconds of processor time that they took."""
        return sum(recorder.cpu for recorder in self.recorders)

    def attach(self, pid: int) -> None:
        """Begin to record a process; returns when nothing it does can be missed."""
        orders, self_orders = os.pipe()
        self_answers, answers = os.pipe()
        self._pipes = [self_orders, self_answers]
        arguments = [self.needs.perf, "record", "-N", "-B", "--no-bpf-event", "-o", "-"]
        arguments += ["-c", "1", "-d", "-T", "-k", self.clock, "-p", str(pid), "-D", "-1"]
        arguments += [f"--control=fd:{orders},{answers}", "-e", ",".join(self.needs.events)]
        if not os.geteuid():
            # Bursts of faults must fit until perf has had its turn; memory is per processor. Others
            # than root may lock only so much, and perf's own choice is as much as that.
            arguments += ["-m", "16M" if (os.cpu_count() or 1) <= 32 else "4M"]
        try:
            perf = self._start(arguments, "perf record", self._data, (orders, answers))
        finally:
            os.close(orders)
            os.close(answers)
        timer = threading.Timer(_READY_TIMEOUT, perf.process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):
                os.write(self_orders, b"enable\n")
            if not os.read(self_answers, 16).startswith(b"ack"):
                perf.wait()
                raise TraceError(perf.failure())
        finally:
            timer.cancel()

    def _start(
        self, arguments: Sequence[str], name: str, output: BinaryIO, passed: Sequence[int] = ()
    ) -> Recorder:
        # In memory: what is said of a full disk must not go there.
        log = os.fdopen(os.memfd_create(name), "w+b")
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C is for us to handle
            preexec_fn=_prepare,
        )
        recorder = Recorder(process, name, log)
        self.recorders.append(recorder)
        return recorder

    def stop(self) -> str | None:
        """End the recording and return why it is not whole, if it is not."""
        self._reserve.close()
        wrong = None
        for recorder in reversed(self.recorders):
            recorder.stop()
            if recorder.failed() and wrong is None:
                wrong = recorder.failure()
        return wrong

    def source(self, root: int) -> Source:
        """Return what was recorded."""
        return Source(self._data, root)

    def __enter__(self) -> PerfCapture:
        return self

    def __exit__(self, *exc: object) -> None:
        for recorder in self.recorders:
            recorder.stop(signal.SIGKILL)
            recorder.log.close()
        for descriptor in self._pipes:
            os.close(descriptor)
        self._reserve.close()
        self._data.close()


class UserCapture(PerfCapture):
    """
    perf's software event of page faults, and strace for the calls: what an ordinary user may see.

    Both stamp with the wall clock, the one that strace can print.
    """

    clock = "real"

    def __init__(self, needs: host.Needs, folder: Path) -> None:
        super().__init__(needs, folder)
        self._lines = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def attach(self, pid: int) -> None:
        """Begin to record a process; returns when nothing it does can be missed."""
        super().attach(pid)
        arguments = [self.needs.strace, *stracelog.OPTIONS, "-p", str(pid)]
        arguments += ["-o", f"/proc/self/fd/{self._lines.fileno()}"]
        strace = self._start(arguments, "strace", self._lines, (self._lines.fileno(),))
        limit = time.monotonic() + _READY_TIMEOUT
        while not host.traced(pid):
            ended = os.waitid(os.P_PID, strace.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended is not None or time.monotonic() > limit:
                raise TraceError(strace.failure())
            time.sleep(0.01)

    def source(self, root: int) -> Source:
        """Return what was recorded."""
        return UserSource(self._data, self._lines, root)

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self._lines.close()


class Source:
    """What was captured: the events' formats, and the records in time order."""

    passes = 1  # how often the records must be read

    def __init__(self, data: BinaryIO, root: int) -> None:
        self._data = PerfData(data)
        self._root = root
        self.size = self._data.size

    @property
    def events(self) -> dict[str, Event]:
        """Tracepoints by name."""
        return self._data.events

    @property
    def lost(self) -> int:
        """How many events were lost, once all records have been read."""
        return self._data.lost

    @property
    def cut(self) -> bool:
        """Whether the last record is not whole, once all have been read."""
        return self._data.cut

    def records(self, progress: Callable[[int], None], *, release: bool) -> Iterator[Record]:
        """Yield the records in time order. With ``release``, their space is freed meanwhile."""
        return self._data.records(progress, release=release)

    def close(self) -> None:
        """Let go of the data."""
        self._data.close()


class UserSource(Source):
    """Two streams, merged; read twice, because a later fault tells what an earlier one was."""

    passes = 2

    def __init__(self, data: BinaryIO, lines: BinaryIO, root: int) -> None:
        super().__init__(data, root)
        self._lines = lines

    @property
    def events(self) -> dict[str, Event]:
        """Tracepoints by name: the imitated ones."""
        return stracelog.EVENTS

    def records(self, progress: Callable[[int], None], *, release: bool) -> Iterator[Record]:
        """Yield the records in time order. With ``release``, their space is freed meanwhile."""
        self._lines.seek(0)
        lines = (line.decode(errors="replace") for line in self._lines)
        faults = self._data.records(progress, release=release)
        return stracelog.Merged(self._root).records(faults, lines)


def open_capture(needs: host.Needs, folder: Path) -> PerfCapture:
    """Return the capture that this machine and user can have; its files go to a folder's disk."""
    return (PerfCapture if needs.backend == "perf" else UserCapture)(needs, folder)


def _prepare() -> None:
    """
    Set a recording process up: it sees tracefs, ends with us, and comes before the program.

    It must keep up with the program's events.
    """
    host.libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    with suppress(OSError):
        host.mount_tracefs()
    with suppress(OSError):
        os.nice(-10)
