# SPDX-License-Identifier: GPL-2.0-only
"""The trace file: what is written is read; whatever is wrong gets one clear line."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtmm.tools.trace.format import (
    BATCH_ROWS,
    KIND_FAULT,
    KINDS,
    SCHEMA_VERSION,
    File,
    TraceError,
    TraceReader,
    TraceWriter,
)
from virtmm.tools.trace.schema import METADATA_KEY, SCHEMA

PAGE = 4096
METADATA = {"page_size": PAGE, "command": "true"}
U32, U64 = 2**32 - 1, 2**64 - 1


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    """All rows, files resolved."""
    with TraceReader(path) as reader:
        result = []
        for batch in reader.batches():
            for row in batch:
                file = reader.files[row[11]] if row[11] else None
                result.append((*row[:11], file, *row[12:]))
        assert len(result) == reader.num_events
        return result


pages = st.integers(0, 2**40).map(lambda n: n * PAGE)
files = st.one_of(
    st.none(),
    st.builds(
        File,
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.integers(0, U64),
        st.integers(0, U64),
    ),
)


@st.composite
def events(draw: Any) -> list[tuple[Any, ...]]:
    time, result = 0, []
    for _ in range(draw(st.integers(0, 30))):
        time += draw(st.integers(0, 2**50))
        kind = draw(st.integers(0, 9))
        addr = draw(st.integers(0, U64)) if kind == KIND_FAULT else draw(pages)
        length = 0 if kind == KIND_FAULT else draw(pages) + PAGE
        pid = draw(st.integers(1, 2**31 - 1))
        child = draw(st.integers(1, 2**31)) if KINDS[kind] == "fork" else draw(st.integers(-9, 99))
        result.append(
            (time, pid, draw(st.integers(-(2**31), 2**31 - 1)), kind, addr, length, draw(pages),
             draw(pages), draw(st.integers(0, 255)), draw(st.integers(0, U32)),
             draw(st.integers(0, U64)), draw(files), child)
        )  # fmt: skip
    return result


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=events())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]) -> None:
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    with TraceWriter(path, METADATA) as writer:
        for row in rows:
            writer.append_row(row)
    assert rows_of(path) == rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=events(), prot=st.sampled_from((0, 1, 4, 5)))
def test_mapped_files(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], prot: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    with TraceWriter(path, METADATA) as writer:
        for row in rows:
            writer.append_row(row)
    wanted = {r[11] for r in rows if KINDS[r[3]] == "mmap" and r[8] & prot == prot and r[11]}
    with TraceReader(path) as reader:
        assert reader.mapped_files(prot) == wanted


def test_the_highest_address_of_the_calls(tmp_path: Path) -> None:
    """Found in the footer alone when it is below what is asked about; faults do not count."""
    path = tmp_path / "t.parquet"
    calls = [0x1000, 0x7FFF00000000, 0x5000]
    with TraceWriter(path, METADATA) as writer:
        for addr in calls:
            writer.append_row((0, 1, 1, 0, addr, PAGE, 0, 0, 1, 2, 0, None, 0))
        writer.append_row((0, 1, 1, KIND_FAULT, 1 << 63, 0, 0, 0, 1, 0, 0, None, 0))
    with TraceReader(path) as reader:
        assert reader.highest(0x7FFF00000000) == reader.highest(0) == 0x7FFF00000000
        assert reader.highest(0x7FFF00000001) == reader.highest(1 << 63) == 0
        assert len(next(reader.batches())) == 4
    with TraceWriter(path, METADATA):
        pass
    with TraceReader(path) as reader:
        assert reader.highest(0) == 0


def test_many_batches_and_files(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    count = 2 * BATCH_ROWS + 7
    libs = [File(f"/lib/{n}", n + 1, 5) for n in range(3)]
    with TraceWriter(path, METADATA) as writer:
        for n in range(count):
            writer.append_row(
                (n, 1, 1, 0, n * PAGE, PAGE, 0, 0, 1, 2, 0, libs[n % 3] if n % 5 else None, 0)
            )
    with TraceReader(path) as reader:
        seen = [row for batch in reader.batches() for row in batch]
        assert reader.files[0] == File("", 0, 0)
        assert sorted(reader.files[1:]) == libs
        assert [reader.files[r[11]] for r in seen[1:3]] == libs[1:]
    assert len(seen) == count
    assert [row[0] for row in seen] == list(range(count))


def test_rows_of_a_batch_by_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    file = File("/lib/a", 5, 9)
    with TraceWriter(path, METADATA) as writer:
        for n in range(9):
            writer.append_row(
                (n, 1, 1, 0, n * PAGE, PAGE, 0, 0, 1, 2, 0, file if n % 4 else None, 0)
            )
    with TraceReader(path) as reader:
        batch = next(reader.batches())
    rows = batch.rows()
    assert list(batch) == rows
    assert [row[11] for row in rows] == [0, 1, 1, 1, 0, 1, 1, 1, 0]
    assert batch[np.array([7, 2])].rows() == [rows[7], rows[2]]
    assert batch[3:5].rows() == rows[3:5]
    assert len(batch[3:5]) == 2


def test_metadata_may_come_late_and_has_the_version(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TraceWriter(path, METADATA) as writer:
        writer.metadata["exit_status"] = 3
    with TraceReader(path) as reader:
        assert reader.metadata == {**METADATA, "exit_status": 3, "schema": SCHEMA_VERSION}
        assert reader.page_size == PAGE
        assert reader.num_events == 0
        assert list(reader.batches()) == []


def test_hash_follows_content(trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    other.write_bytes(trace.read_bytes())
    with TraceReader(trace) as a, TraceReader(other) as b:
        assert a.hash == b.hash
        assert len(a.hash) == 64


def test_others_can_read_it(trace: Path) -> None:
    table = pq.read_table(trace)
    assert table.schema.names == SCHEMA.names
    assert table.column("kind").to_pylist() == ["exec", "mmap", "fault"]
    assert table.column("path").null_count == 3


def test_plain_strings_are_read_too(trace: Path, tmp_path: Path) -> None:
    """A trace rewritten by a tool that has no dictionary columns."""
    table = pq.read_table(trace)
    for name in ("kind", "path"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table.column(name).cast(pa.string()))
    path = tmp_path / "plain.parquet"
    pq.write_table(table.replace_schema_metadata(pq.read_metadata(trace).metadata), path)
    assert rows_of(path) == rows_of(trace)


# Errors. Each is one line that names the file.


def refused(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        rows_of(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def test_missing(tmp_path: Path) -> None:
    assert "no such trace; make one with `virtmm record" in refused(tmp_path / "none.parquet")


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refused(tmp_path)


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.touch()
    assert "the file is empty" in refused(path)


def test_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("PERFILE2 and more")
    assert "no Parquet file" in refused(path)


def test_truncated_everywhere(trace: Path) -> None:
    content = trace.read_bytes()
    for size in (3, 4, 11, len(content) // 2, len(content) - 1):
        trace.write_bytes(content[:size])
        assert any(word in refused(trace) for word in ("truncated", "no Parquet"))


def test_damaged_footer(trace: Path) -> None:
    content = bytearray(trace.read_bytes())
    content[-8:-4] = (2**30).to_bytes(4, "little")  # the footer's length
    trace.write_bytes(content)
    assert "damaged" in refused(trace)


def test_damaged_anywhere_is_never_a_traceback_or_another_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TraceWriter(path, METADATA) as writer:
        for n in range(2000):
            writer.append(time=n, pid=7, kind="fault", addr=n * 4321, prot=2)
    content, good = path.read_bytes(), rows_of(path)
    place = random.Random(5)
    for _ in range(60):
        bad = bytearray(content)
        bad[place.randrange(4, len(bad) - 4)] ^= 1 << place.randrange(8)
        path.write_bytes(bad)
        try:
            rows = rows_of(path)
        except TraceError as error:
            assert "\n" not in str(error)
        else:
            assert len(rows) == len(good)


def test_foreign(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    assert "no virtmm trace" in refused(path)


def rewritten(path: Path, metadata: Any = None, **columns: Any) -> Path:
    """The trace with other metadata or columns; None drops a column."""
    table = pq.read_table(path)
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        if column is None:
            table = table.drop_columns([name])
        else:
            table = table.set_column(at, name, column)
    text = pq.read_metadata(path).metadata[METADATA_KEY]
    if metadata is not None:
        text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: text}), path)
    return path


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"schema": 99, "page_size": 4096}, "schema version 99, this virtmm reads 1"),
        ({"page_size": 4096}, "schema version None"),
        ({"schema": 1, "page_size": 5000}, "page_size 5000 is not a power of two"),
        ({"schema": 1, "page_size": 0}, "page_size 0"),
        ({"schema": 1, "page_size": "4096"}, "page_size '4096'"),
        ({"schema": 1}, "page_size None"),
        ([1], "no JSON object"),
        (b"{", "damaged"),
    ],
)
def test_metadata_refused(trace: Path, metadata: Any, words: str) -> None:
    assert words in refused(rewritten(trace, metadata))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"addr": None}, "column addr is missing"),
        ({"addr": pa.array([0, 0, 0], pa.int64())}, "column addr is int64, not uint64"),
        ({"kind": pa.array([1, 2, 3])}, "column kind is int64, not string"),
        ({"pid": pa.array([7, 7, None], pa.int32())}, "row 2: pid is null"),
        ({"kind": pa.array(["exec", None, "fault"])}, "row 1: kind is null"),
        ({"kind": pa.array(["exec", "swapon", "fault"])}, "row 1: the kind is unknown"),
        ({"time": pa.array([0, 9, 8], pa.uint64())}, "row 2: the time goes back"),
        ({"pid": pa.array([7, 7, 0], pa.int32())}, "row 2: the pid is not positive"),
        ({"len": pa.array([0, U64 & ~4095, 0], pa.uint64())}, "row 1: address + length exceeds"),
        ({"len2": pa.array([0, 0, 2], pa.uint64()), "addr2": pa.array([0, 0, U64], pa.uint64())},
         "row 2: address + length exceeds"),
        ({"addr": pa.array([0, 17, 17], pa.uint64())}, "row 1: the range is not made of whole"),
        ({"len": pa.array([0, 0, 0], pa.uint64())}, "row 1: the mapping has no length"),
        ({"kind": pa.array(["exec", "mmap", "fork"])}, "row 2: the child's pid"),
    ],
)  # fmt: skip
def test_columns_refused(trace: Path, columns: dict[str, Any], words: str) -> None:
    assert words in refused(rewritten(trace, **columns))


def test_the_row_is_counted_over_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TraceWriter(path, METADATA) as writer:
        for _ in range(BATCH_ROWS + 10):
            writer.append(time=5, pid=1, kind="exit")
    times = [5] * (BATCH_ROWS + 9) + [4]
    rewritten(path, time=pa.array(times, pa.uint64()))
    assert f"row {BATCH_ROWS + 9}: the time goes back" in refused(path)


# Writing.


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"kind": "swapon"}, "row 1: no kind 'swapon'"),
        ({"kind": "fault", "addr": -1}, "a value of addr does not fit uint64"),
        ({"kind": "fault", "prot": 256}, "a value of prot does not fit uint8"),
        ({"kind": "fault", "addr": None}, "a value of addr does not fit uint64"),
        ({"kind": "mmap", "addr": 1, "len": PAGE}, "row 1: the range is not made of whole pages"),
        ({"kind": "fault", "time": 0}, "row 1: the time goes back"),
    ],
)
def test_writer_refuses_and_leaves_nothing(
    tmp_path: Path, event: dict[str, Any], words: str
) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(TraceError, match=words), TraceWriter(path, METADATA) as writer:
        writer.append(time=3, pid=1, kind="exit")
        writer.append(**{"time": 4, "pid": 1, **event})
    assert not list(tmp_path.iterdir())


def test_writer_keeps_the_old_file_on_error(trace: Path) -> None:
    before = trace.read_bytes()
    with pytest.raises(RuntimeError), TraceWriter(trace, METADATA):
        raise RuntimeError
    assert trace.read_bytes() == before
    assert len(list(trace.parent.iterdir())) == 1


def test_writer_places(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is a directory"):
        TraceWriter(tmp_path, METADATA)
    with pytest.raises(TraceError, match="cannot write"):
        TraceWriter(tmp_path / "none" / "t.parquet", METADATA)
    with pytest.raises(TraceError, match="page_size 3 is not a power of two"):
        TraceWriter(tmp_path / "t.parquet", {"page_size": 3})
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        with TraceWriter(tmp_path / "t", {"page_size": 4096}) as writer:
            for n in range(100_000):
                writer.append(time=n, pid=7, kind="exec")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [] or not hasattr(os, "O_TMPFILE")


def test_where_no_file_can_be_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", 1 << 30, raising=False)  # no such flag: EISDIR
    path = tmp_path / "t"
    with TraceWriter(path, {"page_size": 4096}) as writer:
        writer.append(time=0, pid=7, kind="exec")
        assert len(list(tmp_path.iterdir())) == 1
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    with TraceReader(path) as reader:
        assert reader.num_events == 1


def test_a_link_keeps_its_name_and_its_file_gets_the_trace(tmp_path):
    link, file = tmp_path / "link.parquet", tmp_path / "file.parquet"
    link.symlink_to(file)
    with TraceWriter(link, {"page_size": 4096}):
        pass
    assert link.is_symlink() and file.is_file()
