# SPDX-License-Identifier: GPL-2.0-only
"""The lint for larger base pages: each rule strikes where it should and nowhere else."""

import pytest
from virtmm.tools.trace.format import KINDS, File
from virtmm.tools.trace.lint import Lint
from virtmm.tools.trace.spaces import Spaces

A = 0x7F0000000000
K = 1024
PAGE = 4 * K
FIXED = 0x10
LIB = File("/lib/lib.so", 5, 0)


def row(kind, addr=0, length=0, prot=3, flags=0x22, offset=0, file=0, arg=0, pid=1):
    code = KINDS.index(kind)
    return (0, pid, pid, code, addr, length, 0, 0, prot, flags, offset, file, arg)


def lint(*rows, page=PAGE, starting=False):
    """Return the findings of rows after an exec: {(rule, page size in K): finding}."""
    checker, spaces = Lint(page), Spaces(page)
    for number, r in enumerate((row("exec"), *rows)):
        checker.look(
            number, r, spaces.live.get(1) or Spaces(page), LIB if r[11] else File("", 0, 0)
        )
        spaces.apply(r)
        if not starting:
            checker.started(1)
    return {(f["rule"], f["page_size"] // K): f for f in checker.result()}


def test_aligned_calls_are_no_findings():
    assert not lint(
        row("mmap", A, 256 * K),
        row("mprotect", A + 64 * K, 64 * K, 1),
        row("madvise", A + 128 * K, 64 * K, arg=4),
        row("munmap", A + 192 * K, 64 * K),
    )


def test_fixed_address():
    found = lint(row("mmap", A + 16 * K, 64 * K, flags=0x22 | FIXED))
    assert list(found) == [("fixed-address", 64)]
    one = found["fixed-address", 64]
    assert (one["row"], one["pid"], one["severity"], one["count"]) == (1, 1, "breaks", 1)
    assert f"{A + 16 * K:#x}" in one["what"]
    assert "EINVAL" in one["effect"]


def test_fixed_over_an_own_reservation_counts_from_its_start():
    """The reservation has another place with larger pages, so only the distance matters."""
    base = A + 4 * K
    reserve = row("mmap", base, 256 * K, prot=0)
    assert ("fixed-address", 64) not in lint(
        reserve, row("mmap", base + 64 * K, 64 * K, flags=0x32)
    )
    inside = lint(reserve, row("mmap", base + 16 * K, 16 * K, flags=0x32))
    assert list(inside) == [("range-start", 64)]


def test_fixed_partly_over_a_reservation():
    found = lint(row("mmap", A, 64 * K), row("mmap", A + 48 * K, 64 * K, flags=0x32))
    assert list(found) == [("fixed-address", 64)]


def test_file_offset():
    found = lint(row("mmap", A, 64 * K, 1, 2, offset=16 * K, file=1))
    assert list(found) == [("file-offset", 64)]
    assert "/lib/lib.so" in found["file-offset", 64]["what"]
    assert not lint(row("mmap", A, 64 * K, 1, 2, offset=64 * K, file=1))


SEGMENTS = (
    row("mmap", A, 320 * K, 1, 2, file=1),
    row("mmap", A + 64 * K, 128 * K, 5, 2 | FIXED, offset=64 * K, file=1),
    row("mmap", A + 192 * K, 128 * K, 3, 2 | FIXED, offset=128 * K, file=1),
)


@pytest.mark.parametrize("starting", [False, True])
def test_segments_that_a_linker_put_apart(starting):
    assert not lint(*SEGMENTS, starting=starting)


@pytest.mark.parametrize("starting", [False, True])
def test_segments_within_a_page(starting):
    packed = row("mmap", A + 80 * K, 112 * K, 5, 2 | FIXED, offset=80 * K, file=1)
    found = lint(SEGMENTS[0], packed, starting=starting)
    assert list(found) == [("elf-packed", 64)]
    assert "max-page-size=65536" in found["elf-packed", 64]["effect"]
    same = row("mmap", A + 80 * K, 112 * K, 1, 2 | FIXED, offset=80 * K, file=1)
    assert not lint(SEGMENTS[0], same, starting=starting)


def test_segments_with_other_distances_in_the_file():
    shifted = row("mmap", A + 64 * K, 128 * K, 3, 2 | FIXED, offset=60 * K, file=1)
    found = lint(SEGMENTS[0], shifted)
    assert list(found) == [("elf-offset", 16), ("elf-offset", 64)]


def test_exec_maps_where_it_likes():
    """What exec maps is the kernel's own choice, not MAP_FIXED by the program."""
    assert not lint(row("mmap", A + 4 * K, 64 * K, flags=0x32), starting=True)


@pytest.mark.parametrize(("kind", "says"), [
    ("munmap", "unmaps up to 60K behind"),
    ("mprotect", "protection of up to 60K behind"),
    ("madvise", "applies to up to 60K behind"),
    ("mremap", "moves up to 60K behind"),
])  # fmt: skip
def test_ranges_for_part_of_a_mapping(kind, says):
    mapped = row("mmap", A, 256 * K)
    inner = lint(mapped, row(kind, A + 16 * K, 64 * K))
    assert list(inner) == [("range-start", 64)]
    end = lint(mapped, row(kind, A, 80 * K))
    assert list(end) == [("range-end", 64)]
    assert says in end["range-end", 64]["effect"]
    assert end["range-end", 64]["severity"] == "spills"
    assert end["range-end", 64]["bytes"] == 48 * K
    assert not lint(mapped, row(kind, A, 256 * K))


def test_a_mapping_that_ends_within_a_page_is_only_larger():
    """Its end is no spill: nothing else is there."""
    found = lint(row("mmap", A, 20 * K), row("munmap", A, 20 * K))
    assert list(found) == [("partial-page", 16), ("partial-page", 64)]
    assert [f["bytes"] for f in found.values()] == [12 * K, 44 * K]


def test_brk_steps():
    found = lint(row("brk", A), row("brk", A, 132 * K))
    assert list(found) == [("brk-step", 16), ("brk-step", 64)]
    assert found["brk-step", 64]["bytes"] == 60 * K
    assert not lint(row("brk", A), row("brk", A, 128 * K))


def test_times_and_processes_are_counted():
    checker, spaces = Lint(PAGE), Spaces(PAGE)
    for pid in (1, 2):
        spaces.apply(row("exec", pid=pid))
        for n in range(3):
            call = row("mmap", A + n * 256 * K + 4 * K, 64 * K, flags=0x32, pid=pid)
            checker.look(10 * pid + n, call, spaces.live[pid], File("", 0, 0))
            spaces.apply(call)
    fixed = [f for f in checker.result() if f["rule"] == "fixed-address"]
    assert [(f["row"], f["count"], f["processes"]) for f in fixed] == [(10, 6, 2), (10, 6, 2)]


def test_pages_that_the_trace_has_already_are_not_asked_about():
    call = row("mmap", A + 16 * K, 64 * K, flags=0x32)
    assert list(lint(call, page=16 * K)) == [("fixed-address", 64)]
    assert not lint(call, page=64 * K)
