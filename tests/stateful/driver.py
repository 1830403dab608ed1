# SPDX-License-Identifier: GPL-2.0-only
"""Every call, made on a machine and on the model; answers, bytes and resident sets must agree."""

from virtmm.mm import layout
from virtmm.mm.arena import MM_RECORD, PAGE_RECORD, VMA_RECORD
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.large_anon_folio import max_anon_folio_order
from virtmm.mm.pgtable import pte_offset_map, pte_pfn, pte_special
from virtmm.mm.vm_flags import (
    EINVAL,
    ENOMEM,
    MADV_DONTNEED,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_FIXED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_OOM,
)
from virtmm.mm.vma import vma_lookup

from virtmm.machine import CLONE_VM, Machine

from .model import FLAGS, File, Page, Space

#: Pages in each stretch of addresses that programs use; a PMD boundary lies in the first, one of the
#: level above in the second, and the third, the heap, begins where nothing is aligned.
STRETCHES = (192, 64, 48)
RW = PROT_READ | PROT_WRITE
FILE_PAGES = 12


class Driver:
    """
    A machine and the model of it.

    Attributes:
        spaces: process id -> its Space; after a vfork two processes have the same.
        failed: the last call met an injected failure.
    """

    def __init__(self, config, settings=()):
        self.inject = FaultInjection()
        self.m = Machine(config, settings, inject=self.inject)
        self.k = k = self.m.k
        pmd = k.pmd_shift - k.page_shift
        above = k.levels[-2][0] - k.page_shift
        self.starts = ((4 << pmd) - 128, (1 << above) - 16, (7 << pmd) + 5)
        self.exact = not (k.config.nothp_order_max or k.config.thp_order_max)
        self.spaces = {}
        self.files = [
            File(FILE_PAGES, self.m.open(10 + i, FILE_PAGES << k.page_shift)) for i in (0, 1)
        ]
        self.next_pid = 1
        self.failed = False
        self.spawn()

    def close(self):
        self.m.close()

    # Names

    def pid(self, who):
        """Return one of the living processes; there is always one."""
        return sorted(self.spaces)[who % len(self.spaces)]

    def place(self, where):
        """Return (page, count) of (stretch, offset, count), cut at the stretch's end."""
        stretch, offset, nr = where
        offset %= STRETCHES[stretch]
        return self.starts[stretch] + offset, max(1, min(nr, STRETCHES[stretch] - offset))

    def address(self, page):
        return page << self.k.page_shift

    def mm(self, pid):
        return self.m._mm(pid)

    # How an answer is judged

    def step(self, name, *args):
        """Make one call; then nothing is left of the failures that were arranged for it."""
        armed = bool(self.inject.alloc or self.inject.charge or self.inject.populate)
        self.failed = False
        getattr(self, name)(*args, **({"armed": True} if armed else {}))
        self.inject.alloc, self.inject.charge, self.inject.populate = {}, (), {}
        for pid in self.spaces:
            self.check_resident(pid)

    def same(self, got, expected, armed, *out_of_memory):
        """Check an answer; with failures arranged it may also be one of ``out_of_memory``."""
        if got != expected and armed and got in out_of_memory:
            self.failed = True
            return
        assert got == expected, f"the machine answers {got}, the model {expected}"

    def check_resident(self, pid):
        base = self.mm(pid) * MM_RECORD
        (least, most), (least_file, most_file) = self.spaces[pid].resident()
        anon, file = self.k.mm[base + layout.MM_ANONPAGES], self.k.mm[base + layout.MM_FILEPAGES]
        assert least <= anon <= (least if self.exact else most), f"{least} <= {anon} <= {most} anon"
        assert least_file <= file <= most_file, f"{least_file} <= {file} <= {most_file} file pages"

    def learn(self, pid, at, nr):
        """Take over which anonymous pages the machine maps, where a failed call leaves that open."""
        k, space, mm = self.k, self.spaces[pid], self.mm(pid)
        for p in range(at, at + nr):
            pte = pte_offset_map(k, mm, self.address(p))
            entry = k.phys[pte] if pte else 0
            if p not in space.pages or not entry or pte_special(k, entry):
                continue
            page, head = space.pages[p], k.page[pte_pfn(k, entry) * PAGE_RECORD + layout.PAGE_HEAD]
            anon = k.page[head * PAGE_RECORD + layout.PAGE_FLAGS] & layout.PG_anon
            if anon and page.own is None:
                page.own = dict(page.bytes())
            page.held = "anon" if anon else "file"

    # Processes

    def spawn(self, armed=False):
        pid = self.next_pid
        self.next_pid += 1
        self.same(self.m.spawn(pid), 0, armed, -ENOMEM)
        if self.m.has(pid):
            self.spaces[pid] = Space()

    def fork(self, who, vfork, advice=None, armed=False):
        """``advice``: (where, advice about forks) that comes first."""
        if advice:
            self.madvise(who, *advice)
        parent, child = self.pid(who), self.next_pid
        self.next_pid += 1
        self.same(self.m.fork(parent, child, CLONE_VM if vfork else 0), 0, armed, -ENOMEM)
        assert self.m.has(child) != self.failed
        if not self.failed:
            space = self.spaces[parent]
            self.spaces[child] = space if vfork else space.fork()

    def exec(self, who, armed=False):
        pid = self.pid(who)
        self.same(self.m.exec(pid), 0, armed, -ENOMEM)
        if not self.failed:
            self.spaces[pid] = Space()

    def exit(self, who, armed=False):
        pid = self.pid(who)
        self.m.exit(pid)
        del self.spaces[pid]
        if not self.spaces:
            self.inject.alloc = {}
            self.spawn()

    # Memory calls

    def mmap(self, who, where, prot, kind, fixed, populate, armed=False):
        """``kind``: "private", "shared" (anonymous), or (file, page of the file, shared?)."""
        pid, (at, nr) = self.pid(who), self.place(where)
        space, flags = self.spaces[pid], (fixed and MAP_FIXED) | (populate and MAP_POPULATE)
        number = pgoff = 0
        file = None
        if kind == "shared":
            file = File(nr)
            shared = True
        elif kind == "private":
            shared = False
        else:
            file, pgoff, shared = self.files[kind[0]], kind[1], kind[2]
            number = file.number
        got = self.m.mmap(
            pid,
            self.address(at),
            nr << self.k.page_shift,
            prot,
            flags | (MAP_SHARED if shared else MAP_PRIVATE),
            number,
            pgoff,
        )
        if number:
            file.pages = max(file.pages, pgoff + nr)
        self.same(
            got, space.mmap(at, nr, lambda i: Page(prot, shared, file, pgoff + i), fixed), False
        )
        if not got and populate:
            if armed:
                self.learn(pid, at, nr)
            else:
                space.populate(at, nr, bool(prot & PROT_WRITE))

    def munmap(self, who, where, armed=False):
        pid, (at, nr) = self.pid(who), self.place(where)
        got = self.m.munmap(pid, self.address(at), nr << self.k.page_shift)
        self.same(got, self.spaces[pid].munmap(at, nr), False)

    def mprotect(self, who, where, prot, armed=False):
        pid, (at, nr) = self.pid(who), self.place(where)
        got = self.m.mprotect(pid, self.address(at), nr << self.k.page_shift, prot)
        self.same(got, self.spaces[pid].mprotect(at, nr, prot), False)

    def protect_twice(self, who, where, prot, armed=False):
        """Take rights away and give them back: entries must be none the wiser."""
        self.mprotect(who, where, prot)
        self.mprotect(who, where, RW)

    def madvise(self, who, where, advice, armed=False):
        pid, (at, nr) = self.pid(who), self.place(where)
        space = self.spaces[pid]
        got = self.m.madvise(pid, self.address(at), nr << self.k.page_shift, advice)
        if advice in FLAGS:
            self.same(got, space.advise(at, nr, advice), False)
        elif advice == MADV_DONTNEED:
            self.same(got, space.dontneed(at, nr), False)
        else:
            assert advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
            if armed and got == -ENOMEM:
                self.learn(pid, at, nr)
                return
            self.same(got, space.populate(at, nr, advice == MADV_POPULATE_WRITE), False)
            if armed:
                self.learn(pid, at, nr)

    def mremap(self, who, source, target, new, keep, armed=False):
        """``target`` None: in place."""
        pid, (at, old) = self.pid(who), self.place(source)
        if target is None:
            to, new = at, self.place((source[0], source[1], new))[1]
        else:
            to, new = self.place((*target, new))
        if keep and target is not None:
            new = self.place((*target, old))[1]
        k, vma = self.k, vma_lookup(self.k, self.mm(pid), self.address(at))
        end = k.vma[vma * VMA_RECORD + layout.VMA_END] >> k.page_shift if vma else 0
        shift, keep = k.page_shift, bool(keep and target is not None)
        got = self.m.mremap(
            pid,
            self.address(at),
            old << shift,
            self.address(to),
            new << shift,
            MREMAP_DONTUNMAP if keep else 0,
        )
        space = self.spaces[pid]
        if armed and got == -ENOMEM and to != at and vma:
            if new < old:
                space.munmap(at + new, old - new)
            space.munmap(to, new)
            return
        self.same(
            got, space.mremap(at, old, to, new, vma and end >= at + min(old, new), end, keep), False
        )

    def brk(self, who, size, armed=False):
        """The heap ends ``size`` quarter pages behind its start."""
        pid = self.pid(who)
        space, heap, page = self.spaces[pid], self.starts[2], self.k.page_size
        start = self.address(heap)
        end = start + size * page // 4
        got = self.m.brk(pid, start, end)
        was = heap + -(-space.brk // 4)
        if size < 0:
            assert got == -EINVAL
            return
        self.same(got, space.set_brk(was, heap + -(-size // 4), lambda _: Page(RW)), False)
        if not got:
            space.brk = size

    # Accesses

    def fill(self, who, where, value, kind, armed=False):
        """Map memory, write to every second or third page and read another: what follows then matters."""
        self.mmap(who, where, RW, kind, True, False)
        stretch, offset, nr = where
        for i in range(0, nr, 2 + value % 2):
            for byte in (0, -1):  # two, for a copy that loses what the next write does not replace
                self.store(who, (stretch, offset + i, 1), byte, (value + i) % 255 + 1, armed)
        self.load(who, (stretch, offset + 1, 1), 0, armed)

    def touch(self, who, where, write, armed=False):
        """Access every page of a short range, and check the order of each folio that comes of it."""
        pid, (at, nr) = self.pid(who), self.place(where)
        for p in range(at, at + min(nr, 8)):
            wanted = None if armed or not write else self.expected_order(pid, p)
            pages = self.allocated()
            got = self.m.touch(pid, self.address(p), write)
            if armed and got == VM_FAULT_OOM:
                self.failed = True
                continue
            assert got == self.spaces[pid].access(p, write), hex(got)
            if armed:
                self.learn(pid, p & -16, 16)
            if wanted is not None and not got:
                order = self.order_of(pid, p)
                assert order == wanted, f"order {order} at page {p:#x}, expected {wanted}"
                assert self.allocated() == pages + (1 << order), "a folio was allocated in vain"

    def refault(self, who, where, armed=False):
        """Drop pages and write to them again: fresh memory where something was."""
        self.madvise(who, where, MADV_DONTNEED)
        self.touch(who, where, True, armed)

    def store(self, who, where, offset, value, armed=False):
        pid, (at, _) = self.pid(who), self.place(where)
        got = self.m.store(pid, self.address(at) + offset % self.k.page_size, value)
        if armed and got == VM_FAULT_OOM:
            return
        page = self.spaces[pid].pages.get(at)
        assert got == self.spaces[pid].access(at, True), hex(got)
        if armed:
            self.learn(pid, at & -16, 16)
        if not got:
            page.bytes()[offset % self.k.page_size] = value

    def load(self, who, where, offset, armed=False):
        pid, (at, _) = self.pid(who), self.place(where)
        self.load_page(pid, at, offset % self.k.page_size, armed)

    def load_page(self, pid, at, offset, armed=False):
        got = self.m.load(pid, self.address(at) + offset)
        if armed and got == -VM_FAULT_OOM:
            return
        error = self.spaces[pid].access(at, False)
        expected = -error if error else self.spaces[pid].pages[at].bytes().get(offset, 0)
        assert got == expected, f"page {at:#x} byte {offset}: {got}, the model says {expected}"

    # The order rule, straight from its one sentence

    def expected_order(self, pid, p):
        """Return the order that a first write to a page must get; None when it is no such write."""
        k, mm = self.k, self.mm(pid)
        vma = vma_lookup(k, mm, self.address(p))
        base = vma * VMA_RECORD
        pte = pte_offset_map(k, mm, self.address(p))
        if not vma or k.vma[base + layout.VMA_FILE] or (pte and k.phys[pte]):
            return None
        low, high = (k.vma[base + f] >> k.page_shift for f in (layout.VMA_START, layout.VMA_END))
        for order in range(max_anon_folio_order(k, vma), 1, -1):
            block = range(p & -(1 << order), (p & -(1 << order)) + (1 << order))
            if block[0] >= low and block[-1] < high and not any(map(self.entry_of(mm), block)):
                return order
        return 0

    def allocated(self):
        """Return how many pages were ever allocated for users."""
        tables = self.k.event[layout.EV_pt_page_alloc * layout.NR_ORDERS]
        return self.k.vmstat[layout.VM_pgalloc_movable] - tables

    def entry_of(self, mm):
        k = self.k

        def entry(p):
            pte = pte_offset_map(k, mm, self.address(p))
            return k.phys[pte] if pte else 0

        return entry

    def order_of(self, pid, p):
        k = self.k
        page = pte_pfn(k, self.entry_of(self.mm(pid))(p))
        head = k.page[page * PAGE_RECORD + layout.PAGE_HEAD]
        return k.page[head * PAGE_RECORD + layout.PAGE_ORDER]

    # Failures

    def arm(self, what, occasion):
        """Let the next call meet a failure: of an order's allocation, of a charge, or a lost race."""
        inject = self.inject
        if isinstance(what, int):
            inject.alloc = {what: {inject._allocs.get(what, 0) + occasion}}
        elif what == "charge":
            inject.charge = {inject._charges + occasion}
        elif what == "no memory":
            inject.alloc = {order: range(10**9) for order in range(layout.NR_ORDERS)}
        else:
            inject.populate = {inject._attempts + 1: occasion - 1}

    # The end

    def read_all(self):
        """Check every byte that was ever written, and that the rest of those pages is zero."""
        for pid, space in self.spaces.items():
            for p, page in list(space.pages.items()):
                for offset in {*page.bytes(), 0, self.k.page_size - 1}:
                    if page.prot:
                        self.load_page(pid, p, offset)
