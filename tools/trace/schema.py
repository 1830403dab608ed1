# SPDX-License-Identifier: GPL-2.0-only
"""
What is in a trace file: one row for each thing that happened to a program's address spaces.

A trace is an Apache Parquet file, so pandas, DuckDB and polars read it. Rows are in time order. All
columns but ``path`` are without nulls; what a kind does not use is 0.

==========  =======  ============================================================================
column      type     meaning
==========  =======  ============================================================================
``time``    u64      nanoseconds since the start of the recording
``pid``     i32      process (thread group)
``tid``     i32      thread that acted
``kind``    string   one of ``KINDS`` (dictionary encoded)
``addr``    u64      start of the range, bytes; of a fault the exact address, not page aligned
``len``     u64      length of the range, bytes, rounded up to whole pages (``brk``: exact)
``addr2``   u64      mremap: where the range is now
``len2``    u64      mremap: its new length, bytes
``prot``    u8       PROT_* (1 read, 2 write, 4 exec); of a fault the access, in the same bits
``flags``   u32      mmap: MAP_*; fork: CLONE_* without the exit signal; mremap: MREMAP_*;
                     fault: FAULT_PRESENT, FAULT_KERNEL
``offset``  u64      mmap: offset in the file, bytes
``path``    string   mmap: the file, null for anonymous memory; exec: the program
``inode``   u64      mmap: identity of the file, its device folded in; 0 where there is no file
``size``    u64      mmap: size of the file in bytes at the end of the recording, 0 = unknown
``arg``     i64      madvise: the advice; fork: pid of the child
==========  =======  ============================================================================

Flag and advice numbers are those of the machine in the metadata. Only calls that succeeded are
events.

``mmap``
    [addr, addr+len) is mapped anew, as the call left it; whatever was there is gone, with or
    without MAP_FIXED in the flags. A path in square brackets (``[vdso]``, ``[vvar]``) is a special
    mapping of the kernel's own pages. Pages that MAP_POPULATE fills are no fault rows: the flag
    stands for them.
``munmap``
    The range is unmapped; it may span several mappings and holes.
``mremap``
    [addr, addr+len) became [addr2, addr2+len2), contents moved along. ``len`` 0 duplicates a shared
    mapping; MREMAP_DONTUNMAP leaves the old range mapped and empty.
``mprotect``
    The range has a new protection.
``madvise``
    ``arg`` is the advice.
``brk``
    The heap begins at ``addr`` and is ``len`` bytes long from now on (absolute; pages that it no
    longer covers are gone). The first of a program has length 0.
``fork``
    ``pid`` made the process ``arg``. With CLONE_VM in the flags (vfork, posix_spawn) the child
    borrows its parent's address space until its exec or exit, else it has a copy. Threads are no
    events: their faults carry the process's pid and their own tid.
``exec``
    The address space is new and empty. The mmap rows of the same process that follow say what the
    kernel mapped: ELF segments, bss, special mappings, and the stack, which has MAP_GROWSDOWN and
    MAP_STACK and grows by faults below it (no event of its own). Pages of the stack that exec
    itself fills (arguments, environment) are no fault rows.
``exit``
    The last thread of the process ended, and its address space with it.
``fault``
    The processor reported a page fault at a user address, in user or in kernel mode. It may have
    ended in a signal, and one that the kernel meets twice is there twice. A file page that the
    kernel mapped around another fault has none, unless ``fault_around_bytes`` is one page.

The metadata is JSON under the key ``virtmm``. ``schema`` (version) and ``page_size`` are required;
the recorder adds ``command``, ``exit_status``, ``kernel``, ``machine``, ``thp``, ``aslr``,
``fault_around_bytes`` (null = the kernel did not tell, usually 65536), ``every_file_page``,
``stack_limit``, ``losses``, ``processes``, ``minflt`` and ``maxrss_kb`` (the kernel's own figures for
the command and what outlived it), ``duration_ns`` and ``recorder``; further

``backend``
    ``perf`` or ``user``.
``limits``
    What that back-end could not see: a list of phrases, empty if nothing.
``partial``, ``partial_reason``
    Whether the recording ended before the program did, and why; the rows are those up to there.
``overhead``
    ``wall_ns`` of the recorded run, ``program_cpu_ns``, and ``recorder_cpu_ns`` of the processes that
    recorded it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 1
METADATA_KEY = b"virtmm"
BATCH_ROWS = 65536

KINDS = (
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "fork",
    "exec",
    "exit",
    "fault",
)
(
    KIND_MMAP,
    KIND_MUNMAP,
    KIND_MREMAP,
    KIND_MPROTECT,
    KIND_MADVISE,
    KIND_BRK,
    KIND_FORK,
    KIND_EXEC,
    KIND_EXIT,
    KIND_FAULT,
) = range(10)

FAULT_PRESENT = 1  # the page was mapped and the access not allowed: copy on write, or a signal
FAULT_KERNEL = 2  # met in kernel mode, for instance by read() into fresh memory

_U64_MAX = 2**64 - 1
STRING = pa.dictionary(pa.int32(), pa.string())
TYPES: dict[str, Any] = {
    "time": pa.uint64(),
    "pid": pa.int32(),
    "tid": pa.int32(),
    "kind": STRING,
    "addr": pa.uint64(),
    "len": pa.uint64(),
    "addr2": pa.uint64(),
    "len2": pa.uint64(),
    "prot": pa.uint8(),
    "flags": pa.uint32(),
    "offset": pa.uint64(),
    "path": STRING,
    "inode": pa.uint64(),
    "size": pa.uint64(),
    "arg": pa.int64(),
}
NUMBERS = {name: t.to_pandas_dtype() for name, t in TYPES.items() if t is not STRING}
SCHEMA = pa.schema([pa.field(name, t, nullable=name == "path") for name, t in TYPES.items()])

Columns = dict[str, npt.NDArray[Any]]
Row = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int]


class TraceError(Exception):
    """A trace cannot be read, written or recorded: one line with what, where and the next step."""


class File(NamedTuple):
    """What a mapping maps: path, identity (0 = none), size in bytes (0 = unknown)."""

    path: str
    inode: int
    size: int


ANONYMOUS = File("", 0, 0)  # index 0 of TraceReader.files


def first_true(bad: npt.NDArray[np.bool_]) -> int | None:
    """Return the first true position, or None."""
    at = int(bad.argmax()) if bad.size else 0
    return at if bad.size and bad[at] else None


def check_rows(cols: Columns, row: int, last_time: int, page_size: int) -> str | None:
    """
    Check one batch of rows, ``row`` being the number of its first.

    Returns the message for the first row that breaks a rule, or None. ``cols["kind"]`` holds kind
    codes, -1 for an unknown kind.
    """
    time, kind, addr, length = cols["time"], cols["kind"], cols["addr"], cols["len"]
    # Kinds whose address and length are whole pages, whatever made the trace.
    paged = kind <= KIND_MADVISE
    mask = np.uint64(page_size - 1)
    before = np.concatenate((np.array([last_time], np.uint64), time[:-1]))
    maps = kind == KIND_MMAP
    rules: list[tuple[npt.NDArray[np.bool_], str]] = [
        (kind < 0, "the kind is unknown"),
        (time < before, "the time goes back"),
        (cols["pid"] <= 0, "the pid is not positive"),
        (length > np.uint64(_U64_MAX) - addr, "address + length exceeds 64 bits"),
        (cols["len2"] > np.uint64(_U64_MAX) - cols["addr2"], "address + length exceeds 64 bits"),
        (paged & (((addr | length | cols["addr2"] | cols["len2"]) & mask) != 0),
         f"the range is not made of whole pages of {page_size} bytes"),
        (maps & (length == 0), "the mapping has no length"),
        ((kind == KIND_FORK) & (cols["arg"] <= 0), "the child's pid is not positive"),
    ]  # fmt: skip
    found = [(at, text) for bad, text in rules if (at := first_true(bad)) is not None]
    if not found:
        return None
    at, text = min(found)
    return f"row {row + at}: {text}"


def check_metadata(metadata: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the metadata, or None."""
    version = metadata.get("schema")
    if version != SCHEMA_VERSION:
        return f"schema version {version!r}, this virtmm reads {SCHEMA_VERSION}"
    size = metadata.get("page_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1 or size & (size - 1):
        return f"page_size {size!r} is not a power of two"
    return None
