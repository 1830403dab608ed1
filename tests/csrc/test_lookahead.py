# SPDX-License-Identifier: GPL-2.0-only
"""Accesses all over address spaces, which C looks ahead for, leave what Python leaves."""

import random
from array import array

import pytest
from virtmm.mm.vm_flags import VM_FAULT_SIGSEGV

from virtmm.accesses import Accesses
from virtmm.kconfig import resolve
from virtmm.machine import Machine

BASE = 1 << 36
MIB = 1 << 20
#: VMAs, each alone in its page table; every fifth can be huge.
PLACES = [(BASE + i * 4 * MIB, 2 * MIB if i % 5 == 0 else 64 << 10) for i in range(40)]


def populated(fast):
    """Boot; process 1 has all kinds of memory, 2 is its child, 3 has one mapping, 4 none."""
    sets = ["MEMORY_MB=256", f"FAST_FAULT={fast}"]
    m = Machine(resolve("arm64", "linux-7.3", sets=sets), ["enabled=always", "64kB=always"])
    m.spawn(1)
    file = m.open(7, MIB)
    for i, (start, size) in enumerate(PLACES):
        if i % 5 == 1:
            assert m.mmap(1, start, size, 1 | i & 2, file=file) == 0
        else:
            assert m.mmap(1, start, size) == 0
        if i % 3 == 0:
            assert m.touch(1, start, i % 5 != 1) == 0
    assert m.fork(1, 2) == 0
    m.spawn(3)
    assert m.mmap(3, *PLACES[7]) == 0
    m.spawn(4)
    return m


def everywhere(m, seed, turn, number=4000):
    """Return accesses of the four processes, ``turn`` in a mapping, most of them where they have memory."""
    rng = random.Random(seed)
    words = array("Q")
    for at in range(number):
        if at % turn == 0:
            start, size = rng.choice(PLACES)
            slot = rng.choice((0, 0, 0, 0, 1, 1, 1, 2) if rng.randrange(20) else (3, 4))
        address = start + rng.randrange(size)
        if rng.randrange(200) == 0:
            address = rng.choice((0, start - 1, start + size, 1 << 60, (1 << 64) - 1))
        words.extend((address, slot << 1 | rng.randrange(2)))
    found = Accesses(memoryview(words), 5)
    for slot in range(4):
        found.tasks[slot] = m.task_record(slot + 1)
    return found


@pytest.mark.parametrize(("seed", "turn"), [(0, 1), (1, 1), (2, 3), (3, 33), (4, 70)])
def test_accesses_in_any_order_leave_what_python_leaves(seed, turn):
    left = []
    for fast in "yn":
        with populated(fast) as m:
            words = everywhere(m, seed, turn)
            at, ends, number = 0, [], len(words.words) // 2
            while at < number:
                at, error = m.touch_many(words, at, number)
                ends.append((at, error))
                at += 1
            assert m.minflt(1) + m.minflt(2) > 300
            assert (number, 0) == ends[-1] or ends[-1][1]
            assert VM_FAULT_SIGSEGV in {error for _, error in ends}
            left.append((ends, m.digest(), m.events(), m.work(), m.vmstat(), m.refusals()))
    assert left[0] == left[1]


def test_a_huge_entry_is_of_the_process_whose_access_it_was():
    """One has a huge page where the other has only a mapping: the other faults where the first may write."""
    faults = []
    for fast in "yn":
        sets = ["MEMORY_MB=256", f"FAST_FAULT={fast}"]
        with Machine(resolve("arm64", "linux-7.3", sets=sets), ["enabled=always"]) as m:
            for pid in (1, 2):
                m.spawn(pid)
                assert m.mmap(pid, BASE, 2 * MIB) == 0
            assert m.touch(1, BASE, True) == 0
            words = array("Q", [BASE, 1, BASE, 2, BASE, 3])
            found = Accesses(memoryview(words), 2)
            for slot in (0, 1):
                found.tasks[slot] = m.task_record(slot + 1)
            assert m.touch_many(found, 0, 3) == (3, 0)
            faults.append((m.minflt(1), m.minflt(2)))
    assert faults == [(1, 2)] * 2
