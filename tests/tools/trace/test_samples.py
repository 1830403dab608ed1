# SPDX-License-Identifier: GPL-2.0-only
"""The samples: small, complete, consistent, and without private paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from virtmm.tools.trace.format import KINDS, TraceReader

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
TRACES = sorted(SAMPLES.glob("*.parquet"))


def test_there_and_small() -> None:
    assert {"gcc.parquet", "python.parquet"} <= {path.name for path in TRACES}
    assert sum(path.stat().st_size for path in TRACES) < 4 << 20


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.stem)
def test_sample(path: Path, replay: Callable[[Path], Counter[str]]) -> None:
    with TraceReader(path) as reader:
        kinds = Counter(KINDS[row[3]] for rows in reader.batches() for row in rows)
        metadata = reader.metadata
        names = [file.path for file in reader.files]
    assert metadata["losses"] == {"events": 0}
    assert metadata["exit_status"] == 0
    assert metadata["thp"] == "disabled"
    assert metadata["aslr"] is False
    assert metadata["fault_around_bytes"] == metadata["page_size"] == 4096
    # The kernel also counts what exec does for the new program, some pages each time.
    assert 0 <= metadata["minflt"] - kinds["fault"] <= 12 * kinds["exec"]
    assert kinds["exit"] == metadata["processes"] == kinds["fork"] + 1
    problems = replay(path)
    assert problems.pop("fault") == kinds["fault"]
    assert not +problems
    assert not [n for n in names if n.startswith(("/root", "/home", "/tmp"))]  # noqa: S108
    text = (SAMPLES / "README.md").read_text()
    assert f"{kinds['fault']:,}" in text
    assert metadata["command"] in text
