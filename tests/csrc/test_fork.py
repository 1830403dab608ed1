# SPDX-License-Identifier: GPL-2.0-only
"""Fork and mprotect in C: they leave what Python leaves, and Python sees no entry."""

import pytest
import virtmm.mm.fork
import virtmm.mm.mprotect
from virtmm.mm.vm_flags import MADV_HUGEPAGE, PROT_READ, PROT_WRITE

from virtmm.kconfig import resolve
from virtmm.machine import Machine

BASE = 1 << 36
PAGES = 1500
KERNELS = [
    ("arm64", "anonfolio_basic", []),
    ("arm64", "baseline_4k", []),
    ("arm64", "contpte", []),
    ("arm64", "linux-6.12", ["hugepages-64kB/enabled=always"]),
    ("arm64", "linux-7.3", ["hugepages-64kB/enabled=always", "hugepages-32kB/enabled=always"]),
    ("arm64", "linux-7.3", ["hugepages-16kB/enabled=always", "hugepages-1024kB/enabled=madvise"]),
    ("x86", "linux-6.12", ["hugepages-64kB/enabled=always"]),
    ("s390", "baseline_4k", []),
]


def left_by(m):
    return m.digest(), m.events(), m.work(), m.vmstat(), [m.rss(pid) for pid in (2, 3)]


def fork_and_protect(m, huge):
    size = m.page_size

    def protect(first, end, prot):
        assert m.mprotect(1, BASE + first * size, (end - first) * size, prot) == 0

    m.spawn(1)
    assert m.mmap(1, BASE, PAGES * size) == 0
    if huge:
        assert m.madvise(1, BASE, PAGES * size, MADV_HUGEPAGE) == 0
    for page in [*range(0, 700, 3), *range(1000, PAGES, 16)]:
        m.touch(1, BASE + page * size, page % 7 != 0)
    assert m.munmap(1, BASE + 37 * size, 2 * size) == 0
    protect(60, 75, PROT_READ)
    protect(600, 1100, 0)
    assert m.fork(1, 2) == 0
    for page in range(20, 400, 50):
        m.touch(2, BASE + page * size, True)
        m.touch(1, BASE + (page + 3) * size, True)
    protect(40, 1200, PROT_READ)
    protect(40, 1300, PROT_READ | PROT_WRITE)
    protect(48, 49, PROT_READ)
    protect(48, 49, PROT_READ | PROT_WRITE)
    assert m.fork(1, 3) == 0
    for page in range(0, PAGES, 5):
        m.touch(1, BASE + page * size, True)
    assert m.fork(2, 4) == 0
    m.exit(1)


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize(("arch", "defconfig", "knobs"), KERNELS)
def test_fork_and_mprotect_leave_what_python_leaves(arch, defconfig, knobs, huge):
    left = []
    for fast in "yn":
        config = resolve(arch, defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"])
        with Machine(config, settings=knobs) as m:
            fork_and_protect(m, huge)
            left.append(left_by(m))
    assert left[0] == left[1]


@pytest.mark.parametrize("huge", [False, True])
def test_python_shares_and_protects_nothing(machine_of, configure, monkeypatch, huge):
    m = machine_of(configure("arm64-anonfolio-4k"))
    for name in ("copy_pte_range", "copy_huge_pmd"):
        monkeypatch.setattr(virtmm.mm.fork, name, None)
    for name in ("change_pte_range", "change_huge_pmd"):
        monkeypatch.setattr(virtmm.mm.mprotect, name, None)
    fork_and_protect(m, huge)
    for event in ("fork_anon", "mprotect_anon"):
        assert sum(m.events()[event].values()) > 0


@pytest.mark.parametrize("huge", [False, True])
def test_a_child_that_finds_no_memory_for_a_table_is_not_made(machine_of, configure, huge):
    left = []
    for fast in "yn":
        m = machine_of(configure("arm64-anonfolio-4k", "MEMORY_MB=16", f"FAST_FAULT={fast}"))
        m.spawn(1)
        assert m.mmap(1, BASE, 1 << 34) == 0
        if huge:
            assert m.madvise(1, BASE, 1 << 34, MADV_HUGEPAGE) == 0
        page = 0
        while not m.touch(1, BASE + (page << 21), True):
            page += 1
        assert m.fork(1, 2) != 0
        left.append((m.digest(), m.vmstat(), m.events(), m.work()))
    assert left[0] == left[1]
    assert bool(left[0][2]["anon_fault"].get("9")) == huge
