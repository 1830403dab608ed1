# SPDX-License-Identifier: GPL-2.0-only
"""
Result files: what one replay of one trace under one kernel counted.

A report reads these and nothing else. A result without the hashes of its configuration, of the
core and of the trace is refused: nobody could say what it is a result of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "virtmm-result"
VERSION = 1

#: Two kinds of memory, and the ways to count their TLB entries (mm/tlb.py).
TLB_KINDS = ("data", "text")
TLB_WAYS = ("plain", "hpa", "cont", "best")


class ReportError(Exception):
    """A result is missing, malformed, or does not belong with the others."""


@dataclass(frozen=True)
class Result:
    """
    One checked result.

    Attributes:
        trace, trace_hash: name and content hash of the trace.
        kernel, arch, page_size: what it ran under; page size in bytes.
        minflt, segv: minor faults and segmentation faults of all processes.
        refused_calls: memory calls that the virtual kernel refused and the recorded one had not.
        folios: order -> anonymous folios that faults allocated.
        instructions: group -> kernel instructions, "total" included.
        memory: bytes by name ("peak", "max_page_tables", ...).
        tlb: kind of TLB_KINDS -> "bytes" mapped, and TLB entries by TLB_WAYS.
        oom: None, or pid, command, held (bytes) and event (row) of what ran out of memory.
        raw: the whole result as it was read.
    """

    trace: str
    trace_hash: str
    kernel: str
    arch: str
    page_size: int
    minflt: int
    segv: int
    refused_calls: int
    folios: Mapping[int, int]
    instructions: Mapping[str, int]
    cost_table: str
    memory: Mapping[str, int]
    tlb: Mapping[str, Mapping[str, int]]
    oom: Mapping[str, Any] | None
    simplified: tuple[str, ...]
    raw: Mapping[str, Any]

    def tlb_per_mib(self, kind: str, way: str = "cont") -> float | None:
        """Return TLB entries per MiB mapped; None where nothing is. "cont" is as the tables are marked."""
        counts = self.tlb[kind]
        return counts[way] * 2**20 / counts["bytes"] if counts["bytes"] else None


def read_results(sources: Iterable[Path | Mapping[str, Any]]) -> list[Result]:
    """
    Return the results of files and of objects already in memory, in the given order.

    Raises:
        ReportError: a file cannot be read, a result is malformed (see check_result), or two results
            of traces of one name come from different traces.
    """
    results = []
    hashes: dict[str, str] = {}
    for number, source in enumerate(sources, 1):
        where = str(source) if isinstance(source, Path) else f"result {number}"
        result = check_result(_load(source) if isinstance(source, Path) else source, where)
        known = hashes.setdefault(result.trace, result.trace_hash)
        if known != result.trace_hash:
            raise ReportError(
                f"{where}: trace {result.trace} has hash {result.trace_hash}, an earlier result "
                f"{known}: replay one trace, or name the two apart"
            )
        results.append(result)
    if not results:
        raise ReportError("no results: nothing to report")
    return results


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ReportError(f"{path}: {e.strerror}") from None
    except ValueError as e:
        raise ReportError(f"{path}: not a JSON file ({e})") from None


def check_result(raw: Any, where: str) -> Result:
    """
    Return ``raw`` as a Result; ``where`` names it in errors.

    Raises:
        ReportError: another format or version, a hash or a field is missing or of the wrong type.
    """
    if not isinstance(raw, Mapping) or raw.get("format") != FORMAT:
        raise ReportError(f"{where}: not a {FORMAT} file; make one by virtmm replay --format json")
    if raw.get("version") != VERSION:
        raise ReportError(
            f"{where}: {FORMAT} version {raw.get('version')!r}; this virtmm reads {VERSION}"
        )
    take = _Fields(raw, where)
    for name in ("config_hash", "core_hash", "trace.hash"):
        if not take.text(name, default=""):
            raise ReportError(f"{where}: no {name}: nobody can say what this is a result of")
    oom = take.any("oom", default=None)
    if oom is not None:
        for name in ("pid", "held", "event"):
            take.count(f"oom.{name}")
        take.text("oom.command")
    instructions = take.counts("instructions")
    if "total" not in instructions:
        raise ReportError(f"{where}: instructions: no total")
    memory = take.counts("memory")
    for name in ("peak", "max_page_tables"):
        take.count(f"memory.{name}")
    for kind in TLB_KINDS:
        for name in ("bytes", *TLB_WAYS):
            take.count(f"tlb.{kind}.{name}")
    return Result(
        trace=take.text("trace.name"),
        trace_hash=take.text("trace.hash"),
        kernel=take.text("kernel"),
        arch=take.text("arch"),
        page_size=take.count("page_size"),
        minflt=take.count("minflt"),
        segv=take.count("segv"),
        refused_calls=take.count("refused_calls"),
        folios=take.orders("folios"),
        instructions=instructions,
        cost_table=take.text("cost_table"),
        memory=memory,
        tlb={kind: take.counts(f"tlb.{kind}") for kind in TLB_KINDS},
        oom=oom,
        simplified=take.texts("simplified"),
        raw=raw,
    )


_MISSING = object()


@dataclass(frozen=True)
class _Fields:
    """Typed access to the fields of a result; each method raises ReportError naming the field."""

    raw: Mapping[str, Any]
    where: str

    def any(self, name: str, default: object = _MISSING) -> Any:
        """Return the field at a dotted name."""
        value: Any = self.raw
        for part in name.split("."):
            value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            if default is _MISSING:
                raise ReportError(f"{self.where}: no {name}")
            return default
        return value

    def text(self, name: str, default: object = _MISSING) -> str:
        """Return a string."""
        value = self.any(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings; none where there is no such field."""
        value = self.any(name, default=())
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self._wrong(name, value, "a list of texts")
        return tuple(value)

    def count(self, name: str) -> int:
        """Return a whole number >= 0."""
        value = self.any(name)
        if not _is_count(value):
            raise self._wrong(name, value, "a whole number of at least 0")
        return int(value)

    def counts(self, name: str) -> dict[str, int]:
        """Return a map from names to whole numbers >= 0."""
        value = self.any(name)
        if not isinstance(value, Mapping) or not all(_is_count(v) for v in value.values()):
            raise self._wrong(name, value, "names with whole numbers of at least 0")
        return dict(value)

    def orders(self, name: str) -> dict[int, int]:
        """Return a map from folio orders to counts, ascending."""
        value = self.counts(name)
        if not all(str(k).isdecimal() for k in value):
            raise self._wrong(name, value, "counts by folio order")
        return dict(sorted((int(k), v) for k, v in value.items()))

    def _wrong(self, name: str, value: object, wanted: str) -> ReportError:
        shown = json.dumps(value, default=str)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        return ReportError(f"{self.where}: {name} is {shown}, not {wanted}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
