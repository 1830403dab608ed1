# SPDX-License-Identifier: GPL-2.0-only
"""
The conformance suite of an architecture: what ``virtmm arch-check`` and the tests run.

Each check looks at one promise of the contract (arch/params.py) on every named kernel, and says what it
looked at; CheckError says which field, or which entry, does not keep it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtmm.arch import arch_folder, load_arch, loadable
from virtmm.arch.params import ArchError
from virtmm.boot import BootError
from virtmm.check_entries import (
    check_algebra,
    check_contiguous,
    check_round_trips,
    check_set_ptes,
)
from virtmm.check_running import check_benchmark, check_golden, check_huge, check_twins
from virtmm.kbuild import BuildError, compile_cores
from virtmm.kconfig import ConfigError, fragment_names, one_line, resolve, shown
from virtmm.subject import CheckError, Subject, want

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIERS = ("geometry", "THP", "contiguous", "costs")
#: What new-arch writes where only a porter knows.
_UNFILLED = "to be filled in"


class Outcome(NamedTuple):
    """One line: "ok", "FAILED" or "skipped", and what was looked at or found."""

    check: str
    status: str
    text: str


def check_fields(s: Subject) -> str:
    """
    Sources are given, and nothing is claimed that is another's in the tree.

    The checks of the contract itself were made when it was loaded.
    """
    for field in ("geometries", "pte"):
        where = f"{s.arch.name}.sources[{field!r}]"
        text = str(s.arch.sources.get(field, "")).strip()
        step = "name the manual, and the file and release of Linux"
        want(bool(text), f"{where}: not given; {step}")
        want(_UNFILLED not in text, f"{where}: {text!r}; {step}")
    for other in loadable() if s.in_tree else ():
        if other.name == s.arch.name:
            continue
        want(
            not (other.reference and s.arch.reference),
            f"{s.arch.name}.reference: {other.name} is it already; leave it out",
        )
        want(
            other.machine != s.arch.machine,
            f"{s.arch.name}.machine: {other.machine} is {other.name}; give what uname -m says there",
        )
    shifts = [g.page_shift for g in s.arch.geometries]
    return ", ".join(f"{1 << shift >> 10}K pages" for shift in shifts)


def check_kconfig(s: Subject) -> str:
    """Every kernel resolved when the subject was made, and compiles; fragments are for one of them."""
    for g in s.arch.geometries:
        name = f"baseline_{1 << g.page_shift >> 10}k"
        where = shown(s.folder / "configs" / f"{name}_defconfig")
        other = "".join(
            f" ({k}_defconfig is there: a small k)" for k in s.kernels if k.lower() == name
        )
        want(name in s.kernels, f"{where}: missing; each page size of geometries has one{other}")
        shift = s.kernels[name]["PAGE_SHIFT"]
        want(
            shift == g.page_shift,
            f"{where}: PAGE_SHIFT={shift}, not {g.page_shift}; choose that size",
        )
        base = s.kernels[name]["ANON_POLICY_BASE"]
        want(bool(base), f"{where}: ANON_POLICY_BASE is n; it is the kernel of base pages")
    for fragment in fragment_names(s.arch.name, s.folder):
        _check_fragment(s, fragment)
    compile_cores(s.resolve(kernel, *sets) for kernel, sets in s.variants())
    return f"{len(s.kernels)} kernels"


def _check_fragment(s: Subject, fragment: str) -> None:
    """Raise ConfigError unless a fragment can be put on one of the kernels."""
    wrong: list[ConfigError] = []
    for kernel in s.kernels:
        try:
            resolve(s.arch.name, kernel, [fragment], arch_dir=s.folder)
        except ConfigError as e:
            wrong.append(e)
    if len(wrong) == len(s.kernels):
        raise wrong[0]


CHECKS: tuple[tuple[str, str, Callable[[Subject], str]], ...] = (
    ("fields", "geometry", check_fields),
    ("kconfig", "geometry", check_kconfig),
    ("round trips", "geometry", check_round_trips),
    ("pte algebra", "geometry", check_algebra),
    ("set_ptes", "geometry", check_set_ptes),
    ("contiguous", "contiguous", check_contiguous),
    ("huge leaf", "THP", check_huge),
    ("C = Python", "geometry", check_twins),
    ("golden", "geometry", check_golden),
    ("benchmark", "geometry", check_benchmark),
)


def missing(s: Subject) -> dict[str, str]:
    """Return the tiers that an architecture has not, and why."""
    configs = s.kernels.values()
    found = {}
    if not any(c["HAVE_ARCH_TRANSPARENT_HUGEPAGE"] for c in configs):
        found["THP"] = "Kconfig does not select HAVE_ARCH_TRANSPARENT_HUGEPAGE"
    elif not any(c.get("TRANSPARENT_HUGEPAGE") for c in configs):
        found["THP"] = "no kernel has TRANSPARENT_HUGEPAGE=y"
    if s.arch.pte.cont is None or not any(g.cont_order for g in s.arch.geometries):
        found["contiguous"] = "pte.cont or cont_order is not given"
    elif not s.contpte:
        found["contiguous"] = "no symbol of Kconfig selects CONTPTE"
    elif "THP" in found:
        found["contiguous"] = found["THP"]
    if not (s.folder / "costs.csv").exists():
        found["costs"] = "no costs.csv; another architecture's figures are used"
    return found


def arch_check(
    name: str, arch_dir: Path | None = None, costs: Callable[[Subject], str] | None = None
) -> Iterator[Outcome]:
    """
    Yield the outcome of each check, then the tiers reached; what no kernel boots with ends at once.

    Args:
        costs: reads costs.csv of an architecture and says what it has; ArchError when it is wrong, or
            a kernel finds no prices. Without it nobody looks at the file.

    Raises:
        ArchError: there is no such architecture, and so nothing to check.
    """
    arch_folder(name, arch_dir)
    stage = "fields"
    try:
        load_arch(name, arch_dir)
        stage = "kconfig"
        s = Subject(name, arch_dir)
    except (ArchError, BootError, ConfigError) as e:
        yield Outcome(stage, "FAILED", _said(e))
        return
    checks = list(CHECKS)
    if costs is not None:
        checks.append(("costs", "costs", costs))
    without, failed = missing(s), set[str]()
    for check, tier, call in checks:
        why = without.get(tier)
        try:
            # Without a table of their own its kernels use another's.
            found = call(s) if why is None or tier == "costs" else ""
        except Exception as e:  # a wrong entry format can make any of mm/ fail
            failed.add(tier)
            yield Outcome(check, "FAILED", _said(e))
        else:
            ok = Outcome(check, "ok", found)
            yield ok if why is None else Outcome(check, "skipped", f"tier {tier}: {why}")
    yield _reached(without, failed)


def _said(e: Exception) -> str:
    """Return an exception as one line; one that is no message of ours by its type too."""
    if isinstance(e, ArchError | BootError | BuildError | CheckError | ConfigError):
        more = f" (and {len(e.args) - 1} more)" if len(e.args) > 1 else ""
        return one_line(str(e.args[0])) + more
    return one_line(f"{type(e).__name__}: {e}; look at the bits of pte")


def _reached(without: dict[str, str], failed: set[str]) -> Outcome:
    """Return the last line: the tiers reached, and why others are not."""
    why = {t: without.get(t, "FAILED above") for t in TIERS if t in without or t in failed}
    if "geometry" in why:
        return Outcome("tiers", "FAILED", "none; geometry FAILED above")
    lacks = "".join(f"; no {t} ({why[t]})" for t in TIERS if t in why)
    status = "FAILED" if failed else "ok"
    return Outcome("tiers", status, ", ".join(t for t in TIERS if t not in why) + lacks)
