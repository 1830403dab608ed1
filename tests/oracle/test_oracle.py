# SPDX-License-Identifier: GPL-2.0-only
"""Page for page, call for call: what real kernels answered (README.md beside this file)."""

import gzip
import json
import random
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from virtmm.tools.scenario.run import run

from virtmm.kconfig import resolve

HERE = Path(__file__).resolve().parent
KERNELS = {
    "arm64-4k-6.12": ("arm64", "linux-6.12", ()),
    "arm64-4k-7.3": ("arm64", "linux-7.3", ()),
    "arm64-16k-6.12": ("arm64", "linux-6.12", ("16k",)),
    "arm64-16k-7.3": ("arm64", "linux-7.3", ("16k",)),
    "amd64-7.3": ("x86", "linux-7.3", ()),
    "riscv64-7.2": ("riscv", "linux-7.3", ()),
    "ppc64le-64k-7.2": ("powerpc", "linux-7.3", ("64k",)),
}
FILES = {path.stem: path for path in (HERE / "scenarios").rglob("*.scn")}


def answers(kernel):
    """Return name -> answer of a kernel, without what only names the kernel."""
    with gzip.open(HERE / "results" / f"{kernel}.jsonl.gz", "rt") as lines:
        return {a.pop("scenario"): bare(a) for a in map(json.loads, lines)}


def bare(answer):
    return {
        k: v for k, v in answer.items() if k not in ("release", "machine", "scenario", "kernel")
    }


def ask(kernel, paths, *sets):
    """Return the model's answers to scenario files, by name."""
    arch, defconfig, fragments = KERNELS[kernel]
    config = resolve(arch, defconfig, fragments, ["PHYS_BACKING=y", *sets])
    with ProcessPoolExecutor() as pool:
        found = pool.map(run, paths, [config] * len(paths), chunksize=8)
        return {path.stem: bare(answer) for path, answer in zip(paths, found, strict=True)}


def differing(want, got):
    return sorted(name for name in want if want[name] != got[name])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_model_answers_what_the_kernel_answered(kernel):
    want = answers(kernel)
    assert len(want) >= 40
    assert differing(want, ask(kernel, [FILES[name] for name in want])) == []


@pytest.mark.parametrize("kernel", ["arm64-4k-6.12", "amd64-7.3", "ppc64le-64k-7.2"])
def test_names_carry_no_meaning(kernel, tmp_path):
    """Other region letters and process names: the same answer."""
    want, paths = {}, []
    for name, answer in answers(kernel).items():
        text, want[name] = renamed(FILES[name].read_text(), answer, random.Random(name))
        paths.append(tmp_path / f"{name}.scn")
        paths[-1].write_text(text)
    assert differing(want, ask(kernel, paths)) == []


def renamed(text, answer, rng):
    letters = [chr(ord("A") + i) for i in range(26)]
    region = dict(zip(letters, rng.sample(letters, 26), strict=True))
    names = dict.fromkeys(re.findall(r"^(?:proc|fork \S+) +(\S+)", text, re.M))
    process = dict(zip(names, rng.sample([f"q{i}" for i in range(99)], len(names)), strict=True))
    lines = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words and words[0] not in ("set", "observe"):
            words[1:] = [
                process[w]
                if i == 0 or words[0] == "fork"
                else re.sub(r"^[A-Z](?=\+|$)", lambda m: region[m[0]], w)
                for i, w in enumerate(words[1:])
            ]
        lines.append(" ".join(words))
    observations = [
        {
            **o,
            "pages": {
                process[p]: {region[r]: runs for r, runs in regions.items()}
                for p, regions in o["pages"].items()
            },
        }
        for o in answer["observations"]
    ]
    return "\n".join(lines) + "\n", {**answer, "observations": observations}


def test_what_was_found_on_another_kernel_holds():
    lines = (HERE / "results" / "found.jsonl").read_text().splitlines()
    want = {a["scenario"]: bare(a) for a in map(json.loads, lines)}
    assert len(want) >= 20
    assert differing(want, ask("amd64-7.3", [FILES[name] for name in want])) == []


def test_with_every_invariant_checked_all_the_time_it_answers_the_same():
    """A sixth of the scenarios. What other builds answer: ../test_equality.py."""
    want = dict(list(answers("arm64-4k-7.3").items())[::6])
    assert differing(want, ask("arm64-4k-7.3", [FILES[name] for name in want], "DEBUG_VM=y")) == []
