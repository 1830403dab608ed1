# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the three copy-on-write paths of RFCv2 have in common (spec 2, R1 to R3)."""

from virtmm.mm import layout
from virtmm.mm.vm_flags import MREMAP_FIXED, PROT_READ, PROT_WRITE

ALWAYS = range(1, 1000)
RW = PROT_READ | PROT_WRITE


def mremap(m, first, end, to):
    size = (end - first) * m.page_size
    assert m.mremap(1, m.at(first), size, m.at(to), size, MREMAP_FIXED) == 0


def protect(m, first, end, prot, pid=1):
    assert m.mprotect(pid, m.at(first), (end - first) * m.page_size, prot) == 0


def fill(m, *pages, pid=1):
    """Give each page a content of its own."""
    for page in pages:
        assert m.store(pid, m.at(page) + 3, page + 1) == 0


def contents(m, *pages, pid=1):
    return [m.load(pid, m.at(page) + 3) for page in pages]


def writable(m, first, end, pid=1):
    """Return which pages may be written to without a fault, and are young, dirty and exclusive."""
    pte, found = m.k.arch.pte, []
    for page in range(first, end):
        entry = m.entry(page, pid)
        if entry and entry & pte.write.mask == pte.write.on:
            assert entry & pte.dirty.mask == pte.dirty.on
            assert entry & pte.young.mask == pte.young.on
            assert m.word(page, layout.PAGE_FLAGS, pid) & layout.PG_exclusive
            found.append(page)
    return found


def by_order(m, event):
    return {int(order): n for order, n in m.events()[event].items()}


def shared(m):
    """Fill the first 16 pages of the region, and share them with a child."""
    m.map(0, 16)
    fill(m, *range(16))
    m.fork(1, 2)
    return m


def exclusive_but_read_only(m, *pages):
    """Take the right to write from exclusive pages, as tracking of writes does; no call of ours does."""
    write = m.k.arch.pte.write
    for page in pages:
        pte = m.pte(page)
        m.k.phys[pte] = m.k.phys[pte] & ~write.mask | write.off
