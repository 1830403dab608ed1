# SPDX-License-Identifier: GPL-2.0-only
"""Unmapping in C: what stays there, and that it leaves what Python leaves."""

from itertools import pairwise

import pytest
from virtmm.mm import layout, zap
from virtmm.mm.vm_flags import MADV_DONTNEED, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED

from tests.csrc.figures import everything
from virtmm.kconfig import resolve

BASE = 1 << 36
PAGES = 700  # more than a table has
KERNELS = (
    ("arm64", "anonfolio_basic", ()),
    ("arm64", "anonfolio_basic", ("EXPERT=y", "ANON_ZAP_BATCH=n")),
    ("arm64", "anonfolio_basic", ("EXPERT=y", "ANON_DEFERRED_SPLIT=n")),
    ("arm64", "baseline_4k", ()),
    ("arm64", "contpte", ()),
    ("arm64", "contpte", ("EXPERT=y", "CONTPTE_BATCH=n")),
    ("arm64", "linux-7.3", ()),
    ("x86", "linux-7.3", ()),
    ("s390", "baseline_4k", ()),
)


@pytest.fixture
def in_python(monkeypatch):
    """Collect the runs of entries that Python unmaps."""
    seen = []
    zap_pte_range = zap.zap_pte_range

    def count(k, vma, mm, pte, nr):
        seen.append(nr)
        zap_pte_range(k, vma, mm, pte, nr)

    monkeypatch.setattr(zap, "zap_pte_range", count)
    return seen


def drop_everything(m):
    """Map memory of every kind, in two processes, and unmap it; yield after each call."""
    size = m.page_size
    m.spawn(1)
    file = m.open(7, PAGES * size)
    shared = BASE + 2 * PAGES * size
    text = BASE + 4 * PAGES * size
    assert m.mmap(1, BASE, PAGES * size) == 0
    assert m.mmap(1, shared, PAGES * size, flags=MAP_SHARED) == 0
    assert m.mmap(1, text, PAGES * size, 5, 0, file) == 0
    for page in range(PAGES):
        write = page < 200 or page % 7 == 0 or page > 400
        assert m.touch(1, BASE + page * size, write) == 0
        if page % 3:
            assert m.touch(1, shared + page * size, write) == m.touch(1, text + page * size, False)
    assert m.fork(1, 2) == 0
    assert m.touch(2, BASE + 20 * size, True) == 0
    assert m.mprotect(2, BASE + 40 * size, 30 * size, 0) == 0
    yield
    for pid, start, nr in ((2, BASE, 19), (1, BASE + 5 * size, 1), (1, BASE + 33 * size, 70)):
        assert m.madvise(pid, start, nr * size, MADV_DONTNEED) == 0
        yield
    for pid, start, nr in ((1, BASE + 3 * size, 9), (2, BASE + 50 * size, 401), (1, text, 550)):
        assert m.munmap(pid, start, nr * size) == 0
        yield
    m.exit(1)
    yield
    m.exit(2)
    yield


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: "-".join((*kernel[:2], *kernel[2])))
def test_whatever_is_unmapped_python_does_none_of_it(machine_of, in_python, kernel):
    arch, defconfig, sets = kernel
    machines = []
    for fast in "yn":
        config = resolve(arch, defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}", *sets])
        knobs = ["hugepages-64kB/enabled=always"] if defconfig == "linux-7.3" else []
        machines.append(machine_of(config, settings=knobs))
    fast, slow = machines
    for _ in zip(drop_everything(fast), drop_everything(slow), strict=True):
        assert everything(fast) == everything(slow)
    zone = fast.k.zone
    assert zone[layout.ZONE_ANON] == zone[layout.ZONE_TABLE] == zone[layout.ZONE_SPLIT_QUEUE] == 0
    in_python.clear()
    for _ in drop_everything(machine_of(fast.config, settings=knobs)):
        assert in_python == []


@pytest.mark.parametrize("fast", "yn")
def test_huge_entries_without_python(machine_of, in_python, monkeypatch, fast):
    config = resolve("x86", "linux-7.3", sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"])
    if fast == "y":
        monkeypatch.setattr(zap, "zap_huge_pmd", None)
        monkeypatch.setattr(zap, "__split_huge_pmd", None)
    m = machine_of(config, settings=["enabled=always"])
    huge, size = m.k.pmd_size, m.page_size
    m.spawn(1)
    assert m.mmap(1, BASE - size, 4 * huge) == 0
    for at in (BASE - size, *range(BASE, BASE + 3 * huge, huge), BASE + 3 * huge):
        assert m.touch(1, at, True) == 0
    reach = m.tlb()["data"]
    assert reach["plain"] == reach["best"] == 5, "an entry for each huge page"
    assert reach["bytes"] == 3 * huge + 2 * size
    in_python.clear()
    assert m.madvise(1, BASE - size, size + huge + 5 * size, MADV_DONTNEED) == 0
    assert in_python == ([] if fast == "y" else [1, 5]), "the part of a huge entry that was split"
    assert m.vmstat()["thp_split_pmd"] == 1
    m.exit(1)
    assert m.k.event[layout.EV_anon_free * layout.NR_ORDERS + m.k.pmd_order] == 3
    assert m.k.zone[layout.ZONE_ANON] == m.k.zone[layout.ZONE_TABLE] == 0


def test_a_full_gather_is_flushed_for_files_too(machine_of):
    work = []
    for fast in "yn":
        m = machine_of(
            resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=256", f"FAST_FAULT={fast}"])
        )
        m.spawn(1)
        pages = 3 * zap.tlb_capacity(m.k)
        file = m.open(1, pages * m.page_size)
        assert m.mmap(1, BASE, pages * m.page_size, 1, 0, file) == 0
        for page in range(pages):
            assert m.touch(1, BASE + page * m.page_size, False) == 0
        before = m.work()["tlbi"]
        m.exit(1)
        work.append((m.work()["tlbi"] - before, m.digest(), m.work()))
    assert work[0] == work[1]
    assert work[0][0] == 3


def test_memory_that_comes_back_is_merged_as_python_does(machine_of, configure):
    digests = []
    for fast in "yn":
        m = machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}"))
        m.spawn(1)
        cuts = [0, 1, 4, 16, 17, 64, 300, 301, 512, 700]
        assert m.mmap(1, BASE, PAGES * m.page_size) == 0
        for page in range(PAGES):
            assert m.touch(1, BASE + page * m.page_size, True) == 0
        for low, high in [*pairwise(cuts)][::2]:
            assert m.munmap(1, BASE + low * m.page_size, (high - low) * m.page_size) == 0
            digests.append(m.digest())
        m.exit(1)
        digests.append(
            (m.digest(), m.k.zone[layout.ZONE_NR_BLOCKS : layout.ZONE_NR_BLOCKS + 10].tolist())
        )
    assert digests[: len(digests) // 2] == digests[len(digests) // 2 :]


@pytest.mark.parametrize("defconfig", ["baseline_4k", "linux-7.3"])
def test_single_pages_fill_the_gather(machine_of, defconfig):
    """One place of the gather each; from 6.9 on there must be two left."""
    seen = []
    for fast in "yn":
        m = machine_of(resolve("arm64", defconfig, sets=["MEMORY_MB=256", f"FAST_FAULT={fast}"]))
        m.spawn(1)
        pages = 1 + 2 * (zap.tlb_capacity(m.k) - (defconfig == "linux-7.3"))
        assert m.mmap(1, BASE, pages * m.page_size, 3, MAP_PRIVATE | MAP_POPULATE) == 0
        before = m.work()["tlbi"]
        m.exit(1)
        seen.append((m.work()["tlbi"] - before, m.digest(), m.work()))
    assert seen[0] == seen[1]
    assert seen[0][0] == 3
