# SPDX-License-Identifier: GPL-2.0-only
"""Entries: each bit apart from the others. Tables: made on the way down, freed when nobody needs them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtmm.arch import load_arch, names
from virtmm.mm import layout, pgtable
from virtmm.mm.arena import MM_RECORD
from virtmm.mm.fork import mm_alloc
from virtmm.mm.vm_flags import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE

from virtmm.kconfig import resolve
from virtmm.machine import Machine

FORMATS = [(arch, g.page_shift) for arch in names() for g in load_arch(arch).geometries]
PROTECTIONS = [
    sum(flags)
    for n in range(5)
    for flags in itertools.combinations((VM_READ, VM_WRITE, VM_EXEC, VM_SHARED), n)
]

#: name -> (how to read it, how to switch it on, how to switch it off)
BITS = {
    "write": (pgtable.pte_write, pgtable.pte_mkwrite, pgtable.pte_wrprotect),
    "dirty": (pgtable.pte_dirty, pgtable.pte_mkdirty, pgtable.pte_mkclean),
    "young": (pgtable.pte_young, pgtable.pte_mkyoung, pgtable.pte_mkold),
    "special": (pgtable.pte_special, pgtable.pte_mkspecial, None),
}


@pytest.fixture(scope="module", params=FORMATS, ids=[f"{a}-{1 << s >> 10}k" for a, s in FORMATS])
def k(request):
    arch, shift = request.param
    memory = 1024 if shift == 16 else 64
    kernel = f"baseline_{1 << shift >> 10}k"
    config = resolve(arch, kernel, sets=["C_RANGES=n", f"MEMORY_MB={memory}"])
    with Machine(config) as m:
        assert m.page_size == 1 << shift
        yield m.k


def state(k, pte):
    return {name: read(k, pte) for name, (read, _, _) in BITS.items()} | {
        "present": pgtable.pte_present(k, pte),
        "pfn": pgtable.pte_pfn(k, pte),
    }


# Entries


@pytest.mark.parametrize("flags", PROTECTIONS)
@pytest.mark.parametrize("bit", BITS)
def test_a_bit_is_switched_without_touching_another(k, flags, bit):
    read, on, off = BITS[bit]
    prot = pgtable.vm_get_page_prot(k, flags)
    others = [
        change for name, (_, *pair) in BITS.items() if name != bit for change in pair if change
    ]
    for changes in itertools.product((None, *others), repeat=2):
        pte = pgtable.mk_pte(k, 0x1234, prot)
        for change in filter(None, changes):
            pte = change(k, pte)
        before = state(k, pte)
        switched = on(k, pte)
        assert state(k, switched) == before | {bit: True}
        assert on(k, switched) == switched
        if off:
            assert state(k, off(k, switched)) == before | {bit: False}
            assert off(k, off(k, pte)) == off(k, pte)
            assert on(k, off(k, switched)) == switched
        assert read(k, switched)


@pytest.mark.parametrize("flags", PROTECTIONS)
def test_a_fresh_entry_is_present_old_clean_and_plain(k, flags):
    pte = pgtable.mk_pte(k, 77, pgtable.vm_get_page_prot(k, flags))
    assert state(k, pte) == {
        "write": flags & (VM_WRITE | VM_SHARED) == VM_WRITE | VM_SHARED,
        "dirty": False,
        "young": False,
        "special": False,
        "present": True,
        "pfn": 77,
    }
    assert pgtable.pte_accessible(k, pte, False) == bool(flags & ~VM_SHARED)
    assert pgtable.pte_accessible(k, pte, True) == (flags & VM_WRITE and flags & VM_SHARED != 0)
    executable = pte & k.arch.pte.exec.mask == k.arch.pte.exec.on
    assert executable == bool(flags & VM_EXEC)


def test_nothing_is_not_present(k):
    assert not pgtable.pte_present(k, 0)
    assert not pgtable.pte_accessible(k, 0, False)


@given(data=st.data())
def test_pfns_come_back(k, data):
    pfn = data.draw(st.integers(0, k.pfn_mask >> k.pfn_shift))
    flags = data.draw(st.sampled_from(PROTECTIONS))
    pte = pgtable.mk_pte(k, pfn, pgtable.vm_get_page_prot(k, flags))
    assert pgtable.pte_pfn(k, pte) == pfn
    for _, on, _ in BITS.values():
        assert pgtable.pte_pfn(k, on(k, pte)) == pfn


@pytest.mark.parametrize("old", PROTECTIONS)
def test_a_new_protection_keeps_page_and_history(k, old):
    for new, young, dirty, special in itertools.product(PROTECTIONS, (0, 1), (0, 1), (0, 1)):
        prot = pgtable.vm_get_page_prot(k, new)
        pte = pgtable.mk_pte(k, 9, pgtable.vm_get_page_prot(k, old))
        wanted = pgtable.mk_pte(k, 9, prot)
        for change, on in (
            (pgtable.pte_mkyoung, young),
            (pgtable.pte_mkdirty, dirty),
            (pgtable.pte_mkspecial, special),
        ):
            if on:
                pte, wanted = change(k, pte), change(k, wanted)
        assert pgtable.pte_modify(k, pte, prot) == wanted


# Tables


@pytest.fixture
def mm(k):
    mm = mm_alloc(k)
    yield mm
    pgtable.free_pgd_range(k, mm, 0, k.task_size, 0, 0)
    assert tables(k, mm) == pages(k, 0), "tables are left"
    pgtable.pgd_free(k, mm)
    assert k.vmstat[layout.VM_nr_page_table_pages] == 0


def tables(k, mm):
    """Return the pages of an mm's tables, as the kernel counts them."""
    return k.mm[mm * MM_RECORD + layout.MM_PGTABLES]


def pages(k, *depths):
    """Return the pages that one table at each of the depths takes, by the number of its entries."""
    bits = [level.bits for level in k.geometry.levels]
    return sum(max(1, (8 << bits[depth]) // k.page_size) for depth in depths)


def test_walks_agree_with_the_path_that_was_made(k, mm):
    below = range(1, len(k.levels) + 1)
    top = k.task_size - k.page_size
    assert pgtable.pte_offset_map(k, mm, 0) == 0
    place = pgtable.pte_alloc_map(k, mm, 0)
    assert tables(k, mm) == pages(k, 0, *below)
    assert pgtable.pte_offset_map(k, mm, k.page_size) == place + 1
    last = pgtable.pte_alloc_map(k, mm, top)
    own = [depth for depth in below if top >> k.levels[depth - 1][0]]
    assert own and tables(k, mm) == pages(k, 0, *below, *own)
    assert last & k.pte_mask == top >> k.page_shift & k.pte_mask
    assert pgtable.pte_alloc_map(k, mm, top) == last
    assert pgtable.pte_offset_map(k, mm, 1 << k.pmd_shift) == 0
    reach = 1 << k.pmd_shift
    end, begin = k.task_size, top & -reach
    assert pgtable.next_pmd(k, mm, 0, end) == (0, pgtable.pmd_offset(k, mm, 0))
    assert pgtable.next_pmd(k, mm, reach, end) == (begin, pgtable.pmd_offset(k, mm, top))
    assert pgtable.next_pmd(k, mm, reach, begin) == (begin, 0)
    assert pgtable.next_pmd(k, mm, top, end) == (top, pgtable.pmd_offset(k, mm, top))
    assert pgtable.pmd_addr_end(k, 5 * k.page_size, k.task_size) == reach
    assert pgtable.pmd_addr_end(k, 5 * k.page_size, 6 * k.page_size) == 6 * k.page_size


def test_a_table_stays_while_a_neighbour_could_need_it(k, mm):
    reach = 1 << k.pmd_shift
    base = 8 * reach
    pgtable.pte_alloc_map(k, mm, base)
    pgtable.pte_alloc_map(k, mm, base + reach)
    have = tables(k, mm)
    page = k.page_size
    # Below, the neighbour ends inside the first table; above, it begins inside the second.
    pgtable.free_pgd_range(
        k, mm, base + page, base + 2 * reach - page, base + page, base + 2 * reach - page
    )
    assert tables(k, mm) == have
    pgtable.free_pgd_range(k, mm, base + page, base + 2 * reach, base + page, base + 2 * reach)
    assert tables(k, mm) == have - pages(k, -1)
    assert pgtable.pte_offset_map(k, mm, base) and not pgtable.pte_offset_map(k, mm, base + reach)
    pgtable.free_pgd_range(k, mm, base, base + reach, base, base + reach)
    assert not pgtable.pte_offset_map(k, mm, base)
    # Tables above the last level hold other addresses too: they stay up to floor and ceiling.
    assert tables(k, mm) == have - 2 * pages(k, -1)


@given(data=st.data())
def test_freeing_takes_exactly_what_lies_between_the_neighbours(k, data):
    """One VMA of several goes: its tables go, unless they hold an address of another."""
    reach = 1 << k.pmd_shift
    near = st.integers(0, 40).map(lambda i: i * reach // 4)
    middle = 1 << k.levels[-2][0] if len(k.levels) > 1 else 64 * reach
    far = near.map(lambda a: a + middle - 5 * reach)
    edges = sorted(data.draw(st.sets(st.one_of(near, far), min_size=2, max_size=8)))
    edges = edges[: len(edges) // 2 * 2]
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    order = data.draw(st.permutations(range(len(spans))))
    mm = mm_alloc(k)
    for start, end in spans:
        at = start
        while at < end:
            pgtable.pte_alloc_map(k, mm, at)
            at = pgtable.pmd_addr_end(k, at, end)
    left = set(range(len(spans)))
    for i in order:
        left.remove(i)
        floor = max((spans[j][1] for j in left if j < i), default=0)
        ceiling = min((spans[j][0] for j in left if j > i), default=0)
        pgtable.free_pgd_range(k, mm, *spans[i], floor, ceiling)
        assert tables(k, mm) == needed(k, [spans[j] for j in left])
    pgtable.pgd_free(k, mm)


def needed(k, spans):
    """Return the pages of the tables that some spans need: the root, and one for each stretch they meet."""
    count = pages(k, 0)
    for depth, (shift, _) in enumerate(k.levels, 1):
        met = set()
        for start, end in spans:
            met |= set(range(start >> shift, (end - 1 >> shift) + 1))
        count += len(met) * pages(k, depth)
    return count


def test_the_entries_of_a_large_table_are_all_its_own(configure, machine_of):
    """Each of the 2048 entries of a root of four pages leads to a table of its own."""
    k = machine_of(configure("s390-baseline-4k", "C_RANGES=n", "DEBUG_VM=y", "MEMORY_MB=256")).k
    before = k.zone[layout.ZONE_NR_FREE]
    mm, (shift, mask) = mm_alloc(k), k.levels[0]
    root = k.mm[mm * MM_RECORD + layout.MM_PGD]
    assert root % 4 == 0 and k.zone[layout.ZONE_TABLE] == 4
    for i in range(0, mask + 1, 128):
        place = pgtable.pmd_alloc(k, mm, i << shift)
        assert k.phys[(root << k.table_shift) + i] and not k.phys[place]
        assert pgtable.pmd_offset(k, mm, (i + 1 << shift) - 1) == place + k.pmd_mask
    assert tables(k, mm) == k.zone[layout.ZONE_TABLE] == 4 + 16 * 4
    pgtable.free_pgd_range(k, mm, 0, k.task_size, 0, 0)
    pgtable.pgd_free(k, mm)
    assert k.zone[layout.ZONE_NR_FREE] == before and not k.zone[layout.ZONE_TABLE]


def test_no_block_for_a_large_table_is_out_of_memory(configure, machine_of):
    from virtmm.mm.fault_inject import FaultInjection

    inject = FaultInjection()
    inject.alloc = {2: {2}}
    k = machine_of(configure("s390-baseline-4k"), inject=inject).k
    mm = mm_alloc(k)
    assert pgtable.pte_alloc_map(k, mm, 0) == 0
    assert (tables(k, mm), k.vmstat[layout.VM_oom_kill]) == (4, 1)
    assert pgtable.pte_alloc_map(k, mm, 0) != 0
    assert tables(k, mm) == 9


def test_nobody_is_killed_for_a_costly_root(machine_of):
    from virtmm.mm.fault_inject import FaultInjection

    inject = FaultInjection()
    inject.alloc = {4: {2}}
    sets = ("MEMORY_MB=64", "FAULT_INJECTION=y")
    m = machine_of(resolve("powerpc", "baseline_4k", sets=sets), inject=inject)
    assert m.spawn(1) == 0
    assert m.fork(1, 2) == -12
    assert m.k.vmstat[layout.VM_oom_kill] == 0
    assert m.fork(1, 2) == 0
    assert m.k.zone[layout.ZONE_TABLE] == 2 * 16


def test_a_table_that_cannot_be_had_leaves_the_others(configure, machine_of):
    from virtmm.mm.fault_inject import FaultInjection

    inject = FaultInjection()
    k = machine_of(configure("arm64-baseline-4k"), inject=inject).k
    mm = mm_alloc(k)
    inject.alloc = {0: {inject._allocs[0] + 2}}
    assert pgtable.pte_alloc_map(k, mm, 0) == 0
    assert tables(k, mm) == 2
    assert pgtable.pte_offset_map(k, mm, 0) == 0
    assert pgtable.pte_alloc_map(k, mm, 0) != 0
    assert tables(k, mm) == 4
