# SPDX-License-Identifier: GPL-2.0-only
"""Programs run: a small one that keeps its data, and the recorded compiler with its own figures."""

from pathlib import Path

import pytest
from virtmm.mm.vm_flags import PROT_READ, PROT_WRITE, VM_FAULT_SIGSEGV
from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import TraceReader

from virtmm.kconfig import resolve

GCC = Path(__file__).resolve().parents[3] / "samples" / "gcc.parquet"
#: What the recording machine counted with 4K pages (samples/README.md).
RECORDED = 17209


@pytest.mark.parametrize("ranges", "yn")
def test_a_program_keeps_its_data(boot, ranges):
    """First touch, fork, copy on write, PROT_NONE and back, unmapping, at both ends of the space."""
    m = boot(f"C_RANGES={ranges}", "PHYS_BACKING=y", "DEBUG_VM=y")
    size, free = m.page_size, m.memory()["anon"]
    areas = [size, m.k.pmd_size * 3 - 2 * size, m.task_size - 4 * size]
    assert m.spawn(1) == 0
    for area in areas:
        assert m.mmap(1, area, 4 * size) == 0
        for i in range(4):
            assert m.load(1, area + i * size) == 0
            assert m.store(1, area + i * size, i + 1) == 0
    assert m.mmap(1, m.task_size, size) == -12
    assert m.touch(1, m.task_size, False) == VM_FAULT_SIGSEGV
    assert m.fork(1, 2) == 0
    for area in areas:
        assert m.store(2, area, 99) == 0
        assert [m.load(1, area + i * size) for i in range(4)] == [1, 2, 3, 4]
        assert [m.load(2, area + i * size) for i in range(4)] == [99, 2, 3, 4]
        assert m.mprotect(1, area, 4 * size, 0) == 0
        assert m.touch(1, area, False) == VM_FAULT_SIGSEGV
        assert m.mprotect(1, area, 4 * size, PROT_READ) == 0
        assert m.load(1, area) == 1
        assert m.touch(1, area, True) == VM_FAULT_SIGSEGV
        assert m.mprotect(1, area, 4 * size, PROT_READ | PROT_WRITE) == 0
        assert m.store(1, area, 7) == 0
    m.exit(2)
    for area in areas:
        assert m.load(1, area + size) == 2
        assert m.munmap(1, area, 4 * size) == 0
    m.exit(1)
    assert (m.memory()["anon"], m.memory()["page_tables"]) == (free, 0)


def test_the_compiler_runs(platform, kernel):
    """Faults go down with the page size, a little slower; memory goes up a little."""
    arch, geometry = platform
    with TraceReader(GCC) as reader:
        result = replay(reader, resolve(arch, kernel), kernel)
    assert (result["segv"], result["refused_calls"], result["oom"]) == (0, 0, None)
    pages = 1 << geometry.page_shift - 12
    assert 0.99 * RECORDED / pages < result["minflt"] < RECORDED * (1 / pages + 0.05)
    memory = result["memory"]
    assert 80e6 < memory["peak"] - memory["peak_page_tables"] < 95e6
    assert memory["page_tables"] == memory["anon"] == 0
    assert len(geometry.levels) < memory["max_page_tables"] >> geometry.page_shift < 400
    assert result["instructions"]["total"] > 4000 * result["minflt"]
    assert result["cost_table"]
