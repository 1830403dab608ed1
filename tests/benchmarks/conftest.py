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


def pytest_configure(config):
    config.stash[SUMMARY] = {}


@pytest.fixture
def note(request):
    """A function that puts figures into a row of the summary; tests may share a row."""

    def add(section, row, **figures):
        rows = request.config.stash[SUMMARY].setdefault(section, {})
        rows.setdefault(row, {}).update(figures)

    return add


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
