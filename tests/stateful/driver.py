# SPDX-License-Identifier: GPL-2.0-only
"""Every call, made on a machine and on the model; answers, bytes and resident sets must agree."""

from array import array

from virtmm.mm import layout
from virtmm.mm.arena import MM_RECORD, PAGE_RECORD, VMA_RECORD
from virtmm.mm.fault_inject import FaultInjection
from virtmm.mm.pgtable import leaf_offset, pmd_offset, pte_pfn, pte_special
from virtmm.mm.vm_flags import (
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_FIXED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    PROT_READ,
    PROT_WRITE,
    VM_FAULT_OOM,
)
from virtmm.mm.vma import vma_lookup, vmas_in

from virtmm.accesses import Accesses
from virtmm.knobs import STATES
from virtmm.machine import CLONE_VM, Machine

from .model import FLAGS, File, Page, Space
from .order import expected_order
from .places import HUGE, STRETCHES

RW = PROT_READ | PROT_WRITE
FILE_PAGES = 12
ABOVE = ("use_zero_page", "shrink_underused", "khugepaged/max_ptes_none", "defrag")
DROPS = (MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_COLD, MADV_PAGEOUT)


class Driver:
    """
    A machine and the model of it.

    Attributes:
        spaces: process id -> its Space; after a vfork two processes have the same.
        failed: the last call met an injected failure.
        most: how many address spaces there ever were at once.
        tight: the machine is small: any call may find that memory is short.
        backed: pages have contents; else a byte is only touched.
    """

    steps = 0

    def __init__(self, config, settings=(), tight=False, policy=None):
        self.inject = FaultInjection()
        self.tight = tight
        self.m = Machine(config, settings, inject=self.inject, policy=policy)
        self.k = k = self.m.k
        pmd = k.pmd_shift - k.page_shift
        above = k.levels[-2][0] - k.page_shift
        half = 1 << pmd - 1
        low = (4 << pmd) - 128, (1 << above) - 16, (7 << pmd) + 5
        self.starts = (*low, (16 << pmd) - half, 3 << above)
        self.sizes = (*STRETCHES, 4 * half if pmd > 9 else 6 * half, 4 * half)
        self.unit = (1 << pmd) // 32
        self.mthp = k.config.policy == "mthp"
        self.exact = k.config.policy == "base"
        self.backed = k.config.phys_backing
        self.knobs = dict.fromkeys(self.m.sizes(), "never") | {"enabled": k.knobs.enabled}
        if self.mthp:
            self.knobs[self.m.sizes()[-1]] = "inherit"
        self.spaces = {}
        self.files = [
            File(FILE_PAGES, self.m.open(10 + i, FILE_PAGES << k.page_shift)) for i in (0, 1)
        ]
        self.next_pid = 1
        self.failed = False
        self.most = 1
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
        size = self.sizes[stretch]
        offset = self.pages(offset) % size
        self.exact = self.exact and stretch < HUGE
        return self.starts[stretch] + offset, max(1, min(self.pages(nr), size - offset))

    def pages(self, count):
        """Return a count of pages that may be given as (32nds of a PMD, pages more)."""
        return count if isinstance(count, int) else count[0] * self.unit + count[1]

    def address(self, page):
        return page << self.k.page_shift

    def mm(self, pid):
        return self.m._mm(pid)

    # How an answer is judged

    def step(self, name, *args):
        """Make one call; then nothing is left of the failures that were arranged for it."""
        inject = self.inject
        armed = bool(inject.alloc or inject.charge or inject.populate) or self.tight
        self.failed = False
        Driver.steps += 1
        getattr(self, name)(*args, **({"armed": True} if armed else {}))
        self.inject.alloc, self.inject.charge, self.inject.populate = {}, (), {}
        for pid in self.spaces:
            self.check_resident(pid)
        self.most = max(self.most, len(self.spaces))

    def same(self, got, expected, armed, *out_of_memory):
        """Check an answer; with failures arranged it may also be one of ``out_of_memory``."""
        if got != expected and armed and got in out_of_memory:
            self.failed = True
            return
        assert got == expected, f"the machine answers {got}, the model {expected}"

    def check_resident(self, pid):
        base = self.mm(pid) * MM_RECORD
        (least, most), (least_file, most_file) = self.spaces[pid].resident(not self.exact)
        anon, file = self.k.mm[base + layout.MM_ANONPAGES], self.k.mm[base + layout.MM_FILEPAGES]
        assert least <= anon <= (least if self.exact else most), f"{least} <= {anon} <= {most} anon"
        assert least_file <= file <= most_file, f"{least_file} <= {file} <= {most_file} file pages"

    def learn(self, pid, at, nr):
        """Take over which anonymous pages the machine maps, where a failed call leaves that open."""
        k, space = self.k, self.spaces[pid]
        for p in range(at, at + nr):
            entry, pfn, _ = self.leaf(pid, p)
            if p not in space.pages or not entry or pte_special(k, entry):
                continue
            page, head = space.pages[p], k.page[pfn * PAGE_RECORD + layout.PAGE_HEAD]
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
            assert self.spaces, "an empty machine has memory for a process"

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
        expected = space.mmap(at, nr, lambda i: Page(prot, shared, file, pgoff + i), fixed)
        self.same(got, expected, armed and populate and not expected, -ENOMEM)
        if not expected and populate:
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
        self.same(got, self.spaces[pid].mprotect(at, nr, prot, not armed), False)
        if armed:
            self.learn(pid, at, nr)

    def protect_twice(self, who, where, prot, armed=False):
        """Take rights away and give them back: entries must be none the wiser."""
        self.mprotect(who, where, prot, armed)
        self.mprotect(who, where, RW, armed)

    def madvise(self, who, where, advice, armed=False):
        pid, (at, nr) = self.pid(who), self.place(where)
        space = self.spaces[pid]
        got = self.m.madvise(pid, self.address(at), nr << self.k.page_shift, advice)
        if advice in FLAGS:
            self.same(got, space.advise(at, nr, advice), False)
        elif advice in DROPS:
            self.same(got, space.drop(at, nr, advice), False)
            if advice == MADV_PAGEOUT:
                for p in range(at, at + nr):
                    page = space.pages.get(p)
                    if page and page.lazy and not self.leaf(pid, p)[0]:
                        page.drop()
        elif advice == MADV_COLLAPSE:
            assert got in (0, -EINVAL, -ENOMEM)
            if not got:
                self.check_collapsed(pid, at, nr)
        else:
            assert advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
            if armed and got == -ENOMEM:
                self.learn(pid, at, nr)
                return
            self.same(got, space.populate(at, nr, advice == MADV_POPULATE_WRITE), False)
            if armed:
                self.learn(pid, at, nr)

    def check_collapsed(self, pid, at, nr):
        """Every whole PMD of the range has a huge entry, if only of the huge zero folio."""
        block = 1 << self.k.pmd_order
        for first in range(-(-at // block) * block, (at + nr) // block * block, block):
            assert self.leaf(pid, first)[2], f"{first:#x} is not collapsed"

    def lock(self, who, where, lock, armed=False):
        pid, (at, nr) = self.pid(who), self.place(where)
        call = self.m.mlock if lock else self.m.munlock
        got, space = call(pid, self.address(at), nr << self.k.page_shift), self.spaces[pid]
        expected = space.lock(at, nr, lock)
        if lock and armed:
            self.learn(pid, at, nr)
            if got == -ENOMEM:
                return
        if lock and not expected:
            expected = space.populate_locked(at, nr)
        self.same(got, expected, False)

    def knob(self, which, value, armed=False):
        """Write a knob: of a folio size, "pmd" of the largest, "enabled", or one of ABOVE."""
        names = [*self.knobs, *(ABOVE if self.mthp else ())]
        which = len(self.knobs) - 2 if which == "pmd" else which
        name = which if isinstance(which, str) else names[which % len(names)]
        if name == "khugepaged/max_ptes_none":  # fewer, and huge pages of zeroes are split
            self.m.set(name, str(((1 << self.k.pmd_order) - 1) * (value % 12) // 11))
        elif name == "defrag":
            self.m.set(name, ("always", "madvise", "never")[value % 3])
        elif name in ABOVE:
            self.m.set(name, str(value % 2))
        else:
            states = ("always", "madvise", "never") if name == "enabled" else STATES
            self.knobs[name] = states[value % len(states)]
            self.m.set(name, self.knobs[name])

    def mremap(self, who, source, target, new, keep, armed=False):
        """``target`` None: in place."""
        pid, (at, old) = self.pid(who), self.place(source)
        if target is None:
            to, new = at, self.place((source[0], source[1], new))[1]
        else:
            to, new = self.place((*target, new))
        keep = bool(keep and target is not None)
        if keep:
            new = self.place((*target, old))[1]
        k, mm, shift = self.k, self.mm(pid), self.k.page_shift
        vma = vma_lookup(k, mm, self.address(at))
        end = k.vma[vma * VMA_RECORD + layout.VMA_END] >> shift if vma else 0
        flags = (MREMAP_DONTUNMAP * keep) | (0 if target is None else MREMAP_FIXED)
        multi = k.config.mremap_multi
        parts = self.vmas(mm, at, old)
        got = self.m.mremap(
            pid, self.address(at), old << shift, self.address(to), new << shift, flags
        )
        space = self.spaces[pid]
        apart = to >= at + old or at >= to + new
        if to == at and flags:
            assert got == (
                -EFAULT if not multi and not vma and (not keep or old == new) else -EINVAL
            )
            return
        if apart and multi and old == new:
            expected = 0 if at in space.pages else -EFAULT
            if armed and got == -ENOMEM and not expected:
                self.move_parts(space, mm, parts, to - at, keep)
                return
            self.same(got, expected, False)
            if not got:
                space.move(at, old, to, keep)
            return
        if armed and got == -ENOMEM and to != at and vma:
            if new < old:
                space.munmap(at + new, old - new)
            space.munmap(to, new)
            return
        one_vma = vma and end >= at + min(old, new)
        self.same(got, space.mremap(at, old, to, new, one_vma, end, keep, not multi), False)
        if armed and not got:
            self.learn(pid, to, new)

    def vmas(self, mm, at, nr):
        """Return [first, end) in pages of each VMA's part of a range."""
        k, found = self.k, []
        for vma in vmas_in(k, mm, self.address(at), self.address(at + nr)):
            start, end = k.vma[vma * VMA_RECORD : vma * VMA_RECORD + 2].tolist()
            found.append((max(start >> k.page_shift, at), min(end >> k.page_shift, at + nr)))
        return found

    def move_parts(self, space, mm, parts, by, keep):
        """Of a move that ran out of memory: the first parts moved, the next one's target was unmapped."""
        for first, end in parts:
            moved = bool(self.vmas(mm, first + by, end - first))
            space.munmap(first + by, end - first)
            if not moved:
                return
            space.move(first, end - first, first + by, keep)

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
        pid, (at, nr) = self.pid(who), self.place(where)
        if where[0] >= HUGE:  # in bulk
            self.madvise(who, where, MADV_POPULATE_WRITE, armed)
        for i in range(0, nr, max(2 + value % 2, nr // 6)):
            for byte in (0, -1):  # two, for a copy that loses what the next write does not replace
                self.store_page(pid, at + i, byte, (value + i) % 255 + 1, armed)
        self.load_page(pid, at + min(1, nr - 1), 0, armed)

    def text(self, who, where, prot, shared, armed=False):
        """Map part of a file as ld.so maps a program, congruent to the file, and read some of it."""
        pid, (at, nr) = self.pid(who), self.place(where)
        self.mmap(who, where, prot, (0, at % 16, shared), True, False)
        for p in range(at, at + nr, max(7, nr // 8)):
            self.load_page(pid, p, 0, armed)

    def touch(self, who, where, write, armed=False):
        """Access every page of a short range, and check the order of each folio that comes of it."""
        pid, (at, nr) = self.pid(who), self.place(where)
        for p in range(at, at + min(nr, 8)):
            wanted = None if armed or not write else expected_order(self, pid, p)
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

    def batch(self, who, where, mix, armed=False):
        """
        Access pages by one call, some in another process; an access that cannot happen is passed over.

        ``mix``, 8 bits: the stride, a second process, which accesses are writes, and backwards or not.
        """
        at, nr = self.place(where)
        pages = range(at, at + nr, 1 + mix % 4 % 3)[:64]
        accesses = [
            (self.pid(who + (i // 3 & mix >> 2 & 1)), p, bool(mix >> 3 + i % 4 & 1))
            for i, p in enumerate(pages[::-1] if mix & 128 else pages)
        ]
        slots = sorted({pid for pid, _, _ in accesses})
        words = array("Q")
        for pid, p, write in accesses:
            words.extend((self.address(p), slots.index(pid) << 1 | write))
        batch = Accesses(memoryview(words), len(slots))
        for slot, pid in enumerate(slots):
            batch.tasks[slot] = self.m.task_record(pid)
        first, end = 0, len(accesses)
        while first < end:
            stop, error = self.m.touch_many(batch, first, end)
            for i in range(first, min(stop + 1, end)):
                pid, p, write = accesses[i]
                if armed and i == stop and error == VM_FAULT_OOM:
                    self.failed = True
                    continue
                assert (error if i == stop else 0) == self.spaces[pid].access(p, write), hex(error)
                if armed:
                    self.learn(pid, p & -16, 16)
            first = stop + 1

    def refault(self, who, where, hint=None, armed=False):
        """Drop pages and write to them again, perhaps after advice: fresh memory where something was."""
        for advice in (MADV_DONTNEED, *([hint] if hint else [])):
            self.madvise(who, where, advice)
        self.touch(who, where, True, armed)

    def reclaim(self, who, where, write, armed=False):
        """Let memory be dropped, perhaps write to some of it, and have it dropped."""
        self.madvise(who, where, MADV_FREE, armed)
        if write:
            self.store(who, where, 3, 3, armed)
        self.madvise(who, where, MADV_PAGEOUT, armed)

    def zeroes(self, who, where, armed=False):
        """Drop pages and read them: the zero page, or the huge one; then write to one."""
        self.madvise(who, where, MADV_DONTNEED, armed)
        self.touch(who, where, False, armed)
        stretch, offset, _ = where
        self.store(who, (stretch, offset, 1), 7, 7, armed)

    def cow(self, who, where, child_first, value, armed=False):
        """Fork, write on both sides or on the parent's, end the child and write again."""
        parent, (at, nr) = self.pid(who), self.place(where)
        self.fork(who, False, None, armed)
        if self.failed:
            return
        child = max(self.spaces)
        if child_first:
            self.store_page(child, at + value % nr, 0, value, armed)
        self.touch(sorted(self.spaces).index(parent), where, True, armed)
        self.exit(sorted(self.spaces).index(child))
        for page in (at, at + nr - 1):
            self.store_page(parent, page, -1, value, armed)

    def store(self, who, where, offset, value, armed=False):
        self.store_page(self.pid(who), self.place(where)[0], offset, value, armed)

    def store_page(self, pid, at, offset, value, armed=False):
        address = self.address(at) + offset % self.k.page_size
        got = self.m.store(pid, address, value) if self.backed else self.m.touch(pid, address, True)
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
        if not self.backed:
            self.touch_page(pid, at, armed)
            return
        got = self.m.load(pid, self.address(at) + offset)
        if armed and got == -VM_FAULT_OOM:
            return
        error = self.spaces[pid].access(at, False)
        expected = -error if error else self.spaces[pid].pages[at].bytes().get(offset, 0)
        assert got == expected, f"page {at:#x} byte {offset}: {got}, the model says {expected}"

    def touch_page(self, pid, at, armed):
        got = self.m.touch(pid, self.address(at), False)
        if not (armed and got == VM_FAULT_OOM):
            assert got == self.spaces[pid].access(at, False), hex(got)

    # What folios there are

    def allocated(self):
        """Return how many pages were ever allocated for users."""
        tables = self.k.event[layout.EV_pt_page_alloc * layout.NR_ORDERS]
        return self.k.vmstat[layout.VM_pgalloc_movable] - tables

    def leaf(self, pid, p):
        """Return (entry, pfn of the page, is the entry huge) of what maps a page; (0, 0, False)."""
        k, mm = self.k, self.mm(pid)
        address = self.address(p)
        place = leaf_offset(k, mm, address)
        entry = k.phys[place] if place else 0
        if not entry:
            return 0, 0, False
        huge = place == pmd_offset(k, mm, address)
        return entry, pte_pfn(k, entry) + (p & (1 << k.pmd_order) - 1 if huge else 0), huge

    def order_of(self, pid, p):
        k = self.k
        head = k.page[self.leaf(pid, p)[1] * PAGE_RECORD + layout.PAGE_HEAD]
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
        elif not self.tight:  # the other thread has memory
            inject.populate = {inject._attempts + 1: occasion - 1}

    # The end

    def read_all(self):
        """Check every byte that was ever written, and that the rest of those pages is zero."""
        for pid, space in self.spaces.items():
            for p, page in list(space.pages.items()):
                for offset in {*page.bytes(), 0, self.k.page_size - 1}:
                    if page.prot:
                        self.load_page(pid, p, offset, self.tight)
