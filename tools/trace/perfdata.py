# SPDX-License-Identifier: GPL-2.0-only
"""
Read what perf records: records in time order, tracepoint fields by name.

The data is read directly, not through ``perf script``: its layout is fixed and documented in the
kernel (tools/perf/Documentation/perf.data-file-format.txt, "pipe-mode data"), the text of ``perf script``
changes between releases, costs several times as much, and is ambiguous for odd file names.

perf writes what it finds in each processor's buffer, round by round, and marks the end of each
round. Records of one round may be older than some of the round before, never older than the round
before that: this bounds what is held for sorting.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from virtmm.tools.trace.schema import TraceError

# include/uapi/linux/perf_event.h, tools/lib/perf/include/perf/event.h
RECORD_LOST = 2
RECORD_COMM = 3
RECORD_EXIT = 4
RECORD_FORK = 7
RECORD_SAMPLE = 9
RECORD_MMAP2 = 10
RECORD_LOST_SAMPLES = 13
_RECORD_HEADER_ATTR = 64
_RECORD_TRACING_DATA = 66
_RECORD_FINISHED_ROUND = 68
_RECORD_FEATURE = 80
_RECORD_COMPRESSED = 81
MISC_COMM_EXEC = 1 << 13

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

PAGE_FAULTS = "page-faults"  # the software event: its data here is the instruction and the address
_PAGE_FAULTS = 1, 2  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS
MISC_CPUMODE = 7
MISC_KERNEL = 1

_HEADER = 16  # bytes
_PREAMBLE = (_RECORD_HEADER_ATTR, _RECORD_TRACING_DATA, _RECORD_FEATURE)
_WANTED = frozenset((RECORD_COMM, RECORD_EXIT, RECORD_FORK, RECORD_MMAP2))
_PLACE_BITS = 48
_PLACE = (1 << _PLACE_BITS) - 1
_RELEASE = 1 << 24  # how much of the file is released at a time once read

_HEAD = struct.Struct("<IHH").unpack_from
_TWO = struct.Struct("<ii").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from


class Record(NamedTuple):
    """
    One record: time in ns, its type, the tracepoint of a sample, pid and tid, and its data.

    ``data`` is the tracepoint's raw data for a sample, the instruction's and the fault's address for
    PAGE_FAULTS, else what follows the header.
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
    ip: int
    addr: int


class PerfData:
    """
    What ``perf record -o -`` writes, in an open file: each record from the first on can be read
    without what follows it, so a recording that was cut short is readable up to there.

    ``cut`` says so once the records have been read; ``lost`` counts what perf lost. Raises TraceError
    when the file is none of perf's or damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.events: dict[str, Event] = {}
        self.lost = 0
        self.cut = False
        self._file = file
        self._layouts: dict[int, _Layout] = {}
        self._id_all = 0  # bytes of the identity that ends each record which is no sample
        self._id_time = 0  # where the time is in it
        self._sample_id = 8  # where a sample says which event it is of
        try:
            self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise TraceError("perf left no data; is the disk full?") from None
        self.size = len(self._buffer)
        try:
            self._start = self._read_preamble()
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise TraceError(
                f"perf's data cannot be read ({error}); is this perf too new?"
            ) from None

    def _read_preamble(self) -> int:
        """Read what events there are; return where the first record is that is not about that."""
        buffer = self._buffer
        if self.size < _HEADER:
            raise TraceError("perf's data was cut short; is the disk full?")
        if buffer[:8] != b"PERFILE2" or buffer[8:_HEADER] != struct.pack("<Q", _HEADER):
            raise TraceError("perf's data has another byte order or format than expected")
        names: dict[int, str] = {}
        attrs: list[bytes] = []
        at = _HEADER
        while at < self.size:
            kind, _, length = struct.unpack_from("<IHH", buffer, at)
            if kind not in _PREAMBLE or length < 8:
                break
            end = at + length
            if kind == _RECORD_HEADER_ATTR:
                attrs.append(buffer[at + 8 : end])
            elif kind == _RECORD_TRACING_DATA:
                size = struct.unpack_from("<I", buffer, at + 8)[0]
                for event in _tracing_data(buffer[end : end + size]):
                    self.events[event.name] = event
                    names[event.id] = event.name
                end += (size + 7) & ~7
            at = end
        for attr in attrs:
            self._add_event(attr, names)
        return at

    def _add_event(self, attr: bytes, names: dict[int, str]) -> None:
        """Note what the samples of an event hold; its numbers follow the attributes."""
        kind, size, config, _, sample_type = struct.unpack_from("<IIQQQ", attr)
        name = names.get(config, "") if kind == 2 else ""
        if (kind, config) == _PAGE_FAULTS:
            name = PAGE_FAULTS
        layout = _layout(name, sample_type)
        self._sample_id = layout.id  # the same for all, or perf could not read it either
        self._id_all = 8 * (sample_type & _ID_FIELDS).bit_count()
        self._id_time = 8 if sample_type & _SAMPLE_TID else 0
        for (number,) in struct.iter_unpack("<Q", attr[size:]):
            self._layouts[number] = layout

    def records(self, progress: Callable[[int], None], *, release: bool = True) -> Iterator[Record]:
        """
        Yield the records in time order; ``progress`` is told the bytes read so far.

        With ``release`` the file gives its space on the disk back as it is read: the records can be
        read once.
        """
        # A record waits for its turn as one number, its time above its place: a round of a large
        # machine has millions.
        held: list[int] = []
        limit = released = 0
        for keys, at in self._rounds():
            held += keys
            held.sort()
            newest = held[-1] >> _PLACE_BITS if held else 0
            # Nothing older than the newest of the round before can still come.
            cut = bisect_left(held, (limit + 1) << _PLACE_BITS)
            for key in held[:cut]:
                yield self._record(key & _PLACE)
            del held[:cut]
            limit = max(limit, newest)
            progress(at)
            if at - released >= _RELEASE:
                done = min((key & _PLACE for key in held), default=at) & -_RELEASE
                self._drop(released, done, release)
                released = done
        for key in held:
            yield self._record(key & _PLACE)
        progress(self.size)

    def _drop(self, start: int, end: int, release: bool) -> None:
        """Let go of a part that has been read: of its memory, and its place on the disk."""
        if end > start:
            self._buffer.madvise(mmap.MADV_DONTNEED, start, end - start)
            if release:
                punch_hole(self._file.fileno(), start, end - start)

    def _rounds(self) -> Iterator[tuple[list[int], int]]:
        """Yield the keys of each round's records as they lie in the file, and where it ends."""
        buffer, size = self._buffer, self.size
        header, u64 = _HEAD, _U64
        layouts, sample_id = self._layouts, self._sample_id
        time_from_end = self._id_time - self._id_all
        self.lost = 0
        at = self._start
        keys: list[int] = []
        while at + 8 <= size:
            kind, _, length = header(buffer, at)
            if length < 8:
                raise TraceError(f"perf's data is damaged at byte {at}; record again")
            if at + length > size:
                break
            if kind == RECORD_SAMPLE:
                layout = layouts.get(u64(buffer, at + sample_id)[0])
                if layout is None:
                    raise TraceError(f"perf's data has an unknown event at byte {at}; record again")
                if layout.event:
                    keys.append(u64(buffer, at + layout.time)[0] << _PLACE_BITS | at)
            elif kind == _RECORD_FINISHED_ROUND:
                yield keys, at
                keys = []
            elif kind == _RECORD_COMPRESSED:
                raise TraceError("perf compressed its data; unset record.compression-level")
            elif kind == RECORD_LOST:
                self.lost += u64(buffer, at + 16)[0]
            elif kind == RECORD_LOST_SAMPLES:
                self.lost += u64(buffer, at + 8)[0]
            elif kind in _WANTED:
                keys.append(u64(buffer, at + length + time_from_end)[0] << _PLACE_BITS | at)
            at += length
        self.cut = at != size
        yield keys, at

    def _record(self, at: int) -> Record:
        """Return the record at a place that _rounds() has found."""
        buffer = self._buffer
        kind, misc, length = _HEAD(buffer, at)
        if kind == RECORD_SAMPLE:
            layout = self._layouts[_U64(buffer, at + self._sample_id)[0]]
            pid, tid = _TWO(buffer, at + layout.tid)
            time = _U64(buffer, at + layout.time)[0]
            if layout.raw:
                raw = at + layout.raw
                data = buffer[raw + 4 : raw + 4 + _U32(buffer, raw)[0]]
            else:
                data = buffer[at + layout.ip : at + layout.ip + 8]
                data += buffer[at + layout.addr : at + layout.addr + 8]
            return Record(time, kind, misc, layout.event, pid, tid, data)
        tail = at + length - self._id_all
        pid, tid = _TWO(buffer, tail)
        time = _U64(buffer, tail + self._id_time)[0]
        return Record(time, kind, misc, "", pid, tid, buffer[at + 8 : tail])

    def close(self) -> None:
        """Let go of the file."""
        self._buffer.close()


def punch_hole(descriptor: int, start: int, length: int) -> None:
    """Give a part of a file back to the disk; nothing happens where the file system cannot."""
    # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    ctypes.CDLL(None).fallocate(descriptor, 3, ctypes.c_long(start), ctypes.c_long(length))


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
    raw = place.get(_SAMPLE_RAW, 0)
    return _Layout(
        event if raw or event == PAGE_FAULTS else "",
        place[_SAMPLE_IDENTIFIER if _SAMPLE_IDENTIFIER in place else _SAMPLE_ID],
        place[_SAMPLE_TID],
        place[_SAMPLE_TIME],
        raw,
        place[_SAMPLE_IP] if event == PAGE_FAULTS else 0,
        place[_SAMPLE_ADDR] if event == PAGE_FAULTS else 0,
    )


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
