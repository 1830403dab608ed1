# SPDX-License-Identifier: GPL-2.0-only
"""The comparison with the running kernel: its program, its arithmetic, its table; on 2 MiB, not for speed."""

import json
import os

import pytest
from virtmm.scripts import bench_real
from virtmm.scripts.bench_real import RealKernel, Row, nearest, operations_of, parse
from virtmm.scripts.operations import OPERATIONS, Lab, Timed
from virtmm.tools.predict.real import RealError

from virtmm.kconfig import resolve

PAGE_KIB = os.sysconf("SC_PAGESIZE") >> 10
#: Faults of the program itself while an operation is timed: it writes to its stack and its data.
STRAY = bench_real.STRAY_FAULTS


@pytest.fixture(scope="module")
def kernel():
    return RealKernel(2)


@pytest.fixture
def alone(monkeypatch):
    """The test's own CPUs are not those of a measurement."""
    monkeypatch.setattr(bench_real, "pin", lambda: None)


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "file_read"])
def test_the_program_knows_every_operation(name, kernel):
    timed = kernel.measure(name, "nohuge", PAGE_KIB)
    pages = 2048 // PAGE_KIB
    wanted = 0 if OPERATIONS[name].calls else pages
    assert wanted <= timed.faults <= wanted + STRAY
    assert timed.ns > 0


def test_the_program_touches_at_the_distance_it_is_told(kernel):
    assert 32 <= kernel.measure("first_touch", "nohuge", 64).faults <= 32 + STRAY
    assert kernel.measure("probe", "nohuge", 64).faults >= 2048 // PAGE_KIB
    assert 64 <= kernel.measure("first_touch", "nohuge", 64, 2).faults <= 64 + STRAY


def test_the_program_refuses_what_it_does_not_know(kernel):
    with pytest.raises(RealError, match=r"real.c fly none 4 2: status 2; try a smaller --mib"):
        kernel.measure("fly", "none", 4)


def test_memory_is_cold_once(kernel, monkeypatch):
    """Each measurement has a machine of its own."""
    machines = []

    def lab_of(*args):
        lab = Lab(*args)
        assert lab.machine.vmstat()["pgalloc_movable"] < 8
        machines.append(lab.machine)
        return lab

    monkeypatch.setattr(bench_real, "Lab", lab_of)
    config = resolve("x86", "linux-6.18", sets=["MEMORY_MB=64"])
    row = bench_real._compare_cold(kernel, config, 64, 3)
    assert (len(set(machines)), len(row.virtual), row.real) == (3, 3, [])
    assert {timed.faults for timed in row.virtual} == {128}


@pytest.mark.parametrize("text", ["", "5\n", "5 x\n", "0 3\n", "5 3", "5 3\n5 3\n", "-5 3\n"])
def test_other_output_is_no_measurement(text):
    with pytest.raises(RealError, match="expected nanoseconds and faults"):
        parse(text)


def test_output():
    assert parse("1234 5\n") == Timed(1234, 5)


@pytest.mark.parametrize(
    ("release", "kernel"),
    [
        ("6.18.44-a", "linux-6.18"),
        ("7.2.0", "linux-6.18"),
        ("7.10.1", "linux-7.3"),
        ("6.9", "linux-6.12"),
        ("5.10.0", "linux-6.12"),
    ],
)
def test_nearest_mainline_kernel(release, kernel):
    assert nearest(release, ["baseline_4k", "linux-7.3", "linux-6.12", "linux-6.18"]) == kernel


def test_no_mainline_kernel():
    with pytest.raises(RealError, match="name one by --kernel"):
        nearest("6.18", ["baseline_4k"])


def test_reads_and_calls_without_memory_are_timed_where_they_differ():
    assert {"first_read", "mmap_munmap"} <= set(operations_of(4, 4))
    assert not {"first_read", "mmap_munmap"} & set(operations_of(64, 4))
    assert "first_read" in operations_of(2048, 4)
    assert "first_touch" in operations_of(64, 4)


class Had:
    """A real kernel whose folios have a given size for each advice."""

    def __init__(self, **sizes):
        self.sizes = sizes

    def __call__(self, operation, hint, step_kib):
        assert operation == "probe"
        return Timed(1, 2048 // self.sizes[hint] + 3)


@pytest.mark.parametrize(
    ("none", "huge", "hint", "why"),
    [
        (4, 64, "huge", None),
        (64, 2048, "none", None),
        (4, 4, None, "hugepages-64kB/enabled is never"),
        (4, 2048, None, "always, but memory for 32 folios took 4 faults: another size comes first"),
    ],
)
def test_which_advice_gives_a_size(none, huge, hint, why, monkeypatch, tmp_path):
    knob = tmp_path / "enabled"
    knob.write_text("[always] never" if why and "always" in why else "always [never]")
    monkeypatch.setattr(bench_real.real, "sizes", lambda: {64: knob})
    kernel = RealKernel(2)
    monkeypatch.setattr(kernel, "measure", Had(none=none, huge=huge))
    kernel.look_for(64)
    assert kernel.hints.get(64) == hint
    assert why in kernel.missing[64] if why else not kernel.missing


def test_a_size_that_the_kernel_does_not_know(monkeypatch):
    monkeypatch.setattr(bench_real.real, "sizes", dict)
    kernel = RealKernel(2)
    monkeypatch.setattr(kernel, "measure", Had(none=4, huge=4))
    kernel.look_for(64)
    assert kernel.missing == {64: "this kernel has no such size"}


def row(real, virtual, operation="first_touch", folio=4, faults=100, calls=0, pages=100):
    sides = ([Timed(ns, faults) for ns in side] for side in (real, virtual))
    unit = "calls" if calls else "faults"
    return Row(operation, folio, unit, pages, calls, *sides)


def test_the_ratio_is_the_median_of_pairs():
    """Not the ratio of medians, which would be 300 / 20."""
    assert row([300, 100, 900], [10, 20, 30]).ratio() == 30
    assert row([], [10]).ratio() is None


def test_rates():
    one = row([1000, 3000, 2000], [10])
    assert one.figures(one.real) == {
        "ns": 2000,
        "faults_per_second": 100 * 1e9 / 2000,
        "pages_per_second": 100 * 1e9 / 2000,
    }
    calls = row([], [500], "mmap_munmap", calls=4, pages=0)
    assert calls.figures(calls.virtual) == {"ns": 500, "calls_per_second": 4 * 1e9 / 500}


def test_verdicts():
    rows = [row([95], [10]), row([], [1000], folio=64, pages=99), row([], [1], "exit", folio=64)]
    assert bench_real.verdicts(rows, 4) == [
        "first_touch 4K: ratio 9.5, wanted 10: NO",
        "first_touch 4K: faults per second 10 G, wanted 15 M: yes",
        "first_touch 64K: pages per second 99 M, wanted 100 M: NO",
    ]
    cold = row([], [500], bench_real.COLD, folio=64, pages=50)
    assert bench_real.verdicts([cold], 4) == [
        "first_touch_cold 64K: pages per second 100 M, wanted 100 M: yes"
    ]
    assert bench_real.verdicts([row([100], [10])], 4)[0].endswith("yes")
    assert bench_real.verdicts([row([], [10])], 4)[0].endswith("not measured")
    call = row([], [1000], "fork", folio=64, calls=1, pages=200)
    assert bench_real.verdicts([call], 4) == ["fork 64K: pages per second 200 M, wanted 200 M: yes"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0512, "0.0512"), (31.24, "31.2"), (814_000, "814 k"), (2.5e9, "2.5 G")]
)
def test_rates_have_three_digits(value, text):
    assert bench_real.rate(value) == text


def test_table_of_a_size_that_only_one_side_has():
    table = bench_real.text_table([row([1000], [100]), row([], [100], folio=64)]).splitlines()
    assert table[1].split() == [
        "first_touch",
        "4K",
        "faults",
        *["100", "M"] * 2,
        *["1", "G"] * 2,
        "10",
    ]
    assert table[2].split() == ["first_touch", "64K", "faults", "-", "-", *["1", "G"] * 2, "-"]
    assert len({len(line) for line in table}) == 1


def test_whole_run(alone, tmp_path, capsys):
    """Whatever sizes this machine's settings give."""
    target = tmp_path / "figures.json"
    assert bench_real.main(["--mib", "2", "--repeat", "1", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert (found["format"], found["version"], found["mib"]) == ("virtmm-bench-real", 1, 2)
    by_name = {(r["operation"], r["folio_kib"]): r for r in found["rows"]}
    base = by_name["first_touch", PAGE_KIB]
    assert base["pages"] == 2048 // PAGE_KIB
    assert base["real"]["ns"] / base["virtual"]["ns"] == base["ratio"]
    cold = by_name["first_touch_cold", PAGE_KIB]
    assert cold["pages"] == 4 * base["pages"]
    for kib in map(int, found["missing"]):
        assert by_name["first_touch", kib]["real"] is None
    output = capsys.readouterr().out
    assert "first_touch" in output and "wanted 10" in output
    assert all(why in output for why in found["missing"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mib", "3"], "--mib 3: name an even number"),
        (["--kernel", "nope"], "has no defconfig 'nope'"),
        (["--set", "MEMORY_MB=1"], "MEMORY_MB"),
    ],
)
def test_one_clear_line_and_status_2(arguments, message, alone, capsys):
    assert bench_real.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench-real: ") and message in line


def test_no_compiler_for_the_program(alone, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CC", "no-such-cc")
    monkeypatch.setenv("VIRTMM_CACHE", str(tmp_path))
    assert bench_real.main(["--mib", "2"]) == 2
    assert capsys.readouterr().err == (
        "bench-real: no C compiler 'no-such-cc'; install gcc and libc6-dev, or set CC\n"
    )
    assert not list(tmp_path.iterdir())


def test_sizes_need_root(alone, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert bench_real.main(["--sizes", "64", "--mib", "2"]) == 2
    assert "needs root" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["5", "64,", "x"])
def test_sizes_are_those_there_are(text, capsys):
    with pytest.raises(SystemExit):
        bench_real.main(["--sizes", text])
    assert "choose of 16,64,2048" in capsys.readouterr().err
