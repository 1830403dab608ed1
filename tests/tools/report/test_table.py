# SPDX-License-Identifier: GPL-2.0-only
"""The compare table in each format, and every result it refuses."""

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from virtmm.tools.report.result import ReportError, read_results
from virtmm.tools.report.table import BAR_CELLS, bar, compact, make_rows, render

import virtmm


def tlb(size: int, plain: int, cont: int = 0) -> dict[str, int]:
    return {
        "bytes": size,
        "cont_bytes": 0,
        "plain": plain,
        "hpa": plain // 4,
        "cont": cont or plain,
        "best": cont or plain // 4,
    }


def result(kernel: str = "baseline_4k", trace: str = "gcc", **changes: Any) -> dict[str, Any]:
    made = {
        "format": "virtmm-result",
        "version": 1,
        "virtmm": "0.1.0",
        "trace": {
            "name": trace,
            "hash": f"hash of {trace}",
            "events": 123,
            "page_size": 4096,
            "command": "gcc -c x.c",
        },
        "kernel": kernel,
        "arch": "arm64",
        "page_size": 4096,
        "config_hash": f"config of {kernel}",
        "core_hash": "core",
        "minflt": 52341,
        "segv": 0,
        "refused_calls": 0,
        "folios": {"0": 40123},
        "events": {},
        "instructions": {"total": 812345678, "anonymous faults": 700000000, "fork": 112345678},
        "cost_table": "arm64 4K 6.12",
        "memory": {"peak": 61 << 20, "peak_anon": 60 << 20, "max_page_tables": 1 << 20},
        "tlb": {"data": tlb(60 << 20, 15360), "text": tlb(2 << 20, 512)},
        "vmstat": {},
        "hugepages": {},
        "processes": [],
        "oom": None,
        "simplified": ["page cache in base pages"],
    }
    return made | changes


BASE = result()
LARGE = result(
    "anonfolio_basic",
    refused_orders={"edge": {"4": 2}},
    minflt=22341,
    instructions={"total": 612345678},
    folios={"4": 2041, "0": 4123, "2": 12},
    memory={"peak": 63 << 20, "max_page_tables": 1 << 20},
    tlb={"data": tlb(62 << 20, 15872, 4526), "text": tlb(0, 0)},
    refused_calls=2,
)
OOM = result(
    "baseline_64k",
    page_size=65536,
    minflt=600,
    cost_table="arm64 16K 6.12 scaled to 64K",
    oom={"pid": 7, "command": "cc1", "held": 1 << 30, "event": 99},
    simplified=["SIMPLIFIED: 16K's table is rescaled"],
)


def text(results: list[Any], **options: Any) -> str:
    return render(results, "text", **({"width": 100, "color": False} | options))


# --- golden tables ---------------------------------------------------------------------------------

TWO_TRACES = [
    BASE,
    result(trace="python"),
    result("anonfolio_basic", trace="python", minflt=52341),
    LARGE,
]


@pytest.mark.parametrize(
    ("name", "results", "fmt", "width"),
    [
        ("bars.txt", [BASE, LARGE], "text", 130),
        ("no-bars.txt", [BASE, LARGE, OOM], "text", 110),
        ("no-tables.txt", TWO_TRACES, "text", 100),
        ("narrow.txt", TWO_TRACES, "text", 80),
        ("blocks.txt", TWO_TRACES, "text", 60),
        ("small-blocks.txt", [BASE, LARGE, OOM], "text", 40),
        ("table.md", [BASE, LARGE, OOM], "md", None),
        ("table.csv", [BASE, LARGE, OOM], "csv", None),
    ],
)
def test_golden(name, results, fmt, width):
    golden = Path(__file__).with_name("golden") / name
    assert render(results, fmt, width=width, color=False) == golden.read_text(encoding="utf-8")


def test_markdown_of_several_traces_keeps_its_columns():
    lines = render([BASE, result(trace="a|b")], "md").splitlines()
    assert lines[0].startswith("| Trace | Kernel |")
    assert lines[3].startswith("| a\\|b | baseline_4k |")


def test_json_has_the_full_figures():
    document = json.loads(render([BASE, LARGE, OOM], "json"))
    assert document["format"] == "virtmm-compare"
    assert (document["version"], document["virtmm"]) == (1, virtmm.__version__)
    first, second, third = document["rows"]
    assert (first["baseline"], first["minflt_change_percent"]) == (True, None)
    assert second == {
        "trace": "gcc",
        "trace_hash": "hash of gcc",
        "kernel": "anonfolio_basic",
        "arch": "arm64",
        "page_size": 4096,
        "config_hash": "config of anonfolio_basic",
        "core_hash": "core",
        "baseline": False,
        "minflt": 22341,
        "minflt_change_percent": -57.32,
        "instructions": {"total": 612345678},
        "instructions_change_percent": -24.62,
        "cost_table": "arm64 4K 6.12",
        "folios": {"0": 4123, "2": 12, "4": 2041},
        "refused_orders": {"edge": {"4": 2}},
        "policy": None,
        "memory": {"peak": 63 << 20, "max_page_tables": 1 << 20},
        "peak_change_percent": 3.28,
        "tlb": {
            "data": {
                "bytes": 62 << 20,
                "cont_bytes": 0,
                "plain": 15872,
                "hpa": 3968,
                "cont": 4526,
                "best": 4526,
            },
            "text": {"bytes": 0, "cont_bytes": 0, "plain": 0, "hpa": 0, "cont": 0, "best": 0},
        },
        "segv": 0,
        "refused_calls": 2,
        "oom": None,
        "simplified": ["page cache in base pages"],
    }
    assert third["oom"] == {"pid": 7, "command": "cc1", "held": 1 << 30, "event": 99}
    assert third["minflt_change_percent"] is None
    assert document["not_booted"] == {}


# --- what is compared with what ----------------------------------------------------------------------


def test_the_first_kernel_of_each_trace_is_its_baseline():
    rows = make_rows([LARGE, result(trace="python", minflt=10), BASE, result("k", "python")])
    assert [(r.result.trace, r.result.kernel, r.first) for r in rows] == [
        ("gcc", "anonfolio_basic", True),
        ("gcc", "baseline_4k", False),
        ("python", "baseline_4k", True),
        ("python", "k", False),
    ]
    assert rows[1].minflt_change == pytest.approx(134.28)
    assert rows[3].minflt_change == pytest.approx(523310)


def test_nothing_is_compared_with_a_baseline_that_ran_out_of_memory_or_counted_nothing():
    assert make_rows([OOM, BASE])[1].peak_change is None
    assert make_rows([result("idle", minflt=0), BASE])[1].minflt_change is None


def test_architectures_are_told_apart_where_there_are_several():
    shown = text([BASE, result(arch="x86", cost_table="x86 4K 6.12")])
    assert "arm64 baseline_4k " in shown
    assert "x86 baseline_4k " in shown


def test_segmentation_faults_are_noted():
    assert "baseline_4k: 3 segmentation faults" in text([result(segv=3)])


def test_refused_calls_are_noted():
    assert "anonfolio_basic: 2 memory calls refused" in text([BASE, LARGE])
    assert "refused" not in text([BASE])


@pytest.mark.parametrize(
    ("entries", "size", "shown"),
    [(256, 1, "256"), (731, 10, "73.1"), (999, 10, "99.9"), (9996, 100, "100"), (1, 2, "0.50")],
)
def test_tlb_entries_per_mib_have_three_digits(entries, size, shown):
    made = result(tlb={"data": tlb(size << 20, 1000 * size, entries), "text": tlb(0, 0)})
    assert f" {shown}    -\n" in text([made])


@pytest.mark.parametrize("fmt", ["text", "md", "json", "csv"])
def test_kernels_that_do_not_boot_are_named_with_the_reason(fmt):
    shown = render([BASE], fmt, width=100, not_booted={"baseline_64k": "too little memory"})
    if fmt == "json":
        assert json.loads(shown)["not_booted"] == {"baseline_64k": "too little memory"}
    elif fmt == "csv":
        *_, last = csv.DictReader(io.StringIO(shown))
        assert (last["kernel"], last["oom"]) == (
            "baseline_64k",
            "does not boot: too little memory",
        )
        assert last["minflt"] == ""
    else:
        assert "\nbaseline_64k does not boot: too little memory\n" in shown


def test_no_folios():
    assert " none " in text([result(folios={})])


def test_color_only_on_request_or_on_a_terminal(monkeypatch):
    assert "\x1b[32m-57.3%" in text([BASE, LARGE], color=True)
    assert "\x1b[31m+3.3%" in text([BASE, LARGE], color=True)
    assert "\x1b" not in text([BASE, LARGE], color=None)  # pytest's stdout is no terminal
    assert "\x1b" not in render([BASE, LARGE], "md")


@pytest.mark.parametrize("width", range(30, 161, 6))
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_cut(width):
    many = result("anonfolio_basic", folios={str(o): 1234567 for o in range(10)})
    for results in ([BASE, LARGE], [BASE, many], [BASE, many, OOM, result(trace="python")]):
        shown = text(results, width=width)
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown
        words = set(shown.split())
        for r in results:
            figures = [f"{r['minflt']:,}", compact(r["instructions"]["total"]), r["kernel"]]
            figures += ["61.0MiB" if r["memory"]["peak"] == 61 << 20 else "63.0MiB", "256"]
            figures += [] if r["oom"] else [f"{o}:{compact(n, 2)}" for o, n in r["folios"].items()]
            assert words.issuperset(figures)


@pytest.mark.parametrize("width", [1, 10, 20])
def test_a_terminal_of_no_use_cuts_no_figure_either(width):
    shown = text([BASE, LARGE], width=width)
    assert {"52,341", "22,341", "-57.3%", "812M", "4:2.0k", "61.0MiB", "256"} < set(shown.split())


def test_ascii_where_the_terminal_knows_nothing_else(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    shown = text([BASE, LARGE], width=140)
    assert shown.isascii()
    assert "########" in shown


@pytest.mark.parametrize(
    ("value", "three", "two"),
    [
        (0, "0", "0"),
        (999, "999", "999"),
        (1000, "1.00k", "1.0k"),
        (9996, "10.0k", "10k"),
        (99960, "100k", "100k"),
        (999499, "999k", "999k"),
        (999500, "1.00M", "1.0M"),
        (1234567, "1.23M", "1.2M"),
        (5e21, "5000E", "5000E"),
    ],
)
def test_compact_numbers(value, three, two):
    assert (compact(value), compact(value, 2)) == (three, two)


def test_bar():
    assert [bar(x, plain=True) for x in (0, 0.5, 1)] == ["", "#" * 4, "#" * BAR_CELLS]
    assert [bar(x) for x in (0, 1 / 64, 0.5, 1)] == ["", "▏", "█" * 4, "█" * BAR_CELLS]


# --- results that are refused ----------------------------------------------------------------------------


def broken(path: str, value: Any = None, *, remove: bool = False) -> dict[str, Any]:
    made = copy.deepcopy(OOM)
    *folders, name = path.split(".")
    place = made
    for folder in folders:
        place = place[folder]
    if remove:
        del place[name]
    else:
        place[name] = value
    return made


REFUSED = [
    ([], "no results: nothing to report"),
    (["x"], "result 1: not a virtmm-result file; make one by virtmm replay --format json"),
    ([{}], "result 1: not a virtmm-result file; make one by virtmm replay --format json"),
    ([broken("version", 2)], "result 1: virtmm-result version 2; this virtmm reads 1"),
    ([broken("version", remove=True)], "result 1: virtmm-result version None; this virtmm reads 1"),
    *(
        ([b], f"result 1: no {h}: nobody can say what this is a result of")
        for h in ("config_hash", "core_hash", "trace.hash")
        for b in (broken(h, remove=True), broken(h, ""))
    ),
    ([broken("trace", "gcc")], "result 1: no trace.hash: nobody can say what this is a result of"),
    ([broken("core_hash", 5)], "result 1: core_hash is 5, not a text"),
    ([broken("trace.name", remove=True)], "result 1: no trace.name"),
    ([broken("kernel", None)], "result 1: kernel is null, not a text"),
    ([broken("minflt", -1)], "result 1: minflt is -1, not a whole number of at least 0"),
    ([broken("minflt", True)], "result 1: minflt is true, not a whole number of at least 0"),
    ([broken("refused_calls", remove=True)], "result 1: no refused_calls"),
    ([broken("tlb", remove=True)], "result 1: no tlb.data.bytes"),
    ([broken("tlb.text.best", remove=True)], "result 1: no tlb.text.best"),
    (
        [broken("tlb.data.hpa", 1.5)],
        "result 1: tlb.data.hpa is 1.5, not a whole number of at least 0",
    ),
    ([broken("segv", "0")], 'result 1: segv is "0", not a whole number of at least 0'),
    ([broken("folios", {"x": 1})], 'result 1: folios is {"x": 1}, not counts by folio order'),
    (
        [broken("folios", [1])],
        "result 1: folios is [1], not names with whole numbers of at least 0",
    ),
    ([broken("instructions.total", remove=True)], "result 1: instructions: no total"),
    ([broken("memory.peak", remove=True)], "result 1: no memory.peak"),
    ([broken("memory.max_page_tables", remove=True)], "result 1: no memory.max_page_tables"),
    ([broken("oom.event", remove=True)], "result 1: no oom.event"),
    ([broken("oom", "yes")], "result 1: no oom.pid"),
    ([broken("simplified", "all")], 'result 1: simplified is "all", not a list of texts'),
    (
        [broken("simplified", list(range(50)))],
        "result 1: simplified is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..., "
        "not a list of texts",
    ),
    (
        [BASE, broken("trace.hash", "b")],
        "result 2: trace gcc has hash b, an earlier result hash of gcc: replay one trace, or name "
        "the two apart",
    ),
    ([BASE, BASE], "trace gcc: two results of arm64 baseline_4k; name one apart"),
]


@pytest.mark.parametrize(("results", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused(results, message):
    with pytest.raises(ReportError) as e:
        render(results)
    assert str(e.value) == message


def test_unknown_format():
    with pytest.raises(ReportError, match="unknown format 'xml': use one of text, json, csv, md"):
        render([BASE], "xml")


def test_files(tmp_path):
    good, bad, foreign = (tmp_path / name for name in ("good.json", "bad.json", "foreign.json"))
    good.write_text(json.dumps(BASE))
    bad.write_text("{")
    foreign.write_text('{"format": "other"}')
    assert read_results([good]) == read_results([BASE])
    assert next(csv.DictReader(io.StringIO(render([good], "csv"))))["minflt"] == "52341"
    for path, message in (
        (bad, "not a JSON file"),
        (foreign, "not a virtmm-result file"),
        (tmp_path / "absent.json", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(ReportError) as e:
            read_results([Path(path)])
        assert str(e.value).startswith(f"{path}: {message}")
        assert "\n" not in str(e.value)
