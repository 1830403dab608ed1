# SPDX-License-Identifier: GPL-2.0-only
"""
Put the model's figures beside the published ones, into Documentation/results.md.

``python -m scripts.results`` replays the samples on every named kernel of the reference architecture
and writes the tables between the marks ``<!-- NAME -->`` and ``<!-- end -->``; the sentences around them
are written by hand, so read them again when a figure changed. With ``--check`` it only says whether the
tables are current.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from virtmm.tools.replay.replay import replay
from virtmm.tools.report.result import TLB_KINDS, TLB_WAYS, Result, check_result
from virtmm.tools.trace.format import TraceReader

from scripts.document import TOP, replace_section, section, table, write_or_check
from virtmm.kconfig import default_arch, defconfigs, resolve
from virtmm.machine import Machine

OUTPUT = TOP / "Documentation" / "results.md"
ARCH = default_arch()
SAMPLES = ("gcc", "python")
BASE = "baseline_4k"

#: Kernel time of building the kernel, percent against 4K base pages: cover letter of the v1 series.
PUBLISHED_TIME = {
    BASE: 0.0,
    "anonfolio_basic": -42.9,
    "anonfolio": -46.0,
    "contpte": -45.7,
    "exefolio": -46.4,
    "baseline_16k": -49.2,
    "baseline_64k": -66.0,
}
#: Peak memory of the same build with 8 jobs: the author's answer in the thread on v2.
PUBLISHED_MEMORY = {BASE: 0.0, "anonfolio": 0.1, "baseline_16k": 6.3, "baseline_64k": 28.1}
#: Other ladders, on anonfolio_basic; the first is the one of the kernel itself.
POLICIES = ("V1", "V2_SIMPLE", "V2", "V3", "V5")
#: Memory that the contiguous-entry table maps, forks and unmaps: bytes.
CONTPTE_SIZE = 64 << 20
CONTPTE_STEPS = ("contpte-basic", "contpte-batch", "contpte-fold")
CONTPTE_WORK = ("pte_read", "pte_write", "tlbi", "contpte_unfold", "contpte_fold")

Measure = Callable[..., Result]


def measure(sample: str, kernel: str, *sets: str) -> Result:
    """Replay a sample on a named kernel; those of mainline with 64K folios switched on, as ``make run``."""
    config = resolve(ARCH, kernel, sets=sets)
    settings = ["64kB=always"] if config.get("ANON_POLICY_MTHP") else []
    with TraceReader(TOP / "samples" / f"{sample}.parquet") as reader:
        return check_result(replay(reader, config, kernel, settings), f"{sample} {kernel}")


def once() -> Measure:
    """Return measure() that remembers."""
    known: dict[tuple[str, ...], Result] = {}

    def remembered(*what: str) -> Result:
        if what not in known:
            known[what] = measure(*what)
        return known[what]

    return remembered


# --- the tables -----------------------------------------------------------------------------------


def kernels_of(sample: str, measured: Measure) -> str:
    """Return the table of one sample: every named kernel, and what was published of it."""
    base = measured(sample, BASE)
    rows = []
    for kernel in defconfigs(ARCH):
        r = measured(sample, kernel)
        rows.append(
            (
                f"`{kernel}`",
                f"{r.minflt:,}",
                _change(r.minflt, base.minflt),
                _change(r.instructions["total"], base.instructions["total"]),
                _percent(PUBLISHED_TIME.get(kernel)),
                _change(r.memory["peak"], base.memory["peak"]),
                _percent(PUBLISHED_MEMORY.get(kernel)),
            )
        )
    header = ("kernel", "minor faults", "±", "instructions ±", "published kernel time ±")
    return table((*header, "peak memory ±", "published ±"), rows)


def order(measured: Measure) -> str:
    """Return the kernels of the series from the dearest to the cheapest, published and in the model."""
    lines = [f"- published: {_ranking(PUBLISHED_TIME)}"]
    for sample in SAMPLES:
        cost = {k: measured(sample, k).instructions["total"] for k in PUBLISHED_TIME}
        lines.append(f"- {sample}: {_ranking(cost)}")
    return "\n".join(lines) + "\n"


def _ranking(costs: dict[str, Any]) -> str:
    names = sorted(costs, key=lambda k: (-costs[k], list(costs).index(k)))
    text = f"`{names[0]}`"
    for before, name in itertools.pairwise(names):
        text += f"{' =' if costs[name] == costs[before] else ','} `{name}`"
    return text


def claims(measured: Measure) -> str:
    """Return what must hold, with its figures of each sample."""
    rows, added = [], []
    for sample in SAMPLES:
        got = {k: measured(sample, k) for k in defconfigs(ARCH)}
        faults = {k: r.minflt for k, r in got.items()}
        peak = {k: r.memory["peak"] - got[BASE].memory["peak"] for k, r in got.items()}
        rows += [
            _claim(
                sample,
                "faults: anonfolio ≤ anonfolio_basic",
                f"{faults['anonfolio']:,} / {faults['anonfolio_basic']:,}",
                faults["anonfolio"] <= faults["anonfolio_basic"],
            ),
            _claim(
                sample,
                "faults: anonfolio_basic ≤ 60 % of baseline_4k",
                f"{faults['anonfolio_basic'] / faults[BASE]:.1%}",
                faults["anonfolio_basic"] <= 0.6 * faults[BASE],
            ),
            _memory_claim(sample, peak),
            _claim(
                sample,
                "text in contiguous blocks: exefolio > contpte",
                f"{_text_share(got['exefolio'])} / {_text_share(got['contpte'])}",
                got["exefolio"].raw["tlb"]["text"]["cont_bytes"]
                > got["contpte"].raw["tlb"]["text"]["cont_bytes"],
            ),
        ]
        added.append(peak)
    both = {kernel: sum(peak[kernel] for peak in added) for kernel in _BY_MEMORY}
    rows.append(_memory_claim("both", both))
    return table(("sample", "claim", "figures", "holds"), rows)


_BY_MEMORY = ("baseline_64k", "baseline_16k", "anonfolio")


def _memory_claim(sample: str, peak: Mapping[str, int]) -> tuple[str, ...]:
    """Return the row that orders kernels by the bytes they add to the base kernel's peak."""
    most, middle, least = (peak[kernel] for kernel in _BY_MEMORY)
    return _claim(
        sample,
        f"memory added: {' > '.join(_BY_MEMORY)}",
        " / ".join(f"{peak[kernel] >> 10:,} KiB" for kernel in _BY_MEMORY),
        most > middle > least,
    )


def _claim(sample: str, claim: str, figures: str, holds: bool) -> tuple[str, ...]:
    return sample, claim, figures, "yes" if holds else "**no**"


def policies(measured: Measure) -> str:
    """Return the minor faults of each ladder of orders against those of v1."""
    rows = []
    for policy in POLICIES:
        cells = [policy.lower()]
        for sample in SAMPLES:
            faults, v1 = (
                measured(sample, "anonfolio_basic", f"ANON_POLICY_{p}=y").minflt
                for p in (policy, "V1")
            )
            cells += [f"{faults:,}", f"{faults / v1:.2f}"]
        rows.append(cells)
    header = [text for sample in SAMPLES for text in (f"{sample} minor faults", "of v1's")]
    return table(("policy", *header), rows)


def tlb(measured: Measure) -> str:
    """Return TLB entries per MiB for each sample, kernel and kind of memory."""
    rows = []
    for sample in SAMPLES:
        for kernel in defconfigs(ARCH):
            r = measured(sample, kernel)
            cells = [sample, f"`{kernel}`"]
            for kind in TLB_KINDS:
                cells += [_digits(r.tlb_per_mib(kind, way)) for way in TLB_WAYS]
            rows.append((*cells, _text_share(r)))
    header = [f"{kind} {way}" for kind in TLB_KINDS for way in TLB_WAYS]
    return table(("sample", "kernel", *header, "text contiguous"), rows)


def _text_share(r: Result) -> str:
    text = r.tlb["text"]
    return f"{text['cont_bytes'] / text['bytes']:.1%}" if text["bytes"] else "-"


def contpte(_measured: Measure) -> str:
    """
    Return the work of fork and munmap with contiguous entries, step by step.

    64 MiB of 64K folios are forked; the child is gone when another 64 MiB, freshly touched, are
    unmapped: blocks that fork took apart would make the unmapping look cheap.
    """
    works = {step: contpte_work(step) for step in CONTPTE_STEPS}
    rows = []
    for what in ("fork", "munmap"):
        final = works[CONTPTE_STEPS[-1]][what]
        for step in CONTPTE_STEPS:
            work = works[step][what]
            entries = work["pte_read"] + work["pte_write"]
            whole = final["pte_read"] + final["pte_write"]
            ratio = f"{entries / whole:.2f}" if whole else "-"
            rows.append((what, step, *(f"{work[name]:,}" for name in CONTPTE_WORK), ratio))
    header = ("entries read", "written", "TLB invalidations", "blocks unfolded", "folded")
    return table(("call", "kernel", *header, "entries, of contpte-fold's"), rows)


def contpte_work(step: str) -> dict[str, dict[str, int]]:
    """Return what fork and munmap of CONTPTE_SIZE bytes did (Machine.work()) with one step of contpte."""
    first, second = 1 << 36, 1 << 37
    with Machine(resolve(ARCH, "contpte", [step])) as m:
        m.spawn(1)
        _map_and_touch(m, first)
        start = m.work()
        m.fork(1, 2)
        forked = m.work()
        m.exit(2)
        _map_and_touch(m, second)
        touched = m.work()
        m.munmap(1, second, CONTPTE_SIZE)
        unmapped = m.work()
    return {"fork": _minus(forked, start), "munmap": _minus(unmapped, touched)}


def _map_and_touch(m: Machine, address: int) -> None:
    error = m.mmap(1, address, CONTPTE_SIZE)
    for at in range(address, address + CONTPTE_SIZE, m.page_size):
        error = error or m.touch(1, at, True)
    if error:
        raise SystemExit(f"contiguous entries: error {error} where memory was to be had")


def _minus(now: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: n - before[name] for name, n in now.items()}


# --- layout ---------------------------------------------------------------------------------------


def _change(value: int, base: int) -> str:
    return _percent((value / base - 1) * 100)


def _percent(change: float | None) -> str:
    return "" if change is None else f"{change:+.1f} %"


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


SECTIONS: dict[str, Callable[[Measure], str]] = {
    "gcc": lambda measured: kernels_of("gcc", measured),
    "python": lambda measured: kernels_of("python", measured),
    "order": order,
    "claims": claims,
    "policies": policies,
    "contpte": contpte,
    "tlb": tlb,
}


def render(document: str, names: Iterable[str] = tuple(SECTIONS)) -> str:
    """Return the document with the named sections made anew."""
    measured = once()
    for name in names:
        section(document, name, OUTPUT)  # before anything is replayed
        document = replace_section(document, name, SECTIONS[name](measured), OUTPUT)
    return document


def main() -> int:
    """Write the document, or check it; return the exit status."""
    text = render(OUTPUT.read_text(encoding="utf-8"))
    return write_or_check(OUTPUT, text, "python -m scripts.results")


if __name__ == "__main__":
    sys.exit(main())
