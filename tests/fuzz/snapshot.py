# SPDX-License-Identifier: GPL-2.0-only
"""
Machines for the fuzzer: boot one, let programs use it, and write its arena as a file that C maps.

In the file each array ends at the end of a page, and pages that nothing is in follow it: mapped, a step
behind an array is a fault.
"""

import ctypes
from dataclasses import dataclass

from virtmm.mm import layout
from virtmm.mm.vm_flags import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MAP_SHARED,
)

from virtmm.kconfig import resolve
from virtmm.machine import CLONE_VM, Machine

PAGE = 4096
_GUARD = 16 * PAGE
_ENTRY = 8  # bytes of /proc/self/pagemap for each page; the two top bits: in memory, swapped out
RW, RO, RX = 3, 1, 5


@dataclass(frozen=True)
class Kernel:
    """A kernel to fuzz: its geometry and configuration are compiled in."""

    arch: str
    defconfig: str
    fragments: tuple[str, ...] = ()
    memory_mb: int = 16
    backed: bool = True

    def __str__(self):
        return "-".join((self.arch, self.defconfig, *self.fragments))

    def config(self):
        """Return the configuration of its machines, which need no core: they have no loops in C."""
        sets = [f"MEMORY_MB={self.memory_mb}", f"PHYS_BACKING={'y' if self.backed else 'n'}"]
        return resolve(self.arch, self.defconfig, self.fragments, [*sets, "C_RANGES=n"])


#: Large and small tables, contiguous entries, huge pages that a test can afford, contents and none.
KERNELS = [
    Kernel("x86", "linux-7.3"),
    Kernel("arm64", "contpte", ("contpte-fold",), backed=False),
    Kernel("arm64", "anonfolio"),
    Kernel("arm64", "linux-7.3", ("64k",), memory_mb=1024, backed=False),
    Kernel("powerpc", "linux-7.3", memory_mb=32),
    Kernel("m68k", "baseline_4k"),
]


def use(m, busy):
    """Start processes and map memory; ``busy``: also use it in every way, and fork."""
    page, pmd = m.page_size, m.k.pmd_size
    block = min(pmd, 512 * page)
    base = 4 * pmd - 5 * page
    file = m.open(1, 90 * page)
    for pid in (1, 2):
        m.spawn(pid)
        at = private_file = base
        for prot, flags, number, size in (
            (RW, 0, 0, 2 * block + 20 * page),
            (RO, 0, 0, 20 * page),
            (RW, 0, file, 40 * page),
            (RW, MAP_SHARED, file, 30 * page),
            (RX, 0, file, 40 * page),
            (RW, MAP_SHARED, 0, 16 * page),
        ):
            assert m.mmap(pid, at, size, prot, flags, number, 3 if number else 0) == 0
            private_file = at if number and not flags and prot == RW else private_file
            at += size + 2 * page
        m.mmap(pid, 8 * pmd, 2 * pmd)
        m.madvise(pid, 8 * pmd, 2 * pmd, MADV_HUGEPAGE)
        m.mmap(pid, 12 * pmd + page, 40 * page)
        m.madvise(pid, 12 * pmd + page, 40 * page, MADV_NOHUGEPAGE)
        m.touch(pid, base, True)
        m.touch(pid, private_file, True)
    if not busy:
        return
    for i in range(0, 150, 3):
        m.touch(1, base + i * page, i % 2 == 0)
    m.touch(1, 8 * pmd + page, True)
    m.touch(1, 12 * pmd + 3 * page, True)
    m.madvise(1, base + 30 * page, 9 * page, MADV_DONTNEED)
    m.mprotect(1, base + 50 * page, 10 * page, RO)
    m.fork(1, 3)
    m.fork(2, 4, CLONE_VM)
    for i in range(0, 60, 2):
        m.touch(3, base + i * page, i % 4 == 0)
    m.munmap(3, base + 70 * page, 7 * page)
    m.madvise(3, base + 90 * page, 8 * page, MADV_COLD)
    m.madvise(1, base + 100 * page, 8 * page, MADV_FREE)
    m.mremap(1, base + 120 * page, 5 * page, 20 * pmd, 9 * page, 3)
    m.fork(3, 5)
    m.exit(5)


def fill(m):
    """Take all memory but a few pages."""
    k, at = m.k, 40 * m.k.pmd_size
    size = k.config.nr_pages * m.page_size
    m.mmap(1, at, size)
    while k.zone[layout.ZONE_NR_FREE] > k.zone[layout.ZONE_WMARK_MIN] + 12:
        if m.touch(1, at, True):
            break
        at += m.page_size


def leave_few_records(m):
    """Use up links that were given back, and let tables end soon; C alone looks at these numbers."""
    k, at = m.k, 40 * m.k.pmd_size
    assert m.mmap(1, at, 200 * m.page_size) == m.touch(1, at, True) == 0
    while k.zone[layout.ZONE_SLAB + layout.SLAB_AVC]:
        at += 2 * m.page_size
        assert m.mprotect(1, at, m.page_size, RO) == 0
    for name, slab, more in (
        ("VMAS", layout.SLAB_VMA, 9),
        ("AVCS", layout.SLAB_AVC, 1),
        ("ANON_VMAS", layout.SLAB_ANON_VMA, 1),
        ("FILES", layout.SLAB_FILE, 2),
    ):
        used = k.zone[layout.ZONE_SLAB + slab + 1]
        k.fault[getattr(layout, f"FAULT_NR_{name}")] = used + 1 + more
    k.fault[layout.FAULT_NR_CACHE] = k.zone[layout.ZONE_CACHE_END] + 100
    k.fault[layout.FAULT_NR_VMA_LOGS] = k.zone[layout.ZONE_VMA_LOG] + 3


def machines(kernel):
    """Yield (machine, tables all but full?): hardly used, busy, large folios, short of memory, of records."""
    for busy, always, full, few in (
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (1, 1, 0, 0),
        (1, 0, 1, 0),
        (1, 1, 0, 1),
    ):
        with Machine(kernel.config()) as m:
            if always:
                m.set("fault_around_bytes", str(m.page_size))
                for size in m.sizes():
                    m.set(size, "always")
            use(m, busy)
            if full:
                fill(m)
            if few:
                leave_few_records(m)
            yield m, few


def spans(k):
    """Return (offset of its first page, bytes of its pages, offset of its start) of each array."""
    found, at = [], 0
    for a in layout.ARRAYS:
        size = getattr(k, a.name).nbytes
        pages = -(-size // PAGE) * PAGE
        found.append((at, pages, at + pages - size))
        at += pages + _GUARD
    return found, at


def used_pages(address, size):
    """Yield the offsets of the pages of some memory of this process that anything was written to."""
    first, end = address // PAGE, -(-(address + size) // PAGE)
    step = 1 << 16
    with open("/proc/self/pagemap", "rb", buffering=0) as f:  # noqa: PTH123
        for at in range(first, end, step):
            f.seek(at * _ENTRY)
            tops = f.read(min(step, end - at) * _ENTRY)[_ENTRY - 1 :: _ENTRY]
            if tops.count(0) == len(tops):
                continue
            for i, top in enumerate(tops):
                if top & 0xC0:
                    yield (at + i) * PAGE - address


def write(k, path):
    """Write an arena as a sparse file."""
    places, end = spans(k)
    with path.open("wb") as f:
        f.truncate(end)
        for a, (_, _, start) in zip(layout.ARRAYS, places, strict=True):
            view = getattr(k, a.name).cast("B")
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
            for offset in used_pages(address, len(view)):
                part = view[max(offset, 0) : offset + PAGE]
                if any(part):
                    f.seek(start + max(offset, 0))
                    f.write(part)


def snapshot(kernel, folder):
    """Write all machines of a kernel and snapshot.h, which says what is where in them."""
    images = []
    for m, few in machines(kernel):
        k, path = m.k, folder / f"arena.{len(images)}"
        write(k, path)
        tasks = [m.task_record(p.pid) for p in m.processes() if m.has(p.pid)]
        images.append(
            f'{{"{path}", {k.config.nr_pages}, {few}, {len(tasks)}, {{{", ".join(map(str, tasks))}}}}},'
        )
        places, end = spans(k)
    rows = [f"{{{page:#x}, {pages:#x}, {start:#x}}}," for page, pages, start in places]
    words = [f"#define WORDS_{a.name} {a.words}" for a in layout.ARRAYS if a.count == "one"]
    text = f"""\
/* Generated by tests/fuzz/snapshot.py: arenas of {kernel}. */
{chr(10).join(words)}
#define NR_PAGES {k.config.nr_pages}
#define ARENA_BYTES {end:#x}
#define NR_SPANS {len(rows)}
#define NR_IMAGES {len(images)}
/* Of each array: its first page, the bytes of its pages, its start. */
static const struct {{ size_t page, pages, start; }} spans[] __attribute__((unused)) = {{
{chr(10).join(rows)}
}};
struct image {{ const char *file; u64 nr_pages; int few_records; u64 nr_tasks; u64 tasks[8]; }};
static const struct image images[] __attribute__((unused)) = {{
{chr(10).join(images)}
}};
"""
    (folder / "snapshot.h").write_text(text)
