# SPDX-License-Identifier: GPL-2.0-only
"""The series' own claim: switched off, nothing changes. And switched on, on the samples, a lot does."""

import functools
import re
import shutil
from pathlib import Path

import pytest
from virtmm.mm import layout, memory
from virtmm.mm.arena import PAGE_RECORD, VMA_RECORD
from virtmm.mm.page_alloc import folio_alloc
from virtmm.mm.vm_flags import FAULT_FLAG_WRITE, VM_FAULT_OOM, VM_WRITE
from virtmm.tools.replay.replay import Replay, replay
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
    assert digests(trace, resolve("arm64", "baseline_4k", sets=["FAST_FAULT=n"])) == off


@pytest.mark.parametrize(
    "kernel", ["baseline_4k", "anonfolio_basic", "contpte", "linux-7.3", "exefolio", "baseline_16k"]
)
@pytest.mark.parametrize("trace", SAMPLES, ids=lambda p: p.stem)
def test_faults_in_c_change_nothing(trace, kernel):
    """Neither the arena at any step nor any figure of the result."""
    seen = []
    for fast in "yn":
        config = resolve("arm64", kernel, sets=[f"FAST_FAULT={fast}"])
        with TraceReader(trace) as reader:
            figures = replay(reader, config, kernel)
        assert figures.pop("config_hash") == config.hash
        seen.append((digests(trace, config), figures))
    assert seen[0] == seen[1]


# The document


DOCUMENT = TOP / "Documentation" / "series.md"
KERNELS = ("baseline_4k", "anonfolio_basic", "anonfolio")


def rows():
    """Return the cells of each row of the document's tables by the name of the patch, in order."""
    found = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"R?\d+", cells[0]):
            found.setdefault(cells[0], []).append(cells[1:])
    return found


def places(cell):
    """Return the (file, name) that a cell names."""
    return [tuple(place.split(": ")) for place in re.findall(r"`([^`]+)`", cell)]


@functools.cache
def result(sample, kernel, sets=()):
    """Return what a replay of a sample counts; run-time knobs have small letters."""
    symbols = [s for s in sets if s[0].isupper()]
    knobs = [s for s in sets if not s[0].isupper()]
    config = resolve("arm64", kernel, sets=symbols)
    with TraceReader(TOP / "samples" / f"{sample}.parquet") as reader:
        return replay(reader, config, kernel, knobs)


def test_every_patch_and_path_is_in_the_document():
    patches = [str(patch) for patch in range(1, 11)]
    assert list(rows()) == [*patches, "R1", "R2", "R3"]
    assert {patch: len(found) for patch, found in rows().items() if len(found) != 2} == {"1": 1}


@pytest.mark.parametrize("patch", rows())
def test_what_the_document_names_exists(patch):
    _, symbol, code, tests = rows()[patch][0]
    kconfig = (TOP / "mm" / "Kconfig").read_text() + (TOP / "arch/arm64/Kconfig").read_text()
    assert f"config {symbol.strip('`')}\n" in kconfig
    assert places(code) and places(tests)
    for file, name in places(code):
        before = {".py": r"def ", ".c": r"^\w+ ", "": "config "}[Path(file).suffix]
        assert re.search(rf"{before}{name}\b", (TOP / file).read_text(), re.MULTILINE), name
    for file, name in places(tests):
        assert file.startswith("tests/")
        assert f"def {name}(" in (TOP / file).read_text(), name


@pytest.mark.parametrize("patch", [patch for patch, found in rows().items() if len(found) > 1])
def test_the_figures_of_the_document(patch):
    """Leaving a patch out moves the figure that the document names, from and to what it says."""
    kernel, sample, options, figure, *expected = rows()[patch][1]
    without = tuple(re.findall(r"--set (\S+)", options.strip("`")))
    assert rows()[patch][0][1].strip("`") + "=n" in without
    shared = tuple(s for s in without if not s.endswith("=n") and s != "EXPERT=y")
    found = []
    for sets in (without, shared):
        value = result(sample, kernel, sets)
        for key in figure.strip("`").split("."):
            value = value[key]
        found.append(f"{value:,}")
    assert found == expected


@pytest.mark.parametrize("sample", [p.stem for p in SAMPLES])
def test_large_folios_save_faults_on_the_samples(sample):
    """At most 0.6 of the faults of base pages, and the three further paths add none."""
    base, basic, full = (result(sample, kernel) for kernel in KERNELS)
    assert full["minflt"] <= basic["minflt"] <= 0.6 * base["minflt"]
    assert basic["memory"]["peak"] <= 1.05 * base["memory"]["peak"]
    assert full["memory"]["peak"] <= 1.05 * base["memory"]["peak"]
    assert full["instructions"]["total"] < basic["instructions"]["total"]


def test_the_samples_are_there():
    assert [p.stem for p in SAMPLES] == ["gcc", "python"]
