# SPDX-License-Identifier: GPL-2.0-only
"""
The arena as mm/ sees it: arrays of integers, the configuration, and the range operations.

Every function of mm/ takes the arena first, as ``k``. It is filled at boot (virtmm/boot.py) and
then only the arrays and the knobs change. Arrays are flat memoryviews of records, named and laid
out by csrc/arena.def: field F of record i of array A is ``k.A[i * A_RECORD + F]``. Indices are
what the kernel has pointers for: a pfn, a VMA number, an mm number; 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from . import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..arch.params import ArchParams, Geometry
    from .fault_inject import FaultInjection
    from .policy import Ladder

_WORDS = {a.name: a.words for a in layout.ARRAYS}
PAGE_RECORD = int(_WORDS["page"])
MM_RECORD = int(_WORDS["mm"])
VMA_RECORD = int(_WORDS["vma"])
AVC_RECORD = int(_WORDS["avc"])
ANON_VMA_RECORD = int(_WORDS["anon_vma"])
TASK_RECORD = int(_WORDS["task"])
FILE_RECORD = int(_WORDS["file"])
VMA_LOG_RECORD = int(_WORDS["vma_log"])


class RangeOps(Protocol):
    """
    Loops over page-table entries, page records and page contents: csrc/, or their twins in
    ranges.py.

    ``pte`` is an index into ``k.phys``; a run of entries never leaves its table. ``folio``,
    ``page`` and ``pfn`` are page frame numbers.
    """

    def check_ptes_none(self, pte: int, nr: int) -> int:
        """Return how many entries are none before the first that is not; nr when all are."""

    def set_ptes(self, pte: int, entry: int, nr: int) -> None:
        """Write nr entries with the attributes of ``entry`` and pfns that count up from its pfn."""

    def clear_ptes(self, pte: int, nr: int) -> None:
        """Make nr entries none."""

    def modify_ptes(self, pte: int, clear: int, bits: int, nr: int) -> None:
        """Take the bits ``clear`` out of nr entries, then put ``bits`` in."""

    def folio_pte_batch(self, pte: int, ignore: int, most: int) -> int:
        """Return how many entries are present with consecutive pfns and equal bits but ``ignore``."""

    def prep_compound_page(self, pfn: int, order: int, flags: int) -> None:
        """Make 2**order free pages one folio with one reference and no mapping."""

    def folio_add_new_anon_rmap(self, folio: int, page: int, nr: int) -> None:
        """Map nr pages of a new folio once each, exclusively."""

    def folio_dup_anon_rmap_ptes(self, folio: int, page: int, nr: int) -> int:
        """Map nr pages once more, none exclusive any longer; return how many were unmapped."""

    def folio_remove_rmap_range(self, folio: int, page: int, nr: int) -> int:
        """Take one mapping from each of nr pages; return how many nobody maps now."""

    def folio_add_mm(self, folio: int, mm: int, nr: int) -> None:
        """Note nr more mappings of a large folio by an mm (MM_ID)."""

    def folio_sub_mm(self, folio: int, mm: int, nr: int) -> None:
        """Note that an mm has nr mappings of a large folio less (MM_ID)."""

    def clear_pages(self, pfn: int, nr: int) -> None:
        """Zero nr pages, in ascending order."""

    def clear_huge_page(self, pfn: int, nr: int, fault: int) -> None:
        """Zero nr pages, page number ``fault`` last."""

    def copy_pages(self, to: int, source: int, nr: int) -> None:
        """Copy nr pages; the two runs do not overlap."""

    def tlb_reach_ptes(self, pte: int, nr: int, cont: int, block: int, at: int) -> None:
        """
        Add the TLB entries that nr entries need to the counts at ``k.tlb[at]``.

        Args:
            cont: the contiguous bit, 0 = none; block: entries of a block with it.
        """

    def zap_ptes(self) -> None:
        """Unmap anonymous folios over the run described in ``k.run`` until something needs Python."""


class FastPaths(Protocol):
    """What csrc/ does as a whole with CONFIG_FAST_FAULT; each is left in mm/ where that is not set."""

    def unmap_page_range(self, vma: int, start: int, end: int, reclaim_pt: bool) -> None:
        """As zap.unmap_page_range()."""

    def tlb_reach(self, mm: int, at: int) -> None:
        """As tlb.tlb_reach()."""

    def copy_page_range(self, new: int, vma: int, address: int) -> int:
        """Share a VMA's pages with a child's; return where it had no memory for a table, or the end."""

    def split_huge_pmd(self, mm: int, place: int) -> None:
        """As huge_memory.__split_huge_pmd(), of a VMA of mm."""

    def split_folio(self, folio: int, extra: int) -> int:
        """As split.split_folio()."""

    def dup_mmap(self, mm: int, old: int, slot: int) -> int:
        """
        Copy a parent's VMAs from a slot on, counted from its first, and share their pages.

        Returns: -ENOMEM; the number of VMAs; or the slot of one that the child has already, and for
        whose table at RUN_ADDRESS there is no memory.
        """

    # These return what their models do. ``task`` is k.current; ranges are whole pages of user space.

    def do_munmap(self, mm: int, start: int, end: int, task: int) -> int:
        """As mmap.do_munmap()."""

    def mmap_region(
        self,
        mm: int,
        start: int,
        end: int,
        vm_flags: int,
        flags: int,
        file: int,
        pgoff: int,
        task: int,
    ) -> int:
        """As mmap.mmap_region()."""

    def do_brk_flags(self, mm: int, start: int, end: int, vm_flags: int) -> int:
        """As mmap.do_brk_flags()."""

    def exit_mmap(self, mm: int, task: int) -> None:
        """As fork.exit_mmap()."""

    def vma_set_flags(self, vma: int, start: int, end: int, flags: int) -> int:
        """As mprotect.vma_set_flags(); 0 or -ENOMEM."""

    def do_mprotect(self, mm: int, start: int, end: int, prot: int) -> int:
        """As mprotect.do_mprotect(); 1 = nothing has changed, Python must do it: some of it is locked."""

    def fault_in(self, task: int, address: int, end: int, write: bool) -> int:
        """Access each page from ``address`` on; return the first that is Python's, or the one behind."""


@dataclass(frozen=True)
class Config:
    """
    What mm/ needs of .config, as the kernel's code sees its CONFIG_ symbols.

    Orders are log2 of base pages, ``nr_pages`` is the memory of the machine in base pages.
    ``policy`` is the ANON_POLICY in lower case: "base", "v1" … "mthp". Then come the patches of the v1
    series (ANON_*), the further fault paths (cow_*), and behaviour symbols of releases.
    """

    nr_pages: int
    max_page_order: int
    transparent_hugepage: bool
    policy: str
    nothp_order_max: int
    thp_order_max: int
    zap_batch: bool
    phys_backing: bool
    debug_vm: bool
    clear_last: bool = True
    alloc_zeroed: bool = True
    alloc_ladder: bool = True
    rmap_add_range: bool = True
    rmap_remove_range: bool = True
    deferred_split: bool = True
    fault_alloc: bool = True
    cow_zero: bool = False
    cow_copy: bool = False
    cow_reuse: bool = False
    exec_folio_order: int = 0
    contpte: bool = False
    contpte_batch: bool = True
    contpte_fold: bool = True
    mm_id: bool = False
    huge_zero_cow: bool = False
    underused_queue: bool = False
    mremap_multi: bool = False
    merge_faulted: bool = False
    pagemap_pmd_head: bool = False
    mprotect_batch: bool = False
    pt_reclaim: bool = False
    collapse_batch: bool = False
    collapse_read_only: bool = False


@dataclass
class Knobs:
    """
    Run-time settings, as the files of /sys/kernel/mm/transparent_hugepage and debugfs have them.

    ``always``, ``inherit`` and ``madvise`` are masks of orders: which hugepages-<N>kB/enabled say
    so.
    """

    enabled: str = "madvise"
    defrag: str = "madvise"
    use_zero_page: bool = True
    shrink_underused: bool = True
    max_ptes_none: int = 0
    fault_around_bytes: int = 65536
    always: int = 0
    inherit: int = 0
    madvise: int = 0


@dataclass(slots=True)
class Arena:
    """
    A booted machine's whole state.

    Attributes:
        page … run: the arrays of csrc/arena.def.
        ops: loops over them.
        fast: what C does as a whole; None without CONFIG_FAST_FAULT.
        ladder: how folio sizes are chosen (policy.py).
        levels: (bit where the index starts, mask of the index) of every table level above the last;
            upper_levels are those above the PMD's.
        table_shift: log2 of the entries that fit a page; a table's first entry is
            ``k.phys[pfn << table_shift]``.
        table_orders: log2 of the pages of a table, from the root to the last level; order_below: of
            the table below an entry, by the bit where that entry's index starts.
        cont_bit, cont_nr: the contiguous bit of an entry and how many entries a block has; 0 =
        none. zero_pfn: the zero page.
        shrinkers: what may give memory back when an allocation of one page fails; each returns whether
            it did.
        inject: failures to make happen; None without CONFIG_FAULT_INJECTION.
        current: the task that runs.
    """

    page: memoryview
    phys: memoryview
    zone: memoryview
    mm: memoryview
    vma_start: memoryview
    vma_index: memoryview
    vma: memoryview
    avc: memoryview
    anon_vma: memoryview
    task: memoryview
    file: memoryview
    page_cache: memoryview
    event: memoryview
    vmstat: memoryview
    mthp_stat: memoryview
    work: memoryview
    refused: memoryview
    tlb: memoryview
    vma_log: memoryview
    fault: memoryview
    method: memoryview
    run: memoryview
    config: Config
    arch: ArchParams
    geometry: Geometry
    knobs: Knobs = field(default_factory=Knobs)
    inject: FaultInjection | None = None
    shrinkers: list[Callable[[Arena], bool]] = field(default_factory=list)
    ops: RangeOps = field(init=False)
    fast: FastPaths | None = None
    ladder: Ladder = field(init=False)
    page_shift: int = field(init=False)
    page_size: int = field(init=False)
    page_mask: int = field(init=False)
    pmd_shift: int = field(init=False)
    table_shift: int = field(init=False)
    pte_mask: int = field(init=False)
    levels: tuple[tuple[int, int], ...] = field(init=False)
    upper_levels: tuple[tuple[int, int], ...] = field(init=False)
    table_orders: tuple[int, ...] = field(init=False)
    order_below: dict[int, int] = field(init=False)
    pmd_mask: int = field(init=False)
    pmd_order: int = field(init=False)
    pmd_size: int = field(init=False)
    pfn_shift: int = field(init=False)
    pfn_mask: int = field(init=False)
    task_size: int = field(init=False)
    cont_bit: int = field(init=False, default=0)
    cont_nr: int = field(init=False, default=0)
    zero_pfn: int = field(init=False, default=0)
    current: int = field(init=False, default=0)

    @property
    def injecting(self) -> bool:
        """Whether an allocation may be made to fail now, which C does not ask."""
        return self.inject is not None and not self.inject.idle()

    def __post_init__(self) -> None:
        """Derive the numbers of the page table from the architecture's geometry."""
        g = self.geometry
        self.page_shift = g.page_shift
        self.page_size = 1 << g.page_shift
        self.page_mask = -self.page_size
        self.pmd_shift = g.page_shift + g.levels[-1].bits
        self.table_shift = g.page_shift - 3
        self.pte_mask = (1 << g.levels[-1].bits) - 1
        shift, levels = self.pmd_shift, []
        for level in reversed(g.levels[:-1]):
            levels.append((shift, (1 << level.bits) - 1))
            shift += level.bits
        self.levels = tuple(reversed(levels))
        self.upper_levels = self.levels[:-1]
        self.table_orders = tuple(g.table_order(depth) for depth in range(len(g.levels)))
        below = zip(self.levels, self.table_orders[1:], strict=True)
        self.order_below = {shift: order for (shift, _), order in below}
        self.pmd_mask = self.levels[-1][1]
        self.pmd_order = g.pmd_order
        self.pmd_size = 1 << self.pmd_shift
        self.pfn_shift = self.arch.pte.pfn_shift(g.page_shift)
        self.pfn_mask = self.arch.pte.pfn_mask(g.page_shift)
        self.task_size = g.task_size or 1 << g.va_bits
        cont = self.arch.pte.cont
        if self.config.contpte and cont and g.cont_order:
            self.cont_bit, self.cont_nr = cont.mask, 1 << g.cont_order
