# SPDX-License-Identifier: GPL-2.0-only
"""A new architecture boots as it is written; words that make none are refused, and nothing is left."""

import os
import subprocess
import sys

import pytest
from virtmm.arch import load_arch
from virtmm.arch.params import ArchError

from virtmm import topdir
from virtmm.kconfig import defconfigs, resolve
from virtmm.machine import Machine
from virtmm.new_arch import (
    Shape,
    new_arch,
    parse_cont,
    parse_levels,
    parse_page,
    parse_shape,
    place_for,
)


@pytest.mark.parametrize(
    ("page", "levels", "cont"),
    [
        ("4K", "10,10", "16"),
        ("8K", "10,10,10", "32"),
        ("4K", "9,9,9,9", "16"),
        ("4K", "9,9,9,9,9", "16"),
        ("4K", "10,10,10,10,10", "0"),
    ],
)
def test_it_is_written_as_the_tree_is(tmp_path, page, levels, cont):
    """As ``make check`` wants it, whatever the length of its page table."""
    folder = new_arch("foo", parse_shape(page, levels, cont), tmp_path)
    shape = load_arch("foo", folder).geometries
    assert shape == (parse_shape(page, levels, cont).geometry(),)
    settings = ["--config", str(topdir() / "pyproject.toml"), str(folder)]
    for command in (["check"], ["format", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *settings],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("word", ["8K", "8k", "8192"])
def test_a_page_in_each_way(word):
    assert parse_page(word) == 8192


@pytest.mark.parametrize(
    "word", ["", "K", "6K", "8KB", "8M", "0", "-8K", "8192K", "٨K", "128K", " 8K"]
)
def test_a_page_that_is_none(word):
    with pytest.raises(ArchError, match=r"^page: .* is not one of 4K, 8K, 16K, 32K, 64K$"):
        parse_page(word)


@pytest.mark.parametrize(
    "word", ["", "9", "9,", "9,,9", "9 9", "-9,9", "9,9,9,9,9,9", "9,²", "100,9"]
)
def test_levels_that_are_none(word):
    with pytest.raises(ArchError, match=r"^levels: .* is not index bits from the root, like"):
        parse_levels(word)


@pytest.mark.parametrize("word", ["", "1", "24", "-2", "²", "4" * 5000, "2.0"])
def test_contiguous_entries_that_are_none(word):
    with pytest.raises(ArchError, match=r"^cont: .* is not a power of two of entries"):
        parse_cont(word)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Foo", "is not a folder's"),
        ("1foo", "is not a folder's"),
        ("a/b", "is not a folder's"),
        ("", "is not a folder's"),
        ("f" * 301, "is not a folder's"),
        ("class", "is a word of Python"),
        ("params", "is taken by arch/params.py"),
        ("contpte", "is taken by CONTPTE of mm/Kconfig:"),
        ("page_shift", "is taken by PAGE_SHIFT of mm/Kconfig:"),
        ("anon_policy", "is taken by ANON_POLICY of mm/Kconfig:"),
        ("werror", "is taken by WERROR of Kconfig:"),
    ],
)
def test_a_name_that_is_none(tmp_path, name, message):
    with pytest.raises(ArchError) as e:
        place_for(name, tmp_path)
    assert str(e.value).startswith(f"name: {name} {message}")
    assert len(str(e.value).splitlines()) == 1


def test_a_place_that_is_none(tmp_path):
    with pytest.raises(ArchError, match="nope: no such folder"):
        place_for("foo", tmp_path / "nope")
    with pytest.raises(ArchError, match="File name too long"):
        place_for("foo", tmp_path / ("x" * 300))
    (tmp_path / "foo").touch()
    with pytest.raises(ArchError, match="foo: is there already"):
        place_for("foo", tmp_path)


def test_a_name_that_other_architectures_have_symbols_with(tmp_path):
    """Kconfig of one architecture is read at a time."""
    assert place_for("arm64_contpte", tmp_path) == tmp_path / "arm64_contpte"


@pytest.mark.parametrize(
    ("page", "levels", "cont", "names"),
    [
        (4096, (10, 10), 0, ["pmd", "pte"]),
        (8192, (10, 10, 10), 32, ["pgd", "pmd", "pte"]),
        (16384, (1, 11, 11, 11), 128, ["pgd", "pud", "pmd", "pte"]),
        (4096, (9, 9, 9, 9, 9), 16, ["pgd", "p4d", "pud", "pmd", "pte"]),
        (65536, (13, 13), 4096, ["pmd", "pte"]),
    ],
)
def test_what_is_written_boots(tmp_path, page, levels, cont, names):
    folder = new_arch("foo", Shape(page, levels, cont), tmp_path)
    (geometry,) = load_arch("foo", folder).geometries
    assert [(lv.name, lv.bits) for lv in geometry.levels] == list(zip(names, levels, strict=True))
    assert (1 << geometry.page_shift, 1 << geometry.cont_order) == (page, cont or 1)
    mb = max(64, (page << max(10, levels[-1])) >> 19)
    for kernel in ("defconfig", *defconfigs("foo", folder)):
        with Machine(resolve("foo", kernel, sets=[f"MEMORY_MB={mb}"], arch_dir=folder)) as m:
            assert (m.spawn(1), m.mmap(1, page, page), m.touch(1, page, True)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            Shape(65536, (10, 16)),
            "levels: 16 bits of the last make huge pages of that order; the buddy allocator has orders "
            "0 to 15",
        ),
        (Shape(4096, (9, 9), 4096), "cont: 4096 is more than the 512 entries of the last level"),
    ],
)
def test_a_shape_that_is_none_names_the_words(shape, message):
    with pytest.raises(ArchError) as e:
        shape.geometry()
    assert str(e.value) == message


def test_nothing_is_left_of_one_that_would_not_boot(tmp_path):
    with pytest.raises(
        ArchError, match=r"^cont: 2048 is more than the 1024 entries of the last level"
    ):
        new_arch("foo", Shape(8192, (10, 10, 10), 2048), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_in(tmp_path, monkeypatch):
    def refuse(*_args, **_kw):
        raise PermissionError(13, os.strerror(13), "x")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    with pytest.raises(ArchError) as e:
        new_arch("foo", Shape(4096, (9, 9)), tmp_path)
    assert str(e.value) == f"{tmp_path}: cannot write in it: Permission denied"
