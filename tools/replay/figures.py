# SPDX-License-Identifier: GPL-2.0-only
"""What a replay cost, as a result (tools/report/result.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import virtmm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtmm.tools.replay.replay import Replay
    from virtmm.tools.report.cost import CostTable

#: Mappings that a result lists, those that lost most.
MOST_MAPPINGS = 100

SIMPLIFIED = (
    "file pages are always cached; their faults are minor, contents zero",
    "page cache is not reclaimed and there is no swap: memory that runs out ends the replay",
)
SIMPLIFIED_RELAYOUT = "addresses laid out anew for larger base pages (tools/replay/relayout.py)"
SIMPLIFIED_EXECUTABLES = (
    "executable files moved to addresses that suit large folios (tools/replay/executables.py)"
)
SIMPLIFIED_SMALLER = (
    "mappings moved closer together: the address space is smaller than the recorded one "
    "(tools/replay/relayout.py)"
)
SIMPLIFIED_LARGER = "recorded with larger pages: what was touched within one is known once a page"
SIMPLIFIED_AROUND = "recorded with fault-around: which file pages it mapped is not known"


def out_of_memory(run: Replay) -> dict[str, Any]:
    """Return who ran out of memory, and where."""
    machine = run.machine
    pid = machine.current_pid()
    return {
        "pid": pid,
        "command": run.commands.get(pid, ""),
        "held": machine.rss(pid),
        "event": run.row,
    }


def identity(run: Replay, kernel: str, settings: Sequence[str], costs: CostTable) -> dict[str, Any]:
    """Return what was replayed on which machine, and what the figures leave out."""
    reader, machine = run.reader, run.machine
    command = reader.metadata.get("command", "")
    simplified = [*SIMPLIFIED, *costs.simplified]
    if machine.page_size > reader.page_size:
        simplified.append(SIMPLIFIED_RELAYOUT)
    if run.exec_align:
        simplified.append(SIMPLIFIED_EXECUTABLES)
    if run.recorded_top:
        simplified.append(SIMPLIFIED_SMALLER)
    if machine.page_size < reader.page_size:
        simplified.append(SIMPLIFIED_LARGER)
    if reader.metadata.get("fault_around_bytes") != reader.page_size:
        simplified.append(SIMPLIFIED_AROUND)
    return {
        "format": "virtmm-result",
        "version": 1,
        "virtmm": virtmm.__version__,
        "trace": {
            "name": Path(reader.path).stem,
            "hash": reader.hash,
            "events": reader.num_events,
            "page_size": reader.page_size,
            "command": command if isinstance(command, str) else " ".join(command),
        },
        "kernel": kernel,
        "arch": machine.config.arch,
        "page_size": machine.page_size,
        "config_hash": machine.config.hash,
        "core_hash": machine.core_hash,
        "settings": list(settings),
        "simplified": simplified,
    }


def figures(run: Replay, costs: CostTable) -> dict[str, Any]:
    """Return what it cost."""
    machine = run.machine
    page = machine.page_size
    events = machine.events()
    processes = machine.processes()
    folios: dict[int, int] = {}
    for process in processes:
        for order, count in process.folios.items():
            folios[order] = folios.get(order, 0) + count
    memory = machine.memory()
    memory["peak_rss"] = max((p.maxrss for p in processes), default=0) * page
    return {
        "minflt": sum(p.minflt for p in processes),
        "segv": run.segv,
        "refused_calls": run.refused,
        "folios": {str(order): folios[order] for order in sorted(folios)},
        "events": events,
        "instructions": costs.price(events),
        "cost_table": costs.name,
        "memory": memory,
        "tlb": machine.tlb(),
        "vmstat": machine.vmstat(),
        "work": machine.work(),
        "hugepages": machine.hugepages(),
        "refused_orders": machine.refusals(),
        "refused_mappings": [
            {
                "pid": m.pid,
                "command": run.programs.get((m.pid, m.execs), ""),
                "start": m.start,
                "end": m.end,
                "kind": m.kind,
                "faults": m.faults,
                "refused": m.refused,
            }
            for m in machine.refused_mappings()[:MOST_MAPPINGS]
        ],
        "processes": [
            {
                "pid": p.pid,
                "command": run.commands.get(p.pid, ""),
                "minflt": p.minflt,
                "maxrss": p.maxrss * page,
                "folios": {str(order): n for order, n in p.folios.items()},
            }
            for p in processes
        ],
    }
