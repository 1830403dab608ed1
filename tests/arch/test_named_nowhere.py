# SPDX-License-Identifier: GPL-2.0-only
"""No architecture is named outside its folder: in code, in Kconfig, in the Makefile (comments may)."""

import ast
import re

import pytest
from virtmm.arch import load_arch, names

from virtmm import topdir

NAMES = sorted({n for a in names() for n in (a, load_arch(a).machine, load_arch(a).kconfig_symbol)})
NAMED = re.compile(rf"(?<![a-z])({'|'.join(NAMES)})(?![a-z])", re.IGNORECASE)
# Recording reads the machine that it runs on, which has an instruction set.
HOST = "tools/trace/"
ROOMS = ("mm", "virtmm", "tools", "scripts")


def python_words(text):
    """Yield the names and strings of a module that are not documentation."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id


def words(path):
    text = path.read_text()
    if path.suffix == ".py":
        return list(python_words(text))
    if path.suffix in (".c", ".h", ".def", ".cdef"):
        # What the compiler defines is the host that the core runs on.
        return [re.sub(r"/\*.*?\*/|//[^\n]*|\b__\w+__\b", "", text, flags=re.S)]
    return [re.sub(r"^#.*", "", text, flags=re.M)]


FILES = [
    *(topdir() / n for n in ("Kconfig", "mm/Kconfig", "Makefile", "build.py", ".ci/run")),
    *(p for room in ROOMS for p in sorted((topdir() / room).rglob("*.py"))),
    *(p for kind in ("[ch]", "def", "cdef") for p in sorted((topdir() / "csrc").glob(f"*.{kind}"))),
    *sorted((topdir() / "configs").glob("*.config")),
]


@pytest.mark.parametrize("path", [str(p.relative_to(topdir())) for p in FILES])
def test_no_architecture_is_named(path):
    if not path.startswith(HOST):
        found = [m[0] for word in words(topdir() / path) for m in NAMED.finditer(word)]
        assert found == []


def test_a_name_would_be_found(tmp_path):
    path = tmp_path / "x.py"
    path.write_text('"""arm64 here is fine."""\nif arch == "arm64":\n    x86 = 1\n')
    found = {m[0] for word in words(path) for m in NAMED.finditer(word)}
    assert found == {"arm64", "x86"}
