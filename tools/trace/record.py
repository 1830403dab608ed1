# SPDX-License-Identifier: GPL-2.0-only
"""
Record a program's memory with Linux perf: every mapping call and page fault of all its processes.

perf attaches to a forked process that waits; when perf says it is ready, that process becomes the
program. So nothing of perf or of us is in the trace, the program's output is its own, and its exit
status and fault counts are exact. perf's data goes to a temporary folder and is converted when the
program has ended.
"""

from __future__ import annotations

import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from virtmm.tools.trace import host
from virtmm.tools.trace.convert import Converter
from virtmm.tools.trace.filepages import FilePages, install_filter
from virtmm.tools.trace.format import KINDS, TraceError, TraceWriter
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.perfdata import PerfData

import virtmm

_READY_TIMEOUT = 60.0  # seconds for perf to open its events on a large machine


@dataclass(frozen=True)
class Summary:
    """What a recording gave; counts of events by kind, of minor faults as the kernel counted."""

    path: Path
    exit_status: int
    duration_ns: int
    events: dict[str, int]
    processes: int
    lost: int
    minflt: int

    @property
    def faults(self) -> int:
        """Fault rows in the trace."""
        return self.events["fault"]


def record(
    command: Sequence[str],
    output: str | os.PathLike[str],
    *,
    allow_lost: bool = False,
    aslr: bool = False,
    every_file_page: bool = False,
) -> Summary:
    """
    Run a command and write the trace of its memory.

    Args:
        command: program and arguments; its output passes through untouched.
        output: the trace, written only when all went well.
        allow_lost: keep a trace of which perf lost events (their number is in the metadata).
        aslr: leave address-space randomisation on.
        every_file_page: make each first touch of a file page a fault. Else cached pages that the
            kernel maps around a fault are not in the trace. Done in the program alone where the
            kernel can (see filepages); what outlives the command is killed then. Elsewhere
            fault-around is set to one page, system-wide, while recording, and restored.

    Returns:
        Summary; a command that failed has its exit status there and a trace all the same.

    Raises:
        TraceError: something is missing, events were lost, the command or the output cannot be used.
        KeyboardInterrupt: Ctrl-C; the program has been ended and nothing is left behind.
    """
    target = Path(output)
    if not command:
        raise TraceError("no command to record; give one after --")
    if not target.parent.is_dir() or target.is_dir():
        raise TraceError(f"{target}: cannot write a trace there; name a file in an existing folder")
    perf, events = host.require()
    page = resource.getpagesize()
    helper = FilePages() if every_file_page and FilePages.supported() else None
    # Without that, the system-wide knob.
    knob = every_file_page and helper is None
    around = host.fault_around(page) if knob else nullcontext()
    with _terminable(), tempfile.TemporaryDirectory(prefix="virtmm-record-") as folder:
        data = Path(folder, "perf.data")
        with around:
            program = _run(command, perf, events, data, helper, aslr=aslr)
            in_force = page if every_file_page else host.fault_around_now()
        metadata = _metadata(command, program, in_force, aslr=aslr)
        return _convert(data, target, program, metadata, allow_lost=allow_lost)


def _run(
    command: Sequence[str],
    perf: str,
    events: Sequence[str],
    data: Path,
    helper: FilePages | None,
    *,
    aslr: bool,
) -> host.Program:
    """Run the command under perf, to its end."""
    program = host.Program(command, aslr=aslr, prepare=install_filter if helper else None)
    try:
        with Perf(perf, program.pid, events, data) as recorder:
            if helper:
                helper.start(program.pid)
            program.start()
            program.wait()
            recorder.stop()
    finally:
        program.close()
        if helper:
            helper.stop()
    return program


class Perf:
    """
    A running ``perf record`` on one process and what it forks.

    A context manager; entered, perf is ready. Raises TraceError with perf's own last line when it
    does not start or fails.
    """

    def __init__(self, perf: str, pid: int, events: Sequence[str], data: Path) -> None:
        self._log = data.with_name("perf.log")
        orders_read, self._orders = os.pipe()
        self._answers, answers_write = os.pipe()
        # Bursts of faults must fit until perf has had its turn; memory is per processor.
        buffer = "16M" if (os.cpu_count() or 1) <= 32 else "4M"
        arguments = [perf, "record", "-q", "-N", "-B", "--no-bpf-event", "-o", str(data)]
        arguments += ["-m", buffer, "-c", "1", "-d", "-T", "-k", "mono", "-p", str(pid), "-D", "-1"]
        arguments += [f"--control=fd:{orders_read},{answers_write}", "-e", ",".join(events)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(orders_read, answers_write),
                start_new_session=True,  # Ctrl-C is for us to handle
                preexec_fn=_prepare_perf,
            )
        os.close(orders_read)
        os.close(answers_write)

    def _failed(self) -> TraceError:
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        said = [line.strip() for line in lines if line.strip()]
        status = self._process.poll()
        return TraceError(f"perf record failed ({said[-1] if said else f'status {status}'})")

    def __enter__(self) -> Self:
        timer = threading.Timer(_READY_TIMEOUT, self._process.kill)
        timer.start()
        try:
            with suppress(BrokenPipeError):
                os.write(self._orders, b"enable\n")
            if not os.read(self._answers, 16).startswith(b"ack"):
                self._process.wait()
                raise self._failed()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            timer.cancel()
        return self

    def stop(self) -> None:
        """Let perf finish its file."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
        if self._process.wait() not in (0, -signal.SIGINT, 128 + signal.SIGINT):
            raise self._failed()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for descriptor in (self._orders, self._answers):
            with suppress(OSError):
                os.close(descriptor)


def _prepare_perf() -> None:
    """Give perf its tracefs, and precedence over the program whose events it must keep up with."""
    host.mount_tracefs()
    with suppress(OSError):
        os.nice(-10)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metadata(
    command: Sequence[str], program: host.Program, fault_around: int | None, *, aslr: bool
) -> dict[str, Any]:
    clean = Cleaner()
    usage = program.usage
    return {
        "command": shlex.join(clean(word) for word in command),
        "exit_status": program.status,
        "kernel": platform.release(),
        "machine": platform.machine(),
        "page_size": resource.getpagesize(),
        "thp": "disabled",
        "fault_around_bytes": fault_around,
        "every_file_page": fault_around == resource.getpagesize(),
        "aslr": aslr,
        "stack_limit": resource.getrlimit(resource.RLIMIT_STACK)[0],
        "recorder": f"virtmm {virtmm.__version__} (perf)",
        "minflt": usage.ru_minflt - program.minflt_before if usage else 0,
        "maxrss_kb": usage.ru_maxrss if usage else 0,
    }


def _convert(
    data: Path,
    target: Path,
    program: host.Program,
    metadata: dict[str, Any],
    *,
    allow_lost: bool,
) -> Summary:
    """Turn perf's file into the trace."""
    source = PerfData(data)
    try:
        with TraceWriter(target, metadata) as writer, _progress(source.size) as progress:
            converter = Converter(
                program.pid, source.events, metadata["page_size"], writer.append_row, Cleaner()
            )
            for item in source.records(progress):
                converter.feed(item)
            converter.finish()
            if not converter.start:
                raise TraceError("perf saw nothing of the command; is perf of this kernel's age?")
            if source.lost and not allow_lost:
                raise TraceError(
                    f"perf lost {source.lost} events, no trace was written; record again on a less "
                    "busy machine, or keep it as it is with --allow-lost"
                )
            writer.metadata |= {
                "losses": {"events": source.lost},
                "duration_ns": converter.end,
                "processes": len(converter.pids),
            }
    finally:
        source.close()
    return Summary(
        path=target,
        exit_status=program.status or 0,
        duration_ns=converter.end,
        events=dict(zip(KINDS, converter.count, strict=True)),
        processes=len(converter.pids),
        lost=source.lost,
        minflt=metadata["minflt"],
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show how far the conversion is, on a terminal and nowhere else."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done: None
        return
    columns = (TextColumn("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done: progress.update(task, completed=done)


def describe(summary: Summary) -> str:
    """Return one line about a recording, for the command line."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in summary.events.items() if n and kind != "fault")
    difference = summary.minflt - summary.faults
    line = (
        f"{summary.path}: {summary.faults} faults of {summary.processes} processes, {kinds}; "
        f"{difference:+d} by the kernel's count"
    )
    if summary.lost:
        line += f"; {summary.lost} events lost"
    return line + (f"; exit status {summary.exit_status}" if summary.exit_status else "")
