# SPDX-License-Identifier: GPL-2.0-only
"""What the scripts that make a document have in common: write it, or say that it is not current."""

from __future__ import annotations

import sys
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
