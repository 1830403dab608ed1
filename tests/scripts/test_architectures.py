# SPDX-License-Identifier: GPL-2.0-only
"""The table of architectures is current, and says what the series says."""

from virtmm.scripts import architectures


def test_the_table_is_current():
    assert architectures.OUTPUT.read_text() == architectures.render()


def test_a_line_of_the_table():
    text = architectures.render()
    assert (
        "| arm64 (aarch64) | 16K | 11, 11, 11 | 32M | 128T | allocator, with memory tags | 2, 7 |\n"
        in text
    )
    assert "| s390 (s390x) | 4K | 11+2, 11+2, 8 | 1M | 4T | allocator |  |\n" in text
    assert "| 2M | 128T - 4K | allocator |  |\n" in text
    assert "| m68k | 4K | 7, 7, 6 | (256K) | 3840M | clear_huge_page() |  |\n" in text


def test_sizes():
    assert [architectures.size(n) for n in (512, 4096, 5 << 36, 1 << 52)] == [
        "512", "4K", "320G", "4P",
    ]  # fmt: skip
