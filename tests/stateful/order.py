# SPDX-License-Identifier: GPL-2.0-only
"""The order that a write to a page must get, straight from the rules' sentences."""

from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD, VMA_RECORD
from virtmm.mm.huge_memory import hugepage_vma_check
from virtmm.mm.large_anon_folio import max_anon_folio_order
from virtmm.mm.pgtable import pmd_offset, pte_special
from virtmm.mm.vma import vma_lookup


def expected_order(driver, pid, p):
    """Return the order of the folio that a write allocates; None if it takes none or a policy chooses."""
    k, mm = driver.k, driver.mm(pid)
    vma = vma_lookup(k, mm, driver.address(p))
    base = vma * VMA_RECORD
    entry, _, by_pmd = driver.leaf(pid, p)
    zeroes = entry and pte_special(k, entry) and k.config.cow_zero and not by_pmd
    if not vma or k.vma[base + layout.VMA_FILE] or by_pmd or k.ladder.by_user:
        return None
    if entry and not zeroes:
        return copy_order(driver, pid, p, vma) if k.config.cow_copy else None

    def free(q):
        entry = driver.leaf(pid, q)[0]
        return not entry or (zeroes and pte_special(k, entry))

    low, high = (k.vma[base + f] >> k.page_shift for f in (layout.VMA_START, layout.VMA_END))
    place = pmd_offset(k, mm, driver.address(p))
    for order in allowed_orders(driver, vma, driver.spaces[pid].pages[p]):
        first = p & -(1 << order)
        if first < low or first + (1 << order) > high:
            continue
        if order == k.pmd_order:
            if not place or not k.phys[place]:
                return order
        elif all(free(q) for q in range(first, first + (1 << order))):
            return order
    return 0


def copy_order(driver, pid, p, vma):
    """Return the order of the copy that a write to a page of a shared folio makes, else None."""
    k = driver.k
    entry, page, _ = driver.leaf(pid, p)
    low, high = k.vma[vma * VMA_RECORD : vma * VMA_RECORD + 2].tolist()
    head = k.page[page * PAGE_RECORD + layout.PAGE_HEAD]
    _, refs, _, _, order, *_ = k.page[head * PAGE_RECORD : (head + 1) * PAGE_RECORD].tolist()
    write = k.arch.pte.write.mask
    if pte_special(k, entry) or entry & write == k.arch.pte.write.on:
        return None

    def alike(q):
        other, its_page, _ = driver.leaf(pid, q)
        inside = low <= driver.address(q) < high and p >> k.pmd_order == q >> k.pmd_order
        same = (
            its_page - q == page - p and k.page[its_page * PAGE_RECORD + layout.PAGE_HEAD] == head
        )
        return other and inside and same and not (other ^ entry) & write

    first, end = p, p + 1
    while alike(first - 1):
        first -= 1
    while alike(end):
        end += 1
    if k.page[page * PAGE_RECORD] & layout.PG_exclusive or refs == (
        end - first if k.config.cow_reuse else 1
    ):
        return None
    for candidate in range(
        min(order, max_anon_folio_order(k, k.vma[vma * VMA_RECORD + layout.VMA_FLAGS])), 1, -1
    ):
        block = p >> candidate << candidate
        if first <= block and block + (1 << candidate) <= end:
            return candidate
    return 0


def allowed_orders(driver, vma, page):
    """Return the orders that policy allows a page, largest first."""
    if not driver.mthp:
        flags = driver.k.vma[vma * VMA_RECORD + layout.VMA_FLAGS]
        huge = [driver.k.pmd_order] if hugepage_vma_check(driver.k, flags) else []
        return [*huge, *ladder(driver.k, vma, page.huge)]
    top = driver.knobs["enabled"]
    inherit = top == "always" or (page.huge == 1 and top == "madvise")
    wanted = {"always": True, "madvise": page.huge == 1, "inherit": inherit, "never": False}
    states = [driver.knobs[name] for name in driver.m.sizes()]
    orders = [order for order, state in enumerate(states, 2) if wanted[state]]
    return orders[::-1] if page.huge != -1 else []


def ladder(k, vma, hint):
    """Return the orders below the PMD's that a kernel of the series tries in a VMA, largest first."""
    policy, preferred = (
        k.config.policy,
        max_anon_folio_order(k, k.vma[vma * VMA_RECORD + layout.VMA_FLAGS]),
    )
    if policy == "base":
        return []
    if policy in ("v1", "v2"):
        return list(range(preferred, 1, -1))
    if policy == "v2_simple":
        return [preferred] if preferred > 1 else []
    if hint == -1:
        return []
    if policy == "v5":
        return [3]
    if k.knobs.enabled == "never":
        return []
    if not hugepage_vma_check(k, k.vma[vma * VMA_RECORD + layout.VMA_FLAGS]):
        return {4096: [4, 3], 16384: [2], 65536: []}[k.page_size]
    return {4096: [4, 3], 16384: [7, 3], 65536: [5, 3]}[k.page_size]
