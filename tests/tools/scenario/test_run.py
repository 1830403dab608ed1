# SPDX-License-Identifier: GPL-2.0-only
"""The answer's form; what is in it is held against real kernels in tests/oracle."""

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console
from virtmm.tools.cli import main
from virtmm.tools.scenario.parse import ScenarioError
from virtmm.tools.scenario.run import run
from virtmm.tools.scenario.show import show

from virtmm.kconfig import resolve

TEXT = """set 64kB always
proc p
mmap p A 128k
touch p w A 64k
touch p r A+64k 4k
touch p r A+32k 8k
touch p w B 4k
fork p c
munmap c A+1 4k
observe end
exit c
observe last
"""


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "mine.scn"
    path.write_text(TEXT)
    return path


@pytest.fixture
def config():
    return resolve("x86", "linux-7.3", sets=["PHYS_BACKING=y", "MEMORY_MB=1024"])


def test_the_answer(scenario, config):
    answer = run(scenario, config)
    assert {k: answer[k] for k in ("scenario", "machine", "page_size")} == {
        "scenario": "mine",
        "machine": "x86_64",
        "page_size": 4096,
    }
    assert answer["steps"] == [
        {"line": 3, "errno": 0},
        {"line": 4, "errno": 0, "minflt": 1, "segv": 0},
        {"line": 5, "errno": 0, "minflt": 1, "segv": 0, "sum": 0},
        {"line": 6, "errno": 0, "minflt": 0, "segv": 0, "sum": 10},
        {"line": 7, "errno": 0, "minflt": 0, "segv": 1},
        {"line": 8, "errno": 0},
        {"line": 9, "errno": 22},
    ]
    shared = {"A": ["0-15 f0+0 order=4 map=2 excl=0", "16-16 zero"]}
    alone = {"A": ["0-15 f0+0 order=4 map=1 excl=1", "16-16 zero"]}
    stats = {"64kB": {"anon_fault_alloc": 1, "nr_anon": 1}}
    assert answer["observations"] == [
        {"label": "end", "pages": {"p": shared, "c": shared}, "stats": stats},
        {"label": "last", "pages": {"p": alone}, "stats": stats},
    ]


def test_the_initial_state_does_not_depend_on_the_configuration(scenario, config):
    always = resolve(
        "x86",
        "linux-7.3",
        sets=[
            "PHYS_BACKING=y",
            "TRANSPARENT_HUGEPAGE_MADVISE=n",
            "TRANSPARENT_HUGEPAGE_ALWAYS=y",
        ],
    )
    assert run(scenario, always) == run(scenario, config)


@pytest.mark.parametrize("knob", ["48kB always", "64kB sometimes", "enabled perhaps", "nosuch 1"])
def test_a_knob_that_the_kernel_does_not_have(tmp_path, config, knob):
    path = tmp_path / "a.scn"
    path.write_text(f"proc p\nset {knob}\n")
    with pytest.raises(ScenarioError, match=r"a\.scn:2: "):
        run(path, config)


def test_a_kernel_without_per_size_knobs_can_be_questioned(tmp_path):
    path = tmp_path / "a.scn"
    path.write_text("proc p\nmmap p A 128k\ntouch p w A 4k\nobserve o\n")
    config = resolve("arm64", "anonfolio_basic", sets=["PHYS_BACKING=y"])
    [observation] = run(path, config)["observations"]
    assert observation["pages"] == {"p": {"A": ["0-15 f0+0 order=4 map=1 excl=1"]}}


def test_the_command_prints_a_line_for_each_file(scenario, tmp_path):
    other = tmp_path / "other.scn"
    other.write_text("proc p\nobserve o\n")
    result = CliRunner().invoke(
        main, ["scenario", "run", "--arch", "x86", str(scenario), str(other), str(scenario)]
    )
    assert result.exit_code == 0
    names = [json.loads(line)["scenario"] for line in result.stdout.splitlines()]
    assert names == ["mine", "other", "mine"]


def test_one_bad_file_refuses_all_before_any_is_run(scenario, tmp_path):
    bad = tmp_path / "bad.scn"
    bad.write_text("proc p\nzap p\n")
    result = CliRunner().invoke(main, ["scenario", "run", str(scenario), str(bad)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"virtmm: {bad}:2: unknown command 'zap'; there are set, proc, mmap, munmap, mprotect, mremap, "
        "madvise, mlock, munlock, touch, fork, exit, observe\n"
    )


def test_a_bad_knob_is_one_line_from_the_command_too(tmp_path):
    bad = tmp_path / "bad.scn"
    bad.write_text("proc p\nset 48kB always\n")
    result = CliRunner().invoke(main, ["scenario", "run", "--arch", "x86", str(bad)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"virtmm: {bad}:2: 48kB=always: no such size")
    assert result.stderr.count("\n") == 1


def test_the_drawing(scenario, config):
    out = io.StringIO()
    show(run(scenario, config), Console(file=out, width=100))
    text = out.getvalue()
    assert "       0 AAAAAAAAAAAAAAAA0-----" in text
    assert "       0 aaaaaaaaaaaaaaaa0-----" in text
    assert "line 9: errno 22, segv 0" in text
    assert "line 7: errno 0, segv 1" in text
    assert "64kB: anon_fault_alloc 1, nr_anon 1" in text
    assert "orders: 4=64kB" in text


def test_an_architecture_without_room_for_the_regions(scenario):
    with pytest.raises(ScenarioError) as e:
        run(scenario, resolve("m68k", sets=["PHYS_BACKING=y", "MEMORY_MB=64"]))
    assert str(e.value) == (
        f"{scenario}: the regions of a scenario lie above the 3840 MiB of addresses that m68k has; "
        "use another architecture"
    )


@pytest.mark.parametrize("arch", ["alpha", "ia64", "s390"])
def test_architectures_with_room(tmp_path, arch):
    path = tmp_path / "a.scn"
    path.write_text("proc p\nmmap p A 128k\nmmap p Z 128k\ntouch p w Z+64k 64k\nobserve end\n")
    answer = run(path, resolve(arch, sets=["PHYS_BACKING=y", "MEMORY_MB=256"]))
    assert [step["errno"] for step in answer["steps"]] == [0, 0, 0]
    assert answer["steps"][-1]["minflt"] == 65536 // answer["page_size"]
