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
            raise ArchError(f"{arch_dir}: {what}")
        if not (arch_dir / "arch.py").is_file():
            raise ArchError(
                f"{arch_dir}: no arch.py in it; virtmm new-arch writes a folder with one"
            )
    except OSError as e:
        raise ArchError(f"{arch_dir}: {e.strerror}") from None
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
        arch = module.ARCH
    except ArchError:
        raise
    except AttributeError as e:
        if e.obj is not module:
            raise _broken(path, e) from None
        raise ArchError(
            f"{path}: no ARCH; arch.py binds one global, ARCH = ArchParams(...)"
        ) from None
    except (Exception, SystemExit) as e:  # whatever a file of someone else's does
        raise _broken(path, e) from None
    if not isinstance(arch, ArchParams):
        raise ArchError(f"{path}: ARCH is {type(arch).__name__}, not ArchParams")
    if arch.name != name:
        raise ArchError(
            f"{path}: ARCH.name is {arch.name!r}, asked for {name!r}; an architecture has its folder's name"
        )
    return arch


def _broken(path: Path, e: BaseException) -> ArchError:
    """Return what went wrong in a description as one line, with the line of the file where it did."""
    if isinstance(e, OSError) and e.filename:
        return ArchError(f"{path}: {e.strerror}")
    linecache.checkcache(str(path))
    here = str(path.absolute())  # as importlib names it
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == here]
    if isinstance(e, SyntaxError):
        lines = [e.lineno]
    line = (lines[-1] if lines else 0) or 0  # 0: none of this file's
    where = f"{path}:{line}" if line else f"{path}"
    text = e.msg if isinstance(e, SyntaxError) else " ".join(str(e).split())
    source = linecache.getline(str(path), line).strip()
    return ArchError(f"{where}: {type(e).__name__}: {text}" + (f" ({source})" if source else ""))
