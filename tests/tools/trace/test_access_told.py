# SPDX-License-Identifier: GPL-2.0-only
"""Read or write of faults that do not say it: what a second fault tells, and what a mapping."""

from itertools import chain
from pathlib import Path

import pytest
from virtmm.tools.trace.access import Accesses
from virtmm.tools.trace.format import (
    FAULT_KERNEL,
    FAULT_PRESENT,
    KIND_FAULT,
    KINDS,
    File,
    TraceReader,
)

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
A = 0x7F0000000000
PAGE = 4096
READ, WRITE, EXEC = 1, 2, 4
FILE = File("/lib/lib.so", 5, 0)


def row(kind, addr=0, length=0, prot=0, flags=0, file=None, arg=0, pid=1, to=0, to_len=0):
    code = KINDS.index(kind)
    return (0, pid, pid, code, addr, length, to, to_len, prot, flags, 0, file, arg)


def mmap(prot=3, flags=0x22, file=None):
    return row("mmap", A, 8 * PAGE, prot, flags, file)


def fault(page=0, pid=1):
    return row("fault", A + page * PAGE + 8, pid=pid)


def guess(*rows):
    """Return (access, present) of each fault."""
    accesses = Accesses(PAGE)
    rows = (row("exec"), *rows)
    for r in rows:
        accesses.note(r)
    return [(r[8], r[9]) for r in map(accesses.settle, rows) if r[3] == KIND_FAULT]


@pytest.mark.parametrize(
    ("mapping", "access"),
    [
        (mmap(), WRITE),
        (mmap(1), READ),
        (mmap(5, 2, FILE), EXEC),
        (mmap(1, 2, FILE), READ),
        (mmap(3, 2, FILE), WRITE),
        (mmap(3, 1, FILE), READ),
        (mmap(3, 0x21), WRITE),
    ],
)
def test_one_fault_is_what_the_mapping_is_for(mapping, access):
    assert guess(mapping, fault()) == [(access, 0)]


def test_a_second_fault_tells_that_the_first_was_a_read():
    assert guess(mmap(), fault(), fault()) == [(READ, 0), (WRITE, FAULT_PRESENT)]


@pytest.mark.parametrize(
    "between",
    [
        row("munmap", A, PAGE),
        mmap(),
        row("madvise", A, 2 * PAGE, arg=4),
        row("mremap", A, PAGE, to=A + 64 * PAGE, to_len=PAGE),
    ],
)
def test_a_page_that_was_taken_away_faults_anew(between):
    assert guess(mmap(), fault(), between, mmap(), fault()) == [(WRITE, 0), (WRITE, 0)]


def test_other_advice_takes_nothing_away():
    assert guess(mmap(), fault(), row("madvise", A, PAGE, arg=14), fault())[1][1] == FAULT_PRESENT


def test_a_page_that_moved_is_the_same():
    rows = mmap(), fault(), row("mremap", A, PAGE, to=A + 64 * PAGE, to_len=PAGE), fault(64)
    assert guess(*rows) == [(READ, 0), (WRITE, FAULT_PRESENT)]


def test_after_a_fork_both_copy_and_the_first_stays_a_write():
    rows = mmap(), fault(), row("fork", arg=2), fault(), fault(pid=2), fault(1, pid=2)
    assert guess(*rows) == [(WRITE, 0), (WRITE, FAULT_PRESENT), (WRITE, FAULT_PRESENT), (WRITE, 0)]


def test_a_vfork_child_shares_pages():
    assert guess(mmap(), row("fork", flags=0x4100, arg=2), fault(pid=2), fault()) == [
        (READ, 0),
        (WRITE, FAULT_PRESENT),
    ]


def test_what_the_heap_no_longer_covers_is_gone():
    heap = row("brk", A), row("brk", A, 4 * PAGE)
    shrunk = row("brk", A, PAGE), row("brk", A, 4 * PAGE)
    assert guess(*heap, fault(), fault(2), *shrunk, fault(), fault(2)) == [
        (READ, 0),
        (WRITE, 0),
        (WRITE, FAULT_PRESENT),
        (WRITE, 0),
    ]


def test_memory_that_cannot_be_written_is_not():
    assert guess(mmap(5, 2, FILE), fault(), fault()) == [(EXEC, 0), (EXEC, 0)]


@pytest.mark.parametrize(("sample", "permille"), [("gcc", 4), ("python", 1)])
def test_samples_come_out_as_they_were(sample, permille):
    accesses, truth, blinded = Accesses(PAGE), [], []
    with TraceReader(SAMPLES / f"{sample}.parquet") as reader:
        for r in chain.from_iterable(reader.batches()):
            truth.append(r)
            blind = (0, r[9] & FAULT_KERNEL) if r[3] == KIND_FAULT else r[8:10]
            file = reader.files[r[11]] if r[11] else None
            blinded.append((*r[:8], *blind, r[10], file, r[12]))
            accesses.note(blinded[-1])
    told = map(accesses.settle, blinded)
    both = [(t, g) for t, g in zip(truth, told, strict=True) if t[3] == KIND_FAULT]
    wrong = sum((t[8] & 2, t[9]) != (g[8] & 2, g[9]) for t, g in both)
    assert 0 < wrong < len(both) * permille / 1000
    assert accesses.uncertain < len(both)
