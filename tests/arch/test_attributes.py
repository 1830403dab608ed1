# SPDX-License-Identifier: GPL-2.0-only
"""An attribute is on or off whatever bits say so: machines that differ in them only do the same."""

import subprocess

import pytest
from virtmm.mm import pgtable
from virtmm.mm.debug_vm import validate
from virtmm.mm.vm_flags import MADV_COLD, MADV_FREE, PROT_EXEC, PROT_READ, PROT_WRITE

from virtmm import build_core, topdir
from virtmm.check_running import RUNS
from virtmm.kconfig import resolve
from virtmm.machine import Machine
from virtmm.new_arch import new_arch, parse_shape

RW = PROT_READ | PROT_WRITE
# A block of 32 pages, and all there are: the second half gets a huge page.
NR, PAGES, HUGE = 32, 2048, 1024
# Field -> its bits in an architecture that new_arch() writes, inverted, and as two of opposite sense.
BITS = {
    "user": ("1 << 0 | 1 << 2", "1 << 0 | 1 << 2 | 1 << 8", "1 << 0 | 1 << 2"),
    "table": ("1 << 0", "1 << 0 | 1 << 7", "1 << 0"),
    "write": ("Attr.bit(1)", "Attr.inverted(1)", "Attr(3 << 48, 1 << 48, 2 << 48)"),
    "young": ("Attr.bit(5)", "Attr.inverted(5)", "Attr(3 << 50, 1 << 50, 2 << 50)"),
    "dirty": ("Attr.bit(6)", "Attr.inverted(6)", "Attr(3 << 52, 2 << 52, 1 << 52)"),
    "special": ("Attr.bit(9)", "Attr.inverted(9)", "Attr(3 << 54, 2 << 54, 1 << 54)"),
    "exec": ("Attr.inverted(63)", "Attr.bit(63)", "Attr(3 << 56, 2 << 56, 1 << 56)"),
    "prot_none": ("Attr.bit(8)", "Attr.inverted(8)", "Attr.bit(8)"),
    "leaf": ("Attr.bit(7)", "Attr.inverted(7)", "Attr.bit(7)"),
}
PLAIN, INVERTED, TWO = range(3)


@pytest.fixture(scope="module")
def boot(tmp_path_factory):
    """Return a function: column of BITS, settings -> machine, on which process 1 has PAGES pages."""
    folders, machines = {}, []

    def boot(bits, *sets):
        if bits not in folders:
            folder = new_arch(
                "foo", parse_shape("8K", "10,10,10", str(NR)), tmp_path_factory.mktemp("a")
            )
            text = (folder / "arch.py").read_text()
            for name, values in BITS.items():
                line = f"        {name}={values[PLAIN]},\n"
                assert line in text
                text = text.replace(line, f"        {name}={values[bits]},\n")
            (folder / "arch.py").write_text(text)
            folders[bits] = folder
        sets = ("MEMORY_MB=512", "MPROTECT_BATCH=y", *sets)
        m = Machine(resolve("foo", "linux-6.12", sets=sets, arch_dir=folders[bits]))
        machines.append(m)
        for size in m.sizes():
            m.set(size, "always" if size == f"{NR * 8}kB" else "never")
        m.spawn(1)
        m.mmap(1, at(m, 0), PAGES * m.page_size)
        return m

    yield boot
    for m in machines:
        m.close()


@pytest.mark.parametrize("bits", [PLAIN, INVERTED, TWO])
def test_an_empty_entry_is_not_present(boot, bits, tmp_path):
    """No loop of the core asks that of one, so a program does."""
    k, csrc = boot(bits).k, topdir() / "csrc"
    assert not pgtable.pte_present(k, 0)
    (tmp_path / "geometry.h").write_text(build_core.geometry_h(k.arch, k.page_shift))
    (tmp_path / "core_api.h").write_text(build_core.declarations(csrc)[1])
    main = tmp_path / "main.c"
    main.write_text('#include "core.h"\nint main(void) { return pte_present(0); }\n')
    program = tmp_path / "main"
    subprocess.run(["gcc", "-I", tmp_path, "-I", csrc, "-o", program, main], check=True)
    assert subprocess.run([program], check=False).returncode == 0


def at(m, page):
    return PAGES * m.page_size + page * m.page_size


def entries(m, pid=1):
    """Return (address, pfn, whether it is huge, names of the attributes that are on) of each entry."""
    k = m.k
    attributes = k.arch.pte.attributes()
    del attributes["leaf"]  # of the last level it says nothing
    return [
        (
            address,
            pgtable.pte_pfn(k, e),
            huge,
            [n for n, a in attributes.items() if e & a.mask == a.on],
        )
        for address, e, huge in pgtable.walk_page_table(k, m._mm(pid))
    ]


def number(m, name):
    return sum(name in on for *_, on in entries(m))


def lazy_with_one_page_written(m):
    """A block that is old and clean but for page 5, and taken apart: its last page is read-only."""
    size = m.page_size
    m.touch(1, at(m, 0), True)
    m.madvise(1, at(m, 0), NR * size, MADV_FREE)
    m.mprotect(1, at(m, NR - 1), size, PROT_READ)
    m.touch(1, at(m, 5), True)
    assert (number(m, "cont"), number(m, "dirty"), number(m, "young")) == (0, 1, 1)


@pytest.mark.parametrize("setting", RUNS)
@pytest.mark.parametrize("bits", [PLAIN, INVERTED, TWO])
def test_a_block_put_together_is_what_one_page_was(boot, bits, setting):
    m = boot(bits, setting)
    lazy_with_one_page_written(m)
    m.mprotect(1, at(m, NR - 1), m.page_size, RW)
    assert (number(m, "cont"), number(m, "dirty"), number(m, "young")) == (NR, NR, NR)


@pytest.mark.parametrize("setting", RUNS)
@pytest.mark.parametrize("bits", [PLAIN, INVERTED, TWO])
def test_pages_protected_together_are_what_one_was(boot, bits, setting):
    """The last page is protected alone: it is read-only already."""
    m = boot(bits, setting)
    lazy_with_one_page_written(m)
    m.mprotect(1, at(m, 0), NR * m.page_size, PROT_READ)
    assert (number(m, "dirty"), number(m, "young")) == (NR - 1, NR - 1)


def steps(m):
    """Do what changes each attribute, alone, in blocks and in a huge page; yield after each step."""
    size = m.page_size
    yield lazy_with_one_page_written(m)
    yield m.mprotect(1, at(m, NR - 1), size, RW)
    yield m.fork(1, 2)
    yield m.touch(2, at(m, 7), True)  # copy on write
    yield m.touch(1, at(m, 7), True)  # reuse
    yield m.madvise(1, at(m, 3), 4 * size, MADV_COLD)
    yield m.mprotect(1, at(m, 0), NR * size, PROT_READ | PROT_EXEC)
    yield m.mprotect(1, at(m, 2), 3 * size, 0)
    yield m.mprotect(1, at(m, 0), NR * size, RW)
    yield m.mremap(1, at(m, 0), NR * size, at(m, 2 * NR), NR * size, 3)
    yield m.set(f"{NR * 8}kB", "never")
    yield m.touch(1, at(m, 4 * NR), False)  # the zero page
    yield m.touch(1, at(m, 4 * NR + 1), True)
    yield m.touch(1, at(m, 4 * NR), True)
    yield m.set(f"{HUGE * 8}kB", "always")
    yield m.touch(1, at(m, HUGE), True)
    yield m.madvise(1, at(m, HUGE), HUGE * size, MADV_FREE)
    yield m.mprotect(1, at(m, HUGE), HUGE * size, 0)
    yield m.mprotect(1, at(m, HUGE), HUGE * size, RW)
    yield m.mprotect(1, at(m, HUGE), size, PROT_READ)
    yield m.exit(2)
    yield m.munmap(1, at(m, 0), PAGES * size)


@pytest.mark.parametrize("setting", RUNS)
def test_the_same_program_leaves_the_same_state(boot, setting):
    machines = [boot(bits, setting) for bits in (PLAIN, INVERTED, TWO)]
    seen = set()
    for i, results in enumerate(zip(*map(steps, machines), strict=True)):
        first, *others = [
            (result, entries(m), m.events(), m.work(), m.vmstat(), m.processes(), m.tlb())
            for result, m in zip(results, machines, strict=True)
        ]
        for other in others:
            assert other == first, i
        seen |= {name for *_, on in first[1] for name in on} | {huge for _, _, huge, _ in first[1]}
    assert seen == {*machines[0].k.arch.pte.attributes(), True, False} - {"leaf"}
    for m in machines:
        validate(m.k)
