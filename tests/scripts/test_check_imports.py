# SPDX-License-Identifier: GPL-2.0-only
"""The import rule: the tree keeps it, and every way to break it is found."""

from pathlib import Path

import pytest
from virtmm.scripts.check_imports import check_c, check_module, check_tree

from virtmm import topdir


def check(path, source):
    return list(check_module(Path(path), source))


def test_the_tree_keeps_it():
    assert check_tree(topdir()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("arch/arm64/arch.py", "from virtmm.arch.params import ArchParams"),
        ("arch/__init__.py", "from virtmm.arch.params import ArchParams"),
        ("arch/params.py", "from __future__ import annotations\nimport dataclasses"),
        ("mm/memory.py", "from .rmap import x\nfrom . import rmap\nfrom ..arch.params import Attr"),
        ("mm/memory.py", "import mmap\nimport collections.abc"),
        ("virtmm/boot.py", "from virtmm.mm.memory import x\nfrom virtmm import mm, topdir"),
        (
            "virtmm/boot.py",
            "from . import kbuild\nfrom virtmm.arch import names\nimport kconfiglib",
        ),
        ("virtmm/__main__.py", "from virtmm.tools.cli import main"),
        ("build.py", "import cffi\nfrom virtmm.arch.params import ArchParams"),
        ("tools/cli.py", "from virtmm.tools.replay import x\nfrom virtmm.machine import Machine"),
        ("tools/replay/run.py", "from virtmm import __version__\nimport pyarrow, numpy"),
        ("tools/replay/run.py", "from ..trace import x\nfrom . import layout"),
    ],
)
def test_allowed(path, source):
    assert check(path, source) == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("arch/x86/arch.py", "from virtmm.arch import load_arch", "virtmm.arch.params only"),
        ("arch/x86/arch.py", "import virtmm.mm.memory", "arch/ may not import mm/"),
        ("arch/x86/arch.py", "from virtmm import topdir", "arch/ may not import virtmm/"),
        ("arch/params.py", "import numpy", "arch/ may not import numpy"),
        ("mm/memory.py", "from virtmm.mm.rmap import x", "relative names only"),
        ("mm/memory.py", "from virtmm.arch.params import Attr", "relative names only"),
        ("mm/memory.py", "from mm import rmap", "a second copy"),
        ("mm/memory.py", "from ..virtmm.boot import x", ""),
        ("mm/memory.py", "from .. import topdir", "mm/ may not import virtmm/"),
        ("mm/memory.py", "from ..kconfig import resolve", "mm/ may not import virtmm/"),
        ("mm/memory.py", "from ..tools import cli", "mm/ may not import tools/"),
        ("mm/memory.py", "from ... import x", "reaches above the package"),
        ("mm/memory.py", "def f():\n    import numpy", "mm/ may not import numpy"),
        ("mm/memory.py", "if x:\n    from cffi import FFI", "only build.py may import cffi"),
        ("virtmm/boot.py", "from virtmm.tools import cli", "virtmm/ may not import tools/"),
        ("virtmm/boot.py", "from virtmm import tools", "virtmm/ may not import tools/"),
        ("virtmm/boot.py", "from virtmm.tools.cli import main", "virtmm/ may not import tools/"),
        ("virtmm/__main__.py", "import virtmm.tools.report", "virtmm/ may not import tools/"),
        ("virtmm/boot.py", "import click", "virtmm/ may not import click"),
        ("virtmm/kbuild.py", "import cffi", "only build.py may import cffi"),
        ("virtmm/boot.py", "import arch", "a second copy"),
        ("build.py", "from virtmm.tools import cli", "virtmm/ may not import tools/"),
        ("tools/cli.py", "from virtmm.mm.memory import x", "tools/ may not import mm/"),
        ("tools/cli.py", "from virtmm import mm", "tools/ may not import mm/"),
        ("tools/cli.py", "from virtmm.arch import names", "tools/ may not import arch/"),
        ("tools/cli.py", "from virtmm.machine import _x", "_x is private"),
        ("tools/cli.py", "from virtmm.tests import x", "tools/ may not import tests/"),
        ("tools/cli.py", "import scripts.check", "a second copy"),
        ("tools/cli.py", "import cffi", "only build.py may import cffi"),
        ("tools/replay/run.py", "from ...mm import rmap", "tools/ may not import mm/"),
    ],
)
def test_refused(path, source, reason):
    (line,) = check(path, source)
    number = source.count("\n") + 1
    assert line.startswith(f"{path}:{number}: ")
    assert reason in line


def test_c_includes():
    source = '#include <stdint.h>\n#include "core.h"\n#include <sys/mman.h>\n'
    assert list(check_c(Path("csrc/a.c"), source)) == []
    for wrong in ("<Python.h>", '"../mm/x.h"', '"Python.h"'):
        (line,) = check_c(Path("csrc/a.c"), f"\n# include {wrong}\n")
        assert line.startswith("csrc/a.c:2: ")


def test_a_tree_with_violations(tmp_path):
    for path, source in {
        "mm/a.py": "import numpy\n",
        "tools/replay/b.py": "import virtmm.mm.a\n",
        "build.py": "import virtmm.tools\n",
        "csrc/c.c": "#include <Python.h>\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    assert [line.split(":")[0] for line in check_tree(tmp_path)] == [
        "build.py",
        "mm/a.py",
        "tools/replay/b.py",
        "csrc/c.c",
    ]
