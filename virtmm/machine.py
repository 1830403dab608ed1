# SPDX-License-Identifier: GPL-2.0-only
"""
A running machine: processes make memory calls and touch memory, counters say what it cost.

Calls take process ids and addresses in bytes and return 0 or a negative errno, as the kernel's system
calls do; ``touch`` returns VM_FAULT_* bits. Numbers of flags and advice are Linux's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtmm import boot as boot_stage
from virtmm.knobs import KnobSet
from virtmm.mm import filemap, fork, layout, mmap, mprotect, mremap
from virtmm.mm.arena import MM_RECORD, PAGE_RECORD, TASK_RECORD
from virtmm.mm.contpte import pte_cont
from virtmm.mm.debug_vm import validate
from virtmm.mm.fast_fault import update_knobs
from virtmm.mm.fault import access, fault_in
from virtmm.mm.folio import update_hiwater_rss
from virtmm.mm.layout import NR_ORDERS
from virtmm.mm.madvise import do_madvise
from virtmm.mm.mlock import do_mlock
from virtmm.mm.pgtable import leaf_offset, pmd_offset, pte_pfn, pte_special, walk_page_table
from virtmm.mm.refused import REASONS, refused_mappings
from virtmm.mm.rmap import page_mapcount
from virtmm.mm.slab import slab_alloc, slab_free
from virtmm.mm.tlb import tlb_reach
from virtmm.mm.vm_flags import MAP_LOCKED, MAP_POPULATE, VM_FAULT_OOM, VM_READ, VM_WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from virtmm.accesses import Accesses
    from virtmm.kconfig import ResolvedConfig
    from virtmm.mm.fault_inject import FaultInjection
    from virtmm.mm.refused import RefusedMapping
    from virtmm.policy import Policy

CLONE_VM = 0x100
ENOMEM = 12
# With DEBUG_VM a touch is followed by the validators this often; every other call always is.
_VALIDATE_TOUCHES = 256


class MachineError(Exception):
    """A call names a process that does not exist, or one that exists already."""


class Process(NamedTuple):
    """What a process cost: pages in base pages, folios it allocated by order."""

    pid: int
    minflt: int
    maxrss: int
    folios: dict[int, int]


class MappedPage(NamedTuple):
    """
    A page that a process maps, as /proc shows it.

    Attributes:
        folio: number of the folio (its first pfn); 0 for the zero page.
        offset: of the page in the folio, in pages.
        exclusive: pagemap's bit 56.
        cont: the entry carries the contiguous bit.
    """

    address: int
    folio: int
    offset: int
    order: int
    mapcount: int
    exclusive: bool
    cont: bool
    zero: bool


class Machine:
    """
    A booted virtual kernel.

    Attributes:
        config: what it was built from.
        k: the arena; read it freely, change it only through the calls.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        settings: Sequence[str] = (),
        *,
        arch_dir: Path | None = None,
        inject: FaultInjection | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.config = config
        self._booted = boot_stage.boot(
            config, settings, arch_dir=arch_dir, inject=inject, policy=policy
        )
        self.k = self._booted.arena
        self._knobs = KnobSet.of(config, self.k.pmd_order)
        core = self._booted.core
        self.core_hash = core.hash if core else "python"
        self.page_size = self.k.page_size
        self.task_size = self.k.task_size
        self.uname_machine = self.k.arch.machine
        self._tasks: dict[int, int] = {}  # pid -> record; only an index of k.task
        self._ended: list[Process] = []
        self._touches = 0
        self._fast = self._booted.fast
        #: touch_many() is served in C, so that collecting accesses for it pays.
        self.fast = self._fast is not None
        self._debug = self.k.config.debug_vm

    def close(self) -> None:
        """Give the machine's memory back to the host."""
        self._booted.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Processes

    def spawn(self, pid: int) -> int:
        """Start a process with an empty address space, that nobody forked; 0 or -ENOMEM."""
        mm = fork.mm_alloc(self.k)
        return self._new_task(pid, mm) if mm else -ENOMEM

    def _new_task(self, pid: int, mm: int) -> int:
        if pid in self._tasks:
            raise MachineError(f"process {pid} exists already")
        task = slab_alloc(self.k, layout.SLAB_TASK, self.k.task, TASK_RECORD)
        if not task:
            fork.mmput(self.k, mm)
            return -ENOMEM
        self.k.task[task * TASK_RECORD + layout.TASK_PID] = pid
        self.k.task[task * TASK_RECORD + layout.TASK_MM] = mm
        self._tasks[pid] = task
        return self._done(0)

    def fork(self, pid: int, child: int, flags: int = 0) -> int:
        """Fork a process; with CLONE_VM the child borrows the address space (vfork). 0 or -ENOMEM."""
        k, old = self.k, self._mm(pid)
        if child in self._tasks:
            raise MachineError(f"process {child} exists already")
        if flags & CLONE_VM:
            self._count(layout.EV_vfork)
            k.mm[old * MM_RECORD + layout.MM_USERS] += 1
            return self._new_task(child, old)
        self._count(layout.EV_fork)
        mm = fork.dup_mm(k, old)
        return self._new_task(child, mm) if mm else self._done(-ENOMEM)

    def exec(self, pid: int) -> int:
        """Start another program: the process gets an empty address space. 0 or -ENOMEM."""
        k, old = self.k, self._mm(pid)
        self._count(layout.EV_exec)
        mm = fork.mm_alloc(k)
        if not mm:
            return -ENOMEM
        self._update_maxrss(k.current, old)
        k.task[k.current * TASK_RECORD + layout.TASK_MM] = mm
        self._leave(old)
        k.task[k.current * TASK_RECORD + layout.TASK_EXECS] += 1
        return self._done(0)

    def exit(self, pid: int) -> None:
        """End a process."""
        k, mm = self.k, self._mm(pid)
        self._count(layout.EV_exit)
        self._update_maxrss(k.current, mm)
        self._leave(mm)
        task = self._tasks.pop(pid)
        self._ended.append(self._process(task))
        slab_free(k, layout.SLAB_TASK, k.task, TASK_RECORD, task)
        k.current = 0
        self._done(0)

    def _leave(self, mm: int) -> None:
        """Drop a user of an address space; the last one's leaving is when its tables are looked at."""
        if self.k.mm[mm * MM_RECORD + layout.MM_USERS] == 1:
            tlb_reach(self.k, mm, layout.TLB_ENDED)
        fork.mmput(self.k, mm)

    def current_pid(self) -> int:
        """Return the process that made the last call."""
        return self.k.task[self.k.current * TASK_RECORD + layout.TASK_PID]

    def has(self, pid: int) -> bool:
        """Return whether the process lives."""
        return pid in self._tasks

    # Memory calls

    def open(self, inode: int, size: int) -> int:
        """
        Return a file number for mmap(); 0 when the machine has no place for another file of that size.

        Args:
            size: in bytes.
        """
        return filemap.file_open(self.k, inode, -(-size // self.page_size))

    def mmap(
        self,
        pid: int,
        address: int,
        length: int,
        prot: int = VM_READ | VM_WRITE,
        flags: int = 0,
        file: int = 0,
        pgoff: int = 0,
        *,
        by_exec: bool = False,
    ) -> int:
        """
        Map memory at a given address; 0 or a negative errno.

        A file is at least as long as what is mapped of it, or the page cache has no place for that: -ENOMEM.

        Args:
            pgoff: offset in the file, in the machine's pages.
            by_exec: the kernel maps it while it starts a program: no call of its own.
        """
        k, mm = self.k, self._mm(pid)
        before = k.mm[mm * MM_RECORD + layout.MM_MAP_COUNT]
        if file and not filemap.file_extend(k, file, pgoff + -(-length // k.page_size)):
            error = -ENOMEM
        else:
            error = mmap.do_mmap(k, mm, address, length, prot, flags, file, pgoff)
        if not by_exec:
            self._count(layout.EV_mmap_file if file else layout.EV_mmap)
        merged = not file and k.mm[mm * MM_RECORD + layout.MM_MAP_COUNT] <= before
        if not error and merged and not by_exec:
            self._count(layout.EV_mmap_merge)
        if not error and flags & (MAP_POPULATE | MAP_LOCKED):
            # The kernel maps what it can and says nothing; that memory ran out must not go unseen.
            populated = fault_in(k, mm, address, address + length, bool(prot & VM_WRITE))
            error = populated if populated == -ENOMEM else 0
        return self._done(error)

    def munmap(self, pid: int, address: int, length: int) -> int:
        """Unmap memory. 0 or a negative errno."""
        mm = self._mm(pid)
        self._count(layout.EV_munmap)
        return self._done(mmap.do_munmap(self.k, mm, address, length))

    def mremap(
        self, pid: int, address: int, old_len: int, to: int, new_len: int, flags: int = 0
    ) -> int:
        """Resize a mapping, at ``to`` (its own address: in place). 0 or a negative errno."""
        mm = self._mm(pid)
        self._count(layout.EV_mremap)
        return self._done(mremap.do_mremap(self.k, mm, address, old_len, to, new_len, flags))

    def mprotect(self, pid: int, address: int, length: int, prot: int) -> int:
        """Change protection. 0 or a negative errno."""
        mm = self._mm(pid)
        self._count(layout.EV_mprotect)
        return self._done(mprotect.do_mprotect(self.k, mm, address, length, prot))

    def madvise(self, pid: int, address: int, length: int, advice: int) -> int:
        """Give advice. 0 or a negative errno."""
        mm = self._mm(pid)
        self._count(layout.EV_madvise)
        return self._done(do_madvise(self.k, mm, address, length, advice))

    def mlock(self, pid: int, address: int, length: int) -> int:
        """Lock memory and populate it. 0 or a negative errno."""
        mm = self._mm(pid)
        return self._done(do_mlock(self.k, mm, address, length, lock=True))

    def munlock(self, pid: int, address: int, length: int) -> int:
        """Unlock memory. 0 or a negative errno."""
        mm = self._mm(pid)
        return self._done(do_mlock(self.k, mm, address, length, lock=False))

    def set(self, knob: str, value: str) -> None:
        """Write a run-time knob (knobs.py); ConfigError when there is none, or it takes other values."""
        self._knobs.set(self.k.knobs, knob, value)
        update_knobs(self.k)

    def sizes(self) -> list[str]:
        """Return the knobs of folio sizes, smallest first: ``16kB`` …; empty where the policy has none."""
        return list(self._knobs.sizes())

    def brk(self, pid: int, start: int, end: int) -> int:
        """Make [start, end) the heap. 0 or a negative errno."""
        mm = self._mm(pid)
        self._count(layout.EV_brk)
        return self._done(mmap.do_brk(self.k, mm, start, end, VM_READ | VM_WRITE))

    def touch(self, pid: int, address: int, write: bool) -> int:
        """Read or write one byte: 0, or the VM_FAULT_* bits that kept it from happening."""
        task = self._tasks.get(pid)
        if task is None:
            raise MachineError(f"no process {pid}")
        k = self.k
        k.current = task
        fast = self._fast
        if fast and not k.injecting and fast.touch(task, address, write):
            return 0
        return self._touch(task, address, write)

    def _touch(self, task: int, address: int, write: bool) -> int:
        k = self.k
        error = access(k, k.task[task * TASK_RECORD + layout.TASK_MM], address, write)
        if self._debug:
            self._touches += 1
            if not self._touches % _VALIDATE_TOUCHES:
                validate(k)
        return error

    def task_record(self, pid: int) -> int:
        """Return the record that touch_many() knows a living process by; 0 = there is none."""
        return self._tasks.get(pid, 0)

    def touch_many(self, accesses: Accesses, first: int, end: int) -> tuple[int, int]:
        """
        Read or write a byte each, as touch() does, until an access cannot happen or is not to be done.

        Memory calls among them are made where C serves them, and fails none; any other is not to be done.

        Args:
            first: access to begin with; end: the one behind the last.

        Returns:
            (number of the access that did not happen, its VM_FAULT_* bits, 0 if it was not tried), or
            (end, 0).
        """
        k, fast, words, tasks = self.k, self._fast, accesses.words, accesses.tasks
        if k.injecting:
            fast = None
        at = first
        while at < end:
            if fast:
                at = fast.touch_many(accesses, at, end)
                if at == end:
                    break
            task = tasks[words[2 * at + 1] >> 1]
            if not task:
                return at, 0
            k.current = task
            error = self._touch(task, words[2 * at], bool(words[2 * at + 1] & 1))
            if error:
                return at, error
            at += 1
        if end > first:
            k.current = accesses.task(end - 1)
        return end, 0

    def move_many(self, accesses: Accesses, first: int, end: int) -> int:
        """
        Replace addresses by those that the layouts of ``accesses`` give them.

        Returns:
            The first access from ``first`` on whose address lies in no range, or ``end``; where
            accesses are not served in C, ``first``.
        """
        return self._fast.move_many(accesses, first, end) if self._fast else first

    def _mm(self, pid: int) -> int:
        """Make a process current and return its address space."""
        task = self._tasks.get(pid)
        if task is None:
            raise MachineError(f"no process {pid}")
        self.k.current = task
        return self.k.task[task * TASK_RECORD + layout.TASK_MM]

    def _count(self, event: int) -> None:
        self.k.event[event * NR_ORDERS] += 1

    def _done(self, result: int) -> int:
        if self._debug:
            validate(self.k)
        return result

    def _update_maxrss(self, task: int, mm: int) -> None:
        update_hiwater_rss(self.k, mm)
        base = task * TASK_RECORD + layout.TASK_MAXRSS
        most = self.k.mm[mm * MM_RECORD + layout.MM_HIWATER_RSS]
        self.k.task[base] = max(self.k.task[base], most)

    # Data, with PHYS_BACKING

    def store(self, pid: int, address: int, value: int) -> int:
        """Write one byte, as touch() does, and keep it; needs CONFIG_PHYS_BACKING."""
        error = self.touch(pid, address, True)
        if not error:
            self._bytes()[self._physical(pid, address)] = value
        return error

    def load(self, pid: int, address: int) -> int:
        """Read one byte, as touch() does; a VM_FAULT_* error comes back negative."""
        error = self.touch(pid, address, False)
        return -error if error else self._bytes()[self._physical(pid, address)]

    def _bytes(self) -> memoryview:
        if not self.k.config.phys_backing:
            raise MachineError("this kernel keeps no data; set PHYS_BACKING=y")
        return self.k.phys.cast("B")

    def _physical(self, pid: int, address: int) -> int:
        k = self.k
        place = leaf_offset(k, self._mm(pid), address)
        huge = place == pmd_offset(k, self._mm(pid), address)
        size = k.pmd_size if huge else k.page_size
        return (pte_pfn(k, k.phys[place]) << k.page_shift) + (address & size - 1)

    # What it cost

    def digest(self) -> str:
        """Return a hash of the machine's whole state."""
        return boot_stage.digest(self.k)

    def processes(self) -> list[Process]:
        """Return every process that ever ran, ended ones first, in order of their end."""
        alive = []
        for task in self._tasks.values():
            self._update_maxrss(task, self.k.task[task * TASK_RECORD + layout.TASK_MM])
            alive.append(self._process(task))
        return [*self._ended, *alive]

    def _process(self, task: int) -> Process:
        base = task * TASK_RECORD
        record = self.k.task[base : base + TASK_RECORD].tolist()
        folios = {o: record[layout.TASK_FOLIOS + o] for o in range(NR_ORDERS)}
        return Process(
            record[layout.TASK_PID],
            record[layout.TASK_MINFLT],
            record[layout.TASK_MAXRSS],
            {o: n for o, n in folios.items() if n},
        )

    def events(self) -> dict[str, int | dict[str, int]]:
        """Return the work counters; those kept by folio order as {order: count}, zeroes left out."""
        found: dict[str, int | dict[str, int]] = {}
        for number, (name, by_order) in enumerate(layout.EVENTS):
            counts = self.k.event[number * NR_ORDERS : (number + 1) * NR_ORDERS].tolist()
            found[name] = {str(o): n for o, n in enumerate(counts) if n} if by_order else counts[0]
        return found

    def vmstat(self) -> dict[str, int]:
        """Return the counters of /proc/vmstat that the machine keeps."""
        return dict(zip(layout.VMSTATS, self.k.vmstat.tolist(), strict=False))

    def work(self) -> dict[str, int]:
        """Return how often each operation of WORK (csrc/arena.def) was done."""
        return dict(zip(layout.WORKS, self.k.work.tolist(), strict=False))

    def tlb(self) -> dict[str, dict[str, int]]:
        """
        Return the TLB reach of ``data`` and ``text`` (mm/tlb.py), of all address spaces there ever were.

        Those that ended count as they were at their end, the others as they are. ``bytes`` are what is
        mapped, ``cont_bytes`` the part in contiguous blocks; ``plain``, ``hpa``, ``cont`` and ``best``
        are entries.
        """
        k = self.k
        counts = k.tlb
        for i in range(layout.TLB_ALIVE, len(counts)):
            counts[i] = 0
        alive = (k.task[task * TASK_RECORD + layout.TASK_MM] for task in self._tasks.values())
        for mm in dict.fromkeys(alive):
            tlb_reach(k, mm, layout.TLB_ALIVE)
        found = {}
        for name, part in (("data", layout.TLB_DATA), ("text", layout.TLB_TEXT)):
            ended, in_use = layout.TLB_ENDED + part, layout.TLB_ALIVE + part
            sums = [counts[ended + i] + counts[in_use + i] for i in range(6)]
            found[name] = {
                "bytes": sums[layout.TLB_PAGES] * k.page_size,
                "cont_bytes": sums[layout.TLB_CONT_PAGES] * k.page_size,
                "plain": sums[layout.TLB_PLAIN],
                "hpa": sums[layout.TLB_HPA],
                "cont": sums[layout.TLB_CONT],
                "best": sums[layout.TLB_BEST],
            }
        return found

    def hugepages(self) -> dict[str, dict[str, int]]:
        """Return the hugepages-<N>kB/stats counters that are not zero, by size."""
        found: dict[str, dict[str, int]] = {}
        for order in range(1, NR_ORDERS):
            counts = {
                name: self.k.mthp_stat[number * NR_ORDERS + order]
                for number, name in enumerate(layout.MTHP_STATS)
            }
            counts = {name: n for name, n in counts.items() if n}
            if counts:
                found[f"hugepages-{self.page_size << order >> 10}kB"] = counts
        return found

    def refusals(self) -> dict[str, dict[str, int]]:
        """Return reason -> {order: write faults on fresh memory that were refused it}, zeroes left out."""
        found = {}
        for number, reason in enumerate(REASONS):
            counts = self.k.refused[number * NR_ORDERS : (number + 1) * NR_ORDERS].tolist()
            found[reason] = {str(o): n for o, n in enumerate(counts) if o and n}
        return found

    def refused_mappings(self) -> list[RefusedMapping]:
        """Return the mappings, there or gone, that were refused something, the most refused first."""
        return refused_mappings(self.k)

    def memory(self) -> dict[str, int]:
        """Return the memory figures in bytes: the peak of all memory, its parts, and page tables."""
        zone = self.k.zone
        fields = {
            "peak": layout.ZONE_PEAK,
            "peak_anon": layout.ZONE_PEAK_ANON,
            "peak_page_cache": layout.ZONE_PEAK_CACHE,
            "peak_page_tables": layout.ZONE_PEAK_TABLE,
            "max_page_tables": layout.ZONE_MAX_TABLE,
            "anon": layout.ZONE_ANON,
            "page_cache": layout.ZONE_CACHE,
            "page_tables": layout.ZONE_TABLE,
        }
        return {name: zone[at] * self.page_size for name, at in fields.items()}

    def minflt(self, pid: int) -> int:
        """Return the minor faults of a living process."""
        self._mm(pid)
        return self.k.task[self.k.current * TASK_RECORD + layout.TASK_MINFLT]

    def mapped_pages(self, pid: int, start: int, end: int) -> Iterator[MappedPage]:
        """Yield what a process maps in [start, end), ascending; huge entries page by page."""
        k = self.k
        huge_zero = k.zone[layout.ZONE_HUGE_ZERO]
        for address, entry, huge in walk_page_table(k, self._mm(pid), start, end):
            first = pte_pfn(k, entry)
            size = k.pmd_size if huge else k.page_size
            low, high = max(address, start), min(address + size, end)
            offsets = range(low - address >> k.page_shift, high - address >> k.page_shift)
            if pte_special(k, entry):
                order = k.pmd_order if huge and first == huge_zero else 0
                for i in offsets:
                    at = address + (i << k.page_shift)
                    yield MappedPage(at, 0, 0, order, 0, False, False, True)
                continue
            folio = k.page[first * PAGE_RECORD + layout.PAGE_HEAD]
            order = k.page[folio * PAGE_RECORD + layout.PAGE_ORDER]
            head_count = page_mapcount(k, folio, first)
            cont = not huge and pte_cont(k, entry)
            for i in offsets:
                count = page_mapcount(k, folio, first + i)
                exclusive = (head_count if k.config.pagemap_pmd_head else count) == 1
                at = address + (i << k.page_shift)
                yield MappedPage(at, folio, first + i - folio, order, count, exclusive, cont, False)

    def rss(self, pid: int) -> int:
        """Return the resident set of a process in bytes."""
        base = self._mm(pid) * MM_RECORD
        pages = self.k.mm[base + layout.MM_ANONPAGES] + self.k.mm[base + layout.MM_FILEPAGES]
        return pages * self.page_size


def is_oom(error: int) -> bool:
    """Return whether touch() failed for want of memory."""
    return bool(error & VM_FAULT_OOM)
