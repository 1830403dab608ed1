# SPDX-License-Identifier: GPL-2.0-only
"""What is shipped: sdist and wheel have every file, and the wheel works without the source tree."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from virtmm import topdir

ROOMS = ("arch", "configs", "csrc", "mm", "tools")
NOT_SOURCES = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "out", "*.egg-info", "__pycache__", ".*_cache", "samples"
)


def hook(folder, call):
    """Call a hook of the build backend in a source folder; return the file that it made."""
    script = f"from setuptools import build_meta as b; print(b.{call})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "made" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """(names in the sdist, names in the wheel made from that sdist, the wheel unpacked)."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    # A copy: setuptools writes into the tree, and finds there what an earlier build left.
    shutil.copytree(topdir(), source, ignore=NOT_SOURCES, symlinks=True)
    sdist = hook(source, "build_sdist('made')")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    shutil.unpack_archive(sdist, folder)
    unpacked = folder / sdist.name.removesuffix(".tar.gz")
    (unpacked / "made").mkdir()
    wheel = hook(unpacked, "build_wheel('made')")
    with zipfile.ZipFile(wheel) as z:
        content = set(z.namelist())
    shutil.unpack_archive(wheel, folder / "wheel", "zip")
    return names, content, folder / "wheel"


def files(room):
    """Return the files of a room that belong to the project."""
    return {
        str(p.relative_to(topdir()))
        for p in (topdir() / room).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_wheel_has_every_file_of_the_package(shipped):
    _, wheel, _ = shipped
    for room in ROOMS:
        assert {f"virtmm/{name}" for name in files(room)} - wheel == set()
    assert files("virtmm") - wheel == set()


def test_wheel_has_what_each_stage_reads(shipped):
    _, wheel, _ = shipped
    for name in (
        "Kconfig",
        "build_core.py",
        "py.typed",
        "mm/Kconfig",
        "configs/debug.config",
        "arch/arm64/Kconfig",
        "arch/arm64/arch.py",
        "arch/arm64/costs.csv",
        "arch/arm64/configs/anonfolio_basic_defconfig",
        "arch/arm64/configs/64k.config",
        "arch/x86/configs/defconfig",
        "csrc/arena.def",
        "csrc/core.cdef",
        "csrc/core.h",
    ):
        assert f"virtmm/{name}" in wheel


def test_wheel_has_nothing_else(shipped):
    _, wheel, _ = shipped
    others = {name for name in wheel if not name.startswith("virtmm/")}
    assert {name.split("/")[0].split("-")[0] for name in others} == {"virtmm"}
    assert all(".dist-info/" in name for name in others)
    assert not [n for n in wheel if n.startswith(("virtmm/tests/", "virtmm/scripts/"))]
    assert not [n for n in wheel if n.endswith((".pyc", ".so"))]


def test_sdist_has_what_developers_need(shipped):
    sdist, _, _ = shipped
    want = {"Makefile", "build.py", "setup.cfg", "pyproject.toml", ".clang-format", "COPYING"}
    want |= {"virtmm/Kconfig", "Kconfig", ".ci/run", "CONTRIBUTING.md"}
    for room in (*ROOMS, "scripts", "tests"):
        want |= files(room)
    assert want - sdist == set()


def test_unpacked_wheel_configures_and_builds(shipped, tmp_path):
    _, _, unpacked = shipped
    script = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r})\n"
        "import virtmm\n"
        "from virtmm.arch import load_arch\n"
        "from virtmm.kbuild import load_core\n"
        "from virtmm.kconfig import defconfigs, resolve\n"
        "config = resolve('arm64', 'anonfolio_basic', ['64k', 'debug'])\n"
        "core = load_core(config, load_arch('arm64'))\n"
        "print(virtmm.topdir(), *defconfigs('arm64'), bool(core.lib.set_ptes))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "VIRTMM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, *names, works = done.stdout.split()
    assert where == str(unpacked / "virtmm")
    assert "anonfolio_basic" in names
    assert works == "True"
