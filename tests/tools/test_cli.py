# SPDX-License-Identifier: GPL-2.0-only
"""The command line: what it prints, and one line with status 2 for whatever is wrong."""

import csv
import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from virtmm.tools.commands import traces
from virtmm.tools.commands.output import write
from virtmm.tools.report.result import check_result
from virtmm.tools.trace.format import TraceError, TraceWriter

from virtmm import topdir

A = 0x7F0000000000
COMMAND = [sys.executable, "-m", "virtmm"]


def make_trace(path, pages=32):
    with TraceWriter(path, {"page_size": 4096, "command": "./prog"}) as writer:
        writer.append(time=0, pid=7, kind="exec")
        writer.append(time=1, pid=7, kind="mmap", addr=A, len=pages * 4096, prot=3, flags=0x22)
        for n in range(pages):
            writer.append(time=2 + n, pid=7, kind="fault", addr=A + n * 4096, prot=2)
    return path


@pytest.fixture
def trace(tmp_path):
    return make_trace(tmp_path / "small.parquet")


def refused(result, *words):
    """Check that a command printed one line on standard error and nothing else, status 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("virtmm: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


# --- what it prints -------------------------------------------------------------------------------


def test_compare_prints_a_table_of_every_named_kernel(virtmm, trace):
    result = virtmm("compare", trace)
    assert (result.exit_code, result.stderr) == (0, "")
    for kernel in ("baseline_4k", "baseline_16k", "baseline_64k", "anonfolio_basic"):
        assert kernel in result.stdout
    assert not result.stdout.endswith("\n\n")


def test_compare_formats_agree(virtmm, trace):
    args = ["compare", trace, "--kernels", "baseline_4k, anonfolio_basic", "--format"]
    rows = json.loads(virtmm(*args, "json").stdout)["rows"]
    assert [(r["kernel"], r["minflt"]) for r in rows] == [
        ("baseline_4k", 32),
        ("anonfolio_basic", 2),
    ]
    lines = list(csv.DictReader(io.StringIO(virtmm(*args, "csv").stdout)))
    assert [(r["kernel"], r["minflt"]) for r in lines] == [
        ("baseline_4k", "32"),
        ("anonfolio_basic", "2"),
    ]
    table = [x for x in virtmm(*args, "md").stdout.splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("|")[1].strip() for line in table[2:]] == ["baseline_4k", "anonfolio_basic"]


def test_several_traces_are_one_table(virtmm, trace):
    other = make_trace(trace.with_name("other.parquet"), 8)
    args = ["compare", trace, other, "--kernels", "baseline_4k", "--format", "json"]
    rows = json.loads(virtmm(*args).stdout)["rows"]
    assert [(r["trace"], r["minflt"]) for r in rows] == [("small", 32), ("other", 8)]


def test_replay_gives_a_result_file(virtmm, trace):
    args = ["--defconfig", "anonfolio_basic", "--fragment", "64k", "--set", "enabled=never"]
    result = virtmm("replay", trace, *args, "--format", "json")
    read = check_result(json.loads(result.stdout), "it")
    assert (read.kernel, read.page_size) == ("anonfolio_basic+64k", 65536)


def test_settings_reach_the_kernel(virtmm, trace):
    """Symbols change the build; with THP always, mappings without advice get the larger maximum."""

    def folios(*sets):
        args = [word for s in sets for word in ("--set", s)]
        args += ["--defconfig", "anonfolio_basic", "--fragment", "16k", "--format", "json"]
        return json.loads(virtmm("replay", trace, *args).stdout)["folios"]

    assert folios() == {"2": 2}
    assert folios("CONFIG_LARGE_ANON_FOLIO=n") == {"0": 8}
    assert folios("enabled=always") == {"3": 1}


def test_output_file(virtmm, trace, tmp_path):
    plain = virtmm("compare", trace).stdout
    out = tmp_path / "table.txt"
    out.write_text("old")
    result = virtmm("compare", trace, "-o", out)
    assert (result.exit_code, result.output) == (0, "")
    assert out.read_text() == plain
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.parquet", "table.txt"]


def test_output_to_a_device_leaves_it_one(virtmm, trace, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert virtmm("compare", trace, "--format", "csv", "-o", pipe).exit_code == 0
        assert os.read(reader, 5) == b"trace"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_memory_that_runs_out_is_a_result(virtmm, tmp_path):
    big = make_trace(tmp_path / "big.parquet", 5000)
    result = virtmm("compare", big, "--kernels", "baseline_4k", "--set", "MEMORY_MB=16")
    assert result.exit_code == 0
    assert "out of memory at event" in result.stdout
    assert "pid 7" in result.stdout


def test_a_kernel_with_too_little_memory_to_boot_does_not_keep_others_from_it(virtmm, trace):
    args = ["compare", trace, "--set", "mem=256M", "--kernels"]
    document = json.loads(virtmm(*args, "baseline_64k,baseline_4k", "--format", "json").stdout)
    assert [(r["kernel"], r["baseline"]) for r in document["rows"]] == [("baseline_4k", True)]
    assert "one block of the buddy allocator (512 MiB)" in document["not_booted"]["baseline_64k"]
    refused(virtmm(*args, "baseline_64k"), "one block of the buddy allocator (512 MiB)")


@pytest.mark.parametrize("command", [[], ["compare"], ["replay"], ["record"]])
def test_help(virtmm, command):
    result = virtmm(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: virtmm")
    assert virtmm(*command, "-h").stdout == result.stdout


def test_record_leaves_options_behind_the_command_to_it(virtmm, monkeypatch, tmp_path):
    seen = []

    def record(command, output, **options):
        seen.append((command, output, options["aslr"]))
        raise TraceError("no perf")

    monkeypatch.setattr(traces, "run_record", record)
    for args in (["gcc", "-o", "x", "--aslr"], ["--", "gcc", "-o", "x", "--aslr"]):
        refused(virtmm("record", "-o", tmp_path / "t", *args), "no perf")
        assert seen.pop() == (("gcc", "-o", "x", "--aslr"), tmp_path / "t", False)
    assert "No such option" in virtmm("record", "-o", "t", "--nosuch", "gcc").stderr


def test_record_hands_its_options_on(virtmm, monkeypatch, tmp_path):
    seen = {}

    def record(command, output, **options):
        seen.update(options, command=command, output=output)
        raise TraceError("no perf")

    monkeypatch.setattr(traces, "run_record", record)
    given = ["--backend", "user", "--wait", "1.5", "--allow-lost", "--aslr", "--every-file-page"]
    refused(virtmm("record", *given, "-o", tmp_path / "t", "gcc", "-c"), "no perf")
    assert seen == {
        "command": ("gcc", "-c"), "output": tmp_path / "t", "backend": "user", "wait": 1.5,
        "allow_lost": True, "aslr": True, "every_file_page": True,
    }  # fmt: skip
    refused(virtmm("record", "-o", tmp_path / "t", "gcc"), "no perf")
    assert (seen["backend"], seen["wait"]) == (None, None)
    refused(virtmm("record", "--wait", "-1", "-o", tmp_path / "t", "gcc"), "--wait")


# --- broken traces --------------------------------------------------------------------------------


def broken(kind, trace):
    """Make a broken trace of a good one."""
    data = trace.read_bytes()
    if kind == "truncated":
        trace.write_bytes(data[: len(data) // 2])
    elif kind == "corrupted":
        half = len(data) // 4
        trace.write_bytes(
            data[:half] + bytes(255 - b for b in data[half : half + 64]) + data[half + 64 :]
        )
    elif kind == "foreign":
        trace.write_text("time,pid\n1,2\n")
    elif kind == "empty":
        trace.write_bytes(b"")
    elif kind == "other parquet":
        pq.write_table(pa.table({"a": [1, 2]}), trace)
    elif kind == "wrong schema":
        head = {"virtmm": '{"schema": 1, "page_size": 4096}'}
        table = pq.read_table(trace).drop_columns(["addr2"])
        pq.write_table(table.replace_schema_metadata(head), trace)
    elif kind == "newer":
        table = pq.read_table(trace)
        pq.write_table(
            table.replace_schema_metadata({"virtmm": '{"schema": 99, "page_size": 4096}'}), trace
        )
    elif kind == "contradiction":
        with TraceWriter(trace, {"page_size": 4096}) as writer:
            writer.append(time=0, pid=7, kind="fault", addr=A)
    elif kind == "missing":
        trace.unlink()
    else:
        trace.unlink()
        trace.mkdir()


KINDS = {
    "truncated": "truncated at",
    "corrupted": "damaged",
    "foreign": "not a trace",
    "empty": "is empty",
    "other parquet": "no virtmm trace",
    "wrong schema": "column addr2 is missing",
    "newer": "schema version 99",
    "contradiction": "row 0: process 7 was never started",
    "missing": "no such trace",
    "directory": "is a directory",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["compare", "replay"])
def test_a_broken_trace(virtmm, trace, tmp_path, command, kind):
    broken(kind, trace)
    out = tmp_path / "out.json"
    refused(virtmm(command, trace, "-o", out), str(trace), KINDS[kind])
    assert {p.name for p in tmp_path.iterdir()} <= {trace.name}


@pytest.mark.usefixtures("no_work")
def test_no_work_is_done_when_a_later_trace_is_broken(virtmm, trace):
    bad = trace.with_name("bad.parquet")
    bad.write_text("no")
    refused(virtmm("compare", trace, bad), str(bad))


@pytest.mark.usefixtures("no_work")
def test_two_traces_of_one_name(virtmm, trace, tmp_path):
    (tmp_path / "d").mkdir()
    other = make_trace(tmp_path / "d" / trace.name)
    refused(virtmm("compare", trace, other), "called small")
    refused(virtmm("compare", trace, trace), "called small")


# --- wrong arguments ------------------------------------------------------------------------------

REPLAY = {
    "arch": (["--arch", "vax"], "unknown architecture 'vax'; choose one of: alpha, arm64"),
    "kernel": (["--defconfig", "nosuch"], "no defconfig 'nosuch'; choose one of: baseline_4k"),
    "other arch's kernel": (["--arch", "x86", "--defconfig", "anonfolio_basic"], "x86 has no"),
    "fragment": (["--fragment", "nosuch"], "no fragment 'nosuch'; choose one of"),
    "missing path": (["--defconfig", "no/such"], "no/such: No such file"),
    "symbol": (["--set", "NOSUCH=y"], "unknown symbol NOSUCH"),
    "value": (["--set", "DEBUG_VM=maybe"], "DEBUG_VM"),
    "range": (["--set", "MEMORY_MB=1"], "wanted MEMORY_MB=1"),
    "dependency": (["--set", "LARGE_ANON_FOLIO_NOTHP_ORDER_MAX=3"], "ORDER_MAX=3"),
    "memory": (["--fragment", "64k", "--set", "MEMORY_MB=16"], "less than one block"),
    "knob": (["--set", "nosuch=1"], "nosuch=1: unknown knob"),
    "knob value": (["--set", "enabled=perhaps"], "enabled takes always, madvise, never"),
    "no value": (["--set", "enabled"], "enabled: not of the form NAME=VALUE"),
    "per-size": (["--defconfig", "anonfolio_basic", "--set", "64kB=always"], "no per-size knobs"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("what", REPLAY)
def test_wrong_arguments_of_replay(virtmm, trace, what):
    args, message = REPLAY[what]
    refused(virtmm("replay", trace, *args), message)


COMPARE = {
    "arch": (["--arch", "vax"], "unknown architecture 'vax'"),
    "kernel": (["--kernels", "baseline_4k,nosuch"], "no defconfig 'nosuch'"),
    "empty": (["--kernels", ""], "no defconfig ''"),
    "comma": (["--kernels", "baseline_4k,"], "no defconfig ''"),
    "symbol": (["--set", "NOSUCH=y"], "unknown symbol NOSUCH"),
    "knob": (["--set", "nosuch=1"], "nosuch=1: unknown knob"),
    "per-size": (["--kernels", "baseline_4k", "--set", "64kB=always"], "no per-size knobs"),
    "no such size": (["--set", "48kB=always"], "no such size; there are 16kB"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("what", COMPARE)
def test_wrong_arguments_of_compare(virtmm, trace, what):
    args, message = COMPARE[what]
    refused(virtmm("compare", trace, *args), message)


USAGE = {
    "format": (["compare", "T", "--format", "xml"], "'xml' is not one of 'text', 'json', 'csv'"),
    "option": (["replay", "T", "--nosuch"], "No such option '--nosuch'; see virtmm replay --help"),
    "no trace": (["compare"], "Missing argument 'TRACES...'; see virtmm compare --help"),
    "two traces": (["replay", "T", "U"], "unexpected extra argument"),
    "command": (["nosuch"], "No such command 'nosuch'; see virtmm --help"),
    "early option": (["--nosuch", "compare"], "No such option '--nosuch'; see virtmm --help"),
    "no output": (["record", "true"], "Missing option '-o'"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("what", USAGE)
def test_wrong_usage(virtmm, what):
    args, message = USAGE[what]
    refused(virtmm(*args), message)


def test_several_problems_are_a_line_each(virtmm, trace):
    result = virtmm("replay", trace, "--set", "NOSUCH=y", "--set", "NEITHER=y")
    assert result.exit_code == 2
    assert [line.split()[-1] for line in result.stderr.splitlines()] == ["NOSUCH", "NEITHER"]
    assert all(line.startswith("virtmm: ") for line in result.stderr.splitlines())


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", ["compare", "replay"])
def test_unwritable_output(virtmm, trace, tmp_path, command):
    """Found before the work, and the trace is not what it is written over."""
    before = trace.read_bytes()
    for out, message in (
        (trace / "out", "is not a directory"),
        (tmp_path / "nosuch" / "out", "nosuch does not exist"),
        (tmp_path, "is a directory"),
        (trace, "it is the trace"),
    ):
        refused(virtmm(command, trace, "-o", out), f"{out}: cannot write: ", message, "another -o")
    assert trace.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [trace.name]


def test_output_that_fails_at_the_end_leaves_nothing(virtmm, trace, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "out"
    refused(virtmm("compare", trace, "-o", out), "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == [trace.name]


def test_a_replay_of_several_batches_ends_well(tmp_path):
    """Also when Python takes itself apart at its end."""
    sample = pq.ParquetFile(topdir() / "samples" / "gcc.parquet")
    whole, path = sample.read(), tmp_path / "gcc.parquet"
    with pq.ParquetWriter(path, whole.schema) as writer:
        writer.add_key_value_metadata(sample.metadata.metadata)
        writer.write_table(whole[:100])
        writer.write_table(whole[100:])
    assert pq.ParquetFile(path).num_row_groups == 2
    process = start("replay", path, "--defconfig", "baseline_4k", "-o", tmp_path / "out")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


# --- the host -------------------------------------------------------------------------------------


def test_no_compiler(virtmm, trace, tmp_path):
    env = {"CC": "nosuch-gcc", "VIRTMM_CACHE": str(tmp_path / "cache")}
    refused(virtmm("compare", trace, env=env), "no C compiler 'nosuch-gcc'; install gcc")


def test_no_python_h(virtmm, trace, tmp_path, monkeypatch):
    include = tmp_path / "include"
    monkeypatch.setattr(sysconfig, "get_path", lambda *a, **kw: str(include))
    env = {"VIRTMM_CACHE": str(tmp_path / "cache")}
    refused(virtmm("compare", trace, env=env), f"{include}: no Python.h in it; install python3-dev")


def test_unwritable_cache(virtmm, trace):
    env = {"VIRTMM_CACHE": str(trace / "cache")}
    refused(virtmm("compare", trace, env=env), "Not a directory", "VIRTMM_CACHE")


def test_compiler_that_fails(virtmm, trace, tmp_path):
    env = {"CC": "false", "VIRTMM_CACHE": str(tmp_path / "cache")}
    refused(virtmm("compare", trace, env=env), "compiling the C core failed")
    assert list((tmp_path / "cache").iterdir()) == []


# --- the real command -----------------------------------------------------------------------------


def start(*args, **kw):
    """Start the command; Ctrl-C reaches it also where this suite runs with it ignored (make test &)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*COMMAND, *map(str, args)], cwd=topdir(), stderr=subprocess.PIPE, text=True, **kw
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_itself(trace, tmp_path):
    trace.write_bytes(trace.read_bytes()[:100])
    process = start("compare", trace, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == f"virtmm: {trace}: the file is truncated at 100 bytes; " + (
        "record it again with `virtmm record`\n"
    )


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_reader_that_has_gone_away(trace, fmt):
    read, write = os.pipe()
    os.close(read)
    process = start("compare", trace, "--format", fmt, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 1


def test_ctrl_c(tmp_path):
    """While it waits for a trace that does not come."""
    pipe = tmp_path / "slow.parquet"
    os.mkfifo(pipe)
    process = start("compare", pipe, stdout=subprocess.PIPE)
    writer = None
    for _ in range(600):
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as e:
            assert e.errno == errno.ENXIO  # nobody has opened it yet
            time.sleep(0.1)
    # Python looks for signals when open() returns and when read() is interrupted, not between.
    time.sleep(1)
    try:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        os.close(writer)
    assert (process.returncode, out) == (130, "")
    assert err == "virtmm: interrupted; no result was written\n"


def test_ctrl_c_leaves_no_trace_half_written(tmp_path):
    """And a terminal shows how far it is, below whose ^C the line begins."""
    ours, its = pty.openpty()
    words = ["--param", "pages=65536", "--param", "passes=1000000"]
    env = os.environ | {"TERM": "xterm"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, "generate", "strided", *words, "-o", str(tmp_path / "t.parquet")],
            cwd=topdir(),
            stderr=its,
            env=env,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    os.close(its)
    said = b""
    while not re.search(rb"strided .*[1-9][0-9]*,[0-9]{3}", said):
        said += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # how a terminal says that nobody has its other end open
        while more := os.read(ours, 65536):
            said += more
    os.close(ours)
    assert process.wait(60) == 130
    assert said.endswith(b"\r\nvirtmm: interrupted; no result was written\r\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_result_half_written(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write("text", tmp_path / "out.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["replay", "TRACE"],
        ["replay", "TRACE", "--format", "json"],
        ["arch-check", "--arch", "x86"],
        ["scenario", "show", "SCENARIO"],
        ["--help"],
        ["compare", "--help"],
    ],
)
@pytest.mark.parametrize("buffered", ["", "1"])
def test_standard_output_that_takes_nothing(trace, tmp_path, monkeypatch, words, buffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", buffered)
    scenario = tmp_path / "a.scn"
    scenario.write_text("proc p\nmmap p A 128k\ntouch p w A 64k\nobserve p\n")
    words = [{"TRACE": trace, "SCENARIO": scenario}.get(word, word) for word in words]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        process = start(*words, stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "virtmm: standard output: cannot write: No space left on device\n"


def test_standard_output_that_is_closed(trace):
    command = ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "replay", str(trace)]
    process = subprocess.run(command, cwd=topdir(), stderr=subprocess.PIPE, text=True, timeout=60)
    assert process.returncode == 2
    assert process.stderr == "virtmm: standard output is closed; give it a file, or use -o\n"


# --- import, inspect, generate --------------------------------------------------------------------


DATA = Path(__file__).resolve().parent / "trace" / "data"


def test_import_then_inspect_then_replay(virtmm, tmp_path):
    path = tmp_path / "t.parquet"
    result = virtmm("import", "perf", DATA / "perf.txt", "-o", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"{path}: 225 events\n"
    result = virtmm("inspect", path)
    assert result.exit_code == 0
    assert "demo" in result.stdout
    found = json.loads(virtmm("inspect", path, "--format", "json").stdout)
    assert found["events"]["fault"] == 183
    assert virtmm("replay", path, "--arch", "x86").exit_code == 0


@pytest.mark.parametrize(
    ("args", "events"),
    [
        (["strace", DATA / "strace.txt", "--faults", DATA / "strace-faults.txt"], 224),
        (["proc", DATA / "4242"], 478),
        (["lackey", DATA / "lackey.txt", "--maps", DATA / "lackey-maps.txt"], 140),
        (["drmemtrace", DATA / "drmemtrace.txt", "--maps", DATA / "drmemtrace-maps.txt"], 11),
    ],
)
def test_imports(virtmm, tmp_path, args, events):
    path = tmp_path / "t.parquet"
    result = virtmm("import", *args, "-o", path)
    assert result.stderr == f"{path}: {events} events\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["perf", "nothing.txt"], ["nothing.txt: cannot read: No such file"]),
        (
            ["perf", DATA / "strace.txt"],
            ["strace.txt:1: not a line of perf script", "print it with"],
        ),
        (["strace", DATA / "strace.txt"], ["--faults"]),
        (["lackey", DATA / "lackey.txt"], ["--maps"]),
        (["lackey", DATA / "lackey.txt", "--maps", "nothing"], ["nothing: cannot read"]),
        (["proc", DATA], ["neither smaps nor maps"]),
        (["proc", DATA / "4242", "--page-size", "65536"], ["smaps:1:", "--page-size"]),
        (["elf", "x"], ["'elf' is not one of 'perf'", "virtmm import --help"]),
    ],
)
def test_imports_that_fail_leave_nothing(virtmm, tmp_path, args, words):
    refused(virtmm("import", *args, "-o", tmp_path / "t.parquet"), *words)
    assert not list(tmp_path.iterdir())


def test_import_does_not_write_over_what_it_reads(virtmm, tmp_path):
    path = tmp_path / "perf.txt"
    path.write_text((DATA / "perf.txt").read_text())
    refused(virtmm("import", "perf", path, "-o", path), "cannot write")
    assert path.read_text() == (DATA / "perf.txt").read_text()


def test_generate(virtmm, tmp_path):
    path = tmp_path / "t.parquet"
    result = virtmm("generate", "strided", "-o", path, "--param", "pages=8", "--param", "stride=2")
    assert (result.exit_code, result.stderr) == (0, f"{path}: 13 events\n")
    refused(virtmm("generate", "strided", "-o", path, "--param", "pges=8"), "no parameter 'pges'")
    refused(virtmm("generate", "spiral", "-o", path), "'spiral' is not one of 'strided'")
    assert "fork-server: processes=1 generations=1 children=256" in " ".join(
        virtmm("generate", "--help").stdout.split()
    )


def test_inspect_of_no_trace(virtmm, tmp_path):
    refused(virtmm("inspect", tmp_path / "none.parquet"), "no such trace")
