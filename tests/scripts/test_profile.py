# SPDX-License-Identifier: GPL-2.0-only
"""The profile counts what a replay did, whatever the times; its document has the tables it writes."""

import re

import pytest
from virtmm.scripts import bounds, profile
from virtmm.scripts.document import section
from virtmm.scripts.operations import CHILD, PARENT, Lab
from virtmm.tools.trace.format import TraceReader

from virtmm.kconfig import resolve
from virtmm.machine import Machine

GCC = profile.SAMPLES[0]
DOCUMENT = profile.OUTPUT.read_text(encoding="utf-8")


@pytest.fixture
def ticking(monkeypatch):
    """A clock that a test turns."""

    class Clock:
        now = 0

        def perf_counter_ns(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(profile, "time", clock)
    return clock


def test_a_call_s_time_is_without_that_of_calls_in_it(ticking):
    clock = profile.Clock()

    def spend(ns):
        ticking.now += ns

    inner = clock.wrap(lambda: spend(5), "inner")

    def body():
        spend(100)
        inner()
        inner()
        counted(7)

    def access(n):
        spend(30)
        return n

    counted = clock.count(access, many=False)
    clock.wrap(body, "outer")()
    assert clock.ns == {"inner": 10, "outer": 100, profile.IN_C: 30}
    assert clock.calls == {"inner": 2, "outer": 1, profile.IN_C: 7}


def test_telling_faults_apart_is_nobody_s_time(ticking):
    clock = profile.Clock()

    def spend(ns):
        ticking.now += ns

    def kind():
        spend(1000)

        def ask():
            spend(1000)
            return "kind"

        return ask

    fault = clock.wrap(lambda: spend(5), kind)
    clock.wrap(lambda: (spend(2), fault()), "outer")()
    assert clock.ns == {"kind": 5, "outer": 2}
    assert clock.lost == 2000


def test_a_call_that_fails_is_timed(ticking):
    clock = profile.Clock()
    with pytest.raises(ZeroDivisionError):
        clock.wrap(lambda: 1 // 0, "call")()
    assert clock.calls["call"] == 1


def total(count):
    return sum(count.values()) if isinstance(count, dict) else count


@pytest.mark.parametrize("kernel", profile.KERNELS)
def test_every_event_of_a_replay_is_in_the_profile(kernel):
    """Calls and faults as the machine's own counters have them."""
    config, settings = profile._config(kernel)
    found = profile.profile(GCC, config, settings)
    often = {what: number for what, number, _ in found.rows}
    with TraceReader(GCC) as reader, Machine(config, settings) as machine:
        profile.Replay(machine, reader).run()
        events = machine.events()
        assert found.events == reader.num_events == often[profile.READ]
    assert often["fork"] == events["fork"] + events["vfork"]
    assert often["exit"] == events["exit"]
    python = {w: n for w, n in often.items() if w.startswith("in Python: ") and "no fault" not in w}
    for what, number in python.items():
        assert number <= total(events[what.removeprefix("in Python: ")])
    assert sum(ns for _, _, ns in found.rows) == found.ns
    assert found.bytes > bounds.event_bytes(GCC) * found.events


def test_faults_left_to_python_are_told_apart():
    with Machine(resolve("x86", "linux-6.18", sets=["MEMORY_MB=64", "FAST_FAULT=n"])) as machine:
        totals = profile._fault_totals(machine)
        before = totals()
        machine.spawn(1)
        machine.mmap(1, 1 << 30, 1 << 20)
        machine.touch(1, 1 << 30, True)
        machine.touch(1, (1 << 30) + 4096, False)
        changed = [b - a for a, b in zip(before, totals(), strict=True)]
    assert dict(zip(profile.FAULT_EVENTS, changed, strict=True)) == {
        **dict.fromkeys(profile.FAULT_EVENTS, 0),
        "anon_fault": 1,
        "zero_page_fault": 1,
    }


def test_bytes_of_entries_and_records():
    """512 pages written, shared, and unmapped twice."""
    lab = Lab(resolve("x86", "linux-6.18", sets=["MEMORY_MB=64"]), 4096, 2 << 20, ["enabled=never"])
    with lab.machine as machine:
        assert bounds.bytes_moved(machine) == 0
        lab.populate()
        assert bounds.bytes_moved(machine) == 512 * (8 + 64)
        before = bounds.bytes_moved(machine)
        assert machine.fork(PARENT, CHILD) == 0
        forked = bounds.bytes_moved(machine) - before
        assert forked >= 512 * (2 * 8 + 64)
        before = bounds.bytes_moved(machine)
        machine.exit(CHILD)
        assert bounds.bytes_moved(machine) - before >= 512 * 64


def test_bytes_of_an_event():
    """Those of the columns of tools/trace/schema.py, texts as indices of 4 bytes."""
    assert bounds.event_bytes(GCC) == 8 + 4 + 4 + 4 + 4 * 8 + 1 + 4 + 8 + 4 + 8 + 8 + 8


def test_bandwidth_and_decoding_take_time():
    assert bounds.bandwidth(1 << 20) > 1e6
    assert bounds.bare_decode(GCC) > 1000


def test_table_of_kernels_that_differ():
    one = profile.Profile(10, 1000, [("replay loop", 10, 750), ("fork", 1, 250)], 1)
    two = profile.Profile(10, 2000, [("replay loop", 10, 2000), ("mmap", 0, 0)], 1)
    lines = profile.time_table({"a": one, "b": two}).splitlines()
    assert lines[0] == "|  | `a`: number | share | ns each | `b`: number | share | ns each |"
    assert lines[2] == "| replay loop | 10 | 75.0% | 75 | 10 | 100.0% | 200 |"
    assert "| fork | 1 | 25.0% | 250 | - | - | - |" in lines
    assert lines[-1] == "| all | 10 | 100.0% | 100 | 10 | 100.0% | 200 |"


REPORT = """
    90.25%;libpython3.11.so.1.0                  ;[.] _PyEval_EvalFrameDefault
     2.00%;[kernel.kallsyms]                     ;[k] clear_page_erms
     1.00%;libpython3.11.so.1.0                  ;[.] PyLong_Add
     0.40%;libz.so.1                             ;[.] inflate
     0.20%;_core.cpython-311-x86_64-linux-gnu.so ;[.] access_once
     0.01%;_core.cpython-311-x86_64-linux-gnu.so ;[.] pmd_offset
garbage
"""


def test_functions_of_the_core_are_told_apart():
    assert profile.functions(REPORT).splitlines()[2:] == [
        "| libpython3.11 | 91.2 % |",
        "| this machine's kernel | 2.0 % |",
        "| C core: `access_once` | 0.2 % |",
    ]


def test_without_perf_the_document_says_so(monkeypatch):
    monkeypatch.setattr(profile.shutil, "which", lambda _: None)
    assert profile.in_c(GCC, "baseline_4k") == (
        "`perf` is not installed on the machine that these figures are of.\n"
    )


def test_operations_have_a_bound(monkeypatch):
    monkeypatch.setattr(bounds, "bandwidth", lambda: 1e10)
    rows = [line.split(" | ") for line in bounds.operation_bounds(2).splitlines()[2:]]
    assert [row[0].lstrip("| ") for row in rows] == [*bounds.BOUND_OPERATIONS] * 3
    by_name = {(row[0].lstrip("| "), row[1]): row for row in rows}
    assert by_name["first_touch", "4K"][3:5] == ["72.0", "7.20"]


def test_the_document_has_the_tables_that_the_script_writes():
    """Their first column and header, not the figures, which are of one machine."""
    for name in ("gcc", "python", "replays", "operations", "functions", "machine"):
        assert section(DOCUMENT, name, profile.OUTPUT)
    for name in ("gcc", "python"):
        text = section(DOCUMENT, name, profile.OUTPUT)
        assert re.findall(r"`(\S+)`: number", text.splitlines()[0]) == list(profile.KERNELS)
        assert {"| read and decode ", "| replay loop ", "| all "} <= set(
            re.findall(r"^\| [a-z ]+ ", text, re.M)
        )
    rows = section(DOCUMENT, "operations", profile.OUTPUT).splitlines()[2:]
    assert [r.split(" | ")[:2] for r in rows] == [
        [f"| {name}", f"{kib}K"] for kib in bounds.BOUND_SIZES for name in bounds.BOUND_OPERATIONS
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.parquet"], "profile: the document is of the samples; add --print"),
        (["--print", "nothing.parquet"], "nothing.parquet: no such trace"),
    ],
)
def test_one_clear_line_and_status_2(arguments, message, capsys):
    assert profile.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_whole_run_of_a_trace(capsys, monkeypatch):
    """Printed, and nothing written."""
    monkeypatch.setattr(profile, "in_c", lambda *_: "")
    monkeypatch.setattr(profile, "KERNELS", ("baseline_4k",))
    monkeypatch.setattr(profile, "bandwidth", lambda: 1e10)
    assert profile.main(["--print", "--repeat", "1", str(GCC)]) == 0
    output = capsys.readouterr().out
    assert "| accesses in C |" in output and "| gcc | `baseline_4k` |" in output
    assert profile.OUTPUT.read_text(encoding="utf-8") == DOCUMENT
