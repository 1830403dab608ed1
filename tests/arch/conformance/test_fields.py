# SPDX-License-Identifier: GPL-2.0-only
"""What an architecture says of itself adds up, and Kconfig says the same."""

import pytest
from virtmm.arch import load_arch, names

from virtmm.kconfig import defconfigs, fragment_names, resolve


@pytest.mark.parametrize("arch", names())
def test_every_field_has_a_source(arch):
    params = load_arch(arch)
    assert {"geometries", "pte"} <= params.sources.keys()
    assert params.machine and params.kconfig_symbol
    assert resolve(arch)[params.kconfig_symbol] is True


@pytest.mark.parametrize("arch", names())
def test_every_named_kernel_and_fragment_resolves_to_a_page_size_it_has(arch):
    params = load_arch(arch)
    for name in ("defconfig", *defconfigs(arch)):
        params.geometry(int(resolve(arch, name)["PAGE_SHIFT"]))
    for name in fragment_names(arch):
        if name.endswith("k") and name[:-1].isdigit():
            config = resolve(arch, fragments=[name])
            assert 1 << config["PAGE_SHIFT"] == int(name[:-1]) << 10


def test_there_is_a_base_page_kernel(platform, kernel):
    arch, geometry = platform
    config = resolve(arch, kernel)
    assert config["PAGE_SHIFT"] == geometry.page_shift
    assert config["ANON_POLICY_BASE"] is True


def test_orders_fit_the_allocator(platform, kernel):
    """The buddy allocator holds a huge page where the kernel may make one, and any page table."""
    arch, geometry = platform
    config = resolve(arch, kernel)
    if config["HAVE_ARCH_TRANSPARENT_HUGEPAGE"]:
        assert geometry.pmd_order <= config["ARCH_FORCE_MAX_ORDER"]
    for depth, level in enumerate(geometry.levels):
        size = 1 << geometry.page_shift + geometry.table_order(depth)
        assert 8 << level.bits <= size
        assert size == 1 << geometry.page_shift or size == 8 << level.bits


def test_orders_of_large_folios(platform, kernel):
    """Who opts in gives two orders, for each page size; nobody else gives any."""
    arch, geometry = platform
    config = resolve(arch, kernel)
    for kind in ("NOTHP", "THP"):
        order = config.get(f"ARCH_LARGE_ANON_FOLIO_{kind}_ORDER_MAX", None)
        if config["ARCH_SUPPORTS_LARGE_ANON_FOLIO"]:
            assert order in (0, *range(2, geometry.pmd_order + 1))
        else:
            assert order is None


def test_the_default_memory_has_addresses(platform, kernel):
    arch, geometry = platform
    bits = load_arch(arch).pte
    most = (bits.pfn_mask(geometry.page_shift) >> bits.pfn_shift(geometry.page_shift)) + 1
    assert int(resolve(arch, kernel)["MEMORY_MB"]) << 20 <= most << geometry.page_shift
