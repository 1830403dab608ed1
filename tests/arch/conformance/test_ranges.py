# SPDX-License-Identifier: GPL-2.0-only
"""Runs of entries: n of them are one, n times; and the compiled core does what its Python twin does."""

import pytest
from virtmm.mm import layout, pgtable
from virtmm.mm.page_alloc import folio_alloc
from virtmm.mm.ranges import PyRanges
from virtmm.mm.vm_flags import VM_READ, VM_WRITE


@pytest.fixture(scope="module")
def k(boot):
    return boot("C_RANGES=y").k


@pytest.fixture
def table(k):
    """A last-level table: (index of its first entry, number of entries)."""
    order = k.table_orders[-1]
    pfn = folio_alloc(k, order, layout.PG_table, layout.ZONE_TABLE)
    first, nr = pfn << k.table_shift, k.pte_mask + 1
    k.ops.clear_ptes(first, nr)
    yield first, nr
    k.ops.clear_ptes(first, nr)


def content(k, table):
    return k.phys[table[0] : table[0] + table[1]].tolist()


def both(k, table, call):
    """Make a call on the core and, from the same state, on the twin; return (result, entries)."""
    before = content(k, table)
    result, after = call(k.ops), content(k, table)
    for i, entry in enumerate(before):
        k.phys[table[0] + i] = entry
    assert call(PyRanges(k)) == result
    assert content(k, table) == after
    return result, after


def test_a_run_is_set_as_its_entries_one_by_one(k, table):
    first, most = table
    prot = pgtable.vm_get_page_prot(k, VM_READ | VM_WRITE)
    for nr in sorted({1, 2, most // 2 + 1, most}):
        for start in {0, most - nr}:
            entry = pgtable.pte_mkyoung(k, pgtable.mk_pte(k, 77, prot))
            k.ops.clear_ptes(first, most)
            _, found = both(
                k, table, lambda ops, n=nr, s=start, e=entry: ops.set_ptes(first + s, e, n)
            )
            wanted = [0] * most
            for i in range(nr):
                wanted[start + i] = pgtable.pte_mkyoung(k, pgtable.mk_pte(k, 77 + i, prot))
            assert found == wanted


def test_a_run_is_changed_as_its_entries_one_by_one(k, table):
    first, nr = table
    bits = k.arch.pte
    prot = pgtable.vm_get_page_prot(k, VM_READ)
    for change, attr, on in (
        (pgtable.pte_wrprotect, bits.write, False),
        (pgtable.pte_mkwrite, bits.write, True),
        (pgtable.pte_mkold, bits.young, False),
        (pgtable.pte_mkdirty, bits.dirty, True),
    ):
        old = [
            (pgtable.pte_mkwrite if i % 2 else pgtable.pte_mkyoung)(k, pgtable.mk_pte(k, i, prot))
            for i in range(nr)
        ]
        for i, entry in enumerate(old):
            k.phys[first + i] = entry
        value = attr.on if on else attr.off
        _, found = both(
            k, table, lambda ops, a=attr, v=value: ops.modify_ptes(first, a.mask, v, nr)
        )
        assert found == [change(k, entry) for entry in old]


def test_none_is_found_and_made(k, table):
    first, nr = table
    entry = pgtable.mk_pte(k, 5, pgtable.vm_get_page_prot(k, 0))
    for at in {0, 1, nr // 2, nr - 1}:
        k.ops.clear_ptes(first, nr)
        assert both(k, table, lambda ops: ops.check_ptes_none(first, nr))[0] == nr
        k.phys[first + at] = entry
        assert both(k, table, lambda ops: ops.check_ptes_none(first, nr))[0] == at
        _, found = both(k, table, lambda ops, n=at: ops.clear_ptes(first + n, nr - n))
        assert not any(found)


def test_a_batch_ends_where_something_differs(k, table):
    first, nr = table
    bits, prot = k.arch.pte, pgtable.vm_get_page_prot(k, VM_READ)
    ignore = bits.young.mask | bits.dirty.mask
    k.ops.set_ptes(first, pgtable.mk_pte(k, 100, prot), nr)
    assert both(k, table, lambda ops: ops.folio_pte_batch(first, ignore, nr))[0] == nr
    at = nr - 2
    good = k.phys[first + at]
    none = pgtable.mk_pte(k, 100 + at, pgtable.vm_get_page_prot(k, 0))
    for entry, length in (
        (pgtable.pte_mkyoung(k, pgtable.pte_mkdirty(k, good)), nr),
        (pgtable.pte_mkwrite(k, good), at),
        (pgtable.pte_mkspecial(k, good), at),
        (pgtable.mk_pte(k, 99, prot), at),
        (none, at),
        (0, at),
    ):
        k.phys[first + at] = entry
        assert both(k, table, lambda ops: ops.folio_pte_batch(first, ignore, nr))[0] == length


def test_zeroing_and_copying(k):
    low = k.config.nr_pages - 8
    words = 1 << k.table_shift
    memory = k.phys[low * words : (low + 8) * words].cast("B")
    results = []
    for ops in (k.ops, PyRanges(k)):
        for clear in (
            lambda ops: ops.clear_pages(low + 1, 3),
            lambda ops: ops.clear_huge_page(low, 4, 2),
        ):
            memory[:] = b"\xa5" * len(memory)
            clear(ops)
            ops.copy_pages(low + 5, low + 2, 2)
            results.append(bytes(memory))
    size = k.page_size
    used, zero = b"\xa5" * size, bytes(size)
    assert results[:2] == results[2:]
    assert results[0] == used + 3 * zero + used + 2 * zero + used
    assert results[1] == 4 * zero + used + 2 * zero + used
