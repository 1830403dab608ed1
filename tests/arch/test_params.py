# SPDX-License-Identifier: GPL-2.0-only
"""The contract of an architecture: what contradicts itself is refused, with field and value."""

import dataclasses

import pytest
from virtmm.arch import load_arch, names, reference
from virtmm.arch.params import ArchError, ArchParams, Attr, Geometry, Level

LEVELS = tuple(Level(name, 9) for name in ("pgd", "pud", "pmd", "pte"))
GOOD = load_arch("x86")


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
    assert refusal(**{name: Attr.bit(12)}) == f"x86.pte.{name}: bit 12 overlaps pfn"


@pytest.mark.parametrize("name", ["present", "leaf", "prot_none"])
def test_marks_stay_out_of_the_pfn(name):
    changes = {name: Attr.bit(20)}
    assert refusal(**changes) == f"x86.pte.{name}: mask 0x100000 overlaps pfn"


@pytest.mark.parametrize(
    ("attr", "message"),
    [
        (Attr(0, 0, 0), "mask 0x0 is not a 64-bit mask"),
        (Attr(1 << 64, 1 << 64), "mask 0x10000000000000000 is not a 64-bit mask"),
        (Attr(0b10, 0b10, 0b10), "on 0x2 and off 0x2 must differ inside mask 0x2"),
        (Attr(0b10, 0b110), "on 0x6 and off 0x0 must differ inside mask 0x2"),
        (Attr(0b10, 0b10, 0b100), "on 0x2 and off 0x4 must differ inside mask 0x2"),
    ],
)
def test_on_and_off_are_two_values_of_the_mask(attr, message):
    assert refusal(dirty=attr) == f"x86.pte.dirty: {message}"


@pytest.mark.parametrize("name", ["user", "table"])
def test_fixed_bits_are_present_and_leave_the_pfn_alone(name):
    value = getattr(GOOD.pte, name)
    assert refusal(**{name: value & ~1}) == f"x86.pte.{name}: {value & ~1:#x} is not present"
    assert (
        refusal(**{name: value | 1 << 30}) == f"x86.pte.{name}: {value | 1 << 30:#x} overlaps pfn"
    )


def test_a_table_entry_is_no_leaf():
    value = GOOD.pte.table | 1 << 7
    assert refusal(table=value) == f"x86.pte.table: {value:#x} reads as a leaf"


def test_the_pfn_fits_the_entry():
    assert refusal(pfn_bits=65) == "x86.pte.pfn_bits: 65 reach beyond bit 63"
    assert refusal(pfn_pos=30, pfn_bits=40) == "x86.pte.pfn_bits: 40 reach beyond bit 63"


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
            "x86.geometries[12]: page shift and levels sum to 48, va_bits is 47",
        ),
        (
            geometry(levels=LEVELS[1:]),
            "x86.geometries[12]: page shift and levels sum to 39, va_bits is 48",
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
    assert message == "x86.pte.young: bit 12 overlaps pfn"


def test_a_page_size_that_an_architecture_has_not():
    with pytest.raises(ArchError, match="x86: no 64K base pages; it has 4K"):
        GOOD.geometry(16)
    with pytest.raises(ArchError, match="arm64: no 8K base pages; it has 4K, 16K, 64K"):
        load_arch("arm64").geometry(13)


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
        ("ARCH = (\n", "was never closed"),
        ("import nosuchmodule\n", "nosuchmodule"),
        ("from virtmm.arch.params import ArchParams\nARCH = ArchParams(name='toy')\n", "missing"),
        (COPY + 'ARCH = load_arch("x86")\n', "ARCH.name is 'x86', asked for 'toy'"),
        (COPY + EMPTY, "toy.geometries: empty"),
    ],
)
def test_a_description_that_is_none(outside, text, message):
    with pytest.raises(ArchError) as e:
        load_arch("toy", outside(text))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_folder_without_a_description(tmp_path):
    with pytest.raises(ArchError) as e:
        load_arch("toy", tmp_path)
    assert str(e.value) == f"{tmp_path}: no arch.py in it; virtmm new-arch writes one"


# Tiers


@pytest.mark.parametrize("order", [-1, 10, 4.585])
def test_a_contiguous_block_is_a_power_of_two_of_entries(order):
    """An order is log2: 24 entries have none."""
    good = dataclasses.replace(GOOD.geometries[0], cont_order=order)
    message = refusal(geometries=(good,), cont=Attr.bit(58))
    assert message == (
        f"x86.geometries[12].cont_order: {order} is not log2 of a power of two of entries, 0 to 9"
    )


def test_contiguous_blocks_need_their_bit():
    good = dataclasses.replace(GOOD.geometries[0], cont_order=4)
    assert params(geometries=(good,), cont=Attr.bit(58)).geometries == (good,)
    message = refusal(geometries=(good,))
    assert message == "x86.geometries[12].cont_order: 4 needs a bit, pte.cont"


def test_one_architecture_is_the_reference():
    assert [name for name in names() if load_arch(name).reference] == [reference()]
