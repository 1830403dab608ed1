# SPDX-License-Identifier: GPL-2.0-only
"""``compare`` runs the samples on every architecture: each of its kernels, with each of its page sizes."""

import json
import re

import pytest
from click.testing import CliRunner
from virtmm.arch import load_arch, names
from virtmm.tools import cli

from virtmm import topdir
from virtmm.kconfig import defconfigs, fragment_names, resolve

SAMPLES = ("gcc", "python")


def kernels_of(arch):
    """Return the named kernels, those with large folios on the other page sizes too."""
    pages = [f for f in fragment_names(arch) if re.fullmatch(r"\d+k", f)]
    found = []
    for name in defconfigs(arch):
        found.append(name)
        if not name.startswith("baseline_"):
            shift = resolve(arch, name)["PAGE_SHIFT"]
            found += [f"{name}+{p}" for p in pages if int(p[:-1]) << 10 != 1 << shift]
    return found


def multi_size(arch, kernel):
    """Return whether a kernel has a knob for each size of folio."""
    name, *fragments = kernel.split("+")
    return resolve(arch, name, fragments)["ANON_POLICY_MTHP"]


@pytest.fixture(scope="module", params=names())
def compared(request):
    """Return (architecture, its kernels, rows of compare): a size that all page sizes have is on."""
    arch, kernels = request.param, kernels_of(request.param)
    kib = (4 << max(g.page_shift for g in load_arch(arch).geometries)) >> 10
    sets = ["--set", f"{kib}kB=always"] if any(multi_size(arch, k) for k in kernels) else []
    files = [str(topdir() / "samples" / f"{name}.parquet") for name in SAMPLES]
    args = ["compare", "--arch", arch, "--kernels", ",".join(kernels), *sets, "--format", "json"]
    done = CliRunner().invoke(cli.main, [*args, *files], prog_name="virtmm")
    assert done.exit_code == 0, done.stderr
    return arch, kernels, json.loads(done.stdout)["rows"]


def test_every_kernel_runs_each_sample(compared):
    arch, kernels, rows = compared
    assert [(r["trace"], r["kernel"]) for r in rows] == [(s, k) for s in SAMPLES for k in kernels]
    for r in rows:
        assert r["arch"] == arch
        assert (r["oom"], r["segv"], r["refused_calls"]) == (None, 0, 0), r["kernel"]
        assert (r["memory"]["anon"], r["memory"]["page_tables"]) == (0, 0), r["kernel"]
        assert 0 < r["memory"]["peak_anon"] < r["memory"]["peak"] < 128 << 20


def test_every_page_size_is_there(compared):
    arch, _, rows = compared
    sizes = [1 << g.page_shift for g in load_arch(arch).geometries]
    for linux in {r["kernel"].split("+")[0] for r in rows} - {
        f"baseline_{s >> 10}k" for s in sizes
    }:
        of = [r for r in rows if r["kernel"].split("+")[0] == linux]
        assert sorted({r["page_size"] for r in of}) == sizes, linux


def test_large_folios_mean_fewer_faults(compared):
    """Of the base-page kernel with the same pages, which takes one for each page."""
    _, _, rows = compared
    base = {(r["trace"], r["page_size"]): r for r in rows if r["kernel"].startswith("baseline_")}
    for r in rows:
        plain = base[r["trace"], r["page_size"]]
        large = any(int(order) for order in r["folios"])
        assert large == (r["minflt"] < plain["minflt"]), r["kernel"]
        assert list(plain["folios"]) == ["0"]
