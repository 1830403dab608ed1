# SPDX-License-Identifier: GPL-2.0-only
"""--policy and --why: a user's thp_get_order() on the command line, and what kept folios small."""

import hashlib
import json
import re

import pytest
from virtmm.tools.replay.replay import replay
from virtmm.tools.trace.format import File, TraceReader, TraceWriter

from virtmm import topdir
from virtmm.kconfig import resolve
from virtmm.policy import Policy, PolicyError, load_policy

from .test_cli import A, make_trace, refused

MOST = "def thp_get_order(vma, address, tva_type, orders):\n    return orders.bit_length() - 1\n"
SERIES = ["--kernels", "baseline_4k,anonfolio_basic,linux-7.3"]


@pytest.fixture
def trace(tmp_path):
    return make_trace(tmp_path / "small.parquet", pages=48)


@pytest.fixture
def policy(tmp_path):
    """Return a function that writes a policy file."""

    def write(text=MOST, name="mine.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# --- a policy in the place of the ladder ----------------------------------------------------------


def test_compare_asks_the_policy_in_kernels_with_large_folios(virtmm, trace, policy):
    file = policy()
    result = virtmm("compare", trace, *SERIES, "--policy", file, "--format", "json")
    rows = {r["kernel"]: r for r in json.loads(result.stdout)["rows"]}
    assert rows["baseline_4k"]["minflt"] == 48
    assert rows["baseline_4k"]["policy"] is None
    for kernel in ("anonfolio_basic", "linux-7.3"):
        assert rows[kernel]["folios"] == {"5": 1, "4": 1}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert rows[kernel]["policy"] == {"file": "mine.py", "hash": digest}
    text = virtmm("compare", trace, *SERIES, "--policy", file, "--set", "64kB=always").stdout
    assert "anonfolio_basic: folio sizes by mine.py\n" in text
    assert "linux-7.3: 64kB=always, folio sizes by mine.py\n" in text


def test_replay_with_a_policy(virtmm, trace, policy):
    args = ["replay", trace, "--defconfig", "anonfolio_basic", "--format", "json"]
    assert json.loads(virtmm(*args).stdout)["folios"] == {"4": 3}
    result = json.loads(virtmm(*args, "--policy", policy()).stdout)
    assert result["folios"] == {"4": 1, "5": 1}
    assert result["policy"]["file"] == "mine.py"


def test_what_a_policy_keeps_is_one_machines(virtmm, trace, policy):
    """Each kernel's first folio has order 2, the others what fits."""
    file = policy(
        "first = []\n"
        "def thp_get_order(vma, address, tva_type, orders):\n"
        "    first.append(1)\n"
        "    return 2 if len(first) == 1 else orders.bit_length() - 1\n"
    )
    args = ["compare", trace, *SERIES, "--policy", file, "--format", "json"]
    rows = json.loads(virtmm(*args).stdout)["rows"]
    assert [r["folios"] for r in rows[1:]] == [{"2": 2, "3": 1, "4": 2}] * 2


def test_scenarios_ask_it_too(virtmm, tmp_path, policy):
    scenario = tmp_path / "one.scn"
    scenario.write_text("proc p\nmmap p A 128k\ntouch p w A 4k\nobserve end\n")
    args = ["scenario", "run", "--defconfig", "anonfolio_basic", scenario]
    answer = json.loads(virtmm(*args, "--policy", policy()).stdout)
    assert answer["observations"][0]["pages"]["p"]["A"] == ["0-31 f0+0 order=5 map=1 excl=1"]


# --- what is wrong with it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def thp_get_order(vma, orders):\n    return 0\n", "does not take (vma, address, tva_type, orders)"),
        ("thp_get_order = 4\n", "no function thp_get_order(vma, address, tva_type, orders)"),
        ("def get_order(): pass\n", "no function thp_get_order"),
        ("def thp_get_order(:\n", "mine.py:1: not Python: invalid syntax"),
        ("x = 1\n1 / 0\n", "mine.py: ZeroDivisionError: division by zero"),
        ("raise SystemExit\n", "mine.py: SystemExit"),
        ("\0", "mine.py"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["replay", "compare", "scenario"])
@pytest.mark.usefixtures("no_work")
def test_a_file_that_is_no_policy(virtmm, trace, tmp_path, policy, command, text, words):
    where = {"replay": [trace, "--defconfig", "anonfolio_basic"], "compare": [trace]}
    scenario = tmp_path / "one.scn"
    scenario.write_text("proc p\n")
    args = where.get(command, ["run", scenario])
    refused(virtmm(command, *args, "--policy", policy(text)), words)


@pytest.mark.usefixtures("no_work")
def test_no_file(virtmm, trace, tmp_path):
    refused(virtmm("compare", trace, "--policy", tmp_path / "x.py"), "x.py: No such file")
    refused(virtmm("compare", trace, "--policy", tmp_path), "Is a directory")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    refused(virtmm("compare", trace, "--policy", tmp_path / "bytes.py"), "not Python")


@pytest.mark.usefixtures("no_work")
def test_kernels_that_ask_no_policy(virtmm, trace, tmp_path, policy):
    for args in (
        ["replay", trace, "--defconfig", "baseline_4k"],
        ["compare", trace, "--kernels", "baseline_4k,baseline_64k"],
        ["replay", trace, "--defconfig", "anonfolio_basic", "--set", "EXPERT=y",
         "--set", "ANON_FAULT_ALLOC=n"],
    ):  # fmt: skip
        refused(virtmm(*args, "--policy", policy()), "mine.py: this kernel maps base pages")


def test_an_answer_that_is_none_names_the_fault(virtmm, trace, tmp_path, policy):
    file = policy("def thp_get_order(vma, address, tva_type, orders):\n    return 7\n")
    result = virtmm("replay", trace, "--defconfig", "anonfolio_basic", "--policy", file)
    refused(result, f"{trace}: row 2: mine.py: thp_get_order() answered 7, which is none of")
    assert f"; pid 7 at {A:#x}, orders 0, 2, 3, 4, 5\n" in result.stderr
    output = tmp_path / "out.json"
    args = ["compare", trace, *SERIES, "--policy", file, "-o", output]
    refused(virtmm(*args), "answered 7")
    assert not output.exists()


def test_in_a_scenario_its_line_is_named(virtmm, tmp_path, policy):
    scenario = tmp_path / "one.scn"
    scenario.write_text("proc p\nmmap p A 128k\ntouch p w A 4k\n")
    file = policy("def thp_get_order(vma, address, tva_type, orders):\n    return vma.x\n")
    args = ["scenario", "run", "--defconfig", "linux-7.3", scenario, "--policy", file]
    refused(virtmm(*args), f"{scenario}:3: mine.py:2: AttributeError: ")


# --- fragments side by side -----------------------------------------------------------------------


def test_kernels_with_fragments(virtmm, trace):
    names = "anonfolio_basic,anonfolio_basic+v5,anonfolio_basic+16k+v2-simple"
    rows = json.loads(virtmm("compare", trace, "--kernels", names, "--format", "json").stdout)[
        "rows"
    ]
    assert [(r["kernel"], r["folios"]) for r in rows] == [
        ("anonfolio_basic", {"4": 3}),
        ("anonfolio_basic+v5", {"3": 6}),
        ("anonfolio_basic+16k+v2-simple", {"2": 3}),
    ]
    refused(virtmm("compare", trace, "--kernels", "anonfolio_basic+nope"), "no fragment 'nope'")


# --- why not larger -------------------------------------------------------------------------------


@pytest.fixture
def two_programs(tmp_path):
    """Return a trace: a shell touches 3 pages; what it executes has a heap of 6 pages."""
    path = tmp_path / "two.parquet"
    with TraceWriter(path, {"page_size": 4096, "command": "sh"}) as writer:
        shell = File("/bin/sh", 1, 4096)
        made = File("/usr/bin/made", 2, 4096)
        rows = [
            {"kind": "exec", "file": shell},
            {"kind": "mmap", "addr": A, "len": 3 * 4096, "prot": 3, "flags": 0x22},
            {"kind": "fault", "addr": A, "prot": 2},
            {"kind": "exec", "file": made},
            {"kind": "brk", "addr": 0x600000, "len": 6 * 4096},
            {"kind": "fault", "addr": 0x600000, "prot": 2},
            {"kind": "fault", "addr": 0x604000, "prot": 2},
        ]
        for time, row in enumerate(rows):
            writer.append(time=time, pid=7, **row)
    return path


def test_why_in_json(virtmm, two_programs):
    args = [two_programs, "--set", "enabled=never", "--format", "json"]
    result = json.loads(virtmm("replay", *args, "--defconfig", "anonfolio_basic").stdout)
    edge = {"4": 3, "3": 3, "2": 2}
    assert result["refused_orders"] == {
        "edge": edge, "populated": {}, "not_enabled": {}, "alloc": {}, "charge": {},
    }  # fmt: skip
    heap, shell = result["refused_mappings"]
    assert (heap["command"], heap["kind"], heap["faults"]) == ("made", "heap", 2)
    assert (heap["start"], heap["end"], heap["refused"]) == (0x600000, 0x606000, {"edge": 2})
    assert (shell["command"], shell["kind"], shell["refused"]) == ("sh", "anon", {"edge": 1})
    rows = json.loads(virtmm("compare", *args, "--kernels", "anonfolio_basic").stdout)["rows"]
    assert rows[0]["refused_orders"]["edge"] == edge


def test_why_below_the_table(virtmm, two_programs):
    args = ["--set", "enabled=never", "--why"]
    text = virtmm("replay", two_programs, "--defconfig", "anonfolio_basic", *args).stdout
    for row in (
        r"two +anonfolio_basic +64kB +3 +0 +0 +0 +0",
        r" +32kB +3 +0 +0 +0 +0",
        r" +16kB +2 +0 +0 +0 +0",
        r"7 +made +600000-606000 +24kB +heap +2 +2 +0 +0 +0 +0",
        r"7 +sh +7f0000000000-7f0000003000 +12kB +anon +1 +1 +0 +0 +0 +0",
    ):
        assert re.search(row, text), text
    text = virtmm("compare", two_programs, *SERIES, *args).stdout
    assert re.search(r"baseline_4k +none +0 +0 +0 +0 +0", text), text
    assert "600000-606000" not in text
    plain = virtmm("compare", two_programs, *SERIES, *args[:2]).stdout
    assert text.startswith(plain)


def test_why_in_markdown(virtmm, two_programs):
    args = ["--defconfig", "anonfolio_basic", "--set", "enabled=never", "--why", "--format", "md"]
    text = virtmm("replay", two_programs, *args).stdout
    assert "| two | anonfolio_basic | 64kB | 3 | 0 | 0 | 0 | 0 |\n" in text
    assert "| 7 | made | 600000-606000 | 24kB | heap | 2 | 2 | 0 | 0 | 0 | 0 |\n" in text


@pytest.mark.usefixtures("no_work")
def test_csv_has_no_place_for_why(virtmm, trace):
    for command in ("replay", "compare"):
        refused(virtmm(command, trace, "--why", "--format", "csv"), "--why is not for csv")


# --- the examples of the documentation ------------------------------------------------------------


def examples():
    text = (topdir() / "Documentation" / "policies.md").read_text()
    code = {
        b.split("\n")[0].removeprefix("# "): b
        for b in re.findall(r"```python\n(.*?)```", text, re.S)
    }
    return code, text


@pytest.mark.parametrize("name", sorted(examples()[0]))
def test_an_example_does_what_its_table_says(policy, name):
    code, text = examples()
    said = re.search(rf"`{re.escape(name)}` \| ([\d,]+) \| ([\d.]+)MiB", text)
    with TraceReader(topdir() / "samples" / "gcc.parquet") as reader:
        config = resolve("arm64", "anonfolio_basic")
        result = replay(reader, config, "k", policy=load_policy(policy(code[name], name)))
    assert f"{result['minflt']:,}" == said[1]
    assert f"{result['memory']['peak'] / (1 << 20):.1f}" == said[2]


def test_the_ladders_faults_are_what_the_documentation_says():
    """Preferred order or one page takes at least 1.2 times the faults of v1 on the gcc sample."""
    _, text = examples()
    found = {}
    for fragment in ("v2-simple", "v3", "v5"):
        with TraceReader(topdir() / "samples" / "gcc.parquet") as reader:
            config = resolve("arm64", "anonfolio_basic", [fragment])
            found[fragment] = replay(reader, config, fragment)["minflt"]
        assert f"{found[fragment]:,}" in text
    assert found["v2-simple"] >= 1.2 * 2840


def test_a_policy_is_what_its_text_is(policy):
    loaded = load_policy(policy())
    assert loaded == Policy(loaded.path, MOST, hashlib.sha256(MOST.encode()).hexdigest())
    with pytest.raises(PolicyError, match="No such file"):
        load_policy(loaded.path.with_name("none.py"))
