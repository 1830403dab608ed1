# SPDX-License-Identifier: GPL-2.0-only
"""The cost model: prices against the measurements they come from, and the nearest-table rule."""

import csv
import re
from pathlib import Path

import pytest
from virtmm.arch import load_arch, names
from virtmm.tools.report.cost import BY_ORDER, COLUMNS, GROUPS, CostError, CostTable, load_costs

from virtmm import topdir

ARCH = topdir() / "arch"
TABLES = [
    ("arm64", 4096, "6.12"),
    ("arm64", 16384, "6.12"),
    ("arm64", 4096, "7.3"),
    ("arm64", 16384, "7.3"),
    ("x86", 4096, "6.12"),
    ("x86", 4096, "7.3"),
]


def load(
    arch: str, page_size: int = 4096, release: str = "6.12", pmd_order: int | None = None
) -> CostTable:
    """Return the prices of a page table whose tables fill a page, unless its order is given."""
    usual = (page_size // 8).bit_length() - 1
    return load_costs(ARCH / arch, page_size, release, pmd_order or usual)


def events_of_the_arena() -> dict[str, bool]:
    text = (topdir() / "csrc" / "arena.def").read_text()
    return {m[1]: m[2] == "1" for m in re.finditer(r"^EVENT\((\w+),\s*([01]),", text, re.M)}


# --- every event has a price -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "page_size", "pmd_order"),
    [
        (name, 1 << g.page_shift, g.pmd_order)
        for name in names()
        for g in load_arch(name).geometries
    ],
)
@pytest.mark.parametrize("release", ["6.12", "7.3"])
def test_every_event_of_the_arena_has_a_price(arch, page_size, pmd_order, release):
    events = events_of_the_arena()
    assert len(events) > 20
    assert {name for name, by_order in events.items() if by_order} == BY_ORDER
    counts = {
        name: {str(o): 1 for o in range(pmd_order + 1)} if by_order else 1
        for name, by_order in events.items()
    }
    table = load(arch, page_size, release, pmd_order)
    assert table.price(counts)["total"] > 0


@pytest.mark.parametrize(("arch", "page_size", "release"), TABLES)
def test_each_price_belongs_to_one_group(arch, page_size, release):
    grouped = [event for events in GROUPS.values() for event in events]
    assert len(grouped) == len(set(grouped))
    assert set(load(arch, page_size, release).prices) == set(grouped)


def test_an_event_without_a_price_is_named():
    with pytest.raises(CostError, match=r"^event 'swap_out' has no price in arm64 4K 6\.12: "):
        load("arm64").price({"swap_out": 0})


# --- prices against what they were measured as ------------------------------------------------


def test_prices_by_hand():
    """Figures copied from arch/arm64/costs.csv, 6.12, 4K."""
    got = load("arm64").price(
        {
            "anon_fault": {"0": 900, "4": 50},
            "zero_page_fault": 7,
            "file_read_fault": 10,
            "file_around_pages": 150,
            "fork": 3,
            "exit": 3,
            "pt_page_alloc": 12,
            "zap_anon": {"0": 900, "4": 800},
            "mmap": 4,
            "mmap_merge": 1,
        }
    )
    assert got == {
        "anonymous faults": round(900 * 3165.8 + 50 * 13905.2 + 7 * 1292.8),
        "file faults": round(10 * 2081.2 + 150 * 578.1),
        "fork": round(3 * 20965.9),
        "exec": 0,
        "exit": round(3 * 21198.4),
        "mapping calls": round(4 * 7160.7 - 2770.8),
        # All that was allocated is freed: 900 base pages, 50 folios of order 4.
        "unmapping": round(900 * 232.1 + 800 * 59.7 + 900 * 765.8 + 50 * 1607.9),
        "page tables": round(12 * 927.2),
        "total": got["total"],
    }
    assert got["total"] == sum(v for k, v in got.items() if k != "total")


NOTHING_FREED = {"anon_free": {}}
# (arch, page size, release), events, instructions measured (kernel-life.csv, kernel-instructions.csv,
# the latter less the user's loop), tolerance: composite rows must come out of their parts.
COMPOSED = [
    # First touch of 64 MiB in folios of 64 KiB: 875.5 a page.
    (
        ("arm64", 4096, "6.12"),
        {"anon_fault": {4: 1024}, "pt_page_alloc": 32, **NOTHING_FREED},
        (875.5 - 4.7) * 16384,
        0.001,
    ),
    # Its munmap: 162.0 a page, of which the unseeded generator made 9430.
    (
        ("arm64", 4096, "6.12"),
        {"zap_anon": {4: 16384}, "anon_free": {4: 1024}, "munmap": 1, "pt_page_free": 32},
        162.0 * 16384 - 9430,
        0.001,
    ),
    # 256 MiB in base pages of 16K, touched and unmapped on 7.3.
    (
        ("arm64", 16384, "7.3"),
        {
            "anon_fault": {0: 16384},
            "pt_page_alloc": 8,
            "zap_anon": {0: 16384},
            "munmap": 1,
            "pt_page_free": 8,
        },
        (4971.9 - 4.1 + 1541.4) * 16384,
        0.001,
    ),
    # 16 pages by one fault-around, 1024 times.
    (
        ("x86", 4096, "7.3"),
        {"file_read_fault": 1024, "file_around_pages": 15 * 1024, "pt_page_alloc": 32},
        656.3 * 16384,
        0.002,
    ),
    # One page in each 2 MiB, unmapped: 511 empty entries a table.
    (
        ("arm64", 4096, "6.12"),
        {"zap_anon": {0: 1}, "anon_free": {0: 1}, "zap_none": 511, "pt_page_free": 1},
        6600.9,
        0.01,
    ),
    # fork, exit at once, wait, of a program of 6 VMAs, 5 pages, 7 page-table pages.
    (
        ("arm64", 4096, "6.12"),
        {
            "fork": 1,
            "fork_vma": 6,
            "fork_vma_anon": 2,
            "fork_anon": {0: 5},
            "pt_page_alloc": 7,
            "wp_copy": {0: 1},
            "wp_reuse": 1,
            "exit": 1,
            "exit_vma": 6,
            "zap_anon": {0: 5},
            "pt_page_free": 7,
        },
        85594.2,
        0.001,
    ),
    (("x86", 4096, "6.12"), {"vfork": 1, "exit": 1}, 44201, 0.001),
    # One more VMA with one written page, forked and gone: fork_per_vma_touched. 1/16 page table.
    (
        ("x86", 4096, "6.12"),
        {
            "fork_vma": 16,
            "fork_vma_anon": 16,
            "fork_anon": {0: 16},
            "pt_page_alloc": 1,
            "exit_vma": 16,
            "zap_anon": {0: 16},
            "zap_none": 16 * 15,
            "pt_page_free": 1,
        },
        16 * 6762,
        0.001,
    ),
]


@pytest.mark.parametrize(("machine", "events", "measured", "tolerance"), COMPOSED)
def test_composite_measurements_come_out_of_their_parts(machine, events, measured, tolerance):
    assert load(*machine).price(events)["total"] == pytest.approx(measured, rel=tolerance)


@pytest.mark.parametrize(("arch", "page_size", "release"), TABLES)
def test_prices_are_consistent(arch, page_size, release):
    prices = load(arch, page_size, release).prices
    fault, top = prices["anon_fault"], max(prices["anon_fault"])
    for o in range(top):
        assert fault[o] < fault[o + 1] < 2.1 * fault[o]
        assert prices["wp_copy"][o] > prices["wp_zero"][o] > fault[o] > 0
    # a + b n of a folio mapped by PTEs, through orders 2 and top - 1.
    slope = (fault[top - 1] - fault[2]) / ((1 << top - 1) - 4)
    for o in range(2, top):
        assert fault[2] + slope * ((1 << o) - 4) == pytest.approx(fault[o], rel=0.03)
    for event, by_order in prices.items():
        for order, price in by_order.items():
            assert price > 0 or event == "mmap_merge", (event, order)
    # mmap_merge is a correction of mmap: together they are still a call.
    assert prices["mmap"][None] + prices["mmap_merge"][None] > 1000
    # A PMD is one entry: almost nothing a page.
    for event in ("zap_anon", "fork_anon", "mprotect_anon"):
        assert prices[event][top] < prices[event][top - 1] / 5


@pytest.mark.parametrize(("arch", "page_size", "release"), TABLES)
def test_order_1_lies_on_the_line_through_orders_2_and_3(arch, page_size, release):
    prices = load(arch, page_size, release).prices
    for event, unit in (("anon_fault", 0), ("anon_free", 0), ("zap_anon", 1), ("fork_anon", 1)):
        folio = [prices[event][o] * (1 << o * unit) for o in (1, 2, 3)]
        # Two to four pages is half as far as four to eight; prices are rounded to a tenth.
        assert folio[1] - folio[0] == pytest.approx((folio[2] - folio[1]) / 2, abs=1)


# --- counts ----------------------------------------------------------------------------------


def test_every_group_is_there_and_zero_without_events():
    assert load("x86").price({}) == dict.fromkeys([*GROUPS, "total"], 0)


def test_what_faults_allocate_is_freed_once():
    table = load("arm64")
    events = {"anon_fault": {2: 1}, "wp_copy": {0: 2}, "wp_zero": {0: 3}, "file_write_fault": 4}
    freed = table.prices["anon_free"]
    assert table.price(events)["unmapping"] == round(freed[2] + 9 * freed[0])
    assert table.price({**events, "anon_free": {2: 1}})["unmapping"] == round(freed[2])


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"fork": -1}, "event 'fork': -1 is no count"),
        ({"fork": True}, "event 'fork': True is no count"),
        ({"fork": 1.5}, "event 'fork': 1.5 is no count"),
        ({"fork": {"0": 1}}, "event 'fork': needs one count, not {'0': 1}"),
        ({"anon_fault": 3}, "event 'anon_fault': needs counts by order, not 3"),
        ({"anon_fault": {"x": 3}}, "event 'anon_fault': 'x' is no order"),
        ({"anon_fault": {"0": "3"}}, "event 'anon_fault': '3' is no count"),
        (
            {"anon_fault": {"10": 1}},
            "event 'anon_fault': order 10 has no price in arm64 4K 6.12 (0 to 9 have)",
        ),
    ],
)
def test_broken_counts_are_one_clear_line(events, message):
    with pytest.raises(CostError) as e:
        load("arm64").price(events)
    assert str(e.value) == message


# --- the nearest table ------------------------------------------------------------------------


def test_an_exact_table_is_not_simplified():
    table = load("arm64", 16384, "7.3")
    assert (table.name, table.simplified) == ("arm64 16K 7.3", ())


@pytest.mark.parametrize(
    ("release", "used"),
    [("6.12", "6.12"), ("6.18", "6.12"), ("6.2", "6.12"), ("7.3", "7.3"), ("10.0", "7.3")],
)
def test_nearest_release_is_the_next_older_else_the_oldest(release, used):
    table = load("x86", 4096, release)
    assert table.name == f"x86 4K {used}"
    assert bool(table.simplified) == (release != used)


def test_an_architecture_without_a_table_uses_arm64s(tmp_path):
    table = load("no-such-port")
    assert table.name == "arm64 4K 6.12"
    assert table.simplified == ("no-such-port has no cost table: arm64's is used",)
    outside = load_costs(tmp_path / "riscv", 4096, "6.12", 9)
    assert (outside.name, outside.prices) == (table.name, table.prices)


def test_64k_pages_are_16k_pages_that_clear_and_copy_four_times_as_much():
    small, big = load("arm64", 16384), load("arm64", 65536)
    assert big.name == "arm64 16K 6.12 scaled to 64K"
    assert len(big.simplified) == 1
    clear, copy = 1031.0, 2570.0  # of 16 KiB
    grown = {
        "anon_fault": 3 * clear,
        "wp_zero": 3 * clear,
        "wp_copy": 3 * (clear + copy),
        "zap_anon": 0,
        "fork_anon": 0,
    }
    for event, more in grown.items():
        assert big.prices[event][0] == pytest.approx(small.prices[event][0] + more)
    # 6.12 clears a large folio twice, 7.3 once.
    for release, times in (("6.12", 2), ("7.3", 1)):
        small, big = load("arm64", 16384, release), load("arm64", 65536, release)
        more = 16 * 3 * times * clear
        assert big.prices["anon_fault"][4] == pytest.approx(
            small.prices["anon_fault"][4] + more, rel=1e-3
        )
    for event, more in (
        ("pt_page_alloc", 3 * 1032),
        ("file_write_fault", 3 * (1032 + 2571)),
        ("pt_page_free", 0),
        ("zap_none", 0),
        ("fork", 0),
    ):
        assert big.prices[event][None] == pytest.approx(small.prices[event][None] + more)


def test_orders_stretch_to_the_pmd_of_the_larger_page():
    small, big = load("arm64", 16384), load("arm64", 65536)
    assert max(small.prices["anon_fault"]) == 11
    assert max(big.prices["anon_fault"]) == 13
    fault = big.prices["anon_fault"]
    assert fault[12] == pytest.approx(2 * fault[11], rel=0.01)
    # One entry maps the whole folio in either, four times as many pages in the larger.
    for event in ("zap_anon", "fork_anon"):
        assert big.prices[event][13] * (1 << 13) == pytest.approx(
            small.prices[event][11] * (1 << 11)
        )
        assert big.prices[event][11] == pytest.approx(small.prices[event][10], rel=0.02)


@pytest.mark.parametrize(
    ("page_size", "order", "usual"), [(4096, 8, 9), (4096, 11, 9), (65536, 5, 13)]
)
def test_huge_pages_of_another_order(page_size, order, usual):
    """s390's and powerpc's are mapped by one entry as arm64's are, and said to be rescaled."""
    usual_table, table = (load("no-such-port", page_size, "6.12", o) for o in (usual, order))
    more = f"no cost table for huge pages of order {order}: {9 if usual == 9 else 11}'s is rescaled"
    assert table.simplified == (*usual_table.simplified, more)
    ours, theirs = table.prices, usual_table.prices
    assert max(ours["anon_fault"]) == order
    for event in ("zap_anon", "fork_anon", "mprotect_anon"):
        assert ours[event][order] * (1 << order) == pytest.approx(
            theirs[event][usual] * (1 << usual)
        )
    # Clearing it is most of it.
    assert ours["anon_fault"][order] / (1 << order) == pytest.approx(
        theirs["anon_fault"][usual] / (1 << usual), rel=0.01
    )
    for o in range(2, min(order, usual)):
        assert ours["zap_anon"][o] == theirs["zap_anon"][o]


def test_a_table_of_huge_pages_of_another_order(tmp_path):
    """A port's own table ends at the order of its huge pages."""

    def wanted(row):
        return row["page_size"] == "4096" and (not row["order"] or int(row["order"]) <= 5)

    copy_of(tmp_path / "foo", "arm64", wanted)
    table = load_costs(tmp_path / "foo", 4096, "6.12", 5)
    assert (table.name, table.simplified) == ("foo 4K 6.12", ())
    assert max(table.prices["anon_fault"]) == 5
    with pytest.raises(CostError, match=r"6\.12 4K: orders 0 to 5, its huge pages have order 9; "):
        load_costs(tmp_path / "foo", 4096, "6.12", 9)
    copy_of(tmp_path / "foo", "arm64", lambda row: wanted(row) and (row["order"] or "0") in "012")
    scaled = load_costs(tmp_path / "foo", 16384, "6.12", 4).prices["anon_fault"]
    assert sorted(scaled) == [0, 1, 2, 3, 4]
    assert sorted(scaled.values()) == list(scaled.values())


def test_nearest_page_size_by_ratio_the_smaller_of_two():
    assert load("arm64", 8192).name == "arm64 4K 6.12 scaled to 8K"
    assert load("x86", 65536, "7.3").name == "x86 4K 7.3 scaled to 64K"
    assert load("arm64", 1024).prices["pt_page_alloc"][None] < 927.2


def test_64k_is_plausible_against_what_ppc64le_was_measured_as():
    """The kernel's own work, zeroing and copying taken out: within 40 % of the 64K kernel 7.2."""
    ours = load("arm64", 65536, "7.3").prices
    clear, copy = 4 * 1032.0, 4 * 2571.0
    theirs = {
        "anon_fault 0": (ours["anon_fault"][0] - clear, 6048.8 - 4.6 - 678),
        "anon_fault 5": (ours["anon_fault"][5] - 32 * clear, (948.3 - 4.6 - 678) * 32),
        "wp_copy": (ours["wp_copy"][0] - clear - copy, 24828.4 - 4.6 - 678 - 18774),
        "unmap 0": (ours["zap_anon"][0] + ours["anon_free"][0], 1476.3),
        "fork": (ours["fork_anon"][0], 247.8),
        "file_read_fault": (ours["file_read_fault"][None], 3715.4),
        "zap_file": (ours["zap_file"][None], 668.7),
        "fork_vma": (ours["fork_vma"][None], 1597.8),
    }
    for name, (mine, measured) in theirs.items():
        assert 0.6 < mine / measured < 1.4, name


@pytest.mark.parametrize("page_size", [0, -4096, 3000, 512])
def test_no_page_size(page_size):
    with pytest.raises(CostError, match=f"page size {page_size}: not a power of two"):
        load("arm64", page_size)


@pytest.mark.parametrize("release", ["", "mainline", "6.12-rc1"])
def test_no_release(release):
    with pytest.raises(
        CostError, match=re.escape(f"COST_RELEASE={release!r}: not of the form 6.12")
    ):
        load("arm64", 4096, release)


# --- broken tables -----------------------------------------------------------------------------

HEADER = ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r":1: not a cost table; its columns are release,page_size,"),
        ("a,b\n", r":1: not a cost table"),
        (HEADER, r": the cost table is empty"),
        (HEADER + "6.12,4096,fork\n", r":2: not a price: 6\.12,4096,fork$"),
        (HEADER + "new,4096,fork,,1,x\n", r":2: release: new is not of the form 6\.12$"),
        (HEADER + "6.12,4096,fork,,many,x\n", r":2: instructions: many is no price$"),
        (HEADER + "6.12,4096,fork,x,1,x\n", r":2: order: x is none$"),
        (HEADER + "6.12,8K,fork,,1,x\n", r":2: page_size: 8K is not bytes of a base page$"),
        (HEADER + "6.12,4096,fork,,nan,x\n", r":2: instructions: nan is no price$"),
        (HEADER + "6.12,4096,fork,,1,x\n6.12,4096,fork,,2,x\n", r":3: fork: a second price$"),
        (HEADER + "6.12,5000,fork,,1,x\n", r":2: page_size: 5000 is not bytes of a base page$"),
        (HEADER + "6.12,0,fork,,1,x\n", r":2: page_size: 0 is not bytes"),
        (HEADER + "6.12,4096,forkk,,1,x\n", r":2: event: forkk is none that is counted$"),
        (HEADER + "6.12,4096,fork,,1,\n", r":2: source: not given; say which measurement$"),
        (HEADER + "6.12,4096,fork,,-1,x\n", r":2: instructions: -1 is no price$"),
        (
            HEADER + "6.12,8192,anon_fault,,1,x\n",
            r": 6\.12 8K: no zero_page_fault; make it anew by scripts/make_costs\.py$",
        ),
        (b"\xff\xfe\x00", r": cannot read the cost table"),
    ],
)
def test_broken_tables_are_one_clear_line(tmp_path, text, message):
    folder = tmp_path / "arm64"
    folder.mkdir()
    (folder / "costs.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CostError, match=message) as e:
        load_costs(folder, 4096, "6.12", 9)
    assert "\n" not in str(e.value)


def copy_of(folder, arch, wanted):
    """Write the rows of a table that are wanted into a folder."""
    with (ARCH / arch / "costs.csv").open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if wanted(row)]
    folder.mkdir(exist_ok=True)
    with (folder / "costs.csv").open("w", newline="") as f:
        out = csv.DictWriter(f, COLUMNS)
        out.writeheader()
        out.writerows(rows)


@pytest.mark.parametrize("event", ["zap_none", "anon_fault"])
def test_a_table_has_every_event(tmp_path, event):
    copy_of(tmp_path / "foo", "x86", lambda row: row["event"] != event)
    with pytest.raises(CostError, match=rf": 6\.12 4K: no {event}; make it anew by scripts/"):
        load_costs(tmp_path / "foo", 4096, "6.12", 9)


def test_a_table_has_every_order(tmp_path):
    copy_of(tmp_path / "foo", "x86", lambda row: (row["event"], row["order"]) != ("wp_copy", "3"))
    with pytest.raises(CostError, match=r"costs\.csv: wp_copy: needs orders 0 to 9$"):
        load_costs(tmp_path / "foo", 4096, "6.12", 9)


def test_each_price_says_where_it_comes_from():
    for path in sorted(ARCH.glob("*/costs.csv")):
        with path.open(newline="") as f:
            for row in csv.DictReader(f):
                assert row["source"], (path, row)
                assert not Path(row["source"]).is_absolute()
