# SPDX-License-Identifier: GPL-2.0-only
"""How much memory a machine may have, and what it costs the host."""

import resource
import shutil
from pathlib import Path

import pytest
from virtmm.arch.params import ArchError
from virtmm.mm import layout

from virtmm import kbuild, topdir
from virtmm.boot import BootError, check_settings
from virtmm.kconfig import ConfigError, resolve
from virtmm.machine import Machine

BASE = 1 << 36


def test_memory_that_entries_cannot_name():
    """m68k has 32-bit physical addresses: Kconfig says so, and boot does where mem= asks for more."""
    with pytest.raises(ConfigError, match="4096 is not in its range, 16 to 3840"):
        resolve("m68k", sets=["MEMORY_MB=4096"])
    config = resolve("m68k")
    message = (
        "8192 MiB of memory: page-table entries of m68k reach 4096 MiB (m68k.pte.pfn_bits=32); "
        "correct it, or give the machine less (CONFIG_MEMORY_MB in configs/defconfig, or mem=)"
    )
    for attempt in (check_settings, Machine):
        with pytest.raises(BootError) as e:
            attempt(config, ["mem=8G"])
        assert str(e.value) == message
    check_settings(config, ["mem=4G"])
    check_settings(resolve("alpha"), ["mem=8G"])


def test_a_machine_of_a_tebibyte_costs_what_is_touched():
    """
    Issue 6: a page in use, a page table too, costs its record and the one entry that maps it, 40 bytes.

    Tables are made when they are needed.
    """
    pages = 1 << 20
    config = resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=1048576"])
    kbuild.load_core_of(config)  # which may compile it
    before = _resident()
    with Machine(config) as m:
        assert _resident() - before < 4 << 20, "one huge page of the host is full of records"
        m.spawn(1)
        assert m.mmap(1, BASE, 1 << 40) == 0
        assert m.memory()["page_tables"] <= 8 * m.page_size
        assert m.touch(1, BASE, True) == 0
        before, tables, used = _resident(), m.memory()["page_tables"], _in_use(m)
        for address in range(BASE, BASE + pages * m.page_size, 16 * m.page_size):
            assert m.touch(1, address, True) == 0
        assert _resident() - before < 40 * (_in_use(m) - used) + (128 << 10)
        assert _in_use(m) - used < pages + pages // 500
        assert m.memory()["page_tables"] - tables <= (pages // 512 + pages // 512**2) * m.page_size


@pytest.mark.parametrize(("backing", "flag"), [("n", "nh"), ("y", "hg")])
def test_what_is_dense_is_in_huge_pages_of_the_host(backing, flag):
    config = resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=64", f"PHYS_BACKING={backing}"])
    with Machine(config) as m:
        vk, ffi = m._booted.vk, m._booted.core.ffi
        at = {a.name: int(ffi.cast("uintptr_t", getattr(vk, a.name))) for a in layout.ARRAYS}
        flags = {name: _flags(address) for name, address in at.items()}
    assert at["page"] % (2 << 20) == 0
    assert "hg" in flags.pop("page") and flag in flags.pop("phys")
    assert all("nh" in found for found in flags.values())


def test_a_page_table_costs_the_host_one_fault():
    """Its entries are looked at before the first is written, which would map the host's zero page."""
    tables = 64
    config = resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=1024"])
    with Machine(config) as m:
        m.spawn(1)
        assert m.mmap(1, BASE, 2 * tables << 20) == 0
        assert m.touch(1, BASE, True) == 0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for i in range(1, tables):
            assert m.touch(1, BASE + (2 * i << 20), True) == 0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < tables * 3 // 2


def test_a_huge_page_costs_the_host_no_table():
    """The one in reserve for when it is split is not touched before."""
    huge = 500
    with Machine(resolve("arm64", "linux-7.3", sets=["MEMORY_MB=2048"]), ["enabled=always"]) as m:
        m.spawn(1)
        assert m.mmap(1, BASE, 2 * huge << 20) == 0
        assert m.touch(1, BASE, True) == 0
        before = _resident()
        for i in range(1, huge):
            assert m.touch(1, BASE + (2 * i << 20), True) == 0
        assert m.minflt(1) == huge
        assert _resident() - before < huge * (512 * 32 + 2048)


def test_metadata_is_at_most_forty_bytes_a_page():
    """What grows with memory, beside the pages themselves, and an entry in a full page table."""
    counted = [a for a in layout.ARRAYS if a.count == "nr_pages" and a.name != "phys"]
    assert sum(int(a.words) * a.bits // 8 for a in counted) + 8 <= 40


@pytest.mark.parametrize("order", [-1, 16, 50])
def test_an_order_that_no_free_list_has(tmp_path, order):
    folder = tmp_path / "x86"
    shutil.copytree(topdir() / "arch" / "x86", folder)
    text = (folder / "Kconfig").read_text()
    (folder / "Kconfig").write_text(text.replace("default 10\n", f"default {order}\n"))
    with pytest.raises(ArchError) as e:
        Machine(resolve("x86", arch_dir=folder))
    assert str(e.value) == (
        f"x86: ARCH_FORCE_MAX_ORDER={order}, the buddy allocator has orders 0 to 15; "
        "change its default in Kconfig"
    )


@pytest.mark.parametrize("order", [-1, 11, 40])
@pytest.mark.parametrize(
    ("symbol", "default"),
    [
        ("ARCH_EXEC_FOLIO_ORDER", "default 4"),
        ("ARCH_LARGE_ANON_FOLIO_NOTHP_ORDER_MAX", "default 4 if ARM64_4K_PAGES"),
        ("ARCH_LARGE_ANON_FOLIO_THP_ORDER_MAX", "default 4 if ARM64_4K_PAGES"),
    ],
)
def test_a_folio_that_no_block_holds(tmp_path, symbol, default, order):
    folder = tmp_path / "arm64"
    shutil.copytree(topdir() / "arch" / "arm64", folder)
    text = (folder / "Kconfig").read_text()
    before, after = text.split(f"config {symbol}\n")
    assert default in after
    after = after.replace(default, f"default {order}", 1)
    (folder / "Kconfig").write_text(f"{before}config {symbol}\n{after}")
    with pytest.raises(ArchError) as e:
        check_settings(resolve("arm64", arch_dir=folder), [])
    assert str(e.value) == (
        f"arm64: {symbol}={order}, the buddy allocator has orders 0 to 10 here "
        "(ARCH_FORCE_MAX_ORDER); change its default in Kconfig"
    )


def _in_use(m):
    """Return the pages of a machine's memory that hold something."""
    return sum(m.memory()[name] for name in ("anon", "page_tables")) // m.page_size


def _resident():
    """Return the bytes of memory that this process occupies."""
    # /proc/self/statm is out by some pages a CPU.
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))


def _flags(address):
    """Return the VmFlags of the host's mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= address < end
        elif inside and name == "VmFlags:":
            return rest.split()
    raise AssertionError(f"nothing is mapped at {address:#x}")
