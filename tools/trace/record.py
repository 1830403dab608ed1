# SPDX-License-Identifier: GPL-2.0-only
"""
Record a program's memory: every mapping call and page fault of all its processes.

A capture attaches to a forked process that waits; when it is ready, that process becomes the
program. So nothing of the recorders or of us is in the trace, the program's output is its own, and its
exit status and fault counts are exact. What is captured goes to a file without a name beside the
trace, and is converted when the program and all it started have ended.

However a recording ends early - Ctrl-C, a full disk, a program that is killed - what was captured
until then becomes a trace that says so (``partial``), or there is none.
"""

from __future__ import annotations

import os
import platform
import resource
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from virtmm.tools.trace import host
from virtmm.tools.trace.access import Accesses
from virtmm.tools.trace.capture import PerfCapture, Source, open_capture
from virtmm.tools.trace.convert import Converter
from virtmm.tools.trace.filepages import FilePages, install_filter
from virtmm.tools.trace.format import KINDS, TraceError, TraceWriter, check_target
from virtmm.tools.trace.paths import Cleaner
from virtmm.tools.trace.program import Program

import virtmm


@dataclass(frozen=True)
class Summary:
    """
    What a recording gave; counts of events by kind, of minor faults as the kernel counted.

    ``partial`` says why the trace is not whole, "" if it is; ``limits`` what the back-end cannot see.
    ``wall`` and ``recorder_cpu`` are seconds: of the recorded run, and of the processor time that
    the recorders took meanwhile.
    """

    path: Path
    exit_status: int
    duration_ns: int
    events: dict[str, int]
    processes: int
    lost: int
    minflt: int
    partial: str
    limits: tuple[str, ...]
    wall: float
    recorder_cpu: float

    @property
    def faults(self) -> int:
        """Fault rows in the trace."""
        return self.events["fault"]


def _name(number: int) -> str:
    """Name a signal; most real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Stopped(BaseException):
    """A signal asks to end the recording."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reason = f"ended by {_name(number)}"


@dataclass
class _Run:
    """How the recorded run went."""

    program: Program
    partial: str
    wall: float


def record(
    command: Sequence[str],
    output: str | os.PathLike[str],
    *,
    allow_lost: bool = False,
    aslr: bool = False,
    every_file_page: bool = False,
    backend: str | None = None,
    wait: float | None = None,
) -> Summary:
    """
    Run a command and write the trace of its memory.

    Args:
        command: program and arguments; its output passes through untouched.
        output: the trace; what is captured first takes space on the same disk, about 100 bytes an
            event, which is given back as it is converted.
        allow_lost: keep a trace of which perf lost events (their number is in the metadata).
        aslr: leave address-space randomisation on.
        every_file_page: make each first touch of a file page a fault. Else cached pages that the
            kernel maps around a fault are not in the trace. Done in the program alone where the
            kernel can (see filepages); what still runs at the end is killed then. Elsewhere
            fault-around is set to one page, system-wide, while recording, and restored. Needs the
            back-end ``perf``.
        backend: ``perf`` (tracepoints, root), ``user`` (software page faults and strace), or None
            for the first of them that works.
        wait: seconds to go on recording processes that outlive the command, None = to their end.

    Returns:
        Summary; a command that failed has its exit status there and a trace all the same. SIGINT,
        SIGTERM and SIGHUP end the recording: while the command runs they are passed on to it, and
        the trace has what was captured.

    Raises:
        TraceError: something is missing, events were lost, the command or the output cannot be used.
        KeyboardInterrupt, SystemExit: a signal before the program ran or while its trace was written;
            the program has been ended and nothing is left behind.
    """
    target = Path(output)
    if not command:
        raise TraceError("no command to record; give one after --")
    check_target(target)
    needs = host.choose(backend)
    if every_file_page and needs.backend != "perf":
        raise TraceError("--every-file-page needs the back-end perf; record as root, or without it")
    try:
        with _signals():
            return _record(command, target, needs, allow_lost, aslr, every_file_page, wait)
    except _Stopped as stop:
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stop.number)


def _record(
    command: Sequence[str],
    target: Path,
    needs: host.Needs,
    allow_lost: bool,
    aslr: bool,
    every_file_page: bool,
    wait: float | None,
) -> Summary:
    page = resource.getpagesize()
    helper = FilePages() if every_file_page and FilePages.supported() else None
    # Without that, the system-wide knob.
    knob = every_file_page and helper is None
    around = host.fault_around(page) if knob else nullcontext()
    try:
        capture = open_capture(needs, target.parent)
    except OSError as error:
        raise TraceError(f"{target}: cannot write: {error.strerror}; choose another -o") from None
    with capture:
        with around:
            run = _run(command, capture, helper, wait, aslr=aslr)
            in_force = page if every_file_page else host.fault_around_now()
        metadata = _metadata(command, run, capture, in_force, aslr=aslr)
        try:
            source = capture.source(run.program.pid)
        except TraceError:
            if run.partial:
                raise _nothing(run) from None
            raise
        try:
            return _convert(source, target, run, metadata, allow_lost=allow_lost)
        finally:
            source.close()


def _run(
    command: Sequence[str],
    capture: PerfCapture,
    helper: FilePages | None,
    wait: float | None,
    *,
    aslr: bool,
) -> _Run:
    """Run the command under capture, to the end of all that came of it or as far as it gets."""
    program = Program(command, aslr=aslr, prepare=install_filter if helper else None)
    partial = ""
    try:
        capture.attach(program.pid)
        if helper:
            helper.start(program.pid)
        start = time.monotonic()
        program.start()
        try:
            running = 0
            if program.wait(capture.pids):
                running = program.wait_for_orphans(wait, capture.pids, _say_waiting)
            else:
                program.end(signal.SIGTERM)
                partial = "the recorder ended before the command"
        except _Stopped as stop:
            partial = stop.reason
            program.end(stop.number)
            running = program.orphans()
        wall = time.monotonic() - start
        wrong = capture.stop()
    finally:
        program.close()
        if helper:
            helper.stop()
    if not partial and program.signal:
        partial = f"the command was ended by {_name(program.signal)}"
    if running:
        partial = partial or f"{running} of the command's processes ran on"
    return _Run(program, wrong or partial, wall)


def _say_waiting(running: int) -> None:
    print(
        f"virtmm: the command has ended, {running} of its processes run on and are recorded; "
        "Ctrl-C ends the recording, not them",
        file=sys.stderr,
    )


@contextmanager
def _signals() -> Iterator[None]:
    """Turn the signals that end us into _Stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, leave) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metadata(
    command: Sequence[str],
    run: _Run,
    capture: PerfCapture,
    fault_around: int | None,
    *,
    aslr: bool,
) -> dict[str, Any]:
    clean = Cleaner()
    program, needs = run.program, capture.needs
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
        "recorder": f"virtmm {virtmm.__version__} ({needs.backend})",
        "backend": needs.backend,
        "limits": list(needs.limits),
        "partial": bool(run.partial),
        "partial_reason": run.partial,
        "minflt": program.minflt,
        "maxrss_kb": program.maxrss_kb,
        "overhead": {
            "wall_ns": round(run.wall * 1e9),
            "program_cpu_ns": round(program.cpu * 1e9),
            "recorder_cpu_ns": round(capture.cpu * 1e9),
        },
    }


def _feed(
    source: Source,
    root: int,
    page_size: int,
    emit: Callable[[tuple[Any, ...]], None],
    *,
    last: bool,
) -> Converter:
    """Convert all that was captured, once."""
    converter = Converter(root, source.events, page_size, emit, Cleaner())
    with _progress(source.size) as progress:
        for item in source.records(progress, release=last):
            converter.feed(item)
    converter.finish()
    return converter


def _nothing(run: _Run) -> TraceError:
    """Say why there is nothing to make a trace of."""
    if run.partial:
        return TraceError(f"{run.partial}; no trace was written")
    return TraceError("perf saw nothing of the command; is perf of this kernel's age?")


def _convert(
    source: Source, target: Path, run: _Run, metadata: dict[str, Any], *, allow_lost: bool
) -> Summary:
    """Turn what was captured into the trace."""
    root, page_size = run.program.pid, metadata["page_size"]
    accesses = None
    if source.passes > 1:
        accesses = Accesses(page_size, fetches_told=True)
        _feed(source, root, page_size, accesses.note, last=False)
    with TraceWriter(target, metadata) as writer:
        emit = writer.append_row
        if accesses is not None:
            settle = accesses.settle
            emit = lambda row: writer.append_row(settle(row))  # noqa: E731
        converter = _feed(source, root, page_size, emit, last=True)
        if not converter.start:
            raise _nothing(run)
        if source.lost and not allow_lost:
            raise TraceError(
                f"perf lost {source.lost} events, no trace was written; record again on a less "
                "busy machine, or keep it as it is with --allow-lost"
            )
        partial = run.partial or ("perf's data was cut short" if source.cut else "")
        writer.metadata |= {
            "losses": {"events": source.lost},
            "duration_ns": converter.end,
            "processes": converter.processes,
            "partial": bool(partial),
            "partial_reason": partial,
        }
    return Summary(
        path=target,
        exit_status=run.program.status or 0,
        duration_ns=converter.end,
        events=dict(zip(KINDS, converter.count, strict=True)),
        processes=converter.processes,
        lost=source.lost,
        minflt=run.program.minflt,
        partial=partial,
        limits=tuple(metadata["limits"]),
        wall=run.wall,
        recorder_cpu=metadata["overhead"]["recorder_cpu_ns"] / 1e9,
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
    """
    Return one line about a recording, for the command line.

    What recording costs is told as far as it can be known from one run: the processor time of the
    recorders, and how many events a second there were. The kernel's share of writing the events is
    in the program's own time.
    """
    kinds = ", ".join(f"{n} {kind}" for kind, n in summary.events.items() if n and kind != "fault")
    difference = summary.minflt - summary.faults
    rate = sum(summary.events.values()) / max(summary.wall, 1e-9)
    parts = [
        f"{summary.path}: {summary.faults} faults of {summary.processes} processes, {kinds}",
        f"{difference:+d} by the kernel's count",
        f"{summary.wall:.1f} s, {rate:.0f} events/s, the recorder took {summary.recorder_cpu:.1f} s "
        "of processor time",
    ]
    if summary.lost:
        parts.append(f"{summary.lost} events lost")
    parts += summary.limits
    if summary.partial:
        parts.append(f"partial: {summary.partial}")
    if summary.exit_status:
        parts.append(f"exit status {summary.exit_status}")
    return "; ".join(parts)
