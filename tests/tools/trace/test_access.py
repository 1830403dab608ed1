# SPDX-License-Identifier: GPL-2.0-only
"""What a fault was, a read or a write, from what the process did with the page."""

from __future__ import annotations

from typing import Any

import pytest
from virtmm.tools.trace.access import Accesses
from virtmm.tools.trace.format import KINDS

PAGE = 4096
READ, WRITE, EXEC = 1, 2, 4
AREA = ("mmap", 0x10000, 0x10000, 3)


def accesses(*events: tuple[Any, ...], pid: int = 7) -> list[int]:
    """
    The accesses of the faults among these events: kind, address, length, protection or access.

    Others by name: flags, arg, pid, addr2, len2.
    """
    rows = []
    for kind, addr, length, prot, *more in [("exec", 0, 0, 0), *events]:
        extra = more[0] if more else {}
        rows.append(
            (len(rows), extra.get("pid", pid), 0, KINDS.index(kind), addr, length,
             extra.get("addr2", 0), extra.get("len2", 0), prot, extra.get("flags", 0), 0, None,
             extra.get("arg", 0))
        )  # fmt: skip
    known = Accesses(PAGE, fetches_told=True)
    for row in rows:
        known.note(row)
    settled = [known.settle(row) for row in rows]
    assert [row[:8] + row[10:] for row in settled] == [row[:8] + row[10:] for row in rows]
    return [row[8] for row in settled if KINDS[row[3]] == "fault"]


def fault(addr: int, access: int = 0, **more: int) -> tuple[Any, ...]:
    return ("fault", addr, 0, access, more)


def test_by_protection() -> None:
    assert accesses(
        AREA, ("mmap", 0x30000, 0x1000, 1), ("mmap", 0x40000, 0x1000, 5), fault(0x10008),
        fault(0x30000), fault(0x40010, EXEC), fault(0x40020), fault(0x90000),
    ) == [WRITE, READ, EXEC, READ, READ]  # fmt: skip
    assert accesses(
        AREA, ("mprotect", 0x11000, 0x1000, 1), fault(0x11000), ("munmap", 0x12000, 0x1000, 0),
        fault(0x12000), fault(0x13000),
    ) == [READ, READ, WRITE]  # fmt: skip


def test_a_second_fault_tells_of_the_first() -> None:
    assert accesses(AREA, fault(0x10008), fault(0x11000), fault(0x10010)) == [READ, WRITE, WRITE]
    assert accesses(AREA, fault(0x10008), fault(0x10008), fault(0x10008)) == [READ, WRITE, WRITE]


@pytest.mark.parametrize(
    "between",
    [
        ("madvise", 0x10000, 0x1000, 0, {"arg": 4}),
        ("munmap", 0x10000, 0x10000, 0),
        AREA,
        ("mprotect", 0x10000, 0x1000, 3),
        ("mremap", 0x20000, 0x1000, 0, {"addr2": 0x10000, "len2": 0x1000}),
        ("fork", 0, 0, 0, {"arg": 8, "flags": 0}),
        ("exec", 0, 0, 0),
    ],
)
def test_unless_something_happened_to_the_page(between: tuple[Any, ...]) -> None:
    again = [AREA] if between[0] in ("munmap", "exec") else []
    assert accesses(AREA, fault(0x10000), between, *again, fault(0x10000)) == [WRITE, WRITE]


@pytest.mark.parametrize("between", [("madvise", 0x10000, 0x1000, 0, {"arg": 3}),
                                     ("madvise", 0x11000, 0x1000, 0, {"arg": 4}),
                                     ("munmap", 0x11000, 0x1000, 0)])  # fmt: skip
def test_what_leaves_the_page_alone(between: tuple[Any, ...]) -> None:
    assert accesses(AREA, fault(0x10000), between, fault(0x10000)) == [READ, WRITE]


def test_processes() -> None:
    borrowed = ("fork", 0, 0, 0, {"arg": 8, "flags": 0x100})
    assert accesses(AREA, fault(0x10000), borrowed, fault(0x10000, pid=8)) == [READ, WRITE]
    copied = ("fork", 0, 0, 0, {"arg": 8, "flags": 0})
    gone = ("exit", 0, 0, 0, {"pid": 8})
    assert accesses(
        AREA, copied, fault(0x10000, pid=8), fault(0x10000), gone, fault(0x10000),
        fault(0x10000, pid=55),
    ) == [WRITE, READ, WRITE, WRITE]  # fmt: skip


def test_heap_and_stack() -> None:
    stack = ("mmap", 0x50000, 0x1000, 3, {"flags": 0x100})
    assert accesses(
        ("brk", 0x20000, 0, 0), ("brk", 0x20000, 0x1800, 0), stack, fault(0x21800), fault(0x4F000),
        ("brk", 0x20000, 0x800, 0), ("brk", 0x20000, 0x1800, 0), fault(0x21800),
        ("mremap", 0x20000, 0x1000, 0, {"addr2": 0x70000, "len2": 0x2000}), fault(0x71000),
        fault(0x20000),
    ) == [WRITE, WRITE, WRITE, WRITE, READ]  # fmt: skip
