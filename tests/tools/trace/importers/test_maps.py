# SPDX-License-Identifier: GPL-2.0-only
"""/proc/PID/maps and smaps: what a line says, and the rows that start a process so."""

from pathlib import Path

import pytest
from virtmm.tools.trace.format import KINDS, TraceError
from virtmm.tools.trace.importers.maps import read_maps, start_rows

DATA = Path(__file__).resolve().parent.parent / "data"
LINES = """\
00400000-00402000 r-xp 00001000 fe:00 77                                 /opt/a (b)
00500000-00503000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000010000 rw-s 00000000 00:01 1059                       /dev/zero (deleted)
7f0000020000-7f0000021000 r--p 00000000 fe:00 78                         /opt/gone (deleted)
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0                          [stack]
7ffd00002000-7ffd00004000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


@pytest.fixture
def maps(tmp_path):
    """Return a function: text -> mappings."""

    def maps(text, page=4096):
        path = tmp_path / "maps"
        path.write_text(text)
        return read_maps(path, page)

    return maps


def test_lines(maps):
    code, heap, shared, gone, stack, vdso = maps(LINES)  # the kernel's half is left out
    assert (code.start, code.end, code.prot, code.offset) == (0x400000, 0x402000, 5, 0x1000)
    assert code.file.path == "/opt/a (b)"
    assert code.file.inode
    assert heap.file is None
    assert (shared.file, shared.shared) == (None, True)
    assert gone.file.path == "/opt/gone"
    assert stack.name == "[stack]"
    assert vdso.file.path == "[vdso]"
    assert code.rss is None


def test_rows(maps):
    rows = list(start_rows(9, maps(LINES), 5, "/opt/a"))
    assert [KINDS[r[3]] for r in rows] == ["exec", "mmap", "brk", "brk", *["mmap"] * 4]
    assert {r[0] for r in rows} == {5}
    heap = rows[3]
    assert (heap[4], heap[5]) == (0x500000, 0x3000)
    flags = [r[9] for r in rows if KINDS[r[3]] == "mmap"]
    assert flags == [0x12, 0x31, 0x12, 0x20132, 0x12]


def test_smaps_have_sizes():
    vmas = read_maps(DATA / "4242" / "smaps", 4096)
    assert all(vma.rss is not None for vma in vmas)
    stack = next(v for v in vmas if v.name == "[stack]")
    assert stack.rss == stack.anonymous > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "maps:0: no mapping in it"),
        ("hello\n", "maps:1: not a line of a maps file; give a copy of /proc/PID/maps or smaps"),
        (LINES + "Rss: 4 kB\nbad line\n", "maps:9: not a line"),
        (LINES + "Rss:    many kB\n", "maps:8: Rss without a size in kB"),
        (LINES.replace("00402000", "00402800"), "maps:1: 00400000-00402800 is no range of pages"),
        (LINES.replace("00402000", "003ff000"), "maps:1: 00400000-003ff000 is no range"),
        (LINES.replace("00500000-", "00401000-"), "maps:2: the mapping lies before the end"),
    ],
)
def test_broken(maps, text, says):
    with pytest.raises(TraceError) as error:
        maps(text)
    assert says in str(error.value)


def test_other_page_sizes(maps):
    with pytest.raises(
        TraceError, match="no range of pages of 65536 bytes; say the machine's with"
    ):
        maps(LINES, 65536)
