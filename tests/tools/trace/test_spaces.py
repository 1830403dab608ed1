# SPDX-License-Identifier: GPL-2.0-only
"""The mappings of a trace's processes: what each event does to them."""

from collections import Counter

import pytest
from virtmm.tools.trace.format import KINDS
from virtmm.tools.trace.spaces import STACK_LIMIT, Spaces, kind_of

A = 0x7F0000000000
K = 1024
PAGE = 4 * K


def row(kind, addr=0, length=0, prot=3, flags=0x22, pid=1, to=0, to_len=0, offset=0, file=0, arg=0):
    code = KINDS.index(kind)
    return (0, pid, pid, code, addr, length, to, to_len, prot, flags, offset, file, arg)


@pytest.fixture
def after():
    """Return a function: rows -> [(start, end, kind)] of process 1."""

    def after(*rows, pid=1):
        spaces = Spaces(PAGE)
        spaces.apply(row("exec"))
        for r in rows:
            spaces.apply(r)
        space = spaces.live[pid]
        assert +space.kinds == Counter(kind_of(m) for *_, m in space.mappings.ranges)
        return [(start, end, kind_of(m)) for start, end, m in space.mappings.ranges]

    return after


def test_equal_neighbours_are_one_mapping(after):
    first, second = row("mmap", A, PAGE), row("mmap", A + PAGE, PAGE)
    assert after(first, second) == [(A, A + 2 * PAGE, "anonymous")]
    assert len(after(first, row("mmap", A + PAGE, PAGE, prot=1))) == 2


def test_file_neighbours_merge_where_the_offsets_follow(after):
    first = row("mmap", A, PAGE, 5, 2, offset=PAGE, file=1)
    assert after(first, row("mmap", A + PAGE, PAGE, 5, 2, offset=2 * PAGE, file=1)) == [
        (A, A + 2 * PAGE, "file text")
    ]
    assert len(after(first, row("mmap", A + PAGE, PAGE, 5, 2, offset=PAGE, file=1))) == 2


def test_munmap_splits(after):
    got = after(row("mmap", A, 4 * PAGE), row("munmap", A + PAGE, PAGE))
    assert got == [(A, A + PAGE, "anonymous"), (A + 2 * PAGE, A + 4 * PAGE, "anonymous")]


def test_mprotect_splits_and_merges_again(after):
    rows = [row("mmap", A, 4 * PAGE), row("mprotect", A + PAGE, PAGE, prot=1)]
    assert len(after(*rows)) == 3
    assert len(after(*rows, row("mprotect", A + PAGE, PAGE, prot=3))) == 1


@pytest.mark.parametrize(
    ("prot", "flags", "file", "kind"),
    [
        (3, 0x22, 0, "anonymous"),
        (3, 0x21, 0, "shared anonymous"),
        (3, 0x20122, 0, "stack"),
        (5, 2, 1, "file text"),
        (3, 2, 1, "file data"),
        (1, 2, 1, "file read-only"),
        (3, 1, 1, "file shared"),
    ],
)
def test_kinds(after, prot, flags, file, kind):
    assert after(row("mmap", A, PAGE, prot, flags, file=file))[0][2] == kind


def test_brk_is_absolute(after):
    start = row("brk", A + 100)
    grown = row("brk", A + 100, 3 * PAGE)
    assert after(start, grown) == [(A + PAGE, A + 4 * PAGE, "heap")]
    assert after(start, grown, row("brk", A + 100, PAGE)) == [(A + PAGE, A + 2 * PAGE, "heap")]


def test_mremap_moves(after):
    rows = (
        row("mmap", A, 2 * PAGE),
        row("mremap", A, 2 * PAGE, to=A + 64 * K, to_len=4 * PAGE, flags=1),
    )
    assert after(*rows) == [(A + 64 * K, A + 64 * K + 4 * PAGE, "anonymous")]


def test_mremap_dontunmap_leaves_the_old_range(after):
    rows = row("mmap", A, PAGE), row("mremap", A, PAGE, to=A + 64 * K, to_len=PAGE, flags=5)
    assert len(after(*rows)) == 2


def test_fork_copies_and_vfork_shares(after):
    for flags, left in ((0, 1), (0x4100, 0)):
        rows = row("mmap", A, PAGE), row("fork", flags=flags, arg=2), row("munmap", A, PAGE, pid=1)
        assert len(after(*rows, pid=2)) == left


def test_exec_empties_and_exit_ends():
    spaces = Spaces(PAGE)
    for r in (row("exec"), row("mmap", A, PAGE), row("exec")):
        spaces.apply(r)
    assert not spaces.live[1].mappings.ranges
    spaces.apply(row("exit"))
    assert not spaces.live


def test_a_stack_grows_to_an_access():
    spaces = Spaces(PAGE)
    for r in (row("exec"), row("mmap", A, PAGE, flags=0x20122)):
        spaces.apply(r)
    space = spaces.live[1]
    assert space.at(A - STACK_LIMIT - 1) is None
    assert kind_of(space.at(A - 5 * PAGE + 8)) == "stack"
    assert [start for start, *_ in space.mappings.ranges] == [A - 5 * PAGE]
    assert +space.kinds == {"stack": 1}
    assert space.covers(A - 5 * PAGE, A + PAGE)
    assert not space.covers(A - 6 * PAGE, A + PAGE)
