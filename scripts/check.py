# SPDX-License-Identifier: GPL-2.0-only
"""
Run every checker (``make check``), all at once, and print one line for each.

A checker that is not installed is SKIPPED, which is said and does not fail: ``make check`` installs
them all, so it only happens outside the virtual environment.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent
# Printed of what one checker says.
MOST_LINES = 60
ROOMS = ("arch", "mm", "tools", "virtmm")


class Check(NamedTuple):
    """A checker: its name in the output, and the command to run."""

    name: str
    command: list[str]
    folder: Path = TOP


class Result(NamedTuple):
    """Outcome of a checker: "ok", "FAILED" or "SKIPPED (why)", and what it printed."""

    name: str
    status: str
    output: str


def find(tool: str) -> str | None:
    """Return a tool of this Python's environment, or of the system."""
    return shutil.which(tool, path=sysconfig.get_path("scripts")) or shutil.which(tool)


def package_tree(folder: Path) -> None:
    """
    Lay out the package in ``folder`` as an installed one: links to the sources, all below virtmm/.

    mypy does not run the hook of virtmm/__init__.py that gives the source tree these names.
    """
    package = folder / "virtmm"
    package.mkdir()
    for source in (TOP / "virtmm").glob("*.py*"):
        (package / source.name).symlink_to(source.resolve())
    (package / "py.typed").touch()
    for room in ROOMS:
        if room != "virtmm" and (TOP / room).is_dir():
            (package / room).symlink_to(TOP / room)
    (folder / "scripts").symlink_to(TOP / "scripts")


def checks(folder: Path) -> list[Check]:
    """Return the checkers; ``folder`` has the package tree in it."""
    folders = [TOP / "csrc", *(TOP / "tests" / name for name in ("benchmarks", "fuzz"))]
    sources = [str(p) for folder in folders for p in sorted(folder.glob("*.[ch]"))]
    mypy = ["mypy", "--config-file", str(TOP / "pyproject.toml")]
    mypy += ["--cache-dir", str(TOP / ".mypy_cache"), "-p", "virtmm", "-p", "scripts"]
    return [
        Check("ruff check", ["ruff", "check", "--quiet", "--output-format", "concise"]),
        Check("ruff format", ["ruff", "format", "--check", "--quiet"]),
        Check("mypy", mypy, folder),
        Check("clang-format", ["clang-format", "--dry-run", "-Werror", *sources]),
        Check("import rule", [sys.executable, str(TOP / "scripts" / "check_imports.py")]),
        Check("codespell", ["codespell"]),
    ]


def run(check: Check) -> Result:
    """Run one checker."""
    tool = find(check.command[0])
    if tool is None:
        return Result(check.name, "SKIPPED (not installed)", "")
    done = subprocess.run(
        [tool, *check.command[1:]],
        cwd=check.folder,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Result(check.name, "FAILED" if done.returncode else "ok", done.stdout)


def main() -> int:
    """Run all; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package_tree(folder)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            results = list(pool.map(run, checks(folder)))
    for result in results:
        print(f"{result.name:14} {result.status}")
        if result.status == "FAILED":
            lines = result.output.splitlines()
            more = len(lines) - MOST_LINES
            lines[MOST_LINES:] = [f"({more} more lines)"] if more > 0 else []
            print("".join(f"    {line}\n" for line in lines), end="")
    return 1 if any(r.status == "FAILED" for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
