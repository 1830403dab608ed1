# SPDX-License-Identifier: GPL-2.0-only
"""Calls that find a table of records full: -ENOMEM, nothing half done, in C as in Python."""

from array import array

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import ANON_VMA_RECORD, AVC_RECORD, MM_RECORD, VMA_RECORD
from virtmm.mm.vm_flags import (
    ENOMEM,
    MADV_DONTFORK,
    MAP_FIXED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_OOM,
)

from tests.csrc.figures import everything
from tests.stateful.invariants import check, used
from virtmm import boot
from virtmm.accesses import CALL_MPROTECT, Accesses
from virtmm.kconfig import resolve

BASE = 1 << 36
RW = PROT_READ | PROT_WRITE
OPTIONS = (("FAST_FAULT=y",), ("FAST_FAULT=n",), ("C_RANGES=n",))
NO_MEMORY = (-ENOMEM, VM_FAULT_OOM)


def calls(m):
    """Make calls that need records; yield the name and the answer of each."""
    size = m.page_size

    def call(name, pid, page, *rest):
        if not m.has(pid):
            return name, 0
        return name, getattr(m, name)(pid, BASE + page * size, *rest)

    yield "spawn", m.spawn(1)
    file = m.open(7, 50 * size)
    yield call("mmap", 1, 0, 40 * size)
    for page in range(0, 40, 3):
        yield call("touch", 1, page, True)
    yield call("mprotect", 1, 10, 9 * size, PROT_READ)
    yield call("munmap", 1, 14, 2 * size)
    yield call("madvise", 1, 20, 5 * size, MADV_DONTFORK)
    yield call("mlock", 1, 30, 2 * size)
    yield call("mremap", 1, 33, 3 * size, BASE + 100 * size, 5 * size)
    yield call("mmap", 1, 40, 40 * size, PROT_READ, MAP_SHARED, file, 5)
    yield call("mprotect", 1, 50, 3 * size, RW)
    yield call("mmap", 1, 90, 5 * size, RW, MAP_SHARED)
    yield call("mmap", 1, 92, size, RW, MAP_SHARED | MAP_FIXED)
    yield call("touch", 1, 101, True)
    for child in (2, 3):
        if m.has(child - 1):
            yield "fork", m.fork(child - 1, child)
    for pid in (3, 2, 1):
        yield call("mprotect", pid, 2, 3 * size, PROT_READ)
        yield call("munmap", pid, 6, size)
        yield call("mmap", pid, 8, size, RW, MAP_FIXED)
        yield call("touch", pid, 8, True)
        yield call("mremap", pid, 100, 2 * size, BASE + 200 * size, 2 * size)
        yield call("mprotect", pid, 2, 3 * size, RW)
        yield call("munmap", pid, 91, 3 * size)
    if m.has(2):
        m.exit(2)
    yield "brk", m.brk(1, BASE + 300 * size, BASE + 304 * size)
    yield call("touch", 1, 301, True)
    yield call("munmap", 1, 0, 400 * size)
    for pid in (1, 3):
        if m.has(pid):
            m.exit(pid)


@pytest.mark.parametrize(
    ("table", "refusing"),
    [
        ("nr_avcs", {"touch", "fork", "mprotect", "munmap", "madvise", "mlock", "mremap", "mmap"}),
        ("nr_vmas", {"fork", "mprotect", "munmap", "madvise", "mlock", "mremap", "mmap", "brk"}),
        ("nr_files", {"mmap"}),
        ("nr_mms", {"fork"}),
    ],
)
@pytest.mark.parametrize("defconfig", ["anonfolio_basic", "linux-7.3"])
def test_a_full_table_is_no_memory_and_nothing_is_half_done(
    machine_of, monkeypatch, defconfig, table, refusing
):
    refused, records = set(), 2
    configs = [resolve("arm64", defconfig, sets=["MEMORY_MB=64", *o]) for o in OPTIONS]
    while True:
        monkeypatch.setitem(boot._COUNTS, table, records)
        machines = [
            machine_of(c, settings=["hugepages-64kB/enabled=always"][: defconfig[0] == "l"])
            for c in configs
        ]
        failed = set()
        for answers in zip(*map(calls, machines), strict=True):
            assert answers[0] == answers[1] == answers[2], records
            name, answer = answers[0]
            failed |= {answer}
            refused |= {name} if answer in NO_MEMORY else set()
            assert everything(machines[0]) == everything(machines[1]) == everything(machines[2])
            check(machines[0].k, 3)
        k = machines[0].k
        for slab, words in (
            ("vma", VMA_RECORD),
            ("avc", AVC_RECORD),
            ("anon_vma", ANON_VMA_RECORD),
            ("mm", MM_RECORD),
        ):
            number = getattr(layout, f"SLAB_{slab.upper()}")
            assert used(k, number, getattr(k, slab), words) == 0, slab
        for m in machines:
            m.close()
        machines.clear()
        if failed == {0}:
            break
        records += 1
    assert refused == refusing


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("name", "rest"),
    [("munmap", ()), ("mprotect", (PROT_READ,)), ("madvise", (MADV_DONTFORK,)), ("mlock", ())],
)
def test_a_vma_that_cannot_be_cut_is_as_before(machine_of, monkeypatch, option, name, rest):
    monkeypatch.setitem(boot._COUNTS, "nr_avcs", 2)
    m = machine_of(resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=64", *option]))
    k, size = m.k, m.page_size
    m.spawn(1)
    file = m.open(7, 40 * size)
    assert m.mmap(1, BASE, 40 * size, RW, 0, file) == 0
    assert m.touch(1, BASE, True) == 0

    def state():
        return [
            bytes(a)
            for a in (
                k.vma[: 3 * VMA_RECORD],
                k.avc,
                k.anon_vma[: 9 * ANON_VMA_RECORD],
                k.mm,
                k.file,
            )
        ]

    before = state()
    assert getattr(m, name)(1, BASE, 9 * size, *rest) == -ENOMEM
    assert state() == before
    assert m.touch(1, BASE + 39 * size, True) == 0
    assert m.munmap(1, BASE, 40 * size) == 0
    check(k)


def test_a_call_of_a_batch_that_fails_leaves_what_one_by_itself_leaves(machine_of, monkeypatch):
    """C tries it, then Python: twice as once."""
    monkeypatch.setitem(boot._COUNTS, "nr_avcs", 1 + (1 + 2 + 3) + 2)
    machines = [
        machine_of(resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=64", *o])) for o in OPTIONS
    ]
    size = machines[0].page_size
    for m in machines:
        m.spawn(1)
        assert m.mmap(1, BASE, 9 * size) == m.touch(1, BASE, True) == 0
        assert m.fork(1, 2) == m.fork(2, 3) == 0
        assert m.touch(3, BASE, True) == 0
        call = array("Q", (CALL_MPROTECT, 0, BASE, size, PROT_READ, 0, 0, 0))
        batch = Accesses(memoryview(array("Q", (0, 1 << 1))), 1, memoryview(call))
        batch.tasks[0] = m.task_record(3)
        assert m.touch_many(batch, 0, 1) == (0, 0)
        assert m.mprotect(3, BASE, size, PROT_READ) == -ENOMEM
        assert everything(m) == everything(machines[0])
