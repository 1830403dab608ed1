# SPDX-License-Identifier: GPL-2.0-only
"""The porting guide, followed word by word: an architecture that nobody has, in one folder."""

import csv
import os
import re
import subprocess
import sys

import pytest

from virtmm import topdir

GUIDE = topdir() / "Documentation" / "arch" / "porting.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Run the guide; return its folder and (expected, printed) of each output that it shows."""
    folder = tmp_path_factory.mktemp("porting")
    tool = folder / "bin" / "virtmm"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m virtmm "$@"\n')
    tool.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tool.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(topdir()),
        "SAMPLES": str(topdir() / "samples"),
    }
    shown, printed = [], ""
    for kind, text in BLOCK.findall(GUIDE.read_text()):
        if kind == "text":
            shown.append((text, printed))
            continue
        done = subprocess.run(
            ["sh", "-ec", text], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), text
        printed = done.stdout
    return folder, shown


def test_it_prints_what_the_guide_shows(followed):
    _, shown = followed
    assert len(shown) == 2
    for expected, printed in shown:
        assert printed == expected


def test_it_takes_one_small_folder(followed):
    folder, _ = followed
    files = [p for p in (folder / "foo").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert sum(len(p.read_text().splitlines()) for p in files) <= 80
    text = (folder / "foo" / "arch.py").read_text()
    assert "dirty=Attr.inverted(6)" in text
    assert "Geometry(13, " in text and ", 43, 5)" in text


def test_its_kernels_are_compared(followed):
    folder, _ = followed
    with (folder / "table.csv").open() as f:
        base, large = csv.DictReader(f)
    assert int(large["minflt"]) < 0.5 * int(base["minflt"])
