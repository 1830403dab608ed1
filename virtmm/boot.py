# SPDX-License-Identifier: GPL-2.0-only
"""Boot stage: a configuration becomes a machine with its memory, its arena and its range loops."""

from __future__ import annotations

import functools
import hashlib
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from virtmm import kbuild
from virtmm.arch import load_arch
from virtmm.arch.params import ArchError
from virtmm.kconfig import ConfigError, ResolvedConfig
from virtmm.knobs import KnobSet
from virtmm.methods import choose
from virtmm.mm import layout
from virtmm.mm.arena import MM_RECORD, PAGE_RECORD, Arena, Config
from virtmm.mm.fast_fault import init_fault
from virtmm.mm.page_alloc import init_zone
from virtmm.mm.policy import ladder_of
from virtmm.mm.ranges import PyRanges
from virtmm.mm.split import deferred_split_scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from virtmm.accesses import Accesses
    from virtmm.arch.params import ArchParams, Geometry
    from virtmm.mm.arena import FastPaths, RangeOps
    from virtmm.mm.fault_inject import FaultInjection
    from virtmm.policy import Policy

# Records of the tables that do not grow with memory. Only what is touched costs anything.
_COUNTS = {
    "one": 1,
    "nr_mms": 8192,
    "nr_vmas": 1 << 20,
    "nr_avcs": 1 << 22,
    "nr_tasks": 1 << 16,
    "nr_files": 1 << 16,
    "nr_cache": 1 << 32,
    "nr_vma_logs": 1 << 20,
}
_MAP_NORESERVE = 0x4000
_LINE, _HOST_PAGE, _HUGE = 64, 64 << 10, 2 << 20
#: Arrays that are no part of a machine's state.
_DIAGNOSTICS = ("run", "fault", "method", "work", "refused", "vma_log", "tlb")
#: What architectures wish in Kconfig.
_FOLIO_ORDERS = (
    "ARCH_EXEC_FOLIO_ORDER",
    "ARCH_LARGE_ANON_FOLIO_NOTHP_ORDER_MAX",
    "ARCH_LARGE_ANON_FOLIO_THP_ORDER_MAX",
)
_POLICIES = ("v1", "v2", "v2_simple", "v3", "v5", "mthp")


class BootError(Exception):
    """The machine cannot be set up on this host."""


@dataclass
class Booted:
    """
    A booted arena, the memory behind it and the core that works on it (None with C_RANGES=n).

    ``fast`` serves accesses in C; None when all of them go through Python: FAST_FAULT=n, a policy of a
    user, or DEBUG_VM, which counts accesses.
    """

    arena: Arena
    core: kbuild.Core | None
    memory: mmap.mmap
    buffer: Any = field(default=None)
    vk: Any = field(default=None)
    fast: FastFault | None = None

    def close(self) -> None:
        """Give the memory back; the arena is unusable afterwards."""
        for a in layout.ARRAYS:
            getattr(self.arena, a.name).release()
        if self.core is not None:
            self.core.ffi.release(self.buffer)
        self.memory.close()


def machine_config(config: ResolvedConfig, memory: int = 0) -> Config:
    """
    Return what mm/ needs of .config; memory is whole blocks of the buddy allocator's largest order.

    Args:
        memory: bytes by the boot parameter ``mem=``; 0 = MEMORY_MB.
    """
    most = int(config["ARCH_FORCE_MAX_ORDER"])
    block = 1 << most
    memory = memory or int(config["MEMORY_MB"]) << 20
    nr_pages = (memory >> int(config["PAGE_SHIFT"])) // block * block
    if not nr_pages:
        raise BootError(
            f"MEMORY_MB={memory >> 20}: less than one block of the buddy allocator "
            f"({block << int(config['PAGE_SHIFT']) >> 20} MiB); give the machine more memory"
        )
    policy = next((p for p in _POLICIES if config.get(f"ANON_POLICY_{p.upper()}")), "base")

    def patch(symbol: str) -> bool:
        """Return whether a patch of the series is in; mainline has them all."""
        return policy == "mthp" or bool(config.get(symbol))

    return Config(
        nr_pages=nr_pages,
        max_page_order=most,
        policy=policy,
        transparent_hugepage=bool(config.get("TRANSPARENT_HUGEPAGE")),
        nothp_order_max=int(config.get("LARGE_ANON_FOLIO_NOTHP_ORDER_MAX", 0)),
        thp_order_max=int(config.get("LARGE_ANON_FOLIO_THP_ORDER_MAX", 0)),
        zap_batch=patch("ANON_ZAP_BATCH"),
        phys_backing=bool(config.get("PHYS_BACKING")),
        debug_vm=bool(config.get("DEBUG_VM")),
        clear_last=patch("ANON_CLEAR_LAST"),
        alloc_zeroed=patch("ANON_ALLOC_ZEROED"),
        alloc_ladder=patch("ANON_ALLOC_LADDER"),
        rmap_add_range=patch("ANON_RMAP_ADD_RANGE"),
        rmap_remove_range=patch("ANON_RMAP_REMOVE_RANGE"),
        deferred_split=patch("ANON_DEFERRED_SPLIT"),
        fault_alloc=patch("ANON_FAULT_ALLOC"),
        cow_zero=bool(config.get("ANON_COW_ZERO")),
        cow_copy=bool(config.get("ANON_COW_COPY")),
        cow_reuse=bool(config.get("ANON_COW_REUSE")),
        exec_folio_order=int(config["ARCH_EXEC_FOLIO_ORDER"]) if config.get("EXEC_FOLIO") else 0,
        contpte=bool(config.get("CONTPTE")),
        contpte_batch=bool(config.get("CONTPTE_BATCH")),
        contpte_fold=bool(config.get("CONTPTE_FOLD")),
        mm_id=bool(config.get("MM_ID")),
        huge_zero_cow=bool(config.get("HUGE_ZERO_COW")),
        underused_queue=bool(config.get("THP_UNDERUSED_QUEUE")),
        mremap_multi=bool(config.get("MREMAP_MULTI_VMA")),
        merge_faulted=bool(config.get("MERGE_FAULTED_VMA")),
        mprotect_batch=bool(config.get("MPROTECT_BATCH")),
        pt_reclaim=bool(config.get("PT_RECLAIM")),
        pagemap_pmd_head=bool(config.get("PAGEMAP_PMD_HEAD")),
        collapse_batch=bool(config.get("COLLAPSE_BATCH")),
        collapse_read_only=bool(config.get("COLLAPSE_READ_ONLY")),
    )


def check_settings(
    config: ResolvedConfig, settings: Sequence[str], arch_dir: Path | None = None
) -> None:
    """Raise what boot() would raise about the configuration and the settings, and do nothing else."""
    arch = load_arch(config.arch, arch_dir or config.arch_dir)
    geometry = arch.geometry(int(config["PAGE_SHIFT"]))
    _check_orders(arch, geometry, config)
    _, mem = KnobSet.of(config, geometry.pmd_order).after_boot(settings)
    _check_memory(arch, geometry, machine_config(config, mem))


def _check_orders(arch: ArchParams, geometry: Geometry, config: ResolvedConfig) -> None:
    """Raise ArchError when the buddy allocator has no block of an order that is asked for."""
    most = int(config["ARCH_FORCE_MAX_ORDER"])
    if not 0 <= most < layout.NR_ORDERS:
        raise ArchError(
            f"{arch.name}: ARCH_FORCE_MAX_ORDER={most}, the buddy allocator has orders 0 to "
            f"{layout.NR_ORDERS - 1}; change its default in Kconfig"
        )
    if config.get("TRANSPARENT_HUGEPAGE") and geometry.pmd_order > most:
        raise ArchError(
            f"{arch.name}.geometries[{geometry.page_shift}].levels.pte: {geometry.pmd_order} bits make "
            f"huge pages of that order, ARCH_FORCE_MAX_ORDER={most} holds none; raise it, "
            "or TRANSPARENT_HUGEPAGE=n"
        )
    for symbol in _FOLIO_ORDERS:
        order = int(config.get(symbol, 0))
        if not 0 <= order <= most:
            raise ArchError(
                f"{arch.name}: {symbol}={order}, the buddy allocator has orders 0 to {most} here "
                "(ARCH_FORCE_MAX_ORDER); change its default in Kconfig"
            )


def _check_memory(arch: ArchParams, geometry: Geometry, config: Config) -> None:
    """Raise BootError when the machine's memory has pages that an entry cannot name."""
    shift = geometry.page_shift
    most = (arch.pte.pfn_mask(shift) >> arch.pte.pfn_shift(shift)) + 1
    if config.nr_pages > most:
        raise BootError(
            f"{config.nr_pages << shift >> 20} MiB of memory: page-table entries of {arch.name} reach "
            f"{most << shift >> 20} MiB ({arch.name}.pte.pfn_bits={arch.pte.pfn_bits}); "
            "correct it, or give the machine less (CONFIG_MEMORY_MB in configs/defconfig, or mem=)"
        )


def check_policy(config: ResolvedConfig, policy: Policy) -> None:
    """Raise ConfigError when a kernel has no choice of folio sizes that a policy could make."""
    if not ladder_of(machine_config(config)).large:
        raise ConfigError(
            f"{policy.path}: this kernel maps base pages and asks no policy; "
            "choose one with large folios, anonfolio_basic or linux-7.3 for instance"
        )


def boot(
    config: ResolvedConfig,
    settings: Sequence[str] = (),
    *,
    arch_dir: Path | None = None,
    inject: FaultInjection | None = None,
    policy: Policy | None = None,
) -> Booted:
    """
    Return a booted arena for a configuration.

    Args:
        settings: run-time knobs and boot parameters, ``NAME=VALUE`` (knobs.py).
        arch_dir: folder of an architecture outside the tree.
        inject: failures to make happen; needs CONFIG_FAULT_INJECTION.
        policy: chooses folio sizes in the place of the configuration's ANON_POLICY.

    Raises:
        ConfigError, ArchError, BuildError, BootError, PolicyError: what is wrong and the next step.
    """
    if inject is not None and not config.get("FAULT_INJECTION"):
        raise ConfigError(
            "failures were asked for, but FAULT_INJECTION is n; set FAULT_INJECTION=y"
        )
    arch = load_arch(config.arch, arch_dir or config.arch_dir)
    geometry = arch.geometry(int(config["PAGE_SHIFT"]))
    _check_orders(arch, geometry, config)
    knobs, mem = KnobSet.of(config, geometry.pmd_order).after_boot(settings)
    mm_config = machine_config(config, mem)
    _check_memory(arch, geometry, mm_config)
    if policy is not None:
        check_policy(config, policy)
    core = kbuild.load_core(config, arch) if config.get("C_RANGES", True) else None
    counts = {**_COUNTS, "nr_pages": mm_config.nr_pages, "PAGE_WORDS": 1 << geometry.page_shift - 3}
    spans, size = _spans(counts)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, ValueError, OverflowError) as e:
        raise BootError(
            f"cannot reserve {size >> 30} GiB of address space: {e}; "
            "lower MEMORY_MB, or allow overcommit (vm.overcommit_memory=0)"
        ) from None
    # The arrays are sparse: huge pages of the host would fill the holes. But pages are handed out from the
    # first on, so that their records have none, and neither have their contents, where all have some.
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for a, (start, end) in zip(layout.ARRAYS, spans, strict=True):
        if a.name == "page" or (a.name == "phys" and mm_config.phys_backing):
            memory.madvise(mmap.MADV_HUGEPAGE, start, end - start)
    views: dict[str, Any] = {
        a.name: _cast(memoryview(memory)[start:end], a.bits)
        for a, (start, end) in zip(layout.ARRAYS, spans, strict=True)
    }
    arena = Arena(**views, config=mm_config, arch=arch, geometry=geometry, knobs=knobs)
    arena.inject = inject
    arena.ladder = policy.ladder() if policy else ladder_of(mm_config)
    booted = Booted(arena, core, memory)
    if core is None:
        arena.ops = PyRanges(arena)
    else:
        booted.buffer = core.ffi.from_buffer(memory)
        booted.vk = core.ffi.new("struct vk *")
        for a, (start, _) in zip(layout.ARRAYS, spans, strict=True):
            setattr(booted.vk, a.name, core.ffi.cast(f"uint{a.bits}_t *", booted.buffer + start))
        arena.ops = cast("RangeOps", CoreRanges(core.lib, booted.vk))
        if mm_config.phys_backing:
            arena.method[:8] = choose(core).numbers
    arena.shrinkers.append(deferred_split_scan)
    init_zone(arena)
    init_fault(arena)
    fast = config.get("FAST_FAULT") and not (mm_config.debug_vm or arena.ladder.by_user)
    if core and fast:
        booted.fast = FastFault(booted)
        arena.fast = cast("FastPaths", CoreFastPaths(core.lib, booted.vk))
    return booted


def _cast(view: memoryview, bits: int) -> memoryview:
    return view.cast("I") if bits == 32 else view.cast("Q")


def _spans(counts: dict[str, int]) -> tuple[list[tuple[int, int]], int]:
    """
    Return (start, end) of every array in bytes, and the total.

    Each begins on a host page of its own, but for those of one record that follow each other: a fault
    touches most of them, and side by side they do not compete for the same lines of the nearest cache.
    The total is whole huge pages of a host with 4K pages: Linux then maps it from the start of one on (6.7).
    """
    spans, at, last = [], 0, ""
    for a in layout.ARRAYS:
        words = counts.get(a.words) or getattr(layout, a.words, None) or int(a.words)
        size = counts[a.count] * words * a.bits // 8
        align = _LINE if a.count == last == "one" else _HOST_PAGE
        at = -(-at // align) * align
        spans.append((at, at + size))
        at, last = at + size, a.count
    return spans, -(-at // _HUGE) * _HUGE


class CoreRanges:
    """RangeOps served by a compiled core: each is the C function with the arena bound."""

    def __init__(self, lib: Any, vk: Any) -> None:
        for name in (
            "check_ptes_none",
            "set_ptes",
            "clear_ptes",
            "modify_ptes",
            "folio_pte_batch",
            "prep_compound_page",
            "folio_add_new_anon_rmap",
            "folio_dup_anon_rmap_ptes",
            "folio_remove_rmap_range",
            "folio_add_mm",
            "folio_sub_mm",
            "clear_pages",
            "clear_huge_page",
            "copy_pages",
            "tlb_reach_ptes",
        ):
            setattr(self, name, functools.partial(getattr(lib, name), vk))
        self.zap_ptes = functools.partial(lib.vk_zap_ptes, vk)


class CoreFastPaths:
    """FastPaths served by a compiled core."""

    def __init__(self, lib: Any, vk: Any) -> None:
        for name in (
            "unmap_page_range",
            "tlb_reach",
            "copy_page_range",
            "split_huge_pmd",
            "split_folio",
            "dup_mmap",
            "do_munmap",
            "mmap_region",
            "do_brk_flags",
            "exit_mmap",
            "vma_set_flags",
            "do_mprotect",
            "fault_in",
        ):
            setattr(self, name, functools.partial(getattr(lib, f"vk_{name}"), vk))


class FastFault:
    """
    Accesses served by a compiled core (csrc/fault.c).

    Attributes:
        touch: (task record, address, write) -> whether it happened; else Python must do it.
    """

    def __init__(self, booted: Booted) -> None:
        core = cast("kbuild.Core", booted.core)
        self.touch = functools.partial(core.lib.vk_touch, booted.vk)
        self._ffi, self._lib, self._vk = core.ffi, core.lib, booted.vk

    def _pointers(self, accesses: Accesses) -> tuple[Any, ...]:
        if accesses.pointers is None:
            a = accesses
            arrays = a.words, a.tasks, a.layouts, a.calls, a.files
            accesses.pointers = tuple(self._ffi.from_buffer("uint64_t[]", x) for x in arrays)
        return accesses.pointers

    def touch_many(self, accesses: Accesses, first: int, end: int) -> int:
        """Do accesses and calls from ``first`` on; return the first that Python must do, or ``end``."""
        words, tasks, _, calls, files = self._pointers(accesses)
        slot = accesses.slots
        done = self._lib.vk_run_many(self._vk, tasks, words, calls, slot, files, first, end)
        return cast("int", done)

    def move_many(self, accesses: Accesses, first: int, end: int) -> int:
        """Move accesses from ``first`` on; return the first that no layout has, or ``end``."""
        words, _, layouts, *_ = self._pointers(accesses)
        return cast("int", self._lib.vk_move_many(layouts, words, first, end))


def digest(k: Arena) -> str:
    """
    Return a hash of the machine's whole state: two runs that did the same leave the same digest.

    Page contents count for page tables, and with PHYS_BACKING for every page in use. The registers of
    the last zap (``run``) are scratch, and ``work``, ``refused``, ``vma_log`` and ``tlb`` say how it
    came about: they do not count.
    """
    h = hashlib.sha256()
    used = k.zone[layout.ZONE_FRONTIER]
    slabs = {
        "mm": layout.SLAB_MM,
        "vma": layout.SLAB_VMA,
        "avc": layout.SLAB_AVC,
        "anon_vma": layout.SLAB_ANON_VMA,
        "task": layout.SLAB_TASK,
        "file": layout.SLAB_FILE,
    }
    for a in layout.ARRAYS:
        view = getattr(k, a.name)
        if a.name in _DIAGNOSTICS or a.name in ("phys", "vma_start", "vma_index"):
            continue
        if a.name == "page":
            view = view[: used * PAGE_RECORD]
        elif a.name == "page_cache":
            view = view[: k.zone[layout.ZONE_CACHE_END]]
        elif a.name in slabs:
            last = k.zone[layout.ZONE_SLAB + slabs[a.name] + 1]
            view = view[: (last + 1) * int(a.words)]
        h.update(a.name.encode() + view)
    for mm in range(1, k.zone[layout.ZONE_SLAB + layout.SLAB_MM + 1] + 1):
        first = mm * layout.MAX_MAP_COUNT
        end = first + k.mm[mm * MM_RECORD + layout.MM_MAP_COUNT]
        h.update(k.vma_start[first:end])
        h.update(k.vma_index[first:end])
    wanted = layout.PG_table | (layout.PG_anon | layout.PG_file if k.config.phys_backing else 0)
    pfn = 0
    while pfn < used:
        base = pfn * PAGE_RECORD
        flags = k.page[base + layout.PAGE_FLAGS]
        nr = 1 << k.page[base + layout.PAGE_ORDER]
        if flags & wanted:
            h.update(k.phys[pfn << k.table_shift : (pfn + nr) << k.table_shift])
        pfn += nr
    return h.hexdigest()
