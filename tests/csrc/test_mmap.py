# SPDX-License-Identifier: GPL-2.0-only
"""Mappings made, cut, merged and ended in C: as Python leaves them, which does none of it."""

import resource
from pathlib import Path

import pytest
import virtmm.mm.fork
import virtmm.mm.mmap
import virtmm.mm.mprotect
from virtmm.mm import layout
from virtmm.mm.arena import VMA_RECORD
from virtmm.mm.vm_flags import (
    EEXIST,
    ENOMEM,
    MADV_DONTFORK,
    MADV_HUGEPAGE,
    MADV_WIPEONFORK,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_POPULATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

from tests.csrc.figures import everything
from virtmm import boot
from virtmm.kconfig import resolve

BASE = 1 << 36
RW = PROT_READ | PROT_WRITE
KERNELS = [
    ("arm64", "anonfolio_basic", []),
    ("arm64", "baseline_4k", []),
    ("arm64", "contpte", []),
    ("arm64", "linux-6.12", ["hugepages-64kB/enabled=always"]),
    ("arm64", "linux-7.3", ["hugepages-64kB/enabled=always", "hugepages-32kB/enabled=always"]),
    ("x86", "linux-7.3", ["enabled=always"]),
    ("s390", "baseline_4k", []),
    ("m68k", "baseline_4k", []),
]


def shape(m, base=BASE):
    """Make, cut, merge, replace, protect and fork mappings of every kind; yield after each call."""
    size = m.page_size

    def at(page):
        return base + page * size

    def write(pid, *pages):
        for page in pages:
            assert m.touch(pid, at(page), True) == 0

    m.spawn(1)
    file = m.open(7, 90 * size)
    heap = at(4000)
    for first, nr, prot, flags, number, pgoff in (
        (0, 40, RW, 0, 0, 0),
        (60, 40, RW, 0, 0, 0),
        (40, 20, RW, 0, 0, 0),  # between the two
        (100, 30, RW, 0, file, 0),
        (130, 30, RW, 0, file, 30),  # as one with it
        (160, 30, RW, 0, file, 10),
        (190, 60, PROT_READ | PROT_EXEC, 0, file, 0),
        (250, 50, RW, MAP_SHARED, 0, 0),
        (300, 50, RW, MAP_SHARED, file, 0),
        (3000, 30, RW, MAP_GROWSDOWN, 0, 0),
    ):
        assert m.mmap(1, at(first), nr * size, prot, flags, number, pgoff) == 0
        yield
    write(1, *range(0, 100, 3), 120, *range(250, 280), 3001, 2990)
    for page in range(190, 240, 7):
        assert m.touch(1, at(page), False) == 0
    for end in (3, 20, 11, 11.5, 90):
        assert m.brk(1, heap, heap + int(end * size)) == 0
        yield
    write(1, *range(4000, 4060, 2))
    assert m.mmap(1, at(4095), size) == 0
    assert m.brk(1, heap, heap + 200 * size) == -ENOMEM
    yield
    for first, nr, error in ((4000, 4, EEXIST), (250, 10, EEXIST)):
        assert m.mmap(1, at(first), nr * size) == -error
        assert m.mmap(1, at(first), nr * size, RW, MAP_FIXED | MAP_FIXED_NOREPLACE) == -error
    for first, nr in ((4010, 5), (95, 40), (255, 3), (2, 2)):
        assert m.mmap(1, at(first), nr * size, RW, MAP_FIXED) == 0
        yield
    for first, nr, prot in (
        (10, 30, PROT_READ),
        (10, 30, RW),
        (5, 60, 0),
        (200, 9, RW),
        (5, 60, RW),
    ):
        assert m.mprotect(1, at(first), nr * size, prot) == 0
        yield
    assert m.mprotect(1, at(240), 20 * size, RW) == 0
    assert m.mprotect(1, at(340), 20 * size, PROT_READ) == -ENOMEM, "behind what is mapped"
    assert m.mprotect(1, m.task_size - size, 9 * size, RW) == -ENOMEM
    yield
    assert m.mlock(1, at(20), 3 * size) == 0
    assert m.mprotect(1, at(18), 9 * size, PROT_READ) == 0
    assert m.mprotect(1, at(18), 9 * size, RW) == 0
    yield
    assert m.madvise(1, at(50), 9 * size, MADV_DONTFORK) == 0
    assert m.madvise(1, at(70), 9 * size, MADV_WIPEONFORK) == 0
    for child in (2, 3, 4):
        assert m.fork(child - 1, child) == 0
        write(child, *range(1, 40, 5), 252, 4001)
        yield
    m.exit(2)
    yield
    for pid, first, nr in (
        (3, 0, 500),
        (1, 37, 4),
        (4, 255, 1),
        (4, 250, 50),
        (1, 1, 4090),
        (1, 1, 9),
    ):
        assert m.munmap(pid, at(first), nr * size) == 0
        yield
    assert m.mmap(3, at(60), 8 * size) == 0
    write(3, *range(60, 68))
    assert m.exec(3) == 0
    yield
    for pid in (4, 1, 3):
        m.exit(pid)
        yield


def machine(machine_of, kernel, fast):
    arch, defconfig, knobs = kernel
    config = resolve(arch, defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"])
    return machine_of(config, settings=knobs)


def base_of(m):
    return min(BASE, m.task_size // 4)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: "-".join(kernel[:2]))
def test_every_call_leaves_what_python_leaves(machine_of, kernel):
    fast, slow = (machine(machine_of, kernel, fast) for fast in "yn")
    base = base_of(fast)
    for step, _ in enumerate(zip(shape(fast, base), shape(slow, base), strict=True)):
        assert everything(fast) == everything(slow), step
    zone = fast.k.zone
    assert zone[layout.ZONE_ANON] == zone[layout.ZONE_TABLE] == 0
    for slab in ("VMA", "AVC", "ANON_VMA", "MM"):
        head = layout.ZONE_SLAB + getattr(layout, f"SLAB_{slab}")
        assert zone[head + 1] > 1, "it was used"


def huge_and_small(m):
    """Calls on memory with huge entries, whole and cut; yield after each."""
    huge, size = m.k.pmd_size, m.page_size
    m.spawn(1)
    assert m.mmap(1, BASE, 8 * huge) == 0
    assert m.madvise(1, BASE, 8 * huge, MADV_HUGEPAGE) == 0
    for i in range(8):
        assert m.touch(1, BASE + i * huge, True) == 0
    assert m.fork(1, 2) == 0
    yield
    for start, end in ((0, 1), (1.5, 2.25), (4, 6)):
        assert m.munmap(1, BASE + int(start * huge), int((end - start) * huge)) == 0
        yield
    assert m.mmap(1, BASE + 3 * huge, size, RW, MAP_FIXED) == 0
    yield
    assert m.mprotect(2, BASE + huge + size, size, PROT_READ) == 0
    yield
    assert m.madvise(2, BASE + 3 * huge, huge, MADV_DONTFORK) == 0
    yield
    assert m.madvise(2, BASE + 5 * huge - size, 2 * size, MADV_DONTFORK) == 0
    yield
    assert m.fork(2, 3) == 0
    yield
    for pid in (1, 2, 3):
        m.exit(pid)
        yield


@pytest.mark.parametrize("defconfig", ["linux-6.18", "linux-7.3"])
def test_huge_entries_are_cut_as_python_does(machine_of, defconfig):
    kernel = ("x86", defconfig, ["enabled=madvise"])
    fast, slow = (machine(machine_of, kernel, fast) for fast in "yn")
    for step, _ in enumerate(zip(huge_and_small(fast), huge_and_small(slow), strict=True)):
        assert everything(fast) == everything(slow), step
    assert fast.vmstat()["thp_split_pmd"] > 3


@pytest.mark.parametrize("steps", ["shape", "huge_and_small"])
def test_python_shapes_nothing(machine_of, monkeypatch, steps):
    m = machine(machine_of, ("x86", "linux-7.3", ["enabled=madvise"]), "y")
    for module, name in (
        (virtmm.mm.mmap, "mmap_region"),
        (virtmm.mm.mmap, "unmap_region"),
        (virtmm.mm.mmap, "vma_merge"),
        (virtmm.mm.mmap, "split_vma"),
        (virtmm.mm.fork, "unmap_region"),
        (virtmm.mm.fork, "vm_area_alloc"),
        (virtmm.mm.fork, "copy_page_range"),
        (virtmm.mm.mprotect, "split_vma"),
        (virtmm.mm.mprotect, "vma_merge"),
    ):
        monkeypatch.setattr(module, name, None)
    for _ in globals()[steps](m):
        pass


@pytest.mark.parametrize(
    ("slab", "records"), [("VMA", "FAULT_NR_VMAS"), ("FILE", "FAULT_NR_FILES")]
)
def test_a_full_table_is_no_memory(machine_of, slab, records):
    m = machine(machine_of, KERNELS[0], "y")
    size, shared = m.page_size, MAP_SHARED if slab == "FILE" else 0
    m.spawn(1)
    assert m.mmap(1, BASE, 9 * size, RW, shared) == 0
    m.k.fault[getattr(layout, records)] = (
        m.k.zone[layout.ZONE_SLAB + getattr(layout, f"SLAB_{slab}") + 1] + 1
    )
    assert m.mmap(1, BASE + 20 * size, size, PROT_READ, shared) == -ENOMEM
    if slab == "VMA":
        assert m.brk(1, BASE + 40 * size, BASE + 41 * size) == -ENOMEM
        assert m.munmap(1, BASE + size, size) == -ENOMEM
        assert m.mprotect(1, BASE + size, size, PROT_READ) == -ENOMEM
        assert m.fork(1, 2) == -ENOMEM
    assert m.munmap(1, BASE, 9 * size) == 0
    assert m.mmap(1, BASE, 9 * size, RW, shared) == 0


@pytest.mark.parametrize("fast", "yn")
def test_shared_memory_that_the_page_cache_has_no_place_for_is_refused(machine_of, fast):
    m = machine(machine_of, ("arm64", "anonfolio_basic", []), fast)
    m.spawn(1)
    nr = len(m.k.page_cache)
    assert m.mmap(1, 1 << 45, nr * m.page_size, RW, MAP_SHARED) == -ENOMEM
    before = m.digest()
    assert m.mmap(1, 1 << 45, nr * m.page_size, RW, MAP_SHARED) == -ENOMEM
    assert m.digest() != before, "the call is counted"
    assert m.mmap(1, 1 << 45, nr // 2 * m.page_size, RW, MAP_SHARED) == 0
    assert m.mmap(1, 1 << 46, nr // 2 * m.page_size, RW, MAP_SHARED) == -ENOMEM


@pytest.mark.parametrize("fast", "yn")
def test_populating_ends_with_the_page_that_the_length_ends_in(machine_of, fast):
    m = machine(machine_of, ("arm64", "baseline_4k", []), fast)
    m.spawn(1)
    assert m.mmap(1, BASE + m.page_size, m.page_size) == 0
    assert m.mmap(1, BASE, 100, RW, MAP_POPULATE) == 0
    assert m.rss(1) == m.page_size


@pytest.mark.parametrize("fast", "yn")
def test_a_full_table_of_vmas_leaves_no_file_behind(machine_of, fast):
    m = machine(machine_of, ("arm64", "baseline_4k", []), fast)
    m.spawn(1)
    k = m.k
    k.zone[layout.ZONE_SLAB + layout.SLAB_VMA + 1] = len(k.vma) // VMA_RECORD - 1
    files = k.zone[layout.ZONE_SLAB + layout.SLAB_FILE + 1], k.zone[layout.ZONE_CACHE_END]
    assert m.mmap(1, BASE, m.page_size, RW, MAP_SHARED) == -ENOMEM
    assert (k.zone[layout.ZONE_SLAB + layout.SLAB_FILE + 1], k.zone[layout.ZONE_CACHE_END]) == files


def all_backends(defconfig="anonfolio_basic"):
    options = (("FAST_FAULT=y",), ("FAST_FAULT=n",), ("C_RANGES=n",))
    return [resolve("arm64", defconfig, sets=["MEMORY_MB=64", *o]) for o in options]


def larger_than_the_cache(m):
    """Open, map, extend and populate files where page_cache has place for 100 pages; yield the answers."""
    size, k = m.page_size, m.k
    m.spawn(1)
    yield m.open(1, 100 * size), m.open(1, 1 << 64), m.open(1, 40 * size)
    files = k.zone[layout.ZONE_SLAB + layout.SLAB_FILE + 1]
    assert files == 1, "what is refused leaves no file"
    for pgoff, nr, flags in (
        (0, 40, MAP_POPULATE),
        (0, 100, 0),
        (1 << 60, 1, 0),
        (99, 1, MAP_SHARED),
        (30, 30, MAP_SHARED | MAP_POPULATE),  # does not fit beside the 40
        (30, 28, MAP_SHARED | MAP_POPULATE),
        (57, 1, 0),
        (58, 1, MAP_FIXED),
    ):
        yield m.mmap(1, BASE, nr * size, RW, flags | MAP_FIXED, 1, pgoff)
        yield [m.touch(1, BASE + page * size, page % 2 == 0) for page in range(nr)]
    yield m.mremap(1, BASE, size, BASE, 200 * size)
    yield [m.touch(1, BASE + page * size, False) for page in range(0, 200, 7)]
    yield m.mmap(1, BASE, 0, RW, 0, 1, 1 << 60)
    yield m.mmap(1, BASE << 1, size, RW, MAP_SHARED)
    yield m.fork(1, 2)
    m.exit(1)
    m.exit(2)


def test_a_file_that_the_page_cache_has_no_place_for_is_refused(machine_of, monkeypatch):
    monkeypatch.setitem(boot._COUNTS, "nr_cache", 100)
    machines = [machine_of(config) for config in all_backends()]
    answers = []
    for each in zip(*map(larger_than_the_cache, machines), strict=True):
        assert each[0] == each[1] == each[2]
        assert everything(machines[0]) == everything(machines[1]) == everything(machines[2])
        answers.append(each[0])
    assert answers[0] == (0, 0, 1)
    calls = answers[1:17:2]
    assert calls == [0, *[-ENOMEM] * 4, 0, 0, -ENOMEM]


def test_a_huge_file_that_grows_costs_the_host_what_is_cached(machine_of):
    m = machine_of(all_backends("baseline_4k")[0])
    m.spawn(1)
    file = m.open(1, 1 << 40)
    nr = 1 << 28
    assert m.mmap(1, BASE, m.page_size, RW, 0, file, nr - 1) == 0
    assert m.touch(1, BASE, False) == 0
    resident = host_memory()
    assert m.mmap(1, BASE + m.page_size, m.page_size, RW, 0, file, nr) == 0
    assert host_memory() - resident < 64 << 20, "of a GiB of elements one page has something"
    assert m.touch(1, BASE, True) == m.touch(1, BASE + m.page_size, False) == 0
    assert m.events()["file_write_fault"] == 1


def host_memory():
    """Return the bytes of this process's own memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("fast", "yn")
def test_a_refused_call_extended_no_neighbour(machine_of, fast):
    m = machine(machine_of, ("arm64", "baseline_4k", []), fast)
    m.spawn(1)
    assert m.mmap(1, BASE, 2 * m.page_size) == 0
    assert m.mmap(1, BASE, m.page_size) == -EEXIST
    assert (m.events()["mmap"], m.events().get("mmap_merge", 0)) == (2, 0)
    assert m.mmap(1, BASE + 2 * m.page_size, m.page_size) == 0
    assert m.events()["mmap_merge"] == 1


def test_shared_memory_gives_its_place_in_the_page_cache_back(machine_of, monkeypatch):
    monkeypatch.setitem(boot._COUNTS, "nr_cache", 100)
    for config in all_backends():
        m = machine_of(config)
        m.spawn(1)
        for _ in range(5):
            assert m.mmap(1, BASE, 40 * m.page_size, RW, MAP_SHARED) == 0
            assert m.mmap(1, 2 * BASE, 50 * m.page_size, RW, MAP_SHARED) == 0
            assert m.touch(1, BASE + m.page_size, True) == m.touch(1, 2 * BASE, True) == 0
            assert m.munmap(1, 2 * BASE, 50 * m.page_size) == 0
            assert m.munmap(1, BASE, 40 * m.page_size) == 0
        assert m.k.zone[layout.ZONE_CACHE_END] == m.k.zone[layout.ZONE_CACHE] == 0
