# SPDX-License-Identifier: GPL-2.0-only
"""TLB entries that page tables need, counted by hand."""

import pytest
from virtmm.mm.vm_flags import MADV_FREE, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE

NEW = "linux-7.3"


def counts(m, kind="data"):
    """Return (pages, pages in contiguous blocks, plain, hpa, cont, best)."""
    found = m.tlb()[kind]
    pages = found["bytes"] // m.page_size, found["cont_bytes"] // m.page_size
    return (*pages, *(found[name] for name in ("plain", "hpa", "cont", "best")))


def alike(m, kind="data"):
    """Return (pages, entries) where no way of counting joins anything."""
    pages, cont_pages, *entries = counts(m, kind)
    assert cont_pages == 0
    assert len(set(entries)) == 1
    return pages, entries[0]


def test_an_address_space_without_pages_needs_none(lab):
    m = lab()
    m.map(0, 64)
    assert alike(m) == alike(m, "text") == (0, 0)


@pytest.mark.parametrize(
    ("arch", "fragments"), [("arm64", []), ("arm64", ["16k"]), ("arm64", ["64k"]), ("x86", [])]
)
def test_pages_that_do_not_follow_one_another_take_an_entry_each(lab, arch, fragments):
    m = lab("linux-6.12", arch=arch, fragments=fragments)
    m.map(0, 16)
    m.write(*reversed(range(16)))
    assert alike(m) == (16, 16)


@pytest.mark.parametrize(
    ("arch", "fragments"), [("arm64", []), ("arm64", ["16k"]), ("arm64", ["64k"]), ("x86", [])]
)
def test_an_order_2_folio_is_one_group(lab, arch, fragments):
    page_kb = {"16k": 16, "64k": 64}.get(*fragments or [""], 4)
    m = lab("linux-6.12", arch=arch, fragments=fragments, knobs=[f"{4 * page_kb}kB=always"])
    m.map(0, 8)
    m.write(0, 4)
    assert m.orders(0, 8) == [2] * 8
    assert counts(m) == (8, 0, 8, 2, 8, 2)


def test_a_group_must_be_aligned_in_the_address_too(lab):
    m = lab(NEW, knobs=["16kB=always"])
    m.map(0, 4)
    m.write(0)
    assert m.mremap(1, m.at(0), 4 * m.page_size, m.at(10), 4 * m.page_size, 3) == 0
    assert m.folio(10) == (2, 0)
    assert alike(m) == (4, 4)


def test_a_group_must_lie_in_one_mapping(lab):
    m = lab(NEW, knobs=["16kB=always"])
    m.map(0, 8)
    m.write(0, 4)
    m.unmap(6, 8)
    assert counts(m) == (6, 0, 6, 3, 6, 3)


def test_a_group_is_of_equal_attributes(lab):
    m = lab(NEW, knobs=["16kB=always"])
    m.map(0, 8)
    m.write(0, 4)
    assert m.mprotect(1, m.at(5), m.page_size, PROT_READ) == 0
    assert counts(m) == (8, 0, 8, 1 + 4, 8, 1 + 4)


def test_dirty_is_an_attribute(lab):
    m = lab(NEW, knobs=["16kB=always"])
    m.map(0, 4)
    m.write(0)
    m.advise(0, 4, MADV_FREE)
    assert counts(m)[3] == 1
    m.write(2)
    assert counts(m)[3] == 4


@pytest.mark.parametrize(
    ("fragments", "size", "nr"),
    [([], "64kB", 16), (["16k"], "2048kB", 128), (["64k"], "2048kB", 32)],
    ids=["4k", "16k", "64k"],
)
def test_a_contiguous_block_is_one_entry(lab, fragments, size, nr):
    m = lab(NEW, fragments=fragments, knobs=[f"{size}=always"])
    m.map(0, 2 * nr - 1)
    m.write(0, nr + 1, nr)
    assert counts(m) == (nr + 2, nr, nr + 2, nr // 4 + 2, 1 + 2, 1 + 2)


def test_a_block_that_was_taken_apart_has_its_groups_left(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 32)
    m.write(0, 16)
    assert counts(m) == (32, 32, 32, 8, 2, 2)
    m.unmap(15, 16)
    assert counts(m) == (31, 16, 31, 3 + 3 + 4, 15 + 1, 3 + 3 + 1)


def test_without_the_option_nothing_is_marked(lab):
    m = lab(NEW, "ARM64_CONTPTE=n", knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    assert counts(m) == (16, 0, 16, 4, 16, 4)


def test_a_block_is_one_entry_though_dirty_differs_in_it(lab):
    """The bit is what the processor goes by; young and dirty are those of the whole block."""
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 16)
    m.write(0)
    dirty = m.k.arch.pte.dirty
    place = next(i for i, e in enumerate(m.k.phys[: 1 << 20]) if e == m.entry(1))
    m.k.phys[place] ^= dirty.mask
    assert counts(m) == (16, 16, 16, 4 + 3, 1, 1)


@pytest.mark.parametrize("arch", ["arm64", "x86"])
def test_a_huge_entry_is_one(lab, arch):
    m = lab(NEW, arch=arch, knobs=["2048kB=always"])
    m.map(0, 513)
    m.write(0, 512)
    assert counts(m) == (513, 0, 2, 2, 2, 2)


def test_zero_pages_count_and_pages_without_rights_do_not(lab):
    m = lab("baseline_4k")
    m.map(0, 8)
    m.read(0, 1, 2, 3)
    assert alike(m) == (4, 4)
    m.write(4, 5)
    assert m.mprotect(1, m.at(2), 3 * m.page_size, 0) == 0
    assert alike(m) == (3, 3)


def test_a_huge_entry_without_rights_counts_nothing(lab):
    m = lab(NEW, knobs=["2048kB=always"])
    m.map(0, 512)
    m.write(0)
    assert m.mprotect(1, m.at(0), 512 * m.page_size, 0) == 0
    assert alike(m) == (0, 0)


def test_text_is_executable_file_memory_and_nothing_else(lab):
    m = lab("baseline_4k", knobs=["fault_around_bytes=4096"])
    file = m.open(7, 100 * m.page_size)
    m.map(0, 8, prot=PROT_READ | PROT_EXEC, file=file)
    m.read(0, 2, 4)
    assert (alike(m, "text"), alike(m)) == ((3, 3), (0, 0))
    m.map(20, 28, prot=PROT_READ, file=file)
    m.map(40, 48, prot=PROT_READ | PROT_WRITE | PROT_EXEC)
    m.map(60, 68, prot=PROT_READ | PROT_WRITE | PROT_EXEC, flags=MAP_SHARED)
    m.read(20)
    m.write(40, 42)
    m.write(60, 62)
    assert (alike(m, "text"), alike(m)) == ((3, 3), (5, 5))


def test_each_address_space_counts_once_as_it_was_at_its_end(lab):
    m = lab("baseline_4k")
    m.map(0, 8)
    m.write(0, 2)
    m.fork(1, 2)
    m.write(4, pid=2)
    assert alike(m) == alike(m) == (2 + 3, 5)
    m.exit(2)
    assert alike(m) == (5, 5)
    m.write(6)
    assert alike(m) == (6, 6)
    assert m.exec(1) == 0
    assert alike(m) == (6, 6)
    m.map(0, 8)
    m.write(0)
    assert alike(m) == (7, 7)
    m.exit(1)
    assert alike(m) == (7, 7)


def test_a_borrowed_address_space_counts_once(lab):
    m = lab("baseline_4k")
    m.map(0, 8)
    m.write(0)
    assert m.fork(1, 2, 0x100) == 0
    assert alike(m) == (1, 1)
    m.exit(2)
    assert alike(m) == (1, 1)
    m.exit(1)
    assert alike(m) == (1, 1)


def test_looking_changes_nothing(lab):
    m = lab(NEW, knobs=["64kB=always"])
    m.map(0, 64)
    m.write(0, 16)
    before = m.digest()
    m.tlb()
    assert m.digest() == before
