# SPDX-License-Identifier: GPL-2.0-only
"""
Which order a write fault on fresh anonymous memory gets: the ladders of the kernels, and a user's.

A ladder is two rules: which orders below the PMD's a VMA may have at all, and which of those that
fit at the fault is taken, asked again with what is left when an allocation fails. The PMD's order has
rules of its own (huge_memory.py). Built in are

    ANON_POLICY  orders that a VMA may have          when an allocation fails
    v1           2 … maximum                         next lower
    v2           2 … preferred                       one page
    v2_simple    preferred                           one page
    v3           preferred, 3                        next lower
    v5           3                                   next lower
    mthp         enabled for the VMA                 next lower

each with the largest that fits at its top and one page at its end: after the first failure, if
ANON_ALLOC_LADDER is n (spec 1.3, 1.10, 1.11, 5.5). What
v2 prefers is v1's maximum for the VMA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import TASK_RECORD as _T
from .arena import VMA_RECORD as _V
from .huge_memory import highest_order, hugepage_vma_check, thp_allowable_orders
from .large_anon_folio import max_anon_folio_order
from .layout import (
    MM_BRK,
    MM_START_BRK,
    TASK_PID,
    VMA_END,
    VMA_FAULTS,
    VMA_FLAGS,
    VMA_MM,
    VMA_START,
)
from .page_alloc import PAGE_ALLOC_COSTLY_ORDER
from .vm_flags import VM_GROWSDOWN, VM_HUGEPAGE, VM_NOHUGEPAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arena import Arena, Config

# enum tva_type, v6.18: what the question is for. TVA_FALLBACK is ours: memory of a larger order was
# short, or its charge failed.
TVA_PAGEFAULT = 1
TVA_FALLBACK = 4

VMA_KINDS = ("anon", "heap", "stack")
_SHIFT_64K = 16


class PolicyError(Exception):
    """A user's policy cannot be loaded, failed, or gave an answer that is none."""


@dataclass(frozen=True)
class Ladder:
    """
    How a kernel chooses the order of a folio.

    Attributes:
        wanted: (arena, VM_* flags of a VMA) -> mask of the orders below the PMD's that it may have.
        thp_get_order: (arena, vma, address, TVA_*, mask of the orders that fit) -> one of the mask.
        large: whether there is anything but one page; PMD-sized folios apart.
        by_user: the PMD's order is thp_get_order's business too, and no setting of sysfs counts.
    """

    wanted: Callable[[Arena, int], int]
    thp_get_order: Callable[[Arena, int, int, int, int], int]
    large: bool = True
    by_user: bool = False


# Which orders a VMA may have


def _none(_k: Arena, _flags: int) -> int:
    return 0


def _v1(k: Arena, flags: int) -> int:
    return up_to(max_anon_folio_order(k, flags))


def _v2_simple(k: Arena, flags: int) -> int:
    return only(max_anon_folio_order(k, flags))


def _v3(k: Arena, flags: int) -> int:
    """
    The architecture's preferred order or 3 (v3, v4).

    SIMPLIFIED: v4's rule for both: without the hint 64K at the most, where v3 had a boot parameter.
    """
    if flags & VM_NOHUGEPAGE or k.knobs.enabled == "never":
        return 0
    order = max(k.config.thp_order_max, PAGE_ALLOC_COSTLY_ORDER)
    if not hugepage_vma_check(k, flags):
        order = min(order, max(_SHIFT_64K - k.page_shift, 0))
    return only(order) | only(min(order, PAGE_ALLOC_COSTLY_ORDER))


def _v5(_k: Arena, flags: int) -> int:
    """
    Order 3, whatever the architecture and THP's setting are.

    SIMPLIFIED: on all page sizes; what v5 did without the hint on pages of 16K and 64K is not known.
    """
    return 0 if flags & VM_NOHUGEPAGE else 1 << PAGE_ALLOC_COSTLY_ORDER


def _enabled(k: Arena, flags: int) -> int:
    return thp_allowable_orders(k, flags, up_to(k.pmd_order - 1))


def up_to(order: int) -> int:
    """Return the mask of the orders 2 … order; 0 and 1 are no large folios."""
    return (2 << order) - 4 if order > 1 else 0


def only(order: int) -> int:
    """Return the mask of one order; empty for 0 and 1."""
    return 1 << order if order > 1 else 0


# Which of them is taken


def largest(_k: Arena, _vma: int, _address: int, _tva_type: int, orders: int) -> int:
    """Return the largest order that is left."""
    return highest_order(orders)


def largest_or_page(_k: Arena, _vma: int, _address: int, tva_type: int, orders: int) -> int:
    """Return the largest order, and 0 once its allocation failed."""
    return highest_order(orders) if tva_type == TVA_PAGEFAULT else 0


BASE = Ladder(_none, largest, large=False)
LADDERS = {
    "base": BASE,
    "v1": Ladder(_v1, largest),
    "v2": Ladder(_v1, largest_or_page),
    "v2_simple": Ladder(_v2_simple, largest_or_page),
    "v3": Ladder(_v3, largest),
    "v5": Ladder(_v5, largest),
    "mthp": Ladder(_enabled, largest),
}


def ladder_of(config: Config) -> Ladder:
    """Return the ladder of a configuration: what is left of it without patches 2, 3, 8 and 10."""
    most = max(config.nothp_order_max, config.thp_order_max)
    if not config.alloc_zeroed or not config.fault_alloc or (not most and config.policy != "mthp"):
        return BASE
    ladder = LADDERS[config.policy]
    return ladder if config.alloc_ladder else Ladder(ladder.wanted, largest_or_page)


def wanted_orders(k: Arena, flags: int) -> int:
    """Return the mask of the orders, the PMD's included, that a VMA with these VM_* flags may have."""
    return k.ladder.wanted(k, flags) | thp_allowable_orders(k, flags, 1 << k.pmd_order)


def wanted_by_anyone(k: Arena) -> int:
    """Return the mask of the orders that some VMA could have, hinted or not, as knobs are now."""
    return wanted_orders(k, 0) | wanted_orders(k, VM_HUGEPAGE)


# A user's policy


class VmaView:
    """
    A VMA as a user's policy sees it; read only.

    Attributes:
        start, end: addresses in bytes.
        flags: VM_* bits.
        hinted, nohuge: whether MADV_HUGEPAGE, MADV_NOHUGEPAGE was called on it.
        kind: "heap", "stack" or "anon".
        pid: the process that faults.
        faults: write faults on fresh memory that it had before this one.
        page_size: bytes.
        pmd_order: order of a huge page.
    """

    __slots__ = ("_base", "_k")

    def __init__(self, k: Arena, vma: int) -> None:
        self._k, self._base = k, vma * _V

    start = property(lambda self: self._k.vma[self._base + VMA_START])
    end = property(lambda self: self._k.vma[self._base + VMA_END])
    flags = property(lambda self: self._k.vma[self._base + VMA_FLAGS])
    hinted = property(lambda self: bool(self.flags & VM_HUGEPAGE))
    nohuge = property(lambda self: bool(self.flags & VM_NOHUGEPAGE))
    kind = property(lambda self: vma_kind(self._k, self._base // _V))
    pid = property(lambda self: self._k.task[self._k.current * _T + TASK_PID])
    faults = property(lambda self: self._k.vma[self._base + VMA_FAULTS])
    page_size = property(lambda self: self._k.page_size)
    pmd_order = property(lambda self: self._k.pmd_order)


def vma_kind(k: Arena, vma: int) -> str:
    """Return "stack", "heap" or "anon" of an anonymous VMA, as /proc/pid/maps would call it."""
    base = vma * _V
    if k.vma[base + VMA_FLAGS] & VM_GROWSDOWN:
        return "stack"
    mm = k.vma[base + VMA_MM] * _M
    low, high = k.mm[mm + MM_START_BRK], k.mm[mm + MM_BRK]
    inside = k.vma[base + VMA_START] < high and k.vma[base + VMA_END] > low
    return "heap" if low < high and inside else "anon"


def user_ladder(function: Callable[[VmaView, int, int, int], object], name: str) -> Ladder:
    """Return the ladder that asks a user's thp_get_order(vma, address, tva_type, orders)."""

    def get_order(k: Arena, vma: int, address: int, tva_type: int, orders: int) -> int:
        if orders == 1:
            return 0
        try:
            order = function(VmaView(k, vma), address, tva_type, orders)
        except (Exception, SystemExit) as e:
            inside = e.__traceback__ and e.__traceback__.tb_next
            where = f"{name}:{inside.tb_lineno}" if inside else name
            raise PolicyError(f"{where}: {describe(e)}; {asked_at(k, address, orders)}") from e
        if type(order) is int and order >= 0 and orders >> order & 1:
            return order
        raise PolicyError(
            f"{name}: thp_get_order() answered {order!r}, which is none of the orders that fit; "
            + asked_at(k, address, orders)
        )

    def wanted(k: Arena, flags: int) -> int:
        return 0 if flags & VM_NOHUGEPAGE else up_to(k.pmd_order - 1)

    return Ladder(wanted, get_order, by_user=True)


def describe(error: BaseException) -> str:
    """Return an exception of a user's policy in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def asked_at(k: Arena, address: int, orders: int) -> str:
    """Return where a policy was asked, for an error."""
    fit = ", ".join(str(o) for o in range(orders.bit_length()) if orders >> o & 1)
    pid = k.task[k.current * _T + TASK_PID]
    return f"pid {pid} at {address:#x}, orders {fit}"
