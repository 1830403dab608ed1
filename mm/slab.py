# SPDX-License-Identifier: GPL-2.0-only
"""Records that come and go (mm, VMA, anon_vma, task, file): the lowest free number is a list's head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import ZONE_SLAB

if TYPE_CHECKING:
    from .arena import Arena


def slab_alloc(k: Arena, slab: int, table: memoryview, words: int) -> int:
    """
    Return the number of a zeroed record of ``table``, 1 or more; 0 when the table is full.

    Args:
        slab: its SLAB_* number.
        words: elements a record.
    """
    head = ZONE_SLAB + slab
    record = k.zone[head]
    if record:
        base = record * words
        k.zone[head] = table[base]
        table[base] = 0
        return record
    record = k.zone[head + 1] + 1
    if (record + 1) * words > len(table):
        return 0
    k.zone[head + 1] = record
    return record


def slab_free(k: Arena, slab: int, table: memoryview, words: int, record: int) -> None:
    """Give a record back, zeroed but for the link to the next free one."""
    head = ZONE_SLAB + slab
    base = record * words
    for i in range(base, base + words):
        table[i] = 0
    table[base] = k.zone[head]
    k.zone[head] = record
