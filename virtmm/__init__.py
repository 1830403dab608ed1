# SPDX-License-Identifier: GPL-2.0-only
"""
virtmm: a virtual Linux memory-management kernel.

Import name = ``virtmm.`` + path in the source tree (``virtmm.mm.memory`` is ``mm/memory.py``), whether
the package is installed or runs from its source root.
"""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
# Source tree: mm/, arch/, tools/ lie beside this folder, not in it. Inactive once installed.
if (_here.parent / "mm" / "Kconfig").is_file() and (_here.parent / "Kconfig").is_file():
    __path__.append(str(_here.parent))


def topdir() -> Path:
    """Return the folder with ``Kconfig``, ``arch/``, ``mm/``, ``csrc/`` and ``configs/`` in it."""
    for top in (_here.parent, _here):
        if (top / "Kconfig").is_file() and (top / "mm" / "Kconfig").is_file():
            return top
    raise FileNotFoundError(f"{_here}: no Kconfig beside or in it; is virtmm installed whole?")
