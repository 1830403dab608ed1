# SPDX-License-Identifier: GPL-2.0-only
"""Small hand-made traces, and what a kernel makes of them."""

import pytest
from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import TraceReader, TraceWriter

from virtmm.kconfig import resolve


@pytest.fixture
def write_trace(tmp_path):
    """Return a function that writes events, dicts of columns, into a trace file."""

    def write(*events, name="t", **metadata):
        path = tmp_path / f"{name}.parquet"
        head = {"page_size": 4096, "command": "./prog", "fault_around_bytes": 4096}
        with TraceWriter(path, head | metadata) as writer:
            for time, event in enumerate(events):
                writer.append(time=time, **event)
        return path

    return write


@pytest.fixture
def run():
    """Return a function: trace file, named kernel -> result."""

    def run(path, kernel="baseline_4k", sets=(), knobs=(), fragments=(), arch="arm64", **kw):
        with TraceReader(path) as reader:
            config = resolve(arch, kernel, fragments, sets)
            return replay(reader, config, kernel, knobs, **kw)

    return run
