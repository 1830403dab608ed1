# SPDX-License-Identifier: GPL-2.0-only
"""
The v1 series patch by patch: what each changes, and that leaving it out gives the kernel before it.

Patch 1 is the order of zeroing, tests/csrc/test_ranges.py has it.
"""

import pytest
from virtmm.mm import layout
from virtmm.mm.debug_vm import validate
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.split import deferred_split_scan
from virtmm.mm.vm_flags import MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE, VM_FAULT_OOM

from virtmm.kconfig import ConfigError, resolve

EXPERT, INJECT = "EXPERT=y", "FAULT_INJECTION=y"
ALWAYS = range(1, 1000)


def without(symbol):
    return EXPERT, f"{symbol}=n"


def deferred(m):
    return m.vmstat()["thp_deferred_split_page"]


# 2: vma_alloc_zeroed_movable_folio() takes an order


@pytest.mark.parametrize("sets, order", [((), 4), (without("ANON_ALLOC_ZEROED"), 0)])
def test_patch_2_zeroed_folios_of_any_order(lab, sets, order):
    m = lab("anonfolio_basic", "PHYS_BACKING=y", *sets)
    m.map(0, 32)
    for page in range(32):
        m.store(1, m.at(page) + 5, 255)
    m.advise(0, 32, MADV_DONTNEED)
    m.write(9)
    assert [m.folio(p) is not None for p in range(16)] == [
        p >> order == 9 >> order for p in range(16)
    ]
    assert m.folio(9)[0] == order
    assert {m.load(1, m.at(page) + 5) for page in range(16)} == {0}
    assert m.stat("anon_fault_fallback", 4) == 0, "nothing failed"


def test_patch_2_leaves_copies_alone(lab):
    """A copy is not zeroed first: the folio of ANON_COW_COPY does not come from this function."""
    m = lab("anonfolio", *without("ANON_ALLOC_ZEROED"), "MEMORY_MB=64", knobs=["enabled=always"])
    m.map(0, 512)
    m.write(0)  # a huge page, which patch 2 has no part in
    for prot in (1, 3):
        assert m.mprotect(1, m.at(0), m.page_size, prot) == 0
    m.fork(1, 2)
    m.write(100)
    assert m.folio(100) == (4, 4)


# 3: the ladder


@pytest.mark.parametrize("sets, order", [((), 2), (without("ANON_ALLOC_LADDER"), 0)])
def test_patch_3_a_failed_allocation_tries_smaller_orders(lab, sets, order):
    inject = FaultInjection(alloc={4: {1}, 3: {1}})
    m = lab("anonfolio_basic", INJECT, *sets, inject=inject)
    m.map(0, 48)
    m.write(5)
    assert m.folio(5)[0] == order
    assert m.stat("anon_fault_fallback", 4) == 1
    assert m.stat("anon_fault_fallback", 3) == (order == 2)
    m.write(20)
    assert m.folio(20)[0] == 4
    inject.alloc = dict.fromkeys(range(5), ALWAYS)
    assert m.touch(1, m.at(40), True) == VM_FAULT_OOM
    assert 1 not in inject._allocs


def test_patch_3_a_large_attempt_reclaims_once(lab):
    """__GFP_NORETRY: one round of reclaim for each order above 0, though reclaim makes progress."""
    m = lab()
    m.map(0, 32)
    m.write(20)
    rounds = []

    def shrink(k):
        rounds.append(len(rounds))
        return len(rounds) < 50

    m.k.shrinkers[:] = [shrink]
    m.k.zone[layout.ZONE_WMARK_MIN] = m.k.zone[layout.ZONE_NR_FREE] - 2
    m.write(12)
    assert m.folio(12) == (0, 0)
    assert len(rounds) == 3, "orders 4, 3 and 2; the single page was there"


def test_patch_3_reclaim_makes_room_for_a_large_folio(lab):
    m = lab()
    m.map(0, 64)
    m.write(0)
    m.advise(8, 16, MADV_DONTNEED)
    m.k.zone[layout.ZONE_WMARK_MIN] = m.k.zone[layout.ZONE_NR_FREE] - 8
    m.write(20)
    assert m.folio(20)[0] == 4
    assert m.orders(0, 8) == [0] * 8, "the split folio gave its unmapped half back"


# 4: folio_add_new_anon_rmap_range()


def test_patch_4_one_rmap_call_maps_a_folio(lab):
    """Page by page is more calls and the same machine."""
    machines = [lab("anonfolio_basic", *sets) for sets in ((), without("ANON_RMAP_ADD_RANGE"))]
    for m in machines:
        m.map(3, 40)
        m.write(5, 20, 39, 3)
    assert machines[0].digest() == machines[1].digest()
    assert machines[0].orders(3, 40).count(4) == 16
    assert [m.work()["rmap_add"] for m in machines] == [4, 4 + 16 + 8 + 1]


# 5: folio_remove_rmap_range()


@pytest.mark.parametrize("sets, calls", [((), 1), (without("ANON_RMAP_REMOVE_RANGE"), 16)])
def test_patch_5_one_rmap_call_unmaps_a_folio(lab, sets, calls):
    """Page by page a folio that goes as a whole is seen partly mapped, and queued, on its way."""
    m = lab("anonfolio_basic", *sets)
    m.map(0, 16)
    m.write(0)
    m.unmap(0, 16)
    assert m.work()["rmap_remove"] == calls
    assert deferred(m) == (calls > 1)
    assert m.queued() == 0
    m = lab("anonfolio", "ANON_COW_REUSE=n", *sets)
    m.map(0, 16)
    m.write(0)
    m.fork(1, 2)
    m.exit(2)
    m.write(0)
    assert m.work()["rmap_remove"] == 2 * calls, "the child's exit and the copy"
    assert deferred(m) == (calls > 1)
    assert m.memory()["anon"] == 16 * m.page_size


def test_patch_5_is_what_patch_7_calls():
    with pytest.raises(ConfigError, match="ANON_RMAP_REMOVE_RANGE"):
        resolve(
            "arm64", "anonfolio_basic", (), [*without("ANON_RMAP_REMOVE_RANGE"), "ANON_ZAP_BATCH=y"]
        )


# 6: any large folio may be queued for splitting


@pytest.mark.parametrize("sets, queued", [((), 1), (without("ANON_DEFERRED_SPLIT"), 0)])
def test_patch_6_a_partly_unmapped_large_folio_is_queued(lab, sets, queued):
    m = lab("anonfolio_basic", *sets)
    m.map(0, 16)
    m.write(0)
    m.unmap(8, 16)
    assert m.queued() == deferred(m) == m.stat("split_deferred", 4) == queued
    assert m.memory()["anon"] == 16 * m.page_size
    validate(m.k)
    deferred_split_scan(m.k)
    assert m.memory()["anon"] == (8 if queued else 16) * m.page_size, "nobody finds it to split it"
    assert m.orders(0, 8) == [0 if queued else 4] * 8
    m.unmap(0, 8)
    assert m.memory()["anon"] == 0


def test_patch_6_pmd_sized_folios_were_queued_before_it(lab):
    m = lab("anonfolio_basic", *without("ANON_DEFERRED_SPLIT"))
    pages = m.k.pmd_size // m.page_size
    m.map(0, pages)
    m.advise(0, pages, MADV_HUGEPAGE)
    m.write(0)
    m.advise(0, 8, MADV_DONTNEED)
    assert m.vmstat()["thp_fault_alloc"] == m.queued() == deferred(m) == 1


# 7: batched zap


@pytest.mark.parametrize("sets, calls", [((), 3), (("ANON_ZAP_BATCH=n",), 32 + 4)])
def test_patch_7_pages_of_one_folio_are_unmapped_together(lab, sets, calls):
    m = lab("anonfolio_basic", *sets)
    m.map(0, 36)
    m.write(0, 16, 32)
    m.unmap(0, 36)
    assert m.work()["rmap_remove"] == calls
    assert deferred(m) == (3 if calls > 3 else 0), "spurious: each goes as a whole"
    assert m.memory()["anon"] == m.queued() == 0


# 8 and 9: the option, its orders, and the architecture's consent


@pytest.mark.parametrize("symbol, nothp, thp", [("y", 2, 7), ("n", 0, 0)])
def test_patch_8_the_option_and_its_two_orders(lab, symbol, nothp, thp):
    m = lab("anonfolio_basic", f"LARGE_ANON_FOLIO={symbol}", fragments=["16k"])
    m.map(0, 512)
    m.write(0)
    assert m.folio(0)[0] == nothp
    m.advise(128, 256, MADV_HUGEPAGE)
    m.write(128)
    assert m.folio(128)[0] == thp
    m.advise(256, 512, MADV_NOHUGEPAGE)
    m.write(256)
    assert m.folio(256)[0] == nothp, "v1 does not honour it"


def test_patch_9_the_architecture_opts_in():
    config = resolve("arm64", "anonfolio_basic")
    assert config["LARGE_ANON_FOLIO"] is True
    assert config["LARGE_ANON_FOLIO_NOTHP_ORDER_MAX"] == 4
    with pytest.raises(ConfigError, match="LARGE_ANON_FOLIO=y, got n: unmet dependency"):
        resolve("arm64", "anonfolio_basic", (), without("ARM64_LARGE_ANON_FOLIO"))
    before = resolve("arm64", "baseline_4k", (), without("ARM64_LARGE_ANON_FOLIO"))
    assert not before.get("ARCH_SUPPORTS_LARGE_ANON_FOLIO")
    assert before["LARGE_ANON_FOLIO_THP_ORDER_MAX"] == 0
    with pytest.raises(ConfigError, match="LARGE_ANON_FOLIO"):
        resolve("x86", "baseline_4k", (), ["LARGE_ANON_FOLIO=y"])


# 10: the fault path


@pytest.mark.parametrize("sets, order", [((), 4), (without("ANON_FAULT_ALLOC"), 0)])
def test_patch_10_a_fault_allocates_a_large_folio(lab, sets, order):
    m = lab("anonfolio_basic", *sets)
    m.map(0, 16)
    m.write(*range(16))
    assert m.orders(0, 16) == [order] * 16
    assert m.minflt() == 16 >> order
    assert m.rss(1) == 16 * m.page_size
    assert m.work()["rmap_add"] == 16 >> order


def test_patch_10_left_out_leaves_the_zero_page_path_at_one_page_too(lab):
    m = lab("anonfolio", *without("ANON_FAULT_ALLOC"))
    m.map(0, 16)
    m.read(0)
    m.write(0)
    assert m.orders(0, 2) == [0, None]
