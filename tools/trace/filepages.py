# SPDX-License-Identifier: GPL-2.0-only
"""
Make a program's every first touch of a file page a fault, without changing anything for others.

The kernel maps cached pages around a faulting file page ("fault-around"), and those cause no fault
when they are touched. It does not do so in a mapping that is registered with userfaultfd for write
protection; asynchronous write protection (Linux 6.7) may be asked for any kind of mapping, and as long
as no page is ever protected it has no other effect.

A userfaultfd belongs to the address space of the process that opens it. So a helper process traces the
program and its descendants with ptrace. When one gets a new address space (exec, fork) the helper
lets it call userfaultfd(), takes the descriptor over and closes it there; with it, it registers the
file mappings from outside. A seccomp filter stops the program for new ones: at mmap() of a file and
at nothing else.

This works on x86-64. Shared read-only mappings cannot be registered; faults there stay as they are.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import signal
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from virtmm.tools.trace.schema import TraceError

# linux/ptrace.h
_CONT, _GETREGS, _SETREGS, _SYSCALL = 7, 12, 13, 24
_GETEVENTMSG, _SEIZE, _LISTEN = 0x4201, 0x4206, 0x4208
_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_EXEC = 1, 2, 3, 4
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
# TRACESYSGOOD, the five events above but STOP, EXITKILL: without us, mmap() would fail in them
_OPTIONS = 1 | 0b11110 | 1 << 7 | 1 << 20
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

# x86-64: numbers of system calls, and the place of registers in user_regs_struct
_NR_CLOSE, _NR_USERFAULTFD, _NR_PIDFD_OPEN, _NR_PIDFD_GETFD, _NR_MMAP = 3, 323, 434, 438, 9
_NR_TGKILL, _NR_KCMP = 234, 312
_RSI, _RAX, _RDI, _ORIG_RAX, _RIP = 13, 10, 14, 15, 16
_REGISTERS = struct.Struct("27Q")

# linux/userfaultfd.h
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_API, _UFFD_WP_ASYNC, _MODE_WP = 0xAA, 1 << 15, 2

_MAP_ANONYMOUS = 0x20


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def _filter_code() -> bytes:
    """Return the classic BPF program: mmap() of a file by x86-64 code stops, all else passes."""

    def load(offset: int) -> bytes:
        return struct.pack("<HBBI", 0x20, 0, 0, offset)

    def jump(code: int, value: int, true: int, false: int) -> bytes:
        return struct.pack("<HBBI", code, true, false, value)

    def give(value: int) -> bytes:
        return struct.pack("<HBBI", 0x06, 0, 0, value)

    # struct seccomp_data: number at 0, architecture at 4, low half of the fourth argument at 40
    return b"".join(
        (
            load(4),
            jump(0x15, 0xC000003E, 0, 5),
            load(0),
            jump(0x15, _NR_MMAP, 0, 3),
            load(40),
            jump(0x45, _MAP_ANONYMOUS, 1, 0),
            give(0x7FF00000),  # SECCOMP_RET_TRACE
            give(0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )


def install_filter() -> None:
    """Make this process, and what it becomes, stop for its tracer at mmap() of a file."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = _filter_code()
    program = _Filter(len(code) // 8, code)
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    if libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_SECCOMP)")


class FilePages:
    """
    The helper for one program: ``start`` before the program runs, ``stop`` after its end.

    Descendants that outlive the program are killed by ``stop``. Raises TraceError if the kernel does
    not support it, or the helper failed in between.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._said = -1

    @staticmethod
    def supported() -> bool:
        """Whether this kernel and machine can do it."""
        if platform.machine() != "x86_64":
            return False
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.syscall(_NR_USERFAULTFD, os.O_CLOEXEC)
        if descriptor < 0:
            return False
        try:
            return _enable(descriptor)
        finally:
            os.close(descriptor)

    def start(self, pid: int) -> None:
        """Begin to trace the waiting process."""
        self._said, say = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._said)
            _helper(pid, say)
        os.close(say)
        if os.read(self._said, 1) != b"+":
            raise self._failure("it cannot be traced")

    def _failure(self, default: str) -> TraceError:
        text = os.read(self._said, 1000).decode(errors="replace") or default
        return TraceError(f"--every-file-page failed ({text}); record without it")

    def stop(self) -> None:
        """End the helper; raises TraceError if it met an error."""
        if not self._pid:
            return
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # and with it whatever it still traces
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        try:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise self._failure("no reason given")
        finally:
            os.close(self._said)


def _enable(descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("3Q", _UFFD_API, _UFFD_WP_ASYNC, 0))
    except OSError:
        return False
    return True


def _helper(pid: int, say: int) -> NoReturn:
    """Be the helper process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        tracer = _Tracer()
        tracer.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        tracer.seize(pid)
        os.write(say, b"+")
        tracer.run()
        status = 0
    except Exception as error:
        os.write(say, str(error).encode())
    finally:
        os._exit(status)


class _Tracer:
    """Follows the program's threads from stop to stop."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self.libc.ptrace.restype = ctypes.c_long
        self._registers = ctypes.create_string_buffer(_REGISTERS.size)
        self._handles: dict[int, int] = {}  # pid -> userfaultfd of its address space
        self._borrowers: set[int] = set()  # vfork children: their memory is another's
        self._known: set[int] = set()  # threads that have had their first stop
        # A child's first stop and the news of it come in either order.
        self._announced: dict[int, bool] = {}  # child -> whether it has memory of its own
        self._early: set[int] = set()  # stopped, not announced yet
        self._executing: set[int] = set()  # between the new address space and the end of execve()
        self._mapping: set[int] = set()  # threads between entry to and exit from mmap()

    def call(self, request: int, pid: int, address: int = 0, data: int = 0) -> None:
        """Make a ptrace() call."""
        if self.libc.ptrace(request, pid, address, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")

    def read(self, tid: int) -> list[int]:
        """Return the registers of a stopped thread."""
        self.call(_GETREGS, tid, 0, ctypes.addressof(self._registers))
        return list(_REGISTERS.unpack(self._registers.raw))

    def write(self, tid: int, registers: list[int]) -> None:
        """Set the registers of a stopped thread."""
        ctypes.memmove(self._registers, _REGISTERS.pack(*registers), _REGISTERS.size)
        self.call(_SETREGS, tid, 0, ctypes.addressof(self._registers))

    def seize(self, pid: int) -> None:
        """Begin with a process, which goes on running."""
        self.call(_SEIZE, pid, 0, _OPTIONS)
        self._known.add(pid)

    def run(self) -> None:
        """Serve stops until no thread is left."""
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                return
            if not os.WIFSTOPPED(status):
                self._forget(tid)
                continue
            with suppress(ProcessLookupError):  # killed meanwhile
                self._stopped(tid, os.WSTOPSIG(status), status >> 16)

    def _forget(self, tid: int) -> None:
        self._drop(tid)
        self._announced.pop(tid, None)
        for tids in (
            self._known,
            self._early,
            self._borrowers,
            self._executing,
            self._mapping,
        ):
            tids.discard(tid)

    def _drop(self, pid: int) -> None:
        handle = self._handles.pop(pid, None)
        if handle is not None:
            os.close(handle)

    def _stopped(self, tid: int, number: int, event: int) -> None:
        resume, deliver = _CONT, 0
        if event == _EVENT_EXEC:
            self._mapping.discard(tid)
            self._borrowers.discard(tid)
            # Still in execve(); the next stop is its end, where a call can be slipped in.
            self._executing.add(tid)
            resume = _SYSCALL
        elif event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE):
            self._forked(tid, event)
        elif event == _EVENT_SECCOMP:
            self._mapping.add(tid)
            resume = _SYSCALL
        elif event == _EVENT_STOP:
            if tid not in self._known:
                self._early.add(tid)
                self._first_stop(tid)
                return
            if number in _STOPS:
                resume = _LISTEN
        elif number == _SYSCALL_STOP:
            if tid in self._executing:
                self._executing.discard(tid)
                self._adopt(tid)
            elif tid in self._mapping:
                self._mapping.discard(tid)
                self._mapped(tid)
        else:
            deliver = number
        self.call(resume, tid, 0, deliver)

    def _forked(self, tid: int, event: int) -> None:
        """Note what kind of child a thread has."""
        message = ctypes.c_ulong()
        self.call(_GETEVENTMSG, tid, 0, ctypes.addressof(message))
        child = message.value
        thread = event == _EVENT_CLONE and _group(child) != child
        borrows = event == _EVENT_VFORK or _same_memory(self.libc, tid, child)
        if borrows and not thread:
            self._borrowers.add(child)
        self._announced[child] = not borrows
        if child in self._early:
            self._first_stop(child)

    def _first_stop(self, tid: int) -> None:
        """Let a new thread go on once it has both stopped and been announced."""
        if tid not in self._announced:
            return
        self._early.discard(tid)
        self._known.add(tid)
        if self._announced.pop(tid):
            self._adopt(tid)
        self.call(_CONT, tid)

    def _inject(self, tid: int, call: int, first: int, saved: list[int]) -> int:
        """
        Let a thread that is stopped make one system call; return its result.

        The registers are set to a ``syscall`` instruction of the vDSO, where every program has one.
        """
        registers = list(saved)
        registers[_RAX], registers[_RDI], registers[_RIP] = call, first, self._gadget(tid)
        registers[_ORIG_RAX] = 2**64 - 1  # do not restart what was interrupted
        self.write(tid, registers)
        late: list[int] = []
        for _ in range(2):  # to the entry, to the exit
            self.call(_SYSCALL, tid)
            while True:
                _, status = os.waitpid(tid, _WALL)
                if not os.WIFSTOPPED(status):
                    self._forget(tid)
                    raise ProcessLookupError
                if os.WSTOPSIG(status) == _SYSCALL_STOP:
                    break
                if not status >> 16:
                    late.append(os.WSTOPSIG(status))
                self.call(_SYSCALL, tid)
        for number in late:  # signals, for when the registers are the program's own again
            self.libc.syscall(_NR_TGKILL, _group(tid), tid, number)
        result = self.read(tid)[_RAX]
        return result - 2**64 if result >> 63 else result

    def _gadget(self, tid: int) -> int:
        for line in Path(f"/proc/{tid}/maps").read_text().splitlines():
            if line.endswith("[vdso]"):
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                with Path(f"/proc/{tid}/mem").open("rb", buffering=0) as memory:
                    memory.seek(start)
                    at = memory.read(end - start).find(b"\x0f\x05")
                if at >= 0:
                    return start + at
        raise OSError(0, "no vDSO to make a system call from")

    def _adopt(self, tid: int) -> None:
        """Get a userfaultfd for the new address space of this process and register what it has."""
        self._drop(tid)
        saved = self.read(tid)
        remote = self._inject(tid, _NR_USERFAULTFD, os.O_CLOEXEC, saved)
        if remote < 0:
            raise OSError(-remote, f"userfaultfd: {os.strerror(-remote)}")
        pidfd = self.libc.syscall(_NR_PIDFD_OPEN, tid, 0)
        handle = self.libc.syscall(_NR_PIDFD_GETFD, pidfd, remote, 0)
        os.close(pidfd)
        self._inject(tid, _NR_CLOSE, remote, saved)
        self.write(tid, saved)
        if handle < 0 or not _enable(handle):
            raise OSError(0, "no asynchronous write protection; it needs Linux 6.7")
        self._handles[tid] = handle
        for line in Path(f"/proc/{tid}/maps").read_text().splitlines():
            words = line.split(maxsplit=5)
            if words[4] != "0":
                start, end = (int(word, 16) for word in words[0].split("-"))
                _register(handle, start, end - start)

    def _mapped(self, tid: int) -> None:
        """Register a mapping that was just made."""
        registers = self.read(tid)
        start, length = registers[_RAX], registers[_RSI]
        pid = _group(tid)
        if start >> 63 or pid in self._borrowers:
            return
        handle = self._handles.get(pid)
        if handle is not None:
            _register(handle, start, (length + 4095) & ~4095)


def _register(handle: int, start: int, length: int) -> None:
    # Not allowed for shared mappings of files that are open only for reading: left as they are.
    with suppress(OSError):
        fcntl.ioctl(handle, _UFFDIO_REGISTER, struct.pack("4Q", start, length, _MODE_WP, 0))


def _group(tid: int) -> int:
    """Return the process of a thread."""
    for line in Path(f"/proc/{tid}/status").read_text().splitlines():
        if line.startswith("Tgid:"):
            return int(line[5:])
    return tid


def _same_memory(libc: Any, first: int, second: int) -> bool:
    """Whether two processes share their address space (kcmp)."""
    return bool(libc.syscall(_NR_KCMP, first, second, 1, 0, 0) == 0)
