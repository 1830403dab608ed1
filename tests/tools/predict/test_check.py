# SPDX-License-Identifier: GPL-2.0-only
"""Predictions beside measurements, with a kernel that is made up."""

import json
from contextlib import nullcontext

import pytest
from virtmm.tools.predict import check, real
from virtmm.tools.predict.check import Row, parse_setting, prediction_notes
from virtmm.tools.predict.real import Measured, RealError
from virtmm.tools.predict.show import render

from virtmm.kconfig import resolve


def test_settings():
    assert parse_setting("none") == {}
    assert parse_setting("16,32kB,64=madvise") == {16: "always", 32: "always", 64: "madvise"}
    for wrong in ("", "16,", "x", "64=maybe", "64=never"):
        with pytest.raises(RealError, match="write none, or sizes in kB"):
            parse_setting(wrong)


A, K = 0x7F0000000000, 1024


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """record() writes sixteen first touches; real runs answer as given."""
    from virtmm.tools.trace.format import File, TraceWriter

    def record(command, output):
        with TraceWriter(output, {"page_size": 4096, "command": "x"}) as writer:
            writer.append(time=0, pid=1, kind="exec", file=File("/p", 1, 4096))
            writer.append(time=1, pid=1, kind="mmap", addr=A, len=64 * K, prot=3, flags=0x22)
            for i in range(16):
                writer.append(time=2 + i, pid=1, kind="fault", addr=A + i * 4 * K, prot=2)

    monkeypatch.setattr(check, "record", record)
    monkeypatch.setattr(real, "sizes", lambda: dict.fromkeys((16, 64, 2048)))
    monkeypatch.setattr(real, "settings", lambda _: nullcontext())


def test_predicted_and_measured_side_by_side(recorded, monkeypatch):
    runs = iter([Measured(n, 4 << 20, {64 * K: n}, 0) for n in (1, 3, 2, 10, 10, 10)])
    monkeypatch.setattr(real, "run", lambda _: next(runs))
    config = resolve("x86", "linux-6.18")
    rows = check.predict_check(["./p"], ["64", "16"], config, "linux-6.18", repeat=3)
    assert [(r.predicted["minflt"], r.measured["minflt"], r.spread) for r in rows] == [
        (1, 2, 2),
        (4, 10, 0),
    ]
    assert [r.predicted["folios"] for r in rows] == [{64 * K: 1}, {16 * K: 4}]
    assert rows[0].measured["folios"] == {64 * K: 2}
    assert [r.error("minflt") for r in rows] == [-50, pytest.approx(-60)]


def row(**kw):
    side = {"minflt": 99, "maxrss": 1 << 20, "folios": {65536: 3}}
    real_side = {"minflt": 100, "maxrss": 1 << 20, "folios": {65536: 4}}
    return Row("prog | x", "64", {**side, **kw}, real_side, 3, 1)


def test_the_table_says_how_far_off():
    text = render([row(), row(minflt=103)], "text", ["a note"])
    assert "-1.00%" in text and "+3.00%" in text and "64K 3/4" in text and "a note" in text
    assert "2.00% 3.00%" in text, "median and worst"
    markdown = render([row()], "md")
    assert {line.count("|") - line.count("\\|") for line in markdown.splitlines()} == {9}
    document = json.loads(render([row()], "json"))
    assert document["rows"][0]["minflt_error_percent"] == pytest.approx(-1)
    assert document["rows"][0]["predicted"]["folios"] == {"65536": 3}


def test_a_command_that_failed_is_named():
    failed = Row("false", "none", {}, {"status": 1}, 1, 0)
    passed = Row("true", "none", {}, {"status": 0}, 1, 0)
    assert prediction_notes("linux-6.18", 1, [passed, failed])[0] == "false: ended with status 1"
    assert len(prediction_notes("linux-6.18", 1, [passed])) == 2


def test_nothing_measured_is_no_error():
    empty = {"minflt": 0, "maxrss": 0, "folios": {}}
    assert Row("x", "none", empty, empty, 1, 0).error("minflt") is None
