# SPDX-License-Identifier: GPL-2.0-only
"""The conformance suite passes for every architecture, and refuses wrong ports by field and value."""

import shutil
from dataclasses import replace

import pytest
from virtmm.arch import names
from virtmm.arch.params import ArchError
from virtmm.mm import contpte, mprotect, pgtable
from virtmm.mm.debug_vm import VmBug
from virtmm.mm.ranges import PyRanges
from virtmm.tools.report.cost import COLUMNS, cost_tables

from virtmm import boot, check_running, machine, topdir
from virtmm.arch_check import CHECKS, TIERS, arch_check, check_fields
from virtmm.kconfig import ConfigError, resolve
from virtmm.machine import Machine
from virtmm.new_arch import new_arch, parse_shape
from virtmm.subject import CheckError, Subject


@pytest.mark.parametrize("arch", names())
def test_every_architecture(arch):
    outcomes = list(arch_check(arch, costs=cost_tables))
    assert [o for o in outcomes if o.status == "FAILED"] == []
    assert [o.check for o in outcomes] == [*(name for name, *_ in CHECKS), "costs", "tiers"]
    assert outcomes[-1].text.startswith("geometry")


def write(tmp_path, *shape):
    """Write an architecture whose sources are given; return its folder."""
    folder = new_arch("foo", parse_shape(*shape), tmp_path)
    edit(folder, "arch.py", "to be filled in: ", "")
    return folder


def edit(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.fixture
def folder(tmp_path):
    """Return the folder of an architecture with every tier but costs."""
    return write(tmp_path, "8K", "10,10,10", "32")


def failure(folder):
    """Return (check, text) of the first that fails; nothing of both when all pass."""
    outcomes = arch_check("foo", folder, cost_tables)
    found = next(((o.check, o.text) for o in outcomes if o.status == "FAILED"), ("", ""))
    assert "\n" not in found[1]
    return found[0], found[1].replace(str(folder), "foo")


OTHER = "give one of them another bit"
SOURCE = "name the manual, and the file and release of Linux"


@pytest.mark.parametrize(
    ("file", "old", "new", "check", "message"),
    [
        (
            "arch.py", "young=Attr.bit(5)", "young=Attr.bit(6)", "fields",
            f"foo.pte.dirty: bit 6 overlaps young; {OTHER}",
        ),
        (
            "arch.py", "young=Attr.bit(5)", "young=Attr.bit(8)", "fields",
            f"foo.pte.young: bit 8 overlaps prot_none; {OTHER}",
        ),
        (
            "arch.py", "cont=Attr.bit(10)", "cont=Attr.bit(7)", "fields",
            f"foo.pte.cont: bit 7 overlaps leaf; {OTHER}",
        ),
        (
            "arch.py", "write=Attr.bit(1)", "write=Attr.bit(2)", "fields",
            f"foo.pte.write: bit 2 overlaps user; {OTHER}",
        ),
        (
            "arch.py", "young=Attr.bit(5)", "young=5", "fields",
            "foo.pte.young: 5 is not an Attr; write Attr.bit(n)",
        ),
        (
            "arch.py", "), 43", "), 44", "fields",
            "foo.geometries[13]: page shift and levels sum to 43, va_bits is 44; correct one of them",
        ),
        (
            "arch.py", "43, 5", "43, 4.585", "fields",
            "foo.geometries[0].cont_order: 4.585 is not an integer",
        ),
        (
            "arch.py", "43, 5", "43, 11", "fields",
            "foo.geometries[13].cont_order: 11 is larger than a table, 0 to 10",
        ),
        (
            "configs/defconfig", "CONFIG_", "CONFIG_NO_", "kconfig",
            "foo/configs/defconfig:1: unknown symbol NO_TRANSPARENT_HUGEPAGE; did you mean "
            "TRANSPARENT_HUGEPAGE? (and 1 more)",
        ),
        (
            "arch.py", "ARCH = ", "raise GeneratorExit\nARCH = ", "fields",
            "foo/arch.py:6: GeneratorExit:  (raise GeneratorExit)",
        ),
        (
            "arch.py", "pfn_bits=48", "pfn_bits=30", "kconfig",
            "16384 MiB of memory: page-table entries of foo reach 1024 MiB (foo.pte.pfn_bits=30); "
            "correct it, or give the machine less (CONFIG_MEMORY_MB in configs/defconfig, or mem=)",
        ),
        (
            "arch.py", "cont=Attr.bit(10),", "", "fields",
            "foo.geometries[13].cont_order: 5 needs a bit, pte.cont; give it, or 0 here",
        ),
        (
            "arch.py", "ARCH = ", "raise SystemExit(0)\nARCH = ", "fields",
            "foo/arch.py:6: SystemExit: 0 (raise SystemExit(0))",
        ),
        (
            "Kconfig", "default 10", "default 9", "kconfig",
            "foo.geometries[13].levels.pte: 10 bits make huge pages of that order, "
            "ARCH_FORCE_MAX_ORDER=9 holds none; raise it, or TRANSPARENT_HUGEPAGE=n",
        ),
        (
            "Kconfig", "default 10", "default 50", "kconfig",
            "foo: ARCH_FORCE_MAX_ORDER=50, the buddy allocator has orders 0 to 15; "
            "change its default in Kconfig",
        ),
        (
            "Kconfig", "config PAGE_SHIFT\n\tint\n\tdefault 13\n", "", "kconfig",
            "foo/Kconfig: PAGE_SHIFT has no value; define it with a default",
        ),
        (
            "Kconfig", "config ARCH_FORCE_MAX_ORDER\n\tint\n\tdefault 10\n", "", "kconfig",
            "foo/Kconfig: ARCH_FORCE_MAX_ORDER has no value; define it with a default",
        ),
        (
            "Kconfig", "config FOO\n", "config BAR\n", "kconfig",
            "foo.kconfig_symbol: FOO is not y; define it def_bool y in foo/Kconfig",
        ),
        (
            "Kconfig", "config FOO\n\tdef_bool y\n\tselect HAVE_ARCH_TRANSPARENT_HUGEPAGE\n", "", "kconfig",
            "foo.kconfig_symbol: FOO is not y; define it def_bool y in foo/Kconfig",
        ),
        (
            "Kconfig", "def_bool y", "def_bool n", "kconfig",
            "foo.kconfig_symbol: FOO is not y; define it def_bool y in foo/Kconfig",
        ),
        (
            "Kconfig", "\tselect HAVE", "\tselect NOSUCH\n\tselect HAVE", "kconfig",
            "foo/Kconfig:3: NOSUCH is defined nowhere; define it, or do without",
        ),
        (
            "Kconfig", "default 13", "default 14", "kconfig",
            "foo.geometries: PAGE_SHIFT=14 of Kconfig is none of their page shifts, 13; make them agree",
        ),
        (
            "configs/defconfig", "MADVISE=y", "MADVISE=y\nCONFIG_DEBUG_VM=y", "kconfig",
            "foo/configs/defconfig: DEBUG_VM=y; leave that to who runs the kernel",
        ),
        (
            "configs/linux-6.12_defconfig", "CONFIG_FOO", "CONFIG_C_RANGES=n\nCONFIG_FOO", "kconfig",
            "foo/configs/linux-6.12_defconfig: C_RANGES=n; leave that to who runs the kernel",
        ),
        ("arch.py", '"pte": ', '"entry": ', "fields", f"foo.sources['pte']: not given; {SOURCE}"),
        (
            "arch.py", '"pte": "manual', '"pte": "to be filled in', "fields",
            "foo.sources['pte']: 'to be filled in and chapter; ",
        ),
    ],
)  # fmt: skip
def test_a_wrong_port_is_refused(folder, file, old, new, check, message):
    edit(folder, file, old, new)
    found, text = failure(folder)
    assert found == check
    assert text.startswith(message)


def test_an_entry_of_nothing_that_is_prot_none(folder):
    edit(folder, "arch.py", "prot_none=Attr.bit(8)", "prot_none=Attr(1 << 8 | 1, on=0, off=1)")
    edit(folder, "arch.py", "user=1 << 0 | 1 << 2", "user=1 << 0")
    edit(folder, "arch.py", "Attr.inverted(63)", "Attr.bit(63)")
    check, text = failure(folder)
    assert check == "round trips"
    assert text.startswith("pte.prot_none: off in entry 0x0 of ")


def test_the_port_is_right_without_the_mistake(folder):
    assert failure(folder) == ("", "")


@pytest.mark.parametrize("old", ["config FOO\n", "default 10"])
def test_a_wrong_port_does_not_run_either(folder, old):
    """What arch-check refuses of Kconfig no command accepts."""
    edit(folder, "Kconfig", old, {"config FOO\n": "config BAR\n", "default 10": "default 9"}[old])
    with pytest.raises((ArchError, ConfigError)) as e:
        Machine(resolve("foo", arch_dir=folder, sets=["MEMORY_MB=64"]))
    assert str(e.value).replace(str(folder), "foo") == failure(folder)[1]


@pytest.mark.parametrize("place", ["$HOME", "a$PATH[b]*", "a\nb"])
def test_a_folder_of_any_name(tmp_path, monkeypatch, place):
    """Kconfig takes no variable and no pattern out of it, and a message is a line."""
    monkeypatch.setenv("HOME", "/nowhere")
    (tmp_path / place).mkdir()
    folder = write(tmp_path / place, "8K", "10,10,10", "32")
    assert failure(folder) == ("", "")
    edit(folder, "configs/defconfig", "CONFIG_", "CONFIG_NO_")
    check, text = failure(folder)
    assert check == "kconfig"
    assert "foo/configs/defconfig:1: unknown symbol NO_TRANSPARENT_HUGEPAGE" in text
    edit(folder, "Kconfig", "def_bool y", "def_bool NOSUCH")
    check, text = failure(folder)
    assert check == "kconfig"
    assert text.endswith("foo/Kconfig:3: NOSUCH is defined nowhere; define it, or do without")
    assert "/../" not in text


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"reference": True}, "alpha.reference: arm64 is it already; leave it out"),
        ({"machine": "x86_64"}, "alpha.machine: x86_64 is x86; give what uname -m says there"),
    ],
)
def test_what_is_anothers_in_the_tree(field, message):
    """Commands would take the new one where none is named, or on that machine."""
    s = Subject("alpha")
    check_fields(s)
    s.arch = replace(s.arch, **field)
    with pytest.raises(CheckError) as e:
        check_fields(s)
    assert str(e.value) == message


def test_a_copy_outside_the_tree_may_claim_it(tmp_path):
    folder = shutil.copytree(topdir() / "arch" / "arm64", tmp_path / "arm64")
    check_fields(Subject("arm64", folder))


def test_kernels_are_files(folder):
    (folder / "configs" / "x_defconfig").mkdir()
    assert failure(folder) == ("", "")
    (folder / "configs" / "defconfig").unlink()
    message = "foo/configs/defconfig: no such file; every architecture has one"
    assert failure(folder) == ("kconfig", message)


def test_a_fragment_is_for_one_of_the_kernels(folder):
    fragment = folder / "configs" / "odd.config"
    fragment.write_text("CONFIG_HUGE_ZERO_COW=y\n")  # depends on the policy of linux-6.12
    assert failure(folder) == ("", "")
    fragment.write_text("CONFIG_NOSUCH=y\n")
    assert failure(folder) == ("kconfig", "foo/configs/odd.config:1: unknown symbol NOSUCH")


def test_each_page_size_has_its_base_page_kernel(folder):
    kernel = folder / "configs" / "baseline_8k_defconfig"
    text = kernel.read_text()
    kernel.write_text(text + "CONFIG_ANON_POLICY_MTHP=y\n")
    where = "foo/configs/baseline_8k_defconfig"
    message = f"{where}: ANON_POLICY_BASE is n; it is the kernel of base pages"
    assert failure(folder) == ("kconfig", message)
    kernel.unlink()
    message = f"{where}: missing; each page size of geometries has one"
    assert failure(folder) == ("kconfig", message)
    kernel.with_name("baseline_8K_defconfig").write_text(text)
    message += " (baseline_8K_defconfig is there: a small k)"
    assert failure(folder) == ("kconfig", message)


@pytest.mark.parametrize("cont", ["0", "2", "256", "512"])
def test_blocks_of_any_size(tmp_path, cont):
    assert failure(write(tmp_path, "4K", "9,9,9", cont)) == ("", "")


@pytest.mark.parametrize("shape", [("4K", "2,9,2"), ("64K", "5,13"), ("4K", "9,9,9,9,9")])
def test_tables_of_any_shape(tmp_path, shape):
    assert failure(write(tmp_path, *shape, "0")) == ("", "")


def test_every_way_to_use_blocks_is_looked_at(folder, monkeypatch):
    """Two symbols of Kconfig select CONTPTE, and blocks are folded with each."""
    text = (folder / "Kconfig").read_text()
    second = text[text.index("config FOO_CONTPTE") :].replace("FOO_CONTPTE", "FOO_SECOND")
    (folder / "Kconfig").write_text(f"{text}\n{second}")
    seen, real = [], machine.Machine.__init__

    def init(self, config, *args, **kw):
        seen.append({s for s in ("FOO_CONTPTE", "FOO_SECOND") if config.get(s)})
        real(self, config, *args, **kw)

    monkeypatch.setattr(machine.Machine, "__init__", init)
    assert failure(folder) == ("", "")
    assert {"FOO_SECOND"} in seen and {"FOO_CONTPTE"} in seen


def add_4k(folder, cont, kernel):
    """Give the architecture 4K pages, too, and one kernel of them."""
    levels = ", ".join(f'Level("{name}", 9)' for name in ("pgd", "pmd", "pte"))
    edit(folder, "arch.py", "geometries=(", f"geometries=(Geometry(12, ({levels}), 39, {cont}), ")
    edit(folder, "Kconfig", "default 13", "default 12 if FOO_4K\n\tdefault 13")
    (folder / "Kconfig").write_text(
        (folder / "Kconfig").read_text() + '\nconfig FOO_4K\n\tbool "4K"\n\thelp\n\t  4K.\n'
    )
    (folder / "configs" / "baseline_4k_defconfig").write_text(f"CONFIG_FOO_4K=y\n{kernel}")


def test_a_block_that_no_kernel_folds(folder):
    """Kernels with huge pages have another page size than the one with contiguous entries."""
    add_4k(folder, 4, "")
    check, text = failure(folder)
    assert check == "contiguous"
    assert text == (
        "geometries[12].cont_order: 4, and no kernel of that page size has TRANSPARENT_HUGEPAGE=y and "
        "can have FOO_CONTPTE=y, so that no block is ever folded; give it one"
    )


def test_a_page_size_without_blocks(folder):
    """Kconfig does not offer them there, and that is no mistake."""
    edit(
        folder,
        "Kconfig",
        "depends on TRANSPARENT_HUGEPAGE",
        "depends on TRANSPARENT_HUGEPAGE && !FOO_4K",
    )
    add_4k(folder, 0, "CONFIG_TRANSPARENT_HUGEPAGE=y\n")
    outcomes = {o.check: o for o in arch_check("foo", folder, cost_tables)}
    assert [o for o in outcomes.values() if o.status == "FAILED"] == []
    assert outcomes["contiguous"].text == "blocks of 32 entries"


def test_a_huge_page_that_no_block_holds_is_refused_at_boot(tmp_path):
    with pytest.raises(ArchError, match=r"levels.pte: 9 bits .* ARCH_FORCE_MAX_ORDER=8 holds none"):
        folder = new_arch("foo", parse_shape("4K", "9,9,9", "0"), tmp_path)
        edit(folder, "Kconfig", "default 10", "default 8")
        Machine(resolve("foo", arch_dir=folder, sets=["MEMORY_MB=64"]))


# Each check can fail


def but(bit):
    """Return pte_mkyoung() that changes a further bit."""
    real = pgtable.pte_mkyoung
    return lambda k, pte: real(k, pte) ^ 1 << bit


class Backwards(PyRanges):
    """Range loops that write entries from the end."""

    def set_ptes(self, pte, entry, nr):
        super().set_ptes(pte, entry, nr)
        k = self.k
        k.phys[pte], k.phys[pte + nr - 1] = k.phys[pte + nr - 1], k.phys[pte]


def raise_bug(k):
    raise VmBug("a page is lost")


@pytest.mark.parametrize(
    ("module", "name", "wrong", "check", "message"),
    [
        (pgtable, "pte_pfn", lambda k, pte: 1, "round trips", "pte.pfn: 0x0 is lost"),
        (pgtable, "pte_mkyoung", lambda k, pte: pgtable.pte_mkdirty(k, pte), "pte algebra", "pte.young: "),
        (pgtable, "pte_mkyoung", but(0), "pte algebra", "pte.present: <lambda>("),
        (pgtable, "pte_mkyoung", but(8), "pte algebra", "pte.prot_none: <lambda>("),
        (pgtable, "pte_mkyoung", but(7), "pte algebra", "pte.leaf: <lambda>("),
        (pgtable, "pte_mkyoung", but(10), "pte algebra", "pte.cont: <lambda>("),
        (pgtable, "pte_mkyoung", but(13), "pte algebra", "pte.pfn: <lambda>("),
        (pgtable, "pte_mkspecial", lambda k, pte: pte, "pte algebra", "pte.special: <lambda>("),
        (pgtable, "pmd_mkhuge", lambda k, pte: pte, "pte algebra", "pte.leaf: "),
        (pgtable, "pmd_to_pte", lambda k, pte: pte, "pte algebra", "pte.leaf: "),
        (
            "virtmm.check_entries", "PyRanges", Backwards, "set_ptes",
            "pte.pfn_pos: set_ptes() in Python writes",
        ),
        (contpte, "unfold", lambda k, pte: None, "contiguous", "pte.cont: True in entry 1 of 32, "),
        (
            contpte, "_try_fold", lambda k, pte, entry: None, "contiguous",
            "pte.cont: False in entry 0 of 32, ",
        ),
        (contpte, "young_dirty", lambda k, pte, nr: 0, "contiguous", "pte.young: False in entry 0 of 32, "),
        (mprotect, "young_dirty", lambda k, pte, nr: 0, "contiguous", "pte.young: False in entry 0 of 32, "),
        (  # whatever its pages are
            contpte, "set_ptes", lambda k, pte, entry, nr: k.ops.set_ptes(pte, entry | k.cont_bit, nr),
            "contiguous", "pte.cont: True in entry 0 of 32, ",
        ),
        (
            machine, "validate", raise_bug, "golden",
            "fork.trace: DEBUG_VM: a page is lost (defconfig, DEBUG_VM=y)",
        ),
    ],
)  # fmt: skip
def test_each_check_can_fail(folder, monkeypatch, module, name, wrong, check, message):
    monkeypatch.setattr(
        f"{module}.{name}" if isinstance(module, str) else module,
        *((wrong,) if isinstance(module, str) else (name, wrong)),
    )
    found, text = failure(folder)
    assert (found, text[: len(message)]) == (check, message)


def test_blocks_are_read_from_the_entry(folder, monkeypatch):
    """What a block is said to be by what is checked does not count."""
    monkeypatch.setattr(contpte, "pte_cont", lambda k, pte: False)
    assert failure(folder) == ("", "")
    monkeypatch.setattr(contpte, "unfold", lambda k, pte: None)
    found, text = failure(folder)
    assert (found, text[:34]) == ("contiguous", "pte.cont: True in entry 1 of 32, 0")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda k, entry: pgtable.pte_mkold(k, entry), "pte.leaf: the huge entry 0x"),
        (
            lambda k, entry: entry + (1 << k.pfn_shift),
            "pte.leaf: splitting a huge entry changes its ",
        ),
    ],
)
def test_a_split_can_fail(folder, monkeypatch, wrong, message):
    real = pgtable.pmd_to_pte
    monkeypatch.setattr("virtmm.mm.huge_memory.pmd_to_pte", lambda k, pmd: wrong(k, real(k, pmd)))
    found, text = failure(folder)
    assert (found, text[: len(message)]) == ("huge leaf", message)


def test_a_huge_fault_can_fail(folder, monkeypatch):
    monkeypatch.setattr(Machine, "set", lambda *_: None)
    assert failure(folder) == (
        "huge leaf",
        "geometries.levels.pte: a huge fault maps 1 pages, not 1 << 10 (defconfig, FAST_FAULT=y); "
        "look at levels and leaf",
    )


def test_the_twins_can_differ(folder, monkeypatch):
    """Without the dirty bit in Python's entries the digest is another."""
    monkeypatch.setattr("virtmm.mm.fault.pte_mkdirty", lambda k, pte: pte)
    check, text = failure(folder)
    assert check == "C = Python"
    assert text.startswith("defconfig: memory with FAST_FAULT=y and with FAST_FAULT=n differ")


def test_programs_run_with_blocks_too(folder, monkeypatch):
    """Though no kernel has them; in Python a part that goes does not unfold its block."""
    edit(folder, "configs/linux-6.12_defconfig", "CONFIG_FOO_CONTPTE=y\n", "")
    monkeypatch.setattr(contpte, "unfold_edges", lambda k, pte, nr: None)
    outcomes = {o.check: o.text for o in arch_check("foo", folder) if o.status == "FAILED"}
    assert list(outcomes) == ["C = Python", "golden", "tiers"]
    kernel = "linux-6.12, FOO_CONTPTE=y"
    assert outcomes["C = Python"].startswith(f"{kernel}: memory with FAST_FAULT=y and with FAST_")
    assert f"({kernel}, DEBUG_VM=y)" in outcomes["golden"]


def test_the_benchmark_can_fail(folder, monkeypatch):
    real = boot.FastFault.touch_many
    monkeypatch.setattr(boot.FastFault, "touch_many", lambda self, a, at, end: real(self, a, at, 7))
    assert failure(folder) == ("benchmark", "FAST_FAULT=y, and touch 7 is not served in C")
    monkeypatch.setattr(boot.FastFault, "touch_many", real)
    times = {"touch_many": 2, "one_by_one": 3, "fork": 1}
    for fast, slow, message in (
        (times, times, "defconfig: touch_many takes 2000000 us in C and 2000000 us in Python; run"),
        (
            times | {"one_by_one": 2},
            times | {"touch_many": 3, "fork": 2},
            "defconfig: touch_many() is no faster than touch()",
        ),
    ):
        monkeypatch.setattr(check_running, "measure", lambda m, f=fast, s=slow: f if m.fast else s)
        check, text = failure(folder)
        assert (check, text[: len(message)]) == ("benchmark", message)


def test_a_kernel_that_is_not_fast(folder, monkeypatch):
    monkeypatch.setattr(boot, "FastFault", lambda booted: None)
    message = "defconfig: FAST_FAULT=y, and the core serves no accesses"
    assert failure(folder) == ("benchmark", message)


def test_whatever_goes_wrong_is_a_line(folder, monkeypatch):
    monkeypatch.setattr(pgtable, "mk_pte", lambda k, pfn, prot: 1 // 0)
    message = "ZeroDivisionError: integer division or modulo by zero; look at the bits of pte"
    assert failure(folder) == ("round trips", message)


# Tiers


def test_what_works_is_said_beside_what_does_not(folder, monkeypatch):
    monkeypatch.setattr(contpte, "_try_fold", lambda k, pte, entry: None)
    outcomes = {o.check: o for o in arch_check("foo", folder, cost_tables)}
    failed = [o.check for o in outcomes.values() if o.status == "FAILED"]
    assert failed == ["contiguous", "tiers"]
    assert outcomes["tiers"] == (
        "tiers", "FAILED", "geometry, THP; no contiguous (FAILED above); no costs (no costs.csv; another "
        "architecture's figures are used)",
    )  # fmt: skip
    edit(folder, "arch.py", "sources={", "sources={} and {")
    *_, last = arch_check("foo", folder, cost_tables)
    assert last == ("tiers", "FAILED", "none; geometry FAILED above")


def test_no_huge_pages(tmp_path):
    """The recipe of Documentation/arch/porting.md; what needs the tier is skipped."""
    folder = write(tmp_path, "8K", "10,10,10", "32")
    edit(folder, "Kconfig", "\tselect HAVE_ARCH_TRANSPARENT_HUGEPAGE\n", "")
    for name in ("defconfig", "baseline_8k_defconfig"):
        (folder / "configs" / name).write_text("")
    (folder / "configs" / "linux-6.12_defconfig").unlink()
    outcomes = {o.check: o for o in arch_check("foo", folder, cost_tables)}
    assert [o.check for o in outcomes.values() if o.status == "FAILED"] == []
    why = "Kconfig does not select HAVE_ARCH_TRANSPARENT_HUGEPAGE"
    for check, tier in (("contiguous", "contiguous"), ("huge leaf", "THP")):
        assert outcomes[check][1:] == ("skipped", f"tier {tier}: {why}")
    assert outcomes["tiers"].text.startswith(f"geometry; no THP ({why}); no contiguous ({why}); ")


def test_costs_are_read(folder):
    """A file is no tier yet."""
    costs = folder / "costs.csv"
    costs.write_text("what,is,this\n")
    message = f"foo/costs.csv:1: not a cost table; its columns are {','.join(COLUMNS)}"
    assert failure(folder) == ("costs", message)
    *_, last = arch_check("foo", folder, cost_tables)
    assert last.text == "geometry, THP, contiguous; no costs (FAILED above)"
    costs.write_text(f"{','.join(COLUMNS)}\n6.12,8192,fork,,1000,made up\n")
    message = "foo/costs.csv: 6.12 8K: no anon_fault; make it anew by scripts/make_costs.py"
    assert failure(folder) == ("costs", message)
    shutil.copy(topdir() / "arch" / "x86" / "costs.csv", costs)
    outcomes = {o.check: o for o in arch_check("foo", folder, cost_tables)}
    assert outcomes["costs"] == ("costs", "ok", "6.12 4K, 7.3 4K")
    assert outcomes["tiers"].text == ", ".join(TIERS)


def test_each_kernel_finds_prices(folder):
    """Those of another architecture, too: what no command would replay is refused."""
    edit(folder, "configs/defconfig", "MADVISE=y", 'MADVISE=y\nCONFIG_COST_RELEASE="six"')
    assert failure(folder) == ("costs", "COST_RELEASE='six': not of the form 6.12")


def test_nothing_to_check(tmp_path):
    with pytest.raises(ArchError, match="unknown architecture 'vax'"):
        list(arch_check("vax"))
    with pytest.raises(ArchError, match=r"no arch.py in it"):
        list(arch_check("foo", tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("6K", "9,9,9", "0"), "page: 6K is not one of 4K, 8K, 16K, 32K, 64K"),
        (("4K", "9", "0"), "levels: 9 is not index bits from the root, like 9,9,9,9 (2 to 5)"),
        (("4K", "9,9,9", "24"), "cont: 24 is not a power of two of entries; 0 = no contiguous blocks"),
    ],
)  # fmt: skip
def test_a_shape_that_is_none(words, message):
    with pytest.raises(ArchError) as e:
        parse_shape(*words)
    assert str(e.value) == message


def test_nothing_is_left_of_a_refused_architecture(tmp_path):
    with pytest.raises(ArchError, match="pte: 14 bits do not fit"):
        new_arch("foo", parse_shape("4K", "9,9,14", "0"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    new_arch("foo", parse_shape("4K", "9,9,9", "0"), tmp_path)
    with pytest.raises(ArchError, match="is there already"):
        new_arch("foo", parse_shape("4K", "9,9,9", "0"), tmp_path)
