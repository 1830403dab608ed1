# SPDX-License-Identifier: GPL-2.0-only
"""
Who serves what makes no difference: C all it can, Python the faults and C the loops, Python everything.

Each build must leave the same arena, counters and answers: after all scenarios on the kernels that answered
them; after some of them, and after the recorded programs, on every named kernel of every architecture.
Generated programs are in stateful/test_differential.py.
"""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from virtmm.arch import names
from virtmm.mm.debug_vm import validate
from virtmm.tools.replay.replay import Replay
from virtmm.tools.scenario.parse import ScenarioError
from virtmm.tools.scenario.run import INITIAL, question
from virtmm.tools.trace import format as trace_format
from virtmm.tools.trace.format import TraceReader

from virtmm.kconfig import default_arch, defconfigs, resolve
from virtmm.machine import Machine

from .csrc.figures import everything
from .oracle.test_oracle import FILES, KERNELS, answers

BUILDS = ("FAST_FAULT=y", "FAST_FAULT=n", "C_RANGES=n")
SAMPLES = sorted((Path(__file__).resolve().parents[1] / "samples").glob("*.parquet"))
NAMED = [(arch, kernel) for arch in names() for kernel in defconfigs(arch)]


def left_by(path, arch, defconfig, fragments, build):
    """Return the answer of a build to a scenario, and what it leaves."""
    config = resolve(arch, defconfig, fragments, ["PHYS_BACKING=y", build])
    with Machine(config, INITIAL) as machine:
        try:
            answer = question(machine, path)
        except ScenarioError as e:  # a small address space
            answer = str(e)
        return answer, everything(machine)


def differing(paths, *kernel):
    """Return the names of the scenarios after which one of the builds differs."""
    with ProcessPoolExecutor() as pool:
        n = len(paths)
        each = [
            list(pool.map(left_by, paths, *([word] * n for word in (*kernel, build)), chunksize=8))
            for build in BUILDS
        ]
    return [path.stem for path, *left in zip(paths, *each, strict=True) if left != [left[0]] * 3]


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_scenarios(kernel):
    assert differing([FILES[name] for name in answers(kernel)], *KERNELS[kernel]) == []


@pytest.mark.parametrize(("arch", "kernel"), NAMED)
def test_some_scenarios_on_every_kernel(arch, kernel):
    paths = [FILES[name] for name in sorted(FILES)[NAMED.index((arch, kernel)) % 45 :: 45]]
    assert len(paths) >= 6
    assert differing(paths, arch, kernel, ()) == []


@pytest.mark.parametrize(("arch", "kernel"), NAMED)
def test_samples_on_every_kernel(arch, kernel, monkeypatch):
    """Compared on the way too. Both on the default architecture, whose kernels are the most; else one."""
    monkeypatch.setattr(trace_format, "BATCH_ROWS", 9000)
    for sample in SAMPLES if arch == default_arch() else SAMPLES[:1]:
        left = [replayed(sample, resolve(arch, kernel, sets=[build])) for build in BUILDS]
        assert len(left[0]) >= 3
        assert left == [left[0]] * 3


def replayed(sample, config):
    """Return what is there after each batch."""
    found = []
    with TraceReader(sample) as reader, Machine(config) as machine:
        run = Replay(machine, reader)
        run.run(lambda _: found.append(everything(machine)))
        validate(machine.k)
        assert (run.segv, run.refused) == (0, 0)
        assert machine.vmstat()["pgfault"] > 1000
    return found
