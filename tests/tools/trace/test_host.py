# SPDX-License-Identifier: GPL-2.0-only
"""What recording needs, one line for each thing that is missing; fault-around for the whole system."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from virtmm.tools.trace import host
from virtmm.tools.trace.format import (
    TraceError,
)

from .live import BACKENDS


def refusal(backend: str | None) -> str:
    with pytest.raises(TraceError) as caught:
        host.choose(backend)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A Linux machine with all that recording needs, and its superuser."""
    monkeypatch.setattr(host.platform, "system", lambda: "Linux")
    monkeypatch.setattr(host.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(host.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_existing", list)
    monkeypatch.setattr(host, "PARANOID", tmp_path / "paranoid")
    monkeypatch.setattr(host, "PTRACE_SCOPE", tmp_path / "scope")
    return monkeypatch


def test_refusals(linux: pytest.MonkeyPatch) -> None:
    assert host.choose("perf").events == (*host.REQUIRED_EVENTS, *host.OPTIONAL_EVENTS)
    linux.setattr(host.shutil, "which", lambda _name: None)
    for backend in (None, *BACKENDS):
        assert "apt install linux-perf" in refusal(backend)
    linux.setattr(host.shutil, "which", lambda name: name if name == "perf" else None)
    assert "apt install strace" in refusal("user")
    linux.setattr(host.os, "geteuid", lambda: 1000)
    assert "apt install strace" in refusal(None)
    assert "sudo" in refusal("perf")
    linux.setattr(host.os, "geteuid", lambda: 0)
    linux.setattr(host, "_existing", lambda names: list(names[3:]))
    assert "no tracepoint exceptions:page_fault_user (3 missing)" in refusal("perf")
    assert "no tracepoint" in refusal(None)  # and what the other needs is missing too

    def fail(_names: Any) -> list[str]:
        raise OSError(1, "", "mount tracefs")

    linux.setattr(host, "_existing", fail)
    assert "mount tracefs: Operation not permitted" in refusal("perf")
    linux.setattr(host.platform, "machine", lambda: "aarch64")
    assert "known of x86_64 only, this is aarch64; record with --backend user" in refusal("perf")
    linux.setattr(host.platform, "system", lambda: "Plan 9")
    assert "needs Linux" in refusal(None)


def test_choice(linux: pytest.MonkeyPatch) -> None:
    assert host.choose(None).backend == "perf"
    assert host.choose("user").backend == "user"
    linux.setattr(host.platform, "machine", lambda: "aarch64")
    assert host.choose(None).backend == "user"
    linux.setattr(host.platform, "machine", lambda: "x86_64")
    linux.setattr(host.os, "geteuid", lambda: 1000)
    assert host.choose(None).backend == "user"


def test_what_an_ordinary_user_may(linux: pytest.MonkeyPatch) -> None:
    inferred = "whether a fault was a read or a write is inferred"
    host.PARANOID.write_text("3\n")
    assert host.choose("user").events == ("page-faults", "dummy")  # root may all
    assert host.choose("user").limits == (inferred,)
    linux.setattr(host.os, "geteuid", lambda: 1000)
    assert "sysctl kernel.perf_event_paranoid=2" in refusal("user")
    host.PARANOID.write_text("2\n")
    needs = host.choose("user")
    assert needs.events == ("page-faults:u", "dummy:u")
    assert needs.limits[0].startswith("faults inside the kernel are not seen")
    assert needs.limits[1:] == (inferred,)
    host.PARANOID.write_text("1\n")
    assert host.choose("user").limits == (inferred,)
    host.PTRACE_SCOPE.write_text("2\n")
    assert "sysctl kernel.yama.ptrace_scope=1" in refusal("user")


def test_fault_around(tmp_path: Path) -> None:
    knob = tmp_path / "fault_around_bytes"
    knob.write_text("65536\n")
    with host.fault_around(4096, knob) as before:
        assert before == 65536
        assert knob.read_text() == "4096\n"
        with (
            pytest.raises(TraceError, match="another recording holds it"),
            host.fault_around(1, knob),
        ):
            pass
        assert knob.read_text() == "4096\n"
    assert knob.read_text() == "65536\n"


def test_fault_around_is_restored_after_a_kill(tmp_path: Path) -> None:
    knob = tmp_path / "fault_around_bytes"
    knob.write_text("65536\n")
    pid = os.fork()
    if not pid:
        with host.fault_around(4096, knob):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while knob.read_text() != "65536\n" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert knob.read_text() == "65536\n"


def test_fault_around_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no debugfs"), host.fault_around(1, tmp_path / "none"):
        pass
    assert "lockdown" in host._why_not(1)
    assert host.fault_around_now() in (None, *(4096 << n for n in range(10)))
