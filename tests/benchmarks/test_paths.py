# SPDX-License-Identifier: GPL-2.0-only
"""
Whole paths from Machine's call down, by folio size: with the logic in C (FAST_FAULT=y) and in Python.

Each round starts from the same state, which is made untimed. The kernel's own counters are asserted,
so that what was timed is what the name says; times are not. What runs is scripts/operations.py.
"""

import functools

import pytest
from virtmm.scripts.operations import OPERATIONS, Lab, settings_of
from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import TraceReader

from virtmm import topdir
from virtmm.kconfig import resolve

pytestmark = pytest.mark.benchmark

#: Issue 2, acceptance 5: first touches a second, the logic in Python.
WANTED = 30_000
ROUNDS = 7
SIZES = (4, 16, 64, 2048)
#: FAST_FAULT -> column, MiB that a round works on.
FLAVOURS = {"y": ("C", 64), "n": ("Python", 8)}
#: MiB where contents move, since what caches hold of them shows.
CONTENTS = 32
#: Operation -> folio sizes that it differs for, KiB.
CASES = {
    "first_touch": SIZES,
    "first_read": (4, 2048),
    "file_read": (4,),
    "munmap": SIZES,
    "fork": SIZES,
    "exit": SIZES,
    "copy_on_write": SIZES,
    "mprotect": SIZES,
    "mmap_munmap": (4,),
}

languages = pytest.mark.parametrize("fast", FLAVOURS, ids=["C", "Python"])


@pytest.fixture
def lab_of():
    """A function (folio KiB, FAST_FAULT) -> Lab, of memory with contents or without."""
    labs = []

    def make(kib, fast, contents=False):
        sets = ["MEMORY_MB=1024", f"FAST_FAULT={fast}"]
        config = resolve("x86", "linux-6.18", sets=[*sets, "PHYS_BACKING=y"] if contents else sets)
        mib = CONTENTS if contents else FLAVOURS[fast][1]
        labs.append(Lab(config, kib << 10, mib << 20, settings_of(kib, 4)))
        return labs[-1]

    yield make
    for lab in labs:
        lab.machine.close()


@pytest.fixture
def run(benchmark, note_rate, note):
    def measure(name, lab, fast, what=""):
        """Time an operation on a lab and note its rates."""
        operation, before, faults = OPERATIONS[name], [], []

        def setup():
            operation.prepare(lab)
            before.append(lab.faults())

        def teardown(*_):
            faults.append(lab.faults() - before[-1])
            operation.finish(lab)

        row = f"{name} {lab.folio >> 10}K{what}"
        benchmark.group = row
        benchmark.pedantic(
            functools.partial(operation.run, lab),
            setup=setup,
            teardown=teardown,
            rounds=ROUNDS,
            warmup_rounds=1,
        )
        if not faults:  # --benchmark-disable leaves it out
            teardown()
        assert len(set(faults)) == 1
        units = {operation.unit: operation.calls or faults[0]}
        if name != "mmap_munmap":
            units["pages"] = lab.pages
        section = f"whole paths: {'pages' if 'pages' in units else 'calls'} a second"
        rates = note_rate(section, row, FLAVOURS[fast][0], **dict(reversed(units.items())))
        if rates and fast == "n" and name == "first_touch":
            figure = f"{rates['faults']:,.0f}, wanted {WANTED:,}"
            note(section, row, **{"Python, faults": figure})
        return faults[0]

    return measure


@languages
@pytest.mark.parametrize(("name", "kib"), [(n, kib) for n, sizes in CASES.items() for kib in sizes])
def test_operation(run, lab_of, name, kib, fast):
    run(name, lab_of(kib, fast), fast)


@languages
@pytest.mark.parametrize("kib", SIZES)
def test_first_touch_zeroed(run, lab_of, kib, fast):
    """Memory with contents, so that new folios are really zeroed."""
    lab = lab_of(kib, fast, contents=True)
    assert run("first_touch", lab, fast, ", zeroed") == lab.folios


@languages
def test_copy_on_write_copied(run, lab_of, fast):
    lab = lab_of(4, fast, contents=True)
    assert run("copy_on_write", lab, fast, ", copied") == lab.pages


@languages
@pytest.mark.parametrize("kernel", ["baseline_4k", "anonfolio_basic", "linux-7.3", "baseline_64k"])
def test_replay(benchmark, note_rate, kernel, fast):
    """A replay from opening the trace to the result, as virtmm compare does it for each kernel."""
    config = resolve("arm64", kernel, sets=[f"FAST_FAULT={fast}"])
    settings = ["64kB=always"] if config.get("ANON_POLICY_MTHP") else []
    path = topdir() / "samples" / "gcc.parquet"
    results = []

    def whole():
        with TraceReader(path) as reader:
            results.append(replay(reader, config, kernel, settings))

    with TraceReader(path) as reader:
        events = reader.num_events
    benchmark.group = f"replay of gcc, {kernel}"
    benchmark.pedantic(whole, rounds=4, warmup_rounds=1)
    section = "replay of the gcc sample: events a second"
    note_rate(section, kernel, FLAVOURS[fast][0], events=events)
    assert all(result == results[0] for result in results)
