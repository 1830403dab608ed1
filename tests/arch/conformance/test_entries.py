# SPDX-License-Identifier: GPL-2.0-only
"""The algebra of page-table entries: what is put in comes out, and nothing else changes."""

import itertools

import pytest
from virtmm.mm import pgtable
from virtmm.mm.vm_flags import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE

FLAGS = [
    sum(flags)
    for n in range(5)
    for flags in itertools.combinations((VM_READ, VM_WRITE, VM_EXEC, VM_SHARED), n)
]
INDEPENDENT = ("write", "young", "dirty", "special", "exec")


@pytest.fixture(scope="module")
def k(boot):
    return boot("C_RANGES=n").k


def switched(entry, attr, on):
    return entry & ~attr.mask | (attr.on if on else attr.off)


def reads(entry, attr):
    return entry & attr.mask == attr.on


def pfns(k):
    """Return the smallest page frame numbers, the largest, and each single bit."""
    most = k.pfn_mask >> k.pfn_shift
    return [0, most, *(1 << bit for bit in range(most.bit_length()))]


def entries(k):
    """Yield (entry, on or off of each independent attribute, is it PROT_NONE): all there are."""
    bits, pfn = k.arch.pte, max(pfns(k)) // 3
    for values in itertools.product((False, True), repeat=len(INDEPENDENT)):
        for none in (False, True):
            prot = pgtable.vm_get_page_prot(k, 0 if none else VM_READ)
            entry = pgtable.mk_pte(k, pfn, prot)
            for name, on in zip(INDEPENDENT, values, strict=True):
                entry = switched(entry, getattr(bits, name), on)
            yield entry, dict(zip(INDEPENDENT, values, strict=True)), none


def test_attributes_do_not_touch_one_another(k):
    bits, pfn = k.arch.pte, max(pfns(k)) // 3
    for entry, state, none in entries(k):
        for name in INDEPENDENT:
            for on in (False, True):
                new = switched(entry, getattr(bits, name), on)
                wanted = state | {name: on}
                assert {n: reads(new, getattr(bits, n)) for n in INDEPENDENT} == wanted
                assert pgtable.pte_pfn(k, new) == pfn
                assert pgtable.pte_present(k, new)
                assert pgtable.pte_accessible(k, new, write=False) is not none


def test_the_functions_read_and_write_these_bits(k):
    for entry, state, none in entries(k):
        for name, read, on, off in (
            ("write", pgtable.pte_write, pgtable.pte_mkwrite, pgtable.pte_wrprotect),
            ("young", pgtable.pte_young, pgtable.pte_mkyoung, pgtable.pte_mkold),
            ("dirty", pgtable.pte_dirty, pgtable.pte_mkdirty, pgtable.pte_mkclean),
        ):
            assert read(k, entry) == state[name]
            assert read(k, on(k, entry)) and not read(k, off(k, entry))
            assert on(k, off(k, entry)) == on(k, on(k, entry))
            assert (on if state[name] else off)(k, entry) == entry
        assert pgtable.pte_special(k, entry) == state["special"]
        assert pgtable.pte_mkspecial(k, entry) == switched(entry, k.arch.pte.special, True)
        writable = state["write"] and not none
        assert pgtable.pte_accessible(k, entry, write=True) == writable


@pytest.mark.parametrize("flags", FLAGS)
def test_every_pfn_comes_back(k, flags):
    prot = pgtable.vm_get_page_prot(k, flags)
    assert pgtable.pte_pfn(k, prot) == 0
    for pfn in pfns(k):
        entry = pgtable.mk_pte(k, pfn, prot)
        assert pgtable.pte_pfn(k, entry) == pfn
        assert pgtable.pte_present(k, entry)
        assert entry < 1 << 64


def test_protections(k):
    bits = k.arch.pte
    for flags in FLAGS:
        prot = pgtable.vm_get_page_prot(k, flags)
        none = not flags & (VM_READ | VM_WRITE | VM_EXEC)
        assert reads(prot, bits.present) is not none
        assert reads(prot, bits.exec) == (flags & VM_EXEC != 0)
        shared_write = flags & VM_WRITE and flags & VM_SHARED
        assert reads(prot, bits.write) == bool(shared_write)
        for entry, state, _ in entries(k):
            new = pgtable.pte_modify(k, entry, prot)
            assert pgtable.pte_pfn(k, new) == pgtable.pte_pfn(k, entry)
            kept = {n: reads(new, getattr(bits, n)) for n in ("young", "dirty", "special")}
            assert kept == {n: state[n] for n in kept}
            assert pgtable.pte_modify(k, new, prot) == new
            assert pgtable.pte_accessible(k, new, write=False) is not none


def test_nothing_is_nothing(k):
    assert not pgtable.pte_present(k, 0)
    assert not pgtable.pte_accessible(k, 0, write=False)
    assert not pgtable.pmd_trans_huge(k, 0)


def test_a_table_is_no_memory(k):
    for pfn in pfns(k):
        entry = pfn << k.pfn_shift | k.arch.pte.table
        assert pgtable.pte_present(k, entry)
        assert not pgtable.pmd_trans_huge(k, entry)
        assert pgtable.pte_pfn(k, entry) == pfn
        assert pgtable.pte_in_table(k, entry, 0) == pfn << k.table_shift


def test_a_huge_entry_is_the_small_one_and_a_mark(k):
    for entry, state, none in entries(k):
        huge = pgtable.pmd_mkhuge(k, entry)
        assert pgtable.pmd_trans_huge(k, huge)
        assert pgtable.pte_present(k, huge)
        assert pgtable.pte_pfn(k, huge) == pgtable.pte_pfn(k, entry)
        assert {n: reads(huge, getattr(k.arch.pte, n)) for n in INDEPENDENT} == state
        assert pgtable.pte_accessible(k, huge, write=False) is not none
        assert pgtable.pmd_to_pte(k, huge) == entry
