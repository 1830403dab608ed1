# SPDX-License-Identifier: GPL-2.0-only
"""
Real recordings, where this machine can; else the line that says what is missing.

No test is skipped for want of perf, strace or root: ``recorded`` checks the refusal instead.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from virtmm.tools.trace import host, record
from virtmm.tools.trace.format import (
    TraceError,
    TraceReader,
)

PROGRAM = """
import mmap, os, sys
size = 300 * 4096
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096):
    area[at] = 1
area.madvise(mmap.MADV_DONTNEED, 0, 4096)
pid = os.fork()
if not pid:
    for at in range(0, size // 3, 4096):
        area[at] = 2
    os._exit(0)
os.waitpid(pid, 0)
os.posix_spawn("/bin/true", ["true"], {})
os.wait()
print("out")
print("err", file=sys.stderr)
sys.exit(5)
"""
COMMAND = (sys.executable, "-I", "-S", "-c", PROGRAM)
MISSING = ("perf is not installed", "strace is not installed", "need root", "tracefs is not mounted",
           "no tracepoint", "needs Linux", "tracepoints of page faults are known of", "perf_event_paranoid",
           "ptrace_scope", "perf record failed", "strace failed", "perf saw nothing")  # fmt: skip
BACKENDS = ("perf", "user")


def able(backend: str | None = None) -> bool:
    try:
        host.choose(backend)
    except TraceError:
        return False
    return True


def recorded(path: Path, *command: str, **options: Any) -> record.Summary | None:
    """Record; None if this machine cannot, after a look at how it says so."""
    try:
        return record.record(command or COMMAND, path, **options)
    except TraceError as error:
        if able(options.get("backend")):
            raise
        assert any(words in str(error) for words in MISSING)
        assert "\n" not in str(error)
        assert not path.exists()
        return None


def rows_of(path: Path) -> list[tuple[int, ...]]:
    with TraceReader(path) as reader:
        return [row for batch in reader.batches() for row in batch]


BUSY = """
import mmap, time
print("up", flush=True)
while True:
    area = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, 1 << 20, 4096):
        area[at] = 1
    area.close()
    time.sleep(0.001)
"""
