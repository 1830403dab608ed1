# SPDX-License-Identifier: GPL-2.0-only
"""Private folders do not get into a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from virtmm.tools.trace.paths import Cleaner, FileSizes

CLEAN = Cleaner([("/u/me", "~"), ("/scratch", "$TMP"), ("/u/me/tmp", "$TMP")])


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("/u/me/src/a.c", "~/src/a.c"),
        ("/u/me", "~"),
        ("/u/me/tmp/x", "$TMP/x"),
        ("/u/menno/a.c", "/u/menno/a.c"),
        ("/mnt/u/me/a.c", "/mnt/u/me/a.c"),
        ("/scratch/ccX.s", "$TMP/ccX.s"),
        ("/scratchfs/x", "/scratchfs/x"),
        ("-I/u/me/include", "-I~/include"),
        ("-isystem/u/me", "-isystem~"),
        ("--out=/scratch/x:/u/me/y", "--out=$TMP/x:~/y"),
        ("[vdso]", "[vdso]"),
        ("cd /scratch && ls '/u/me'", "cd $TMP && ls '~'"),
        ("", ""),
    ],
)
def test_cleaner(text: str, result: str) -> None:
    assert CLEAN(text) == result


def test_nothing_to_replace() -> None:
    assert Cleaner([])("/u/me") == "/u/me"


def test_home_and_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    clean = Cleaner()
    assert clean(f"{tmp_path}/home/a") == "~/a"
    assert clean("/var/tmp/x") == "$TMP/x"  # noqa: S108
    assert clean("/usr/bin/gcc") == "/usr/bin/gcc"


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    size, inode = FileSizes(), path.stat().st_ino
    assert size(bytes(path), inode) == 5
    assert size(bytes(path), inode + 1) == 0
    assert size(bytes(tmp_path / "gone"), 1) == 0
    assert size(b"a\0b", 1) == 0
