# SPDX-License-Identifier: GPL-2.0-only
"""Executable files where large folios can be mapped by contiguous entries; everything else where it was."""

from pathlib import Path

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD
from virtmm.tools.replay.executables import executables
from virtmm.tools.replay.figures import SIMPLIFIED_EXECUTABLES, SIMPLIFIED_RELAYOUT
from virtmm.tools.replay.relayout import AddressSpace
from virtmm.tools.replay.replay import Replay
from virtmm.tools.trace.format import File, TraceReader

from virtmm.kconfig import resolve
from virtmm.machine import Machine

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
R, K64 = 4096, 65536
TOP = 1 << 47
LIB, PIE = 0x7FFFF7DD5000, 0x555555554000
READ, RW, RX = 1, 3, 5


def space_of(page=R):
    return AddressSpace(page, TOP, R, exec_align=K64)


def pages(*spans):
    return [(start, start + nr * R) for start, nr in spans]


def test_a_library_goes_up_and_takes_its_segments_along():
    """As ld.so maps it: all of it, then segments over it; data at another distance from its offset, bss."""
    space = space_of()
    space.mmap(PIE, R, 0, READ, part_of=9)  # the program
    up = -LIB % K64
    assert space.mmap(LIB, 100 * R, 0, READ, part_of=1) == (LIB + up, 100 * R, [])
    for at, offset, prot, part in (
        (10, 10, RX, 1),
        (60, 60, READ, 1),
        (80, 79, RW, 1),
        (90, 0, RW, 0),
    ):
        start = LIB + at * R
        assert space.mmap(start, 10 * R, offset * R, prot, part_of=part) == (start + up, 10 * R, [])
    assert space.address(LIB + 95 * R + 7) == LIB + up + 95 * R + 7
    assert (space.address(LIB + 10 * R) - 10 * R) % K64 == 0


def test_the_program_goes_down_and_its_heap_stays():
    space = space_of()
    down = PIE % K64
    assert space.mmap(PIE, 10 * R, 0, READ, part_of=1)[0] == PIE - down
    assert space.mmap(PIE + 10 * R, 30 * R, 10 * R, RX, part_of=1)[0] == PIE - down + 10 * R
    assert space.mmap(PIE + 40 * R, 4 * R, 39 * R, RW, part_of=1)[0] == PIE - down + 40 * R
    assert space.mmap(PIE + 44 * R, 2 * R, 0, RW, part_of=1)[0] == PIE - down + 44 * R  # bss
    heap = PIE + 46 * R
    assert space.brk(heap, 0) + space.brk(heap, 3 * R) == [
        ("brk", (heap, heap)),
        ("brk", (heap, heap + 3 * R)),
    ]


def test_bss_over_a_segment_is_part_of_the_object():
    """What is mapped behind it is not, and stays."""
    space = space_of()
    space.mmap(PIE, 10 * R, 0, RX, part_of=1)
    assert space.mmap(PIE + 8 * R, 2 * R, 0, RW)[0] == PIE - PIE % K64 + 8 * R
    assert space.mmap(PIE + 10 * R, 4 * R, 0, RW)[0] == PIE + 10 * R


def test_what_is_congruent_stays():
    space = space_of()
    assert space.mmap(0x400000, 3 * R, 0, READ, part_of=1)[0] == 0x400000
    assert space.mmap(0x403000, 99 * R, 3 * R, RX, part_of=1)[0] == 0x403000


def test_neighbours_that_are_no_part_of_it_stay():
    """Anonymous memory and other files below and above, mapped before and after."""
    space = space_of()
    space.mmap(PIE, R, 0, READ, part_of=9)
    above, below = LIB + 100 * R, LIB - 8 * R
    assert space.mmap(above, 2 * R, 0, RW)[0] == above
    low, size, _ = space.mmap(LIB, 100 * R, 0, READ, part_of=1)
    assert low >= above + 2 * R  # no place below that is congruent
    assert low % K64 == 0
    assert space.mmap(below, 8 * R, 0, RW)[0] == below
    assert space.mmap(low + size, 4 * R, 0, READ)[0] == low + size
    assert space.address(below + 5) == below + 5


def test_where_nothing_fits_it_stays_near():
    space = AddressSpace(R, 64 * R, R, exec_align=K64)
    space.mmap(R, R, 0, READ, part_of=9)
    space.mmap(17 * R, 47 * R, 0, RW)
    assert space.mmap(3 * R, 4 * R, 0, RX, part_of=1)[0] == 3 * R


def test_larger_pages_and_large_folios_together():
    """A segment that a larger page moves away is congruent too where it goes."""
    space = space_of(4 * R)
    space.mmap(PIE, R, 0, READ, part_of=9)
    space.mmap(LIB, 7 * R, 0, READ, part_of=1)
    space.mmap(LIB + 7 * R, 50 * R, 7 * R, RX, part_of=1)
    assert (space.address(LIB) - 0) % K64 == 0
    assert (space.address(LIB + 7 * R) - 7 * R) % K64 == 0


def test_a_child_has_the_rule_too():
    space = space_of()
    space.mmap(PIE, R, 0, READ, part_of=9)
    assert space.copy().mmap(LIB, R, 0, RX, part_of=1)[0] % K64 == 0


# --- replays --------------------------------------------------------------------------------------

PROG, DATA = File("/usr/bin/prog", 11, 64 * R), File("/etc/data", 12, 64 * R)
SO, VDSO = File("/usr/lib/lib.so", 13, 64 * R), File("[vdso]", 0, 0)


def mmap(addr, nr, prot=RW, file=None, offset=0, flags=0x22):
    flags = 2 if file else flags
    more = {"prot": prot, "flags": flags, "file": file, "offset": offset * R}
    return {"pid": 1, "kind": "mmap", "addr": addr, "len": nr * R, **more}


def reads(addr, nr):
    return [{"pid": 1, "kind": "fault", "addr": addr + i * R, "prot": 1} for i in range(nr)]


EVENTS = [
    {"pid": 1, "kind": "exec", "file": PROG},
    mmap(0x7FFFFFFDE000, 33, flags=0x20132),
    mmap(PIE, 16, READ, PROG),
    mmap(PIE + 16 * R, 32, RX, PROG, 16),
    mmap(PIE + 48 * R, 4, RW, PROG, 47),
    mmap(PIE + 52 * R, 4, RW),  # bss, by the kernel
    mmap(LIB + 96 * R, 2, RX, VDSO),
    {"pid": 1, "kind": "brk", "addr": PIE + 56 * R, "len": 0},
    *reads(PIE + 16 * R, 32),
    {"pid": 1, "kind": "fault", "addr": PIE + 53 * R, "prot": 2},
    mmap(LIB, 64, READ, SO),
    mmap(LIB + 16 * R, 32, RX, SO, 16),
    *reads(LIB + 16 * R, 32),
    mmap(LIB - 16 * R, 16, READ, DATA),
    *reads(LIB - 16 * R, 1),
    {"pid": 1, "kind": "brk", "addr": PIE + 56 * R, "len": 8 * R},
    {"pid": 1, "kind": "fault", "addr": PIE + 57 * R, "prot": 2},
]


def test_which_files_are_executable(write_trace):
    with TraceReader(write_trace(*EVENTS)) as reader:
        assert executables(reader) == {PROG, SO}


@pytest.mark.parametrize("sets, moved", [((), True), (("EXEC_FOLIO=n",), False)])
def test_text_of_a_replay_is_contiguous(write_trace, sets, moved):
    config = resolve("arm64", "exefolio", sets=[*sets, "DEBUG_VM=y"])
    with TraceReader(write_trace(*EVENTS)) as reader, Machine(config) as machine:
        run = Replay(machine, reader)
        run.run()
        assert (run.segv, run.refused) == (0, 0)
        found = list(machine.mapped_pages(1, 0, machine.task_size))
        assert sum(p.cont for p in found) == (64 if moved else 0)
        starts = {p.address for p in found}
        assert LIB - 16 * R in starts  # data that nobody executes
        assert PIE + 57 * R in starts  # the heap
        bss = PIE + 53 * R - (PIE % K64 if moved else 0)
        assert bss in starts
        flags = {machine.k.page[p.folio * PAGE_RECORD] & layout.PG_anon for p in found if p.cont}
        assert flags in ({0}, set())


def test_the_result_says_so(write_trace, run):
    path = write_trace(*EVENTS)
    assert SIMPLIFIED_EXECUTABLES in run(path, "exefolio")["simplified"]
    assert SIMPLIFIED_RELAYOUT not in run(path, "exefolio")["simplified"]
    assert SIMPLIFIED_EXECUTABLES not in run(path, "contpte")["simplified"]


@pytest.mark.parametrize("name", ["gcc", "python"])
def test_samples_keep_their_anonymous_memory(run, name):
    """Text moves, and the faults of the rest hardly change."""
    path = SAMPLES / f"{name}.parquet"
    moved, plain = run(path, "exefolio"), run(path, "contpte")
    assert (moved["segv"], moved["refused_calls"], moved["oom"]) == (0, 0, None)
    assert moved["minflt"] == pytest.approx(plain["minflt"], rel=0.005)
    folios = [sum(r["events"]["anon_fault"].values()) for r in (moved, plain)]
    assert folios[0] == pytest.approx(folios[1], rel=0.005)
