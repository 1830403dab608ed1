# SPDX-License-Identifier: GPL-2.0-only
"""The porting guide, followed word by word: architectures that nobody has, a folder each and nothing else."""

import csv
import os
import re
import shutil
import subprocess
import sys

import pytest

from virtmm import topdir

GUIDE = topdir() / "Documentation" / "arch" / "porting.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
#: What a clone of the tree has not.
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Return a copy of the source tree, for a porter to work in."""
    folder = tmp_path_factory.mktemp("porting") / "tree"
    shutil.copytree(topdir(), folder, symlinks=True, ignore=NOT_SOURCE)
    return folder


@pytest.fixture(scope="module")
def followed(tree):
    """Run the guide; return its folder and (expected, printed) of each output that it shows."""
    folder = tree.parent
    tools = folder / "bin"
    tools.mkdir()
    for name, command in (
        ("virtmm", f'exec {sys.executable} -m virtmm "$@"'),
        ("python", f'[ "$2" != pytest ] || [ -e {tools}/pytest ] && exec {sys.executable} "$@"'),
        # What has no pytest before "make setup-test".
        ("setup", f'[ "$*" != "--extras test" ] || touch {tools}/pytest'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{command}\n")
        (tools / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(tree),
        "TREE": str(tree),
        "MAKEFLAGS": f"SETUP={tools}/setup VENV={sys.prefix}",
    }
    shown, printed = [], ""
    for kind, text in BLOCK.findall(GUIDE.read_text()):
        if kind == "text":
            shown.append((text, printed))
            continue
        done = subprocess.run(
            ["sh", "-ec", text], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), text + done.stdout
        printed = done.stdout
    return folder, shown


def files_of(folder):
    """Return the files below a folder but what Python made of them."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")


def test_it_prints_what_the_guide_shows(followed):
    _, shown = followed
    assert len(shown) == 5
    for expected, printed in shown:
        assert printed == expected


def test_it_takes_one_small_folder(followed, tree):
    """At most 80 lines, and nothing else in the tree changes but the table that a script makes."""
    folder, _ = followed
    files = files_of(folder / "foo")
    assert sum(len(p.read_text().splitlines()) for p in files) <= 80
    text = (folder / "foo" / "arch.py").read_text()
    assert "dirty=Attr.inverted(6)" in text
    assert "Geometry(13, " in text and ", 43, 5)" in text
    changed = [
        name
        for name in (p.relative_to(tree) for p in files_of(tree))
        if not any(part.startswith(".") for part in name.parts)
        and not str(name).startswith("arch/foo/")
        and (tree / name).read_bytes() != (topdir() / name).read_bytes()
    ]
    assert [str(name) for name in changed] == ["Documentation/architectures.md"]


def test_its_kernels_are_compared(followed):
    folder, _ = followed
    with (folder / "table.csv").open() as f:
        base, large = csv.DictReader(f)
    assert int(large["minflt"]) < 0.5 * int(base["minflt"])


def test_make_works_outside_the_tree(followed):
    folder, _ = followed
    assert re.search(r"^core [0-9a-f]{16} for foo in ", (folder / "make.txt").read_text(), re.M)
    with (folder / "replay.csv").open() as f:
        (row,) = csv.DictReader(f)
    assert (row["arch"], row["page_size"]) == ("foo", "8192")


def test_the_tests_of_the_tree_find_it(followed, tree):
    """And all that they look at passes: sh would have ended there."""
    folder, _ = followed
    passed = re.search(r"(\d+) passed", (folder / "tests.txt").read_text())
    assert passed and int(passed[1]) > 20
    assert (
        "| foo | 8K | 3 | 10, 10, 10 | 8M | 256K |"
        in (tree / "Documentation" / "architectures.md").read_text()
    )
