# SPDX-License-Identifier: GPL-2.0-only
"""The table of architectures is current, and says what the series says."""

import pytest
from virtmm.arch import load_arch, names
from virtmm.scripts import architectures

from virtmm import topdir


def test_the_table_is_current():
    assert architectures.OUTPUT.read_text() == architectures.render()


def test_a_line_of_the_table():
    text = architectures.render()
    assert (
        "| arm64 (aarch64) | 16K | 3 | 11, 11, 11 | 32M | 2M | 32M | 128T "
        "| allocator, with memory tags | 2, 7 |\n" in text
    )
    assert "| s390 (s390x) | 4K | 3 | 11+2, 11+2, 8 | 1M |  | 1M | 4T | allocator |  |\n" in text
    assert "| 2M |  | 4M | 128T - 4K | allocator |  |\n" in text
    assert "| m68k | 4K | 3 | 7, 7, 6 | (256K) |  | 4M | 3840M | clear_huge_page() |  |\n" in text
    assert "| riscv | yes | yes |  | linux-6.12, linux-7.3 | svnapot |\n" in text
    assert "| loongarch | yes |  |  | linux-6.12, linux-7.3 | 4k, 16k, 64k |\n" in text


@pytest.mark.parametrize("name", names())
def test_everything_an_architecture_has_is_there(name):
    """Page sizes, a line each; its kernels and fragments; and where each number is from."""
    text, arch = architectures.render(), load_arch(name)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {name} ")]
    sizes, tiers = rows[:-1], rows[-1]
    assert [int(row[1].removesuffix("K")) << 10 for row in sizes] == [
        1 << g.page_shift for g in arch.geometries
    ]
    for row, geometry in zip(sizes, arch.geometries, strict=True):
        assert int(row[2]) == len(row[3].split(",")) == len(geometry.levels)
        assert bool(row[5]) == bool(geometry.cont_order)
    listed = {word.strip(" |") for cell in tiers[4:] for word in cell.split(",")}
    files = (topdir() / "arch" / name / "configs").iterdir()
    own = {p.name.removesuffix("_defconfig").removesuffix(".config") for p in files}
    assert {k for k in own if not k.startswith("baseline_")} - {"defconfig"} == listed - {""}
    for field, source in arch.sources.items():
        assert f"  - {field}: {source}\n" in text


def test_sizes():
    assert [architectures.size(n) for n in (512, 4096, 5 << 36, 1 << 52)] == [
        "512", "4K", "320G", "4P",
    ]  # fmt: skip
