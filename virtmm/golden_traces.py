# SPDX-License-Identifier: GPL-2.0-only
"""
Golden traces: small programs with their known outcome, the same on every architecture.

``golden/*.trace`` has a call of Machine a line, ``-> `` and what it returns, 0 where nothing stands.
Lengths are in pages (``64p``) and addresses relative to ``low``, the second page, ``edge``, where a table
of the last level begins, and ``top``, the end of user addresses: so what happens is the same whatever
the page size, the levels and the entry bits are. ``store*8`` is eight calls, each a page further and
with the next value; what ``load*8`` reads counts up alike, but for ``=0``.

``minflt`` and ``rss`` are those of base pages. A kernel with larger folios has at most as many
faults, and at least as much memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from virtmm.mm import layout, vm_flags

if TYPE_CHECKING:
    from virtmm.machine import Machine

FOLDER = Path(__file__).with_name("golden")
#: Pages below ``edge``, at least.
_BELOW_EDGE = 256
_LINE = re.compile(r"(\w+)(?:\*(\d+))? (.*?)(?: -> (=?)(\S+))?")
_NUMBER = re.compile(r"(low|edge|top)?(?:([+-]?\d+)(p?))?")
_WORDS = {
    "none": 0,
    "r": vm_flags.PROT_READ,
    "rw": vm_flags.PROT_READ | vm_flags.PROT_WRITE,
    "SEGV": vm_flags.VM_FAULT_SIGSEGV,
    "ENOMEM": -vm_flags.ENOMEM,
    "EINVAL": -vm_flags.EINVAL,
    "DONTNEED": vm_flags.MADV_DONTNEED,
    "FREE": vm_flags.MADV_FREE,
    "MAYMOVE|FIXED": vm_flags.MREMAP_MAYMOVE | vm_flags.MREMAP_FIXED,
}


class GoldenError(Exception):
    """A machine did something else than the trace says: file, line, what came out and what should."""


def golden_traces() -> list[Path]:
    """Return the traces, sorted by name."""
    return sorted(FOLDER.glob("*.trace"))


def replay_golden(m: Machine, path: Path, *, base_pages: bool) -> list[str]:
    """
    Replay a trace on a machine where no process runs; it needs CONFIG_PHYS_BACKING.

    Args:
        base_pages: the kernel maps single pages only, so faults and memory must be exactly those.

    Returns:
        The digests of the machine before each exec and exit, and at the end.

    Raises:
        GoldenError: at the first outcome that is another, or if memory is not free again at the end.
    """
    free, digests = _free(m), []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("#"):
            if line.startswith(("exec", "exit")):
                digests.append(m.digest())
            where = f"{path.name}:{number}: {line.partition(' -> ')[0]}"
            _do(m, line, where, base_pages=base_pages)
    left = free - _free(m)
    if left:
        raise GoldenError(f"{path.name}: {left} pages are not free again at its end")
    return [*digests, m.digest()]


def _free(m: Machine) -> int:
    """Return the free pages; the huge zero page, once there, stays for whoever comes next."""
    zone = m.k.zone
    return zone[layout.ZONE_NR_FREE] + (bool(zone[layout.ZONE_HUGE_ZERO]) << m.k.pmd_order)


def _do(m: Machine, line: str, where: str, *, base_pages: bool) -> None:
    """Make the calls of a line and compare what they return."""
    found = _LINE.fullmatch(line)
    assert found is not None  # noqa: S101 - the traces are ours
    name, times, words, equal, result = found.groups()
    args = [_number(m, word) for word in words.split()]
    wanted = _number(m, result or "0")
    for i in range(int(times or 1)):
        got = getattr(m, name)(*args) or 0
        want = wanted + i if name == "load" and not equal else wanted
        good = got == want
        if not base_pages and name in ("minflt", "rss"):
            good = got <= want if name == "minflt" else got >= want
        if not good:
            raise GoldenError(f"{where}: {got} instead of {want}")
        if times:
            args[1] += m.page_size
            args[2:] = [value + 1 for value in args[2:]]


def _number(m: Machine, word: str) -> int:
    """Return what a word means on a machine."""
    if word in _WORDS:
        return _WORDS[word]
    found = _NUMBER.fullmatch(word)
    assert found is not None  # noqa: S101 - the traces are ours
    place, number, pages = found.groups()
    edge = -(-_BELOW_EDGE * m.page_size // m.k.pmd_size) * m.k.pmd_size
    places = {"low": m.page_size, "edge": edge, "top": m.task_size}
    return places.get(place, 0) + int(number or 0) * (m.page_size if pages else 1)
