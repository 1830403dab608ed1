# SPDX-License-Identifier: GPL-2.0-only
"""
What csrc/fault.c needs to know: the ``fault`` array.

C looks at no configuration and asks no policy. Which orders a VMA may have follows from its hints
and the knobs, so four masks hold all answers; they are written anew when a knob changes. A policy of
a user answers for each fault, so C must not serve any of its machine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .arena import ANON_VMA_RECORD, AVC_RECORD, FILE_RECORD, VMA_LOG_RECORD, VMA_RECORD
from .huge_memory import thp_allowable_orders
from .large_anon_folio import max_anon_folio_order
from .layout import (
    FAULT_ANYONE,
    FAULT_AROUND,
    FAULT_CLEAR_LAST,
    FAULT_CONT_BIT,
    FAULT_CONT_NR,
    FAULT_CONTPTE_BATCH,
    FAULT_COPY,
    FAULT_EXEC_FOLIO,
    FAULT_GATHER,
    FAULT_HUGE_ZERO,
    FAULT_LARGE,
    FAULT_MAX_PAGE_ORDER,
    FAULT_NR_ANON_VMAS,
    FAULT_NR_AVCS,
    FAULT_NR_CACHE,
    FAULT_NR_FILES,
    FAULT_NR_PAGES,
    FAULT_NR_VMA_LOGS,
    FAULT_NR_VMAS,
    FAULT_PHYS_BACKING,
    FAULT_PMD,
    FAULT_PROTECTION_MAP,
    FAULT_QUEUE_COUNT,
    FAULT_QUEUE_ORDER,
    FAULT_RMAP_ADD_RANGE,
    FAULT_TAGS,
    FAULT_UNDERUSED,
    FAULT_WANTED,
    FAULT_ZAP_ANON,
    FAULT_ZAP_FILE,
    FAULT_ZERO_PFN,
)
from .pgtable import vm_get_page_prot
from .policy import wanted_by_anyone
from .vm_flags import VM_ACCESS_FLAGS, VM_HUGEPAGE, VM_MTE, VM_NOHUGEPAGE, VM_SHARED
from .zap import tlb_capacity, zap_batch

if TYPE_CHECKING:
    from .arena import Arena

_HINTS = (0, VM_HUGEPAGE, VM_NOHUGEPAGE, VM_HUGEPAGE | VM_NOHUGEPAGE)


def init_fault(k: Arena) -> None:
    """Write what does not change after boot, and the masks."""
    config, arch, fault = k.config, k.arch, k.fault
    fault[FAULT_NR_PAGES] = config.nr_pages
    fault[FAULT_MAX_PAGE_ORDER] = config.max_page_order
    fault[FAULT_ZERO_PFN] = k.zero_pfn
    fault[FAULT_PHYS_BACKING] = config.phys_backing
    upwards = arch.gfp_zero and config.policy == "v1"
    fault[FAULT_CLEAR_LAST] = config.clear_last and not upwards
    fault[FAULT_RMAP_ADD_RANGE] = config.rmap_add_range
    fault[FAULT_CONT_BIT] = k.cont_bit
    fault[FAULT_CONT_NR] = k.cont_nr
    fault[FAULT_TAGS] = VM_MTE if arch.gfp_zerotags else 0
    fault[FAULT_EXEC_FOLIO] = config.exec_folio_order
    fault[FAULT_LARGE] = k.ladder.large
    fault[FAULT_NR_ANON_VMAS] = len(k.anon_vma) // ANON_VMA_RECORD
    fault[FAULT_NR_AVCS] = len(k.avc) // AVC_RECORD
    fault[FAULT_NR_VMAS] = len(k.vma) // VMA_RECORD
    fault[FAULT_NR_FILES] = len(k.file) // FILE_RECORD
    fault[FAULT_NR_CACHE] = len(k.page_cache)
    fault[FAULT_NR_VMA_LOGS] = len(k.vma_log) // VMA_LOG_RECORD
    for flags in range((VM_ACCESS_FLAGS | VM_SHARED) + 1):
        fault[FAULT_PROTECTION_MAP + flags] = vm_get_page_prot(k, flags)
    fault[FAULT_ZAP_ANON], fault[FAULT_ZAP_FILE] = zap_batch(k, False), zap_batch(k, True)
    fault[FAULT_GATHER] = tlb_capacity(k)
    fault[FAULT_QUEUE_ORDER] = 0 if config.deferred_split else k.pmd_order
    fault[FAULT_QUEUE_COUNT] = k.pmd_order if config.policy == "mthp" else 0
    fault[FAULT_CONTPTE_BATCH] = config.contpte_batch
    update_knobs(k)


def update_knobs(k: Arena) -> None:
    """Write what follows from the knobs: which orders a VMA may have, by its hints, and more."""
    for hint, flags in enumerate(_HINTS):
        k.fault[FAULT_WANTED + hint] = k.ladder.wanted(k, flags)
        k.fault[FAULT_COPY + hint] = max_anon_folio_order(k, flags) if k.config.cow_copy else 0
        k.fault[FAULT_PMD + hint] = thp_allowable_orders(k, flags, 1 << k.pmd_order)
    k.fault[FAULT_AROUND] = k.knobs.fault_around_bytes >> k.page_shift
    k.fault[FAULT_HUGE_ZERO] = k.knobs.use_zero_page
    k.fault[FAULT_UNDERUSED] = k.config.underused_queue and k.knobs.shrink_underused
    k.fault[FAULT_ANYONE] = wanted_by_anyone(k)
