# SPDX-License-Identifier: GPL-2.0-only
"""
The program to record: a forked process that waits to become it, and what it leaves behind.

While a program is held, its orphans become children of this process (a "child subreaper"), so that
the end of everything it started can be waited for. A child that another thread starts meanwhile would
be taken for one of them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from virtmm.tools.trace.host import libc, ok
from virtmm.tools.trace.schema import TraceError

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_THP_DISABLE = 41
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(2**64 - 1)
_ADDR_NO_RANDOMIZE = 0x0040000

GRACE = 2.0  # seconds that a program has to end by itself when it is told to
_LOOK = 0.5  # seconds that seeing an end may take
_REAP = 5.0  # seconds between two looks for orphans that have ended, while the command runs


def children() -> dict[int, list[int]]:
    """Return the children of every process that has some."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                # the name, in parentheses, may hold anything
                words = path.joinpath("stat").read_bytes().rpartition(b")")[2].split()
                found.setdefault(int(words[1]), []).append(int(path.name))
    return found


class Program:
    """
    The program to record: forked, set up, and held until ``start``.

    It has transparent huge pages disabled and, unless ``aslr``, no address randomisation; children
    inherit both. ``prepare`` is called in it just before it becomes the program.

    Raises TraceError: the settings cannot be made, or (``start``) the program cannot be run.
    """

    def __init__(
        self, command: Sequence[str], *, aslr: bool, prepare: Callable[[], None] | None = None
    ) -> None:
        self.command = list(command)
        self.status: int | None = None
        self.signal = 0  # what ended the command
        self.minflt = 0
        self.cpu = 0.0  # seconds
        self.maxrss_kb = 0
        self._minflt_before = 0
        self._strangers: frozenset[int] | None = None  # None: not started
        go_read, self._go = os.pipe()
        self._said, say = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._go)
            os.close(self._said)
            self._child(go_read, say, aslr, prepare)
        os.close(go_read)
        os.close(say)

    def _child(self, go: int, say: int, aslr: bool, prepare: Callable[[], None] | None) -> NoReturn:
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            lib = libc()
            ok(lib.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl(PR_SET_THP_DISABLE)")
            if not aslr:
                ok(lib.personality(_ADDR_NO_RANDOMIZE), "personality")
            # strace is not our parent; a kernel without Yama knows no such call and needs none
            lib.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
            # find the program first: what execvp() tries in vain is no business of the trace
            program = shutil.which(self.command[0]) or self.command[0]
            if os.read(go, 1):
                if prepare is not None:
                    prepare()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                os.write(say, f"{before}\n".encode())
                os.execv(program, self.command)  # noqa: S606
        except OSError as error:
            what = error.filename or self.command[0]
            os.write(say, f"!{what}: {error.strerror}".encode())
        finally:
            os._exit(127)

    def start(self) -> None:
        """Let the program run; returns when it has been executed."""
        # Whoever is our child now is no orphan of the program's.
        self._strangers = frozenset(children().get(os.getpid(), ()))
        libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        with suppress(BrokenPipeError):
            os.write(self._go, b"x")
        with os.fdopen(os.dup(self._said)) as stream:  # ends when exec closes the other side
            text = stream.read()
        before, _, failure = text.partition("!")
        if failure:
            raise TraceError(f"{failure}; nothing was recorded")
        self._minflt_before = int(before or 0)

    def wait(self, recorders: Iterable[int]) -> bool:
        """Wait for the end of the command. False: one of the processes that record ended first."""
        mine = os.pidfd_open(self.pid)
        theirs = []
        try:
            theirs = [os.pidfd_open(pid) for pid in recorders]
            poll = select.poll()
            for descriptor in (mine, *theirs):
                poll.register(descriptor, select.POLLIN)
            while not (ready := poll.poll(_REAP * 1000)):
                self.orphans()
            # What traces a program ends with it, and may be seen to have ended a moment before.
            ended = (mine, select.POLLIN) in ready or select.select([mine], [], [], _LOOK)[0]
        finally:
            for descriptor in (mine, *theirs):
                os.close(descriptor)
        if not ended:
            return False
        _, status, usage = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.signal = max(0, -code)
        self.status = code if code >= 0 else 128 - code
        self._account(usage)
        self.minflt -= self._minflt_before
        return True

    def _account(self, usage: resource.struct_rusage) -> None:
        self.minflt += usage.ru_minflt
        self.cpu += usage.ru_utime + usage.ru_stime
        self.maxrss_kb = max(self.maxrss_kb, usage.ru_maxrss)

    def orphans(self) -> int:
        """Return how many processes run whose parents, the command's processes, have ended."""
        running = 0
        for pid in children().get(os.getpid(), ()):
            if pid != self.pid and pid not in (self._strangers or ()):
                done, _, usage = os.wait4(pid, os.WNOHANG)
                running += not done
                if done:
                    self._account(usage)
        return running

    def wait_for_orphans(
        self, seconds: float | None, recorders: Iterable[int], waiting: Callable[[int], None]
    ) -> int:
        """
        Wait until nothing that the command started runs; return how many processes still do.

        At most for so long, None = without end, and no longer than the recorders run. ``waiting`` is
        told their number once, when the wait takes more than a moment.
        """
        start = time.monotonic()
        told = False
        watched = [os.pidfd_open(pid) for pid in recorders]
        try:
            while running := self.orphans():
                passed = time.monotonic() - start
                if seconds is not None and passed >= seconds:
                    break
                if passed > _LOOK and not told:
                    waiting(running)
                    told = True
                if select.select(watched, [], [], 0.02 if passed < _LOOK else _LOOK / 5)[0]:
                    # As above; else there is nothing to wait for.
                    time.sleep(_LOOK / 5)
                    running = self.orphans()
                    break
        finally:
            for descriptor in watched:
                os.close(descriptor)
        return running

    def end(self, number: int) -> None:
        """
        End the command and all that came of it, by a signal, after GRACE seconds by SIGKILL.

        Does nothing when the command has ended: what outlives it is meant to. A process that became
        another user's (sudo) may not be ours to end; the command itself is waited for all the same.
        """
        if self.status is not None:
            return
        self._signal(number)
        start = time.monotonic()
        while self._running() and (passed := time.monotonic() - start) < 2 * GRACE:
            if passed > GRACE:
                self._signal(signal.SIGKILL)
            time.sleep(0.02)
        self.wait(())
        self.orphans()

    def _family(self) -> list[int]:
        """Return the command and what came of it."""
        if self._strangers is None:
            return [self.pid]
        tree = children()
        found = [pid for pid in tree.get(os.getpid(), ()) if pid not in self._strangers]
        if self.pid not in found:
            found.append(self.pid)
        for pid in found:
            found += tree.get(pid, ())
        return found

    def _signal(self, number: int) -> None:
        for pid in self._family():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _running(self) -> bool:
        self.orphans()
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return status is None or len(self._family()) > 1

    def close(self) -> None:
        """End the program if it still runs."""
        if self.status is None:
            with suppress(ChildProcessError):
                self._signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.status = 137
        libc().prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        for descriptor in (self._go, self._said):
            with suppress(OSError):
                os.close(descriptor)
