# SPDX-License-Identifier: GPL-2.0-only
"""The series' own claim: switched off, nothing changes. And switched on, on the samples, a lot does."""

import shutil
from pathlib import Path

import pytest
from virtmm.mm import layout, memory
from virtmm.mm.arena import PAGE_RECORD, VMA_RECORD
from virtmm.mm.page_alloc import folio_alloc
from virtmm.mm.vm_flags import FAULT_FLAG_WRITE, VM_FAULT_OOM, VM_WRITE
from virtmm.tools.replay.replay import Replay
from virtmm.tools.trace.format import TraceReader

from virtmm.kconfig import resolve
from virtmm.machine import Machine

TOP = Path(__file__).resolve().parent.parent
SAMPLES = sorted((TOP / "samples").glob("*.parquet"))
STEP = 5000


class Slices(TraceReader):
    """A reader that hands out STEP rows at a time, so that a replay can be looked at on the way."""

    def batches(self):
        for batch in super().batches():
            for start in range(0, len(batch), STEP):
                yield batch[start : start + STEP]


def digests(trace, config, arch_dir=None):
    """Return the digest of the arena after every STEP events, the last ones included."""
    found = []
    with Slices(trace) as reader, Machine(config, arch_dir=arch_dir) as machine:
        Replay(machine, reader).run(lambda _: found.append(machine.digest()))
    return found


def one_page_fault(k, vmf):
    """A straight fault path without any notion of an order: what 6.4 had before the series."""
    words = k.vma[vmf.vma * VMA_RECORD : (vmf.vma + 1) * VMA_RECORD]
    pte = k.arch.pte
    prot = words[layout.VMA_PAGE_PROT]
    if not vmf.flags & FAULT_FLAG_WRITE:
        prot = prot & ~pte.special.mask | pte.special.on
        prot = prot & ~pte.young.mask | pte.young.on
        k.phys[vmf.pte] = k.zero_pfn << k.pfn_shift | prot
        k.event[layout.EV_zero_page_fault * layout.NR_ORDERS] += 1
        return 0
    if not memory.vma_prepare_anon(k, vmf.vma):
        return VM_FAULT_OOM
    page = folio_alloc(k, 0, layout.PG_anon | layout.PG_lru, layout.ZONE_ANON)
    if not page:
        return VM_FAULT_OOM
    if k.config.phys_backing:
        k.ops.clear_huge_page(page, 1, 0)
    base = page * PAGE_RECORD
    index = (vmf.address - words[layout.VMA_START] >> k.page_shift) + words[layout.VMA_PGOFF]
    k.page[base + layout.PAGE_MAPCOUNT] = 1
    k.page[base + layout.PAGE_FLAGS] |= layout.PG_exclusive | layout.PG_swapbacked
    k.page[base + layout.PAGE_MAPPING] = k.vma[vmf.vma * VMA_RECORD + layout.VMA_ANON_VMA]
    k.page[base + layout.PAGE_INDEX] = index & 0xFFFFFFFF
    k.page[base + layout.PAGE_INDEX_HI] = index >> 32
    k.mm[vmf.mm * 16 + layout.MM_ANONPAGES] += 1
    k.vmstat[layout.VM_nr_anon_pages] += 1
    k.mthp_stat[layout.MTHP_anon_fault_alloc * layout.NR_ORDERS] += 1
    k.event[layout.EV_anon_fault * layout.NR_ORDERS] += 1
    k.task[k.current * 32 + layout.TASK_FOLIOS] += 1
    for attr in [
        pte.young,
        *([pte.dirty, pte.write] if words[layout.VMA_FLAGS] & VM_WRITE else []),
    ]:
        prot = prot & ~attr.mask | attr.on
    k.phys[vmf.pte] = page << k.pfn_shift | prot
    return 0


@pytest.fixture
def not_opted_in(tmp_path):
    """arm64 as it was before patch 9: it does not select ARCH_SUPPORTS_LARGE_ANON_FOLIO."""
    folder = tmp_path / "arm64"
    shutil.copytree(TOP / "arch" / "arm64", folder)
    kconfig = folder / "Kconfig"
    text = kconfig.read_text()
    assert "select ARCH_SUPPORTS_LARGE_ANON_FOLIO" in text
    kconfig.write_text(text.replace("\tselect ARCH_SUPPORTS_LARGE_ANON_FOLIO\n", ""))
    return folder


@pytest.mark.parametrize("trace", SAMPLES, ids=lambda p: p.stem)
def test_switched_off_nothing_changes(trace, not_opted_in, monkeypatch):
    """Four builds leave identical arenas at every step; only the large maximum leaves another."""
    off = digests(trace, resolve("arm64", "baseline_4k"))
    assert len(set(off)) == len(off) > 3, "the digest tells the steps apart"

    config = resolve("arm64", "baseline_4k", arch_dir=not_opted_in)
    assert not config.get("ARCH_SUPPORTS_LARGE_ANON_FOLIO")
    assert digests(trace, config, not_opted_in) == off

    sets = ["EXPERT=y", "LARGE_ANON_FOLIO_FORCE_ORDER_0=y"]
    config = resolve("arm64", "anonfolio_basic", sets=sets)
    assert config["LARGE_ANON_FOLIO"] is True
    assert (
        config["LARGE_ANON_FOLIO_NOTHP_ORDER_MAX"] == config["LARGE_ANON_FOLIO_THP_ORDER_MAX"] == 0
    )
    assert digests(trace, config) == off

    on = digests(trace, resolve("arm64", "anonfolio_basic"))
    assert not set(on) & set(off)

    monkeypatch.setattr(memory, "do_anonymous_page", one_page_fault)
    assert digests(trace, resolve("arm64", "baseline_4k")) == off


def test_the_samples_are_there():
    assert [p.stem for p in SAMPLES] == ["gcc", "python"]
