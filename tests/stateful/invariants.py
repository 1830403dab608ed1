# SPDX-License-Identifier: GPL-2.0-only
"""
What must hold between any two steps, beyond mm/debug_vm.py: rmap, anon_vma, entries against VMAs.

Written from the rules, by walking everything, and independent of the code that keeps them.
"""

from collections import Counter

from virtmm.mm import layout
from virtmm.mm.arena import (
    ANON_VMA_RECORD,
    AVC_RECORD,
    FILE_RECORD,
    MM_RECORD,
    PAGE_RECORD,
    VMA_RECORD,
)
from virtmm.mm.debug_vm import live_mms, validate
from virtmm.mm.layout import NR_ORDERS
from virtmm.mm.pgtable import (
    pmd_trans_huge,
    pte_accessible,
    pte_dirty,
    pte_pfn,
    walk_page_table,
)
from virtmm.mm.tlb import tlb_reach
from virtmm.mm.vm_flags import VM_ACCESS_FLAGS, VM_SHARED, VM_WRITE
from virtmm.mm.vma import slots


def check(k, most_spaces=3):
    """
    Check everything, the machine's own validators first.

    Args:
        most_spaces: how many address spaces there ever were at once; up to two are counted exactly
            by the owner slots of a large folio (MM_ID).
    """
    validate(k)
    if k.config.mm_id and most_spaces < 3:
        check_owners(k)
    vmas = [vma for mm in live_mms(k) for vma in k.vma_index[slice(*slots(k, mm))].tolist()]
    check_anon_vmas(k, vmas)
    for mm in live_mms(k):
        check_entries(k, mm)
        check_tables(k, mm)
        check_tlb(k, mm)
    check_folios(k)
    assert used(k, layout.SLAB_VMA, k.vma, VMA_RECORD) == len(vmas), "VMAs in no address space"
    files = Counter(_vma(k, v, layout.VMA_FILE) for v in vmas)
    for file in range(1, k.zone[layout.ZONE_SLAB + layout.SLAB_FILE + 1] + 1):
        if k.file[file * FILE_RECORD + layout.FILE_CAPACITY]:
            assert k.file[file * FILE_RECORD + layout.FILE_VMAS] == files[file], (
                f"VMAs of file {file}"
            )
    allocated = k.vmstat[layout.VM_pgalloc_movable] - k.vmstat[layout.VM_pgfree]
    assert allocated == k.config.nr_pages - k.zone[layout.ZONE_NR_FREE]


def check_tlb(k, mm):
    """Entries that mm needs of a TLB: one each page, huge entry or contiguous block; groups save some."""
    first = layout.TLB_ALIVE
    k.tlb[first : first + 16] = memoryview(bytes(128)).cast("Q")
    tlb_reach(k, mm, first)
    data, text = first + layout.TLB_DATA, first + layout.TLB_TEXT
    pages, plain, hpa, cont, best, marked = (k.tlb[data + i] + k.tlb[text + i] for i in range(6))
    reached = [
        (entry, huge)
        for _, entry, huge in walk_page_table(k, mm)
        if pte_accessible(k, entry, write=False)
    ]
    entries, huge = len(reached), sum(h for _, h in reached)
    in_blocks = sum(not h and entry & k.cont_bit != 0 for entry, h in reached)
    assert (pages, plain, marked) == (entries + huge * ((1 << k.pmd_order) - 1), entries, in_blocks)
    assert cont == entries - in_blocks + (in_blocks // k.cont_nr if in_blocks else 0)
    assert best <= min(hpa, cont) <= max(hpa, cont) <= plain


def check_owners(k):
    """Where there never were more than two address spaces the slots of a folio hold all its mappings."""
    pfn = 0
    while pfn < k.zone[layout.ZONE_FRONTIER]:
        record = k.page[pfn * PAGE_RECORD : pfn * PAGE_RECORD + 4 * PAGE_RECORD].tolist()
        order = record[layout.PAGE_ORDER]
        if record[layout.PAGE_FLAGS] & layout.PG_anon and order:
            slots_ = record[layout.FOLIO_MM0_MAPCOUNT] + record[layout.FOLIO_MM1_MAPCOUNT]
            assert slots_ == record[layout.FOLIO_LARGE_MAPCOUNT], f"owners of {pfn:#x}"
        pfn += 1 << order


def used(k, slab, table, words):
    """Return how many records of a table are in use."""
    record, free = k.zone[layout.ZONE_SLAB + slab], 0
    while record:
        free += 1
        record = table[record * words]
    return k.zone[layout.ZONE_SLAB + slab + 1] - free


def _vma(k, vma, field):
    return k.vma[vma * VMA_RECORD + field]


def chain(k, vma):
    """Return the anon_vmas that a VMA is linked to."""
    found, link = [], _vma(k, vma, layout.VMA_AVC)
    while link:
        assert k.avc[link * AVC_RECORD + layout.AVC_VMA] == vma
        found.append(k.avc[link * AVC_RECORD + layout.AVC_ANON_VMA])
        link = k.avc[link * AVC_RECORD + layout.AVC_NEXT_VMA]
    return found


def check_anon_vmas(k, vmas):
    links, active = Counter(), Counter()
    for vma in vmas:
        own, linked = _vma(k, vma, layout.VMA_ANON_VMA), chain(k, vma)
        assert len(set(linked)) == len(linked), f"VMA {vma} is linked to an anon_vma twice"
        assert not own or own in linked, f"VMA {vma} is not linked to its anon_vma"
        assert own or not linked, f"VMA {vma} has links but no anon_vma"
        links.update((vma, anon_vma) for anon_vma in linked)
        active[own] += own != 0
    assert used(k, layout.SLAB_AVC, k.avc, AVC_RECORD) == len(links), "links of no VMA"
    alive = {anon_vma for _, anon_vma in links}
    assert used(k, layout.SLAB_ANON_VMA, k.anon_vma, ANON_VMA_RECORD) == len(alive)
    children, other = Counter(), Counter()
    for anon_vma in alive:
        base = anon_vma * ANON_VMA_RECORD
        assert k.anon_vma[base + layout.ANON_VMA_NUM_ACTIVE] == active[anon_vma], "num_active"
        children[k.anon_vma[base + layout.ANON_VMA_PARENT]] += 1
        link, before = k.anon_vma[base + layout.ANON_VMA_AVC], 0
        while link:
            assert k.avc[link * AVC_RECORD + layout.AVC_ANON_VMA] == anon_vma
            assert k.avc[link * AVC_RECORD + layout.AVC_PREV] == before
            other[k.avc[link * AVC_RECORD + layout.AVC_VMA], anon_vma] += 1
            link, before = k.avc[link * AVC_RECORD + layout.AVC_NEXT], link
    assert other == links, "the two lists of links differ"
    for anon_vma in alive:
        count = k.anon_vma[anon_vma * ANON_VMA_RECORD + layout.ANON_VMA_NUM_CHILDREN]
        assert count == children[anon_vma], f"anon_vma {anon_vma}: {children[anon_vma]} children"


def check_entries(k, mm):
    """An entry says what its VMA and its page say."""
    words, bits = k.page, k.arch.pte
    write, special, present = bits.write, bits.special, bits.present
    vmas = iter(k.vma_index[slice(*slots(k, mm))].tolist())
    start = end = flags = pgoff = file = 0
    linked = []
    for address, entry, huge in walk_page_table(k, mm):
        while address >= end:
            vma = next(vmas)
            start, end, flags, pgoff = k.vma[vma * VMA_RECORD : vma * VMA_RECORD + 4].tolist()
            file, linked = _vma(k, vma, layout.VMA_FILE), chain(k, vma)
        writable, page = entry & write.mask == write.on, (entry & k.pfn_mask) >> k.pfn_shift
        wrong = (entry & present.mask == present.on) != bool(flags & VM_ACCESS_FLAGS)
        wrong |= writable and not flags & VM_WRITE
        wrong |= huge and address & (k.pmd_size - 1)
        if entry & special.mask == special.on:
            wrong |= page != (k.zone[layout.ZONE_HUGE_ZERO] if huge else k.zero_pfn)
            wrong |= writable or pte_dirty(k, entry) or file
        else:
            head = words[page * PAGE_RECORD + layout.PAGE_HEAD]
            _, _, _, _, _, mapping, low, high = words[
                head * PAGE_RECORD : head * PAGE_RECORD + PAGE_RECORD
            ].tolist()
            index = low + page - head
            wrong |= huge and head != page
            # rmap finds the VMA by the anon_vma, and the address by the index
            wrong |= index | high << 32 != pgoff + (address - start >> k.page_shift)
            if words[head * PAGE_RECORD] & layout.PG_anon:
                exclusive = words[page * PAGE_RECORD] & layout.PG_exclusive
                wrong |= flags & VM_SHARED or mapping not in linked
                wrong |= writable and not exclusive
            else:
                cache = k.file[mapping * FILE_RECORD + layout.FILE_CACHE]
                wrong |= mapping != file or k.page_cache[cache + index] != page
                wrong |= writable and not flags & VM_SHARED
        assert not wrong, f"mm {mm} {address:#x} {entry:#x} huge={huge} flags={flags:#x}"


def check_tables(k, mm):
    """No page table is left where no VMA could use it."""
    spans = [(_vma(k, v, layout.VMA_START), _vma(k, v, layout.VMA_END))
             for v in k.vma_index[slice(*slots(k, mm))].tolist()]  # fmt: skip
    todo = [(k.mm[mm * MM_RECORD + layout.MM_PGD], 0, 0)]
    while todo:
        table, depth, address = todo.pop()
        if depth == len(k.levels):
            continue
        shift, mask = k.levels[depth]
        first = table << k.table_shift
        entries = k.phys[first : first + mask + 1].tolist()
        for i in filter(entries.__getitem__, range(mask + 1)) if any(entries) else ():
            entry = entries[i]
            if not pmd_trans_huge(k, entry):
                low = address + (i << shift)
                wanted = any(s < low + (1 << shift) and e > low for s, e in spans)
                assert wanted, f"mm {mm}: a table of level {depth + 1} is left at {low:#x}"
                todo.append((pte_pfn(k, entry), depth + 1, low))


def check_folios(k):
    """Partly mapped large folios are queued, the queue is sound, the gauges of folios are true."""
    anon, partly = Counter(), set()
    pfn, queued = 0, []
    while pfn < k.zone[layout.ZONE_FRONTIER]:
        base = pfn * PAGE_RECORD
        flags, order = k.page[base + layout.PAGE_FLAGS], k.page[base + layout.PAGE_ORDER]
        if flags & layout.PG_anon:
            assert order != 1, "a large folio keeps its state in its second tail page"
            anon[order] += 1
            huge = order and k.page[base + layout.FOLIO_ENTIRE_MAPCOUNT]
            if order and not huge and k.page[base + layout.FOLIO_NR_PAGES_MAPPED] < 1 << order:
                partly |= {pfn} if k.config.deferred_split or order == k.pmd_order else set()
        pfn += 1 << order
    folio, before = k.zone[layout.ZONE_SPLIT_QUEUE], 0
    while folio:
        assert k.page[folio * PAGE_RECORD + layout.FOLIO_DEFERRED_PREV] == before
        queued.append(folio)
        folio, before = k.page[folio * PAGE_RECORD + layout.FOLIO_DEFERRED_NEXT], folio
    assert k.zone[layout.ZONE_SPLIT_QUEUE_TAIL] == before, "tail of the split queue"
    assert partly <= set(queued), f"partly mapped, not queued: {partly - set(queued)}"
    for order in range(NR_ORDERS):
        assert k.mthp_stat[layout.MTHP_nr_anon * NR_ORDERS + order] == anon[order], f"order {order}"


def check_all_free(driver):
    """When every process has ended, nothing is held but the page cache."""
    for pid in list(driver.spaces):
        driver.m.exit(pid)
    k = driver.k
    check(k)
    assert not k.zone[layout.ZONE_ANON] and not k.zone[layout.ZONE_TABLE], "memory of nobody"
    reserved = 2 + ((1 << k.pmd_order) if k.zone[layout.ZONE_HUGE_ZERO] else 0)
    held = reserved + k.zone[layout.ZONE_CACHE]
    assert k.zone[layout.ZONE_NR_FREE] == k.config.nr_pages - held
    assert not k.zone[layout.ZONE_SPLIT_QUEUE]
    for slab, table, words in (
        (layout.SLAB_MM, k.mm, MM_RECORD),
        (layout.SLAB_ANON_VMA, k.anon_vma, ANON_VMA_RECORD),
        (layout.SLAB_AVC, k.avc, AVC_RECORD),
    ):
        assert used(k, slab, table, words) == 0, f"slab {slab} has records of nobody"
