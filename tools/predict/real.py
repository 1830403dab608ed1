# SPDX-License-Identifier: GPL-2.0-only
"""
Run a command on this machine's own kernel under chosen folio sizes, and read what it counted.

The one place that changes settings of the running kernel: /sys/kernel/mm/transparent_hugepage, as
root, one run at a time, and what was there before is written back however the run ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from virtmm.build_core import compiler_name
from virtmm.kbuild import cache_folder

THP = Path("/sys/kernel/mm/transparent_hugepage")
#: Everybody who sets THP for a measurement on a machine takes this lock.
LOCK = Path("/tmp/with_thp.lock")  # noqa: S108 - the name is the agreement


class RealError(Exception):
    """The machine's kernel cannot be asked."""


@dataclass(frozen=True)
class Measured:
    """
    What the kernel counted for one run of a command and all its children.

    Attributes:
        minflt: minor faults.
        maxrss: bytes, of the largest single process.
        folios: bytes of a folio -> anonymous folios that faults allocated; of the whole machine.
        status: exit status, 128 + signal.
    """

    minflt: int
    maxrss: int
    folios: Mapping[int, int]
    status: int


def sizes() -> dict[int, Path]:
    """Return the folio sizes of this kernel in KiB with their knobs, smallest first."""
    found = {}
    for folder in THP.glob("hugepages-*kB"):
        knob = folder / "enabled"
        if knob.exists() and (folder / "stats" / "anon_fault_alloc").exists():
            found[int(folder.name[10:-2])] = knob
    return dict(sorted(found.items()))


def require(wanted: Sequence[Mapping[int, str]]) -> None:
    """Raise RealError unless this machine can be asked about these sizes (KiB -> state)."""
    if os.geteuid():
        raise RealError("changing the folio sizes of the running kernel needs root; use sudo")
    have = sizes()
    if not have:
        raise RealError(
            f"{THP}: no hugepages-*kB/stats/anon_fault_alloc; this needs Linux 6.10 or newer with "
            "transparent huge pages"
        )
    for kb in {kb for one in wanted for kb in one} - set(have):
        raise RealError(f"this kernel has no {kb}kB folios; it has {', '.join(map(str, have))}")


def chosen(knob: Path) -> str:
    """Return the value in force of a file that lists its values, the chosen one in brackets."""
    text = knob.read_text().strip()
    match = re.search(r"\[(.*)\]", text)
    return match[1] if match else text


@contextmanager
def settings(enabled: Mapping[int, str], thp: str = "madvise") -> Iterator[None]:
    """
    Put folio sizes in force, and restore what was before.

    Args:
        enabled: KiB -> always, madvise or inherit; every size left out is never.
        thp: the top-level setting.

    Raises:
        RealError: a setting cannot be written.
    """
    knobs = sizes()
    with LOCK.open("w") as lock, _terminable():
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {knob: chosen(knob) for knob in (*knobs.values(), THP / "enabled")}
        try:
            try:
                (THP / "enabled").write_text(thp)
                for kb, knob in knobs.items():
                    knob.write_text(enabled.get(kb, "never"))
            except OSError as e:
                raise RealError(f"{e.filename}: cannot write: {e.strerror}") from None
            yield
        finally:
            # A second Ctrl-C must not stop half-way.
            ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
            for knob, value in before.items():
                knob.write_text(value)
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that settings are restored."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def folios() -> dict[int, int]:
    """Return bytes of a folio -> how many faults allocated since boot, for the whole machine."""
    return {
        kb << 10: int((knob.parent / "stats" / "anon_fault_alloc").read_text())
        for kb, knob in sizes().items()
    }


def launcher() -> Path:
    """Return the compiled launch.c, kept in the cache."""
    return compiled(Path(__file__).with_name("launch.c"))


def compiled(source: Path) -> Path:
    """Return a C program of one file compiled, kept in the cache; RealError when it cannot be."""
    text = source.read_bytes()
    target = cache_folder() / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}")
        command = [compiler_name(), "-O2", "-Wall", "-Wextra", "-o", str(part), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise RealError(
                f"no C compiler {command[0]!r}; install gcc and libc6-dev, or set CC"
            ) from None
        if done.returncode:
            said = (done.stderr.strip() or "no output").splitlines()[0]
            raise RealError(f"{source}: does not compile: {said}; install gcc and libc6-dev")
        part.replace(target)
    return target


def run(command: Sequence[str], *, aslr: bool = False) -> Measured:
    """
    Run a command once and return what the kernel counted; its standard output is dropped.

    Raises:
        RealError: there is no such command.
    """
    program = shutil.which(command[0])
    if program is None:
        raise RealError(f"{command[0]}: command not found")
    answers, say = os.pipe()
    before = folios()
    process = subprocess.Popen(
        [str(launcher()), str(int(aslr)), str(say), program, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(say,),
        start_new_session=True,
    )
    os.close(say)
    try:
        with os.fdopen(answers) as stream:
            answer = stream.read()
        process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode or not answer:
        raise RealError(f"{program}: could not be started")
    minflt, maxrss, status = map(int, answer.split())
    after = folios()
    counted = {size: after[size] - n for size, n in before.items() if after[size] != n}
    return Measured(minflt, maxrss << 10, counted, status)
