# SPDX-License-Identifier: GPL-2.0-only
"""The contract of an architecture: what contradicts itself is refused, with field and value."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from virtmm.arch import load_arch, loadable, names, reference, shown
from virtmm.arch.params import ArchError, ArchParams, Attr, Geometry, Level

from virtmm import topdir

LEVELS = tuple(Level(name, 9) for name in ("pgd", "pud", "pmd", "pte"))
GOOD = load_arch("x86")
OTHER = "; give one of them another bit"


def params(**changes):
    """Return x86's description with fields changed; those of the entry format by their own names."""
    pte = {f.name for f in dataclasses.fields(GOOD.pte)}
    own = {name: value for name, value in changes.items() if name not in pte}
    entry = {name: value for name, value in changes.items() if name in pte}
    return dataclasses.replace(GOOD, pte=dataclasses.replace(GOOD.pte, **entry), **own)


def refusal(**changes):
    """Return the one line with which changed parameters are refused."""
    with pytest.raises(ArchError) as e:
        params(**changes)
    assert "\n" not in str(e.value)
    return str(e.value)


def geometry(shift=12, levels=LEVELS, va_bits=48):
    return (Geometry(shift, levels, va_bits),)


def test_the_same_description_is_accepted_again():
    assert params() == GOOD


# Entry format


@pytest.mark.parametrize("name", ["write", "young", "dirty", "special", "exec"])
@pytest.mark.parametrize("other", ["write", "young", "dirty", "special", "exec"])
def test_two_attributes_share_no_bit(name, other):
    if name == other:
        return
    attr = getattr(GOOD.pte, other)
    message = refusal(**{name: attr})
    bit = attr.mask.bit_length() - 1
    assert f"bit {bit} overlaps" in message
    assert f"x86.pte.{name}:" in message or f"x86.pte.{other}:" in message


@pytest.mark.parametrize("name", ["write", "young", "dirty", "special", "exec"])
def test_an_attribute_stays_out_of_the_pfn(name):
    assert refusal(**{name: Attr.bit(12)}) == f"x86.pte.{name}: bit 12 overlaps pfn{OTHER}"


@pytest.mark.parametrize("name", ["present", "leaf", "prot_none"])
def test_marks_stay_out_of_the_pfn(name):
    changes = {name: Attr.bit(20)}
    assert refusal(**changes) == f"x86.pte.{name}: bit 20 overlaps pfn{OTHER}"


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (Attr(0, 0, 0), "mask 0x0 is not a 64-bit mask"),
        (Attr(-1, 1), "mask -0x1 is not a 64-bit mask"),
        (Attr(0b10, 0b10, 0b10), "on 0x2 and off 0x2 must differ inside mask 0x2"),
        (Attr(0b10, 0b110), "on 0x6 and off 0x0 must differ inside mask 0x2"),
        (Attr(0b10, 0b10, 0b100), "on 0x2 and off 0x4 must differ inside mask 0x2"),
    ],
)
def test_on_and_off_are_two_values_of_the_mask(attr, message):
    assert refusal(dirty=attr) == f"x86.pte.dirty: {message}"


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (Attr.inverted(58), "on 0x0, off 0x400000000000000 of mask 0x400000000000000"),
        (Attr(0xC00, 0x800, 0x400), "on 0x800, off 0x400 of mask 0xc00"),
        (Attr(0xC00, 0x800), "on 0x800, off 0x0 of mask 0xc00"),
        (Attr(0xC00, 0xC00, 0x400), "on 0xc00, off 0x400 of mask 0xc00"),
    ],
)
def test_the_contiguous_mark_is_bits_that_are_1(attr, message):
    """A block is found and marked by its mask alone."""
    assert refusal(cont=attr) == f"x86.pte.cont: {message}; they must be bits that are 1 when on"
    assert params(cont=Attr(0xC00, 0xC00)).pte.cont


@pytest.mark.parametrize("name", ["user", "table"])
def test_fixed_bits_are_present_and_leave_the_pfn_alone(name):
    value = getattr(GOOD.pte, name)
    message = f"x86.pte.{name}: {value & ~1:#x} is not present; bits 0x1 must be 0x1"
    assert refusal(**{name: value & ~1}) == message
    assert refusal(**{name: value | 1 << 30}) == f"x86.pte.{name}: bit 30 overlaps pfn{OTHER}"


def test_a_table_entry_is_no_leaf():
    value = GOOD.pte.table | 1 << 7
    message = f"x86.pte.table: {value:#x} reads as a leaf; bits 0x80 must be 0x0"
    assert refusal(table=value) == message


def test_the_pfn_fits_the_entry():
    assert refusal(pfn_bits=65) == "x86.pte.pfn_bits: 65 reach beyond bit 63; at most 64"
    message = "x86.pte.pfn_bits: 40 reach beyond bit 63; at most 34"
    assert refusal(pfn_pos=30, pfn_bits=40) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pfn_bits": 21}, "pfn_bits: 21 bits do not name 1024 pages of 2**12 bytes; at least 22"),
        (
            {"pfn_pos": 20, "pfn_bits": 9},
            "pfn_bits: 9 bits do not name 1024 pages of 2**12 bytes; at least 10",
        ),
        ({"pfn_pos": 64}, "pfn_pos: 64 is no bit of an entry, 0 to 63; None = at the page shift"),
        ({"pfn_pos": -1}, "pfn_pos: -1 is no bit of an entry, 0 to 63; None = at the page shift"),
        ({"address_shift": -2}, "address_shift: -2 bits, 0 to 63 can be"),
    ],
)  # fmt: skip
def test_a_pfn_that_is_none(changes, message):
    assert refusal(**changes) == f"x86.pte.{message}"


@pytest.mark.parametrize("mark", ["present", "prot_none", "leaf", "user"])
@pytest.mark.parametrize("name", ["write", "young", "dirty", "special", "exec", "cont"])
def test_an_attribute_has_no_bit_of_a_mark(name, mark):
    """Setting one changes whether the entry is there, or what it is; bits of ``user`` are not free."""
    bit = {"present": 0, "prot_none": 8, "leaf": 7, "user": 2}[mark]
    message = refusal(**{name: Attr.bit(bit)})
    assert message == f"x86.pte.{name}: bit {bit} overlaps {mark}{OTHER}"


@pytest.mark.parametrize(
    ("name", "bit"), [("write", 1), ("young", 5), ("special", 9), ("cont", 10)]
)
def test_user_has_no_bit_of_an_attribute(name, bit):
    message = refusal(user=GOOD.pte.user | 1 << bit, cont=Attr.bit(10))
    assert message == f"x86.pte.{name}: bit {bit} overlaps user{OTHER}"


@pytest.mark.parametrize(("name", "bit"), [("present", 0), ("prot_none", 8)])
def test_leaf_is_no_other_mark(name, bit):
    assert refusal(leaf=Attr.bit(bit)) == f"x86.pte.leaf: bit {bit} overlaps {name}{OTHER}"


def test_user_says_that_prot_none_is_off():
    """Else every entry of a page that may be accessed is not as ``user`` says."""
    for bit, attr, wanted in ((2, Attr.bit(2), 0), (11, Attr.inverted(11), 1)):
        message = f"user: 0x5 does not say that prot_none is off; bit {bit} must be {wanted}"
        assert refusal(prot_none=attr) == f"x86.pte.{message}"
    assert params(user=0x805, prot_none=Attr.inverted(11)).pte.user == 0x805


def test_nothing_present_and_prot_none_are_told_apart():
    message = "x86.pte.present: on 0x0, so that an empty entry, 0, is present; take a bit that is 1"
    for bit in (0, 11):
        assert refusal(present=Attr.inverted(bit)).startswith(message)
    message = "x86.pte.prot_none: off 0x0 is not present; keep 0x1 in it"
    assert refusal(prot_none=Attr(0x101, 0x100, 0)) == message
    message = "x86.pte.prot_none: on 0x101 is present too; it must not have 0x1"
    assert refusal(prot_none=Attr(0x101, 0x101, 1)) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"young": 5}, "young: 5 is not an Attr; write Attr.bit(n)"),
        ({"cont": 52}, "cont: 52 is not an Attr; write Attr.bit(n)"),
        ({"young": None}, "young: None is not an Attr; write Attr.bit(n)"),
        ({"young": Attr("5", 5)}, "young.mask: '5' is not an integer"),
        ({"young": Attr(1 << 64, 1)}, "young.mask: 0x10000000000000000 is not a 64-bit value"),
        ({"leaf": Attr(True, True)}, "leaf.mask: True is not an integer"),
        ({"pfn_pos": True}, "pfn_pos: True is not an integer"),
        ({"pfn_bits": 48.0}, "pfn_bits: 48.0 is not an integer"),
        ({"address_shift": None}, "address_shift: None is not an integer"),
        ({"pfn_bits": None}, "pfn_bits: None is not an integer"),
        ({"user": "5"}, "user: '5' is not an integer"),
        ({"user": 1 << 70 | 1}, "user: 0x400000000000000001 is not a 64-bit value"),
        ({"table": -1}, "table: -0x1 is not a 64-bit value"),
    ],
)  # fmt: skip
def test_fields_have_their_types(changes, message):
    assert refusal(**changes) == f"x86.pte.{message}"


@pytest.mark.parametrize("name", ["gfp_zero", "gfp_zerotags", "reference"])
@pytest.mark.parametrize("value", ["n", 1, None])
def test_switches_are_bools(name, value):
    assert refusal(**{name: value}) == f"x86.{name}: {value!r} is not True or False"


def test_a_value_that_does_not_show_itself():
    class Shy:
        def __repr__(self):
            raise ValueError

    assert refusal(young=Shy()).startswith("x86.pte.young: <Shy instance at 0x")


def test_messages_are_one_line_of_sane_length():
    text = str(ArchError("a\nb\ud800" + "x" * 1_000_000 + "; do this"))
    assert text.startswith("a\\nb\\ud800xxx")
    assert text.endswith("xxx; do this")
    assert len(text) < 1000


def test_names_are_words():
    for name in ("name", "machine", "kconfig_symbol"):
        where = "" if name == "name" else "x86"
        for value in ("", "a\nb", "a b", "é", "-a"):
            message = f".{name}: {value!r} is not a word of letters and digits"
            assert refusal(**{name: value}).endswith(message)
            assert refusal(**{name: value}).startswith(where)


def test_names_are_strings():
    for name in ("machine", "kconfig_symbol"):
        assert refusal(**{name: 5}) == f"x86.{name}: 5 is not a string"
    assert refusal(sources={5: "x"}) == "x86.sources, a key: 5 is not a string"
    assert refusal(sources={"pte": 5}) == "x86.sources['pte']: 5 is not a string"
    assert refusal(name=None) == "ARCH.name: None is not a string"
    assert refusal(sources=5) == "x86.sources: 5 is not a dict, field to source"
    with pytest.raises(ArchError, match=r"^x86.pte: None is not a PteFormat$"):
        dataclasses.replace(GOOD, pte=None)


@pytest.mark.parametrize("number", [-1, 64])
def test_a_bit_that_no_entry_has(number):
    for make in (Attr.bit, Attr.inverted):
        with pytest.raises(ValueError, match=f"^bit {number} is not one of 0 to 63$"):
            make(number)


def test_a_pfn_field_of_its_own_place():
    """Three ways to place a pfn: part of an address, the address moved up (mips), or a field (riscv)."""
    assert params().pte.pfn_mask(12) == (1 << 52) - (1 << 12)
    assert params().pte.pfn_shift(12) == 12
    arch = params(address_shift=2, exec=Attr.inverted(12))
    assert (arch.pte.pfn_mask(12), arch.pte.pfn_shift(12)) == ((1 << 54) - (1 << 14), 14)
    assert arch.pte.pfn_shift(16) == 18
    arch = params(pfn_pos=10, pfn_bits=44)
    assert (arch.pte.pfn_mask(12), arch.pte.pfn_shift(12)) == (((1 << 44) - 1) << 10, 10)


# Geometry


@pytest.mark.parametrize(
    ("geometries", "message"),
    [
        ((), "x86.geometries: empty; name at least one base page size"),
        (
            geometry(va_bits=47),
            "x86.geometries[12]: page shift and levels sum to 48, va_bits is 47; correct one of them",
        ),
        (
            geometry(levels=LEVELS[1:]),
            "x86.geometries[12]: page shift and levels sum to 39, va_bits is 48; correct one of them",
        ),
        (geometry(levels=()), "x86.geometries[12].levels: the last two levels must be pmd and pte"),
        (
            geometry(levels=LEVELS[:-1]),
            "x86.geometries[12].levels: the last two levels must be pmd and pte",
        ),
        (
            geometry(levels=LEVELS[-1:]),
            "x86.geometries[12].levels: the last two levels must be pmd and pte",
        ),
        (
            geometry(levels=(*LEVELS[:2], Level("pmd", 14), Level("pte", 9)), va_bits=53),
            "x86.geometries[12].levels.pmd: 14 bits do not fit a table of 16 pages (at most 13)",
        ),
        (
            geometry(levels=(Level("pgd", 0), *LEVELS[1:])),
            "x86.geometries[12].levels.pgd: 0 bits do not fit a table of 16 pages (at most 13)",
        ),
        (
            geometry(levels=(Level("pmd", 9), Level("pgd", 9), *LEVELS[2:])),
            "x86.geometries[12].levels: pmd, pgd, pmd, pte are not in the order pgd, p4d, pud, pmd, "
            "pte, each once; folded levels are left out",
        ),
        (
            geometry(levels=(Level("root", 9), *LEVELS[1:])),
            "x86.geometries[12].levels: root, pud, pmd, pte are not in the order pgd, p4d, pud, pmd, "
            "pte, each once; folded levels are left out",
        ),
        (
            geometry(levels=(Level("pmd", 10), Level("pte", 1)), va_bits=23),
            "x86.geometries[12].levels.pte: 1 bit makes a huge page of 2 pages; at least 4, so 2 bits",
        ),
        (
            geometry(
                16, (Level("pgd", 12), Level("pud", 12), Level("pmd", 12), Level("pte", 12)), 64
            ),
            "x86.geometries[16].va_bits: 64, user addresses have at most 63 bits; leave out a level, "
            "or index bits of the first",
        ),
        (
            geometry(levels=(Level("pmd", 6), Level("pte", 2)), va_bits=20),
            "x86.geometries[12].va_bits: user addresses end at 0x100000, a program needs 0x400000 (4 PMD "
            "entries and 1024 pages); give it more",
        ),
        (
            geometry(levels=(Level("pmd", 1), Level("pte", 9)), va_bits=22),
            "x86.geometries[12].va_bits: user addresses end at 0x400000, a program needs 0x800000 (4 PMD "
            "entries and 1024 pages); give it more",
        ),
        (
            GOOD.geometries[0],
            "x86.geometries: " + repr(GOOD.geometries[0]) + " is not a tuple; "
            "write (..., ...), and of one (...,) with the comma",
        ),
        ((5,), "x86.geometries[0]: 5 is not a Geometry"),
        (
            geometry(levels=LEVELS[0]),
            f"x86.geometries[0].levels: {LEVELS[0]} is not a tuple; write (..., ...), and of one (...,) "
            "with the comma",
        ),
        (
            geometry(levels=(9, 9)),
            "x86.geometries[0].levels[0]: 9 is not a Level; write Level(name, bits)",
        ),
        (
            geometry(levels=(Level("pmd", 9), Level("pte", "9"))),
            "x86.geometries[0].levels[1].bits: '9' is not an integer",
        ),
        (geometry(va_bits="48"), "x86.geometries[0].va_bits: '48' is not an integer"),
        (geometry(shift="12") + geometry(), "x86.geometries[0].page_shift: '12' is not an integer"),
        (geometry(shift=11), "x86.geometries[11].page_shift: 11 is not 12 to 16"),
        (geometry(shift=17), "x86.geometries[17].page_shift: 17 is not 12 to 16"),
        (geometry() * 2, "x86.geometries: page shifts [12, 12] are not ascending"),
    ],
)
def test_levels_add_up(geometries, message):
    assert refusal(geometries=geometries) == message


def test_a_table_may_take_several_pages():
    levels = (Level("pgd", 12), Level("pmd", 10), Level("pte", 5))
    (g,) = params(geometries=geometry(levels=levels, va_bits=39)).geometries
    assert [g.table_order(depth) for depth in range(3)] == [3, 1, 0]


@pytest.mark.parametrize("size", [-4096, 4095, (1 << 48) + 4096])
def test_the_end_of_user_addresses(size):
    good = dataclasses.replace(GOOD.geometries[0], task_size=1 << 48)
    assert params(geometries=(good,)).geometries == (good,)
    message = refusal(geometries=(dataclasses.replace(good, task_size=size),))
    assert message == (f"x86.geometries[12].task_size: {size:#x} is not whole pages up to 2**48")
    message = refusal(geometries=(dataclasses.replace(good, task_size=8192),))
    assert message == (
        "x86.geometries[12].task_size: user addresses end at 0x2000, a program needs 0x800000 (4 PMD "
        "entries and 1024 pages); give it more"
    )


def test_tags_are_cleared_by_who_clears_the_page():
    assert params(gfp_zero=True, gfp_zerotags=True).gfp_zerotags
    message = refusal(gfp_zero=False, gfp_zerotags=True)
    assert message == "x86.gfp_zerotags: needs gfp_zero, tags go with the contents"


def test_an_entry_format_is_checked_for_every_page_size():
    """A bit between two page shifts is free with the larger page and part of the pfn with the smaller."""
    large = Geometry(14, tuple(Level(n, 11) for n in ("pgd", "pmd", "pte")), 47)
    arch = params(geometries=(large,), young=Attr.bit(12))
    assert arch.geometry(14).pmd_order == 11
    message = refusal(geometries=(GOOD.geometries[0], large), young=Attr.bit(12))
    assert message == f"x86.pte.young: bit 12 overlaps pfn{OTHER}"


def test_a_page_size_that_an_architecture_has_not():
    for arch, shift, have in (
        (GOOD, 16, "12"),
        (GOOD, -1, "12"),
        (load_arch("arm64"), 13, "12, 14, 16"),
    ):
        with pytest.raises(ArchError) as e:
            arch.geometry(shift)
        assert str(e.value) == (
            f"{arch.name}.geometries: PAGE_SHIFT={shift} of Kconfig is none of their page shifts, {have}; "
            "make them agree"
        )


def test_a_description_cannot_be_changed_later():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.name = "y86"
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD.pte.write.mask = 1


# Loading


@pytest.mark.parametrize("name", names())
def test_every_architecture_of_the_tree_loads_and_names_its_sources(name):
    arch = load_arch(name)
    assert arch.name == name
    assert {"geometries", "pte"} <= set(arch.sources)


def test_an_unknown_architecture_lists_the_known():
    with pytest.raises(ArchError) as e:
        load_arch("vax")
    assert str(e.value) == f"unknown architecture 'vax'; choose one of: {', '.join(names())}"


@pytest.fixture
def outside(tmp_path):
    """Return a function that writes arch.py of an architecture outside the tree, and its folder."""

    def write(text):
        (tmp_path / "arch.py").write_text(text)
        return tmp_path

    return write


EMPTY = 'ARCH = dataclasses.replace(load_arch("x86"), name="toy", geometries=())\n'
SHY = "class Shy(Exception):\n    def __str__(self): raise SystemExit\n"
COPY = "import dataclasses\nfrom virtmm.arch import load_arch\n"


def test_a_folder_outside_the_tree(outside):
    folder = outside(
        COPY + 'ARCH = dataclasses.replace(load_arch("x86"), name="toy", machine="toy64")\n'
    )
    arch = load_arch("toy", folder)
    assert isinstance(arch, ArchParams)
    assert (arch.name, arch.machine, arch.pte) == ("toy", "toy64", GOOD.pte)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X = 1\n", "arch.py binds one global, ARCH = ArchParams(...)"),
        ("ARCH = 5\n", "ARCH is int, not ArchParams"),
        ("X = 1\nARCH = (\n", "arch.py:2: SyntaxError: '(' was never closed (ARCH = ()"),
        ("import nosuchmodule\n", "nosuchmodule"),
        (
            "X = 1\nARCH = 1 // 0\n",
            "arch.py:2: ZeroDivisionError: integer division or modulo by zero (ARCH",
        ),
        ("\0", "arch.py: SyntaxError: source code string cannot contain null bytes"),
        ("raise SystemExit(0)\n", "arch.py:1: SystemExit: 0 (raise SystemExit(0))"),
        ("raise GeneratorExit\n", "arch.py:1: GeneratorExit:  (raise GeneratorExit)"),
        (
            "raise BaseException('a\\nb')\n",
            "arch.py:1: BaseException: a b (raise BaseException('a\\nb'))",
        ),
        ("raise ValueError('\\ud800')\n", "arch.py:1: ValueError: \\ud800 (raise"),
        (SHY + "raise Shy\n", "arch.py:3: Shy: <exception str() failed> (raise Shy)"),
        ("from virtmm.arch.params import ArchError\nraise ArchError('a\\nb')\n", "a\\nb"),
        (
            "from virtmm.arch.params import ArchError\nraise ArchError\n",
            "arch.py:2: ArchError:  (raise ArchError)",
        ),
        (
            "X = open('nosuch')\n",
            "arch.py:1: FileNotFoundError: [Errno 2] No such file or directory: 'nosuch'",
        ),
        (
            "def __getattr__(name):\n    raise SystemExit\n",
            "arch.py: no ARCH; arch.py binds one global",
        ),
        (
            "import sys\nsys.nope()\n",
            "arch.py:2: AttributeError: module 'sys' has no attribute 'nope'",
        ),
        (
            "from virtmm.arch.params import Attr\n\nARCH = dict(\n  young=Attr.bit(-1),\n)\n",
            "arch.py:4: ValueError: bit -1 is not one of 0 to 63 (young=Attr.bit(-1),)",
        ),
        ("from virtmm.arch.params import ArchParams\nARCH = ArchParams(name='toy')\n", "missing"),
        (
            COPY + 'ARCH = load_arch("x86")\n',
            "ARCH.name is 'x86', asked for 'toy'; an architecture has its folder's name",
        ),
        (COPY + EMPTY, "toy.geometries: empty"),
    ],
)
def test_a_description_that_is_none(outside, text, message):
    with pytest.raises(ArchError) as e:
        load_arch("toy", outside(text))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_ctrl_c_is_no_mistake_of_a_description(outside):
    with pytest.raises(KeyboardInterrupt):
        load_arch("toy", outside("raise KeyboardInterrupt\n"))


def test_paths_in_the_tree_are_shown_from_its_top(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for path, text in (
        (topdir() / "arch" / "x86" / "arch.py", "arch/x86/arch.py"),
        (Path("x86/arch.py"), "x86/arch.py"),
        (tmp_path / "x86", f"{tmp_path}/x86"),
        (Path("loop"), "loop"),
    ):
        assert shown(path) == text
    with pytest.raises(ArchError, match=r"^arch/x86/arch.py: ARCH.name is 'x86', asked for 'toy'"):
        load_arch("toy", topdir() / "arch" / "x86")


def test_a_folder_without_a_description(tmp_path):
    with pytest.raises(ArchError) as e:
        load_arch("toy", tmp_path)
    message = f"{tmp_path}: no arch.py in it; virtmm new-arch writes a folder with one"
    assert str(e.value) == message


def test_what_is_no_folder(outside):
    folder = outside("ARCH = 5\n")
    with pytest.raises(ArchError, match=r"nope: no such folder$"):
        load_arch("toy", folder / "nope")
    with pytest.raises(ArchError, match=r"arch.py: not a folder; name the one it is in$"):
        load_arch("toy", folder / "arch.py")


def test_a_description_that_cannot_be_read(tmp_path):
    (tmp_path / "arch.py").symlink_to("/proc/self/mem")
    with pytest.raises(ArchError, match=r"arch.py: OSError: .*Input/output error$"):
        load_arch("toy", tmp_path)


# Tiers


@pytest.mark.parametrize(
    ("order", "what"),
    [
        (-1, "below 0, 0 to 9"),
        (10, "larger than a table, 0 to 9"),
        (32, "larger than a table, 0 to 9; 32 entries are 5"),
    ],
)
def test_a_contiguous_block_is_a_power_of_two_of_entries(order, what):
    good = dataclasses.replace(GOOD.geometries[0], cont_order=order)
    message = refusal(geometries=(good,), cont=Attr.bit(58))
    assert message == f"x86.geometries[12].cont_order: {order} is {what}"


def test_24_entries_have_no_order():
    good = dataclasses.replace(GOOD.geometries[0], cont_order=4.585)
    message = refusal(geometries=(good,), cont=Attr.bit(58))
    assert message == "x86.geometries[0].cont_order: 4.585 is not an integer"


def test_contiguous_blocks_need_their_bit():
    good = dataclasses.replace(GOOD.geometries[0], cont_order=4)
    assert params(geometries=(good,), cont=Attr.bit(58)).geometries == (good,)
    message = refusal(geometries=(good,))
    assert message == "x86.geometries[12].cont_order: 4 needs a bit, pte.cont; give it, or 0 here"


def test_the_line_of_a_mistake_is_said_of_a_relative_folder_too(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "arch.py").write_text("X = 1\nARCH = 1 // 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchError, match=r"^toy/arch\.py:2: ZeroDivisionError"):
        load_arch("toy", Path("toy"))


def test_a_port_that_is_not_right_yet_is_in_nobodys_way(tmp_path, monkeypatch):
    for name in ("alpha", "arm64"):
        shutil.copytree(topdir() / "arch" / name, tmp_path / name)
    monkeypatch.setattr("virtmm.arch._here", tmp_path)
    for text in ("raise SystemExit(0)\n", "ARCH = 5\n"):
        (tmp_path / "alpha" / "arch.py").write_text(text)
        assert names() == ["alpha", "arm64"]
        assert reference() == "arm64"
        assert [arch.name for arch in loadable()] == ["arm64"]
    shutil.rmtree(tmp_path / "arm64")
    with pytest.raises(ArchError, match=r"no architecture has reference=True; give it to one$"):
        reference()


def test_one_architecture_is_the_reference():
    assert [name for name in names() if load_arch(name).reference] == [reference()]
