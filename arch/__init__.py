# SPDX-License-Identifier: GPL-2.0-only
"""Architectures: one folder each, found by looking."""

from __future__ import annotations

import contextlib
import importlib.util
import linecache
import traceback
from collections.abc import Iterator
from pathlib import Path

from virtmm.arch.params import ArchError, ArchParams

_here = Path(__file__).resolve().parent


def shown(path: Path) -> str:
    """Return a path as messages show it: from the top of the tree when it is in there, else as given."""
    with contextlib.suppress(ValueError, OSError, RuntimeError):  # elsewhere, or a link to itself
        return str(path.resolve().relative_to(_here.parent))
    return str(path)


def names() -> list[str]:
    """Return the architectures in the tree, sorted."""
    return sorted(p.parent.name for p in _here.glob("*/arch.py"))


def loadable() -> Iterator[ArchParams]:
    """Yield the architectures in the tree; a port that cannot be loaded yet is left out."""
    for name in names():
        with contextlib.suppress(ArchError):
            yield load_arch(name)


def reference() -> str:
    """
    Return the architecture that commands take where none is named; its arch.py says that it is it.

    Raises:
        ArchError: none does.
    """
    for arch in loadable():
        if arch.reference:
            return arch.name
    raise ArchError(f"{_here}: no architecture has reference=True; give it to one")


def arch_folder(name: str, arch_dir: Path | None = None) -> Path:
    """Return the folder of an architecture; ``arch_dir`` is one outside the tree."""
    if arch_dir is None:
        if name not in names():
            raise ArchError(f"unknown architecture {name!r}; choose one of: {', '.join(names())}")
        return _here / name
    try:
        if not arch_dir.is_dir():
            what = "not a folder; name the one it is in" if arch_dir.exists() else "no such folder"
            raise ArchError(f"{shown(arch_dir)}: {what}")
        if not (arch_dir / "arch.py").is_file():
            raise ArchError(
                f"{shown(arch_dir)}: no arch.py in it; virtmm new-arch writes a folder with one"
            )
    except OSError as e:
        raise ArchError(f"{shown(arch_dir)}: {e.strerror}") from None
    return arch_dir


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
        if "ARCH" not in vars(module):
            raise ArchError(
                f"{shown(path)}: no ARCH; arch.py binds one global, ARCH = ArchParams(...)"
            )
        arch = module.ARCH
        if type(arch) is not ArchParams:
            raise ArchError(f"{shown(path)}: ARCH is {type(arch).__name__}, not ArchParams")
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # whatever a file of someone else's does
        raise _broken(path, e) from None
    if arch.name != name:
        raise ArchError(
            f"{shown(path)}: ARCH.name is {arch.name!r}, asked for {name!r}; "
            "an architecture has its folder's name"
        )
    return arch


def _broken(path: Path, e: BaseException) -> ArchError:
    """Return what went wrong in a description as one line, with the line of the file where it did."""
    if type(e) is ArchError and e.args:
        return e
    here = str(path.absolute())  # as importlib names it
    if isinstance(e, OSError) and e.filename == here:
        return ArchError(f"{shown(path)}: {e.strerror}")
    linecache.checkcache(here)
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == here]
    # str(e) may raise too.
    text = str(traceback.TracebackException(type(e), e, None))
    if isinstance(e, SyntaxError) and e.filename == here:
        lines, text = [e.lineno], e.msg
    line = (lines[-1] if lines else 0) or 0  # 0: none of this file's
    where = f"{shown(path)}:{line}" if line else shown(path)
    source = linecache.getline(here, line).strip()
    text = f"{type(e).__name__}: {' '.join(text.split())}"
    return ArchError(f"{where}: {text}" + (f" ({source})" if source else ""))
