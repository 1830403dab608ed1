# SPDX-License-Identifier: GPL-2.0-only
"""Which method of zeroing and copying boot chooses, and which machines measure at all."""

import pytest

from virtmm import kbuild, methods
from virtmm.kconfig import resolve
from virtmm.machine import Machine


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(methods, "_chosen", None)


def machine(*sets):
    return Machine(resolve("arm64", "anonfolio_basic", sets=["MEMORY_MB=64", *sets]))


def test_the_worse_case_decides():
    assert methods.nearest_to_best({0: (100, 100), 1: (50, 400), 2: (70, 120)}) == 2
    assert methods.nearest_to_best({0: (100, 100), 1: (90, 300)}) == 0


def test_the_first_unless_it_is_clearly_worse():
    assert methods.nearest_to_best({0: (104, 100), 3: (101, 102), 5: (100, 100)}) == 0
    assert methods.nearest_to_best({0: (106, 100), 3: (101, 102), 5: (100, 100)}) == 5


class Host:
    """A core whose methods take the time that they are said to take, times the host's load."""

    def __init__(self, monkeypatch, times, loads):
        self.ffi, self.lib, self.NULL = self, self, None
        self.now, self.times, self.load = 0, times, iter(loads)
        self.runs = dict.fromkeys(times, 0)
        monkeypatch.setattr(methods, "perf_counter_ns", lambda: self.now)

    def method_run(self, method, to, source, size, step, blocks):
        hot, cold = self.times[method]
        self.runs[method] += blocks if step else 0
        self.now += blocks * (cold if step else hot) * next(self.load)


def test_load_that_comes_and_goes_does_not_matter(monkeypatch):
    loads = [load for turn in range(30) for load in [1 + 4 * (turn % 3)] * 4]
    host = Host(monkeypatch, {0: (100, 100), 2: (90, 100)}, loads)
    assert methods._times(host, 0, None, 4096, [0, 2]) == {0: [1, 1], 2: [0.9, 1]}
    once = [1] * 10 + [50] + [1] * 100
    host = Host(monkeypatch, {0: (100, 100), 2: (90, 100)}, once)
    assert methods._times(host, 0, None, 4096, [0, 2]) == {0: [1, 1], 2: [0.9, 1]}


def test_what_is_far_behind_is_left_out(monkeypatch):
    times = {0: (200, 100), 1: (100, 100), 2: (100, 130), 3: (100, 120)}
    host = Host(monkeypatch, times, [1] * 400)
    assert list(methods._times(host, 0, None, 4096, [0, 1, 2, 3])) == [0, 1, 3]
    assert host.runs[2] < host.runs[3] == host.runs[0], (
        "libc's stays: the others are compared with it"
    )


def test_a_machine_without_contents_measures_nothing(unmeasured):
    with machine() as m:
        assert methods._chosen is None
        assert not any(m.k.method)


def test_the_first_machine_with_contents_measures_for_all(unmeasured):
    with machine("PHYS_BACKING=y") as m, machine("PHYS_BACKING=y", "DEBUG_VM=y") as other:
        chosen = methods._chosen
        assert m.k.method[:8].tolist() == other.k.method[:8].tolist() == chosen.numbers.tolist()
        assert methods.choose(other._booted.core) is chosen
        assert all(len(names) == len(methods.SIZES) for names in chosen.names.values())


def test_the_choice_is_no_part_of_the_state(unmeasured):
    digests = set()
    for number in (0, 1):
        with machine("PHYS_BACKING=y") as m:
            for i in range(8):
                m.k.method[i] = number
            m.spawn(1)
            assert m.mmap(1, 1 << 30, 1 << 20) == 0
            assert m.store(1, (1 << 30) + 5, 7) == 0
            digests.add(m.digest())
    assert len(digests) == 1


def test_make_core_says_what_was_chosen(tmp_path, capsys):
    config = tmp_path / ".config"
    config.write_text("CONFIG_PHYS_BACKING=y\n")
    assert kbuild.main(["--arch", "arm64", str(config)]) == 0
    said = capsys.readouterr().out.splitlines()
    chosen = methods._chosen.names
    assert said[1] == "zeroing: " + ", ".join(
        f"{size} {name}"
        for size, name in zip(("4K", "16K", "64K", "2M"), chosen["zeroing"], strict=True)
    )
    assert said[2].startswith("copying: 4K ")
    config.write_text("")
    assert kbuild.main(["--arch", "arm64", str(config)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
