# SPDX-License-Identifier: GPL-2.0-only
"""Every format: what the trace says of itself, and damaged files, which are one line or a trace."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtmm.tools.trace.format import TraceError, TraceReader
from virtmm.tools.trace.importers.run import FORMATS, import_trace, size_of
from virtmm.tools.trace.importers.source import Options

DATA = Path(__file__).resolve().parent.parent / "data"
SAMPLES = {
    "perf": ("perf.txt", {}),
    "strace": ("strace.txt", {"faults": DATA / "strace-faults.txt"}),
    "proc": ("4242", {}),
    "lackey": ("lackey.txt", {"maps": DATA / "lackey-maps.txt"}),
    "drmemtrace": ("drmemtrace.txt", {"maps": DATA / "drmemtrace-maps.txt"}),
}


def test_every_format_has_a_sample():
    assert list(SAMPLES) == list(FORMATS)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_trace_says_where_it_is_from(tmp_path, fmt):
    name, options = SAMPLES[fmt]
    path = tmp_path / "t.parquet"
    moves = []
    events = import_trace(fmt, [DATA / name], path, Options(**options), moves.append)
    assert max(moves, default=0) <= size_of(fmt, [DATA / name])
    with TraceReader(path) as reader:
        assert reader.num_events == events == sum(map(len, reader.batches()))
        about = reader.metadata
    assert f"(import {fmt})" in about["recorder"]
    assert about["source"] == [name]
    assert about["limits"]
    assert about["fault_around_bytes"] is None
    assert about["losses"] == {"events": 0 if fmt in ("perf", "strace") else None}


@pytest.mark.parametrize("fmt", ["perf", "strace", "lackey", "drmemtrace"])
@given(seed=st.integers(0, 2**32))
def test_damaged_files(tmp_path_factory, fmt, seed):
    """Lines cut, doubled, exchanged, or with other characters: a trace or one line, and no rest."""
    name, options = SAMPLES[fmt]
    chance = random.Random(seed)
    lines = (DATA / name).read_text().splitlines()
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        line = lines[at]
        place = chance.randrange(len(line) + 1)
        lines[at] = chance.choice(
            [
                line[:place],
                line + "\n" + line,
                line[:place] + chance.choice("0fx:(-[ \t\x00é") + line[place + 1 :],
                line[place:],
                "",
                line.replace("0x", "0xfffffffffffffff"),
                line.replace("-", " "),
            ]
        )
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / name
    path.write_text("\n".join(lines))
    try:
        import_trace(fmt, [path], folder / "t.parquet", Options(**options))
    except TraceError as error:
        assert "\n" not in str(error)
        assert list(folder.iterdir()) == [path]
    else:
        with TraceReader(folder / "t.parquet") as reader:
            assert sum(map(len, reader.batches())) == reader.num_events


@given(seed=st.integers(0, 2**32))
def test_damaged_snapshots(tmp_path_factory, seed):
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("damaged") / "9"
    folder.mkdir()
    lines = (DATA / "4242" / "smaps").read_text().splitlines()
    at = chance.randrange(len(lines))
    place = chance.randrange(len(lines[at]) + 1)
    lines[at] = (
        lines[at][:place] + chance.choice(["", "-", "9", "ffffffff"]) + lines[at][place + 1 :]
    )
    (folder / "smaps").write_text("\n".join(lines))
    pages = (DATA / "4242" / "pagemap").read_bytes()
    (folder / "pagemap").write_bytes(
        pages[: chance.choice([len(pages), chance.randrange(len(pages))])]
    )
    output = folder.with_name("t.parquet")
    try:
        import_trace("proc", [folder], output, Options())
    except TraceError as error:
        assert "\n" not in str(error)
        assert not output.exists()
    else:
        with TraceReader(output) as reader:
            assert sum(map(len, reader.batches())) == reader.num_events
