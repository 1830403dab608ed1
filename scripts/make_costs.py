# SPDX-License-Identifier: GPL-2.0-only
"""
Make arch/<arch>/costs.csv from the measured instruction counts: make_costs.py SHARED_COSTS_DIR.

A developer tool, run by hand when the measurements change. It reads kernel-instructions.csv (the
sweep over folio sizes) and kernel-life.csv (everything else a program does) and writes, per release
and base page size, what one unit of each EVENT of csrc/arena.def costs in executed instructions,
zeroing and copying included. Documentation/costs.md explains every derivation; the ``source``
column names the measured operations. An architecture has a table when arch/<arch>/measured.toml says
what its measurements were made with.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from virtmm.arch import load_arch

TOP = Path(__file__).resolve().parent.parent
RELEASES = ("6.12", "7.3")
COLUMNS = ("release", "page_size", "event", "order", "instructions", "source")
ENTRY_BYTES = 8
# The program behind fork_base and exec_static (kernel-life.md, "What each op timed").
BASE_PAGES = 5  # resident, "4-7"
BASE_ANON_VMAS = 2  # data and stack
# Of fork_*_vma_touched: a VMA of 64 KiB, a gap of 64 KiB, one page written.
TOUCHED_VMA, TOUCHED_STRIDE = 64 << 10, 128 << 10
FAULT_AROUND = 64 << 10


class MakeCostsError(Exception):
    """The measurements are missing, malformed, or lack a row."""


class Row(NamedTuple):
    """One measured operation: minor faults, bytes of the region, instructions of all of it."""

    faults: float
    size: int
    instructions: float


class Price(NamedTuple):
    """One line of costs.csv without release and page size; order None = not counted by order."""

    event: str
    order: int | None
    instructions: float
    source: str


@dataclass(frozen=True)
class Conditions:
    """
    What the measurements of an architecture were made with, its measured.toml.

    Attributes:
        base_vmas: VMAs of the program behind fork_base and exec_static.
        unseeded_call: release -> instructions too many in each system call of the sweep.
    """

    base_vmas: float
    unseeded_call: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise TypeError unless all are numbers."""
        if not isinstance(self.unseeded_call, Mapping):
            raise TypeError(f"unseeded_call: {self.unseeded_call!r} is not a table of numbers")
        for name, value in {"base_vmas": self.base_vmas, **self.unseeded_call}.items():
            if type(value) not in (int, float):
                raise TypeError(f"{name}: {value!r} is not a number")


def measured() -> dict[str, Conditions]:
    """Return the architectures that were measured, sorted by name."""
    found = {}
    for path in sorted((TOP / "arch").glob("*/measured.toml")):
        try:
            found[path.parent.name] = Conditions(**tomllib.loads(path.read_text()))
        except (TypeError, ValueError) as e:
            raise MakeCostsError(f"{path}: {e}") from None
    return found


@dataclass
class Kernel:
    """The measurements of one kernel: life[op], sweep[op][order]."""

    conditions: Conditions
    arch: str
    release: str
    page_size: int
    life: dict[str, Row] = field(default_factory=dict)
    sweep: dict[str, dict[int, Row]] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """Entries of one page table."""
        return self.page_size // ENTRY_BYTES

    @property
    def unseeded(self) -> float:
        """Instructions too many in each system call of the sweep."""
        return self.conditions.unseeded_call.get(self.release, 0.0)

    @property
    def base_tables(self) -> int:
        """Tables of a small program: the root, and one a level for the low half and for the stack."""
        geometry = load_arch(self.arch).geometry(self.page_size.bit_length() - 1)
        return 1 + 2 * (len(geometry.levels) - 1)

    def op(self, name: str) -> float:
        """Return instructions of one call (or block) of a kernel-life operation."""
        return self._life(name).instructions

    def life_page(self, name: str) -> float:
        """Return instructions per base page of a kernel-life operation on a region."""
        row = self._life(name)
        return row.instructions / (row.size // self.page_size)

    def page(self, name: str, order: int, calls: int = 0, extra: float = 0.0) -> float:
        """Return instructions per base page of a sweep operation, less its calls' falsification."""
        row = self.region(name, order)
        total = row.instructions - calls * self.unseeded - extra
        return total / (row.size // self.page_size)

    def region(self, name: str, order: int) -> Row:
        """Return the row of a sweep operation for folios of one order."""
        try:
            return self.sweep[name][order]
        except KeyError:
            raise MakeCostsError(
                f"kernel-instructions.csv: no {name} of order {order} for {self.arch} "
                f"{self.release} {self.page_size}"
            ) from None

    def _life(self, name: str) -> Row:
        if name not in self.life:
            raise MakeCostsError(
                f"kernel-life.csv: no {name} for {self.arch} {self.release} {self.page_size}"
            )
        return self.life[name]


def read_kernels(folder: Path) -> list[Kernel]:
    """Read both files; return the kernels that tables are made for, in order of output."""
    archs = measured()
    kernels: dict[tuple[str, str, int], Kernel] = {}
    for name in ("kernel-instructions.csv", "kernel-life.csv"):
        path = folder / name
        try:
            with path.open(newline="") as f:
                rows = list(csv.DictReader(f))
        except OSError as e:
            raise MakeCostsError(f"{path}: {e.strerror}; give the folder with both csv") from None
        for number, raw in enumerate(rows, 2):
            try:
                _take_row(archs, kernels, name, raw)
            except (KeyError, ValueError, TypeError, AttributeError) as e:
                raise MakeCostsError(f"{path}:{number}: not a row of measurements ({e})") from None
    for arch in archs:
        for release in RELEASES:
            of = [k for k in kernels.values() if (k.arch, k.release) == (arch, release)]
            if not of or not all(k.life and k.sweep for k in of):
                raise MakeCostsError(f"{folder}: nothing, or one file of two, of {arch} {release}")
    return [kernels[key] for key in sorted(kernels, key=_order)]


def _order(key: tuple[str, str, int]) -> tuple[str, int, int]:
    arch, release, page_size = key
    return arch, RELEASES.index(release), page_size


def _take_row(
    archs: Mapping[str, Conditions],
    kernels: dict[tuple[str, str, int], Kernel],
    name: str,
    raw: dict[str, str],
) -> None:
    arch, release = raw["arch"], ".".join(raw["kernel"].split(".")[:2])
    size = int(raw["page_size"])
    # "@": measured under another knob.
    if arch not in archs or release not in RELEASES or "@" in raw["op"]:
        return
    k = kernels.setdefault((arch, release, size), Kernel(archs[arch], arch, release, size))
    row = Row(float(raw["faults"]), int(raw["bytes"]), float(raw["instructions"]))
    if name == "kernel-life.csv":
        k.life[raw["op"]] = row
    else:
        pages = max((int(raw["folio_kb"]) << 10) // k.page_size, 1)
        k.sweep.setdefault(raw["op"], {})[pages.bit_length() - 1] = row


class TableCost(NamedTuple):
    """Page-table pages: allocate, free, and pass over one empty entry in a zap."""

    alloc: float
    free: float
    none: float
    source: str


def table_costs(kernels: Iterable[Kernel]) -> dict[tuple[str, str, int], TableCost]:
    """
    Split the teardown of a page table into freeing it and scanning its empty entries.

    A block with one page costs P1 = free + page + (E-1) none, with two pages
    P2 = free + 2 page + (E-2) none, so 2 P1 - P2 = free + E none. Where two page sizes were measured
    they run the same code with two values of E, which solves for both. With one, ``none`` is what
    MADV_DONTNEED pays for an empty entry in the oldest release; in later ones, where it gives empty
    tables back and so shows nothing, ``free`` is the oldest's.
    """
    found: dict[tuple[str, str, int], TableCost] = {}
    for arch in dict.fromkeys(k.arch for k in kernels):
        oldest: float | None = None
        for release in RELEASES:
            of = [k for k in kernels if (k.arch, k.release) == (arch, release)]
            split = _solved(of[0], of[-1]) if len(of) > 1 else _with_madvise(of[0], oldest)
            oldest = oldest if oldest is not None else split[0]
            for k in of:
                alloc = k.op("touch_sparse_pmd") - k.op("touch_sparse_pmd_second")
                found[arch, release, k.page_size] = TableCost(alloc, *split)
    return found


def _whole(k: Kernel) -> float:
    """Return free + E none."""
    return 2 * k.op("munmap_sparse_pmd") - k.op("munmap_sparse_pmd_2p")


def _solved(small: Kernel, big: Kernel) -> tuple[float, float, str]:
    """Return (free, none, source) from two page sizes."""
    none = (_whole(big) - _whole(small)) / (big.entries - small.entries)
    sizes = f"{small.page_size >> 10}K and {big.page_size >> 10}K"
    source = f"munmap_sparse_pmd and _2p of {sizes} solved"
    return _whole(small) - small.entries * none, none, source


def _with_madvise(k: Kernel, free: float | None) -> tuple[float, float, str]:
    """Return (free, none, source) from one page size; ``free`` is an older release's."""
    if free is not None:
        none = (_whole(k) - free) / k.entries
        return free, none, f"munmap_sparse_pmd and _2p; SIMPLIFIED: free as in {RELEASES[0]}"
    none = (k.op("madvise_ptempty") - k.op("madvise_empty")) / ((4 << 20) / k.page_size)
    source = "munmap_sparse_pmd and _2p; madvise_ptempty - madvise_empty"
    return _whole(k) - k.entries * none, none, source


class Deriver:
    """Prices of one kernel; each method is one group of events and adds to ``prices``."""

    def __init__(self, kernel: Kernel, tables: TableCost) -> None:
        self.k = kernel
        self.tables = tables
        self.orders = sorted(kernel.sweep.get("touch", {0: None}))
        self.pmd_order = kernel.entries.bit_length() - 1
        self.prices: list[Price] = []
        # Unrounded, order 0 of by-order events: later groups subtract these.
        self.cost: dict[str, float] = {}

    def derive(self) -> list[Price]:
        """Return all prices in the order of arena.def, components last."""
        self._anon_faults()
        self._file_faults()
        self._page_tables()
        self._unmapping()
        self._fork_pages()
        self._processes()
        self._calls()
        self._components()
        return self.prices

    def _add(self, event: str, instructions: float, source: str) -> float:
        self.prices.append(Price(event, None, instructions, source))
        self.cost[event] = instructions
        return instructions

    def _add_orders(
        self, event: str, source: str, unit: str, measured: Callable[[int], float]
    ) -> dict[int, float]:
        """
        Add a by-order event, ``measured(order)`` each, and the orders that nobody measured.

        unit: "page" or "folio", what ``measured`` is for. Order 1 has no row, being no size of
        anonymous folios; it is read off the line a + b n through orders 2 and 3, n pages a folio.
        """
        values = {o: measured(o) for o in self.orders}
        for o in set(range(self.pmd_order + 1)) - set(values):
            low, high = o + 1, o + 2
            scale = (lambda k: 1 << k) if unit == "page" else (lambda _: 1)
            a, b = line(low, values[low] * scale(low), high, values[high] * scale(high))
            values[o] = (a + b * (1 << o)) / scale(o)
        for o in sorted(values):
            fit = "" if o in self.orders else f"; order {o}: a + b n of orders {o + 1} and {o + 2}"
            self.prices.append(Price(event, o, values[o], source + fit))
        self.cost[event] = values[0]
        return values

    def _fresh(self, op: str, order: int) -> float:
        """Per page: ``op`` on fresh memory less the user's loop and its page-table pages."""
        k = self.k
        return k.page(op, order) - k.page("retouch", order) - self.tables.alloc / k.entries

    def _anon_faults(self) -> None:
        k = self.k
        loop = k.page("retouch", 0)
        copy = k.op("copy_page")
        self.fault = self._add_orders(
            "anon_fault",
            "touch - retouch - pt_page_alloc/entries",
            "folio",
            lambda o: self._fresh("touch", o) * (1 << o),
        )
        self._add("zero_page_fault", self._fresh("read_touch", 0), "read_touch; as anon_fault")
        reuse = k.page("wp_reuse_after_child_exit", 0) - loop
        self._add("wp_reuse", reuse, "wp_reuse_after_child_exit - retouch")
        copy0 = k.page("cow_write", 0) - loop
        zero0 = k.page("write_after_read", 0) - loop
        self._derived_orders(
            "wp_copy",
            "cow_write - retouch",
            "SIMPLIFIED: anon_fault[order] + n copy_page + wp_copy[0] - anon_fault[0] - copy_page",
            lambda o: self.fault[o] + (copy0 - self.fault[0] - copy) + copy * (1 << o),
        )
        self._derived_orders(
            "wp_zero",
            "write_after_read - retouch",
            "SIMPLIFIED: anon_fault[order] + wp_zero[0] - anon_fault[0]",
            lambda o: self.fault[o] + zero0 - self.fault[0],
        )
        self._add("spurious_fault", reuse, "SIMPLIFIED: as wp_reuse")

    def _derived_orders(
        self, event: str, source0: str, source: str, value: Callable[[int], float]
    ) -> None:
        """Add an event of which real kernels only know order 0; ``value(0)`` is measured."""
        for o in range(self.pmd_order + 1):
            self.prices.append(Price(event, o, value(o), source if o else source0))
        self.cost[event] = value(0)

    def _file_faults(self) -> None:
        k = self.k
        loop, table = k.page("retouch", 0), self.tables.alloc / k.entries
        one = k.life_page("file_read_fault_nofa") - loop - table
        around = FAULT_AROUND // k.page_size
        window = k.life_page("file_read_fault_64k") * around - loop - table * around
        written = (k.life_page("file_write_fault") + k.life_page("file_write_fault_fresh")) / 2
        self._add("file_read_fault", one, "file_read_fault_nofa - retouch - pt_page_alloc/entries")
        self._add(
            "file_around_pages",
            (window - one) / (around - 1),
            "(file_read_fault_64k a window - file_read_fault) / (pages a window - 1)",
        )
        self._add(
            "file_write_fault",
            written - loop - table / 2,
            "mean of file_write_fault and file_write_fault_fresh - retouch",
        )
        self._add("file_shared_fault", one, "SIMPLIFIED: as file_read_fault")

    def _page_tables(self) -> None:
        alloc = "touch_sparse_pmd - touch_sparse_pmd_second"
        self._add("pt_page_alloc", self.tables.alloc, alloc)
        self._add("pt_page_free", self.tables.free, self.tables.source)
        self._add("zap_none", self.tables.none, self.tables.source)

    def _unmapping(self) -> None:
        """Split munmap of private pages into unmapping, as a child pays it, and freeing."""
        k, t = self.k, self.tables
        child = k.op("fork_base") - k.op("fork_call_base")

        def unmap(order: int) -> float:
            whole = k.page("fork_exit_wait", order, 3, child)
            return whole - k.page("fork_call", order, 1) - t.free / k.entries

        def free(order: int) -> float:
            whole = k.page("munmap", order, 1, k.op("munmap_empty")) - t.free / k.entries
            return (whole - unmap(order)) * (1 << order)

        source = "fork_exit_wait - fork_call - (fork_base - fork_call_base) - pt_page_free/entries"
        self._add_orders("zap_anon", source, "page", unmap)
        source = "munmap - munmap_empty - pt_page_free/entries - zap_anon a page"
        self._add_orders("anon_free", source, "folio", free)
        row = k.life["munmap_file_read"]
        pages = row.size // k.page_size
        self._add(
            "zap_file",
            (row.instructions - k.op("munmap_empty")) / pages - t.free / k.entries,
            "munmap_file_read - munmap_empty - pt_page_free/entries",
        )

    def _fork_pages(self) -> None:
        k = self.k

        def shared(order: int) -> float:
            extra = k.op("fork_call_base")
            extra += k.region("fork_call", order).faults * self.cost["wp_copy"]
            return k.page("fork_call", order, 1, extra) - self.tables.alloc / k.entries

        source = "fork_call - fork_call_base - faults * wp_copy - pt_page_alloc/entries"
        self._add_orders("fork_anon", source, "page", shared)

    def _processes(self) -> None:
        """Fork, exit, vfork and exec: what is left of the base program after its priced parts."""
        k, t, c = self.k, self.tables, self.cost
        vmas, tables = k.conditions.base_vmas, k.base_tables
        call_vma = self._add("fork_vma", k.op("fork_call_per_vma"), "fork_call_per_vma")
        exit_vma = k.op("fork_per_vma") - call_vma
        self._add("exit_vma", exit_vma, "fork_per_vma - fork_call_per_vma")
        share = TOUCHED_STRIDE / (k.entries * k.page_size)  # of a page table
        call_anon = k.op("fork_call_per_vma_touched") - call_vma
        call_anon -= c["fork_anon"] + share * t.alloc
        exit_anon = k.op("fork_per_vma_touched") - k.op("fork_call_per_vma_touched") - exit_vma
        exit_anon -= c["zap_anon"] + share * t.free + (TOUCHED_VMA // k.page_size - 1) * t.none
        self._add(
            "fork_vma_anon",
            call_anon + exit_anon,
            "fork_per_vma_touched - fork_per_vma - its page and share of a page table",
        )
        fork = k.op("fork_call_base") - vmas * call_vma - BASE_ANON_VMAS * call_anon
        fork -= BASE_PAGES * c["fork_anon"] + tables * t.alloc
        self._add("fork", fork, "fork_call_base - VMAs and pages and page tables of its program")
        end = k.op("fork_base") - k.op("fork_call_base") - c["wp_copy"] - c["wp_reuse"]
        end -= vmas * exit_vma + BASE_ANON_VMAS * exit_anon + BASE_PAGES * c["zap_anon"]
        end -= c["anon_free"] + tables * t.free
        self._add(
            "exit",
            end,
            "fork_base - fork_call_base - 2 faults - VMAs and pages and page tables; with wait4",
        )
        self._add("vfork", k.op("vfork_base") - end, "vfork_base - exit")
        run = k.op("vfork_exec_static") - k.op("vfork_base") - vmas * exit_vma
        run -= c["file_read_fault"] + c["zap_file"]
        run -= c["anon_fault"] + c["zap_anon"] + c["anon_free"] + tables * (t.alloc + t.free)
        self._add(
            "exec",
            run,
            "vfork_exec_static - vfork_base - 2 faults - VMAs and pages and page tables it leaves",
        )

    def _calls(self) -> None:
        k = self.k
        mmap = self._add("mmap", k.op("mmap_anon_empty"), "mmap_anon_empty")
        merge = k.op("mmap_anon_merge") - mmap
        self._add("mmap_merge", merge, "mmap_anon_merge - mmap: a correction of mmap")
        munmap = k.op("munmap_empty")
        pairs = [r.instructions for o, r in k.life.items() if o.startswith("mmap_munmap_file_pair")]
        self._add(
            "mmap_file",
            sum(pairs) / len(pairs) - munmap,
            "mmap_munmap_file_pair (mean of file systems) - munmap_empty",
        )
        self._add("munmap", munmap, "munmap_empty")
        self._add(
            "mremap",
            k.op("mmap_anon_merge") + munmap,
            "SIMPLIFIED: mmap_anon_merge + munmap_empty",
        )
        call = k.op("mprotect_empty")
        pages = self._mprotect_pages(call)
        self._add("mremap_pages", pages, "SIMPLIFIED: as mprotect_anon order 0")
        self._add("mprotect", k.op("mprotect_split_merge_empty"), "mprotect_split_merge_empty")
        self._add("madvise", k.op("madvise_empty"), "madvise_empty")
        grow = (k.op("brk_grow_empty") + k.op("brk_grow_empty_early")) / 2
        self._add("brk", grow, "mean of brk_grow_empty and brk_grow_empty_early")

    def _mprotect_pages(self, call: float) -> float:
        k = self.k
        values = self._add_orders(
            "mprotect_anon",
            "mean of mprotect_r and mprotect_rw - mprotect_empty",
            "page",
            lambda o: (k.page("mprotect_r", o, 1, call) + k.page("mprotect_rw", o, 1, call)) / 2,
        )
        return values[0]

    def _components(self) -> None:
        """Add for each event the part that grows with the page size, and its two ingredients."""
        k = self.k
        clear, copy = k.op("clear_page"), k.op("copy_page")
        self._add("component:clear_page", clear, "clear_page")
        self._add("component:copy_page", copy, "copy_page")
        self._add("component:pt_page_alloc", clear, "clear_page")
        self._add("component:file_write_fault", clear + copy, "clear_page + copy_page")
        # 6.12 clears a large folio twice under init_on_alloc: in the allocator and in the fault.
        _, slope = line(3, self.fault[3], 4, self.fault[4])
        times = int(slope // clear)
        for o in range(self.pmd_order + 1):
            n, t = 1 << o, times if o else 1
            source = f"clear_page * {t} a page"
            # A loop over a whole PMD is a little cheaper than clear_page called page by page.
            cleared = min(n * t * clear, self.fault[o])
            self.prices.append(Price("component:anon_fault", o, cleared, source))
            self.prices.append(Price("component:wp_zero", o, cleared, source))
            source += " + copy_page"
            self.prices.append(Price("component:wp_copy", o, cleared + n * copy, source))


def line(low: int, at_low: float, high: int, at_high: float) -> tuple[float, float]:
    """Return a, b of a + b n through the values at two orders, n = 1 << order."""
    b = (at_high - at_low) / ((1 << high) - (1 << low))
    return at_low - b * (1 << low), b


def make_tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (arch, text of its costs.csv) for the measurements in ``folder``."""
    kernels = read_kernels(folder)
    tables = table_costs(kernels)
    for arch in measured():
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for k in kernels:
            if k.arch != arch:
                continue
            for p in Deriver(k, tables[k.arch, k.release, k.page_size]).derive():
                order = "" if p.order is None else p.order
                number = f"{p.instructions:.1f}"
                writer.writerow((k.release, k.page_size, p.event, order, number, p.source))
        yield arch, out.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Write arch/<arch>/costs.csv for each arch; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="SHARED_COSTS_DIR")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=TOP / "arch",
        help="folder with one folder per architecture (default: arch/ of this tree)",
    )
    args = parser.parse_args(argv)
    try:
        for arch, text in list(make_tables(args.folder)):  # all of them, before one is written
            path = args.out / arch / "costs.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"{path}: {text.count(chr(10)) - 1} prices")
    except (MakeCostsError, OSError) as e:
        print(f"make_costs: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
