# SPDX-License-Identifier: GPL-2.0-only
"""
What recording needs of the machine: perf, its tracepoints or an ordinary user's rights, fault-around.

What is known of one architecture only stands here. Everything that changes something is confined:
file systems are mounted in mount namespaces that end with their process, and the one system-wide knob
is held by a guardian process that restores it when its parent is gone, whatever ended that.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtmm.tools.trace.schema import TraceError

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

TRACEFS = Path("/sys/kernel/tracing")
DEBUGFS = Path("/sys/kernel/debug")
FAULT_AROUND = DEBUGFS / "fault_around_bytes"
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
_NEED_STRACE = "strace is not installed; get it with `apt install strace`, or record as root"
_NEED_PERF = "perf is not installed; get it with `apt install linux-perf` (Debian) or the like"


CALLS = ("mmap", "munmap", "mremap", "mprotect", "madvise", "brk")
# Calls that may be missing in a kernel; those that only map are told by MMAP2.
OPTIONAL_MAPPERS = ("shmat", "io_setup", "map_shadow_stack")
OPTIONAL_CALLS = ("pkey_mprotect", "shmdt", *OPTIONAL_MAPPERS)
FAULT_EVENTS = ("exceptions:page_fault_user", "exceptions:page_fault_kernel")
REQUIRED_EVENTS = (
    *FAULT_EVENTS,
    "task:task_newtask",
    "sched:sched_process_exec",
    *(f"syscalls:sys_{way}_{call}" for call in CALLS for way in ("enter", "exit")),
)
OPTIONAL_EVENTS = tuple(
    f"syscalls:sys_{way}_{call}" for call in OPTIONAL_CALLS for way in ("enter", "exit")
)


def _x86_fault(error: int) -> tuple[int, int]:
    """Read the x86 page-fault error code: bit 0 present, 1 write, 4 instruction fetch."""
    return 2 if error & 2 else 4 if error & 16 else 1, error & 1


# Machines whose page-fault tracepoints are known -> what makes (access, present) of their error code.
TRACEPOINT_MACHINES = {"x86_64": _x86_fault}


def libc() -> Any:
    """Return the C library."""
    return ctypes.CDLL(None, use_errno=True)


def ok(result: int, what: str) -> None:
    """Raise OSError if a call of the C library failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount_private(kind: str, place: Path) -> None:
    """Mount a kernel file system where only this process and its children see it."""
    lib = libc()
    ok(lib.unshare(_CLONE_NEWNS), "unshare")
    ok(lib.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    ok(lib.mount(b"none", str(place).encode(), kind.encode(), 0, None), f"mount {kind}")


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


@dataclass(frozen=True)
class Needs:
    """How this machine and user can record: the back-end, its programs, its events, its limits."""

    backend: str
    perf: str
    events: tuple[str, ...]
    strace: str = ""
    limits: tuple[str, ...] = ()


def choose(backend: str | None) -> Needs:
    """
    Check that this machine can record, and how.

    Args:
        backend: ``perf``, ``user``, or None for the first of them that works.

    Raises TraceError saying what is missing and how to get it, in one line.
    """
    if backend == "perf" or (backend is None and not os.geteuid()):
        try:
            return require()
        except TraceError:
            if backend is not None:
                raise
            with suppress(TraceError):
                return require_user()
            raise
    return require_user()


def _perf() -> str:
    """Return perf's path."""
    if platform.system() != "Linux":
        raise TraceError(f"recording needs Linux, this is {platform.system()}")
    perf = shutil.which("perf")
    if perf is None:
        raise TraceError(_NEED_PERF)
    return perf


def require() -> Needs:
    """
    Check that this machine can record with tracepoints.

    Raises TraceError saying what is missing and how to get it.
    """
    perf = _perf()
    if platform.machine() not in TRACEPOINT_MACHINES:
        raise TraceError(
            f"tracepoints of page faults are known of {', '.join(TRACEPOINT_MACHINES)} only, this "
            f"is {platform.machine()}; record with --backend user"
        )
    if os.geteuid():
        raise TraceError("tracepoints need root; run it with sudo, or record with --backend user")
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
            "CONFIG_FTRACE_SYSCALLS, or --backend user"
        )
    return Needs("perf", perf, tuple(found))


def require_user() -> Needs:
    """
    Check that this machine can record without tracepoints: with software page faults and strace.

    Raises TraceError saying what is missing, or which setting is in the way.
    """
    perf = _perf()
    strace = shutil.which("strace")
    if strace is None:
        raise TraceError(_NEED_STRACE)
    paranoid, scope = _setting(PARANOID), _setting(PTRACE_SCOPE)
    root = not os.geteuid()
    if not root and paranoid > 2:
        raise TraceError(
            f"kernel.perf_event_paranoid is {paranoid}, an ordinary user can record with 2 or less; "
            "run `sudo sysctl kernel.perf_event_paranoid=2`, or record as root"
        )
    if scope > 2 or (not root and scope > 1):
        raise TraceError(
            f"kernel.yama.ptrace_scope is {scope}, strace needs 1 or less; "
            "run `sudo sysctl kernel.yama.ptrace_scope=1`"
        )
    limits = ["whether a fault was a read or a write is inferred"]
    if in_kernel := root or paranoid <= 1:
        event = "page-faults"
    else:
        event = "page-faults:u"
        limits.insert(0, "faults inside the kernel are not seen (kernel.perf_event_paranoid is 2)")
    # The second event, of nothing, makes perf number its events.
    other = "dummy" if in_kernel else "dummy:u"
    return Needs("user", perf, (event, other), strace, tuple(limits))


def _setting(path: Path) -> int:
    """Return a number that a sysctl holds, 0 if the kernel does not have it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def traced(pid: int) -> bool:
    """Whether a debugger is attached to a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return "\nTracerPid:\t0\n" not in text


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
