# SPDX-License-Identifier: GPL-2.0-only
"""
Why a fault on fresh anonymous memory got no larger folio: counted by reason and order, and by VMA.

The kernel counts failed allocations and charges only. Whether a size was not enabled, or its block
did not fit into the mapping, or was partly populated, nobody can tell afterwards; here each is
counted. Nothing in mm/ reads these counts.

A write fault on fresh memory that got a folio looks at every larger order that some VMA could have
(policy.wanted_by_anyone) and counts why it did not get that one. For its VMA it counts one reason:
that of the largest order that the VMA itself may have, REFUSED_NOT_ENABLED when it may have none.
A VMA's counts stay with its lower part when it is split, are added up when it is merged, move with
it, and go to a log when it is unmapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .arena import MM_RECORD as _M
from .arena import TASK_RECORD as _T
from .arena import VMA_LOG_RECORD as _L
from .arena import VMA_RECORD as _V
from .huge_memory import highest_order, thp_vma_suitable_order
from .layout import (
    LOG_END,
    LOG_EXECS,
    LOG_FAULTS,
    LOG_FLAGS,
    LOG_KIND,
    LOG_PID,
    LOG_START,
    MAX_MAP_COUNT,
    MM_MAP_COUNT,
    NR_ORDERS,
    NR_REFUSED,
    REFUSED_EDGE,
    REFUSED_FAULTS,
    REFUSED_NOT_ENABLED,
    REFUSED_POPULATED,
    SLAB_TASK,
    TASK_EXECS,
    TASK_MM,
    TASK_PID,
    VMA_END,
    VMA_FAULTS,
    VMA_FLAGS,
    VMA_REFUSED,
    VMA_START,
    ZONE_SLAB,
    ZONE_VMA_LOG,
)
from .policy import VMA_KINDS, vma_kind, wanted_by_anyone, wanted_orders

if TYPE_CHECKING:
    from .arena import Arena
    from .folio import VmFault

#: Names of the reasons, by REFUSED_*.
REASONS = ("edge", "populated", "not_enabled", "alloc", "charge")
NR_COUNTS = 1 + NR_REFUSED  # VMA_FAULTS and the reasons behind it, the same in a log record


class RefusedMapping(NamedTuple):
    """
    An anonymous mapping, there or gone, whose faults got smaller folios than it may have.

    Attributes:
        pid: its process; 0 for the sum of all that the log had no room for.
        execs: programs that the process had started before.
        start, end: addresses when it was last seen.
        kind: "heap", "stack" or "anon".
        faults: write faults on fresh memory.
        refused: reason -> of them got less than the largest order it may have.
    """

    pid: int
    execs: int
    start: int
    end: int
    kind: str
    faults: int
    refused: dict[str, int]


def count_refused(k: Arena, vmf: VmFault, order: int) -> None:
    """Count a write fault on fresh memory that got ``order``, and why it got nothing larger."""
    if not k.ladder.large:
        return
    anyone = wanted_by_anyone(k)
    if not anyone:
        return
    base = vmf.vma * _V
    k.vma[base + VMA_FAULTS] += 1
    k.refused[REFUSED_FAULTS] += 1
    above = anyone >> order + 1 << order + 1
    if not above:
        return
    own = wanted_orders(k, k.vma[base + VMA_FLAGS])
    largest = highest_order(own) if own else highest_order(anyone)
    while above:
        wanted = highest_order(above)
        reason = _reason(k, vmf, wanted, own)
        k.refused[reason * NR_ORDERS + wanted] += 1
        if wanted == largest:
            k.vma[base + VMA_REFUSED + reason] += 1
            k.refused[reason * NR_ORDERS] += 1
        above -= 1 << wanted


def _reason(k: Arena, vmf: VmFault, order: int, own: int) -> int:
    """Return why a fault got no folio of an order, of which ``own`` are those that its VMA may have."""
    if order in vmf.why:
        return vmf.why[order]
    if not own >> order & 1 or order < k.pmd_order:
        return REFUSED_NOT_ENABLED
    # Nobody tried the PMD's order: the block is not in the VMA, or there is a page table already.
    fits = thp_vma_suitable_order(k, vmf.vma, vmf.address, order)
    return REFUSED_POPULATED if fits else REFUSED_EDGE


def move_refused(k: Arena, source: int, to: int) -> None:
    """Add a VMA's counts to those of the one that takes its place."""
    for i in range(VMA_FAULTS, VMA_FAULTS + NR_COUNTS):
        k.vma[to * _V + i] += k.vma[source * _V + i]
        k.vma[source * _V + i] = 0


def log_refused(k: Arena, vma: int) -> None:
    """
    Write down the counts of a VMA that goes away, with the process it was of.

    Record 0 holds the sums of what no longer finds a record.
    """
    base = vma * _V
    if not k.vma[base + VMA_FAULTS]:
        return
    record = k.zone[ZONE_VMA_LOG] + 1
    if (record + 1) * _L > len(k.vma_log):
        record = 0
    else:
        k.zone[ZONE_VMA_LOG] = record
        task = k.current * _T
        log = record * _L
        k.vma_log[log + LOG_PID] = k.task[task + TASK_PID]
        k.vma_log[log + LOG_EXECS] = k.task[task + TASK_EXECS]
        k.vma_log[log + LOG_START] = k.vma[base + VMA_START]
        k.vma_log[log + LOG_END] = k.vma[base + VMA_END]
        k.vma_log[log + LOG_FLAGS] = k.vma[base + VMA_FLAGS]
        k.vma_log[log + LOG_KIND] = VMA_KINDS.index(vma_kind(k, vma))
    for i in range(NR_COUNTS):
        k.vma_log[record * _L + LOG_FAULTS + i] += k.vma[base + VMA_FAULTS + i]


def refused_mappings(k: Arena) -> list[RefusedMapping]:
    """Return the mappings that were refused something, the one that lost most first."""
    found, seen = [], set()
    for record in range(k.zone[ZONE_VMA_LOG] + 1):
        words = k.vma_log[record * _L : (record + 1) * _L].tolist()
        place = words[LOG_PID], words[LOG_EXECS], words[LOG_START], words[LOG_END]
        found.append(_mapping(*place, VMA_KINDS[words[LOG_KIND]], words[LOG_FAULTS:]))
    for task in range(_T, (k.zone[ZONE_SLAB + SLAB_TASK + 1] + 1) * _T, _T):
        mm = k.task[task + TASK_MM]
        if not mm or mm in seen:
            continue
        seen.add(mm)
        first = mm * MAX_MAP_COUNT
        for vma in k.vma_index[first : first + k.mm[mm * _M + MM_MAP_COUNT]]:
            words = k.vma[vma * _V : (vma + 1) * _V].tolist()
            place = (
                k.task[task + TASK_PID],
                k.task[task + TASK_EXECS],
                words[VMA_START],
                words[VMA_END],
            )
            found.append(_mapping(*place, vma_kind(k, vma), words[VMA_FAULTS:]))
    return sorted((m for m in found if m.refused), key=lambda m: -sum(m.refused.values()))


def _mapping(
    pid: int, execs: int, start: int, end: int, kind: str, counts: list[int]
) -> RefusedMapping:
    refused = {reason: n for reason, n in zip(REASONS, counts[1:], strict=False) if n}
    return RefusedMapping(pid, execs, start, end, kind, counts[0], refused)
