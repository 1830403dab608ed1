# SPDX-License-Identifier: GPL-2.0-only
"""perf.data: formats of tracepoints, order of records, losses, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from virtmm.tools.trace.format import TraceError
from virtmm.tools.trace.perfdata import (
    RECORD_EXIT,
    RECORD_LOST,
    RECORD_LOST_SAMPLES,
    RECORD_SAMPLE,
    PerfData,
    data_loc,
    parse_format,
)

# From /sys/kernel/tracing/events of Linux 6.18.
PAGE_FAULT = """\
name: page_fault_user
ID: 190
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long address;\toffset:8;\tsize:8;\tsigned:0;
\tfield:unsigned long ip;\toffset:16;\tsize:8;\tsigned:0;
\tfield:unsigned long error_code;\toffset:24;\tsize:8;\tsigned:0;

print fmt: "address=%ps ip=%ps error_code=0x%lx", (void *)REC->address, (void *)REC->ip, 0
"""
NEWTASK = """\
name: task_newtask
ID: 205
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:pid_t pid;\toffset:8;\tsize:4;\tsigned:1;
\tfield:char comm[16];\toffset:12;\tsize:16;\tsigned:0;
\tfield:unsigned long clone_flags;\toffset:32;\tsize:8;\tsigned:0;
\tfield:short oom_score_adj;\toffset:40;\tsize:2;\tsigned:1;
"""
EXEC = """\
name: sched_process_exec
ID: 365
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;
\tfield:pid_t pid;\toffset:12;\tsize:4;\tsigned:1;
"""


def test_formats() -> None:
    event = parse_format("exceptions", PAGE_FAULT)
    assert (event.name, event.id) == ("exceptions:page_fault_user", 190)
    assert event.fields["common_pid"] == (4, 4, True)
    data = struct.pack("<8x3Q", 0x7FFF0123, 5, 6)
    assert event.reader("address", "error_code")(data) == (0x7FFF0123, 6)
    event = parse_format("task", NEWTASK)
    assert event.fields["comm"] == (12, 16, False)
    assert event.reader("pid", "clone_flags")(struct.pack("<8xi20xQ", -3, 9)) == (-3, 9)


def test_data_loc() -> None:
    field = parse_format("sched", EXEC).fields["filename"]
    text = b"/bin/\xff\0"
    data = struct.pack("<8xIii", 20 | len(text) << 16, 1, 2) + text + b"junk"
    assert data_loc(data, field) == "/bin/�"


IP, TID, TIME, ADDR, ID, CPU, PERIOD, RAW = (1 << n for n in (0, 1, 2, 3, 6, 7, 8, 10))
SAMPLE_TYPE = IP | TID | TIME | ADDR | ID | CPU | PERIOD | RAW
EVENT_ID = 77
ROUND = struct.pack("<IHH", 68, 0, 8)


def sample(time: int, address: int, event: int = EVENT_ID) -> bytes:
    raw = struct.pack("<8x3Q", address, 0, 6) + bytes(4)
    body = struct.pack("<QiiQQQQQI", 1, 7, 8, time, 0, event, 0, 1, len(raw)) + raw
    return struct.pack("<IHH", RECORD_SAMPLE, 0, 8 + len(body)) + body


def other(kind: int, time: int, body: bytes) -> bytes:
    body += struct.pack("<iiQQQ", 7, 8, time, EVENT_ID, 0)
    return struct.pack("<IHH", kind, 0, 8 + len(body)) + body


def perf_data(path: Path, records: bytes) -> Path:
    """A perf.data file with one tracepoint and these records."""
    attr = struct.pack("<IIQQQ", 2, 128, 190, 1, SAMPLE_TYPE).ljust(128, b"\0")
    attrs_at = 104 + 8
    start = attrs_at + len(attr) + 16
    header = b"PERFILE2" + struct.pack("<6Q", 104, 144, attrs_at, 144, start, len(records))
    header += bytes(16) + struct.pack("<4Q", 1 << 1, 0, 0, 0)
    text = PAGE_FAULT.encode()
    tracing = b"\x17\x08\x44tracing0.6\0\0\x08" + struct.pack("<I", 4096)
    tracing += b"header_page\0" + struct.pack("<Q", 2) + b"xx"
    tracing += b"header_event\0" + struct.pack("<Q", 1) + b"y"
    tracing += struct.pack("<I", 1) + struct.pack("<Q", 3) + b"abc"
    tracing += struct.pack("<I", 1) + b"exceptions\0" + struct.pack("<IQ", 1, len(text)) + text
    section = struct.pack("<2Q", start + len(records) + 16, len(tracing))
    ids = struct.pack("<Q", EVENT_ID)
    path.write_bytes(header + ids + attr + struct.pack("<2Q", 104, 8) + records + section + tracing)
    return path


def read(path: Path) -> tuple[list[tuple[int, int, str]], int]:
    source = PerfData(path)
    found = [(r.time, r.type, r.event) for r in source.records(lambda _done: None)]
    source.close()
    return found, source.lost


def test_records_in_time_order(tmp_path: Path) -> None:
    rounds = [[5, 9, 2, 7], [8, 3, 12], [11, 10, 15], []]
    data = b"".join(b"".join(sample(t, t) for t in times) + ROUND for times in rounds)
    found, lost = read(perf_data(tmp_path / "p", data + sample(17, 0) + sample(16, 0)))
    assert [time for time, _, _ in found] == sorted(
        t for times in [*rounds, [16, 17]] for t in times
    )
    assert {event for _, _, event in found} == {"exceptions:page_fault_user"}
    assert lost == 0


def test_equal_times_keep_their_order(tmp_path: Path) -> None:
    source = PerfData(perf_data(tmp_path / "p", b"".join(sample(4, n) for n in range(9))))
    fields = source.events["exceptions:page_fault_user"].reader("address")
    records = list(source.records(lambda _done: None))
    assert [fields(r.data)[0] for r in records] == list(range(9))
    assert {(r.pid, r.tid) for r in records} == {(7, 8)}


def test_losses_and_other_records(tmp_path: Path) -> None:
    data = other(RECORD_LOST, 5, struct.pack("<QQ", EVENT_ID, 3))
    data += other(RECORD_LOST_SAMPLES, 6, struct.pack("<Q", 4))
    data += other(RECORD_EXIT, 7, struct.pack("<iiiiQ", 7, 1, 7, 1, 7))
    data += struct.pack("<IHHQ", 79, 0, 16, 0)  # a kind that does not matter
    found, lost = read(perf_data(tmp_path / "p", data))
    assert found == [(7, RECORD_EXIT, "")]
    assert lost == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "left no data"),
        (b"PERFFILE" + bytes(200), "another byte order or format"),
        (b"PERFILE2", "cannot be read"),
        (b"PERFILE2" + bytes(200), "cut short"),
    ],
)
def test_no_perf_data(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "p"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=words):
        PerfData(path)
    with pytest.raises(TraceError, match="left no data"):
        PerfData(tmp_path / "none")


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (sample(1, 1)[:-8], "damaged at byte"),
        (bytes(16), "damaged at byte"),
        (sample(1, 1, event=5), "unknown event"),
        (struct.pack("<IHHQ", 81, 0, 16, 0), "compressed"),
    ],
)
def test_damaged_records(tmp_path: Path, records: bytes, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        read(perf_data(tmp_path / "p", records))


def test_cut_short(tmp_path: Path) -> None:
    path = perf_data(tmp_path / "p", sample(1, 1))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(TraceError, match="cut short"):
        PerfData(path)
