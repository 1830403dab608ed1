# SPDX-License-Identifier: GPL-2.0-only
"""Write and read trace files; the module ``schema`` beside this one describes what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from virtmm.tools.trace.batch import Batch
from virtmm.tools.trace.schema import (
    ANONYMOUS,
    BATCH_ROWS,
    FAULT_KERNEL,
    FAULT_PRESENT,
    KIND_BRK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
    KIND_FORK,
    KIND_MADVISE,
    KIND_MMAP,
    KIND_MPROTECT,
    KIND_MREMAP,
    KIND_MUNMAP,
    KINDS,
    METADATA_KEY,
    NUMBERS,
    SCHEMA,
    SCHEMA_VERSION,
    STRING,
    TYPES,
    Columns,
    File,
    Row,
    TraceError,
    check_metadata,
    check_rows,
    first_true,
)

__all__ = [
    "ANONYMOUS",
    "BATCH_ROWS",
    "FAULT_KERNEL",
    "FAULT_PRESENT",
    "KINDS",
    "KIND_BRK",
    "KIND_EXEC",
    "KIND_EXIT",
    "KIND_FAULT",
    "KIND_FORK",
    "KIND_MADVISE",
    "KIND_MMAP",
    "KIND_MPROTECT",
    "KIND_MREMAP",
    "KIND_MUNMAP",
    "SCHEMA_VERSION",
    "File",
    "Row",
    "TraceError",
    "TraceReader",
    "TraceWriter",
]


def _nameless(folder: Path) -> int | None:
    """Open a file that has no name yet; None where that is not possible."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except (AttributeError, OSError):
        return None


def check_target(path: Path) -> Path:
    """
    Return the file that a trace at ``path`` is, links followed; TraceError when none can be there.

    It must be a regular file or not there yet: a device or pipe would be replaced by the trace.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            what = "a directory" if target.is_dir() else "no regular file"
            raise TraceError(f"{path}: is {what}; name a file for the trace with -o")
        if not target.parent.is_dir():
            raise TraceError(
                f"{path}: cannot write a trace there; name a file in an existing folder"
            )
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; choose another place with -o") from None
    return target


class TraceWriter:
    """
    Write a trace row by row.

    A context manager. Rows collect in a temporary file beside ``path``, which takes its name when
    the block ends well, and is removed when it ends with an exception; where the system can, it has
    no name until then, so that not even a killed process leaves it. ``metadata`` may be changed until
    then; the schema version is added.

    Raises TraceError: the file cannot be written, the metadata or a row breaks a rule.
    """

    def __init__(self, path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {"schema": SCHEMA_VERSION, **metadata}
        self.num_events = 0
        self._rows: list[tuple[Any, ...]] = []
        self._last_time = 0
        self._writer: Any = None
        if wrong := check_metadata(self.metadata):
            raise TraceError(f"{self.path}: {wrong}")
        self._target = check_target(self.path)
        self._temporary = self._target.with_name(f".{self._target.name}.{os.getpid()}.tmp")
        self._nameless = _nameless(self._target.parent)
        where = self._temporary if self._nameless is None else f"/proc/self/fd/{self._nameless}"
        try:
            self._writer = pq.ParquetWriter(
                where,
                SCHEMA,
                compression="zstd",
                compression_level=9,
                use_dictionary=["kind", "path", "pid", "tid"],
                column_encoding=dict.fromkeys(
                    ("time", "addr", "len", "addr2", "len2", "offset"), "DELTA_BINARY_PACKED"
                ),
                write_page_checksum=True,
            )
        except OSError as error:
            self.abort()
            raise self._cannot(error) from None

    def _cannot(self, error: OSError) -> TraceError:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return TraceError(f"{self.path}: cannot write: {reason}; choose another place with -o")

    def append(
        self,
        *,
        time: int,
        pid: int,
        kind: str,
        tid: int | None = None,
        addr: int = 0,
        len: int = 0,
        addr2: int = 0,
        len2: int = 0,
        prot: int = 0,
        flags: int = 0,
        offset: int = 0,
        file: File | None = None,
        arg: int = 0,
    ) -> None:
        """Add one event, columns by name; ``tid`` defaults to ``pid``."""
        if kind not in KINDS:
            raise TraceError(f"{self.path}: row {self.num_events}: no kind {kind!r}")
        tid = pid if tid is None else tid
        code = KINDS.index(kind)
        self.append_row(
            (time, pid, tid, code, addr, len, addr2, len2, prot, flags, offset, file, arg)
        )

    def append_row(self, row: tuple[Any, ...]) -> None:
        """Add one event: the tuple of the reader, with a File or None in place of its index."""
        self._rows.append(row)
        self.num_events += 1
        if len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        names = [n for n in TYPES if n not in ("path", "inode", "size")]
        names.insert(names.index("arg"), "file")
        values = dict(zip(names, zip(*rows, strict=True), strict=True))
        files = [file or ANONYMOUS for file in values.pop("file")]
        values["inode"] = tuple(file.inode for file in files)
        values["size"] = tuple(file.size for file in files)
        self._write(values, len(rows), [file.path or None for file in files])

    def append_columns(self, columns: Mapping[str, Any]) -> None:
        """
        Add many events that name no file, by column: arrays of shape [events].

        ``kind`` holds kind codes. Columns left out are 0, but for ``tid``, which is as ``pid``.
        """
        self._flush()
        count = len(columns["kind"])
        values = {name: np.zeros(count, dtype) for name, dtype in NUMBERS.items()}
        values |= {"tid": columns["pid"], **columns}
        self.num_events += count
        self._write(values, count, [None] * count)

    def _write(self, values: Mapping[str, Any], count: int, paths: list[str | None]) -> None:
        """Check and write the last ``count`` events."""
        first = self.num_events - count
        cols: Columns = {"kind": np.array(values["kind"], np.int64)}
        for name, dtype in NUMBERS.items():
            try:
                cols[name] = np.array(values[name], dtype)
            except (OverflowError, TypeError, ValueError):
                raise TraceError(
                    f"{self.path}: rows {first} to {self.num_events - 1}: a value of "
                    f"{name} does not fit {TYPES[name]}"
                ) from None
        if wrong := check_rows(cols, first, self._last_time, self.metadata["page_size"]):
            raise TraceError(f"{self.path}: {wrong}")
        self._last_time = int(cols["time"][-1])
        kinds = pa.DictionaryArray.from_arrays(pa.array(cols["kind"].astype(np.int32)), list(KINDS))
        arrays = {"kind": kinds, "path": pa.array(paths, pa.string()).dictionary_encode()}
        table = [arrays[n] if n in arrays else pa.array(cols[n]) for n in TYPES]
        try:
            self._writer.write_batch(pa.record_batch(table, schema=SCHEMA))
        except OSError as error:
            raise self._cannot(error) from None

    def close(self) -> None:
        """Finish the file and give it its name. Without effect after the first time."""
        if self._writer is None:
            return
        try:
            self._flush()
            if wrong := check_metadata(self.metadata):
                raise TraceError(f"{self.path}: {wrong}")
            text = json.dumps(self.metadata, sort_keys=True)
            self._writer.add_key_value_metadata({METADATA_KEY.decode(): text})
            writer, self._writer = self._writer, None
            writer.close()
            if self._nameless is not None:
                # The place is absolute; only with a folder does Python follow the link in /proc.
                place = f"/proc/self/fd/{self._nameless}"
                os.link(place, self._temporary, src_dir_fd=self._nameless, follow_symlinks=True)
            self._temporary.replace(self._target)
            self._forget()
        except OSError as error:
            self.abort()
            raise self._cannot(error) from None
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop what was written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                writer.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()
        self._forget()

    def _forget(self) -> None:
        """Close the file that may have had no name."""
        if self._nameless is not None:
            os.close(self._nameless)
            self._nameless = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class TraceReader:
    """
    Read a trace in batches, in constant memory.

    A context manager. ``files`` grows while reading; its index 0 is anonymous memory.

    Raises TraceError: the file is missing, empty, truncated, damaged or no trace; on reading, a row
    breaks a rule.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.files: list[File] = [ANONYMOUS]
        self._index: dict[tuple[str, int, int], int] = {ANONYMOUS: 0}
        self._hash: str | None = None
        self._check_frame()
        try:
            footer = pq.read_metadata(self.path)
            self.metadata: dict[str, Any] = self._read_metadata(footer.metadata or {})
            self._check_columns(footer.schema.to_arrow_schema())
            self._file = pq.ParquetFile(
                self.path,
                metadata=footer,
                read_dictionary=["kind", "path"],
                page_checksum_verification=True,
            )
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from None
        self.page_size: int = self.metadata["page_size"]
        self.num_events: int = self._file.metadata.num_rows

    def _check_frame(self) -> None:
        """Look at the two ends of the file: the usual mistakes have a plain answer."""
        again = "record it again with `virtmm record`"
        try:
            with self.path.open("rb") as stream:
                head = stream.read(4)
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - 4))
                tail = stream.read(4)
        except FileNotFoundError:
            raise TraceError(
                f"{self.path}: no such trace; make one with `virtmm record -o {self.path} -- CMD`"
            ) from None
        except IsADirectoryError:
            raise TraceError(f"{self.path}: is a directory; name a trace file") from None
        except OSError as error:
            raise TraceError(f"{self.path}: cannot read: {error.strerror}") from None
        if not size:
            raise TraceError(f"{self.path}: the file is empty; {again}")
        if head != b"PAR1":
            raise TraceError(f"{self.path}: not a trace (no Parquet file); {again}")
        if tail != b"PAR1" or size < 12:
            raise TraceError(f"{self.path}: the file is truncated at {size} bytes; {again}")

    def _damaged(self, error: Exception, row: int | None = None) -> TraceError:
        where = "" if row is None else f" after row {row}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return TraceError(f"{self.path}: the file is damaged{where} ({reason}); record it again")

    def _read_metadata(self, keys: Mapping[bytes, bytes]) -> dict[str, Any]:
        text = keys.get(METADATA_KEY)
        if text is None:
            raise TraceError(
                f"{self.path}: a Parquet file but no virtmm trace; record one with `virtmm record`"
            )
        try:
            metadata = json.loads(text)
        except ValueError as error:
            raise self._damaged(error) from None
        if not isinstance(metadata, dict):
            raise TraceError(f"{self.path}: the metadata is no JSON object; record the trace again")
        if wrong := check_metadata(metadata):
            raise TraceError(f"{self.path}: {wrong}; record the trace again")
        return metadata

    def _check_columns(self, schema: pa.Schema) -> None:
        for name, wanted in TYPES.items():
            at = schema.get_field_index(name)
            if at < 0:
                raise TraceError(f"{self.path}: column {name} is missing; record the trace again")
            got = schema.field(at).type
            # Other writers keep strings plain; read_dictionary makes both the same to us.
            same = wanted is STRING and got == pa.string()
            if got != wanted and not same:
                wanted = "string" if wanted is STRING else wanted
                raise TraceError(
                    f"{self.path}: column {name} is {got}, not {wanted}; record the trace again"
                )

    @property
    def hash(self) -> str:
        """SHA-256 of the file's content, in hexadecimal."""
        if self._hash is None:
            with self.path.open("rb") as stream:
                self._hash = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hash

    def highest(self, address: int) -> int:
        """
        Return the largest ``addr`` of all calls if one is ``address`` or above, else 0.

        Faults do not count: a program may touch what it never mapped.
        """
        footer = self._file.metadata
        at = footer.schema.names.index("addr")
        groups = [footer.row_group(i).column(at).statistics for i in range(footer.num_row_groups)]
        if all(s is not None and s.has_min_max and s.max < address for s in groups):
            return 0
        found = 0
        try:
            for batch in self._file.iter_batches(columns=["kind", "addr"]):
                calls = pc.not_equal(batch.column("kind").cast(pa.string()), "fault")
                found = max(found, pc.max(batch.column("addr").filter(calls)).as_py() or 0)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from None
        return found if found >= address else 0

    def mapped_files(self, prot: int) -> set[File]:
        """Return the files that an mmap of the trace maps with a protection that has all of ``prot``."""
        found: set[File] = set()
        columns = ["kind", "prot", "path", "inode", "size"]
        try:
            for batch in self._file.iter_batches(columns=columns):
                kinds, given = batch.column("kind"), batch.column("prot")
                words = kinds.dictionary.to_pylist()
                if "mmap" not in words:
                    continue
                bits = pa.scalar(prot, given.type)
                has = pc.equal(pc.bit_wise_and(given, bits), bits)
                mmap = pc.equal(kinds.indices, words.index("mmap"))
                rows = batch.filter(pc.and_(pc.and_(mmap, has), batch.column("path").is_valid()))
                of = [rows.column(name).to_pylist() for name in ("path", "inode", "size")]
                found.update(map(File, *of))
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from None
        return found

    def batches(self) -> Iterator[Batch]:
        """Yield the rows, at most BATCH_ROWS at a time. Every row is checked before it is handed out."""
        row, last_time = 0, 0
        source = self._file.iter_batches(batch_size=BATCH_ROWS, columns=list(TYPES))
        while True:
            try:
                batch = next(source, None)
                if batch is None:
                    return
                cols = self._columns(batch, row)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(error, row) from None
            if not batch.num_rows:
                continue
            if wrong := check_rows(cols, row, last_time, self.page_size):
                raise TraceError(f"{self.path}: {wrong}; record the trace again")
            last_time = int(cols["time"][-1])
            row += batch.num_rows
            yield Batch(cols, self._file_indices(batch, cols))

    def _columns(self, batch: pa.RecordBatch, row: int) -> Columns:
        """Turn a batch into numpy arrays of shape [rows], kinds as codes."""
        cols: Columns = {}
        for name in TYPES:
            column = batch.column(name)
            if name == "path":
                continue
            if column.null_count:
                at = first_true(column.is_null().to_numpy(zero_copy_only=False))
                raise TraceError(f"{self.path}: row {row + (at or 0)}: {name} is null")
            if name == "kind":
                known = {kind: code for code, kind in enumerate(KINDS)}
                words = column.dictionary.to_pylist()
                codes = np.array([known.get(word, -1) for word in words] or [-1], np.int64)
                cols[name] = codes[column.indices.to_numpy()]
            else:
                cols[name] = column.to_numpy()
        return cols

    def _file_indices(self, batch: pa.RecordBatch, cols: Columns) -> npt.NDArray[Any] | None:
        """Give the file index of each row, None when all are anonymous."""
        paths = batch.column("path")
        if paths.null_count == batch.num_rows:
            return None
        result = np.zeros(batch.num_rows, np.int64)
        words = paths.dictionary.to_pylist()
        rows = np.flatnonzero(paths.is_valid().to_numpy(zero_copy_only=False))
        which = paths.indices.take(pa.array(rows)).to_pylist()
        inodes, sizes = cols["inode"][rows].tolist(), cols["size"][rows].tolist()
        found = []
        for word, inode, size in zip(which, inodes, sizes, strict=True):
            file = words[word], inode, size
            index = self._index.get(file)
            if index is None:
                index = self._index[file] = len(self.files)
                self.files.append(File(*file))
            found.append(index)
        result[rows] = found
        return result

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
