# SPDX-License-Identifier: GPL-2.0-only
"""strace with a fault list: a real pair, against perf's own recording of the program, and broken ones."""

from pathlib import Path

import pytest
from virtmm.tools.trace.format import KINDS, TraceError
from virtmm.tools.trace.importers.source import Lines
from virtmm.tools.trace.importers.strace import LIMIT, Strace

DATA = Path(__file__).resolve().parent.parent / "data"
STRACE, FAULTS = DATA / "strace.txt", DATA / "strace-faults.txt"


@pytest.fixture
def trace(load):
    return load("strace", STRACE, faults=FAULTS)


def test_the_sample_is_a_whole_trace(trace, replay):
    problems = replay(trace.path)
    assert problems.pop("fault") == 182
    assert not +problems
    assert trace.metadata["command"] == "./demo"
    assert "(150 of 182 faults)" in trace.metadata["limits"][1]
    assert trace.metadata["limits"][-1] == LIMIT


def test_it_says_what_perf_says(trace, load):
    """Two runs of one program, recorded in two ways, have the same calls in the same order."""

    def calls(t):
        kinds = ("mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "fork", "exit")
        return [(KINDS[r[3]], r[5], r[7], r[8], r[9]) for r in t.of(*kinds)]

    other = load("perf", DATA / "perf.txt")
    assert calls(trace) == calls(other)
    mapped = [t.of("mmap") for t in (trace, other)]
    assert [trace.file(r) for r in mapped[0]] == [other.file(r) for r in mapped[1]]
    assert [r[4] for r in mapped[0]] == [r[4] for r in mapped[1]]  # no address randomisation


def test_the_tracer_is_no_part_of_it(trace):
    assert {r[1] for r in trace.rows} == {r[1] for r in trace.of("exec")} | {
        r[12] for r in trace.of("fork")
    }


def test_faults_are_needed(load):
    with pytest.raises(TraceError, match="strace knows no page faults; give those of the same run"):
        load("strace", STRACE)


def test_another_run_or_clock(load):
    with pytest.raises(
        TraceError, match="begins no program in it, in its time; make both in one run"
    ):
        load("strace", STRACE, faults=DATA / "perf.txt")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("PROT_READ", "PROT_MAGIC", "no number or name known: 'PROT_MAGIC'; trace with strace"),
        ("munmap(", "munmap(1, 2, ", "munmap with 4 arguments"),
        (") = 0", ") == 0", "not a call"),
    ],
)
def test_broken_lines(load, edited, old, new, says):
    path = edited("strace.txt", old, new)
    with pytest.raises(TraceError) as error:
        load("strace", path, faults=FAULTS)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{path}:")


def test_without_times_or_numbers(load, tmp_path):
    path = tmp_path / "s.txt"
    path.write_text('execve("./a", ["./a"], 0x7ffd /* 9 vars */) = 0\n')
    with pytest.raises(TraceError, match=r"s.txt:1: not a line of strace -f -ttt: .*; trace with"):
        load("strace", path, faults=FAULTS)


def calls(tmp_path, *lines):
    path = tmp_path / "s.txt"
    path.write_text("".join(f"7 100.00000{n} {line}\n" for n, line in enumerate(lines)))
    return [call for _, call in Strace(Lines(path)).calls()]


@pytest.mark.parametrize(
    ("line", "args"),
    [
        ("mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f00",
         (0, 8192, 3, 0x22, 0, 0)),
        ("mmap(0x1000, 4096, PROT_NONE, MAP_SHARED, 3</opt/a, b>, 0x2000) = 0x1000",
         (0x1000, 4096, 0, 1, 0, 0x2000)),
        ("mmap(NULL, 2097152, PROT_READ, MAP_PRIVATE|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0) = 0x1",
         (0, 2097152, 1, 2 | 0x40000 | 21 << 26, 0, 0)),
        ("mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|0x8000000 /* MAP_??? */, -1, 0) = 0x1",
         (0, 4096, 1, 2 | 0x8000000, 0, 0)),
        ("mremap(0x1000, 4096, 8192, MREMAP_MAYMOVE) = 0x1000", (0x1000, 4096, 8192, 1, 0)),
        ("madvise(0x1000, 4096, MADV_DONTNEED) = 0 <0.000012>", (0x1000, 4096, 4)),
        ("brk(NULL)       = 0x5000", (0,)),
    ],
)  # fmt: skip
def test_arguments(tmp_path, line, args):
    (call,) = calls(tmp_path, line)
    assert call.args == args
    assert call.over


def test_results_and_flags(tmp_path):
    failed, dead, clone, vfork = calls(
        tmp_path,
        "munmap(0x1, 4096) = -1 EINVAL (Invalid argument)",
        "exit_group(0) = ?",
        "clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD}, 88) = 9",
        "vfork() = 9",
    )
    assert (failed.result, dead.result) == (-1, None)
    assert clone.flags == vfork.flags == 0x4100


def test_calls_that_others_interrupt(tmp_path):
    begun, _, ended = calls(
        tmp_path,
        "munmap(0x1000, 4096 <unfinished ...>",
        "--- SIGCHLD {si_signo=SIGCHLD} ---\n8 100.000001 getpid() = 8",
        "<... munmap resumed>) = 0",
    )
    assert (begun.args, begun.entered, begun.over) == ((0x1000, 4096), True, False)
    assert (ended.name, ended.entered, ended.result) == ("munmap", False, 0)


def test_a_thread_that_executes_a_program(load, tmp_path):
    """Its execve ends under the number of the process; what is mapped then is exec's no more."""
    fault = "7ffff7ffe000"
    perf = [
        (1, "7/7", "PERF_RECORD_COMM exec: a:7/7"),
        (2, "7/7", "PERF_RECORD_MMAP2 7/7: [0x1000(0x1000) @ 0 fe:00 5 0]: r-xp /bin/a"),
        (3, "7/7", f"page-faults: {fault}"),
        (4, "7/7", "PERF_RECORD_FORK(7:8):(7:7)"),
        (12, "7/7", "PERF_RECORD_COMM exec: b:7/7"),
        (13, "7/7", "PERF_RECORD_MMAP2 7/7: [0x1000(0x1000) @ 0 fe:00 6 0]: r-xp /bin/b"),
        (22, "7/7", "PERF_RECORD_MMAP2 7/7: [0x8000(0x2000) @ 0x8000 00:00 0 0]: rw-p //anon"),
        (23, "7/7", "page-faults: 8000"),
        (40, "7/7", "PERF_RECORD_EXIT(7:7):(1:1)"),
    ]
    calls = [
        (0, 7, 'execve("/bin/a", ["a"], 0x7ffd /* 1 var */) = 0'),
        (5, 7, "brk(NULL) = 0x20000"),
        (10, 8, 'execve("/bin/b", ["b"], 0x7ffd /* 1 var */ <unfinished ...>'),
        (14, 7, "+++ superseded by execve in pid 8 +++"),
        (15, 7, "<... execve resumed>) = 0"),
        (
            21,
            7,
            "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x8000",
        ),
        (30, 7, "exit_group(0) = ?"),
    ]
    faults, strace = tmp_path / "f.txt", tmp_path / "s.txt"
    faults.write_text("".join(f"a {who} 100.0000{at:02}000: {text}\n" for at, who, text in perf))
    strace.write_text("".join(f"{tid} 100.0000{at:02} {text}\n" for at, tid, text in calls))
    trace = load("strace", strace, faults=faults)
    assert [trace.file(r) for r in trace.of("exec")] == ["/bin/a", "/bin/b"]
    # The program's own call says how long it is, not the merged mapping.
    assert [(r[4], r[5], r[9]) for r in trace.of("mmap")][-1] == (0x8000, 4096, 0x22)


def test_interrupted_calls_are_rows_all_the_same(load, edited, trace):
    """As with threads: the sample with one call told in two lines."""
    text = STRACE.read_text()
    line = next(x for x in text.splitlines() if " munmap(" in x)
    head, _, result = line.rpartition(")")
    who, when, _ = line.split(" ", 2)
    later = f"{who} {when} <... munmap resumed>){result}"
    path = edited("strace.txt", line, f"{head} <unfinished ...>\n{later}")
    again = load("strace", path, faults=FAULTS)
    assert [r[3:] for r in again.rows] == [r[3:] for r in trace.rows]
