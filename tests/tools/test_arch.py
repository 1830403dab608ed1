# SPDX-License-Identifier: GPL-2.0-only
"""new-arch and arch-check: what they ask, what they print, and the status that they exit with."""

import os
import pty
import subprocess
import sys

import pytest
from virtmm.tools.commands.arch import ask

from virtmm import topdir
from virtmm.new_arch import new_arch, parse_shape

NEW = ["new-arch", "--page", "8K", "--levels", "10,10,10"]


@pytest.fixture
def foo(tmp_path):
    """Return the folder of a new architecture."""
    folder = new_arch("foo", parse_shape("8K", "10,10,10", "32"), tmp_path)
    text = (folder / "arch.py").read_text()
    (folder / "arch.py").write_text(text.replace("to be filled in: ", ""))
    return folder


def edit(folder, old, new):
    text = (folder / "arch.py").read_text()
    assert old in text
    (folder / "arch.py").write_text(text.replace(old, new))


# --- new-arch -------------------------------------------------------------------------------------


def test_without_standard_input_nothing_is_asked(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert ask("--cont", None, "?", str, default="0") == "0"


def test_without_a_terminal_nothing_is_asked(virtmm, tmp_path):
    for args, missing in (
        (["new-arch"], "NAME: is not given"),
        (["new-arch", "foo"], "--page: is not given"),
        (["new-arch", "foo", "--page", "4K"], "--levels: is not given"),
    ):
        result = virtmm(*args, "--in", tmp_path)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"virtmm: {missing}, and there is no terminal to ask at")
    result = virtmm(*NEW, "foo", "--in", tmp_path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith(f" virtmm arch-check --arch-dir {tmp_path}/foo\n")
    assert "cont=" not in (tmp_path / "foo" / "arch.py").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["contpte", "--page", "8K"], "name: contpte is taken by CONTPTE of mm/Kconfig:"),
        (["foo", "--page", "7K", "--levels", "1"], "page: 7K is not one of"),
        (["foo", "--page", "8K", "--levels", "1"], "levels: 1 is not index bits"),
        (["foo", "--page", "8K", "--levels", "10,10", "--cont", "²"], "cont: ² is not a power"),
        (["foo", "--page", "8K", "--levels", "14,15"], "geometries[13].levels.pte: 15 bits"),
        (
            ["foo", "--page", "8K", "--levels", "9,9", "--cont", "1024"],
            "cont: 1024 is more than the 512 entries",
        ),
    ],
)
def test_wrong_words_are_one_line_with_status_2(virtmm, tmp_path, args, message):
    result = virtmm("new-arch", *args, "--in", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"virtmm: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def asked(tmp_path, keys, *args):
    """Run new-arch at a terminal where these keys are hit: (status, output)."""
    master, slave = pty.openpty()
    os.write(master, keys.encode())
    done = subprocess.run(
        [sys.executable, "-m", "virtmm", "new-arch", *args, "--in", str(tmp_path)],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=topdir(),
        check=False,
    )
    os.close(slave)
    os.close(master)
    return done.returncode, done.stdout


def test_at_a_terminal_what_is_wrong_is_asked_again(tmp_path):
    status, text = asked(tmp_path, "contpte\nfoo\n7K\n8k\n1\n9,15\n10,10,10\n³\n2048\n32\n")
    assert status == 0
    errors = [line.partition("Error: ")[2] for line in text.splitlines() if "Error: " in line]
    for error, start in zip(
        errors,
        (
            "name: contpte is taken by CONTPTE of mm/Kconfig:",
            "page: 7K is not one of 4K,",
            "levels: 1 is not index bits",
            "geometries[13].levels.pte: 15 bits do not fit",
            "cont: ³ is not a power of two",
            "cont: 2048 is more than the 1024 entries",
        ),
        strict=True,
    ):
        assert error.startswith(start)
    assert ", 43, 5)" in (tmp_path / "foo" / "arch.py").read_text()


def test_a_name_that_is_taken_is_refused_before_anything_is_asked(tmp_path):
    (tmp_path / "foo").mkdir()
    status, text = asked(tmp_path, "", "foo")
    assert (status, text) == (2, f"virtmm: {tmp_path}/foo: is there already; choose another name\n")


def test_the_end_of_input_at_a_question(tmp_path):
    status, text = asked(tmp_path, "\x04", "foo")
    assert status == 130
    assert text.endswith("virtmm: interrupted; no result was written\n")
    assert list(tmp_path.iterdir()) == []


# --- arch-check -----------------------------------------------------------------------------------


def test_a_check_that_fails_is_status_1(virtmm, foo):
    assert virtmm("arch-check", "--arch-dir", foo).exit_code == 0
    edit(foo, "young=Attr.bit(5)", "young=Attr.bit(9)")
    result = virtmm("arch-check", "--arch-dir", foo)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.startswith("fields       FAILED   foo.pte.special: bit 9 overlaps young")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--arch-dir", "nope", "nope: "),
        ("--arch-dir", ".", "no arch.py in it"),
        ("--arch", "vax", "unknown architecture 'vax'"),
        ("--arch", "", "unknown architecture ''"),
        ("--arch-dir", "a\nb", "a\\nb: no such folder"),
        ("--arch-dir", "loop", "loop: no such folder"),
    ],
)
def test_nothing_to_check_is_status_2(virtmm, tmp_path, monkeypatch, option, value, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    result = virtmm("arch-check", option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_port_is_status_2_where_it_is_to_run(virtmm, foo):
    edit(foo, "young=Attr.bit(5)", "young=Attr.bit(9)")
    sample = topdir() / "samples" / "gcc.parquet"
    result = virtmm("compare", "--arch-dir", foo, sample)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("virtmm: foo.pte.special: bit 9 overlaps young")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arch", ["foo", "x86"])
def test_a_scenario_is_for_the_newest_kernel_of_mainline(virtmm, foo, tmp_path, arch):
    """That of the architecture: new-arch writes an older one than the tree's have."""
    scenario = tmp_path / "a.scn"
    scenario.write_text("proc p\nmmap p A 128k\ntouch p w A 64k\nobserve p\n")
    which = ["--arch-dir", foo] if arch == "foo" else ["--arch", arch]
    newest = "linux-6.12" if arch == "foo" else "linux-7.3"
    answers = []
    for kernel in ([], ["--defconfig", newest]):
        for command in ("run", "show"):
            result = virtmm("scenario", command, *which, *kernel, scenario)
            assert (result.exit_code, result.stderr) == (0, "")
            answers.append(result.stdout)
    assert answers[:2] == answers[2:]


def test_a_scenario_for_an_architecture_without_such_a_kernel(virtmm, tmp_path):
    scenario = tmp_path / "a.scn"
    scenario.write_text("proc p\n")
    result = virtmm("scenario", "run", "--arch", "alpha", scenario)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "alpha has no defconfig 'linux-*'; choose one of: baseline_8k" in result.stderr
