# SPDX-License-Identifier: GPL-2.0-only
"""Texts of perf script: a real one becomes what a recording is, and broken ones are one line."""

import re
from pathlib import Path

import pytest
from virtmm.tools.trace.format import FAULT_KERNEL, TraceError
from virtmm.tools.trace.importers.perfscript import LIMIT_KERNEL, LIMIT_THP, LIMIT_USER

DATA = Path(__file__).resolve().parent.parent / "data"
PERF = DATA / "perf.txt"
HEAP_CALLS = ("mmap", "munmap", "mremap", "mprotect", "madvise", "brk")


def test_the_sample_is_a_whole_trace(load, replay):
    trace = load("perf", PERF)
    problems = replay(trace.path)
    assert problems.pop("fault") == 183
    assert not +problems
    assert [trace.count(k) for k in HEAP_CALLS] == [24, 3, 1, 5, 2, 3]
    assert [trace.file(r) for r in trace.of("exec")] == ["./demo"]
    assert trace.metadata["command"] == "./demo"
    assert trace.metadata["losses"] == {"events": 0}
    assert trace.metadata["limits"] == [LIMIT_THP]
    assert trace.metadata["processes"] == 2
    assert trace.metadata["source"] == ["perf.txt"]


def test_every_fault_line_is_a_row(load):
    text = PERF.read_text()
    faults = load("perf", PERF).of("fault")
    assert len(faults) == len(
        re.findall(r"exceptions:page_fault_(?:user|kernel): address=0x", text)
    )
    kernel = [r for r in faults if r[9] & FAULT_KERNEL]
    assert len(kernel) == text.count("page_fault_kernel")


def test_a_thread_and_a_child(load):
    trace = load("perf", PERF)
    (fork,) = trace.of("fork")
    root, child = fork[1], fork[12]
    threads = {r[2] for r in trace.of("fault", pid=root)}
    assert len(threads) == 2  # the thread's faults carry the process's pid
    assert [r[1] for r in trace.of("exit")] == [child, root]
    assert trace.of("fault", pid=child)


def test_default_output_gives_the_same_rows(load):
    """Without -F there is no pid, without --ns no nanoseconds."""
    exact, short = load("perf", PERF).rows, load("perf", DATA / "perf-default.txt").rows
    assert [r[1:] for r in exact] == [r[1:] for r in short]
    assert all(abs(a[0] - b[0]) <= 2000 for a, b in zip(exact, short, strict=True))


def test_the_software_event_has_its_access_guessed(load, tmp_path):
    """The same faults without error code: nearly all come out as they were."""
    text = re.sub(
        r"exceptions:page_fault_\w+: address=0x(\w+) .*", r"page-faults:     \1", PERF.read_text()
    )
    path = tmp_path / "software.txt"
    path.write_text(text)
    truth, guess = load("perf", PERF), load("perf", path)
    assert [(r[0], r[4]) for r in truth.of("fault")] == [(r[0], r[4]) for r in guess.of("fault")]
    wrong = sum(
        (t[8] & 2, t[9] & 1) != (g[8] & 2, g[9] & 1)
        for t, g in zip(truth.of("fault"), guess.of("fault"), strict=True)
    )
    assert wrong <= 0.05 * truth.count("fault")
    assert "of 183 faults" in guess.metadata["limits"][1]
    assert guess.metadata["limits"][2] == LIMIT_KERNEL
    path.write_text(text.replace("page-faults:", "page-faults:u:"))
    user = load("perf", path)
    assert user.metadata["limits"][2] == LIMIT_USER
    assert user.rows == guess.rows


def test_losses_are_counted(load, tmp_path):
    first, *rest = PERF.read_text().splitlines()
    lost = "            demo 14497/14497 14840.076: PERF_RECORD_LOST lost 12"
    time = re.search(r"\d+\.\d{9}", rest[5])[0]
    path = tmp_path / "lost.txt"
    path.write_text("\n".join([first, *rest[:5], lost.replace("14840.076", time), *rest[5:]]))
    assert load("perf", path).metadata["losses"] == {"events": 12}


def test_other_events_are_left_out(load, edited):
    path = edited("perf.txt", "sched:sched_process_exec: ", "sched:sched_switch: ")
    assert load("perf", path).count("exec") == 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("address=0x", "addr=0x", "page_fault_kernel without the fields it should have"),
        (": rw-p", ": rw", "PERF_RECORD_MMAP2 without the fields"),
        (
            " fe:00 ",
            " <a1b2> ",
            "a mapping without inode; record with perf record --no-buildid-mmap",
        ),
        ("PERF_RECORD_COMM exec", "PERF_RECORD_COMMA exec", "no program begins in it"),
        ("address=0x", "address=0x11110000", "a number of more than 64 bits; print it with"),
        ("clone_flags=", "flags=", "task_newtask without the fields"),
    ],
)
def test_broken_lines(load, edited, old, new, says):
    with pytest.raises(TraceError, match=re.escape(says)):
        load("perf", edited("perf.txt", old, new, 1 if "COMM" not in old else 9))


def test_the_line_is_named(load, tmp_path):
    lines = PERF.read_text().splitlines()
    lines[20] = "what is this"
    path = tmp_path / "broken.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(TraceError) as error:
        load("perf", path)
    assert str(error.value).startswith(
        f"{path}:21: not a line of perf script: 'what is this'; print"
    )
    assert not list(tmp_path.glob("*.parquet"))
    assert not list(tmp_path.glob(".*"))


def test_time_goes_back(load, tmp_path):
    lines = PERF.read_text().splitlines()
    lines[30], lines[90] = lines[90], lines[30]
    path = tmp_path / "broken.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(TraceError, match=r"broken.txt:\d+: the time goes back"):
        load("perf", path)


def test_missing_events(load, tmp_path):
    path = tmp_path / "part.txt"
    text = PERF.read_text()
    path.write_text("\n".join(x for x in text.splitlines() if "page_fault" not in x))
    with pytest.raises(TraceError, match="no page fault in it; record exceptions"):
        load("perf", path)
    path.write_text("\n".join(x for x in text.splitlines() if "syscalls:" not in x))
    with pytest.raises(TraceError, match="no call of mmap in it; record the tracepoints"):
        load("perf", path)


def test_two_kinds_of_faults(load, edited):
    path = edited(
        "perf.txt", "exceptions:page_fault_user: address=0x7ffff7ff", "page-faults: 7ffff7ff"
    )
    text = path.read_text()
    path.write_text(re.sub(r"(page-faults: \w+) .*", r"\1", text))
    with pytest.raises(TraceError, match="two kinds of page-fault events"):
        load("perf", path)


def test_a_software_fault_without_address(load, tmp_path):
    path = tmp_path / "p.txt"
    text = re.sub(r"exceptions:page_fault_\w+: .*", "page-faults: main+0x4", PERF.read_text())
    path.write_text(text)
    with pytest.raises(
        TraceError, match="page-faults without an address; record with perf record -d"
    ):
        load("perf", path)


def test_no_file(load, tmp_path):
    with pytest.raises(TraceError, match=r"nothing.txt: cannot read: No such file"):
        load("perf", tmp_path / "nothing.txt")
    with pytest.raises(TraceError, match="one text of perf script at a time"):
        load("perf", PERF, PERF)
