# SPDX-License-Identifier: GPL-2.0-only
"""
The conformance suite of an architecture: what ``virtmm arch-check`` and the tests run.

Each check looks at one promise of the contract (arch/params.py) on every named kernel, and says what it
looked at; CheckError says which field, or which entry, does not keep it.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from virtmm.arch import arch_folder, load_arch
from virtmm.arch.params import ArchError
from virtmm.boot import BootError, check_settings
from virtmm.kbuild import BuildError
from virtmm.kconfig import ConfigError, ResolvedConfig, defconfigs, open_kconfig, resolve
from virtmm.machine import Machine
from virtmm.mm import contpte, layout, pgtable
from virtmm.mm.debug_vm import validate
from virtmm.mm.page_alloc import folio_alloc
from virtmm.mm.ranges import PyRanges
from virtmm.mm.vm_flags import PROT_READ, VM_EXEC, VM_READ, VM_WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from virtmm.arch.params import ArchParams, Attr
    from virtmm.mm.arena import Arena

ATTRIBUTES = ("write", "young", "dirty", "special", "exec")
#: How a kernel is run: all in C, faults in Python, all in Python, and all checked after each step.
RUNS = ("FAST_FAULT=y", "FAST_FAULT=n", "C_RANGES=n", "DEBUG_VM=y")


class CheckError(Exception):
    """An architecture does not keep a promise."""


class Outcome(NamedTuple):
    """One line: "ok", "FAILED" or "skipped", and what was looked at or found."""

    check: str
    status: str
    text: str


class Subject:
    """The architecture that is checked, and its kernels: name -> configuration of a small machine."""

    def __init__(self, name: str, arch_dir: Path | None = None) -> None:
        self.folder = arch_folder(name, arch_dir)
        self.arch: ArchParams = load_arch(name, arch_dir)
        self.kernels: dict[str, ResolvedConfig] = {}
        for kernel in ("defconfig", *defconfigs(name, arch_dir)):
            config = resolve(name, kernel, arch_dir=arch_dir)
            # Two of the buddy allocator's largest blocks.
            shift = int(config["ARCH_FORCE_MAX_ORDER"]) + int(config["PAGE_SHIFT"]) - 20
            mb = max(64, 2 << max(0, shift))
            sets = [f"MEMORY_MB={mb}"]
            self.kernels[kernel] = resolve(name, kernel, sets=sets, arch_dir=arch_dir)
        symbols = open_kconfig(name, arch_dir).unique_defined_syms
        #: Symbols with which the architecture's contiguous bit is used.
        self.contpte = [
            s.name for s in symbols if any(other.name == "CONTPTE" for other, _ in s.selects)
        ]

    def boot(self, kernel: str, *sets: str) -> Machine:
        """Boot a kernel with further settings; memory sizes that it has are all on."""
        config = self.kernels[kernel]
        sets = (f"MEMORY_MB={config['MEMORY_MB']}", *sets)
        machine = Machine(
            resolve(config.arch, kernel, sets=sets, arch_dir=config.arch_dir),
        )
        if config.get("TRANSPARENT_HUGEPAGE"):
            machine.set("enabled", "always")
        if config.get("ANON_POLICY_MTHP"):
            for size in machine.sizes():
                machine.set(size, "always")
        return machine

    def page_sizes(self) -> dict[int, str]:
        """Return the first kernel of each page shift."""
        found: dict[int, str] = {}
        for kernel, config in self.kernels.items():
            found.setdefault(int(config["PAGE_SHIFT"]), kernel)
        return found


def _want(holds: bool, text: str) -> None:
    if not holds:
        raise CheckError(text)


def check_fields(s: Subject) -> str:
    """Sources are given; the checks of the contract itself were made when it was loaded."""
    for field in ("geometries", "pte"):
        _want(field in s.arch.sources, f"{s.arch.name}.sources: no {field!r}; say where it is from")
    shifts = [g.page_shift for g in s.arch.geometries]
    return ", ".join(f"{1 << shift >> 10}K pages" for shift in shifts)


def check_kconfig(s: Subject) -> str:
    """Kconfig names the architecture, gives page sizes that it has, and kernels for each."""
    symbol = s.arch.kconfig_symbol
    for kernel, config in s.kernels.items():
        _want(
            config.get(symbol) is True,
            f"{s.arch.name}.kconfig_symbol: {symbol} is not y in {kernel}; Kconfig defines it def_bool y",
        )
        check_settings(config, ())
    for g in s.arch.geometries:
        name = f"baseline_{1 << g.page_shift >> 10}k"
        _want(name in s.kernels, f"configs/{name}_defconfig: missing; each page size has one")
        shift = s.kernels[name]["PAGE_SHIFT"]
        _want(shift == g.page_shift, f"configs/{name}_defconfig: PAGE_SHIFT={shift}")
    return f"{len(s.kernels)} kernels"


def _reads(entry: int, attr: Attr) -> bool:
    return entry & attr.mask == attr.on


def _entries(k: Arena) -> Iterator[tuple[int, dict[str, bool]]]:
    """Yield an entry for each combination of attributes, and the combination."""
    most = k.pfn_mask >> k.pfn_shift
    for prot in (0, VM_READ):
        for values in itertools.product((False, True), repeat=len(ATTRIBUTES)):
            entry = pgtable.mk_pte(k, most // 3, pgtable.vm_get_page_prot(k, prot))
            for name, on in zip(ATTRIBUTES, values, strict=True):
                attr = getattr(k.arch.pte, name)
                entry = entry & ~attr.mask | (attr.on if on else attr.off)
            yield entry, dict(zip(ATTRIBUTES, values, strict=True))


def check_round_trips(s: Subject) -> str:
    """Every page frame number comes back, with every protection, and so does each attribute."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, "C_RANGES=n") as m:
            k, most = m.k, m.k.pfn_mask >> m.k.pfn_shift
            for flags in (0, VM_READ, VM_READ | VM_WRITE, VM_READ | VM_EXEC):
                prot = pgtable.vm_get_page_prot(k, flags)
                for pfn in (0, most, *(1 << b for b in range(most.bit_length()))):
                    entry = pgtable.mk_pte(k, pfn, prot)
                    where = f"entry {entry:#x} of {kernel}"
                    _want(pgtable.pte_pfn(k, entry) == pfn, f"pte.pfn: {pfn:#x} is lost in {where}")
                    _want(pgtable.pte_present(k, entry), f"pte.present: off in {where}")
            for entry, state in _entries(k):
                for name, on in state.items():
                    got = _reads(entry, getattr(k.arch.pte, name))
                    _want(got == on, f"pte.{name}: {got} instead of {on} in entry {entry:#x}")
    return "page numbers, protections, attributes"


def check_algebra(s: Subject) -> str:
    """pte_mkX() sets X and nothing else, as the kernel's debug_vm_pgtable wants it."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, "C_RANGES=n") as m:
            k = m.k
            for entry, state in _entries(k):
                for name, on, off in (
                    ("write", pgtable.pte_mkwrite, pgtable.pte_wrprotect),
                    ("young", pgtable.pte_mkyoung, pgtable.pte_mkold),
                    ("dirty", pgtable.pte_mkdirty, pgtable.pte_mkclean),
                ):
                    for call, value in ((on, True), (off, False)):
                        new, wanted = call(k, entry), state | {name: value}
                        for other, is_on in wanted.items():
                            bits = (new ^ entry) & getattr(k.arch.pte, other).mask
                            _want(
                                _reads(new, getattr(k.arch.pte, other)) == is_on,
                                f"pte.{other}: {call.__name__}({entry:#x}) gives {new:#x}, bits {bits:#x}",
                            )
                        _want(
                            pgtable.pte_pfn(k, new) == pgtable.pte_pfn(k, entry),
                            f"pte.{name}: {call.__name__}({entry:#x}) changes the pfn",
                        )
                huge = pgtable.pmd_mkhuge(k, entry)
                _want(pgtable.pmd_trans_huge(k, huge), f"pte.leaf: {huge:#x} reads as a table")
                _want(pgtable.pmd_to_pte(k, huge) == entry, f"pte.leaf: {entry:#x} is not had back")
    return f"{2 << len(ATTRIBUTES)} entries a page size"


def _table(k: Arena) -> int:
    pfn = folio_alloc(k, k.table_orders[-1], layout.PG_table, layout.ZONE_TABLE)
    first = pfn << k.table_shift
    k.ops.clear_ptes(first, k.pte_mask + 1)
    return first


def check_set_ptes(s: Subject) -> str:
    """set_ptes() of n is n times set_pte(), in C and in Python."""
    for kernel in s.page_sizes().values():
        with s.boot(kernel, "C_RANGES=y") as m:
            k, nr = m.k, m.k.pte_mask + 1
            first, prot = _table(k), pgtable.vm_get_page_prot(m.k, VM_READ | VM_WRITE)
            wanted = [pgtable.pte_mkdirty(k, pgtable.mk_pte(k, 7 + i, prot)) for i in range(nr)]
            for ops, what in ((k.ops, "C"), (PyRanges(k), "Python")):
                ops.clear_ptes(first, nr)
                ops.set_ptes(first, wanted[0], nr)
                for i, entry in enumerate(wanted):
                    got = k.phys[first + i]
                    _want(
                        got == entry,
                        f"pte.pfn_pos: set_ptes() in {what} writes {got:#x} as entry {i}, not {entry:#x}",
                    )
    return "a whole table, C and Python"


def check_contiguous(s: Subject) -> str:
    """Whole blocks fold when they are written, and unfold when an entry of theirs is changed."""
    sizes = []
    for kernel, config in s.kernels.items():
        if not config.get("TRANSPARENT_HUGEPAGE"):
            continue
        # Where it is off as in mainline it is switched on.
        with s.boot(kernel, f"{s.contpte[0]}=y") as m:
            if not m.k.geometry.cont_order:
                continue  # another page size has it
            k, nr, first = m.k, m.k.cont_nr, _table(m.k)
            sizes.append(nr)
            prot = pgtable.vm_get_page_prot(k, VM_READ)
            contpte.set_ptes(k, first, pgtable.mk_pte(k, nr, prot), min(2 * nr, k.pte_mask + 1))
            off = [i for i in range(nr) if not contpte.pte_cont(k, k.phys[first + i])]
            _want(not off, f"pte.cont: off in entries {off} of a whole block")
            contpte.ptep_clear(k, first + nr - 1)
            left = [i for i in range(nr) if contpte.pte_cont(k, k.phys[first + i])]
            _want(not left, f"pte.cont: entries {left} keep it after one of the block has gone")
            got = pgtable.pte_pfn(k, k.phys[first])
            _want(got == nr, f"pte.cont: unfolding changes pfn {nr} to {got}")
    return f"blocks of {', '.join(map(str, sorted(set(sizes))))} entries"


def check_huge(s: Subject) -> str:
    """A huge leaf maps what its order says, and splits into the same pages."""
    orders = set()
    for kernel, config in s.kernels.items():
        if not config.get("TRANSPARENT_HUGEPAGE"):
            continue
        with s.boot(kernel) as m:
            size, page, order = m.k.pmd_size, m.page_size, m.k.pmd_order
            orders.add(order)
            m.spawn(1)
            m.mmap(1, size, size)
            m.touch(1, size, True)
            found = list(m.mapped_pages(1, size, 2 * size))
            _want(
                len(found) == 1 << order and {p.order for p in found} == {order},
                f"geometries.levels.pte: a huge fault of {kernel} maps {len(found)} pages, "
                f"not 1 << {order}",
            )
            m.mprotect(1, size, page, PROT_READ)
            split = list(m.mapped_pages(1, size, 2 * size))
            same = [(p.address, p.folio, p.offset) for p in found]
            _want(
                [(p.address, p.folio, p.offset) for p in split] == same,
                f"pte.leaf: splitting a huge entry of {kernel} changes its pages",
            )
            validate(m.k)
    return f"order {', '.join(map(str, sorted(orders)))}"


def program(m: Machine) -> None:
    """First touch, fork, copy on write, protection, partial unmapping, at both ends of the space."""
    page = m.page_size
    m.spawn(1)
    places = (page, 2 * m.k.pmd_size - 64 * page, m.task_size - 128 * page)
    nr = min(96, m.k.pmd_size // page)
    for place in places:
        m.mmap(1, place, nr * page)
        for i in range(nr):
            m.touch(1, place + i * page, i % 3 == 0)
    m.fork(1, 2)
    for place in places:
        for i in range(0, nr, 5):
            m.touch(2, place + i * page, True)
        m.mprotect(1, place, 8 * page, PROT_READ)
        m.touch(1, place + 9 * page, True)
        m.munmap(1, place + 16 * page, 7 * page)
    m.exit(2)
    for place in places:
        m.touch(1, place + 8 * page, True)


def check_twins(s: Subject) -> str:
    """A program leaves the same machine in C and in Python, and DEBUG_VM finds nothing."""
    for kernel in s.kernels:
        seen = {}
        for setting in RUNS:
            with s.boot(kernel, setting) as m:
                program(m)
                validate(m.k)
                seen[setting] = m.digest(), m.events(), m.processes()
        for setting in RUNS:
            for what, a, b in zip(
                ("memory", "events", "processes"), seen[RUNS[0]], seen[setting], strict=True
            ):
                _want(a == b, f"{kernel}: {what} with {RUNS[0]} and with {setting} differ")
    return ", ".join(RUNS)


def check_golden(s: Subject) -> str:
    """A base-page kernel takes one fault a page; the fast path serves them."""
    nr = 512
    for g in s.arch.geometries:
        with s.boot(f"baseline_{1 << g.page_shift >> 10}k") as m:
            page = m.page_size
            if m.k.config.transparent_hugepage:
                m.set("enabled", "never")
            m.spawn(1)
            m.mmap(1, 16 * page, nr * page)
            for i in range(nr):
                m.touch(1, (16 + i) * page, True)
            got = m.minflt(1), m.rss(1)
            _want(got == (nr, nr * page), f"{nr} first touches: {got[0]} faults, {got[1]} bytes")
            _want(m.fast, "FAST_FAULT=y, and the core serves no faults")
            m.exit(1)
            _want(m.memory()["page_tables"] == 0, "page tables are left after exit")
    return f"{nr} touches, as many faults, nothing left"


CHECKS: tuple[tuple[str, str, Callable[[Subject], str]], ...] = (
    ("fields", "geometry", check_fields),
    ("kconfig", "geometry", check_kconfig),
    ("round trips", "geometry", check_round_trips),
    ("pte algebra", "geometry", check_algebra),
    ("set_ptes", "geometry", check_set_ptes),
    ("contiguous", "contiguous", check_contiguous),
    ("huge leaf", "THP", check_huge),
    ("faults", "geometry", check_golden),
    ("C = Python", "geometry", check_twins),
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
    if not (s.folder / "costs.csv").is_file():
        found["costs"] = "no costs.csv; another architecture's figures are used"
    return found


def arch_check(name: str, arch_dir: Path | None = None) -> Iterator[Outcome]:
    """
    Yield the outcome of each check, then the tiers; what cannot be loaded ends at once.

    Raises:
        ArchError: there is no such architecture, and so nothing to check.
    """
    arch_folder(name, arch_dir)
    try:
        s = Subject(name, arch_dir)
    except (ArchError, ConfigError) as e:
        yield Outcome("fields", "FAILED", str(e).splitlines()[0])
        return
    without = missing(s)
    for check, tier, call in CHECKS:
        if tier in without:
            yield Outcome(check, "skipped", f"tier {tier}: {without[tier]}")
            continue
        try:
            yield Outcome(check, "ok", call(s))
        except (ArchError, BootError, BuildError, CheckError, ConfigError) as e:
            yield Outcome(check, "FAILED", str(e).splitlines()[0])
            return
    tiers = [t for t in ("geometry", "THP", "contiguous", "costs") if t not in without]
    lacks = "".join(f"; no {t} ({why})" for t, why in without.items())
    yield Outcome("tiers", "ok", ", ".join(tiers) + lacks)
