# SPDX-License-Identifier: GPL-2.0-only
"""
List every simplification of the model in Documentation/fidelity.md, from the sources that carry them.

A simplification is a paragraph of a docstring or comment that begins with ``SIMPLIFIED:``.
``python -m scripts.fidelity`` writes the list; with ``--check`` it only says whether the list is current.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scripts.document import TOP, write_or_check

ROOMS = ("arch", "mm", "csrc", "virtmm", "tools")
OUTPUT = TOP / "Documentation" / "fidelity.md"
# A sentence may begin in the middle of a line of prose, but not in a string of the program.
_START = re.compile(r"^[^\"']*?\bSIMPLIFIED: (?P<text>.*)$")
_MARKS = re.compile(r"^\s*(#|\*/?|//|/\*)?\s?")

HEADER = """# What the model simplifies

Made by `scripts/fidelity.py` from the sources; edit it there. `Documentation/costs.md` has what holds for
the cost tables.
"""


def paragraphs(path: Path) -> list[str]:
    """Return the simplifications of one source file, each on one line."""
    found = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        match = _START.match(line)
        if not match:
            continue
        text = [match["text"]]
        is_comment = line.lstrip().startswith("#")
        for following in lines[number + 1 :]:
            body = _MARKS.sub("", following).strip()
            if (
                not body
                or body.startswith('"""')
                or is_comment != following.lstrip().startswith("#")
            ):
                break
            text.append(body)
        found.append(" ".join(text).replace('"""', "").strip())
    return found


def render(top: Path = TOP) -> str:
    """Return the whole document."""
    parts = [HEADER]
    for room in ROOMS:
        for path in sorted((top / room).rglob("*")):
            if path.suffix in (".py", ".c", ".h", ".def") and not path.is_symlink():
                parts += [f"- `{path.relative_to(top)}`: {text}" for text in paragraphs(path)]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the document, or check it; return the exit status."""
    return write_or_check(OUTPUT, render(), "python -m scripts.fidelity")


if __name__ == "__main__":
    sys.exit(main())
