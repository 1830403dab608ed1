# SPDX-License-Identifier: GPL-2.0-only
"""Write the folder of a new architecture: one that boots, for its porter to put the true bits in."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from virtmm import topdir
from virtmm.arch.params import ArchError, Geometry, Level
from virtmm.boot import check_settings
from virtmm.kconfig import default_arch, defconfigs, open_kconfig, resolve, shown
from virtmm.mm.layout import NR_ORDERS

#: Columns of a line, as pyproject.toml says.
_LINE = 100
_PAGES = (4096, 8192, 16384, 32768, 65536)
_NAMES = ("pgd", "p4d", "pud", "pmd", "pte")
_ARCH = '''# SPDX-License-Identifier: GPL-2.0-only
"""{name}: {page}K pages, {levels} levels. What each field means: pydoc virtmm.arch.params."""

from virtmm.arch.params import ArchParams, Attr, Geometry, Level, PteFormat

ARCH = ArchParams(
    name="{name}",
    machine="{name}",
    kconfig_symbol="{symbol}",
    geometries=(  # smallest page first
{geometry}
    ),
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

    def geometry(self) -> Geometry:
        """Return the page table; ArchError when it is none."""
        nr, shift = len(self.levels), self.page.bit_length() - 1
        names = {2: _NAMES[3:], 3: ("pgd", *_NAMES[3:]), 4: ("pgd", *_NAMES[2:]), 5: _NAMES}[nr]
        levels = tuple(Level(name, bits) for name, bits in zip(names, self.levels, strict=True))
        if self.levels[-1] >= NR_ORDERS:
            raise ArchError(
                f"levels: {self.levels[-1]} bits of the last make huge pages of that order; "
                f"the buddy allocator has orders 0 to {NR_ORDERS - 1}"
            )
        if self.cont > 1 << self.levels[-1]:
            raise ArchError(
                f"cont: {self.cont} is more than the {1 << self.levels[-1]} entries of the last level"
            )
        order = max(0, self.cont.bit_length() - 1)
        geometry = Geometry(shift, levels, shift + sum(self.levels), order)
        geometry.check(f"geometries[{shift}]")
        return geometry


def parse_page(text: str) -> int:
    """Return the bytes of a base page (8K, 8k or 8192); ArchError when it is none."""
    m = re.fullmatch(r"([0-9]{1,5})([Kk]?)", text)
    size = int(m[1]) << (10 if m[2] else 0) if m else 0
    if size not in _PAGES:
        raise ArchError(f"page: {text} is not one of {', '.join(f'{p >> 10}K' for p in _PAGES)}")
    return size


def parse_levels(text: str) -> tuple[int, ...]:
    """Return the index bits of each level from the root (9,9,9,9); ArchError when they are none."""
    if not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2}){1,4}", text):
        raise ArchError(f"levels: {text} is not index bits from the root, like 9,9,9,9 (2 to 5)")
    return tuple(map(int, text.split(",")))


def parse_cont(text: str) -> int:
    """Return the entries of a contiguous block (32; 0 = none); ArchError when it is no such number."""
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 1
    if number == 1 or number & number - 1:
        raise ArchError(f"cont: {text} is not a power of two of entries; 0 = no contiguous blocks")
    return number


def parse_shape(page: str, levels: str, cont: str) -> Shape:
    """Return the shape from words (8K; 10,10,10; 32); ArchError says which are wrong."""
    shape = Shape(parse_page(page), parse_levels(levels), parse_cont(cont))
    shape.geometry()
    return shape


def place_for(name: str, parent: Path) -> Path:
    """
    Return the folder of an architecture that is to be written.

    Raises:
        ArchError: no name for one, the name is taken, or ``parent`` is no folder.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise ArchError(
            f"name: {name} is not a folder's (a small letter, then small letters, digits, _; at most 31)"
        )
    if keyword.iskeyword(name):
        raise ArchError(f"name: {name} is a word of Python; choose another")
    if (topdir() / "arch" / f"{name}.py").exists():
        raise ArchError(f"name: {name} is taken by arch/{name}.py; choose another")
    # Of whatever architecture; its own symbols do not matter.
    kconf = open_kconfig(default_arch())
    symbol = kconf.syms.get(name.upper()) or kconf.named_choices.get(name.upper())
    for node in symbol.nodes if symbol else ():
        file = Path(node.filename)
        if file.parts[0] != "arch":
            raise ArchError(
                f"name: {name} is taken by {symbol.name} of {file}:{node.linenr}; choose another"
            )
    folder = parent / name
    try:
        if not parent.is_dir():
            raise ArchError(f"{shown(parent)}: no such folder; make it first")
        if folder.exists():
            raise ArchError(f"{shown(folder)}: is there already; choose another name")
    except OSError as e:
        raise ArchError(f"{shown(parent)}: {e.strerror}") from None
    return folder


def new_arch(name: str, shape: Shape, parent: Path) -> Path:
    """
    Write ``parent``/``name`` and return it: arch.py, Kconfig and three kernels.

    Raises:
        ArchError: place_for() refuses, or the shape is no architecture; nothing is left then.
        BootError, ConfigError: a kernel of it would not boot; nothing is left then.
    """
    folder = place_for(name, parent)
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as work:
            made = Path(work) / name
            _write(made, name, shape)
            for kernel in ("defconfig", *defconfigs(name, made)):
                check_settings(resolve(name, kernel, arch_dir=made), ())
            shutil.rmtree(made / "__pycache__", ignore_errors=True)
            made.rename(folder)
    except OSError as e:
        raise ArchError(f"{shown(parent)}: cannot write in it: {e.strerror}") from None
    return folder


def _source(geometry: Geometry) -> str:
    """Return a page table as arch.py has it, in the form that ruff gives it."""
    levels = [f'Level("{lv.name}", {lv.bits})' for lv in geometry.levels]
    rest = [str(n) for n in (geometry.va_bits, geometry.cont_order) if n]
    table = f"({', '.join(levels)})"
    text = f"        Geometry({', '.join((str(geometry.page_shift), table, *rest))}),"
    if len(text) <= _LINE:
        return text
    if len(table) + len("            ,") > _LINE:
        lines = "".join(f"                {level},\n" for level in levels)
        table = f"(\n{lines}            )"
    lines = "".join(f"            {arg},\n" for arg in (geometry.page_shift, table, *rest))
    return f"        Geometry(\n{lines}        ),"


def _write(folder: Path, name: str, shape: Shape) -> None:
    geometry = shape.geometry()
    words = {
        "name": name,
        "symbol": name.upper(),
        "page": shape.page >> 10,
        "levels": len(geometry.levels),
        "shift": geometry.page_shift,
        "geometry": _source(geometry),
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
