# SPDX-License-Identifier: GPL-2.0-only
"""A small machine to make calls on, and what its pages look like."""

import pytest
from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD
from virtmm.mm.debug_vm import validate
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.pgtable import pte_offset_map, pte_pfn, pte_special

from virtmm.kconfig import resolve
from virtmm.machine import Machine

# A region aligned for every page size and level; process 1 lives there.
BASE = 0x1000000000


class Lab(Machine):
    """A machine with process 1, spoken to in pages from BASE on."""

    def at(self, page):
        return BASE + page * self.page_size

    def map(self, first, end, pid=1, **kw):
        assert self.mmap(pid, self.at(first), (end - first) * self.page_size, **kw) == 0

    def unmap(self, first, end, pid=1):
        assert self.munmap(pid, self.at(first), (end - first) * self.page_size) == 0

    def write(self, *pages, pid=1):
        for page in pages:
            assert self.touch(pid, self.at(page), True) == 0

    def read(self, *pages, pid=1):
        for page in pages:
            assert self.touch(pid, self.at(page), False) == 0

    def advise(self, first, end, advice, pid=1):
        assert self.madvise(pid, self.at(first), (end - first) * self.page_size, advice) == 0

    def pte(self, page, pid=1):
        return pte_offset_map(self.k, self._mm(pid), self.at(page))

    def entry(self, page, pid=1):
        pte = self.pte(page, pid)
        return self.k.phys[pte] if pte else 0

    def pfn(self, page, pid=1):
        return pte_pfn(self.k, self.entry(page, pid))

    def folio(self, page, pid=1):
        """Return (order, page of the folio) that maps a page, "zero", or None."""
        entry = self.entry(page, pid)
        if not entry:
            return None
        if pte_special(self.k, entry):
            return "zero"
        pfn = pte_pfn(self.k, entry)
        head = self.k.page[pfn * PAGE_RECORD + layout.PAGE_HEAD]
        return self.k.page[head * PAGE_RECORD + layout.PAGE_ORDER], pfn - head

    def orders(self, first, end, pid=1):
        """Return the order of the folio of each page; None where nothing is mapped."""
        found = [self.folio(page, pid) for page in range(first, end)]
        return [f[0] if isinstance(f, tuple) else f for f in found]

    def word(self, page, field, pid=1):
        """Return a field of the page record of what a page maps."""
        return self.k.page[pte_pfn(self.k, self.entry(page, pid)) * PAGE_RECORD + field]

    def head(self, page, field, pid=1):
        """Return a field of the head page of the folio that a page maps."""
        return self.k.page[self.word(page, layout.PAGE_HEAD, pid) * PAGE_RECORD + field]

    def queued(self):
        return self.k.zone[layout.ZONE_SPLIT_QUEUE_LEN]

    def stat(self, name, order):
        sizes = self.hugepages().get(f"hugepages-{self.page_size << order >> 10}kB", {})
        return sizes.get(name, 0)

    def minflt(self, pid=1):
        return next(p.minflt for p in self.processes() if p.pid == pid)


@pytest.fixture(params=["c", "python"])
def lab(request):
    """Return a function that boots a machine with process 1; validated and closed at the end."""
    machines = []

    def boot(
        defconfig="anonfolio_basic",
        *sets,
        arch="arm64",
        fragments=(),
        knobs=(),
        arch_dir=None,
        **kw,
    ):
        small = () if any(s.startswith("MEMORY_MB") for s in sets) else ("MEMORY_MB=1024",)
        ranges = "y" if request.param == "c" else "n"
        sets = [f"C_RANGES={ranges}", *small, *sets]
        config = resolve(arch, defconfig, fragments, sets, arch_dir)
        machine = Lab(config, knobs, arch_dir=arch_dir, **kw)
        machines.append(machine)
        assert machine.spawn(1) == 0
        return machine

    yield boot
    for machine in machines:
        validate(machine.k)
        machine.close()


@pytest.fixture
def anonfolio(lab):
    """Return a function that boots the kernel with folios of up to 16 pages, contents and failures."""
    return lambda *sets, inject=None, **kw: lab(
        "anonfolio",
        "PHYS_BACKING=y",
        "FAULT_INJECTION=y",
        *sets,
        inject=inject or FaultInjection(),
        **kw,
    )
