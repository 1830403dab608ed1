# SPDX-License-Identifier: GPL-2.0-only
"""
Failures on demand, CONFIG_FAULT_INJECTION: what a sequential model never meets by itself.

Each kind counts its occasions from 1; the n-th occasion fails iff n is named, so a run repeats
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .arena import MM_RECORD as _M
from .arena import PAGE_RECORD as _P
from .arena import VMA_RECORD as _V
from .contpte import ptep_clear, set_pte
from .folio import folio_put
from .layout import MM_ANONPAGES, PAGE_HEAD, VMA_PAGE_PROT, ZONE_ANON, PG_anon, PG_lru
from .page_alloc import folio_alloc
from .pgtable import mk_pte, pte_mkdirty, pte_mkwrite, pte_mkyoung, pte_pfn, pte_special
from .rmap import folio_add_new_anon_rmap_range, page_remove_rmap

if TYPE_CHECKING:
    from collections.abc import Container

    from .arena import Arena
    from .folio import VmFault


@dataclass
class FaultInjection:
    """
    What fails, and when.

    Attributes:
        alloc: order -> which of its folio allocations fail (a range or a set of occasions).
        charge: which memory-cgroup charges fail.
        populate: occasion -> page of the chosen block, relative to its start, that another thread
            writes to between the estimate of the order and the lock: it gets a small page there. An
            occasion is one write fault's attempt to map a folio, a copy of one page not counted.
    """

    alloc: dict[int, Container[int]] = field(default_factory=dict)
    charge: Container[int] = ()
    populate: dict[int, int] = field(default_factory=dict)
    _allocs: dict[int, int] = field(default_factory=dict)
    _charges: int = 0
    _attempts: int = 0

    def idle(self) -> bool:
        """Return whether nothing is to fail."""
        return not (self.alloc or self.charge or self.populate)

    def should_fail_alloc(self, order: int) -> bool:
        """Return whether this allocation of a folio fails."""
        self._allocs[order] = self._allocs.get(order, 0) + 1
        return self._allocs[order] in self.alloc.get(order, ())

    def should_fail_charge(self) -> bool:
        """Return whether this charge fails."""
        self._charges += 1
        return self._charges in self.charge

    def populate_behind(self, k: Arena, vmf: VmFault, order: int) -> None:
        """Map a small page into the block that a fault is about to map, if this attempt is named."""
        self._attempts += 1
        page = self.populate.get(self._attempts)
        if page is None or page >> order:
            return
        block = vmf.address & -(k.page_size << order)
        address = block + (page << k.page_shift)
        pte = vmf.pte - (vmf.address - block >> k.page_shift) + page
        old = k.phys[pte]
        shared = old and not pte_special(k, old)
        new = folio_alloc(k, 0, PG_anon | PG_lru, ZONE_ANON)
        if not new:
            raise AssertionError("populate: no memory")
        if k.config.phys_backing and shared:
            k.ops.copy_pages(new, pte_pfn(k, old), 1)
        elif k.config.phys_backing:
            k.ops.clear_huge_page(new, 1, 0)
        ptep_clear(k, pte)
        folio_add_new_anon_rmap_range(k, new, new, 1, vmf.vma, address)
        entry = mk_pte(k, new, k.vma[vmf.vma * _V + VMA_PAGE_PROT])
        set_pte(k, pte, pte_mkwrite(k, pte_mkdirty(k, pte_mkyoung(k, entry))))
        if shared:
            folio = k.page[pte_pfn(k, old) * _P + PAGE_HEAD]
            page_remove_rmap(k, folio, pte_pfn(k, old), vmf.mm)
            folio_put(k, folio)
        else:
            k.mm[vmf.mm * _M + MM_ANONPAGES] += 1
