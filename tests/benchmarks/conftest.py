# SPDX-License-Identifier: GPL-2.0-only
"""What the benchmarks share: a machine's arena, a C module that times without Python, the summary."""

import importlib.util
import re
from pathlib import Path

import cffi
import pytest

from virtmm.boot import boot
from virtmm.kconfig import resolve

# section -> row -> column -> text, in the order in which the tests ran
Summary = dict[str, dict[str, dict[str, str]]]
SUMMARY = pytest.StashKey[Summary]()
#: What counts as a change, in times.
LEAST_CHANGE = 1.1


def pytest_configure(config):
    config.stash[SUMMARY] = {}


@pytest.fixture
def note(request):
    """A function that puts figures into a row of the summary; tests may share a row."""

    def add(section, row, **figures):
        rows = request.config.stash[SUMMARY].setdefault(section, {})
        rows.setdefault(row, {}).update(figures)

    return add


@pytest.fixture(scope="session")
def rates():
    """(section, row) -> language -> rate, of the tests that ran so far."""
    return {}


@pytest.fixture
def note_rate(benchmark, note, rates):
    """
    A function that notes what the benchmark that ran did in a second, C and Python in one row.

    It takes the units of one round by name, ``pages=512``; the first goes into the summary, with the
    ratio of both languages, and all into the benchmark's extra_info. Returns the rates by unit; none
    when nothing was timed.
    """

    def add(section, row, language, **units):
        if benchmark.stats is None:
            return {}
        seconds = benchmark.stats.stats.median
        found = {unit: number / seconds for unit, number in units.items()}
        for unit, rate in found.items():
            benchmark.extra_info[f"{unit}_per_second"] = rate
        benchmark.extra_info |= {"section": section, "row": row, "language": language}
        both = rates.setdefault((section, row), {})
        both[language] = next(iter(found.values()))
        note(section, row, **{language: f"{both[language]:,.0f}"})
        if {"C", "Python"} <= set(both):
            note(section, row, **{"C : Python": f"{both['C'] / both['Python']:.3g}"})
        return found

    return add


def pytest_benchmark_update_json(config, output_json):
    """Put the summary into what --benchmark-json and --benchmark-save write (scripts/benchmarks.py)."""
    output_json["summary"] = config.stash[SUMMARY]


def changes(config):
    """Yield (benchmark, times as fast as in the saved run) of those that changed by a tenth or more."""
    session = config._benchmarksession
    for saved in getattr(session, "compared_mapping", {}).values():
        for benchmark in session.benchmarks:
            before = saved.get(benchmark.fullname)
            if benchmark and before:
                times = before["stats"]["median"] / benchmark["median"]
                if not 1 / LEAST_CHANGE < times < LEAST_CHANGE:
                    yield benchmark.fullname.rpartition("/")[2], times


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    for section, rows in config.stash[SUMMARY].items():
        terminalreporter.section(section, sep="-")
        columns = list(dict.fromkeys(name for figures in rows.values() for name in figures))
        table = [["", *columns]]
        table += [[row, *(figures.get(c, "") for c in columns)] for row, figures in rows.items()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for first, *rest in table:
            cells = (text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))
            terminalreporter.write_line("  ".join([first.ljust(widths[0]), *cells]))
    if config.getoption("benchmark_compare"):
        terminalreporter.section("times as fast as the saved run, a tenth or more", sep="-")
        for name, times in changes(config):
            terminalreporter.write_line(f"{times:6.2f}  {name}")


@pytest.fixture(scope="session")
def booted():
    """A booted kernel, for loops that are called without a process behind them."""
    booted = boot(resolve("arm64", "baseline_4k", sets=["MEMORY_MB=1024"]))
    yield booted
    booted.close()


@pytest.fixture(scope="session")
def timing(tmp_path_factory):
    """timing.c as a module: (lib, ffi)."""
    source = (Path(__file__).parent / "timing.c").read_text()
    ffi = cffi.FFI()
    ffi.cdef(
        "".join(m + ";" for m in re.findall(r"^static (double \w+_\w+\([^)]*\))", source, re.M))
    )
    ffi.set_source("_timing", source, extra_compile_args=["-O2", "-Wall", "-Wextra"])
    path = ffi.compile(tmpdir=str(tmp_path_factory.mktemp("timing")))
    spec = importlib.util.spec_from_file_location("_timing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lib, module.ffi
