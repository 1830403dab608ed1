# SPDX-License-Identifier: GPL-2.0-only
"""What kept folios small, as tables; the command line's side is tested in test_policy.py above."""

import re

from virtmm.tools.report.why import TOP_MAPPINGS, render_why

from .test_table import result

COUNTS = {
    "edge": {"4": 1200, "9": 3},
    "populated": {"4": 7},
    "not_enabled": {},
    "alloc": {"2": 1},
    "charge": {},
}


def mapping(pid, faults):
    place = {"pid": pid, "command": "cc1", "start": 0x7FFFF0000000, "end": 0x7FFFF0100000}
    return place | {"kind": "anon", "faults": faults, "refused": {"edge": faults}}


def test_sizes_come_largest_first_and_names_once():
    results = [
        result("a", refused_orders=COUNTS),
        result("b", page_size=16384, refused_orders=COUNTS),
    ]
    rows = render_why(results, width=100).splitlines()[3:9]
    assert [row.split() for row in rows] == [
        ["gcc", "a", "2048kB", "3", "0", "0", "0", "0"],
        ["64kB", "1,200", "7", "0", "0", "0"],
        ["16kB", "0", "0", "0", "1", "0"],
        ["b", "8192kB", "3", "0", "0", "0", "0"],
        ["256kB", "1,200", "7", "0", "0", "0"],
        ["64kB", "0", "0", "0", "1", "0"],
    ]


def test_the_mappings_that_lost_most():
    many = [mapping(pid, 1000 - pid) for pid in range(1, 2 * TOP_MAPPINGS)]
    text = render_why([result(refused_orders={}, refused_mappings=many)], mappings=True, width=120)
    shown = re.findall(
        r"^ *(\d+) +cc1 +7ffff0000000-7ffff0100000 +1,024kB +anon +(\d+)", text, re.M
    )
    assert shown == [(str(pid), str(1000 - pid)) for pid in range(1, TOP_MAPPINGS + 1)]


def test_what_the_log_did_not_hold_is_called_that():
    lost = mapping(0, 5) | {"command": ""}
    text = render_why([result(refused_mappings=[lost])], mappings=True, width=120)
    assert "more than the log holds" in text
    assert "7ffff0000000" not in text


def test_a_narrow_terminal():
    results = [result(refused_orders=COUNTS, refused_mappings=[mapping(1, 4)])]
    text = render_why(results, mappings=True, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "7ffff0000000-7ffff0100000" in text


def test_bars_do_not_break_markdown():
    text = render_why([result("a|b", refused_orders=COUNTS)], "md")
    assert "| gcc | a\\|b | 64kB | 1,200 | 7 | 0 | 0 | 0 |\n" in text
