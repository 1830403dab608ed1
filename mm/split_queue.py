# SPDX-License-Identifier: GPL-2.0-only
"""The deferred split queue: large folios that may give memory back when they are split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import PAGE_RECORD as _P
from .layout import (
    FOLIO_DEFERRED_NEXT,
    FOLIO_DEFERRED_PREV,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_ORDER,
    ZONE_SPLIT_QUEUE,
    ZONE_SPLIT_QUEUE_LEN,
    ZONE_SPLIT_QUEUE_TAIL,
    MTHP_nr_anon_partially_mapped,
    MTHP_split_deferred,
    PG_deferred,
    PG_partially_mapped,
    VM_thp_deferred_split_page,
)

if TYPE_CHECKING:
    from .arena import Arena


def deferred_split_folio(k: Arena, folio: int, partially_mapped: bool = True) -> None:
    """
    Put a large folio at the tail of the queue unless it is there.

    Args:
        partially_mapped: a page of it was unmapped while others stayed. Counted once a folio; the
        mark
            stays until the folio is split or freed, also when it is mapped whole again (6.12). A
            folio that is not is only put where the shrinker looks for underused ones (6.12).

    Before the series' patch 6 (ANON_DEFERRED_SPLIT) only PMD-sized folios were queued.
    """
    if not partially_mapped and not (k.config.underused_queue and k.knobs.shrink_underused):
        return
    page, zone = k.page, k.zone
    base = folio * _P
    if not k.config.deferred_split and page[base + PAGE_ORDER] < k.pmd_order:
        return
    flags = page[base + PAGE_FLAGS]
    if partially_mapped and not flags & PG_partially_mapped:
        page[base + PAGE_FLAGS] |= PG_partially_mapped
        order = page[base + PAGE_ORDER]
        if k.config.policy != "mthp" or order == k.pmd_order:
            k.vmstat[VM_thp_deferred_split_page] += 1
        k.mthp_stat[MTHP_split_deferred * NR_ORDERS + order] += 1
        k.mthp_stat[MTHP_nr_anon_partially_mapped * NR_ORDERS + order] += 1
    if flags & PG_deferred:
        return
    page[base + PAGE_FLAGS] |= PG_deferred
    last = zone[ZONE_SPLIT_QUEUE_TAIL]
    page[base + FOLIO_DEFERRED_NEXT] = 0
    page[base + FOLIO_DEFERRED_PREV] = last
    if last:
        page[last * _P + FOLIO_DEFERRED_NEXT] = folio
    else:
        zone[ZONE_SPLIT_QUEUE] = folio
    zone[ZONE_SPLIT_QUEUE_TAIL] = folio
    zone[ZONE_SPLIT_QUEUE_LEN] += 1


def folio_unqueue_deferred_split(k: Arena, folio: int) -> None:
    """Take a folio that is about to be freed or split off the queue, if it is on it."""
    page, zone = k.page, k.zone
    base = folio * _P
    flags = page[base + PAGE_FLAGS]
    if flags & PG_partially_mapped:
        k.mthp_stat[MTHP_nr_anon_partially_mapped * NR_ORDERS + page[base + PAGE_ORDER]] -= 1
        page[base + PAGE_FLAGS] &= ~PG_partially_mapped
    if not flags & PG_deferred:
        return
    after, before = page[base + FOLIO_DEFERRED_NEXT], page[base + FOLIO_DEFERRED_PREV]
    if before:
        page[before * _P + FOLIO_DEFERRED_NEXT] = after
    else:
        zone[ZONE_SPLIT_QUEUE] = after
    if after:
        page[after * _P + FOLIO_DEFERRED_PREV] = before
    else:
        zone[ZONE_SPLIT_QUEUE_TAIL] = before
    zone[ZONE_SPLIT_QUEUE_LEN] -= 1
    page[base + PAGE_FLAGS] &= ~PG_deferred
