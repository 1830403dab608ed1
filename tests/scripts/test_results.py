# SPDX-License-Identifier: GPL-2.0-only
"""Documentation/results.md says what the model gives today, as far as that is quickly seen."""

import pytest
from virtmm.scripts import results
from virtmm.tools.report.result import check_result

DOCUMENT = results.OUTPUT.read_text(encoding="utf-8")


def test_the_compiler_s_table_and_the_contiguous_entries_are_current():
    """All of them would take long; ``scripts/results.py --check`` does it."""
    assert results.render(DOCUMENT, ("gcc", "contpte")) == DOCUMENT


def test_every_table_is_there_once():
    for name in results.SECTIONS:
        assert results.section(DOCUMENT, name, results.OUTPUT).startswith(("| ", "- published"))
    assert DOCUMENT.count("<!-- end -->") == len(results.SECTIONS)


def test_only_what_stands_between_the_marks_changes(monkeypatch):
    before, after = DOCUMENT.split(results.section(DOCUMENT, "tlb", results.OUTPUT))
    monkeypatch.setitem(results.SECTIONS, "tlb", lambda _: "| new |\n")
    changed = results.render(DOCUMENT, ["tlb"])
    assert changed == f"{before}| new |\n{after}"


def test_a_document_that_lost_a_mark_is_one_line():
    with pytest.raises(SystemExit, match=r"results\.md: no marks <!-- tlb -->"):
        results.render(DOCUMENT.replace("<!-- tlb -->", ""), ["tlb"])


def fake(minflt, peak, instructions, text):
    """Return measure() of kernels that are all alike but for the figures given by kernel."""
    kind = {"bytes": 1 << 20, "plain": 256, "hpa": 64, "cont": 256, "best": 64}

    def measure(sample, kernel, *_):
        return check_result(
            {
                "format": "virtmm-result",
                "version": 1,
                "trace": {"name": sample, "hash": "h"},
                "kernel": kernel,
                "arch": "arm64",
                "page_size": 4096,
                "config_hash": "c",
                "core_hash": "c",
                "minflt": minflt.get(kernel, 0),
                "segv": 0,
                "refused_calls": 0,
                "folios": {},
                "instructions": {"total": instructions.get(kernel, 10)},
                "cost_table": "t",
                "memory": {"peak": peak.get(kernel, 0), "max_page_tables": 0},
                "tlb": {
                    "data": {**kind, "cont_bytes": 0},
                    "text": {**kind, "cont_bytes": text.get(kernel, 0)},
                },
            },
            "fake",
        )

    return measure


GOOD = {
    "minflt": {"baseline_4k": 100, "anonfolio_basic": 60, "anonfolio": 60},
    "peak": {"baseline_64k": 3 << 10, "baseline_16k": 2 << 10, "anonfolio": 1 << 10},
    "instructions": {},
    "text": {"exefolio": 512 << 10},
}


def verdicts(**changes):
    """Return whether each claim about the first sample holds."""
    table = results.claims(fake(**(GOOD | changes))).splitlines()
    return [line.split(" | ")[-1] == "yes |" for line in table[2:6]]


def test_claims_hold_where_they_hold_and_only_there():
    assert verdicts() == [True] * 4
    assert "50.0% / 0.0%" in results.claims(fake(**GOOD))
    one_more = {"minflt": {"baseline_4k": 100, "anonfolio_basic": 60, "anonfolio": 61}}
    assert verdicts(**one_more) == [False, True, True, True]
    many = {"minflt": {"baseline_4k": 100, "anonfolio_basic": 61, "anonfolio": 61}}
    assert verdicts(**many) == [True, False, True, True]
    equal = {"baseline_64k": 2 << 10, "baseline_16k": 2 << 10, "anonfolio": 1 << 10}
    assert verdicts(peak=equal) == [True, True, False, True]
    assert verdicts(peak=GOOD["peak"] | {"anonfolio": 2 << 10})[2] is False
    assert verdicts(text={"exefolio": 4096, "contpte": 4096})[3] is False


def test_kernels_are_ranked_by_cost_and_equal_ones_shown_as_that():
    cost = {"baseline_4k": 90, "anonfolio_basic": 50, "anonfolio": 50, "contpte": 60}
    lines = results.order(fake(**GOOD | {"instructions": cost})).splitlines()
    assert lines[0].endswith(
        "`anonfolio_basic`, `contpte`, `anonfolio`, `exefolio`, `baseline_16k`, `baseline_64k`"
    )
    assert lines[1].startswith(
        "- gcc: `baseline_4k`, `contpte`, `anonfolio_basic` = `anonfolio`, `exefolio` ="
    )
