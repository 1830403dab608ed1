# SPDX-License-Identifier: GPL-2.0-only
"""Write the folder of a new architecture: one that boots, for its porter to put the true bits in."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from virtmm.arch import load_arch
from virtmm.arch.params import ArchError

_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
_ARCH = '''# SPDX-License-Identifier: GPL-2.0-only
"""{name}: {page}K pages, {levels} levels. What each field means: virtmm/arch/params.py."""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

ARCH = ArchParams(
    name="{name}",
    machine="{name}",
    kconfig_symbol="{symbol}",
    geometries=(Geometry({shift}, ({level_list},), {va_bits}{cont_order}),),
    pte=PteFormat(
        user=1 << 0 | 1 << 2,
        table=1 << 0,
        present=Attr.bit(0),
        write=Attr.bit(1),
        young=Attr.bit(5),
        dirty=Attr.bit(6),
        special=Attr.bit(9),
        exec=Attr.inverted(63),
        prot_none=Attr.bit(8),
        leaf=Attr.bit(7),
        pfn_pos=None,
        pfn_bits=48,{cont}
    ),
    sources={{
        "geometries": "to be filled in: manual and chapter; file and release of Linux",
        "pte": "to be filled in: manual and chapter; file and release of Linux",
    }},
)
'''
_KCONFIG = """# SPDX-License-Identifier: GPL-2.0-only

config {symbol}
\tdef_bool y
\tselect HAVE_ARCH_TRANSPARENT_HUGEPAGE

config PAGE_SHIFT
\tint
\tdefault {shift}

config ARCH_FORCE_MAX_ORDER
\tint
\tdefault {max_order}
"""
_CONTPTE = """
config {symbol}_CONTPTE
\tbool "Contiguous PTE mappings for user memory"
\tdepends on TRANSPARENT_HUGEPAGE
\tselect CONTPTE
\thelp
\t  Mark aligned runs of {cont} entries of one folio as contiguous.
"""
_THP = "CONFIG_TRANSPARENT_HUGEPAGE=y\nCONFIG_TRANSPARENT_HUGEPAGE_MADVISE=y\n"


@dataclass(frozen=True)
class Shape:
    """
    What a new architecture looks like.

    Attributes:
        page: bytes of a base page.
        levels: index bits of each level, from the root.
        cont: last-level entries of a contiguous block; 0 = none.
    """

    page: int
    levels: tuple[int, ...]
    cont: int = 0


def parse_shape(page: str, levels: str, cont: str) -> Shape:
    """Return the shape from words (8K; 10,10,10; 32); ArchError names the word that is wrong."""
    m = re.fullmatch(r"(\d+)K", page)
    size = int(m[1]) << 10 if m else 0
    if size not in (4096, 8192, 16384, 32768, 65536):
        raise ArchError(f"page: {page} is not one of 4K, 8K, 16K, 32K, 64K")
    if not re.fullmatch(r"\d+(,\d+){1,4}", levels):
        raise ArchError(f"levels: {levels} is not index bits from the root, like 9,9,9,9 (2 to 5)")
    if not cont.isdigit() or int(cont) & int(cont) - 1 or cont == "1":
        raise ArchError(f"cont: {cont} is not a power of two of entries; 0 = no contiguous blocks")
    return Shape(size, tuple(map(int, levels.split(","))), int(cont))


def new_arch(name: str, shape: Shape, parent: Path) -> Path:
    """
    Write ``parent``/``name`` and return it: arch.py, Kconfig and three kernels.

    Raises:
        ArchError: no name, it is there already, or the shape is no architecture; nothing is left then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ArchError(f"name: {name} is not a folder's (small letters, digits, _)")
    folder = parent / name
    if folder.exists():
        raise ArchError(f"{folder}: is there already; choose another name")
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as work:
            made = Path(work) / name
            _write(made, name, shape)
            load_arch(name, made)
            shutil.rmtree(made / "__pycache__", ignore_errors=True)
            made.rename(folder)
    except OSError as e:
        raise ArchError(f"{e.filename or folder}: {e.strerror}") from None
    return folder


def _write(folder: Path, name: str, shape: Shape) -> None:
    nr, shift = len(shape.levels), shape.page.bit_length() - 1
    names = {2: _NAMES[3:], 3: ("pgd", *_NAMES[3:]), 4: ("pgd", *_NAMES[2:]), 5: _NAMES}[nr]
    words = {
        "name": name,
        "symbol": name.upper(),
        "page": shape.page >> 10,
        "levels": nr,
        "shift": shift,
        "va_bits": shift + sum(shape.levels),
        "level_list": ", ".join(
            f'Level("{n}", {b})' for n, b in zip(names, shape.levels, strict=True)
        ),
        "cont_order": f", {shape.cont.bit_length() - 1}" if shape.cont else "",
        "cont": "\n        cont=Attr.bit(10)," if shape.cont else "",
        "max_order": max(10, shape.levels[-1]),
    }
    mainline = _THP + "CONFIG_ANON_POLICY_MTHP=y\nCONFIG_THP_UNDERUSED_QUEUE=y\n"
    kconfig = _KCONFIG.format(**words)
    if shape.cont:
        mainline = f"CONFIG_{name.upper()}_CONTPTE=y\n" + mainline
        kconfig += _CONTPTE.format(symbol=words["symbol"], cont=shape.cont)
    configs = folder / "configs"
    configs.mkdir(parents=True)
    (folder / "arch.py").write_text(_ARCH.format(**words))
    (folder / "Kconfig").write_text(kconfig)
    for kernel, text in (
        ("defconfig", _THP),
        (f"baseline_{words['page']}k_defconfig", _THP),
        ("linux-6.12_defconfig", mainline),
    ):
        (configs / kernel).write_text(text)
