# SPDX-License-Identifier: GPL-2.0-only
"""make check: each checker has its line, and a failing one fails."""

import sys

from virtmm.scripts import check
from virtmm.scripts.check import Check, package_tree

from virtmm import topdir


def outcome(monkeypatch, capsys, *checks):
    monkeypatch.setattr(check, "checks", lambda folder: list(checks))
    status = check.main()
    return status, capsys.readouterr().out


def test_lines_and_status(monkeypatch, capsys):
    good = Check("good", [sys.executable, "-c", "print('unseen')"])
    bad = Check("bad", [sys.executable, "-c", "print('seen'); exit(1)"])
    absent = Check("absent", ["no-such-checker"])
    assert outcome(monkeypatch, capsys, good) == (0, "good           ok\n")
    assert outcome(monkeypatch, capsys, absent) == (0, "absent         SKIPPED (not installed)\n")
    status, text = outcome(monkeypatch, capsys, good, bad, absent)
    assert status == 1
    assert text.splitlines() == [
        "good           ok",
        "bad            FAILED",
        "    seen",
        "absent         SKIPPED (not installed)",
    ]


def test_checkers_fail_on_what_they_are_for(tmp_path):
    """Each real checker but mypy, on a file that it must not accept."""
    wrong = {
        "ruff check": ("a.py", "import os\n"),
        "ruff format": ("a.py", "x  =  1\n"),
        "clang-format": ("a.c", "int  f( void ){return 0;}\n"),
        "codespell": ("a.txt", "rec" + "ieve\n"),
    }
    for found in check.checks(tmp_path):
        if found.name not in wrong:
            continue
        name, text = wrong[found.name]
        folder = tmp_path / found.name
        folder.mkdir()
        for config in ("pyproject.toml", ".clang-format"):
            (folder / config).write_bytes((topdir() / config).read_bytes())
        (folder / name).write_text(text)
        command = [part for part in found.command if not part.startswith(str(topdir()))]
        if found.name == "clang-format":
            command.append(name)
        assert check.run(Check(found.name, command, folder)).status == "FAILED", found.name


def test_mypy_sees_every_room(tmp_path):
    package_tree(tmp_path)
    seen = {p.relative_to(tmp_path).parts[1] for p in tmp_path.glob("virtmm/*/*.py")}
    assert {"arch", "mm", "tools"} <= seen
    assert (tmp_path / "virtmm" / "build_core.py").is_file()
    assert (tmp_path / "virtmm" / "kconfig.py").is_file()
