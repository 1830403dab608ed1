# SPDX-License-Identifier: GPL-2.0-only
"""
What a machine could do at best: move the bytes that an operation works on, decode a trace and no more.

The bytes are those that the model counts, entries and page records. Arrays that fit into caches move
faster than ``bandwidth()`` says, so a bound is one for work that does not fit.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from scripts.bench_real import choose
from scripts.document import table
from scripts.operations import OPERATIONS, Lab, settings_of
from virtmm.kconfig import resolve
from virtmm.machine import Machine

#: Bytes that a page-table entry, and a page's record read and written, have.
PTE_BYTES, RECORD_BYTES = 8, 2 * 32
#: Size of the arrays that are copied to see the bandwidth.
STREAM_BYTES = 256 << 20
#: The operations of the table of bounds: folio size in KiB, MiB that they work on.
BOUND_SIZES, BOUND_MIB = (4, 64, 2048), 512
BOUND_OPERATIONS = ("first_touch", "munmap", "fork", "exit", "mprotect")


def event_bytes(path: Path) -> int:
    """Return the bytes of an event in columns: numbers as they are, texts as an index."""
    schema = pq.read_schema(path)
    widths = [getattr(kind, "bit_width", 32) for kind in schema.types if _is_number(kind)]
    return (sum(widths) + 32 * (len(schema.types) - len(widths))) // 8


def _is_number(kind: Any) -> bool:
    return str(kind).lstrip("u").startswith("int")


def bytes_moved(machine: Machine) -> int:
    """
    Return the bytes of entries and page records that a machine's work so far took, at least.

    Those are every entry that was read or written, and the record of every page that was mapped, shared
    or unmapped.
    """
    work, events = machine.work(), machine.events()
    pages = sum(_pages(events[name]) for name in ("anon_fault", "wp_copy", "wp_zero"))
    for name in ("zap_anon", "fork_anon"):  # counted in pages
        by_order = events[name]
        pages += sum(by_order.values()) if isinstance(by_order, dict) else by_order
    entries = work["pte_read"] + work["pte_write"]
    return entries * PTE_BYTES + pages * RECORD_BYTES


def _pages(folios: int | dict[str, int]) -> int:
    if isinstance(folios, int):
        return folios
    return sum(n << int(order) for order, n in folios.items())


def bandwidth(size: int = STREAM_BYTES) -> float:
    """Return the memory bandwidth, bytes a second: the best copy of a large array, read and write."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    best = 0.0
    for _ in range(7):
        began = time.perf_counter_ns()
        np.copyto(target, source)
        best = max(best, 2 * size * 1e9 / (time.perf_counter_ns() - began))
    return best


def bare_decode(path: Path) -> int:
    """Return the ns of reading a trace into columns and looking at each number once; the best of 5."""
    times = []
    for _ in range(5):
        began = time.perf_counter_ns()
        for batch in pq.ParquetFile(path, read_dictionary=["kind", "path"]).iter_batches():
            for column in batch.columns:
                if _is_number(column.type):
                    np.add.reduce(column.to_numpy())
        times.append(time.perf_counter_ns() - began)
    return min(times)


def operation_bounds(mib: int = BOUND_MIB) -> str:
    """Return the distance of single operations to the bandwidth."""
    rate, rows = bandwidth(), []
    for kib in BOUND_SIZES:
        config = resolve(*choose(), sets=[f"MEMORY_MB={max(64, 4 * mib)}"])
        lab = Lab(config, kib << 10, mib << 20, settings_of(kib, 4))
        with lab.machine:
            for name in BOUND_OPERATIONS:
                ns, moved = _timed(lab, name)
                least = moved * 1e9 / rate
                rows.append(
                    (
                        name,
                        f"{kib}K",
                        f"{ns / lab.pages:.2f}",
                        f"{moved / lab.pages:.1f}",
                        f"{least / lab.pages:.2f}",
                        f"{ns / least:,.1f}" if least else "-",
                    )
                )
    return table(
        ("operation", "folio", "ns a page", "bytes a page", "ns of moving them", "times"), rows
    )


def _timed(lab: Lab, name: str) -> tuple[float, int]:
    """Return (ns, bytes moved) of an operation: medians of three, after one that warms up."""
    operation, times, moved = OPERATIONS[name], [], 0
    for _ in range(4):
        operation.prepare(lab)
        before = bytes_moved(lab.machine)
        began = time.perf_counter_ns()
        operation.run(lab)
        times.append(time.perf_counter_ns() - began)
        moved = bytes_moved(lab.machine) - before
        operation.finish(lab)
    return median(times[1:]), moved
