# SPDX-License-Identifier: GPL-2.0-only
"""The steps of contiguous entries compared: samples/contpte-*.scn and Documentation/contpte.md."""

import re

import pytest
from virtmm.tools.scenario.run import run

from virtmm import topdir
from virtmm.kconfig import resolve

STEPS = {
    "ARM64_CONTPTE=n": ((), ("ARM64_CONTPTE=n",)),
    "contpte-basic": (("contpte-basic",), ()),
    "contpte-batch": (("contpte-batch",), ()),
    "contpte-fold": (("contpte-fold",), ()),
}


def costs(path, step, defconfig="linux-6.12", pages=()):
    """Return command -> (reads and writes of entries, TLB invalidations), of fork, exit and munmap."""
    fragments, sets = STEPS[step]
    sets = [*sets, "PHYS_BACKING=y", "MEMORY_MB=1024"]
    answer = run(path, resolve("arm64", defconfig, [*pages, *fragments], sets), work=True)
    lines = path.read_text().splitlines()
    found = {lines[w["line"] - 1].split()[0]: w for w in answer["work"]}
    return {
        name: (found[name]["pte_read"] + found[name]["pte_write"], found[name]["tlbi"])
        for name in ("fork", "exit", "munmap")
    }


def sample(order):
    return topdir() / "samples" / f"contpte-order{order}.scn"


@pytest.mark.parametrize("order", [4, 9])
def test_only_the_first_step_is_dear_for_whole_blocks(order):
    plain, basic, batch, fold = (costs(sample(order), step) for step in STEPS)
    for call in ("fork", "exit", "munmap"):
        assert basic[call][0] > 3 * fold[call][0]
        assert basic[call][1] > 100 * fold[call][1]
        assert batch[call] == pytest.approx(plain[call], rel=0.03)
        assert fold[call] == pytest.approx(plain[call], rel=0.03)


def test_single_pages_cost_what_they_cost_without():
    plain, *others = (costs(sample(0), step) for step in STEPS)
    for other in others:
        for call in plain:
            assert other[call] == pytest.approx(plain[call], rel=0.03)


@pytest.mark.parametrize(
    ("defconfig", "pages", "knob"),
    [("anonfolio", (), ""), ("linux-6.12", ("16k",), "2048kB"), ("linux-6.12", ("64k",), "2048kB")],
)
def test_it_is_so_for_the_series_and_for_other_page_sizes(tmp_path, defconfig, pages, knob):
    path = tmp_path / "a.scn"
    text = (
        sample(4).read_text().replace("set 64kB always\n", f"set {knob} always\n" if knob else "")
    )
    path.write_text(text.replace(" 64k\n", " 2M\n" if knob else " 64k\n"))
    plain, basic, batch, fold = (costs(path, step, defconfig, pages) for step in STEPS)
    for call in plain:
        assert basic[call][0] > 3 * fold[call][0]
        assert batch[call] == fold[call] == plain[call]


def test_the_document_has_the_figures():
    found = {step: {order: costs(sample(order), step) for order in (0, 4, 9)} for step in STEPS}
    text = (topdir() / "Documentation" / "contpte.md").read_text()
    base = found["ARM64_CONTPTE=n"]
    for step, by_order in found.items():
        cells = []
        for call in ("fork", "munmap"):
            assert by_order[4][call] == by_order[9][call]
            for order in (0, 4):
                entries, whole = by_order[order][call][0], base[order][call][0]
                percent = f"{100 * (entries / whole - 1):+.1f}%"
                cells.append(str(entries) if by_order is base else percent)
            cells.append(str(by_order[4][call][1]))
        assert re.search(re.escape(f"| `{step}` | {' | '.join(cells)} |"), text), cells


def test_the_answer_has_work_only_if_asked(tmp_path):
    path = tmp_path / "a.scn"
    path.write_text("proc p\nmmap p A 8k\ntouch p w A 8k\nobserve x\nmunmap p A 8k\n")
    config = resolve("arm64", "linux-6.12", (), ["PHYS_BACKING=y", "MEMORY_MB=256"])
    answer = run(path, config, work=True)
    assert answer.pop("work") == [
        {"line": 3, "pte_write": 2, "rmap_add": 2},
        {"line": 5, "pte_read": 4, "pte_write": 2, "tlbi": 1, "rmap_remove": 2},
    ]
    assert answer == run(path, config)
