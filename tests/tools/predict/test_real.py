# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the running kernel: written, and restored however it ends. All on a copy of the folder."""

import os
import signal
import sys

import pytest
from virtmm.tools.predict import real
from virtmm.tools.predict.real import RealError

STATES = "always inherit madvise [never]"


@pytest.fixture
def thp(tmp_path, monkeypatch):
    """A folder like /sys/kernel/mm/transparent_hugepage with two sizes, nobody else's lock."""
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    for kb in (16, 64):
        folder = tmp_path / f"hugepages-{kb}kB"
        (folder / "stats").mkdir(parents=True)
        (folder / "enabled").write_text(STATES)
        (folder / "stats" / "anon_fault_alloc").write_text("100\n")
    (tmp_path / "hugepages-8kB").mkdir()  # shmem only: no knob
    monkeypatch.setattr(real, "THP", tmp_path)
    monkeypatch.setattr(real, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def values(thp):
    return {p.parent.name: p.read_text() for p in thp.rglob("enabled")}


def test_sizes_are_those_with_a_knob(thp):
    assert list(real.sizes()) == [16, 64]


def test_every_other_size_is_never_and_all_is_restored(thp):
    with real.settings({64: "always"}, "always"):
        inside = values(thp)
    assert inside == {thp.name: "always", "hugepages-16kB": "never", "hugepages-64kB": "always"}
    assert values(thp) == {
        thp.name: "madvise",
        "hugepages-16kB": "never",
        "hugepages-64kB": "never",
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_it_is_restored_when_the_run_is_broken_off(thp, error):
    with pytest.raises(error), real.settings({16: "madvise"}):
        raise error
    assert values(thp)["hugepages-16kB"] == "never"


def test_a_setting_that_cannot_be_written_is_one_line_and_restores_the_others(thp, monkeypatch):
    knob = thp / "hugepages-64kB" / "enabled"
    write = type(knob).write_text

    def refuse(path, text):
        if path == knob and text == "always":
            raise PermissionError(13, "Permission denied", str(path))
        return write(path, text)

    monkeypatch.setattr(type(knob), "write_text", refuse)
    message = "hugepages-64kB/enabled: cannot write: Permission denied"
    with pytest.raises(RealError, match=message), real.settings({16: "always", 64: "always"}):
        pass
    assert values(thp)["hugepages-16kB"] == "never"


def test_what_cannot_be_asked(thp, monkeypatch):
    real.require([{16: "always"}, {}])
    with pytest.raises(RealError, match="no 32kB folios; it has 16, 64"):
        real.require([{32: "always"}])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RealError, match="needs root"):
        real.require([{}])
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(real, "THP", thp / "nothing")
    with pytest.raises(RealError, match=r"Linux 6\.10 or newer"):
        real.require([{}])


TOUCH = "import mmap; m = mmap.mmap(-1, {n} << 12); [m.__setitem__(i << 12, 1) for i in range({n})]"


def test_a_run_is_what_the_kernel_counted(thp, monkeypatch):
    """A thousand more pages are a thousand more faults, and resident: of a program without sanitizers."""
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    runs = [real.run([sys.executable, "-c", TOUCH.format(n=n)]) for n in (1000, 2000)]
    assert [r.status for r in runs] == [0, 0]
    assert 950 <= runs[1].minflt - runs[0].minflt <= 1050
    assert 3 << 20 <= runs[1].maxrss - runs[0].maxrss <= 5 << 20
    assert runs[0].folios == {}


def test_folios_are_counted_over_the_run(thp):
    stat = thp / "hugepages-64kB" / "stats" / "anon_fault_alloc"
    run = real.run([sys.executable, "-c", f"open({str(stat)!r}, 'w').write('107')"])
    assert run.folios == {65536: 7}


def test_the_launcher_is_smaller_than_what_it_launches(thp):
    """A program's largest resident set is its own, not that of the Python that started it."""
    assert real.run(["true"]).maxrss < 8 << 20


def test_a_status_is_passed_on_and_a_command_that_is_not_there_refused(thp):
    assert real.run(["sh", "-c", "exit 3"]).status == 3
    assert real.run(["sh", "-c", "kill -9 $$"]).status == 137
    with pytest.raises(RealError, match="no-such-command: command not found"):
        real.run(["no-such-command"])


def test_what_outlives_the_command_is_counted_too(thp):
    """As in a recording, which follows all that the command starts."""
    child = TOUCH.format(n=2000)
    script = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    assert real.run([sys.executable, "-c", script]).minflt > 3000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_settings(thp, number):
    with pytest.raises(SystemExit), real.settings({16: "always"}):
        os.kill(os.getpid(), number)
    assert values(thp)["hugepages-16kB"] == "never"
    assert signal.getsignal(number) != signal.SIG_IGN
