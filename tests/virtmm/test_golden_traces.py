# SPDX-License-Identifier: GPL-2.0-only
"""The golden traces: what they say is what is compared, and a line that says another thing fails."""

import re

import pytest

from virtmm import golden_traces as golden
from virtmm.golden_traces import GoldenError, golden_traces, replay_golden
from virtmm.kconfig import resolve
from virtmm.machine import Machine

PATHS = {path.stem: path for path in golden_traces()}


@pytest.fixture
def boot():
    """Return a function: name of an x86 kernel -> a machine of it that has contents."""
    machines = []

    def boot(kernel="baseline_4k"):
        config = resolve("x86", kernel, sets=["MEMORY_MB=64", "PHYS_BACKING=y"])
        machines.append(Machine(config))
        machines[-1].set("enabled", "never")
        for size in machines[-1].sizes():
            machines[-1].set(size, "always")
        return machines[-1]

    yield boot
    for m in machines:
        m.close()


def test_what_there_is():
    assert sorted(PATHS) == ["fork", "move", "protect", "touch"]


@pytest.mark.parametrize("name", PATHS)
def test_a_kernel_of_base_pages_and_one_of_large_folios(boot, name):
    replay_golden(boot(), PATHS[name], base_pages=True)
    replay_golden(boot("linux-7.3"), PATHS[name], base_pages=False)


def test_large_folios_are_at_work(boot):
    """Else the second of the above says nothing."""
    with pytest.raises(GoldenError, match=r"^touch.trace:1\d: minflt 1: \d+ instead of 208$"):
        replay_golden(boot("linux-7.3"), PATHS["touch"], base_pages=True)


def mutations():
    """Yield (name, line number, the line with another outcome) of every line that has a result."""
    for name, path in PATHS.items():
        for number, line in enumerate(path.read_text().splitlines()):
            if line.startswith("#"):
                continue
            call, arrow, result = line.partition(" -> ")
            if not arrow:
                other = "ENOMEM"
            elif m := re.fullmatch(r"(=?)(\d+)(p?)", result):
                other = f"{m[1]}{int(m[2]) + 1}{m[3]}"
            else:
                other = "0"
            yield name, number, f"{call} -> {other}"


def test_every_line_is_compared(boot, tmp_path):
    lines = list(mutations())
    assert len(lines) > 100
    for name, number, line in lines:
        text = PATHS[name].read_text().splitlines()
        text[number] = line
        (tmp_path / "wrong.trace").write_text("\n".join(text))
        with pytest.raises(GoldenError, match=rf"^wrong.trace:{number + 1}: "):
            replay_golden(boot(), tmp_path / "wrong.trace", base_pages=True)


@pytest.mark.parametrize(
    ("line", "base", "good"),
    [
        ("minflt 1 -> 1", True, True),
        ("minflt 1 -> 2", True, False),
        ("minflt 1 -> 2", False, True),
        ("minflt 1 -> 0", False, False),
        ("rss 1 -> 1p", True, True),
        ("rss 1 -> 0p", True, False),
        ("rss 1 -> 0p", False, True),
        ("rss 1 -> 2p", False, False),
        ("load*3 1 low -> =0", True, False),
        ("load 1 low -> 4", True, True),
        ("load*2 1 low -> 4", True, False),
    ],
)
def test_what_is_compared_how(boot, tmp_path, line, base, good):
    text = f"spawn 1\nmmap 1 low 4p\nstore 1 low 4\n{line}\nexit 1\n"
    (tmp_path / "x.trace").write_text(text)
    if good:
        replay_golden(boot(), tmp_path / "x.trace", base_pages=base)
        return
    with pytest.raises(GoldenError, match=r"^x.trace:4: "):
        replay_golden(boot(), tmp_path / "x.trace", base_pages=base)


def test_memory_is_free_again(boot, tmp_path):
    (tmp_path / "x.trace").write_text("spawn 1\nmmap 1 low 4p\nstore 1 low 4\n")
    with pytest.raises(GoldenError, match=r"^x.trace: \d+ pages are not free again at its end$"):
        replay_golden(boot(), tmp_path / "x.trace", base_pages=True)


def test_words_are_pages_and_places(boot):
    m = boot()
    number = golden._number
    assert [number(m, w) for w in ("7", "7p", "low", "low+3p", "edge-1p", "top-64p", "low+1")] == [
        7, 7 * 4096, 4096, 4 * 4096, (2 << 20) - 4096, (1 << 47) - 65 * 4096, 4097,
    ]  # fmt: skip
