# SPDX-License-Identifier: GPL-2.0-only
"""
What a sanitizer watches: every loop of the core at the very end of arrays that are exactly as long.

``python -m tests.csrc.workload``. With ``--break`` it makes one wrong call, which must end the process:
so one knows that the sanitizer is there.
"""

import os
import sys

from virtmm.arch import load_arch
from virtmm.mm import layout
from virtmm.mm.arena import PAGE_RECORD

from virtmm import kbuild
from virtmm.boot import CoreRanges
from virtmm.kconfig import resolve
from virtmm.machine import Machine

PAGES = 1024
TABLE_WORDS = 512


class Exact:
    """A core with arrays of its own on the heap, each exactly as long as PAGES pages need."""

    def __init__(self, arch, defconfig):
        config = resolve(arch, defconfig, sets=["MEMORY_MB=64"])
        core = kbuild.load_core(config, load_arch(arch))
        self.ffi, self.lib, self.bits = core.ffi, core.lib, load_arch(arch).pte
        self.vk = self.ffi.new("struct vk *")
        sizes = {"page": PAGES * PAGE_RECORD, "phys": PAGES * TABLE_WORDS}
        self.arrays = {}
        for a in layout.ARRAYS:
            words = sizes.get(a.name) or (1024 if a.count == "one" else 64)
            self.arrays[a.name] = self.ffi.new(f"uint{a.bits}_t[]", words)
            setattr(self.vk, a.name, self.arrays[a.name])
        self.ops = CoreRanges(self.lib, self.vk)


def loops(x):
    """Call every loop with its last element at the end of its array."""
    ops, end = x.ops, PAGES * TABLE_WORDS
    for nr in (1, 7, 8, 9, 15, 16, 17, 512, 8192):
        assert ops.check_ptes_none(end - nr, nr) == nr
        ops.set_ptes(end - nr, x.bits.user | 1 << 20, nr)
        assert ops.folio_pte_batch(end - nr, 0, nr) == nr
        ops.tlb_reach_ptes(end - nr, nr, 0, 0, layout.TLB_ALIVE + layout.TLB_TEXT)
        ops.modify_ptes(end - nr, (1 << 64) - 1, 0, nr)
        ops.clear_ptes(end - nr, nr)
    for order in (0, 2, 3, 4, 9):
        nr, first = 1 << order, PAGES - (1 << order)
        ops.prep_compound_page(first, order, layout.PG_anon)
        ops.folio_add_new_anon_rmap(first, first, nr)
        ops.folio_dup_anon_rmap_ptes(first, first, nr)
        assert ops.folio_remove_rmap_range(first, first, nr) == 0
        for fault in {0, 1 % nr, nr // 2, nr - 1}:
            ops.clear_pages(first, nr)
            ops.clear_huge_page(first, nr, fault)
        ops.copy_pages(first, 0, nr)
        zap(x, order)


def zap(x, order):
    """Unmap the last folio of memory from a table that ends with memory too."""
    nr, first, end = 1 << order, PAGES - (1 << order), PAGES * TABLE_WORDS
    page, run = x.arrays["page"], x.arrays["run"]
    page[first * PAGE_RECORD + layout.PAGE_REFCOUNT] = nr
    x.ops.set_ptes(end - nr, x.bits.user | first << 12, nr)
    run[layout.RUN_PTE], run[layout.RUN_NR], run[layout.RUN_MM] = end - nr, nr, 1
    run[layout.RUN_BATCH], run[layout.RUN_ROOM] = 1, nr
    x.ops.zap_ptes()
    assert run[layout.RUN_REASON] == layout.EXIT_FREE
    assert run[layout.RUN_FOLIO] == first


def program(arch, defconfig):
    """Run a short program on a whole machine."""
    config = resolve(arch, defconfig, sets=["MEMORY_MB=64", "PHYS_BACKING=y", "DEBUG_VM=y"])
    with Machine(config) as m:
        page = m.page_size
        assert m.spawn(1) == 0
        assert m.mmap(1, 64 * page, 700 * page) == 0
        for i in range(0, 700, 3):
            assert m.store(1, (64 + i) * page, i % 251) == 0
        assert m.fork(1, 2) == 0
        for i in range(0, 700, 7):
            assert m.store(2, (64 + i) * page + 1, 9) == 0
        assert m.munmap(1, 100 * page, 300 * page) == 0
        assert m.load(2, (64 + 699) * page) == 699 % 251
        assert m.mremap(2, 64 * page, 700 * page, 5000 * page, 800 * page) == 0
        assert m.load(2, (5000 + 699) * page) == 699 % 251
        m.exit(1)
        m.exit(2)


def main():
    kernels = (("arm64", "anonfolio_basic"), ("x86", "baseline_4k"))
    if "--break" in sys.argv:
        x = Exact(*kernels[0])
        if os.environ["VIRTMM_SANITIZE"] == "address":
            x.ops.check_ptes_none(PAGES * TABLE_WORDS - 4, 8)
        else:
            x.ops.prep_compound_page(0, 64, 0)
        return
    for kernel in kernels:
        loops(Exact(*kernel))
        program(*kernel)
    print("clean")


if __name__ == "__main__":
    main()
