# SPDX-License-Identifier: GPL-2.0-only
"""Copy on write by whole folios in C (ANON_COW_*): Python serves none, and what is left is the same."""

import random

import pytest
from virtmm.mm.vm_flags import MADV_HUGEPAGE, MADV_NOHUGEPAGE

import virtmm.machine
from virtmm.kconfig import resolve

BASE = 1 << 36
PROT_READ, PROT_RW = 1, 3


def write_all(m, pid, pages):
    for page in pages:
        assert m.touch(pid, BASE + page * m.page_size, True) == 0


def started(m, pages, write=True):
    """Let process 1 map memory and touch it."""
    m.spawn(1)
    assert m.mmap(1, BASE, pages * m.page_size) == 0
    for page in range(pages):
        assert m.touch(1, BASE + page * m.page_size, write) == 0


def left_by(m):
    figures = m.work(), m.events(), m.vmstat(), m.refusals(), m.hugepages(), m.processes()
    return m.digest(), *figures, m.tlb(), m.memory()


def machine(machine_of, fast, sets=(), fragments=(), enabled="always"):
    sets = ["MEMORY_MB=64", f"FAST_FAULT={fast}", *sets]
    m = machine_of(resolve("arm64", "contpte", fragments, sets))
    m.set("enabled", enabled)
    return m


@pytest.fixture
def both(machine_of, monkeypatch):
    """
    Run a program, then writes that C must serve, on a machine with C and on one without.

    Both must be left alike; returns events and work.
    """
    seen = []
    access = virtmm.machine.access

    def count(*args):
        seen.append(args)
        return access(*args)

    monkeypatch.setattr(virtmm.machine, "access", count)

    def run(program, writes, *sets):
        left = []
        for fast in "yn":
            m = machine(machine_of, fast, sets)
            program(m)
            seen.clear()
            for pid, pages in writes:
                write_all(m, pid, pages)
            assert bool(seen) == (fast == "n")
            left.append(left_by(m))
        assert left[0] == left[1]
        return m.events(), m.work()

    return run


def test_a_write_to_a_zero_page_takes_the_zero_pages_around_it(both):
    def read(m):
        started(m, 100, write=False)
        assert m.munmap(1, BASE + 20 * m.page_size, m.page_size) == 0
        assert m.munmap(1, BASE + 70 * m.page_size, m.page_size) == 0
        write_all(m, 1, [33])

    # 64 to 69 and 71 to 79 lie beside a hole, 96 to 99 at the end; 32 to 47 are there already.
    events, _ = both(read, [(1, [50, 17, 24, 40, 65, 78, 99])])
    assert events["wp_zero"] == {"2": 3, "3": 2, "4": 2}


def test_an_empty_entry_among_zero_pages_is_taken_too(both):
    def read(m):
        m.spawn(1)
        assert m.mmap(1, BASE, 64 * m.page_size) == 0
        for page in range(0, 64, 3):
            assert m.touch(1, BASE + page * m.page_size, False) == 0
        write_all(m, 1, [63])

    events, work = both(read, [(1, [0, 33])])
    assert events["wp_zero"] == {"4": 3}
    single, more = both(read, [(1, [0, 33])], "ANON_COW_ZERO=n")
    assert single["wp_zero"] == {"0": 3}
    assert work["tlbi"] == more["tlbi"]
    assert work["pte_write"] > more["pte_write"]


def shared(m, pages=100):
    started(m, pages)
    assert m.fork(1, 2) == 0


def test_a_write_to_a_shared_folio_copies_all_of_it(both):
    events, work = both(shared, [(2, [5, 40, 99]), (1, [7, 41, 98])])
    assert events["wp_copy"] == {"2": 1, "4": 2}
    assert events["wp_reuse"] == 3, "the other has the folio to itself then"
    assert work["contpte_unfold"] == 0


def test_what_is_left_of_a_folio_is_copied_in_parts(both):
    def program(m):
        started(m, 64)
        assert m.munmap(1, BASE + 19 * m.page_size, m.page_size) == 0
        assert m.fork(1, 2) == 0
        assert m.mprotect(2, BASE + 56 * m.page_size, 8 * m.page_size, PROT_READ) == 0

    events, _ = both(program, [(2, [17, 21, 30, 33, 50]), (1, range(19)), (1, range(20, 64))])
    assert events["wp_copy"] == {"0": 4, "2": 2, "3": 3, "4": 3}


def test_a_part_is_taken_out_of_its_contiguous_block(both):
    def program(m):
        shared(m, 64)
        assert m.madvise(2, BASE + 24 * m.page_size, 8 * m.page_size, MADV_HUGEPAGE) == 0

    events, work = both(program, [(2, [25, 40])])
    assert events["wp_copy"] == {"3": 1, "4": 1}
    assert work["contpte_unfold"] == 1
    sets = "EXPERT=y", "CONTPTE_BATCH=n"
    _, fork_alone = both(program, [(2, [0])], *sets)
    _, all_blocks = both(program, [(2, [0, 25, 40])], *sets)
    assert all_blocks["contpte_unfold"] == fork_alone["contpte_unfold"] + 2


def test_pages_that_are_unmapped_one_by_one(both):
    """Without v1's patch 5 each page takes a call, and a folio is queued even by its last page."""

    def program(m):
        shared(m, 48)
        assert m.munmap(2, BASE, 4 * m.page_size) == 0

    writes = [(1, range(4, 48)), (2, range(4, 48)), (1, range(4))]
    sets = "EXPERT=y", "ANON_ZAP_BATCH=n", "ANON_RMAP_REMOVE_RANGE=n", "ANON_COW_REUSE=n"
    events, work = both(program, writes, *sets)
    assert events["anon_free"] == {"4": 3}
    _, together = both(program, writes, "ANON_COW_REUSE=n")
    assert work["rmap_remove"] > together["rmap_remove"]


def test_a_write_makes_the_rest_of_the_folio_writable(both):
    def program(m):
        shared(m)
        write_all(m, 2, [3])
        m.exit(2)

    events, _ = both(program, [(1, range(100))])
    assert events["wp_reuse"] == 7
    assert events["wp_copy"] == {"4": 1}


def test_a_copy_is_as_large_as_a_new_folio_may_be_now(machine_of):
    left = []
    for fast in "yn":
        m = machine(machine_of, fast, fragments=("16k",))
        shared(m, 256)
        assert m.madvise(2, BASE + 128 * m.page_size, 64 * m.page_size, MADV_NOHUGEPAGE) == 0
        write_all(m, 2, [5, 128])
        m.set("enabled", "never")
        write_all(m, 2, [200])
        assert m.events()["wp_copy"] == {"2": 2, "7": 1}
        left.append(left_by(m))
    assert left[0] == left[1]


def run_at_random(m, program, size):
    """Touch, unmap, map, protect, fork and exit, as ``program`` says; failures are results."""
    m.spawn(1)
    assert m.mmap(1, BASE, size * m.page_size) == 0
    pids, new = [1], 2
    for what, where, how in program:
        pid, at = pids[how % len(pids)], BASE + where * m.page_size
        length = (1 + how % 20) * m.page_size
        if what == "touch":
            for i in range(1 + how % 9):
                m.touch(pid, at + i * m.page_size, how % 10 < 7)
        elif what == "map":
            assert m.munmap(pid, at, length) == 0
            assert m.mmap(pid, at, length) == 0
        elif what == "protect":
            m.mprotect(pid, at, length, PROT_READ if how % 5 < 2 else PROT_RW)
        elif what == "fork" and len(pids) < 4:
            assert m.fork(pid, new) == 0
            pids.append(new)
            new += 1
        elif what == "exit" and len(pids) > 1:
            pids.remove(pid)
            m.exit(pid)


@pytest.mark.parametrize("step", ["basic", "batch", "fold"])
@pytest.mark.parametrize("pages", [(), ("16k",)])
@pytest.mark.parametrize("seed", range(4))
def test_any_of_the_paths_leaves_what_python_leaves(machine_of, pages, step, seed):
    rng = random.Random(f"{seed} {step} {pages}")
    sets = [f"ANON_COW_{what}={rng.choice('yyn')}" for what in ("ZERO", "COPY", "REUSE")]
    if seed == 3:
        sets += ["EXPERT=y", "ANON_ZAP_BATCH=n", "ANON_RMAP_REMOVE_RANGE=n"]
    kinds = [*["touch"] * 9, "map", "protect", "protect", "fork", "exit"]
    program = [(rng.choice(kinds), rng.randrange(300), rng.randrange(9999)) for _ in range(600)]
    enabled = ("always", "madvise")[seed % 2]
    left = []
    for fast in "yn":
        m = machine(machine_of, fast, sets, (*pages, f"contpte-{step}"), enabled)
        run_at_random(m, program, 300)
        left.append(left_by(m))
    assert left[0] == left[1]
    assert {"wp_zero", "wp_copy", "wp_reuse"} <= m.events().keys()
