# SPDX-License-Identifier: GPL-2.0-only
"""
The Python twins of csrc/: the same loops, for CONFIG_C_RANGES=n and for the tests that compare
both.

See RangeOps in arena.py for what each does, and csrc/ for why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .layout import (
    EXIT_DEFERRED_SPLIT,
    EXIT_DONE,
    EXIT_FREE,
    EXIT_FULL,
    EXIT_OTHER,
    FOLIO_ENTIRE_MAPCOUNT,
    FOLIO_LARGE_MAPCOUNT,
    FOLIO_MAYBE_SHARED,
    FOLIO_MM0,
    FOLIO_MM0_MAPCOUNT,
    FOLIO_MM1,
    FOLIO_MM1_MAPCOUNT,
    FOLIO_NR_PAGES_MAPPED,
    HPA_PAGES,
    MM_ANONPAGES,
    NR_ORDERS,
    PAGE_FLAGS,
    PAGE_HEAD,
    PAGE_MAPCOUNT,
    PAGE_ORDER,
    PAGE_REFCOUNT,
    RUN_BATCH,
    RUN_FOLIO,
    RUN_MM,
    RUN_NR,
    RUN_PTE,
    RUN_REASON,
    RUN_ROOM,
    TLB_BEST,
    TLB_CONT,
    TLB_CONT_PAGES,
    TLB_HPA,
    TLB_PAGES,
    TLB_PLAIN,
    EV_zap_anon,
    EV_zap_none,
    PG_anon,
    PG_exclusive,
    VM_nr_anon_pages,
    WORK_pte_read,
    WORK_pte_write,
    WORK_rmap_remove,
)
from .pgtable import pte_pfn, pte_present

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .arena import Arena


class PyRanges:
    """RangeOps in Python over one arena."""

    def __init__(self, k: Arena) -> None:
        self.k = k

    def check_ptes_none(self, pte: int, nr: int) -> int:
        """Return how many entries are none before the first that is not."""
        phys = self.k.phys
        for i in range(nr):
            if phys[pte + i]:
                return i
        return nr

    def set_ptes(self, pte: int, entry: int, nr: int) -> None:
        """Write nr entries whose pfns count up."""
        step = 1 << self.k.pfn_shift
        for i in range(nr):
            self.k.phys[pte + i] = entry + i * step

    def clear_ptes(self, pte: int, nr: int) -> None:
        """Make nr entries none."""
        for i in range(nr):
            self.k.phys[pte + i] = 0

    def modify_ptes(self, pte: int, clear: int, bits: int, nr: int) -> None:
        """Take bits out of, then put bits into nr entries."""
        phys = self.k.phys
        for i in range(pte, pte + nr):
            phys[i] = phys[i] & ~clear | bits

    def folio_pte_batch(self, pte: int, ignore: int, most: int) -> int:
        """Return how many entries continue the first."""
        k = self.k
        step = 1 << k.pfn_shift
        first = k.phys[pte] & ~ignore
        for i in range(1, most):
            entry = k.phys[pte + i]
            if entry & ~ignore != first + i * step or not pte_present(k, entry):
                return i
        return max(most, 1)

    def prep_compound_page(self, pfn: int, order: int, flags: int) -> None:
        """Make free pages one folio."""
        page = self.k.page
        for p in range(pfn, pfn + (1 << order)):
            for word in range(_P):
                page[p * _P + word] = 0
            page[p * _P + PAGE_HEAD] = pfn
        page[pfn * _P + PAGE_FLAGS] = flags
        page[pfn * _P + PAGE_REFCOUNT] = 1
        page[pfn * _P + PAGE_ORDER] = order

    def folio_add_new_anon_rmap(self, folio: int, page: int, nr: int) -> None:
        """Map pages of a new folio once each, exclusively."""
        words = self.k.page
        for p in range(page, page + nr):
            words[p * _P + PAGE_MAPCOUNT] = 1
            words[p * _P + PAGE_FLAGS] |= PG_exclusive
        if words[folio * _P + PAGE_ORDER]:
            words[folio * _P + FOLIO_NR_PAGES_MAPPED] = nr
            words[folio * _P + FOLIO_LARGE_MAPCOUNT] = nr

    def folio_dup_anon_rmap_ptes(self, folio: int, page: int, nr: int) -> int:
        """Map pages once more, none exclusive any longer."""
        words = self.k.page
        mapped = 0
        for p in range(page, page + nr):
            mapped += not words[p * _P + PAGE_MAPCOUNT]
            words[p * _P + PAGE_MAPCOUNT] += 1
            words[p * _P + PAGE_FLAGS] &= ~PG_exclusive
        if words[folio * _P + PAGE_ORDER]:
            words[folio * _P + FOLIO_NR_PAGES_MAPPED] += mapped
            words[folio * _P + FOLIO_LARGE_MAPCOUNT] += nr
        return mapped

    def folio_remove_rmap_range(self, folio: int, page: int, nr: int) -> int:
        """Take one mapping from each page."""
        words = self.k.page
        unmapped = 0
        for p in range(page, page + nr):
            words[p * _P + PAGE_MAPCOUNT] -= 1
            unmapped += not words[p * _P + PAGE_MAPCOUNT]
        if words[folio * _P + PAGE_ORDER]:
            words[folio * _P + FOLIO_NR_PAGES_MAPPED] -= unmapped
            words[folio * _P + FOLIO_LARGE_MAPCOUNT] -= nr
        return unmapped

    def folio_add_mm(self, folio: int, mm: int, nr: int) -> None:
        """Note nr more mappings of a large folio by an mm."""
        words, base = self.k.page, folio * _P
        for owner in (base + FOLIO_MM0, base + FOLIO_MM1):
            if words[owner] == mm:
                words[owner + 1] += nr
                return
        if not words[base + FOLIO_MM0]:
            words[base + FOLIO_MM0] = mm
            words[base + FOLIO_MM0_MAPCOUNT] = nr
            if words[base + FOLIO_LARGE_MAPCOUNT] != nr:
                words[base + FOLIO_MAYBE_SHARED] = 1
        elif not words[base + FOLIO_MM1]:
            words[base + FOLIO_MM1] = mm
            words[base + FOLIO_MM1_MAPCOUNT] = nr
            words[base + FOLIO_MAYBE_SHARED] = 1

    def folio_sub_mm(self, folio: int, mm: int, nr: int) -> None:
        """Note that an mm has nr mappings of a large folio less."""
        words, base = self.k.page, folio * _P
        for owner in (base + FOLIO_MM0, base + FOLIO_MM1):
            if words[owner] != mm:
                continue
            if words[owner + 1] > nr:
                words[owner + 1] -= nr
                return
            words[owner] = words[owner + 1] = 0
            break
        total = words[base + FOLIO_LARGE_MAPCOUNT]
        if total in (words[base + FOLIO_MM0_MAPCOUNT], words[base + FOLIO_MM1_MAPCOUNT]):
            words[base + FOLIO_MAYBE_SHARED] = 0

    def clear_pages(self, pfn: int, nr: int) -> None:
        """Zero pages, the first one first."""
        self._clear(pfn + i for i in range(nr))

    def _clear(self, pages: Iterable[int]) -> None:
        words = 1 << self.k.table_shift
        zeros = memoryview(bytes(8 * words)).cast("Q")
        for pfn in pages:
            self.k.phys[pfn * words : (pfn + 1) * words] = zeros

    def clear_huge_page(self, pfn: int, nr: int, fault: int) -> None:
        """Zero pages, the faulting one last."""
        if 2 * fault <= nr:
            order = [*range(nr - 1, 2 * fault - 1, -1)]
            base, pairs = 0, fault
        else:
            base, pairs = 2 * fault - nr, nr - fault
            order = [*range(base)]
        for i in range(pairs):
            order += [base + i, base + 2 * pairs - 1 - i]
        self._clear(pfn + i for i in order)

    def copy_pages(self, to: int, source: int, nr: int) -> None:
        """Copy pages."""
        words = 1 << self.k.table_shift
        self.k.phys[to * words : (to + nr) * words] = self.k.phys[
            source * words : (source + nr) * words
        ]

    def tlb_reach_ptes(self, pte: int, nr: int, cont: int, block: int, at: int) -> None:
        """Add the TLB entries of a run to the counts at ``k.tlb[at]``."""
        k = self.k
        present, end = k.arch.pte.present, pte + nr
        pages = hpa = marked = hpa_marked = blocks = 0
        while pte < end:
            entry = k.phys[pte]
            if entry & present.mask != present.on:
                pte += 1
                continue
            group = not pte % HPA_PAGES and pte + HPA_PAGES <= end and self._hpa_group(pte)
            step = HPA_PAGES if group else 1
            pages += step
            hpa += 1
            if entry & cont:
                marked += step
                hpa_marked += 1
                blocks += not pte % block
            pte += step
        for field, value in (
            (TLB_PAGES, pages),
            (TLB_PLAIN, pages),
            (TLB_HPA, hpa),
            (TLB_CONT, pages - marked + blocks),
            (TLB_BEST, hpa - hpa_marked + blocks),
            (TLB_CONT_PAGES, marked),
        ):
            k.tlb[at + field] += value

    def _hpa_group(self, pte: int) -> bool:
        k = self.k
        first, step = k.phys[pte], 1 << k.pfn_shift
        return not pte_pfn(k, first) % HPA_PAGES and all(
            k.phys[pte + i] == first + i * step for i in range(1, HPA_PAGES)
        )

    def zap_ptes(self) -> None:
        """Unmap anonymous folios until something needs more than this."""
        k = self.k
        run, page = k.run, k.page
        run[RUN_REASON] = EXIT_DONE
        while run[RUN_NR]:
            skip = self.check_ptes_none(run[RUN_PTE], run[RUN_NR])
            if skip:
                k.event[EV_zap_none * NR_ORDERS] += skip
                run[RUN_PTE] += skip
                run[RUN_NR] -= skip
                continue
            entry = k.phys[run[RUN_PTE]]
            first = pte_pfn(k, entry) if pte_present(k, entry) else 0
            folio = page[first * _P + PAGE_HEAD] if first else 0
            if not folio or not page[folio * _P + PAGE_FLAGS] & PG_anon:
                run[RUN_REASON] = EXIT_OTHER
                return
            cut = run[RUN_BATCH] < 2
            if run[RUN_ROOM] < (1 if cut else 2):
                run[RUN_REASON] = EXIT_FULL
                return
            order = page[folio * _P + PAGE_ORDER]
            most = folio + (1 << order) - first if run[RUN_BATCH] else 1
            room = run[RUN_ROOM] if cut else most
            nr = self._zap_batch(run[RUN_PTE], min(most, run[RUN_NR], room))
            self.clear_ptes(run[RUN_PTE], nr)
            k.work[WORK_pte_read] += 2 * nr
            k.work[WORK_pte_write] += nr
            unmapped = self.folio_remove_rmap_range(folio, first, nr)
            k.work[WORK_rmap_remove] += 1
            by_pmd = order and page[folio * _P + FOLIO_ENTIRE_MAPCOUNT]
            if k.config.mm_id and order:
                self.folio_sub_mm(folio, run[RUN_MM], nr)
            k.vmstat[VM_nr_anon_pages] -= 0 if by_pmd else unmapped
            k.event[EV_zap_anon * NR_ORDERS + order] += nr
            k.mm[run[RUN_MM] * _M + MM_ANONPAGES] -= nr
            page[folio * _P + PAGE_REFCOUNT] -= nr
            run[RUN_PTE] += nr
            run[RUN_NR] -= nr
            run[RUN_ROOM] -= nr if cut else min(nr, 2)
            run[RUN_FOLIO] = folio
            mapped = page[folio * _P + FOLIO_NR_PAGES_MAPPED] if order else 0
            if order and unmapped and not by_pmd and (mapped or not run[RUN_BATCH]):
                run[RUN_REASON] = EXIT_DEFERRED_SPLIT
                return
            if not page[folio * _P + PAGE_REFCOUNT]:
                run[RUN_REASON] = EXIT_FREE
                return

    def _zap_batch(self, pte: int, most: int) -> int:
        k = self.k
        first = pte_pfn(k, k.phys[pte])
        for i in range(1, most):
            entry = k.phys[pte + i]
            if not pte_present(k, entry) or pte_pfn(k, entry) != first + i:
                return i
        return most
