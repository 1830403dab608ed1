# SPDX-License-Identifier: GPL-2.0-only
"""Conformance checks of running kernels: huge pages, known outcomes, C against Python."""

from __future__ import annotations

from array import array
from time import perf_counter
from typing import TYPE_CHECKING

from virtmm.accesses import Accesses
from virtmm.golden_traces import golden_traces
from virtmm.mm import pgtable
from virtmm.mm.debug_vm import validate
from virtmm.mm.vm_flags import PROT_READ
from virtmm.subject import want

if TYPE_CHECKING:
    from virtmm.machine import Machine
    from virtmm.subject import Subject

#: How a kernel is run: all in C, faults in Python, all in Python.
RUNS = ("FAST_FAULT=y", "FAST_FAULT=n", "C_RANGES=n")
#: Pages that the benchmark touches, and how often: the shortest time counts.
_PAGES, _TURNS = 512, 3


def check_huge(s: Subject) -> str:
    """A huge leaf maps what its order says, and splits into the same pages with the same bits."""
    orders = set()
    for kernel, config in s.kernels.items():
        for setting in RUNS if config.get("TRANSPARENT_HUGEPAGE") else ():
            with s.boot(kernel, setting) as m:
                orders.add(m.k.pmd_order)
                m.spawn(1)
                m.mmap(1, m.k.pmd_size, m.k.pmd_size)
                m.touch(1, m.k.pmd_size, True)
                _split(m, f"{kernel}, {setting}")
    return f"order {', '.join(map(str, sorted(orders)))}"


def _split(m: Machine, where: str) -> None:
    """Split the huge entry of process 1 by protecting its first page."""
    k, size, order = m.k, m.k.pmd_size, m.k.pmd_order
    found = list(m.mapped_pages(1, size, 2 * size))
    want(
        len(found) == 1 << order and {p.order for p in found} == {order},
        f"geometries.levels.pte: a huge fault maps {len(found)} pages, not 1 << {order} ({where}); "
        "look at levels and leaf",
    )
    [(_, huge, _)] = pgtable.walk_page_table(k, m._mm(1), size, 2 * size)
    m.mprotect(1, size, m.page_size, PROT_READ)
    split = list(m.mapped_pages(1, size, 2 * size))
    want(
        [(p.address, p.folio, p.offset) for p in split]
        == [(p.address, p.folio, p.offset) for p in found],
        f"pte.leaf: splitting a huge entry changes its pages ({where}); look at leaf and user",
    )
    first = pgtable.pmd_to_pte(k, huge)
    for i, (address, entry, _) in enumerate(pgtable.walk_page_table(k, m._mm(1), size, 2 * size)):
        wanted = first + (i << k.pfn_shift)
        if not i:
            wanted = pgtable.pte_wrprotect(k, wanted)
        want(
            entry & ~k.cont_bit == wanted,
            f"pte.leaf: the huge entry {huge:#x} splits into {entry:#x} at {address:#x}, bits "
            f"{entry & ~k.cont_bit ^ wanted:#x} are not as they were ({where}); look at leaf and user",
        )
    validate(k)


def check_golden(s: Subject) -> str:
    """The golden traces have their outcome on every kernel, and DEBUG_VM finds nothing."""
    for kernel, sets in s.variants():
        s.replay_golden(kernel, *sets, "DEBUG_VM=y")
    return f"{len(golden_traces())} traces under DEBUG_VM"


def check_twins(s: Subject) -> str:
    """The golden traces leave the same machine in C and in Python."""
    for kernel, sets in s.variants():
        where = ", ".join((kernel, *sets))
        seen = {setting: s.replay_golden(kernel, *sets, setting) for setting in RUNS}
        for setting in RUNS:
            for what, a, b in zip(
                ("memory", "events", "processes"), seen[RUNS[0]], seen[setting], strict=True
            ):
                want(
                    a == b,
                    f"{where}: {what} with {RUNS[0]} and with {setting} differ; "
                    "if tests/csrc pass for another architecture, look at the bits of pte",
                )
    return ", ".join(RUNS)


def check_benchmark(s: Subject) -> str:
    """The core serves what a program does most, in less time than Python; a batch in less than one by one."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, RUNS[0]) as core, s.boot(kernel, RUNS[-1]) as twin:
            want(core.fast, f"{kernel}: FAST_FAULT=y, and the core serves no accesses")
            fast, slow = measure(core), measure(twin)
        for what in slow:
            want(
                fast[what] < slow[what],
                f"{kernel}: {what} takes {fast[what] * 1e6:.0f} us in C and {slow[what] * 1e6:.0f} us in "
                "Python; run make bench",
            )
        want(
            fast["touch_many"] < fast["one_by_one"],
            f"{kernel}: touch_many() is no faster than touch(); run make bench",
        )
    return f"{_PAGES} touches, fork and munmap served in C, faster than in Python; batches faster still"


def measure(m: Machine) -> dict[str, float]:
    """
    Return what the benchmark does -> the shortest time that it took, in seconds.

    Raises:
        CheckError: accesses are served in C, and the core leaves one to Python.
    """
    page, shortest = m.page_size, dict[str, float]()
    words = array("Q", (w for i in range(_PAGES) for w in ((1 + i) * page, 1)))
    if m.k.config.transparent_hugepage:
        m.set("enabled", "never")
    fast = m._booted.fast

    def touch_many() -> None:
        done = fast.touch_many(accesses, 0, _PAGES) if fast else 0
        want(done == _PAGES or not fast, f"FAST_FAULT=y, and touch {done} is not served in C")
        m.touch_many(accesses, done, _PAGES)

    def one_by_one() -> None:
        for address in words[::2]:
            m.touch(1, address, True)

    m.spawn(1)
    accesses = Accesses(memoryview(words), 1)
    accesses.tasks[0] = m.task_record(1)
    for touch in (touch_many, one_by_one) * _TURNS:
        m.mmap(1, page, _PAGES * page)
        for what, call in (
            (touch.__name__, touch),
            ("fork", lambda: m.fork(1, 2)),
            ("exit", lambda: m.exit(2)),
            ("munmap", lambda: m.munmap(1, page, _PAGES * page)),
        ):
            start = perf_counter()
            call()
            shortest[what] = min(shortest.get(what, 1e9), perf_counter() - start)
    m.exit(1)
    return shortest
