# SPDX-License-Identifier: GPL-2.0-only
"""
What the counted events of a replay would have cost a real kernel, in executed instructions.

The prices are ``arch/<arch>/costs.csv``, measured per release and base page size; where a machine
has no table the nearest one is used by the rule of load_costs(). Documentation/costs.md has the
units, the derivation of every price, and what an instruction count does not contain.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from virtmm import topdir
from virtmm.kconfig import ArchError, default_arch, shown

if TYPE_CHECKING:
    from virtmm.subject import Subject

COLUMNS = ("release", "page_size", "event", "order", "instructions", "source")
COMPONENT = "component:"

# Events that count pages; the other by-order events count folios (or faults, which is the same).
PER_PAGE = frozenset({"zap_anon", "fork_anon", "mprotect_anon"})
BY_ORDER = PER_PAGE | {"anon_fault", "wp_copy", "wp_zero", "anon_free"}

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "anonymous faults": (
            *("anon_fault", "zero_page_fault", "wp_reuse", "wp_copy", "wp_zero"),
            "spurious_fault",
        ),
        "file faults": (
            *("file_read_fault", "file_around_pages", "file_write_fault", "file_shared_fault"),
        ),
        "fork": ("fork", "fork_vma", "fork_vma_anon", "fork_anon", "vfork"),
        "exec": ("exec",),
        "exit": ("exit", "exit_vma"),
        "mapping calls": (
            *("mmap", "mmap_merge", "mmap_file", "munmap", "mremap", "mremap_pages"),
            *("mprotect", "mprotect_anon", "madvise", "brk"),
        ),
        "unmapping": ("zap_anon", "anon_free", "zap_file"),
        "page tables": ("pt_page_alloc", "pt_page_free", "zap_none"),
    }
)
PAGE_SIZES = tuple(1 << shift for shift in range(12, 17))
_GROUP_OF = {event: group for group, events in GROUPS.items() for event in events}
# What a table may have: the rest is parts of prices.
_EVENTS = {*_GROUP_OF, "clear_page", "copy_page"}
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)*")
_ORDER = re.compile(r"([0-9]{1,2})?")
# A correction of another event's price may be below 0.
_CORRECTION = "mmap_merge"

# Faults that allocate anonymous folios: each is freed once, by who drops the last reference.
_ALLOCATE = ("anon_fault", "wp_copy", "wp_zero", "file_write_fault")

EventCount = int | Mapping[str, int] | Mapping[int, int]
Prices = dict[str, dict[int | None, float]]  # event -> order (None = not by order) -> instructions


class CostError(Exception):
    """A cost table is missing or malformed, or something has no price."""


@dataclass(frozen=True)
class CostTable:
    """
    Prices for one machine.

    Attributes:
        name: the table used, e.g. "arm64 4K 6.12" or "arm64 16K 6.12 scaled to 64K".
        prices: event -> order -> instructions of one unit; order None: the event is not by order.
        simplified: one sentence for each rule that replaced a measurement.
    """

    name: str
    prices: Mapping[str, Mapping[int | None, float]]
    simplified: tuple[str, ...] = ()

    def price(self, events: Mapping[str, EventCount]) -> dict[str, int]:
        """
        Return instructions by group of GROUPS, and their sum as "total".

        Args:
            events: event name -> count, or -> {order: count} (orders as int or decimal string).

        SIMPLIFIED: unless the events say how many anonymous folios were freed (``anon_free``), each
        folio that a fault allocated is freed once; right whenever all processes have ended.

        Raises:
            CostError: an event or order has no price, or a count is no whole number >= 0.
        """
        sums = dict.fromkeys(GROUPS, 0.0)
        counts = {event: self._by_order(event, count) for event, count in events.items()}
        counts.setdefault("anon_free", _allocated(counts))
        for event, by_order in counts.items():
            for order, count in by_order.items():
                sums[_GROUP_OF[event]] += count * self._unit(event, order)
        result = {group: round(value) for group, value in sums.items()}
        result["total"] = sum(result.values())
        return result

    def _by_order(self, event: str, count: EventCount) -> dict[int | None, int]:
        """Bring a count into the form of ``prices``, checked against it."""
        if event not in self.prices or event not in _GROUP_OF:
            raise CostError(
                f"event {event!r} has no price in {self.name}: derive one in scripts/make_costs.py "
                "and give it a group in tools/report/cost.py"
            )
        orders = None not in self.prices[event]
        if isinstance(count, Mapping) != orders:
            wanted = "counts by order" if orders else "one count"
            raise CostError(f"event {event!r}: needs {wanted}, not {count!r}")
        by_order: dict[int | None, int] = {}
        for key, n in count.items() if isinstance(count, Mapping) else ((None, count),):
            if isinstance(n, bool) or not isinstance(n, int) or n < 0:
                raise CostError(f"event {event!r}: {n!r} is no count")
            try:
                by_order[None if key is None else int(key)] = n
            except ValueError:
                raise CostError(f"event {event!r}: {key!r} is no order") from None
        return by_order

    def _unit(self, event: str, order: int | None) -> float:
        try:
            return self.prices[event][order]
        except KeyError:
            top = max(o for o in self.prices[event] if o is not None)
            raise CostError(
                f"event {event!r}: order {order} has no price in {self.name} (0 to {top} have)"
            ) from None


def _allocated(counts: Mapping[str, Mapping[int | None, int]]) -> dict[int | None, int]:
    """Return how many anonymous folios of each order the faults allocated."""
    folios: dict[int | None, int] = {}
    for event in _ALLOCATE:
        for order, n in counts.get(event, {}).items():
            folios[order or 0] = folios.get(order or 0, 0) + n
    return folios


def load_costs(folder: Path, page_size: int, release: str, pmd_order: int) -> CostTable:
    """
    Return the prices for one machine, or the nearest there are.

    Args:
        folder: arch/<arch>; its costs.csv may be absent.
        page_size: base page in bytes.
        release: kernel release, e.g. "6.12".
        pmd_order: of a huge page, at least 2.

    SIMPLIFIED: in this order, an architecture without a table uses the reference architecture's; a
    release without one uses the next older that has, else the oldest; a page size without one uses
    the nearest (by ratio; of two equally near the smaller), see _rescale(); so does a page table whose
    huge pages are not the table's.

    Raises:
        CostError: no table at all, a malformed one, its own one is of other huge pages, or a page size
            or release that is none.
    """
    if page_size < 1 << 10 or page_size & (page_size - 1):
        raise CostError(f"page size {page_size}: not a power of two of at least 1024 bytes")
    wanted = _release_key(release)
    simplified = []
    path = folder / "costs.csv"
    own = path.exists()
    if not own:
        reference = default_arch()
        path = topdir() / "arch" / reference / "costs.csv"
        simplified.append(f"{folder.name} has no cost table: {reference}'s is used")
    tables = _read(path)
    releases = sorted({r for r, _ in tables}, key=_release_key)
    older = [r for r in releases if _release_key(r) <= wanted]
    used = older[-1] if older else releases[0]
    if _release_key(used) != wanted:
        simplified.append(f"no cost table for release {release}: {used}'s is used")
    sizes = sorted(p for r, p in tables if r == used)
    size = min(sizes, key=lambda p: (abs(math.log2(p / page_size)), p))
    prices = tables[used, size]
    name = f"{path.parent.name} {_kib(size)} {used}"
    top = max(_orders(prices))
    if own and size == page_size and top != pmd_order:
        raise CostError(
            f"{shown(path)}: {used} {_kib(size)}: orders 0 to {top}, its huge pages have order "
            f"{pmd_order}; make it anew by scripts/make_costs.py"
        )
    if size != page_size or top != pmd_order:
        prices = _rescale(prices, size, page_size, pmd_order)
    if size != page_size:
        name += f" scaled to {_kib(page_size)}"
        simplified.append(f"no cost table for {_kib(page_size)} pages: {_kib(size)}'s is rescaled")
    if pmd_order - top != math.log2(page_size / size):
        simplified.append(f"no cost table for huge pages of order {pmd_order}: {top}'s is rescaled")
    plain = {e: MappingProxyType(o) for e, o in prices.items() if not e.startswith(COMPONENT)}
    return CostTable(name, MappingProxyType(plain), tuple(simplified))


def cost_tables(s: Subject) -> str:
    """
    Return which tables an architecture has, "6.12 4K, 6.12 16K"; "" = none, another's are used.

    Raises:
        ArchError: its costs.csv is malformed, or a kernel of it finds no prices.
    """
    path = s.folder / "costs.csv"
    try:
        tables = _read(path) if path.exists() else {}
        for config in s.kernels.values():
            g = s.arch.geometry(int(config["PAGE_SHIFT"]))
            release = str(config["COST_RELEASE"])
            load_costs(s.folder, 1 << g.page_shift, release, g.pmd_order)
    except CostError as e:
        raise ArchError(str(e)) from None
    return ", ".join(f"{release} {_kib(size)}" for release, size in tables)


def _kib(size: int) -> str:
    return f"{size >> 10}K"


def _release_key(release: str) -> tuple[int, ...]:
    if not _RELEASE.fullmatch(release):
        raise CostError(f"COST_RELEASE={release!r}: not of the form 6.12")
    return tuple(int(part) for part in release.split("."))


def _read(path: Path) -> dict[tuple[str, int], Prices]:
    """Read one costs.csv: (release, page size) -> prices, components included."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CostError(f"{shown(path)}: cannot read the cost table ({e})") from None
    rows = csv.reader(text.splitlines())
    if next(rows, None) != list(COLUMNS):
        raise CostError(f"{shown(path)}:1: not a cost table; its columns are {','.join(COLUMNS)}")
    tables: dict[tuple[str, int], Prices] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(COLUMNS):
            raise CostError(f"{shown(path)}:{number}: not a price: {','.join(row)}")
        release, size, event, order, instructions, source = row
        for wrong, what in (
            (not _RELEASE.fullmatch(release), f"release: {release} is not of the form 6.12"),
            (
                size not in map(str, PAGE_SIZES),
                f"page_size: {size} is not bytes of a base page",
            ),
            (
                event.removeprefix(COMPONENT) not in _EVENTS,
                f"event: {event} is none that is counted",
            ),
            (not _ORDER.fullmatch(order), f"order: {order} is none"),
            (not _is_price(instructions, event), f"instructions: {instructions} is no price"),
            (not source, "source: not given; say which measurement"),
        ):
            if wrong:
                raise CostError(f"{shown(path)}:{number}: {what}")
        event_prices = tables.setdefault((release, int(size)), {}).setdefault(event, {})
        key = int(order) if order else None
        if key in event_prices:
            raise CostError(f"{shown(path)}:{number}: {event}: a second price")
        event_prices[key] = float(instructions)
    if not tables:
        raise CostError(f"{shown(path)}: the cost table is empty; make it by scripts/make_costs.py")
    for (release, page_size), prices in tables.items():
        if lacking := [event for event in _GROUP_OF if event not in prices]:
            raise CostError(
                f"{shown(path)}: {release} {_kib(page_size)}: no {lacking[0]}; "
                "make it anew by scripts/make_costs.py"
            )
        _check_orders(path, prices)
    return tables


def _is_price(text: str, event: str) -> bool:
    """Return whether a word is instructions of an event."""
    try:
        return math.isfinite(float(text)) and (float(text) >= 0 or event == _CORRECTION)
    except ValueError:
        return False


def _orders(prices: Prices) -> set[int]:
    """Return the orders that some event has."""
    return {o for by_order in prices.values() for o in by_order if o is not None}


def _check_orders(path: Path, prices: Prices) -> None:
    """Raise CostError unless each by-order event has orders 0 ... the PMD's and no other has any."""
    pmd_order = max({2} | _orders(prices))
    for event, by_order in prices.items():
        if event.removeprefix(COMPONENT) in BY_ORDER:
            if set(by_order) != set(range(pmd_order + 1)):
                raise CostError(f"{shown(path)}: {event}: needs orders 0 to {pmd_order}")
        elif set(by_order) != {None}:
            raise CostError(f"{shown(path)}: {event}: needs one price, of no order")


def _rescale(prices: Prices, size: int, target: int, top: int) -> Prices:
    """
    Return prices of a base page of ``size`` bytes as they would be for ``target`` bytes.

    ``top`` is the order of huge pages there.

    What an event spends on clearing and copying (its ``component:`` row) grows with the page; the
    rest stays. A page table's scan is counted by entries (zap_none), so it grows by itself.
    SIMPLIFIED: the step down at contiguous PTEs stays at the order where the source has it.
    """
    scaled: Prices = {}
    for event, by_order in prices.items():
        if event.startswith(COMPONENT):
            continue
        data = prices.get(COMPONENT + event, {})
        if None in by_order:
            grown = (target / size - 1) * data.get(None, 0.0)
            scaled[event] = {None: by_order[None] + grown}
            continue
        rest = {o: p - data.get(o, 0.0) for o, p in by_order.items() if o is not None}
        rest = _reorder(rest, top, event in PER_PAGE)
        moved = {o: p for o, p in data.items() if o is not None}
        moved = _reorder(moved, top, per_page=False) if moved else {}
        scaled[event] = {o: p + moved.get(o, 0.0) * target / size for o, p in rest.items()}
    return scaled


def _reorder(values: dict[int, float], top: int, per_page: bool) -> dict[int, float]:
    """
    Stretch or cut order -> value so that ``top`` is the PMD order.

    Orders below it that the source lacks lie on the line a + b n, n pages a folio, through order 2
    and the source's largest order mapped by PTEs. The PMD-mapped folio costs the same as a whole
    where pages are counted (it is one entry), and in proportion to its pages where folios are
    (each page is cleared or freed).
    """
    pmd = max(values)
    start = min(2, pmd - 2)
    low, high = 1 << start, 1 << (pmd - 1)
    at_low, at_high = values[start], values[pmd - 1]
    if per_page:
        at_low, at_high = at_low * low, at_high * high
    slope = (at_high - at_low) / (high - low)
    result = {}
    for order in range(top):
        n = 1 << order
        fit = at_high + slope * (n - high)
        result[order] = values[order] if order < pmd else fit / n if per_page else fit
    step = float(1 << top) / (1 << pmd)
    result[top] = values[pmd] / step if per_page else values[pmd] * step
    return result
