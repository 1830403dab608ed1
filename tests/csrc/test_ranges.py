# SPDX-License-Identifier: GPL-2.0-only
"""Each loop of core.cdef against its Python twin, on random state, and against what it says it does."""

import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD, FastPaths, RangeOps
from virtmm.mm.ranges import PyRanges

from virtmm import topdir

SIZES = (1, 7, 8, 9, 512, 8192)
# Free memory, far from what boot used, in words of phys: tables of any size, and pages to map.
TABLE = 1 << 19
FIRST = 1024
KERNELS = ("arm64-anonfolio-4k", "arm64-anonfolio-64k", "x86-baseline-4k")
KINDS = ("next", "next", "next", "none", "prot_none", "special", "young", "write", "dirty", "jump")


@pytest.fixture(params=KERNELS)
def k(request, configure, machine_of):
    return machine_of(configure(request.param, "C_RANGES=y")).k


@pytest.fixture
def rng():
    return random.Random(20230626)


def words(k):
    """Return the parts of the arena that a loop may change."""
    return {
        "phys": k.phys[TABLE - 16 : TABLE + 8192 + 16],
        "page": k.page[FIRST * PAGE_RECORD : (FIRST + 1100) * PAGE_RECORD],
        "mm": k.mm[:64],
        "event": k.event[:],
        "work": k.work[:],
        "vmstat": k.vmstat[:],
        "mthp_stat": k.mthp_stat[:],
        "tlb": k.tlb[:],
        "zone": k.zone[:],
        "run": k.run[:],
    }


def snapshot(k):
    return {name: bytes(view) for name, view in words(k).items()}


def both(k, call):
    """Make a call in C and, from the same state, in Python; both must do the same. Return its result."""
    before = snapshot(k)
    result = call(k.ops)
    after = snapshot(k)
    for name, view in words(k).items():
        view.cast("B")[:] = before[name]
    twin = call(PyRanges(k))
    changed = [name for name, data in snapshot(k).items() if data != after[name]]
    assert (twin, changed) == (result, []), "C and its twin differ"
    return result


def entries(k, rng, nr):
    """Fill a table with nr random entries: runs of pages, holes, attributes, odd ones out."""
    bits, pfn, found = k.arch.pte, FIRST, []
    while len(found) < nr:
        kind = rng.choice(KINDS)
        for _ in range(rng.choice((1, 1, 2, 9, 17))):
            pfn = FIRST + (pfn + 1 - FIRST) % 1024
            entry = bits.user & ~bits.write.mask | bits.write.off | pfn << k.pfn_shift
            if kind == "none":
                entry = 0
            elif kind == "jump":
                pfn = FIRST + rng.randrange(1024)
            elif kind == "prot_none":
                entry = entry & ~bits.present.mask | bits.present.off
                entry = entry & ~bits.prot_none.mask | bits.prot_none.on
            elif kind != "next":
                attr = getattr(bits, kind)
                entry = entry & ~attr.mask | attr.on
            found.append(entry)
    for i, entry in enumerate(found[:nr]):
        k.phys[TABLE + i] = entry
    return found[:nr]


def folios(k, rng, table):
    """Make every page from FIRST on part of a folio, mapped by the table and at times by others too."""
    mapped = Counter((entry & k.pfn_mask) >> k.pfn_shift for entry in table if entry)
    pfn = FIRST
    while pfn < FIRST + 1088:
        order = rng.choice((0, 2, 3, 4))
        order = min(order, (pfn & -pfn).bit_length() - 1)
        order = 0 if order == 1 else order
        flags = rng.choice((layout.PG_anon,) * 4 + (layout.PG_file,))
        PyRanges(k).prep_compound_page(pfn, order, flags)
        counts = [mapped[p] + rng.choice((0, 0, 1)) for p in range(pfn, pfn + (1 << order))]
        for i, count in enumerate(counts):
            record = (pfn + i) * PAGE_RECORD
            k.page[record + layout.PAGE_MAPCOUNT] = count
            k.page[record + layout.PAGE_FLAGS] |= rng.choice((0, layout.PG_exclusive))
        head = pfn * PAGE_RECORD
        k.page[head + layout.PAGE_REFCOUNT] = sum(counts) + rng.choice((0, 0, 1))
        if order:
            k.page[head + layout.FOLIO_NR_PAGES_MAPPED] = sum(count > 0 for count in counts)
            k.page[head + layout.FOLIO_LARGE_MAPCOUNT] = sum(counts)
        pfn += 1 << order


def fields(k, page, field):
    return k.page[page * PAGE_RECORD + field]


def test_python_reaches_every_function_of_the_core(k):
    cdef = (topdir() / "csrc" / "core.cdef").read_text()
    names = {name.removeprefix("vk_") for name in re.findall(r"(\w+)\(struct vk", cdef)}
    protocol = {name for name in vars(RangeOps) if not name.startswith("_")}
    accesses = {"touch", "touch_many", "run_many"}  # their reference is the logic of mm/
    fast = {name for name in vars(FastPaths) if not name.startswith("_")}
    assert accesses | fast < names
    assert all(callable(getattr(k.fast, name)) for name in fast)
    names -= accesses | fast
    assert names == protocol
    assert all(callable(getattr(k.ops, name)) and hasattr(PyRanges, name) for name in names)


@pytest.mark.parametrize("nr", SIZES)
def test_check_ptes_none(k, nr):
    k.phys[TABLE - 1] = k.phys[TABLE + nr] = 1
    assert both(k, lambda ops: ops.check_ptes_none(TABLE, nr)) == nr
    for at in {0, 1, nr // 2, max(nr - 9, 0), max(nr - 2, 0), nr - 1} & set(range(nr)):
        k.phys[TABLE + at] = 1 << 63
        assert both(k, lambda ops: ops.check_ptes_none(TABLE, nr)) == at
        k.phys[TABLE + at] = 0
    assert both(k, lambda ops: ops.check_ptes_none(TABLE, 0)) == 0


@pytest.mark.parametrize("nr", SIZES)
def test_set_and_clear_ptes(k, nr):
    entry = k.arch.pte.user | FIRST << k.pfn_shift
    both(k, lambda ops: ops.set_ptes(TABLE, entry, nr))
    assert k.phys[TABLE : TABLE + nr].tolist() == [entry + (i << k.pfn_shift) for i in range(nr)]
    assert not k.phys[TABLE - 1] and not k.phys[TABLE + nr]
    k.phys[TABLE + nr] = 7
    both(k, lambda ops: ops.clear_ptes(TABLE, nr))
    assert not any(k.phys[TABLE : TABLE + nr])
    assert k.phys[TABLE + nr] == 7


@pytest.mark.parametrize("nr", SIZES)
def test_modify_ptes(k, rng, nr):
    old = entries(k, rng, nr)
    k.phys[TABLE + nr] = (1 << 64) - 1
    clear, bits = rng.getrandbits(64), rng.getrandbits(64)
    both(k, lambda ops: ops.modify_ptes(TABLE, clear, bits, nr))
    assert k.phys[TABLE : TABLE + nr].tolist() == [e & ~clear | bits for e in old]
    assert k.phys[TABLE + nr] == (1 << 64) - 1


@pytest.mark.parametrize("seed", range(40))
def test_folio_pte_batch(k, seed):
    rng = random.Random(seed)
    table = entries(k, rng, 64)
    bits = k.arch.pte
    ignore = rng.choice((0, bits.write.mask | bits.young.mask, bits.dirty.mask))
    for at in range(63):
        if not table[at]:
            continue
        most = rng.choice((1, 2, 8, 64 - at))
        most = min(most, 64 - at)
        nr = both(k, lambda ops: ops.folio_pte_batch(TABLE + at, ignore, most))  # noqa: B023
        run = table[at : at + nr]
        step = 1 << k.pfn_shift
        assert 1 <= nr <= most
        assert all(e & ~ignore == (run[0] & ~ignore) + i * step for i, e in enumerate(run))
        if nr < most:
            assert table[at + nr] & ~ignore != (run[0] & ~ignore) + nr * step


def test_folio_pte_batch_stops_at_an_entry_that_is_not_present(k):
    """Nothing present continues a run, though its bits may happen to."""
    entry = FIRST << k.pfn_shift
    for i in range(4):
        k.phys[TABLE + i] = entry + (i << k.pfn_shift)
    assert both(k, lambda ops: ops.folio_pte_batch(TABLE, 0, 4)) == 1


@pytest.mark.parametrize("nr", (1, 3, 4, 5, 64, 512))
def test_tlb_reach_ptes(k, rng, nr):
    """A random table, with groups and a contiguous block where there is such a bit, page by page."""
    bits, at = k.arch.pte, layout.TLB_ALIVE + layout.TLB_TEXT
    entries(k, rng, nr)
    cont, block = bits.cont.mask if bits.cont else 0, 16
    if nr >= 64:
        k.ops.set_ptes(TABLE + 16, bits.user | FIRST << k.pfn_shift | cont, block)
        k.ops.set_ptes(TABLE + 41, bits.user | (FIRST + 1) << k.pfn_shift, 20)
    table = k.phys[TABLE : TABLE + nr].tolist()
    for i in range(8):
        k.tlb[at + i] = 100
    both(k, lambda ops: ops.tlb_reach_ptes(TABLE, nr, cont, block, at))
    found = [n - 100 for n in k.tlb[at : at + 8].tolist()]
    reached = [e & bits.present.mask == bits.present.on for e in table]
    pages, marked = sum(reached), sum(e & cont != 0 for e in table)
    joined = joined_marked = 0
    for i in range(0, nr - 3, 4):
        step = [table[i] + (j << k.pfn_shift) for j in range(4)]
        aligned = not (table[i] & k.pfn_mask) >> k.pfn_shift & 3
        if reached[i] and aligned and table[i : i + 4] == step:
            joined += 3
            joined_marked += 3 * (table[i] & cont != 0)
    assert joined > joined_marked or nr < 64
    blocks = marked // block
    best = pages - marked - (joined - joined_marked) + blocks
    assert found == [pages, pages, pages - joined, pages - marked + blocks, best, marked, 0, 0]


@pytest.mark.parametrize("order", (0, 2, 3, 9, 10))
def test_prep_compound_page(k, rng, order):
    for i in range(1100 * PAGE_RECORD):
        k.page[FIRST * PAGE_RECORD + i] = rng.getrandbits(32)
    behind = fields(k, FIRST + (1 << order), layout.PAGE_HEAD)
    both(k, lambda ops: ops.prep_compound_page(FIRST, order, layout.PG_anon))
    assert fields(k, FIRST, layout.PAGE_FLAGS) == layout.PG_anon
    assert fields(k, FIRST, layout.PAGE_REFCOUNT) == 1
    assert fields(k, FIRST, layout.PAGE_ORDER) == order
    for page in range(FIRST, FIRST + (1 << order)):
        assert fields(k, page, layout.PAGE_HEAD) == FIRST
        assert fields(k, page, layout.PAGE_MAPCOUNT) == 0
    assert fields(k, FIRST + (1 << order), layout.PAGE_HEAD) == behind


@pytest.mark.parametrize("order", (0, 2, 3, 9, 10))
def test_rmap_batches(k, order):
    nr = 1 << order
    both(k, lambda ops: ops.prep_compound_page(FIRST, order, layout.PG_anon))
    both(k, lambda ops: ops.folio_add_new_anon_rmap(FIRST, FIRST, nr))
    assert all(
        fields(k, p, layout.PAGE_FLAGS) & layout.PG_exclusive for p in range(FIRST, FIRST + nr)
    )
    half = max(nr // 2, 1)
    assert both(k, lambda ops: ops.folio_dup_anon_rmap_ptes(FIRST, FIRST, half)) == 0
    assert [fields(k, p, layout.PAGE_MAPCOUNT) for p in range(FIRST, FIRST + nr)] == (
        [2] * half + [1] * (nr - half)
    )
    assert not fields(k, FIRST, layout.PAGE_FLAGS) & layout.PG_exclusive
    assert both(k, lambda ops: ops.folio_remove_rmap_range(FIRST, FIRST, nr)) == nr - half
    if order:
        assert fields(k, FIRST, layout.FOLIO_NR_PAGES_MAPPED) == half
        assert fields(k, FIRST, layout.FOLIO_LARGE_MAPCOUNT) == half
    assert both(k, lambda ops: ops.folio_dup_anon_rmap_ptes(FIRST, FIRST, nr)) == nr - half
    if order:
        assert fields(k, FIRST, layout.FOLIO_NR_PAGES_MAPPED) == nr


@pytest.mark.parametrize("batch", (0, 1))
@pytest.mark.parametrize("nr", SIZES)
def test_zap_ptes(k, rng, nr, batch):
    """Every exit on the way through a random table, entered again as zap_pte_range() does."""
    table = entries(k, rng, nr)
    folios(k, rng, table)
    run, mm = k.run, 1
    k.mm[mm * 16 + layout.MM_ANONPAGES] = k.vmstat[layout.VM_nr_anon_pages] = 1 << 20
    run[layout.RUN_PTE], run[layout.RUN_NR], run[layout.RUN_MM] = TABLE, nr, mm
    run[layout.RUN_BATCH], run[layout.RUN_ROOM] = batch, 5
    seen = set()
    while True:
        both(k, lambda ops: ops.zap_ptes())
        reason = run[layout.RUN_REASON]
        seen.add(reason)
        done = run[layout.RUN_PTE] - TABLE
        assert done + run[layout.RUN_NR] == nr
        assert not any(k.phys[TABLE : TABLE + done])
        assert k.phys[TABLE + done : TABLE + nr].tolist() == table[done:]
        if reason == layout.EXIT_DONE:
            break
        if reason == layout.EXIT_FULL:
            assert not run[layout.RUN_ROOM]
            run[layout.RUN_ROOM] = rng.choice((1, 3, 4, 100))
        elif reason == layout.EXIT_OTHER:
            k.phys[run[layout.RUN_PTE]] = 0
            run[layout.RUN_PTE] += 1
            run[layout.RUN_NR] -= 1
    if nr >= 512:
        assert seen == {
            layout.EXIT_DONE,
            layout.EXIT_FREE,
            layout.EXIT_DEFERRED_SPLIT,
            layout.EXIT_OTHER,
            layout.EXIT_FULL,
        }


@given(st.data())
def test_zeroing_zeroes_each_page_once_and_the_faulting_page_last(data):
    nr = 1 << data.draw(st.integers(0, 9))
    fault = data.draw(st.integers(0, nr - 1))
    order = zeroing_order(nr, fault)
    assert sorted(order) == list(range(nr))
    assert order[-1] == fault


def test_zeroing_order_of_the_series():
    """Spec 1.1: from the far end, then left and right in turn towards the faulting page."""
    assert zeroing_order(8, 2) == [7, 6, 5, 4, 0, 3, 1, 2]
    assert zeroing_order(8, 5) == [0, 1, 2, 7, 3, 6, 4, 5]
    assert zeroing_order(8, 0) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert zeroing_order(8, 7) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_zeroing_order_of_an_allocator():
    assert zeroing_order(8, None) == [0, 1, 2, 3, 4, 5, 6, 7]


def zeroing_order(nr, fault):
    """Return the pages in the order in which the Python twin zeroes them; fault None: upwards."""
    order = []

    class Memory:
        def __setitem__(self, span, value):
            assert len(value) == span.stop - span.start == 512
            order.append(span.start // 512)

    ops = PyRanges(SimpleNamespace(phys=Memory(), table_shift=9))
    if fault is None:
        ops.clear_pages(0, nr)
    else:
        ops.clear_huge_page(0, nr, fault)
    return order


@pytest.mark.parametrize("nr", (1, 2, 4, 16, 128))
def test_zeroing_and_copying_of_memory(k, rng, nr):
    """The C side: exactly those pages, whichever of them faulted."""
    page = 1 << k.table_shift
    low = k.config.nr_pages - 300
    memory = k.phys[low * page : k.config.nr_pages * page].cast("B")
    for fault in (None, *({0, 1, nr // 2, nr - 1} & set(range(nr)))):
        results = []
        for ops in (k.ops, PyRanges(k)):
            memory[:] = b"\xa5" * len(memory)
            if fault is None:
                ops.clear_pages(low + 2, nr)
            else:
                ops.clear_huge_page(low + 2, nr, fault)
            results.append(bytes(memory))
        assert results[0] == results[1]
        size = k.page_size
        assert results[0] == b"\xa5" * 2 * size + bytes(nr * size) + b"\xa5" * (298 - nr) * size
    results = []
    for ops in (k.ops, PyRanges(k)):
        memory[: 150 * k.page_size] = rng.randbytes(k.page_size) * 150
        k.phys[(low + 5) * page] = 42
        memory[150 * k.page_size :] = bytes(150 * k.page_size)
        ops.copy_pages(low + 160, low + 5, nr)
        assert (
            memory[160 * k.page_size : (160 + nr) * k.page_size]
            == (memory[5 * k.page_size : (5 + nr) * k.page_size])
        )
        assert not any(memory[150 * k.page_size : 160 * k.page_size])
        assert not any(memory[(160 + nr) * k.page_size :])
