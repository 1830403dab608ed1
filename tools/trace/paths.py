# SPDX-License-Identifier: GPL-2.0-only
"""What a trace says about files: paths without a machine's private folders, and sizes."""

from __future__ import annotations

import os
import pwd
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path


def private_folders() -> list[tuple[str, str]]:
    """Return (folder, what stands for it) of this user and machine; longest folder first."""
    homes = {os.environ.get("HOME", ""), str(Path("~").expanduser())}
    # Recording needs root: the person behind sudo has a home too.
    for name in (os.environ.get("SUDO_USER"), os.environ.get("LOGNAME")):
        if name:
            try:
                homes.add(pwd.getpwnam(name).pw_dir)
            except KeyError:
                continue
    temps = {tempfile.gettempdir(), os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"}  # noqa: S108
    found = [(h, "~") for h in homes] + [(t, "$TMP") for t in temps]
    pairs = {os.path.realpath(p): short for p, short in found if p}
    pairs |= {p.rstrip("/"): short for p, short in found if p}
    return sorted(((p, s) for p, s in pairs.items() if p.count("/") and p != "/"), key=_longest)


def _longest(pair: tuple[str, str]) -> tuple[int, str]:
    return -len(pair[0]), pair[0]


class Cleaner:
    """
    Replace private folders in paths and in words of a command line.

    ``/home/me/src/a.c`` becomes ``~/src/a.c``, ``/tmp/cc1.s`` becomes ``$TMP/cc1.s``, also after an
    option's letters or a sign (``-I/home/me``, ``--out=/tmp/x``, ``a:/tmp/x``).
    """

    def __init__(self, folders: Iterable[tuple[str, str]] | None = None) -> None:
        pairs = private_folders() if folders is None else sorted(folders, key=_longest)
        self._short = dict(pairs)
        # A folder inside another path (/mnt/tmp/x) or that begins alike (/tmpfoo) is no match.
        self._pattern = (
            re.compile(
                r"(^-[A-Za-z]+|^|(?<=[^\w./-]))("
                + "|".join(re.escape(p) for p in self._short)
                + r")(?=$|/|[^\w.-])"
            )
            if pairs
            else None
        )
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Return the text with the folders replaced."""
        if self._pattern is None:
            return text
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = self._pattern.sub(lambda m: m[1] + self._short[m[2]], text)
        return known


class FileSizes:
    """Sizes of files that a program mapped, asked once for each; 0 when gone or replaced."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], int] = {}

    def __call__(self, path: bytes, inode: int) -> int:
        """Return the size in bytes of the file at ``path`` if it still has this inode, else 0."""
        key = path, inode
        size = self._known.get(key)
        if size is None:
            try:
                status = os.stat(path)  # noqa: PTH116 - names need not be text
                size = status.st_size if status.st_ino == inode else 0
            except (OSError, ValueError):
                size = 0
            self._known[key] = size
        return size
