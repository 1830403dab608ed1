# SPDX-License-Identifier: GPL-2.0-only
"""
Write Documentation/architectures.md: what each architecture of the tree has, from arch/ and Kconfig.

``python -m scripts.architectures`` writes the table; with ``--check`` it only says whether it is current.
"""

from __future__ import annotations

import sys

from virtmm.arch import load_arch, names
from virtmm.arch.params import ArchParams, Geometry

from scripts.document import TOP, write_or_check
from virtmm.arch_check import missing
from virtmm.kconfig import defconfigs, fragment_names, resolve
from virtmm.subject import Subject

OUTPUT = TOP / "Documentation" / "architectures.md"

HEADER = """# Architectures

Made by `scripts/architectures.py` from `arch/` and Kconfig; edit it there. `tests/arch/conformance/` tests
every line.

*Table bits*: index bits of each level, from the root; `+n`: such a table takes 2^n pages. *PMD*: what
an entry of the last level but one covers; a transparent huge page unless in parentheses. *Contiguous*:
memory of a block of contiguous entries. *Block*: the largest of the page allocator, which no folio exceeds.
*User space*: TASK_SIZE. *Zeroing* of a new folio: by the page allocator, upwards, or by clear_huge_page(),
which ends at the faulting page. Only the v1 series has the allocator zero large folios. *Large folios*: the
largest orders of the v1 series in a mapping not eligible for THP, and in one that is, where the architecture
opted in.

| architecture | page | levels | table bits | PMD | contiguous | block | user space | zeroing | large folios |
|---|---|---|---|---|---|---|---|---|---|
"""


TIERS = """
What each has, by the tiers of `arch/params.py` (`virtmm arch-check`), its kernels besides base pages, and its
fragments.

| architecture | THP | contiguous | costs | kernels | fragments |
|---|---|---|---|---|---|
"""

SOURCES = """
Where the numbers are from, by fields of `arch.py`:

"""


def tier_row(name: str) -> str:
    """Return the line of one architecture in the table of tiers."""
    lacks = missing(Subject(name))
    kernels = [k for k in defconfigs(name) if not k.startswith("baseline_")]
    everyone = {p.stem for p in (TOP / "configs").glob("*.config")}
    own = sorted(set(fragment_names(name)) - everyone, key=_page_sizes_first)
    cells = ["" if t in lacks else "yes" for t in ("THP", "contiguous", "costs")]
    return "| " + " | ".join([name, *cells, ", ".join(kernels), ", ".join(own)]) + " |\n"


def _page_sizes_first(fragment: str) -> tuple[int, str]:
    return int(fragment[:-1]) if fragment[:-1].isdigit() else sys.maxsize, fragment


def source_lines(arch: ArchParams) -> str:
    """Return what one architecture says of where its numbers are from."""
    lines = "".join(f"  - {field}: {text}\n" for field, text in arch.sources.items())
    return f"- {arch.name}\n{lines}"


def size(nr_bytes: int) -> str:
    """Return a size in the largest unit of which it is a whole number."""
    units = ["", "K", "M", "G", "T", "P"]
    while nr_bytes % 1024 == 0 and len(units) > 1:
        nr_bytes //= 1024
        units.pop(0)
    return f"{nr_bytes}{units[0]}"


def user_space(nr_bytes: int) -> str:
    """Return a size as size() does, or what is missing to a power of two where that is shorter."""
    whole = 1 << nr_bytes.bit_length()
    return min(size(nr_bytes), f"{size(whole)} - {size(whole - nr_bytes)}", key=len)


def row(arch: ArchParams, geometry: Geometry) -> str:
    """Return the line of one architecture with one page size."""
    page = 1 << geometry.page_shift
    config = resolve(arch.name, f"baseline_{size(page).lower()}")
    bits = []
    for depth, level in enumerate(geometry.levels):
        order = geometry.table_order(depth)
        bits.append(f"{level.bits}+{order}" if order else f"{level.bits}")
    pmd = size(page << geometry.pmd_order)
    zeroing = "allocator" if arch.gfp_zero else "clear_huge_page()"
    orders = [config.get(f"ARCH_LARGE_ANON_FOLIO_{k}_ORDER_MAX", "") for k in ("NOTHP", "THP")]
    cells = [
        f"{arch.name} ({arch.machine})" if arch.machine != arch.name else arch.name,
        size(page),
        str(len(geometry.levels)),
        ", ".join(bits),
        pmd if config["HAVE_ARCH_TRANSPARENT_HUGEPAGE"] else f"({pmd})",
        size(page << geometry.cont_order) if geometry.cont_order else "",
        size(page << int(config["ARCH_FORCE_MAX_ORDER"])),
        user_space(geometry.task_size or 1 << geometry.va_bits),
        zeroing + (", with memory tags" if arch.gfp_zerotags else ""),
        f"{orders[0]}, {orders[1]}" if config["ARCH_SUPPORTS_LARGE_ANON_FOLIO"] else "",
    ]
    return "| " + " | ".join(cells) + " |\n"


def render() -> str:
    """Return the whole document."""
    archs = [load_arch(name) for name in names()]
    rows = "".join(row(arch, g) for arch in archs for g in arch.geometries)
    tiers = "".join(tier_row(arch.name) for arch in archs)
    return HEADER + rows + TIERS + tiers + SOURCES + "".join(map(source_lines, archs))


def main() -> int:
    """Write the document, or check it; return the exit status."""
    return write_or_check(OUTPUT, render(), "python -m scripts.architectures")


if __name__ == "__main__":
    sys.exit(main())
