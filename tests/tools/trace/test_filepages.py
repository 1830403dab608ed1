# SPDX-License-Identifier: GPL-2.0-only
"""Each first touch of a file page is a fault: in the program alone, whatever it does."""

from __future__ import annotations

import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from virtmm.tools.trace import filepages, record
from virtmm.tools.trace.format import (
    KIND_FAULT,
    TraceError,
    TraceReader,
)

from .live import COMMAND, able, recorded


def test_every_file_page(
    temporary: Path, tmp_path: Path, replay: Callable[[Path], Counter[str]]
) -> None:
    plain, every = tmp_path / "plain.parquet", tmp_path / "every.parquet"
    base = recorded(plain)
    if base is None:
        return
    if not filepages.FilePages.supported():
        # Then the system-wide knob was tried; it may not be ours to turn.
        try:
            record.record(COMMAND, every, every_file_page=True)
        except TraceError as error:
            assert "fault_around_bytes" in str(error)
            return
    else:
        recorded(every, every_file_page=True)
    problems = replay(every)
    assert problems.pop("fault") > base.faults + 100
    assert not +problems
    with TraceReader(every) as reader:
        assert reader.metadata["every_file_page"] is True
        assert reader.metadata["fault_around_bytes"] == reader.page_size
        touched = Counter(
            (row[1], row[4] // 4096)
            for batch in reader.batches()
            for row in batch
            if row[3] == KIND_FAULT and row[8] == 4 and not row[9]
        )
    assert len(touched) > 100


def test_every_file_page_survives_threads_signals_and_forks(
    temporary: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = """
import os, signal, subprocess, threading
hits = []
signal.signal(signal.SIGCHLD, lambda *_: hits.append(1))
def work():
    for _ in range(5):
        subprocess.run(["/bin/sh", "-c", "true & true"], check=True)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for _ in range(5):
    pid = os.fork()
    if not pid:
        os.execv("/bin/true", ["true"])
    os.waitpid(pid, 0)
os.kill(os.getpid(), signal.SIGTERM)
"""
    path = tmp_path / "t.parquet"
    every = filepages.FilePages.supported()
    summary = recorded(path, sys.executable, "-I", "-c", program, every_file_page=every)
    if summary is not None:
        assert summary.exit_status == 128 + signal.SIGTERM
        assert summary.processes >= 1 + 15 + 5
    assert capfd.readouterr() == ("", "")


def test_every_file_page_needs_tracepoints(tmp_path: Path) -> None:
    if able("user"):
        with pytest.raises(TraceError, match="--every-file-page needs the back-end perf"):
            record.record(["true"], tmp_path / "t", backend="user", every_file_page=True)


def test_seccomp_filter_stops_only_file_mappings() -> None:
    """Run the filter in a little interpreter of its five instructions."""
    code = [struct.unpack_from("<HBBI", filepages._filter_code(), at) for at in range(0, 64, 8)]

    def verdict(number: int, arch: int, flags: int) -> int:
        data = {0: number, 4: arch, 40: flags}
        at = value = 0
        while True:
            op, true, false, k = code[at]
            at += 1
            if op == 0x20:
                value = data[k]
            elif op == 0x15:
                at += true if value == k else false
            elif op == 0x45:
                at += true if value & k else false
            else:
                return k

    trace, allow = 0x7FF00000, 0x7FFF0000
    assert verdict(9, 0xC000003E, 2) == trace
    assert verdict(9, 0xC000003E, 0x22) == allow
    assert verdict(10, 0xC000003E, 2) == allow
    assert verdict(9, 0x40000003, 2) == allow
