# SPDX-License-Identifier: GPL-2.0-only
"""The fuzzer itself: it reaches every entry point, finds what is planted, and nothing else. Without clang."""

import os
import re
import shutil
import subprocess

import pytest

from virtmm import topdir

from . import __main__ as command
from .build import STANDALONE, build
from .seeds import case_names, write_seeds
from .snapshot import KERNELS


@pytest.fixture(scope="module", params=["x86-linux-7.3", "m68k-baseline_4k"])
def harness(request, tmp_path_factory):
    kernel = next(kernel for kernel in KERNELS if str(kernel) == request.param)
    return build(kernel, tmp_path_factory.mktemp("fuzz"), STANDALONE)


def run(harness, *inputs, planted=""):
    command = [harness, *map(str, inputs)]
    env = {**os.environ, "PLANTED": planted}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_every_entry_point_has_a_case():
    functions = re.findall(r"^[\w *]+?(\w+)\(", (topdir() / "csrc" / "core.cdef").read_text(), re.M)
    assert sorted(case_names()) == sorted(functions), (
        "add a line to a table of tests/fuzz/*_cases.c"
    )


def test_accesses_of_real_programs_and_calls_by_rule(harness, tmp_path):
    write_seeds(tmp_path / "corpus")
    for inputs in ([300], sorted((tmp_path / "corpus").iterdir())):
        done = run(harness, *inputs)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("bug", "said"),
    [
        ("one entry too many", "does not hold|SEGV"),
        ("a look behind the last entry", "SEGV"),
        ("a page that is lost", "ZONE_NR_FREE"),
        ("a fault that is not counted", "pgfault"),
    ],
)
def test_what_is_planted_is_found(harness, bug, said):
    done = run(harness, 300, planted=bug)
    assert done.returncode != 0
    assert re.search(said, done.stderr)


def test_without_clang_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tests.fuzz"])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert command.main() == 2
    assert "install clang" in capsys.readouterr().err


def test_what_is_found_is_shown_and_fails(monkeypatch, capsys):
    def fuzz(kernel, seconds):
        assert seconds >= 1
        return (
            kernel,
            77 * (kernel == KERNELS[1]),
            "stat::number_of_executed_units: 5\nfuzz.c:1: wrong",
        )

    monkeypatch.setattr("sys.argv", ["tests.fuzz", "--seconds", "1"])
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(command, "fuzz", fuzz)
    assert command.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": clean") for line in lines) == len(KERNELS) - 1
    assert [line for line in lines if line.endswith("FOUND")] == [
        f"{KERNELS[1]}: 5 inputs in 1 s, ?/s: FOUND"
    ]
    assert "fuzz.c:1: wrong" in lines
