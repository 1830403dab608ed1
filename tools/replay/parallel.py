# SPDX-License-Identifier: GPL-2.0-only
"""
Many replays, as many at a time as asked for: each in a process of its own, forked for it.

A process that ends with its replay leaves nobody waiting when this one is killed, gives its memory
back, and tells by its end that the host killed it. Results, their order, and which of several errors
is reported do not depend on how many run at a time.
"""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import TraceReader

from virtmm.kbuild import load_core_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from virtmm.kconfig import ResolvedConfig
    from virtmm.policy import Policy


class WorkerError(Exception):
    """The process of a replay ended without a result."""


@dataclass(frozen=True)
class Run:
    """One replay: arguments as of replay()."""

    trace: Path
    config: ResolvedConfig
    kernel: str
    settings: Sequence[str] = ()
    policy: Policy | None = None

    @property
    def name(self) -> str:
        """What to call it in one line."""
        return f"{self.trace.stem} {self.kernel}"

    def result(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """Replay; progress and errors as of replay()."""
        with TraceReader(self.trace) as reader:
            return replay(
                reader,
                self.config,
                self.kernel,
                self.settings,
                policy=self.policy,
                progress=progress,
            )


def available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def replay_all(
    runs: Sequence[Run], jobs: int, progress: Callable[[str, int], None] = lambda *_: None
) -> list[dict[str, Any]]:
    """
    Return the result of each run, in their order; cores are compiled first.

    Args:
        jobs: how many at a time; 1 = all in this process.
        progress: called now and then with the name of a run and the number of events done in all.

    Raises:
        WorkerError: the system killed a process.
        TraceError and what else replay() raises: of the first run in order that fails, and no process
            is left.
    """
    for run in runs:
        load_core_of(run.config)
    done = [0] * len(runs)

    def moved(i: int, events: int) -> None:
        done[i] = events
        progress(runs[i].name, sum(done))

    if jobs == 1 or len(runs) == 1:
        return [run.result(partial(moved, i)) for i, run in enumerate(runs)]
    return _replay_parallel(runs, jobs, moved)


def _replay_parallel(
    runs: Sequence[Run], jobs: int, moved: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    results: dict[int, dict[str, Any]] = {}
    errors: dict[int, BaseException] = {}
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    following = iter(range(len(runs)))
    try:
        while True:
            while not errors and len(running) < jobs and (i := next(following, None)) is not None:
                _start(i, runs[i], running)
            # The first run in order that fails is the one to hear of: wait for those before it.
            failed = min(errors, default=len(runs))
            if not any(i < failed for i, _ in running.values()):
                break
            ready = wait(list(running))
            for pipe in [p for p in running if p in ready]:
                i, process = running[pipe]
                try:
                    message = pipe.recv()
                except EOFError:
                    process.join()
                    message = WorkerError(_end(runs[i], process.exitcode))
                if isinstance(message, int):
                    moved(i, message)
                    continue
                process.join()
                pipe.close()
                del running[pipe]
                (errors if isinstance(message, BaseException) else results)[i] = message
    finally:
        for pipe, (_, process) in running.items():
            process.kill()
            process.join()
            pipe.close()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(runs))]


def _start(i: int, run: Run, running: dict[Connection, tuple[int, BaseProcess]]) -> None:
    """
    Start a run and note it in ``running``, by the pipe on which it reports.

    Ctrl-C waits until it is noted, and the new process never gets it: who notes it ends it too.
    """
    context = get_context("fork")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        ours, its = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(run, its, [ours, *running]), daemon=True)
        process.start()
        its.close()
        running[ours] = i, process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(run: Run, pipe: Connection, not_its: Sequence[Connection]) -> None:
    """Replay in this process; send events done, again and again, then the result or the error."""
    for other in not_its:  # so that sending fails once the parent is gone
        other.close()
    with suppress(BrokenPipeError):
        try:
            message: dict[str, Any] | Exception = run.result(pipe.send)
        except Exception as e:
            e.add_note(traceback.format_exc())  # where it was is lost on the way
            message = e
        pipe.send(message)


def _end(run: Run, status: int | None) -> str:
    """Return the line about a run whose process ended with an exit status, without a result."""
    if status is not None and status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    else:
        how = f"ended with status {status}"
    return (
        f"{run.trace}: the process that replayed it under {run.kernel} {how}; "
        "if this machine ran out of memory, try --jobs 1"
    )
