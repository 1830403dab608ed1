# SPDX-License-Identifier: GPL-2.0-only
"""Folios split in C: they leave what Python leaves, and Python splits none."""

import pytest
from virtmm.mm import split
from virtmm.mm.vm_flags import ENOMEM, MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, VM_FAULT_OOM

from tests.csrc.figures import everything
from virtmm.kconfig import resolve

BASE = 1 << 36
KERNELS = (
    ("arm64", "linux-6.12", ("64kB=always",)),
    ("arm64", "linux-7.3", ("64kB=always", "16kB=always")),
    ("arm64", "linux-7.3", ("enabled=always",)),
    ("x86", "linux-6.12", ("enabled=always",)),
    ("arm64", "contpte", ("enabled=never",)),
)


def split_folios(m):
    """Split folios that are mapped in part, twice, elsewhere, locked, or hold zeroes; yield after each."""
    size = m.page_size

    def advise(pid, first, nr, advice):
        assert m.madvise(pid, BASE + first * size, nr * size, advice) in (0, -ENOMEM)  # a hole

    m.spawn(1)
    assert m.mmap(1, BASE, 4096 * size) == 0
    for page in [*range(0, 2048, 3), *range(2048, 4096, 16)]:
        assert m.store(1, BASE + page * size, page % 3) == 0
    advise(1, 5, 3, MADV_FREE)
    yield
    assert m.munmap(1, BASE + 35 * size, 7 * size) == 0
    advise(1, 32, 16, MADV_PAGEOUT)
    yield
    advise(1, 512, 1024, MADV_PAGEOUT)  # whole folios
    yield
    assert m.mlock(1, BASE + 2049 * size, 30 * size) == 0
    advise(1, 2080, 40, MADV_PAGEOUT)
    yield
    moved = BASE + 10001 * size
    assert m.mremap(1, BASE + 2564 * size, 6 * size, moved, 6 * size, 3) == 0
    advise(1, 2561, 2, MADV_FREE)
    yield
    assert m.fork(1, 2) == 0
    advise(1, 3073, 5, MADV_PAGEOUT)  # the child has it, too
    yield
    assert m.store(1, BASE + 3600 * size, 5) == 0
    m.exit(1)
    advise(2, 3073, 5, MADV_PAGEOUT)
    yield
    m.exit(2)
    yield


@pytest.mark.parametrize(("arch", "defconfig", "knobs"), KERNELS)
@pytest.mark.parametrize("backed", "yn")
def test_python_splits_nothing(machine_of, monkeypatch, arch, defconfig, knobs, backed):
    fast, slow = (
        machine_of(
            resolve(
                arch,
                defconfig,
                sets=["MEMORY_MB=64", f"PHYS_BACKING={backed}", f"FAST_FAULT={fast}"],
            ),
            settings=knobs,
        )
        for fast in "yn"
    )
    if backed == "n":
        for m in (fast, slow):
            m.store = lambda pid, address, _, m=m: m.touch(pid, address, True)
    steps = zip(split_folios(fast), split_folios(slow), strict=True)
    for step, _ in enumerate(steps):
        assert everything(fast) == everything(slow), step
    assert sum(size["split"] for size in fast.hugepages().values()) > 5
    fast = machine_of(fast.config, settings=knobs)
    if backed == "n":
        fast.store = lambda pid, address, _: fast.touch(pid, address, True)
    monkeypatch.setattr(split, "mappings", None)
    for _ in split_folios(fast):
        pass


def test_memory_is_found_by_splitting_as_python_does(machine_of):
    seen = []
    for fast in "yn":
        sets = ["MEMORY_MB=16", "PHYS_BACKING=y", f"FAST_FAULT={fast}"]
        m = machine_of(resolve("x86", "linux-6.12", sets=sets), settings=["enabled=always"])
        m.spawn(1)
        assert m.mmap(1, BASE, 64 << 20) == 0
        for page in range(0, 5 * 512, 512):
            assert m.store(1, BASE + page * m.page_size, 1) == 0
            at = BASE + (page + 100) * m.page_size
            assert m.madvise(1, at, 300 * m.page_size, MADV_DONTNEED) == 0
        while not (error := m.store(1, BASE + page * m.page_size, 1)):
            page += 1
        assert error == VM_FAULT_OOM
        seen.append((page, *everything(m)))
        assert m.vmstat()["thp_split_page"] > 0
    assert seen[0] == seen[1]
