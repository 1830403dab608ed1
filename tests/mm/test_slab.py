# SPDX-License-Identifier: GPL-2.0-only
"""Tables of records: numbers from 1, zeroed when given out, used again last in, first out."""

import pytest
from virtmm.mm.layout import SLAB_ANON_VMA
from virtmm.mm.slab import slab_alloc, slab_free

WORDS = 4


@pytest.fixture
def slab(configure, machine_of):
    """Return functions to take and give back records of a table with room for five."""
    k = machine_of(configure("x86-baseline-4k", "C_RANGES=n")).k
    table = memoryview(bytearray(6 * WORDS * 4)).cast("I")
    return (
        lambda: slab_alloc(k, SLAB_ANON_VMA, table, WORDS),
        lambda record: slab_free(k, SLAB_ANON_VMA, table, WORDS, record),
        table,
    )


def test_numbers_start_at_one_and_a_full_table_gives_none(slab):
    take, _, _ = slab
    assert [take() for _ in range(7)] == [1, 2, 3, 4, 5, 0, 0]


def test_the_last_record_given_back_is_the_first_used_again(slab):
    take, give, _ = slab
    for _ in range(4):
        take()
    give(2)
    give(3)
    assert [take() for _ in range(4)] == [3, 2, 5, 0]


def test_a_record_is_zeroed_when_it_is_used_again(slab):
    take, give, table = slab
    take()
    take()
    table[1 * WORDS : 3 * WORDS] = memoryview(b"\xff" * 2 * WORDS * 4).cast("I")
    give(1)
    give(2)
    assert (take(), take()) == (2, 1)
    assert not any(table)


def test_records_do_not_run_into_one_another(slab):
    take, give, table = slab
    for _ in range(5):
        record = take()
        table[record * WORDS : (record + 1) * WORDS] = memoryview(bytes([record] * WORDS * 4)).cast(
            "I"
        )
    give(3)
    assert [table[r * WORDS + 1] & 0xFF for r in range(6)] == [0, 1, 2, 0, 4, 5]
