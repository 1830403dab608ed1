# SPDX-License-Identifier: GPL-2.0-only
"""perf.data: formats of tracepoints, order of records, losses, and files that are none."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from virtmm.tools.trace import perfdata
from virtmm.tools.trace.format import TraceError
from virtmm.tools.trace.perfdata import (
    PAGE_FAULTS,
    RECORD_EXIT,
    RECORD_LOST,
    RECORD_LOST_SAMPLES,
    RECORD_SAMPLE,
    PerfData,
    data_loc,
    parse_format,
    punch_hole,
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
    """What perf writes to a pipe, with one tracepoint and these records."""
    path.write_bytes(PREAMBLE + records)
    return path


def head(kind: int, body: bytes) -> bytes:
    return struct.pack("<IHH", kind, 0, 8 + len(body)) + body


def preamble() -> bytes:
    attr = struct.pack("<IIQQQ", 2, 128, 190, 1, SAMPLE_TYPE).ljust(128, b"\0")
    software = struct.pack("<IIQQQ", 1, 128, 2, 1, SAMPLE_TYPE & ~RAW).ljust(128, b"\0")
    text = PAGE_FAULT.encode()
    tracing = b"\x17\x08\x44tracing0.6\0\0\x08" + struct.pack("<I", 4096)
    tracing += b"header_page\0" + struct.pack("<Q", 2) + b"xx"
    tracing += b"header_event\0" + struct.pack("<Q", 1) + b"y"
    tracing += struct.pack("<I", 1) + struct.pack("<Q", 3) + b"abc"
    tracing += struct.pack("<I", 1) + b"exceptions\0" + struct.pack("<IQ", 1, len(text)) + text
    return (
        b"PERFILE2"
        + struct.pack("<Q", 16)
        + head(64, attr + struct.pack("<Q", EVENT_ID))
        + head(64, software + struct.pack("<2Q", SOFTWARE_ID, SOFTWARE_ID + 1))
        + head(80, bytes(16))
        + head(66, struct.pack("<I", len(tracing)))
        + tracing.ljust((len(tracing) + 7) & ~7, b"\0")
    )


SOFTWARE_ID = 78
PREAMBLE = preamble()


def read(path: Path) -> tuple[list[tuple[int, int, str]], int]:
    with path.open("rb") as file:
        source = PerfData(file)
        found = [(r.time, r.type, r.event) for r in source.records(ignore, release=False)]
        source.close()
    return found, source.lost


def ignore(_done: int) -> None:
    pass


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
    path = perf_data(tmp_path / "p", b"".join(sample(4, n) for n in range(9)))
    with path.open("rb") as file:
        source = PerfData(file)
        fields = source.events["exceptions:page_fault_user"].reader("address")
        records = list(source.records(ignore, release=False))
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
        (b"PERFILE2" + struct.pack("<Q", 104) + bytes(200), "another byte order or format"),
        (b"PERFILE2", "cut short"),
        (b"PERFILE2" + struct.pack("<Q", 16) + head(64, bytes(8)), "cannot be read"),
    ],
)
def test_no_perf_data(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "p"
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(TraceError, match=words):
        PerfData(file)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (bytes(16), "damaged at byte"),
        (sample(1, 1, event=5), "unknown event"),
        (struct.pack("<IHHQ", 81, 0, 16, 0), "compressed"),
    ],
)
def test_damaged_records(tmp_path: Path, records: bytes, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        read(perf_data(tmp_path / "p", records))


@pytest.mark.parametrize("missing", [1, 8, 30])
def test_what_was_cut_short_is_read_to_there(tmp_path: Path, missing: int) -> None:
    whole = b"".join(sample(n, n) for n in range(5))
    with perf_data(tmp_path / "p", whole[:-missing]).open("rb") as file:
        source = PerfData(file)
        assert [r.time for r in source.records(ignore, release=False)] == [0, 1, 2, 3]
        assert source.cut
    with perf_data(tmp_path / "p", whole).open("rb") as file:
        source = PerfData(file)
        assert len(list(source.records(ignore, release=False))) == 5
        assert not source.cut


def test_software_page_faults(tmp_path: Path) -> None:
    body = struct.pack("<QiiQQQQQ", 0x1234, 7, 8, 5, 0xABCD, SOFTWARE_ID + 1, 0, 1)
    data = struct.pack("<IHH", RECORD_SAMPLE, 2, 8 + len(body)) + body
    with perf_data(tmp_path / "p", data).open("rb") as file:
        (record,) = PerfData(file).records(ignore, release=False)
    assert (record.event, record.misc, record.time) == (PAGE_FAULTS, 2, 5)
    assert struct.unpack("<2Q", record.data) == (0x1234, 0xABCD)


def test_space_is_given_back_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perfdata, "_RELEASE", 1 << 16)
    rounds = [b"".join(sample(n * 1000 + k, k) for k in range(1000)) + ROUND for n in range(20)]
    path = perf_data(tmp_path / "p", b"".join(rounds))
    freed: list[tuple[int, int]] = []
    monkeypatch.setattr(
        perfdata, "punch_hole", lambda _fd, start, length: freed.append((start, length))
    )
    with path.open("r+b") as file:
        source = PerfData(file)
        assert len(list(source.records(ignore, release=False))) == 20000
        assert freed == []
        times = []
        for record in source.records(ignore, release=True):
            times.append(record.time)
            # what is still to be read is there
            assert (
                sum(length for _, length in freed) < path.stat().st_size * (len(times) + 1) / 20000
            )
    assert times == list(range(20000))
    starts = [start for start, _ in freed]
    assert starts == [sum(length for _, length in freed[:n]) for n in range(len(freed))]
    assert sum(length for _, length in freed) > path.stat().st_size * 0.8


def test_hole(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_bytes(b"x" * (1 << 20))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        before = path.stat().st_blocks
        punch_hole(file.fileno(), 0, 1 << 19)
    # a file system that cannot leaves the file as it was
    assert (path.stat().st_blocks, path.read_bytes()[:1]) in [(before // 2, b"\0"), (before, b"x")]
    assert path.stat().st_size == 1 << 20
    assert path.read_bytes()[1 << 19 :] == b"x" * (1 << 19)
