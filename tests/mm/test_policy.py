# SPDX-License-Identifier: GPL-2.0-only
"""Ladders: which order a first write gets on each kernel, and when memory is short; a user's policy."""

from pathlib import Path

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import VMA_RECORD
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.folio import VmFault
from virtmm.mm.large_anon_folio import calc_anon_folio_orders_alloc
from virtmm.mm.pgtable import pte_offset_map
from virtmm.mm.policy import TVA_FALLBACK, TVA_PAGEFAULT, PolicyError, up_to, user_ladder
from virtmm.mm.vm_flags import MADV_HUGEPAGE, MADV_NOHUGEPAGE, VM_FAULT_OOM, VM_HUGEPAGE
from virtmm.mm.vma import vma_lookup

from virtmm.policy import Policy

SERIES = ["v1", "v2", "v2-simple", "v3", "v5"]
FAILING = ("FAULT_INJECTION=y",)
HINT, NOHUGE = MADV_HUGEPAGE, MADV_NOHUGEPAGE
ALWAYS = ("enabled=always",)
MTHP = ("64kB=always", "16kB=always")


def kernel(lab, ladder, *sets, fragments=(), **kw):
    """Boot a kernel of the series with a ladder, or mainline with folios of orders 2 and 4."""
    if ladder == "mthp":
        return lab("linux-6.12", *sets, fragments=fragments, knobs=MTHP, **kw)
    own = () if ladder == "v1" else (ladder,)
    return lab("anonfolio_basic", *sets, fragments=(*fragments, *own), **kw)


def first(m, page, first, end, advice=None):
    """Return the order of the folio of the first write to a page of a new mapping."""
    m.map(first, end)
    if advice:
        m.advise(first, end, advice)
    m.write(page)
    return m.folio(page)[0]


@pytest.mark.parametrize(
    ("policy", "orders"),
    [
        # pages of the mapping: 16, 12, 8, 7, 4, 3
        ("v1", [4, 3, 3, 2, 2, 0]),
        ("v2", [4, 3, 3, 2, 2, 0]),
        ("v2-simple", [4, 0, 0, 0, 0, 0]),
        ("v3", [4, 3, 3, 0, 0, 0]),
        ("v5", [3, 3, 3, 0, 0, 0]),
        ("mthp", [4, 2, 2, 2, 2, 0]),
    ],
)
def test_the_largest_order_of_the_ladder_that_fits(lab, policy, orders):
    m = kernel(lab, policy)
    sizes = (16, 12, 8, 7, 4, 3)
    assert [first(m, 32 * i + 1, 32 * i, 32 * i + n) for i, n in enumerate(sizes)] == orders


@pytest.mark.parametrize(
    ("policy", "orders"),
    [("v1", 2), ("v2", 2), ("v2-simple", 0), ("v3", 0), ("v5", 0), ("mthp", 2)],
)
def test_a_populated_entry_is_an_edge_too(lab, policy, orders):
    m = kernel(lab, policy)
    m.map(5, 6)
    m.write(5)
    m.map(0, 5)
    m.map(6, 16)
    m.write(1)
    assert m.folio(1)[0] == orders


@pytest.mark.parametrize(
    ("fragment", "policy", "enabled", "orders"),
    [
        # not hinted, hinted, MADV_NOHUGEPAGE
        ("", "v1", "madvise", [4, 4, 4]),
        ("", "v2", "never", [4, 4, 4]),
        ("", "v3", "madvise", [4, 4, 0]),
        ("", "v3", "never", [0, 0, 0]),
        ("", "v5", "never", [3, 3, 0]),
        ("16k", "v1", "madvise", [2, 7, 2]),
        ("16k", "v2-simple", "madvise", [2, 7, 2]),
        ("16k", "v3", "madvise", [2, 7, 0]),
        ("16k", "v5", "madvise", [3, 3, 0]),
        ("64k", "v1", "madvise", [0, 5, 0]),
        ("64k", "v3", "madvise", [0, 5, 0]),
        ("64k", "v3", "always", [5, 5, 0]),
    ],
)
def test_hints_and_thp_settings(lab, fragment, policy, enabled, orders):
    m = kernel(
        lab, policy, fragments=(fragment,) if fragment else (), knobs=(f"enabled={enabled}",)
    )
    got = [
        first(m, 256 * i, 256 * i, 256 * i + 128, advice)
        for i, advice in enumerate((None, HINT, NOHUGE))
    ]
    assert got == orders


@pytest.mark.parametrize(
    ("policy", "failing", "order"),
    [
        ("v1", (4,), 3),
        ("v1", (4, 3), 2),
        ("v2", (4,), 0),
        ("v2-simple", (4,), 0),
        ("v3", (4,), 3),
        ("v3", (4, 3), 0),
        ("v5", (3,), 0),
        ("mthp", (4,), 2),
        ("mthp", (4, 2), 0),
    ],
)
def test_where_memory_is_short(lab, policy, failing, order):
    m = kernel(lab, policy, *FAILING, inject=FaultInjection(alloc={o: range(99) for o in failing}))
    assert first(m, 0, 0, 16) == order
    assert [m.stat("anon_fault_fallback", o) for o in failing] == [1] * len(failing)


@pytest.mark.parametrize(
    ("policy", "advice", "order", "reclaims"),
    [
        ("v1", None, 3, 1),
        ("v2", None, 0, 0),
        ("v2", HINT, 0, 1),
        ("mthp", None, 2, 0),
        ("v3", HINT, 3, 1),
    ],
)
def test_from_v2_on_defrag_says_who_reclaims(lab, policy, advice, order, reclaims):
    m = kernel(lab, policy)
    asked = []
    m.k.shrinkers[:] = [lambda _: asked.append(1)]
    m.map(0, 1)
    m.write(0)
    m.k.zone[layout.ZONE_WMARK_MIN] = m.k.zone[layout.ZONE_NR_FREE] - 10  # less than a block of 16
    assert first(m, 16, 16, 32, advice) == order
    assert len(asked) == reclaims


def test_v1_without_its_ladder_takes_one_page(lab):
    inject = FaultInjection(alloc={4: range(99)})
    m = kernel(lab, "v1", "EXPERT=y", "ANON_ALLOC_LADDER=n", *FAILING, inject=inject)
    assert first(m, 0, 0, 16) == 0


@pytest.mark.parametrize("patch", ["ANON_ALLOC_ZEROED", "ANON_FAULT_ALLOC"])
def test_without_patch_2_or_10_there_is_one_page(lab, patch):
    m = kernel(lab, "v1", "EXPERT=y", f"{patch}=n")
    assert first(m, 0, 0, 16) == 0
    assert why(m) == {}


@pytest.mark.parametrize("policy", SERIES)
def test_a_failed_charge_is_out_of_memory_in_the_series(lab, policy):
    m = kernel(lab, policy, *FAILING, inject=FaultInjection(charge={1}))
    m.map(0, 16)
    assert m.touch(1, m.at(0), True) == VM_FAULT_OOM
    m.write(0)
    assert m.folio(0)[0] == (3 if policy == "v5" else 4)


@pytest.mark.parametrize("policy", [*SERIES, "mthp"])
def test_an_overtaken_fault_is_left_to_the_next_except_in_v1(lab, policy):
    """Page 9 is mapped by another thread behind the first attempt; both ways page 1 gets its folio."""
    inject = FaultInjection(populate={1: 9})
    m = kernel(lab, policy, *FAILING, inject=inject)
    m.map(0, 16)
    m.write(1)
    if policy == "v5":  # page 9 is not in the block of order 3
        assert m.orders(0, 16) == [3] * 8 + [None] * 8
        return
    order = {"v2-simple": 0, "mthp": 2}.get(policy, 3)
    assert m.folio(1)[0] == order
    assert m.folio(9) == (0, 0)
    assert m.refusals()["populated"]["4"] == 1
    assert m.vmstat()["pgfault"] == (1 if policy == "v1" else 2)


def test_a_write_to_the_zero_page_takes_read_mapped_neighbours_for_free(lab):
    m = kernel(lab, "v1", "ANON_COW_ZERO=y")
    m.map(0, 16)
    m.read(*range(8))
    m.write(9)
    vma = vma_lookup(m.k, m._mm(1), m.at(0))
    pte = pte_offset_map(m.k, m._mm(1), m.at(1))
    empty = VmFault(vma, m._mm(1), m.at(1), 1, pte)
    assert calc_anon_folio_orders_alloc(m.k, empty, up_to(4)) == 0
    zero = VmFault(vma, m._mm(1), m.at(1), 1, pte, m.k.phys[pte])
    assert calc_anon_folio_orders_alloc(m.k, zero, up_to(4)) == up_to(3)
    assert zero.why == {4: layout.REFUSED_POPULATED}


# A user's policy


class Mine:
    """A policy that keeps what it was asked."""

    path = Path("mine.py")

    def __init__(self, choose):
        self.choose = choose
        self.asked = []

    def ladder(self):
        return user_ladder(self.thp_get_order, self.path.name)

    def thp_get_order(self, vma, address, tva_type, orders):
        self.asked.append((address, tva_type, orders))
        return self.choose(vma, orders)


@pytest.mark.parametrize("policy", ["v1", "v3", "mthp"])
def test_a_policy_chooses_among_all_orders_that_fit(lab, policy):
    mine = Mine(lambda _, orders: 3 if orders >> 3 & 1 else 0)
    m = kernel(lab, policy, policy=mine)
    m.map(0, 64)
    m.write(1)
    assert m.orders(0, 16) == [3] * 8 + [None] * 8
    m.write(9)
    assert mine.asked == [
        (m.at(1), TVA_PAGEFAULT, up_to(6) | 1),
        (m.at(9), TVA_PAGEFAULT, up_to(3) | 1),
    ]


def test_what_a_policy_sees_of_a_mapping(lab):
    seen = []
    see = (
        "start",
        "end",
        "kind",
        "pid",
        "faults",
        "hinted",
        "nohuge",
        "flags",
        "page_size",
        "pmd_order",
    )
    m = kernel(
        lab, "v1", policy=Mine(lambda vma, _: seen.append([getattr(vma, s) for s in see]) or 0)
    )
    m.map(0, 64)
    m.advise(0, 64, HINT)
    m.write(1, 8)
    m.map(64, 80, flags=0x100)  # MAP_GROWSDOWN
    m.write(64)
    assert m.brk(1, m.at(128), m.at(144)) == 0
    m.write(128)
    same = [m.at(0), m.at(64), "anon", 1]
    assert [s[:7] for s in seen] == [
        [*same, 0, True, False],
        [*same, 1, True, False],
        [m.at(64), m.at(80), "stack", 1, 0, False, False],
        [m.at(128), m.at(144), "heap", 1, 0, False, False],
    ]
    assert [s[8:] for s in seen] == [[4096, 9]] * 4
    assert seen[0][7] & VM_HUGEPAGE


def test_a_policy_is_not_asked_where_only_one_page_fits(lab):
    mine = Mine(lambda *_: 0)
    m = kernel(lab, "v1", policy=mine)
    m.map(0, 3)
    m.write(1)
    m.map(16, 32)
    m.advise(16, 32, NOHUGE)
    m.write(16)
    assert (m.folio(1), m.folio(16)) == ((0, 0), (0, 0))
    assert mine.asked == []


@pytest.mark.parametrize("policy", ["v2", "mthp"])
def test_a_policy_is_asked_about_the_huge_page_once(lab, policy):
    mine = Mine(lambda vma, orders: 9 if orders >> 9 and vma.hinted else 4)
    m = kernel(lab, policy, policy=mine)
    m.map(0, 1024)
    m.write(5)
    assert m.folio(5) == (4, 5)
    m.advise(512, 1024, HINT)
    m.write(600)
    assert m.vmstat()["thp_fault_alloc"] == 1
    assert [a[1:] for a in mine.asked] == [(TVA_PAGEFAULT, up_to(9) | 1)] * 2
    assert why(m) == {"not_enabled": {str(o): 1 for o in range(5, 10)}}


def test_a_read_is_asked_about_the_huge_zero_page_alone(lab):
    mine = Mine(lambda vma, _: 9 if vma.hinted else 0)
    m = kernel(lab, "v1", policy=mine)
    m.map(0, 1024)
    m.advise(512, 1024, HINT)
    m.read(0, 512)
    assert m.vmstat()["thp_zero_page_alloc"] == 1
    assert [a[2] for a in mine.asked] == [1 << 9 | 1] * 2


def test_a_policy_is_asked_again_when_memory_is_short(lab):
    mine = Mine(lambda _, orders: {9: 9, 8: 5, 4: 2}[orders.bit_length() - 1])
    inject = FaultInjection(alloc={9: range(99), 5: range(99)})
    m = kernel(lab, "v1", *FAILING, policy=mine, inject=inject)
    assert first(m, 0, 0, 512) == 2
    assert [a[1:] for a in mine.asked] == [
        (TVA_PAGEFAULT, up_to(9) | 1),
        (TVA_FALLBACK, up_to(8) | 1),
        (TVA_FALLBACK, up_to(4) | 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return 7", "mine.py: thp_get_order() answered 7, which is none of the orders that fit"),
        ("return -1", "answered -1,"),
        ("return 1", "answered 1,"),
        ("return None", "answered None,"),
        ("return True", "answered True,"),
        ("return 4.0", "answered 4.0,"),
        ("return 1 << 70", "answered 1180591620717411303424,"),
        ("return vma.size", "mine.py:2: AttributeError: 'VmaView' object has no attribute 'size'"),
        ("raise SystemExit", "mine.py:2: SystemExit:"),
        ("raise ValueError('two\\nlines')", "mine.py:2: ValueError: two lines"),
        ("vma.start = 5", "mine.py:2: AttributeError:"),
    ],
)
def test_an_answer_that_is_none(lab, text, message):
    text = f"def thp_get_order(vma, address, tva_type, orders):\n    {text}\n"
    m = kernel(lab, "v1", policy=Policy(Path("mine.py"), text, "hash"))
    m.map(0, 16)
    with pytest.raises(PolicyError) as e:
        m.touch(1, m.at(1), True)
    assert message in str(e.value)
    assert str(e.value).endswith(f"; pid 1 at {m.at(1):#x}, orders 0, 2, 3, 4")
    assert "\n" not in str(e.value)


# Why not larger


def why(m):
    return {reason: counts for reason, counts in m.refusals().items() if counts}


def mapping(m, page, pid=1):
    """Return (faults, reasons) of the VMA of a page."""
    base = vma_lookup(m.k, m._mm(pid), m.at(page)) * VMA_RECORD
    counts = m.k.vma[base + layout.VMA_FAULTS : base + layout.VMA_FAULTS + 6].tolist()
    return counts[0], counts[1:]


def test_reasons_by_order(lab):
    m = lab("linux-6.12", knobs=("64kB=always", "16kB=always", "32kB=madvise", "enabled=never"))
    m.map(1, 21)
    m.write(1)  # 1-3 are before the first block of order 2
    assert why(m) == {"edge": {"4": 1, "2": 1}, "not_enabled": {"3": 1}}
    m.write(5)
    assert why(m) == {"edge": {"4": 2, "2": 1}, "not_enabled": {"3": 2}}
    m.write(8)
    m.unmap(20, 21)
    m.write(17)
    assert m.orders(1, 20) == [0, None, None] + [2] * 8 + [None] * 4 + [2] * 4
    assert mapping(m, 1) == (4, [4, 0, 0, 0, 0])


def test_populated_and_allocation_and_charge(lab):
    inject = FaultInjection(alloc={4: {2}}, charge={4})
    m = lab("linux-6.12", *FAILING, knobs=("64kB=always", "enabled=never"), inject=inject)
    m.map(0, 64)
    m.write(0)
    assert why(m) == {}
    m.advise(3, 4, 4)  # MADV_DONTNEED
    m.write(3)
    assert why(m) == {"populated": {"4": 1}}
    m.write(16)
    assert why(m) == {"populated": {"4": 1}, "alloc": {"4": 1}}
    m.write(32)
    assert why(m) == {"populated": {"4": 1}, "alloc": {"4": 1}, "charge": {"4": 1}}
    assert m.stat("anon_fault_fallback", 4) == 2
    assert mapping(m, 0) == (4, [0, 1, 0, 1, 1])


def test_a_mapping_without_the_hint_has_nothing_enabled(lab):
    m = lab("linux-6.12", knobs=("64kB=madvise",))
    m.map(0, 16)
    m.write(0)
    assert why(m) == {"not_enabled": {"4": 1, "9": 1}}
    assert mapping(m, 0) == (1, [0, 0, 1, 0, 0])
    m.map(32, 48)
    m.advise(32, 48, HINT)
    m.write(32)
    assert why(m) == {"not_enabled": {"4": 1, "9": 1}, "edge": {"9": 1}}
    assert mapping(m, 32) == (1, [1, 0, 0, 0, 0])


def test_a_mapping_counts_by_the_largest_order_it_may_have_itself(lab):
    m = lab("anonfolio_basic")
    m.map(0, 12)
    m.write(1)
    assert why(m) == {"edge": {"4": 1}, "not_enabled": {"9": 1}}
    assert mapping(m, 0) == (1, [1, 0, 0, 0, 0])


def test_the_huge_page(lab):
    inject = FaultInjection(alloc={9: {1}}, charge={5})
    m = lab("anonfolio_basic", *FAILING, knobs=ALWAYS, inject=inject)
    m.map(0, 2048)
    m.write(0)
    assert why(m) == {"alloc": {"9": 1}}
    m.write(16)
    assert why(m) == {"alloc": {"9": 1}, "populated": {"9": 1}}
    m.write(512)
    assert m.vmstat()["thp_fault_alloc"] == 1
    assert mapping(m, 0) == (3, [0, 1, 0, 1, 0])
    m.map(4096, 4112)
    m.write(4096)
    assert why(m)["edge"] == {"9": 1}
    m.map(8192, 8704)
    m.write(8192)
    assert m.folio(8192) == (4, 0)
    assert why(m)["charge"] == {"9": 1}


def test_a_ladder_passes_orders_over(lab):
    m = kernel(lab, "v2", *FAILING, knobs=("enabled=never",), inject=FaultInjection(alloc={4: {1}}))
    m.map(0, 16)
    m.write(0)
    assert why(m) == {"alloc": {"4": 1}, "not_enabled": {"3": 1, "2": 1}}


def test_base_pages_want_nothing(lab):
    m = lab("baseline_4k", knobs=ALWAYS)
    m.map(0, 16)
    m.write(0)
    assert why(m) == {}
    assert mapping(m, 0) == (0, [0] * 5)


def test_counts_follow_the_mapping(lab):
    m = lab("anonfolio_basic", knobs=("enabled=never",))
    m.map(0, 5)
    m.write(0, 4)  # an order 2, and a page that fits nothing
    assert mapping(m, 0) == (2, [2, 0, 0, 0, 0])
    m.mprotect(1, m.at(2), 3 * m.page_size, 1)  # splits
    assert (mapping(m, 0), mapping(m, 3)) == ((2, [2, 0, 0, 0, 0]), (0, [0] * 5))
    m.mprotect(1, m.at(2), 3 * m.page_size, 3)
    m.map(5, 7)  # merges upwards, as does the next
    m.write(6)
    assert mapping(m, 6) == (3, [3, 0, 0, 0, 0])
    m.map(-4, 0)  # a new mapping takes its upper neighbour in
    assert mapping(m, -4) == (3, [3, 0, 0, 0, 0])
    assert m.mremap(1, m.at(-4), 11 * m.page_size, m.at(256), 11 * m.page_size, 3) == 0
    assert mapping(m, 256) == (3, [3, 0, 0, 0, 0])
    assert m.fork(1, 2) == 0
    assert mapping(m, 256, pid=2) == (0, [0] * 5)
    [live] = m.refused_mappings()
    assert (live.pid, live.execs, live.kind, live.faults) == (1, 0, "anon", 3)
    assert (live.start, live.end, live.refused) == (m.at(256), m.at(267), {"edge": 3})
    m.unmap(256, 267)
    assert m.refused_mappings() == [live]


def test_what_is_gone_is_known_by_its_program(lab):
    m = lab("anonfolio_basic", knobs=("enabled=never",))
    m.map(0, 3)
    m.write(0)
    assert m.exec(1) == 0
    assert m.brk(1, m.at(16), m.at(18)) == 0
    m.write(16, 17)
    found = [(x.pid, x.execs, x.start, x.kind, x.refused) for x in m.refused_mappings()]
    assert found == [(1, 1, m.at(16), "heap", {"edge": 2}), (1, 0, m.at(0), "anon", {"edge": 1})]
    m.exit(1)
    assert [x.execs for x in m.refused_mappings()] == [1, 0]
    m.spawn(1)


def test_a_full_log_keeps_the_sum(lab):
    m = lab("anonfolio_basic", knobs=("enabled=never",))
    m.k.vma_log = m.k.vma_log[: 16 * 3]  # records 0 to 2
    m.k.fault[layout.FAULT_NR_VMA_LOGS] = 3
    for page in (0, 16, 32, 48):
        m.map(page, page + 3)
        m.write(page)
        m.unmap(page, page + 3)
    found = m.refused_mappings()
    assert [(x.pid, x.refused["edge"]) for x in found] == [(0, 2), (1, 1), (1, 1)]
