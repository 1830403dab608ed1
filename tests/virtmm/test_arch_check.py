# SPDX-License-Identifier: GPL-2.0-only
"""The conformance suite passes for every architecture, and refuses wrong ports by field and value."""

import pytest
from virtmm.arch import names
from virtmm.arch.params import ArchError
from virtmm.mm import contpte, pgtable

from virtmm.arch_check import arch_check
from virtmm.kconfig import resolve
from virtmm.machine import Machine
from virtmm.new_arch import new_arch, parse_shape


@pytest.mark.parametrize("arch", names())
def test_every_architecture(arch):
    outcomes = list(arch_check(arch))
    assert [o for o in outcomes if o.status == "FAILED"] == []
    assert outcomes[-1].check == "tiers" and outcomes[-1].text.startswith("geometry")


@pytest.fixture
def port(tmp_path):
    """Return a function: (file, old text, new text) ... -> the first failure of a port so changed."""
    folder = new_arch("foo", parse_shape("8K", "10,10,10", "32"), tmp_path)

    def check(*edits):
        for name, old, new in edits:
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))
        failed = [o for o in arch_check("foo", folder) if o.status == "FAILED"]
        return failed[0].text.replace(str(folder), "foo") if failed else ""

    return check


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("arch.py", "young=Attr.bit(5)", "young=Attr.bit(6)", "foo.pte.dirty: bit 6 overlaps young; give one of them another bit"),
        ("arch.py", "), 43", "), 44", "foo.geometries[13]: page shift and levels sum to 43, va_bits is 44; correct one of them"),
        (
            "arch.py", "43, 5", "43, 4.585",
            "foo.geometries[13].cont_order: 4.585 is not log2 of a power of two of entries, 0 to 10",
        ),
        ("arch.py", "cont=Attr.bit(10),", "", "foo.geometries[13].cont_order: 5 needs a bit, pte.cont; give it, or 0 here"),
        (
            "Kconfig", "default 10", "default 9",
            "foo.geometries[13].levels.pte: 10 bits make huge pages of that order, "
            "ARCH_FORCE_MAX_ORDER=9 holds none; raise it, or TRANSPARENT_HUGEPAGE=n",
        ),
        (
            "Kconfig", "config PAGE_SHIFT\n\tint\n\tdefault 13\n", "",
            "Kconfig: PAGE_SHIFT has no value; define it with a default",
        ),
        (
            "Kconfig", "config ARCH_FORCE_MAX_ORDER\n\tint\n\tdefault 10\n", "",
            "Kconfig: ARCH_FORCE_MAX_ORDER has no value; define it with a default",
        ),
        (
            "Kconfig", "config FOO\n", "config BAR\n",
            "foo.kconfig_symbol: FOO is not y; define it def_bool y in foo/Kconfig",
        ),
        ("arch.py", '"pte": ', '"entry": ', "foo.sources: no 'pte'; say where it is from"),
        (
            "Kconfig", "default 13", "default 14",
            "foo: no 16K base pages; it has 8K",
        ),
    ],
)  # fmt: skip
def test_a_wrong_port_is_refused(port, file, old, new, message):
    assert port((file, old, new)).endswith(message)


def test_the_port_is_right_without_the_mistake(port):
    assert port() == ""


@pytest.mark.parametrize("cont", ["0", "2", "256"])
def test_blocks_of_any_size(tmp_path, cont):
    folder = new_arch("foo", parse_shape("4K", "9,9,9", cont), tmp_path)
    assert [o.text for o in arch_check("foo", folder) if o.status == "FAILED"] == []


def test_a_huge_page_that_no_block_holds_is_refused_at_boot(tmp_path):
    with pytest.raises(ArchError, match=r"levels.pte: 9 bits .* ARCH_FORCE_MAX_ORDER=8 holds none"):
        folder = new_arch("foo", parse_shape("4K", "9,9,9", "0"), tmp_path)
        text = (folder / "Kconfig").read_text()
        (folder / "Kconfig").write_text(text.replace("default 10", "default 8"))
        Machine(resolve("foo", arch_dir=folder, sets=["MEMORY_MB=64"]))


@pytest.mark.parametrize(
    ("module", "name", "wrong", "message"),
    [
        (pgtable, "pte_mkyoung", lambda k, pte: pgtable.pte_mkdirty(k, pte), "pte.young: "),
        (pgtable, "pmd_mkhuge", lambda k, pte: pte, "pte.leaf: "),
        (pgtable, "pte_pfn", lambda k, pte: 1, "pte.pfn: 0x0 is lost"),
        (contpte, "pte_cont", lambda k, pte: False, "pte.cont: off in entries"),
    ],
)
def test_each_check_can_fail(port, monkeypatch, module, name, wrong, message):
    monkeypatch.setattr(module, name, wrong)
    assert port().startswith(message)


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
