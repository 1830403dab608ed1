# SPDX-License-Identifier: GPL-2.0-only
"""Run-time knobs and boot parameters."""

import pytest

from virtmm.kconfig import ConfigError, resolve
from virtmm.knobs import KnobSet
from virtmm.machine import Machine


def knobs(arch="arm64", defconfig="linux-7.3", pmd_order=9):
    return KnobSet.of(resolve(arch, defconfig), pmd_order)


def test_after_boot_the_pmd_size_inherits():
    state, memory = knobs().after_boot()
    assert (state.always, state.inherit, state.madvise) == (0, 1 << 9, 0)
    assert state.enabled == "madvise"
    assert memory == 0


def test_sizes_are_those_of_the_page_size():
    assert list(knobs().sizes())[:2] == ["16kB", "32kB"]
    assert list(knobs().sizes())[-1] == "2048kB"
    assert knobs(defconfig="anonfolio_basic").sizes() == {}


def test_thp_anon_replaces_the_default():
    state, _ = knobs().after_boot(["thp_anon=16K-64K,256K:always;1M:madvise"])
    assert state.always == 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6
    assert state.madvise == 1 << 8
    assert state.inherit == 0


def test_a_size_has_one_state():
    state, _ = knobs().after_boot(["64kB=always", "hugepages-64kB/enabled=madvise"])
    assert (state.always, state.madvise) == (0, 1 << 4)
    state, _ = knobs().after_boot(["64kB=always", "64kB=never"])
    assert (state.always, state.madvise, state.inherit) == (0, 0, 1 << 9)


def test_other_files():
    state, memory = knobs().after_boot(
        [
            "transparent_hugepage=never",
            "defrag=defer+madvise",
            "use_zero_page=0",
            "khugepaged/max_ptes_none=0",
            "mem=64M",
        ]
    )
    assert state.enabled == "never"
    assert state.defrag == "defer+madvise"
    assert state.use_zero_page is False
    assert state.max_ptes_none == 0
    assert memory == 64 << 20


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("enabled", "not of the form"),
        ("enabled=no", "always, madvise, never"),
        ("48kB=always", "no such size"),
        ("64kB=on", "always, inherit, madvise, never"),
        ("thp_anon=64K", "SIZES:STATE"),
        ("thp_anon=x:always", "not a size"),
        ("thp_anon=8K:always", "no such size"),
        ("mem=lots", "not a size"),
        ("mem=0", "not a size"),
        ("fault_around_bytes=5000", "power of two"),
        ("khugepaged/max_ptes_none=512", "0 to 511"),
        ("nosuch=1", "unknown knob"),
    ],
)
def test_what_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message) as e:
        knobs().after_boot([setting])
    assert "\n" not in str(e.value)


def test_mem_makes_a_small_machine():
    config = resolve("x86", "linux-7.3")
    with Machine(config, ["mem=32M"]) as machine:
        assert machine.k.config.nr_pages == (32 << 20) // 4096
