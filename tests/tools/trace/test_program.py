# SPDX-License-Identifier: GPL-2.0-only
"""The program that is held and started: its end, its orphans' end, and who is none of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from virtmm.tools.trace.program import Program


@contextmanager
def program(*command: str) -> Iterator[Program]:
    held = Program(command, aslr=True)
    try:
        held.start()
        yield held
    finally:
        held.close()


def nobody(_running: int) -> None:
    pytest.fail("nothing was to be waited for")


def test_status_and_figures() -> None:
    with program("sh", "-c", "exit 3") as held:
        assert held.wait(())
        assert (held.status, held.signal) == (3, 0)
        assert held.minflt > 20
        assert held.maxrss_kb > 100
        assert held.wait_for_orphans(None, (), nobody) == 0
    with program("sh", "-c", "kill -TERM $$") as held:
        assert held.wait(())
        assert (held.status, held.signal) == (143, signal.SIGTERM)


def test_orphans_are_waited_for_and_counted() -> None:
    told: list[int] = []
    with program(
        "sh", "-c", "(sleep 2; head -c 9000000 /dev/zero | tail -c 8000000 >/dev/null) &"
    ) as held:
        assert held.wait(())
        before = held.minflt
        assert held.orphans() == 1
        assert held.wait_for_orphans(None, (), told.append) == 0
        assert told == [1]
        assert held.minflt > before + 1000
    with program("sh", "-c", "sleep 30 & echo $! >&2") as held:
        assert held.wait(())
        assert held.wait_for_orphans(0.1, (), nobody) == 1
        assert held.wait_for_orphans(0, (), nobody) == 1
        (pid,) = held._family()[:-1]
        held.end(signal.SIGTERM)  # the command has ended: what outlives it is left alone
        assert held.orphans() == 1
        os.kill(pid, signal.SIGKILL)
        assert held.wait_for_orphans(9, (), nobody) == 0


def test_children_of_ours_are_no_orphans() -> None:
    with subprocess.Popen(["sleep", "30"]) as stranger, program("sleep", "30") as held:
        assert held.orphans() == 0
        held.end(signal.SIGTERM)
        assert (held.status, held.signal) == (143, signal.SIGTERM)
        assert stranger.poll() is None
        stranger.kill()


def test_a_recorder_that_ends_ends_the_wait() -> None:
    with subprocess.Popen(["true"]) as recorder, program("sleep", "30") as held:
        assert not held.wait([recorder.pid])
        held.end(signal.SIGTERM)
        assert held.status == 143
    with subprocess.Popen(["true"]) as recorder, program("sh", "-c", "sleep 30 &") as held:
        assert held.wait(())
        assert held.wait_for_orphans(None, [recorder.pid], nobody) == 1
        os.kill(held._family()[0], signal.SIGKILL)


def test_end_reaches_all_and_does_not_take_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtmm.tools.trace.program.GRACE", 0.3)
    script = "trap '' TERM; (trap '' TERM; sleep 30 & sleep 30) & echo; wait"
    with program("sh", "-c", script) as held:
        deadline = time.monotonic() + 20
        while len(held._family()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        family = held._family()
        assert len(family) == 3
        held.end(signal.SIGTERM)
        assert held.status == 137
    for pid in family:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
