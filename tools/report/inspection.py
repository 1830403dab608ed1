# SPDX-License-Identifier: GPL-2.0-only
"""The result of ``virtmm inspect`` as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtmm.tools.trace.lint import size_text

_BARS = "▁▂▃▄▅▆▇█"
_PROCESSES_SHOWN = 24


def size(count: int) -> str:
    """Return bytes with a binary unit."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >> shift:
            return f"{count / (1 << shift):.1f}{unit}"
    return f"{count}B"


def drawn(positions: list[float]) -> str:
    """Draw positions between 0 and 1, each as a bar of its height."""
    return "".join(_BARS[min(int(p * len(_BARS)), len(_BARS) - 1)] for p in positions)


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in numbers.items() if n)


def _head(result: dict[str, Any]) -> Iterator[str]:
    about = result["recording"]
    events = result["events"]
    yield (
        f"{result['trace']}: {sum(events.values()):,} events in {result['duration_ns'] / 1e9:.3f} s, "
        f"{len(result['processes'])} processes, {size_text(result['page_size'])} pages"
    )
    yield f"  command      {about.get('command') or 'unknown'}"
    where = " ".join(str(about[key]) for key in ("kernel", "machine") if about.get(key))
    yield f"  made by      {about.get('recorder') or 'unknown'}" + (f" on {where}" if where else "")
    losses = about.get("losses")
    lost = losses.get("events", 0) if isinstance(losses, dict) else losses
    yield f"  lost         {f'{lost:,} events' if isinstance(lost, int) else lost or 'not known'}"
    if about.get("partial"):
        yield f"  partial      {about.get('partial_reason') or 'ends before the program did'}"
    limits = about.get("limits") or []
    for limit in [limits] if isinstance(limits, str) else limits:
        yield f"  not known    {limit}"
    yield f"  events       {_counts(events)}"


def _processes(processes: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the tree; a child follows its parent, further in."""
    children: dict[int, list[int]] = {}
    latest: dict[int, int] = {}
    roots = []
    for at, process in enumerate(processes):
        parent = latest.get(process["parent"] or 0)
        children.setdefault(parent, []).append(at) if parent is not None else roots.append(at)
        latest[process["pid"]] = at
    yield "Processes"
    todo = [(at, 1) for at in reversed(roots)]
    shown = 0
    while todo and shown < _PROCESSES_SHOWN:
        at, depth = todo.pop()
        p = processes[at]
        shown += 1
        todo += [(child, depth + 1) for child in reversed(children.get(at, []))]
        ended = "end" if p["ended_ns"] is None else f"{p['ended_ns'] / 1e9:.3f} s"
        name = "  " * depth + f"{p['pid']} " + " > ".join(c or "?" for c in p["commands"])
        yield (
            f"{name:<40} {p['started_ns'] / 1e9:.3f} to {ended}, {_many(p['threads'], 'thread')}, "
            f"{p['first_touches']:,} first touches, {p['peak_mappings']} mappings"
        )
    if left := len(processes) - shown:
        yield f"  and {left:,} more; --format json has all"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _touched(result: dict[str, Any]) -> Iterator[str]:
    touched, mappings = result["touched"], result["mappings"]
    yield f"Mappings: at most {mappings['peak']:,} in one process ({_counts(mappings['kinds'])})"
    yield (
        f"First touches: {touched['first']:,} pages, {size(touched['bytes'])}; faults on present "
        f"pages {touched['again']:,}, in the kernel {touched['kernel']:,}, outside mappings "
        f"{touched['outside']:,}"
    )
    for kind, n in touched["kinds"].items():
        yield f"  {kind:<18} {n['read']:>11,} read {n['write']:>11,} written"
    shares = ", ".join(f"{name} {n['share']:.0%}" for name, n in result["order"].items())
    yield f"Order of first touches: {shares}"
    yield "  most touched; from left to right in time, the higher the bar the higher the address"
    for r in result["regions"]:
        name = f"{r['pid']} {r['command']} {r['kind']}"
        yield f"  {name:<32} {size(r['bytes']):>9} {r['touches']:>10,}  {drawn(r['positions'])}"


def _lint(findings: list[dict[str, Any]]) -> Iterator[str]:
    """Yield what was found by rule, with the first place of each; the page sizes side by side."""
    if not findings:
        yield "Larger base pages: nothing found that 16K or 64K pages would break"
        return
    yield "Larger base pages"
    rules: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        rules.setdefault(finding["rule"], []).append(finding)
    for rule, found in rules.items():
        first = found[0]
        times: dict[str, list[int]] = {}
        for f in found:
            total = times.setdefault(size_text(f["page_size"]), [0, 0])
            total[0] += f["count"]
            total[1] += f["bytes"]
        counts = ", ".join(
            f"{page} {count:,}x" + (f" {size(cost)}" if cost else "")
            for page, (count, cost) in sorted(times.items())
        )
        yield f"  {first['severity']} {rule}: {counts}"
        yield f"      first: row {first['row']}, {first['command'] or '?'} ({first['pid']}): {first['what']}"
        yield f"      {first['effect']}"


def render(result: dict[str, Any]) -> str:
    """Return the text: head, processes, touched memory and its order, findings."""
    parts = (
        _head(result),
        _processes(result["processes"]),
        _touched(result),
        _lint(result["lint"]),
    )
    return "\n".join(line for part in parts for line in part)
