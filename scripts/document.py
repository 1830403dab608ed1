# SPDX-License-Identifier: GPL-2.0-only
"""What the scripts that make a document have in common: its tables, and writing it or looking at it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent


def write_or_check(output: Path, text: str, command: str) -> int:
    """
    Write a document; with ``--check`` on the command line only look whether it is that.

    Returns:
        The exit status: 1 when it is not current.
    """
    if "--check" not in sys.argv[1:]:
        output.write_text(text, encoding="utf-8")
    elif not output.is_file() or output.read_text(encoding="utf-8") != text:
        print(f"{output.relative_to(TOP)}: not current; run {command}")
        return 1
    return 0


def section(document: str, name: str, output: Path) -> str:
    """Return what stands between the marks of a section, ``<!-- NAME -->`` and ``<!-- end -->``."""
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n<!-- end -->", document, re.S)
    if not found:
        raise SystemExit(f"{output.name}: no marks <!-- {name} --> … <!-- end -->; put them back")
    return found[1]


def replace_section(document: str, name: str, text: str, output: Path) -> str:
    """Return the document with other text between the marks of a section."""
    old = section(document, name, output)
    return document.replace(
        f"<!-- {name} -->\n\n{old}\n<!-- end -->", f"<!-- {name} -->\n\n{text}\n<!-- end -->"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] * len(header)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))
