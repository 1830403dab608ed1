# SPDX-License-Identifier: GPL-2.0-only
"""Replays: what small traces cost, event by event."""

import json

import pytest
from virtmm.tools.replay.figures import (
    SIMPLIFIED_LARGER,
    SIMPLIFIED_RELAYOUT,
)
from virtmm.tools.replay.replay import Replay
from virtmm.tools.report.result import check_result
from virtmm.tools.trace import format as trace_format
from virtmm.tools.trace.format import File, TraceError, TraceReader

from virtmm import boot
from virtmm.kconfig import resolve
from virtmm.machine import Machine

from .events import (
    ANON,
    GROWSDOWN,
    POPULATE,
    PRIVATE,
    PROG,
    READ,
    RW,
    SHARED_ANON,
    STACK,
    VFORK,
    WRITE,
    A,
    K,
    call,
    exec_,
    exit_,
    fault,
    faults,
    fork,
    mmap,
)

# --- what it costs --------------------------------------------------------------------------------


def test_first_touch(write_trace, run):
    """16 pages: 16 faults with base pages, one with a folio of 64 KiB, whatever the base page."""
    path = write_trace(exec_(), mmap(A, 64 * K), *faults(A, 64 * K), exit_())
    result = run(path)
    assert (result["minflt"], result["folios"]) == (16, {"0": 16})
    assert result["memory"]["peak_anon"] == 64 * K
    large = run(path, "anonfolio_basic")
    assert (large["minflt"], large["folios"]) == (1, {"4": 1})
    assert run(path, "baseline_16k")["folios"] == {"0": 4}
    assert run(path, "baseline_64k")["folios"] == {"0": 1}
    assert run(path, "anonfolio_basic", fragments=["16k"])["folios"] == {"2": 1}


def test_peak_rss_is_read_in_batches(write_trace, run):
    """As ru_maxrss: up to 31 pages of each counter are not folded in yet."""
    path = write_trace(exec_(), mmap(A, 512 * K), *faults(A, 80 * 4 * K), exit_())
    assert run(path)["memory"]["peak_rss"] == 64 * 4 * K
    assert run(path, "baseline_64k")["memory"]["peak_rss"] == 0


def test_a_fault_is_an_access(write_trace, run):
    """What is mapped and allows the access costs nothing; a byte is as good as a page."""
    path = write_trace(
        exec_(), mmap(A, 8 * K), fault(A + 5), fault(A + 4000), fault(A + 5, READ), fault(A + 8191)
    )
    assert run(path)["minflt"] == 2


def test_the_zero_page_and_the_write_after(write_trace, run):
    path = write_trace(exec_(), mmap(A, 4 * K), fault(A, READ), fault(A, WRITE))
    result = run(path)
    assert result["minflt"] == 2
    assert (result["events"]["zero_page_fault"], result["events"]["wp_zero"]) == (1, {"0": 1})
    assert result["memory"]["anon"] == 4 * K


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k"])
def test_segv_counts_and_ends_nothing(write_trace, run, kernel):
    path = write_trace(
        exec_(),
        mmap(A, 128 * K, READ),
        fault(A, WRITE),
        fault(A - 1),
        fault(0),
        fault(1 << 63),
        mmap(A + 256 * K, 64 * K),
        fault(A + 256 * K),
    )
    result = run(path, kernel)
    assert result["segv"] == 4
    assert result["minflt"] == 1


def test_refused_calls_count(write_trace, run):
    """The trace says it worked; on the virtual kernel there is nothing to protect."""
    path = write_trace(
        exec_(),
        call("mprotect", A, 4 * K, prot=1),
        mmap(A, 4 * K),
        fault(A),
        call("mremap", A + 8 * K, 4 * K, addr2=A + 64 * K, len2=4 * K),
    )
    result = run(path)
    assert result["refused_calls"] == 2
    assert result["minflt"] == 1


@pytest.mark.parametrize("fast", "yn")
def test_a_file_that_no_machine_has_a_place_for(write_trace, run, fast):
    """Its size ends the replay in one line; an offset beyond is a call that is refused, its memory a segv."""
    huge = File("/var/lib/sparse", 9, 1 << 60)
    path = write_trace(exec_(), mmap(A, 4 * K, file=huge, flags=PRIVATE), exit_())
    with pytest.raises(
        TraceError, match=r"row 1: /var/lib/sparse, 1152921504606846976 bytes: .*leave"
    ):
        run(path, sets=[f"FAST_FAULT={fast}"])
    far = mmap(A, 4 * K, file=PROG, flags=PRIVATE, offset=1 << 60)
    result = run(write_trace(exec_(), far, fault(A, READ), exit_()), sets=[f"FAST_FAULT={fast}"])
    assert (result["refused_calls"], result["segv"]) == (1, 1)


@pytest.mark.parametrize("fast", "yn")
def test_more_processes_than_a_machine_has_records_for(write_trace, run, monkeypatch, fast):
    monkeypatch.setitem(boot._COUNTS, "nr_mms", 4)
    forks = [exec_(), mmap(A, 4 * K), *(fork(pid) for pid in (2, 3, 4)), fault(A, pid=4)]
    for events, row in ((forks, 4), ([exec_(pid) for pid in (1, 2, 3, 4)], 2)):
        path = write_trace(*events)
        with pytest.raises(TraceError, match=rf"row {row}: process \d: a table of the machine"):
            run(path, sets=[f"FAST_FAULT={fast}"])


def test_tlb_reach_is_of_every_program(write_trace, run):
    """What a program mapped before it started another counts, and what is mapped at the end."""
    path = write_trace(
        exec_(), mmap(A, 64 * K), fault(A), fault(A + 8 * K), exec_(), mmap(A, 64 * K), fault(A)
    )
    plain = {"bytes": 12 * K, "cont_bytes": 0, "plain": 3, "hpa": 3, "cont": 3, "best": 3}
    assert run(path)["tlb"]["data"] == plain
    large = {"bytes": 128 * K, "cont_bytes": 0, "plain": 32, "hpa": 8, "cont": 32, "best": 8}
    assert run(path, "anonfolio_basic")["tlb"]["data"] == large
    blocks = large | {"cont_bytes": 128 * K, "cont": 2, "best": 2}
    assert run(path, "contpte")["tlb"]["data"] == blocks


def test_calls_are_counted_as_events(write_trace, run):
    path = write_trace(
        exec_(),
        mmap(A, 64 * K),
        fault(A),
        mmap(A + 256 * K, 64 * K),
        call("mprotect", A, 64 * K, prot=READ),
        call("madvise", A, 64 * K, arg=4),
        call("mremap", A, 64 * K, addr2=A + 512 * K, len2=128 * K, flags=1),
        call("munmap", A + 512 * K, 128 * K),
        call("brk", 0x541000, 0),
        call("brk", 0x541000, 0x21000),
        fork(2),
        exit_(2),
    )
    for kernel in ("baseline_4k", "baseline_16k", "baseline_64k"):
        events = run(path, kernel)["events"]
        wanted = {"exec": 1, "mprotect": 1, "madvise": 1, "mremap": 1, "munmap": 1, "brk": 2}
        wanted |= {"fork": 1, "vfork": 0, "exit": 1}
        assert {name: events[name] for name in wanted} == wanted, kernel
        assert events["mmap"] == 1, kernel  # the first is exec's own


def test_what_exec_maps_is_no_call(write_trace, run):
    """Until the program's first fault in user mode; faults of exec's own writes are the kernel's."""
    path = write_trace(
        exec_(),
        mmap(0x400000, 64 * K, READ, PRIVATE, file=PROG),
        mmap(0x410000, 64 * K, RW, ANON),
        fault(0x410008, WRITE, flags=2),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN),
        fault(0x400000, READ),
        mmap(A, 64 * K),
        mmap(A + 128 * K, 64 * K, READ, PRIVATE, file=PROG),
    )
    events = run(path)["events"]
    assert (events["mmap"], events["mmap_file"]) == (1, 1)


def test_file_faults(write_trace, run):
    """Mapped once for all processes; fault-around maps its neighbours with it."""
    events = [mmap(A, 64 * K, READ, PRIVATE, file=PROG), *faults(A, 64 * K, READ)]
    path = write_trace(exec_(), *events)
    alone = run(path, knobs=["fault_around_bytes=4096"])
    assert (alone["minflt"], alone["folios"]) == (16, {})
    assert alone["memory"]["peak_page_cache"] == 64 * K
    assert run(path)["minflt"] == 1
    path = write_trace(exec_(), *events, fork(2), *faults(A, 64 * K, READ, pid=2), name="two")
    assert run(path)["memory"]["peak_page_cache"] == 64 * K


def test_offsets_in_a_file(write_trace, run):
    """Two halves of a file are not the same half twice, laid out anew or not."""
    path = write_trace(
        exec_(),
        mmap(A, 64 * K, READ, PRIVATE, file=PROG, offset=64 * K),
        *faults(A, 64 * K, READ),
        mmap(A + 256 * K, 64 * K, READ, PRIVATE, file=PROG),
        *faults(A + 256 * K, 64 * K, READ),
    )
    for kernel in ("baseline_4k", "baseline_16k", "baseline_64k"):
        assert run(path, kernel)["memory"]["peak_page_cache"] == 128 * K


@pytest.mark.parametrize(
    ("start", "length", "again"), [(4, 60, 0), (64, 32, 0), (0, 124, 1), (0, 128, 2)]
)
def test_dropped_memory_stays_inside_what_was_dropped(write_trace, run, start, length, again):
    """MADV_DONTNEED of a part of a larger page leaves the page; of all of it, it faults again."""
    path = write_trace(
        exec_(),
        mmap(A, 128 * K),
        *faults(A, 128 * K),
        call("madvise", A + start * K, length * K, arg=4),
        *faults(A, 128 * K),
    )
    assert run(path)["minflt"] == 32 + length // 4
    assert run(path, "baseline_64k")["minflt"] == 2 + again


def test_populated_pages_need_no_faults(write_trace, run):
    path = write_trace(exec_(), mmap(A, 64 * K, RW, ANON | POPULATE))
    assert run(path)["folios"] == {"0": 16}


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k"])
def test_the_stack_grows(write_trace, run, kernel):
    path = write_trace(
        exec_(), mmap(STACK, 132 * K, RW, ANON | GROWSDOWN), fault(STACK - 300 * K), fault(STACK)
    )
    result = run(path, kernel)
    assert (result["segv"], result["minflt"]) == (0, 3), "and exec's page of arguments"


TOP = STACK + 132 * K


@pytest.mark.parametrize("kernel", ["baseline_4k", "anonfolio_basic", "linux-6.12"])
def test_exec_fills_the_stack_above_its_first_fault(write_trace, run, kernel):
    """One page at a time, downwards: none of them large, and no large folio can take their place."""
    knobs = ["64kB=always"] if kernel == "linux-6.12" else []
    stack = mmap(STACK, 132 * K, RW, ANON | GROWSDOWN)
    first = fault(TOP - 20 * K - 8)
    result = run(write_trace(exec_(), stack, first, fault(TOP - 8)), kernel, knobs=knobs)
    assert (result["minflt"], result["folios"]) == (6, {"0": 6}), "five of exec, one of the program"
    assert result["vmstat"]["nr_anon_pages"] == 6


@pytest.mark.parametrize(("kernel", "pages"), [("baseline_4k", 34), ("baseline_64k", 3)])
def test_exec_fills_whole_larger_pages(write_trace, run, kernel, pages):
    stack = mmap(STACK, 136 * K, RW, ANON | GROWSDOWN)
    result = run(write_trace(exec_(), stack, fault(STACK + 8), fault(TOP)), kernel)
    assert (result["minflt"], result["segv"]) == (pages, 0)


@pytest.mark.parametrize("last", [fork(2), exit_()])
def test_a_stack_without_a_fault_has_its_topmost_page(write_trace, run, last):
    path = write_trace(exec_(), mmap(STACK, 132 * K, RW, ANON | GROWSDOWN), last)
    assert run(path)["minflt"] == 1


# --- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_16k"])
def test_fork_copies_on_write(write_trace, run, kernel):
    path = write_trace(
        exec_(),
        mmap(A, 64 * K),
        *faults(A, 64 * K),
        fork(2),
        fault(A, READ, pid=2),
        fault(A, WRITE, pid=2),
        exit_(2),
        fault(A, WRITE),
        exit_(),
    )
    result = run(path, kernel)
    pages = 64 * K // result["page_size"]
    assert result["minflt"] == pages + 2
    assert [(p["pid"], p["minflt"]) for p in result["processes"]] == [(2, 1), (1, pages + 1)]
    assert [p["command"] for p in result["processes"]] == ["prog", "prog"]
    assert result["memory"]["peak_anon"] == 64 * K + result["page_size"]
    assert result["memory"]["anon"] == 0


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k"])
def test_a_vfork_child_borrows_until_its_exec(write_trace, run, kernel):
    other = File("/bin/other", 12, 4 * K)
    path = write_trace(
        exec_(),
        mmap(A, 64 * K),
        fork(2, VFORK),
        mmap(A + 64 * K, 64 * K, pid=2),
        fault(A + 64 * K, pid=2),
        {"pid": 2, "kind": "exec", "file": other},
        fault(A, pid=2),  # a new address space: nothing there
        mmap(A, 64 * K, pid=2),
        fault(A, pid=2),
        fault(A + 64 * K, READ),  # mapped already, by the child
        fault(A),
        exit_(2),
        fork(3, VFORK),
        exit_(3),
        fault(A),
        exit_(),
    )
    result = run(path, kernel)
    assert result["segv"] == 1
    assert [(p["pid"], p["command"], p["minflt"]) for p in result["processes"]] == [
        (2, "other", 2),
        (3, "prog", 0),
        (1, "prog", 1),
    ]
    assert (result["events"]["vfork"], result["events"]["fork"]) == (2, 0)
    assert result["memory"]["anon"] == 0


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k"])
def test_exec_leaves_nothing(write_trace, run, kernel):
    path = write_trace(exec_(), mmap(A, 64 * K), fault(A), exec_(), fault(A))
    result = run(path, kernel)
    assert (result["segv"], result["memory"]["anon"]) == (1, 0)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([exec_(), fault(A, pid=9)], "row 1: process 9 was never started"),
        ([mmap(A, 4 * K)], "row 0: process 1 was never started"),
        ([exec_(), exit_(), fault(A)], "row 2: process 1 was never started"),
        ([exec_(), fork(2), fork(2)], "row 2: process 2 exists already"),
        ([exec_(), fork(1)], "row 1: process 1 exists already"),
    ],
)
@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k"])
def test_a_trace_that_contradicts_itself(write_trace, run, kernel, events, message):
    path = write_trace(*events)
    with pytest.raises(TraceError) as caught:
        run(path, kernel)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_progress_ends_at_the_number_of_events(write_trace, run):
    path = write_trace(exec_(), mmap(A, 64 * K), *faults(A, 64 * K))
    seen = []
    run(path, progress=seen.append)
    assert seen == [18]


# --- memory that runs out -------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["baseline_4k", "anonfolio_basic"])
def test_out_of_memory_is_a_result(write_trace, run, kernel):
    path = write_trace(exec_(), mmap(A, 64 << 20), fork(2), *faults(A, 64 << 20, pid=2))
    result = run(path, kernel, ["MEMORY_MB=16"])
    oom = result["oom"]
    assert (oom["pid"], oom["command"]) == (2, "prog")
    assert 14 << 20 < oom["held"] <= 16 << 20
    assert (oom["event"] - 3) * 4 * K == oom["held"]  # every page before got memory
    check_result(result, "oom")


def test_out_of_memory_in_a_call(write_trace, run):
    path = write_trace(exec_(), mmap(A, 64 << 20), call("madvise", A, 64 << 20, arg=23))
    assert run(path, sets=["MEMORY_MB=16"])["oom"]["event"] == 2


# --- results --------------------------------------------------------------------------------------

FLAVOURS = {"C": [], "Python": ["C_RANGES=n"], "debug": ["DEBUG_VM=y"]}


def some_of_everything(write_trace):
    return write_trace(
        exec_(),
        mmap(0x400000, 64 * K, READ, PRIVATE, file=PROG),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN),
        fault(STACK + 100 * K),
        call("brk", 0x541000, 0),
        call("brk", 0x541000, 0x21000),
        *faults(0x541000, 0x21000),
        mmap(A, 256 * K),
        *faults(A, 200 * K),
        call("mprotect", A, 20 * K, prot=READ),
        fork(2),
        *faults(A + 20 * K, 100 * K, pid=2),
        call("madvise", A + 44 * K, 60 * K, arg=4),
        *faults(A + 44 * K, 60 * K, READ),
        call("mremap", A + 60 * K, 100 * K, addr2=A + 1024 * K, len2=120 * K, flags=1),
        *faults(A + 1024 * K, 120 * K),
        call("munmap", A + 12 * K, 40 * K, pid=2),
        mmap(A + 512 * K, 64 * K, RW, SHARED_ANON),
        fork(3, VFORK),
        fault(A + 512 * K, pid=3),
        {"pid": 3, "kind": "exec", "file": PROG},
        exit_(3),
        fault(A + 512 * K),
        exit_(2),
    )


@pytest.mark.parametrize(
    "kernel", ["baseline_4k", "baseline_16k", "baseline_64k", "anonfolio_basic"]
)
def test_every_flavour_gives_the_same_figures(write_trace, run, kernel):
    path = some_of_everything(write_trace)
    figures = {}
    for name, sets in FLAVOURS.items():
        result = run(path, kernel, ["MEMORY_MB=1024", *sets])
        assert (result["segv"], result["refused_calls"]) == (0, 0)
        own = ("config_hash", "core_hash")
        figures[name] = {k: v for k, v in result.items() if k not in own}
    assert figures["C"] == figures["Python"] == figures["debug"]


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_64k", "anonfolio_basic"])
def test_two_runs_give_the_same_bytes(write_trace, run, kernel):
    path = some_of_everything(write_trace)
    first, second = (json.dumps(run(path, kernel)) for _ in range(2))
    assert first == second
    read = check_result(json.loads(first), "first")
    assert (read.kernel, read.trace, read.oom) == (kernel, "t", None)
    assert sum(p["minflt"] for p in read.raw["processes"]) == read.minflt


def test_larger_pages_than_the_machine_replay_as_they_are(write_trace, run):
    path = write_trace(
        exec_(),
        mmap(A, 128 * K),
        fault(A),
        fault(A + 64 * K),
        fault(A + 64 * K + 4096),
        page_size=65536,
    )
    result = run(path)
    assert result["minflt"] == 3
    assert SIMPLIFIED_LARGER in result["simplified"]
    assert SIMPLIFIED_RELAYOUT not in result["simplified"]
    same = run(path, "baseline_64k")
    assert same["minflt"] == 2
    assert not {SIMPLIFIED_LARGER, SIMPLIFIED_RELAYOUT} & set(same["simplified"])


@pytest.mark.parametrize("kernel", ["baseline_4k", "baseline_16k", "exefolio", "linux-7.3"])
def test_together_or_one_by_one_is_the_same(write_trace, kernel, monkeypatch):
    """
    Faults in C or in Python, rows in any batches: stacks that grow, processes that share or copy an
    address space, come again under a number of before, fault before their first own call, and where
    there is nothing, or something of another.
    """
    lib = File("/usr/lib/lib.so", 12, 256 * K)
    end = STACK + 132 * K
    path = write_trace(
        exec_(),
        mmap(0x555555554000, 64 * K, READ | 4, 2, file=PROG),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN),
        fault(end - 64, flags=2),
        *faults(0x555555554000, 32 * K, READ),
        fault(end - 24 * K),
        mmap(A, 100 * K, READ | 4, 2, file=lib, offset=8 * K),
        mmap(A + 100 * K, 64 * K),
        *faults(A, 164 * K, READ),
        *faults(A + 100 * K, 64 * K),
        fault(A + 500 * K),
        *(fault(STACK - n * 4 * K) for n in range(1, 40)),
        fork(2, VFORK),
        *faults(A + 100 * K, 16 * K, pid=2),
        call("mprotect", A + 120 * K, 8 * K, pid=2, prot=READ),
        *faults(A + 100 * K, 64 * K),
        {"pid": 2, "kind": "exec", "file": PROG},
        mmap(A, 64 * K, pid=2),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN, pid=2),
        *faults(A, 64 * K, pid=2),
        *faults(A + 100 * K, 64 * K),
        fork(3),
        *(f for n in range(16) for f in (fault(A + n * 4 * K, pid=2), fault(A + n * 8 * K, pid=3))),
        call("munmap", A + 100 * K, 32 * K, pid=3),
        *(f for n in range(8) for f in (fault(A + (100 + 4 * n) * K), fault(A + (100 + 4 * n) * K, pid=3))),
        exit_(2),
        fork(2, pid=3),
        *faults(A + 64 * K, 100 * K, pid=2),
        fault(STACK - 400 * K, pid=2),
        exit_(3),
        exit_(2),
        *faults(A + 132 * K, 32 * K),
    )  # fmt: skip
    seen = []
    for fast, rows in (("y", 65536), ("n", 65536), ("y", 7), ("n", 1)):
        monkeypatch.setattr(trace_format, "BATCH_ROWS", rows)
        config = resolve("arm64", kernel, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"])
        with TraceReader(path) as reader, Machine(config) as machine:
            run = Replay(machine, reader)
            run.run()
            seen.append((run.segv, machine.digest(), machine.processes(), machine.work()))
    assert seen[0][0] > 20
    assert seen == [seen[0]] * 4


@pytest.mark.parametrize("kernel", ["baseline_4k", "anonfolio_basic", "contpte"])
def test_calls_in_c_change_nothing(write_trace, kernel, monkeypatch):
    """Calls of every kind, that succeed and that fail, between faults of two processes, in any batches."""
    lib = File("/usr/lib/lib.so", 12, 256 * K)
    heap = 0x400000
    path = write_trace(
        exec_(),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN),
        fault(STACK),
        mmap(A, 100 * K),
        mmap(A + 100 * K, 60 * K),  # as one with it
        mmap(A + 160 * K, 64 * K, READ | 4, 2, file=lib),
        fault(A + 160 * K, READ),
        mmap(A + 224 * K, 64 * K, RW, 2, file=lib, offset=8 * K),
        mmap(A + 288 * K, 64 * K, RW, 1, file=lib, offset=512 * K),  # behind its end
        mmap(A + 352 * K, 32 * K, RW, ANON | 1),
        *faults(A, 384 * K),
        call("brk", heap, 100 * K),
        *faults(heap, 100 * K),
        call("brk", heap, 30 * K + 5),
        call("brk", heap, 0),
        call("brk", heap, 9 * K),
        fork(2),
        mmap(A + 64 * K, 32 * K, pid=2),  # in the place of what is there
        *faults(A + 60 * K, 40 * K, pid=2),
        mmap(A + 400 * K, 64 * K, RW, ANON | 0x8000, pid=2),  # MAP_POPULATE
        mmap(A + 464 * K, 64 * K, RW, ANON | 0x2000),  # MAP_LOCKED
        call("mprotect", A + 464 * K, 16 * K, prot=READ),
        call("mprotect", A + 464 * K, 16 * K, prot=RW),
        mmap(A + 528 * K, 16 * K, 0, ANON | 0x4000),  # MAP_NORESERVE
        call("mprotect", A + 528 * K, 8 * K, prot=RW),
        call("mprotect", A + 20 * K, 200 * K, pid=2, prot=READ),
        call("mprotect", A + 900 * K, 8 * K, prot=READ),  # nothing is there
        *faults(A, 100 * K, pid=2),
        call("munmap", A + 40 * K, 280 * K),
        call("munmap", A + 40 * K, 8 * K),
        call("brk", A + 900 * K, 64 * K, pid=2),
        call("brk", A - 32 * K, 64 * K, pid=2),  # into something
        *faults(A, 400 * K),
        exit_(2),
        *faults(A + 320 * K, 64 * K),
    )  # fmt: skip
    seen = []
    for fast, rows in (("y", 65536), ("n", 65536), ("y", 5), ("n", 1)):
        monkeypatch.setattr(trace_format, "BATCH_ROWS", rows)
        config = resolve("arm64", kernel, sets=["MEMORY_MB=64", f"FAST_FAULT={fast}"])
        with TraceReader(path) as reader, Machine(config) as machine:
            run = Replay(machine, reader)
            run.run()
            seen.append((run.segv, run.refused, machine.digest(), machine.events(), machine.work()))
    assert seen[0][1] > 0
    assert seen == [seen[0]] * 4


def test_python_makes_only_the_calls_that_c_cannot(write_trace, monkeypatch):
    made = []
    for name in ("mmap", "munmap", "mprotect", "brk"):
        real = getattr(Machine, name)

        def spy(self, pid, address, *args, real=real, name=name, **options):
            made.append((name, address))
            return real(self, pid, address, *args, **options)

        monkeypatch.setattr(Machine, name, spy)
    path = write_trace(
        exec_(),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN),
        fault(STACK + 128 * K),
        mmap(A, 64 * K),
        *faults(A, 64 * K),
        call("mprotect", A, 8 * K, prot=READ),
        call("munmap", A + 16 * K, 8 * K),
        call("brk", 0x400000, 8 * K),
        mmap(A + 128 * K, 64 * K, READ, 2, file=PROG),  # not open yet
        mmap(A + 256 * K, 64 * K, READ, 2, file=PROG),
    )
    with TraceReader(path) as reader, Machine(resolve("arm64", "baseline_4k")) as machine:
        Replay(machine, reader).run()
        events = machine.events()
    assert [at for name, at in made if at < STACK] == [A + 128 * K]
    counts = {"mmap": 1, "mmap_file": 2, "munmap": 1, "mprotect": 1, "brk": 1}
    assert counts.items() <= events.items(), "those of C too"


def test_memory_tags_of_a_recording(write_trace):
    """PROT_MTE (0x20) of mmap and of mprotect, with addresses as recorded and laid out anew."""
    path = write_trace(
        exec_(),
        mmap(A, 64 * K, RW | 0x20),
        *faults(A, 64 * K),
        mmap(A + 128 * K, 64 * K),
        call("mprotect", A + 128 * K, 64 * K, prot=RW | 0x20),
        *faults(A + 128 * K, 64 * K),
    )
    for kernel, pages in (("baseline_4k", 32), ("baseline_64k", 2)):
        with TraceReader(path) as reader, Machine(resolve("arm64", kernel)) as machine:
            Replay(machine, reader).run()
            assert machine.work()["tag_clear"] == pages
