# SPDX-License-Identifier: GPL-2.0-only
"""
Read ``perf.data`` files: records in time order, tracepoint fields by name.

The file is read directly, not through ``perf script``: its layout is fixed and documented in the
kernel (tools/perf/Documentation/perf.data-file-format.txt), the text of ``perf script`` changes
between releases, costs several times as much, and is ambiguous for file names with odd characters.

perf writes what it finds in each processor's buffer, round by round, and marks the end of each
round. Records of one round may be older than some of the round before, never older than the round
before that: this bounds what is held for sorting.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from virtmm.tools.trace.schema import TraceError

# include/uapi/linux/perf_event.h, tools/lib/perf/include/perf/event.h
RECORD_LOST = 2
RECORD_COMM = 3
RECORD_EXIT = 4
RECORD_FORK = 7
RECORD_SAMPLE = 9
RECORD_MMAP2 = 10
RECORD_LOST_SAMPLES = 13
_RECORD_FINISHED_ROUND = 68
_RECORD_COMPRESSED = 81
MISC_COMM_EXEC = 1 << 13
MISC_MMAP_BUILD_ID = 1 << 14

_SAMPLE_IP = 1 << 0
_SAMPLE_TID = 1 << 1
_SAMPLE_TIME = 1 << 2
_SAMPLE_ADDR = 1 << 3
_SAMPLE_READ = 1 << 4
_SAMPLE_CALLCHAIN = 1 << 5
_SAMPLE_ID = 1 << 6
_SAMPLE_CPU = 1 << 7
_SAMPLE_PERIOD = 1 << 8
_SAMPLE_STREAM_ID = 1 << 9
_SAMPLE_RAW = 1 << 10
_SAMPLE_IDENTIFIER = 1 << 16

_FEATURE_TRACING_DATA = 1
_FEATURES = 256
_WANTED = frozenset(
    (RECORD_LOST, RECORD_COMM, RECORD_EXIT, RECORD_FORK, RECORD_SAMPLE, RECORD_MMAP2,
     RECORD_LOST_SAMPLES)
)  # fmt: skip
_PAGE = 1 << 24  # how much of the file is released at a time once read


class Record(NamedTuple):
    """
    One record: time in ns, its type, the tracepoint of a sample, pid and tid, and its data.

    ``data`` is the tracepoint's raw data for a sample, else what follows the header.
    """

    time: int
    type: int
    misc: int
    event: str
    pid: int
    tid: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """A tracepoint's name and its fields: name -> (offset, size, signed)."""

    name: str
    id: int
    fields: dict[str, tuple[int, int, bool]]

    def reader(self, *names: str) -> Callable[[bytes], tuple[int, ...]]:
        """Return a function that unpacks these integer fields, in ascending order of offset."""
        codes = {1: "b", 2: "h", 4: "i", 8: "q"}
        fmt, at = "<", 0
        for name in names:
            offset, size, signed = self.fields[name]
            code = codes[size]
            fmt += f"{offset - at}x" + (code if signed else code.upper())
            at = offset + size
        return struct.Struct(fmt).unpack_from


@dataclass(slots=True)
class _Layout:
    """Where the samples of one event keep what we read; offsets count from the record's start."""

    event: str
    id: int
    tid: int
    time: int
    raw: int


@dataclass(slots=True)
class PerfData:
    """A ``perf.data`` file. Raises TraceError when it is not one, or was cut short."""

    path: Path
    events: dict[str, Event] = field(default_factory=dict)
    lost: int = 0
    _layouts: dict[int, _Layout] = field(default_factory=dict)
    _data: tuple[int, int] = (0, 0)
    _id_all: int = 0  # bytes of the identity that ends each record which is no sample
    _id_time: int = 0  # where the time is in it
    _sample_id: int = 8  # where a sample says which event it is of
    _buffer: Any = None

    def __post_init__(self) -> None:
        try:
            with self.path.open("rb") as stream:
                self._buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise TraceError("perf left no data; see its message above") from None
        try:
            self._read_header()
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise TraceError(
                f"perf's data cannot be read ({error}); is this perf too new?"
            ) from None

    def _read_header(self) -> None:
        buffer = self._buffer
        if buffer[:8] != b"PERFILE2":
            raise TraceError("perf's data has another byte order or format than expected")
        _, attr_size, attrs, attrs_size, start, size = struct.unpack_from("<6Q", buffer, 8)
        if not size or start + size > len(buffer):
            raise TraceError("perf's data was cut short; is the disk full?")
        self._data = start, size
        names: dict[int, str] = {}
        features = int.from_bytes(buffer[72 : 72 + _FEATURES // 8], "little")
        if features & (1 << _FEATURE_TRACING_DATA):
            # One (offset, size) pair for each feature that is present, in order, after the data.
            nth = (features & ((1 << _FEATURE_TRACING_DATA) - 1)).bit_count()
            at, length = struct.unpack_from("<2Q", buffer, start + size + 16 * nth)
            for event in _tracing_data(buffer[at : at + length]):
                self.events[event.name] = event
                names[event.id] = event.name
        for at in range(attrs, attrs + attrs_size, attr_size):
            kind, _, config, _, sample_type = struct.unpack_from("<IIQQQ", buffer, at)
            ids_at, ids_size = struct.unpack_from("<2Q", buffer, at + attr_size - 16)
            layout = _layout(names.get(config, "") if kind == 2 else "", sample_type)
            self._sample_id = layout.id  # the same for all, or perf could not read it either
            self._id_all = 8 * (sample_type & _ID_FIELDS).bit_count()
            self._id_time = 8 if sample_type & _SAMPLE_TID else 0
            for at_id in range(ids_at, ids_at + ids_size, 8):
                self._layouts[struct.unpack_from("<Q", buffer, at_id)[0]] = layout

    @property
    def size(self) -> int:
        """Bytes of records."""
        return self._data[1]

    def records(self, progress: Callable[[int], None]) -> Iterator[Record]:
        """Yield the records in time order; ``progress`` is told the bytes read so far."""
        key = itemgetter(0)
        held: list[Record] = []
        newest, limit = 0, 0
        for record in self._unsorted(progress):
            if record is not None:
                held.append(record)
                continue
            # Nothing older than the newest of the round before can still come.
            held.sort(key=key)
            newest = max(newest, held[-1].time if held else 0)
            cut = _upper_bound(held, limit)
            yield from held[:cut]
            del held[:cut]
            limit = newest
        held.sort(key=key)
        yield from held

    def _unsorted(self, progress: Callable[[int], None]) -> Iterator[Record | None]:
        """Yield the records as they lie in the file, None at the end of each round."""
        buffer = self._buffer
        start, size = self._data
        at, end = start, start + size
        header = struct.Struct("<IHH").unpack_from
        two, u64 = struct.Struct("<ii").unpack_from, struct.Struct("<Q").unpack_from
        u32 = struct.Struct("<I").unpack_from
        layouts, id_all, id_time = self._layouts, self._id_all, self._id_time
        sample_id = self._sample_id
        released = start & ~(_PAGE - 1)
        while at < end:
            kind, misc, length = header(buffer, at)
            if length < 8 or at + length > end:
                raise TraceError(f"perf's data is damaged at byte {at}; record again")
            if kind == RECORD_SAMPLE:
                layout = layouts.get(u64(buffer, at + sample_id)[0])
                if layout is None:
                    raise TraceError(f"perf's data has an unknown event at byte {at}; record again")
                if layout.event:
                    raw = at + layout.raw
                    pid, tid = two(buffer, at + layout.tid)
                    data = buffer[raw + 4 : raw + 4 + u32(buffer, raw)[0]]
                    time = u64(buffer, at + layout.time)[0]
                    yield Record(time, kind, misc, layout.event, pid, tid, data)
            elif kind == _RECORD_FINISHED_ROUND:
                progress(at - start)
                yield None
            elif kind == _RECORD_COMPRESSED:
                raise TraceError("perf compressed its data; unset record.compression-level")
            elif kind in _WANTED:
                tail = at + length - id_all
                data = buffer[at + 8 : tail]
                if kind in (RECORD_LOST, RECORD_LOST_SAMPLES):
                    self.lost += u64(data, 8 if kind == RECORD_LOST else 0)[0]
                else:
                    pid, tid = two(buffer, tail)
                    yield Record(u64(buffer, tail + id_time)[0], kind, misc, "", pid, tid, data)
            at += length
            if at - released >= 2 * _PAGE:
                # Read pages stay in the page cache, not in our memory.
                buffer.madvise(mmap.MADV_DONTNEED, released, _PAGE)
                released += _PAGE
        progress(size)

    def close(self) -> None:
        """Let go of the file."""
        self._buffer.close()


_ID_FIELDS = (
    _SAMPLE_TID | _SAMPLE_TIME | _SAMPLE_ID | _SAMPLE_STREAM_ID | _SAMPLE_CPU | _SAMPLE_IDENTIFIER
)


def _layout(event: str, sample_type: int) -> _Layout:
    """Place what a sample holds; every field that comes before the raw data has a fixed size."""
    if sample_type & (_SAMPLE_READ | _SAMPLE_CALLCHAIN):
        raise ValueError("samples with counts or call chains")
    at = 8
    place = {}
    for bit in (
        _SAMPLE_IDENTIFIER,
        _SAMPLE_IP,
        _SAMPLE_TID,
        _SAMPLE_TIME,
        _SAMPLE_ADDR,
        _SAMPLE_ID,
        _SAMPLE_STREAM_ID,
        _SAMPLE_CPU,
        _SAMPLE_PERIOD,
        _SAMPLE_RAW,
    ):
        if sample_type & bit:
            place[bit] = at
            at += 8
    return _Layout(
        event if _SAMPLE_RAW in place else "",
        place[_SAMPLE_IDENTIFIER if _SAMPLE_IDENTIFIER in place else _SAMPLE_ID],
        place[_SAMPLE_TID],
        place[_SAMPLE_TIME],
        place.get(_SAMPLE_RAW, 0),
    )


def _upper_bound(records: list[Record], time: int) -> int:
    """Return how many of the sorted records are not newer than ``time``."""
    low, high = 0, len(records)
    while low < high:
        middle = (low + high) // 2
        if records[middle].time <= time:
            low = middle + 1
        else:
            high = middle
    return low


class _Cursor:
    """Walk through a byte string."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        """Return the next little-endian number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        """Return the next zero-terminated string."""
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text


def _tracing_data(data: bytes) -> Iterator[Event]:
    """Parse the formats of the tracepoints, which perf stores with its data."""
    cursor = _Cursor(data)
    cursor.take(10)  # magic
    cursor.text()  # version
    endian, _, _ = cursor.number(1), cursor.number(1), cursor.number(4)
    if endian:
        raise ValueError("big endian")
    for _ in ("header_page", "header_event"):
        cursor.text()
        cursor.take(cursor.number(8))
    for _ in range(cursor.number(4)):  # ftrace's own
        cursor.take(cursor.number(8))
    for _ in range(cursor.number(4)):
        system = cursor.text()
        for _ in range(cursor.number(4)):
            yield parse_format(system, cursor.take(cursor.number(8)).decode())


def parse_format(system: str, text: str) -> Event:
    """
    Parse one ``events/SYSTEM/EVENT/format`` file of tracefs.

    A field's name is the last word before its first semicolon, without an array's brackets.
    """
    name, number = "", 0
    fields: dict[str, tuple[int, int, bool]] = {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith("name:"):
            name = line[5:].strip()
        elif line.startswith("ID:"):
            number = int(line[3:])
        elif line.startswith("field:"):
            parts = [part.strip() for part in line[6:].split(";")]
            values = dict(part.split(":", 1) for part in parts[1:] if ":" in part)
            key = parts[0].split("[", 1)[0].split()[-1]
            if parts[0].startswith("__data_loc"):
                key = parts[0].split()[-1]
            fields[key] = int(values["offset"]), int(values["size"]), values["signed"] == "1"
    return Event(f"{system}:{name}", number, fields)


def data_loc(data: bytes, field_: tuple[int, int, bool]) -> str:
    """Return the string that a ``__data_loc`` field points at, without its zero byte."""
    where = struct.unpack_from("<I", data, field_[0])[0]
    start, length = where & 0xFFFF, where >> 16
    return data[start : start + length].split(b"\0", 1)[0].decode(errors="replace")
