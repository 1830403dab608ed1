# SPDX-License-Identifier: GPL-2.0-only
"""Accesses in C: which ones stay there, and that they leave what Python leaves."""

import re
from array import array
from pathlib import Path

import pytest
import virtmm.mm.fault
from virtmm.mm import vm_flags
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.layout import SLAB_ANON_VMA, SLAB_AVC, ZONE_SLAB
from virtmm.mm.vm_flags import (
    EINVAL,
    ENOMEM,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_GROWSDOWN,
    MAP_POPULATE,
    MAP_PRIVATE,
    PROT_MTE,
    VM_FAULT_OOM,
    VM_FAULT_SIGSEGV,
    VM_READ,
)

import virtmm.machine
from virtmm import topdir
from virtmm.accesses import Accesses, Moved
from virtmm.kconfig import resolve
from virtmm.machine import Machine
from virtmm.policy import Policy

BASE = 1 << 36
PAGES = 300
NO_COW = [f"ANON_COW_{what}=n" for what in ("ZERO", "COPY", "REUSE")]


@pytest.fixture
def in_python(monkeypatch):
    """Collect the addresses of the accesses that Python serves."""
    seen = []
    access = virtmm.machine.access

    def count(k, mm, address, write):
        seen.append(address)
        return access(k, mm, address, write)

    monkeypatch.setattr(virtmm.machine, "access", count)
    return seen


def started(m, prot=3):
    m.spawn(1)
    assert m.mmap(1, BASE, PAGES * m.page_size, prot) == 0
    return m


def accesses(m, pages, write=1, pid=1):
    words = array("Q")
    for page in pages:
        words.extend((BASE + page * m.page_size, write))
    found = Accesses(memoryview(words), 1)
    found.tasks[0] = m.task_record(pid)
    return found


def test_python_serves_no_write_to_fresh_memory(machine_of, configure, in_python):
    m = started(machine_of(configure("arm64-anonfolio-4k")))
    assert m.touch_many(accesses(m, range(PAGES)), 0, PAGES) == (PAGES, 0)
    assert m.touch(1, BASE, True) == m.touch(1, BASE + 5, False) == 0
    assert in_python == []
    assert m.minflt(1) < PAGES // 8


def test_a_vma_takes_its_neighbours_anon_vma_without_python(machine_of, configure, in_python):
    seen = []
    for fast in "yn":
        m = machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}"))
        m.spawn(1)
        for first in (0, 20, 40, 60):
            assert m.mmap(1, BASE + first * m.page_size, 20 * m.page_size, 1) == 0
        for first in (0, 20):
            assert m.mprotect(1, BASE + (first + 15) * m.page_size, m.page_size, 3) == 0
            assert m.touch(1, BASE + (first + 15) * m.page_size, True) == 0
            assert m.mprotect(1, BASE + (first + 16) * m.page_size, m.page_size, 7) == 0
            assert m.touch(1, BASE + (first + 16) * m.page_size, True) == 0
        assert m.mprotect(1, BASE + 14 * m.page_size, m.page_size, 7) == 0
        assert m.touch(1, BASE + 14 * m.page_size, True) == 0
        used = m.k.zone[ZONE_SLAB + SLAB_ANON_VMA + 1], m.k.zone[ZONE_SLAB + SLAB_AVC + 1]
        seen.append((used, m.digest()))
        assert len(in_python) == {"y": 0, "n": 5}[fast]
    assert seen[0] == seen[1]
    assert seen[0][0] == (2, 5), "one by another's mapping of the same memory, and its neighbours"


def test_the_stack_grows_without_python(machine_of, configure, in_python):
    seen = []
    for fast in "yn":
        m = machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}"))
        m.spawn(1)
        low = BASE + 290 * m.page_size
        assert m.mmap(1, low, 10 * m.page_size, 3, 2 | MAP_GROWSDOWN) == 0
        assert m.touch_many(accesses(m, [280, 279, 20]), 0, 3) == (3, 0)
        assert len(in_python) == {"y": 0, "n": 3}[fast]
        assert m.mmap(1, BASE - 250 * m.page_size, m.page_size) == 0
        assert m.touch_many(accesses(m, [10, 5]), 0, 2) == (1, VM_FAULT_SIGSEGV)
        assert [page.address for page in m.mapped_pages(1, BASE, low)][:2] == [
            BASE + page * m.page_size for page in (10, 20)
        ]
        seen.append((m.digest(), m.events(), m.work()))
        in_python.clear()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("defconfig", ["anonfolio_basic", "linux-7.3"])
def test_memory_tags_are_cleared_without_python(machine_of, in_python, defconfig):
    seen = []
    for fast in "yn":
        m = machine_of(resolve("arm64", defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"]))
        m.set("hugepages-64kB/enabled", "always") if defconfig == "linux-7.3" else None
        started(m, 3 | PROT_MTE)
        assert m.touch_many(accesses(m, [5, 40, 290], 0), 0, 3) == (3, 0)
        assert m.touch_many(accesses(m, range(PAGES)), 0, PAGES) == (PAGES, 0)
        assert len(in_python) == {"y": 0, "n": PAGES + 3}[fast]
        tags = m.work()["tag_clear"] + m.work()["tag_sync"]
        assert tags >= PAGES
        seen.append((m.digest(), m.work()))
        in_python.clear()
    assert seen[0] == seen[1]


def test_reads_map_the_zero_page(machine_of, configure, in_python):
    m = started(machine_of(configure("arm64-anonfolio-4k")), VM_READ)
    assert m.touch_many(accesses(m, range(PAGES), 0), 0, PAGES) == (PAGES, 0)
    assert in_python == []
    assert m.events()["zero_page_fault"] == m.minflt(1) == PAGES


def test_an_access_that_cannot_happen_ends_the_batch(machine_of, configure):
    m = started(machine_of(configure("arm64-anonfolio-4k")))
    words = accesses(m, [0, 1, PAGES, 2])
    assert m.touch_many(words, 0, 4) == (2, VM_FAULT_SIGSEGV)
    assert m.touch_many(words, 3, 4) == (4, 0)
    assert m.rss(1) >= 3 * m.page_size


@pytest.mark.parametrize("fast", "yn")
def test_an_access_of_a_process_without_a_record_is_not_tried(machine_of, configure, fast):
    m = started(machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}")))
    m.spawn(2)
    assert m.mmap(2, BASE, PAGES * m.page_size) == 0
    words = array("Q")
    for slot, page in ((0, 0), (2, 1), (1, 2), (2, 3)):
        words.extend((BASE + page * m.page_size, slot << 1 | 1))
    found = Accesses(memoryview(words), 3)
    found.tasks[0], found.tasks[2] = m.task_record(1), m.task_record(2)
    assert m.touch_many(found, 0, 4) == (2, 0)
    assert m.current_pid() == 2
    assert m.touch_many(found, 3, 4) == (4, 0)
    assert (m.minflt(1), m.minflt(2)) == (1, 1), "a folio each"
    found.tasks[1] = m.task_record(1)
    assert m.touch_many(found, 2, 3) == (3, 0)
    assert m.current_pid() == 1


def test_accesses_move_to_where_the_machine_has_them(machine_of, configure):
    m = started(machine_of(configure("arm64-anonfolio-4k")))
    words = array("Q")
    for slot, address in ((0, 0), (0, 99), (1, 5), (0, 99), (0, 100), (0, 250), (1, 5), (2, 5)):
        words.extend((address, slot << 1))
    found = Accesses(memoryview(words), 3)
    first, second = Moved(), Moved()
    first.replace(0, 0, [(0, 100, 2**36), (200, 300, 2**40)])
    second.replace(0, 0, [(0, 10, -5)])
    found.layouts[0], found.layouts[1] = first.where, second.where
    assert m.move_many(found, 0, 8) == 4, "100 lies between two"
    assert m.move_many(found, 5, 8) == 7, "slot 2 has none"
    assert m.move_many(found, 8, 8) == 8
    moved = [2**36, 2**36 + 99, 0, 2**36 + 99, 100, 2**40 + 250, 0, 5]
    assert found.words.tolist()[0::2] == moved
    first.replace(0, 1, [])
    copy = first.copy()
    copy.replace(0, 0, [(0, 100, 1)])
    assert m.move_many(found, 4, 5) == 4
    found.layouts[0] = copy.where
    words[2 * 3] = 99
    assert m.move_many(found, 3, 5) == 4
    assert words[2 * 3] == 100


def test_memory_that_runs_out_ends_the_batch_where_python_does(machine_of, configure):
    seen = []
    for fast in "yn":
        m = machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}", "MEMORY_MB=16"))
        m.spawn(1)
        assert m.mmap(1, BASE, 32 << 20) == 0
        words = accesses(m, range(8192))
        at, error = m.touch_many(words, 0, 8192)
        assert error == VM_FAULT_OOM
        seen.append((at, m.digest(), m.vmstat(), m.hugepages(), m.refusals(), m.work()))
    assert seen[0] == seen[1]


def test_a_knob_counts_from_the_next_fault_on(machine_of):
    m = started(machine_of(resolve("arm64", "linux-7.3", sets=["MEMORY_MB=64"])))
    for first, knob, order in ((0, "always", 4), (100, "never", 0), (200, "always", 4)):
        m.set("hugepages-64kB/enabled", knob)
        assert m.touch_many(accesses(m, range(first + 32, first + 40)), 0, 8) == (8, 0)
        page = next(m.mapped_pages(1, BASE + (first + 36) * m.page_size, BASE + PAGES * 4096))
        assert page.order == order


def test_what_asks_python_for_each_fault_gets_no_batches(configure, machine_of, in_python):
    policy = Policy(Path("p.py"), "def thp_get_order(vma, address, tva_type, orders): return 0", "")
    plain = machine_of(configure("arm64-anonfolio-4k"))
    assert plain.fast
    for m in (
        machine_of(configure("arm64-anonfolio-4k", "FAST_FAULT=n")),
        machine_of(configure("arm64-anonfolio-4k", "DEBUG_VM=y")),
        machine_of(configure("arm64-anonfolio-4k"), policy=policy),
    ):
        assert not m.fast
        started(m)
        assert m.touch_many(accesses(m, range(10)), 0, 10) == (10, 0)
    assert len(in_python) == 30


@pytest.mark.parametrize("fast", "yn")
@pytest.mark.parametrize(
    ("prot", "flags", "event"), [(1, 2, "read"), (3, 2, "write"), (3, 1, "shared")]
)
def test_files_without_python(configure, machine_of, in_python, prot, flags, event, fast):
    m = machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}"))
    m.spawn(1)
    m.set("fault_around_bytes", str(16 * m.page_size))
    file = m.open(7, PAGES * m.page_size)
    # From an odd page of the file on, so that windows are cut at both ends.
    assert m.mmap(1, BASE + 3 * m.page_size, 50 * m.page_size, prot, flags, file, 5) == 0
    words = accesses(m, range(3, 53), prot >> 1)
    assert m.touch_many(words, 0, 50) == (50, 0)
    assert len(in_python) == {"n": 50, "y": 0}[fast]
    served = m.events()[f"file_{event}_fault" if event != "shared" else "file_shared_fault"]
    assert served == m.minflt(1) == (4 if event == "read" else 50)
    assert m.events()["file_around_pages"] == (46 if event == "read" else 0)


@pytest.mark.parametrize("fast", "yn")
def test_copy_on_write_without_python(configure, machine_of, in_python, fast):
    m = started(machine_of(configure("arm64-baseline-4k", f"FAST_FAULT={fast}")))
    assert m.touch_many(accesses(m, range(20)), 0, 20) == (20, 0)
    assert m.touch_many(accesses(m, range(20, 30), 0), 0, 10) == (10, 0)
    assert m.fork(1, 2) == 0
    assert m.touch(2, BASE, True) == 0  # the first write to a child's mapping
    in_python.clear()
    assert m.touch_many(accesses(m, range(1, 30), pid=2), 0, 29) == (29, 0)
    assert m.touch_many(accesses(m, range(20)), 0, 20) == (20, 0)
    assert len(in_python) == {"n": 49, "y": 0}[fast]
    counts = m.events()
    assert counts["wp_copy"] == {"0": 20}
    assert counts["wp_reuse"] == 20
    assert counts["wp_zero"] == {"0": 10}


@pytest.mark.parametrize("fast", "yn")
def test_pages_of_a_large_folio_are_copied_without_python(configure, machine_of, in_python, fast):
    m = started(machine_of(configure("arm64-anonfolio-4k", f"FAST_FAULT={fast}")))
    assert m.touch_many(accesses(m, range(64)), 0, 64) == (64, 0)
    assert m.fork(1, 2) == 0
    assert m.touch(2, BASE, True) == 0
    in_python.clear()
    assert m.touch_many(accesses(m, range(1, 64), pid=2), 0, 63) == (63, 0)
    assert len(in_python) == {"n": 63, "y": 0}[fast]
    assert m.events()["wp_copy"] == {"0": 64}
    folio = next(m.mapped_pages(1, BASE, BASE + m.page_size))
    assert folio.order == 4
    # The last mapping of each: the folio is queued for splitting, in the end it is freed.
    assert m.touch_many(accesses(m, range(64)), 0, 64) == (64, 0)
    assert len(in_python) == {"n": 127, "y": 0}[fast]
    assert m.events()["anon_free"] == {"4": 4}


@pytest.mark.parametrize("fast", "yn")
def test_a_copied_page_leaves_its_contiguous_block(configure, machine_of, in_python, fast):
    config = resolve("arm64", "contpte", sets=["MEMORY_MB=64", f"FAST_FAULT={fast}", *NO_COW])
    m = started(machine_of(config))
    m.set("enabled", "always")
    assert m.touch_many(accesses(m, range(64)), 0, 64) == (64, 0)
    assert m.fork(1, 2) == 0
    assert m.touch(2, BASE, True) == 0
    in_python.clear()
    unfolds = m.work()["contpte_unfold"]
    assert m.touch_many(accesses(m, range(16, 64, 8), pid=2), 0, 6) == (6, 0)
    assert len(in_python) == {"n": 6, "y": 0}[fast]
    assert m.work()["contpte_unfold"] == unfolds + 3


@pytest.mark.parametrize("fast", "yn")
@pytest.mark.parametrize("defconfig", ["anonfolio_basic", "exefolio"])
def test_writes_to_pages_of_files_that_were_read(machine_of, in_python, defconfig, fast):
    m = machine_of(resolve("arm64", defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"]))
    m.spawn(1)
    file = m.open(7, PAGES * m.page_size)
    assert m.mmap(1, BASE, 50 * m.page_size, 3, 2, file, 0) == 0
    assert m.touch_many(accesses(m, range(20), 0), 0, 20) == (20, 0)
    assert m.touch(1, BASE, True) == 0
    in_python.clear()
    assert m.touch_many(accesses(m, range(1, 20)), 0, 19) == (19, 0)
    assert len(in_python) == {"n": 19, "y": 0}[fast]
    assert m.events()["file_write_fault"] == 20
    assert m.rss(1) == 32 * m.page_size


@pytest.mark.parametrize("fast", "yn")
@pytest.mark.parametrize("fold", "yn")
def test_text_in_large_folios_without_python(machine_of, in_python, fast, fold):
    sets = ["MEMORY_MB=64", f"FAST_FAULT={fast}", "EXEC_FOLIO=y"]
    sets += ["EXPERT=y", f"CONTPTE_FOLD={fold}"]
    m = machine_of(resolve("arm64", "contpte", sets=sets))
    m.spawn(1)
    m.set("fault_around_bytes", str(m.page_size))
    file = m.open(7, PAGES * m.page_size)
    assert m.mmap(1, BASE, 100 * m.page_size, 5, 2, file, 3) == 0
    assert m.touch_many(accesses(m, range(40), 0), 0, 40) == (40, 0)
    m.set("fault_around_bytes", str(32 * m.page_size))
    assert m.touch_many(accesses(m, range(40, 100), 0), 0, 60) == (60, 0)
    assert len(in_python) == {"n": 100, "y": 0}[fast]
    # The file's pages 3 to 15, which are cut by the VMA, then whole blocks of 16, then 96 to 102.
    pages = m.mapped_pages(1, BASE, BASE + 100 * m.page_size)
    orders = [page.order for page in pages]
    assert orders == [0, *[2] * 4, *[3] * 8, *[4] * 80, *[2] * 4, *[1] * 2, 0]


def test_text_read_until_memory_runs_out(machine_of):
    seen = []
    for fast in "yn":
        m = machine_of(resolve("arm64", "exefolio", sets=["MEMORY_MB=16", f"FAST_FAULT={fast}"]))
        m.spawn(1)
        file = m.open(7, 32 << 20)
        assert m.mmap(1, BASE, 32 << 20, 5, 2, file, 0) == 0
        words = accesses(m, range(8192), 0)
        at, error = m.touch_many(words, 0, 8192)
        assert error == VM_FAULT_OOM
        seen.append((at, m.digest(), m.vmstat(), m.events(), m.work()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("arch", "defconfig"), [("arm64", "anonfolio_basic"), ("x86", "linux-7.3")]
)
@pytest.mark.parametrize("zero", "10")
def test_huge_pages_without_python(machine_of, in_python, arch, defconfig, zero):
    seen = []
    for fast in "yn":
        m = machine_of(resolve(arch, defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"]))
        m.spawn(1)
        m.set("enabled", "always")
        m.set("use_zero_page", zero)
        assert m.mmap(1, BASE - m.page_size, (16 << 20) + 2 * m.page_size) == 0
        assert m.touch_many(accesses(m, [0, 512, 1030], 0), 0, 3) == (3, 0)
        assert m.touch_many(accesses(m, [-1, 1600, 2048, 2049, 4096]), 0, 5) == (5, 0)
        assert len(in_python) == {"y": 0, "n": 8}[fast]
        in_python.clear()
        seen.append((m.digest(), m.events(), m.work(), m.vmstat(), m.refusals(), m.hugepages()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("arch", "defconfig", "zero"),
    [
        ("arm64", "anonfolio_basic", "split"),
        ("arm64", "contpte", "split"),
        ("arm64", "linux-6.12", "split"),
        ("arm64", "linux-7.3", "replaced"),
        ("x86", "linux-7.3", "replaced"),
        ("riscv", "linux-7.3", "replaced"),
    ],
)
def test_writes_to_read_only_huge_pages_without_python(
    machine_of, in_python, arch, defconfig, zero
):
    seen = []
    for fast in "yn":
        sets = ["MEMORY_MB=64", "PHYS_BACKING=y", f"FAST_FAULT={fast}"]
        sets += NO_COW if defconfig == "contpte" else []
        m = machine_of(resolve(arch, defconfig, sets=sets))
        m.spawn(1)
        m.set("enabled", "always")
        assert m.mmap(1, BASE, 8 << 20) == 0
        assert m.touch_many(accesses(m, [3, 512, 1024]), 0, 3) == (3, 0)
        assert m.touch_many(accesses(m, [1536], 0), 0, 1) == (1, 0)
        for prot in (VM_READ, 3):  # the rights to an exclusive page come back at once
            assert m.mprotect(1, BASE, 8 << 20, prot) == 0
        assert m.touch_many(accesses(m, [0]), 0, 1) == (1, 0)
        assert m.fork(1, 2) == 0
        # The child's write splits its entry; the parent takes back what the child gave up.
        assert m.touch_many(accesses(m, [600, 601], pid=2), 0, 2) == (2, 0)
        assert m.munmap(2, BASE + (4 << 20), 2 << 20) == 0
        assert m.touch_many(accesses(m, [1024, 1400, 512, 1540]), 0, 4) == (4, 0)
        assert len(in_python) == {"y": 0, "n": 11}[fast]
        in_python.clear()
        kept = [page.order for page in m.mapped_pages(1, BASE + (6 << 20), BASE + (8 << 20))]
        assert (kept[4] == 9) == (zero == "replaced")
        assert m.vmstat()["thp_split_pmd"] == (2 if zero == "replaced" else 3)
        assert m.vmstat()["pgreuse"] >= 1
        seen.append((m.digest(), m.events(), m.work(), m.vmstat(), m.hugepages(), m.tlb()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("defconfig", ["linux-6.12", "linux-7.3"])
def test_writes_to_huge_pages_until_memory_runs_out(machine_of, defconfig):
    seen = []
    for fast in "yn":
        m = machine_of(resolve("x86", defconfig, sets=["MEMORY_MB=16", f"FAST_FAULT={fast}"]))
        m.spawn(1)
        m.set("enabled", "always")
        assert m.mmap(1, BASE, 64 << 20) == 0
        assert m.touch_many(accesses(m, range(0, 4096, 512), 0), 0, 8) == (8, 0)
        assert m.touch_many(accesses(m, range(4096, 5632, 512)), 0, 3) == (3, 0)
        assert m.fork(1, 2) == 0
        at, error = m.touch_many(accesses(m, range(6144)), 0, 6144)
        assert error == VM_FAULT_OOM
        seen.append((at, m.digest(), m.events(), m.work(), m.vmstat(), m.refusals()))
    assert seen[0] == seen[1]


def test_huge_pages_until_memory_runs_out(machine_of):
    seen = []
    for fast in "yn":
        m = machine_of(resolve("x86", "linux-7.3", sets=["MEMORY_MB=16", f"FAST_FAULT={fast}"]))
        m.spawn(1)
        m.set("enabled", "always")
        assert m.mmap(1, BASE, 32 << 20) == 0
        at, error = m.touch_many(accesses(m, range(8192)), 0, 8192)
        assert error == VM_FAULT_OOM
        seen.append((at, m.digest(), m.events(), m.work(), m.vmstat(), m.refusals()))
    assert seen[0] == seen[1]
    assert seen[0][2]["anon_fault"]["9"] > 2


@pytest.mark.parametrize("defconfig", ["anonfolio_basic", "exefolio", "linux-7.3"])
def test_memory_is_populated_without_python(machine_of, monkeypatch, defconfig):
    served = []
    access = virtmm.mm.fault.access

    def count(*args):
        served.append(args)
        return access(*args)

    monkeypatch.setattr(virtmm.mm.fault, "access", count)
    seen = []
    for fast in "yn":
        m = machine_of(resolve("arm64", defconfig, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"]))
        m.spawn(1)
        size = PAGES * m.page_size
        file = m.open(7, size)
        assert m.mmap(1, BASE, size, 3, MAP_PRIVATE | MAP_POPULATE) == 0
        assert m.mmap(1, BASE + size, size, 1, MAP_PRIVATE | MAP_POPULATE, file, 0) == 0
        assert m.mmap(1, BASE + 2 * size, size) == 0
        assert m.madvise(1, BASE + 2 * size, size // 2, MADV_POPULATE_READ) == 0
        assert m.madvise(1, BASE + 2 * size + m.page_size, size // 2, MADV_POPULATE_WRITE) == 0
        assert m.rss(1) >= 2.5 * size
        assert len(served) == {"y": 0, "n": 3 * PAGES}[fast]
        seen.append((m.digest(), m.events(), m.work(), m.vmstat(), m.refusals(), m.minflt(1)))
        served.clear()
    assert seen[0] == seen[1]


def test_populating_ends_where_memory_or_the_vma_does(machine_of):
    seen = []
    for fast in "yn":
        config = resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=16", f"FAST_FAULT={fast}"])
        m = machine_of(config)
        size = started(m).page_size
        assert m.mprotect(1, BASE + 9 * size, size, VM_READ) == 0
        assert m.madvise(1, BASE, 20 * size, MADV_POPULATE_WRITE) == -EINVAL
        assert m.madvise(1, BASE + (PAGES - 9) * size, 20 * size, MADV_POPULATE_WRITE) == -ENOMEM
        assert m.rss(1) == 21 * size, "the first of the last nine gets a folio of four"
        assert m.mmap(1, BASE + (1 << 30), 32 << 20) == 0
        assert m.madvise(1, BASE + (1 << 30), 32 << 20, MADV_POPULATE_WRITE) == -ENOMEM
        seen.append((m.digest(), m.events(), m.work(), m.vmstat(), m.refusals()))
    assert seen[0] == seen[1]


def test_an_armed_failure_is_met(configure):
    inject = FaultInjection()
    config = configure("arm64-anonfolio-4k", "FAULT_INJECTION=y")
    with Machine(config, inject=inject) as m:
        started(m)
        assert m.touch(1, BASE, True) == 0
        inject.charge = {1}
        assert m.touch_many(accesses(m, range(64, 65)), 0, 1) == (0, VM_FAULT_OOM)


def test_c_knows_the_bits_of_a_vma_as_python_does():
    text = (topdir() / "csrc" / "fault.h").read_text()
    bits = dict(re.findall(r"^\t(VM_\w+) = (\w+),", text, re.M))
    assert 1 << int(bits.pop("VM_HUGEPAGE_SHIFT")) == vm_flags.VM_HUGEPAGE
    assert vm_flags.VM_HUGEPAGE << 1 == vm_flags.VM_NOHUGEPAGE
    assert len(bits) == 12
    assert {name: int(bit, 16) for name, bit in bits.items()} == {
        name: getattr(vm_flags, name) for name in bits
    }
