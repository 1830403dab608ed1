# SPDX-License-Identifier: GPL-2.0-only
"""
The import rule: who may import whom, room by room.

A room is a folder at the top of the tree. Lower rooms know nothing of higher ones:

    csrc    nothing of ours, and no Python
    arch    arch.params
    mm      arch, mm; relative imports only, so that ``import mm.memory`` cannot make a second copy
    virtmm  arch, mm, virtmm; of others kconfiglib, and cffi in build.py alone
    tools   tools, and the public names of virtmm's own modules

``python -m virtmm`` is the one exception: virtmm/__main__.py starts the command line of tools.
Nobody imports tests or scripts. Python's own library is free for all.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parent.parent
ROOMS = ("arch", "mm", "virtmm", "tools")
# Room -> rooms that it may import.
OURS = {
    "arch": {"arch"},
    "mm": {"arch", "mm"},
    "virtmm": {"arch", "mm", "virtmm"},
    "tools": {"tools", "virtmm"},
}
# Room -> packages of others that it may import; None: any.
THEIRS: dict[str, set[str] | None] = {
    "arch": set(),
    "mm": set(),
    "virtmm": {"kconfiglib"},
    "tools": None,
}
# In tools everything goes except the binding to C, which has one home.
CFFI_HOME = "build.py"


class Import(NamedTuple):
    """``module`` as imported, dots in front when relative; ``names`` taken from it."""

    line: int
    module: str
    names: tuple[str, ...]


def imports(source: str) -> Iterator[Import]:
    """Yield every import statement of a module, those inside functions and conditions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, ())
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield Import(node.lineno, module, tuple(alias.name for alias in node.names))


def absolute(package: list[str], module: str) -> str:
    """Return a relative module name resolved inside a package, ``virtmm`` first."""
    name = module.lstrip(".")
    up = len(module) - len(name) - 1
    return ".".join([*package[: len(package) - up], *([name] if name else [])])


def targets(module: str, names: tuple[str, ...], rooms: set[str]) -> Iterator[str]:
    """Yield the modules of ours that an import names; ``from virtmm import mm`` names virtmm.mm."""
    if module == "virtmm" and names:
        for name in names:
            yield f"virtmm.{name}" if name in rooms or name in ("tests", "scripts") else "virtmm"
    else:
        yield module


def room_of(module: str) -> str:
    """Return the room of one of our modules."""
    parts = module.split(".")
    known = (*ROOMS, "csrc", "configs", "tests", "scripts")
    return parts[1] if len(parts) > 1 and parts[1] in known else "virtmm"


def check_module(path: Path, source: str) -> Iterator[str]:
    """Yield a line for each import in ``path`` (relative to the tree) that the rule forbids."""
    room = path.parts[0] if path.parts[0] in ROOMS else "virtmm"
    package = ["virtmm", *path.parts[:-1]] if room != "virtmm" else ["virtmm"]
    for found in imports(source):
        reason = _reason(path, room, package, found)
        if reason:
            yield f"{path}:{found.line}: {found.module}: {reason}"


def _reason(path: Path, room: str, package: list[str], found: Import) -> str:
    relative = found.module.startswith(".")
    module = absolute(package, found.module) if relative else found.module
    first = module.split(".")[0]
    if relative and first != "virtmm":
        return "reaches above the package"
    if first != "virtmm":
        return _reason_theirs(path, room, first)
    if room == "mm" and not relative:
        return "mm/ imports itself and arch by relative names only"
    for target in targets(module, found.names, set(ROOMS)):
        other = room_of(target)
        if path == Path("virtmm/__main__.py") and target == "virtmm.tools.cli":
            continue
        if other not in OURS[room]:
            return f"{room}/ may not import {other}/"
        if room == "arch" and path != Path("arch/__init__.py") and target != "virtmm.arch.params":
            return "arch/ may import virtmm.arch.params only"
        if room == "tools" and other == "virtmm":
            parts = [*target.split("."), *found.names]
            if private := [p for p in parts if p.startswith("_") and not p.endswith("__")]:
                return f"{private[0]} is private to virtmm/"
    return ""


def _reason_theirs(path: Path, room: str, first: str) -> str:
    if first in sys.stdlib_module_names or first == "__future__":
        return ""
    if first in (*ROOMS, "csrc", "tests", "scripts", "build"):
        return f"write virtmm.{first}: a second name makes a second copy of the module"
    if first in ("cffi", "_cffi_backend"):
        return "" if path.name == CFFI_HOME else f"only {CFFI_HOME} may import cffi"
    allowed = THEIRS[room]
    if allowed is not None and first not in allowed:
        return f"{room}/ may not import {first}"
    return ""


def check_c(path: Path, source: str) -> Iterator[str]:
    """Yield a line for each include of ``path`` that is neither libc's nor csrc's own."""
    for number, line in enumerate(source.splitlines(), start=1):
        m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if m and (m[2].endswith("Python.h") or (m[1] == '"' and "/" in m[2])):
            yield f"{path}:{number}: {m[2]}: csrc/ includes libc's and its own headers only"


def check_tree(top: Path) -> list[str]:
    """Return a line for each violation in a tree."""
    problems: list[str] = []
    modules = [
        p for room in ROOMS for p in sorted((top / room).rglob("*.py")) if not p.is_symlink()
    ]
    for path in [top / "build.py", *modules]:
        if path.is_file():
            problems += check_module(path.relative_to(top), path.read_text(encoding="utf-8"))
    for path in sorted((top / "csrc").glob("*.[ch]")):
        problems += check_c(path.relative_to(top), path.read_text(encoding="utf-8"))
    return problems


def main() -> int:
    """Check the tree that this script is in; return the exit status."""
    problems = check_tree(TOP)
    for line in problems:
        print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
