# SPDX-License-Identifier: GPL-2.0-only
"""Architectures: one folder each, found by looking."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from virtmm.arch.params import ArchError, ArchParams

_here = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the architectures in the tree, sorted."""
    return sorted(p.parent.name for p in _here.glob("*/arch.py"))


def reference() -> str:
    """Return the architecture that commands take where none is named; its arch.py says that it is it."""
    return next(name for name in names() if load_arch(name).reference)


def arch_folder(name: str, arch_dir: Path | None = None) -> Path:
    """Return the folder of an architecture; ``arch_dir`` is one outside the tree."""
    folder = arch_dir if arch_dir is not None else _here / name
    if not (folder / "arch.py").is_file():
        if arch_dir is not None:
            raise ArchError(f"{folder}: no arch.py in it; virtmm new-arch writes one")
        raise ArchError(f"unknown architecture {name!r}; choose one of: {', '.join(names())}")
    return folder


def load_arch(name: str, arch_dir: Path | None = None) -> ArchParams:
    """
    Return ``ARCH`` of ``arch/<name>/arch.py``, or of a folder outside the tree.

    Raises:
        ArchError: no such architecture, or its description is wrong.
    """
    path = arch_folder(name, arch_dir) / "arch.py"
    spec = importlib.util.spec_from_file_location(f"virtmm.arch.{name}.arch", path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - a .py path always has one
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        arch = module.ARCH
    except ArchError:
        raise
    except AttributeError as e:
        raise ArchError(f"{path}: {e}; arch.py binds one global, ARCH = ArchParams(...)") from None
    except (SyntaxError, ImportError, TypeError) as e:
        raise ArchError(f"{path}: {e}") from None
    if not isinstance(arch, ArchParams):
        raise ArchError(f"{path}: ARCH is {type(arch).__name__}, not ArchParams")
    if arch.name != name:
        raise ArchError(f"{path}: ARCH.name is {arch.name!r}, asked for {name!r}")
    return arch
