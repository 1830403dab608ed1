# SPDX-License-Identifier: GPL-2.0-only
"""
What recording needs of the machine: tracepoints, fault-around, a program that waits to be started.

Everything that changes something is confined: file systems are mounted in mount namespaces that end
with their process, the program's own settings are made in its process, and the one system-wide knob
is held by a guardian process that restores it when its parent is gone, whatever ended that.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from virtmm.tools.trace.convert import OPTIONAL_EVENTS, REQUIRED_EVENTS
from virtmm.tools.trace.schema import TraceError

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_THP_DISABLE = 41
_ADDR_NO_RANDOMIZE = 0x0040000

TRACEFS = Path("/sys/kernel/tracing")
DEBUGFS = Path("/sys/kernel/debug")
FAULT_AROUND = DEBUGFS / "fault_around_bytes"
_NEED_PERF = "perf is not installed; get it with `apt install linux-perf` (Debian) or the like"


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _ok(result: int, what: str) -> None:
    """Raise OSError if a call of the C library failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount_private(kind: str, place: Path) -> None:
    """Mount a kernel file system where only this process and its children see it."""
    libc = _libc()
    _ok(libc.unshare(_CLONE_NEWNS), "unshare")
    _ok(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    _ok(libc.mount(b"none", str(place).encode(), kind.encode(), 0, None), f"mount {kind}")


def mount_tracefs() -> None:
    """Make tracefs visible to this process, which must be about to become perf."""
    if not (TRACEFS / "events").is_dir():
        mount_private("tracefs", TRACEFS)


def _in_child(task: Callable[[], Any]) -> Any:
    """Run ``task`` in a forked child; return its result, which must be JSON. OSError passes on."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            try:
                answer = {"result": task()}
            except OSError as error:
                answer = {"errno": error.errno, "what": error.filename}
            os.write(write, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    answer = json.loads(text or b'{"errno": 5, "what": "child"}')
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["what"])
    return answer["result"]


def _existing(names: Sequence[str]) -> list[str]:
    mount_tracefs()
    return [n for n in names if (TRACEFS / "events" / n.replace(":", "/")).is_dir()]


def require() -> tuple[str, list[str]]:
    """
    Check that this machine can record.

    Returns perf's path and the tracepoints to record. Raises TraceError saying what is missing and
    how to get it.
    """
    if platform.system() != "Linux":
        raise TraceError(f"recording needs Linux, this is {platform.system()}")
    perf = shutil.which("perf")
    if perf is None:
        raise TraceError(_NEED_PERF)
    if os.geteuid():
        raise TraceError("recording needs root for perf's tracepoints; run it with sudo")
    names = (*REQUIRED_EVENTS, *OPTIONAL_EVENTS)
    try:
        found = _in_child(lambda: _existing(names))
    except OSError as error:
        raise TraceError(
            f"tracefs is not mounted and cannot be ({error.filename}: {error.strerror}); "
            "recording needs CAP_SYS_ADMIN and a kernel with CONFIG_FTRACE"
        ) from None
    missing = [name for name in REQUIRED_EVENTS if name not in found]
    if missing:
        raise TraceError(
            f"this kernel has no tracepoint {missing[0]} ({len(missing)} missing); recording needs "
            "CONFIG_FTRACE_SYSCALLS and an architecture with page-fault tracepoints (x86-64, riscv64)"
        )
    return perf, found


class Program:
    """
    The program to record: forked, set up, and held until ``start``.

    It has transparent huge pages disabled and, unless ``aslr``, no address randomisation; children
    inherit both.

    Raises TraceError: the settings cannot be made, or (``start``) the program cannot be run.
    """

    def __init__(
        self, command: Sequence[str], *, aslr: bool, prepare: Callable[[], None] | None = None
    ) -> None:
        self.command = list(command)
        self.minflt_before = 0
        self.status: int | None = None
        self.usage: resource.struct_rusage | None = None
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
            libc = _libc()
            _ok(libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl(PR_SET_THP_DISABLE)")
            if not aslr:
                _ok(libc.personality(_ADDR_NO_RANDOMIZE), "personality")
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
        with suppress(BrokenPipeError):
            os.write(self._go, b"x")
        with os.fdopen(os.dup(self._said)) as stream:  # ends when exec closes the other side
            text = stream.read()
        before, _, failure = text.partition("!")
        if failure:
            raise TraceError(f"{failure}; nothing was recorded")
        self.minflt_before = int(before or 0)

    def wait(self) -> int:
        """Wait for the end; return the exit status, 128 + signal if one ended it."""
        _, status, self.usage = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.status = code if code >= 0 else 128 - code
        return self.status

    def close(self) -> None:
        """End the program if it still runs."""
        if self.status is None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.status = 137
        for descriptor in (self._go, self._said):
            with suppress(OSError):
                os.close(descriptor)


def _guard(knob: Path, mount: bool, value: int, orders: int, answers: int) -> None:
    """Be the guardian: set the knob, say what it was, wait for the end of ``orders``, restore."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        if mount and not knob.exists():
            mount_private("debugfs", DEBUGFS)
        with knob.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            before = int(stream.read())
            try:
                knob.write_text(f"{value}\n")
                os.write(answers, json.dumps({"before": before}).encode())
                os.close(answers)
                os.read(orders, 1)
            finally:
                knob.write_text(f"{before}\n")
    except OSError as error:
        with suppress(OSError):
            os.write(answers, json.dumps({"errno": error.errno}).encode())


@contextmanager
def fault_around(value: int, knob: Path = FAULT_AROUND) -> Iterator[int]:
    """
    Set how many bytes of a file the kernel maps around a fault, for the whole system, and restore it.

    Yields the value before. Raises TraceError when the kernel does not let us, or another recording
    holds the setting.
    """
    orders_read, orders = os.pipe()
    answers, answers_write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(orders)
        os.close(answers)
        try:
            _guard(knob, knob == FAULT_AROUND, value, orders_read, answers_write)
        finally:
            os._exit(0)
    os.close(orders_read)
    os.close(answers_write)
    try:
        with os.fdopen(answers, "rb") as stream:
            answer = json.loads(stream.read() or b'{"errno": 5}')
        if "errno" in answer:
            raise TraceError(_why_not(answer["errno"]))
        yield int(answer["before"])
    finally:
        os.close(orders)
        os.waitpid(pid, 0)


def _why_not(number: int) -> str:
    """Say why fault-around cannot be set."""
    reason = os.strerror(number)
    if number == 11:
        reason = "another recording holds it; wait for its end"
    elif number == 1:
        reason = "kernel lockdown forbids writing to debugfs; boot without lockdown"
    elif number == 2:
        reason = "the kernel has no debugfs (CONFIG_DEBUG_FS)"
    return f"cannot set fault_around_bytes: {reason}, or record without --every-file-page"


def fault_around_now() -> int | None:
    """Return the number of bytes mapped around a fault, None if the kernel does not tell."""

    def read() -> int:
        if not FAULT_AROUND.exists():
            mount_private("debugfs", DEBUGFS)
        return int(FAULT_AROUND.read_text())

    try:
        return int(_in_child(read))
    except OSError:
        return None
