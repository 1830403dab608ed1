# SPDX-License-Identifier: GPL-2.0-only
"""The language: what is in it, and the one line about what is not."""

import pytest
from virtmm.tools.scenario.parse import Command, ScenarioError, parse, region_address, region_letter


def read(tmp_path, text, page_size=4096):
    path = tmp_path / "a.scn"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(path, page_size)


def test_commands_come_with_their_lines(tmp_path):
    text = "# what\n\nproc p\nmmap p B+4k 3p none # here\ntouch p w B 1M 64k\nobserve end\n"
    assert read(tmp_path, text, 16384) == [
        Command(3, "proc", ("p",)),
        Command(4, "mmap", ("p", region_address("B") + 4096, 3 * 16384, 0)),
        Command(5, "touch", ("p", 1, region_address("B"), 1 << 20, 65536)),
        Command(6, "observe", ("end",)),
    ]


def test_every_advice_and_protection_has_linux_numbers(tmp_path):
    text = "proc p\n" + "".join(
        f"madvise p A 4k {a}\n" for a in ("hugepage", "free", "cold", "collapse", "populate_write")
    )
    assert [c.words[3] for c in read(tmp_path, text)[1:]] == [14, 8, 20, 25, 23]
    text = "proc p\nmmap p A 4k\nmmap p B 4k r\nmmap p C 4k rw\n"
    assert [c.words[3:] for c in read(tmp_path, text)[1:]] == [(), (1,), (3,)]


def test_a_name_may_be_used_again_after_exit(tmp_path):
    assert len(read(tmp_path, "proc p\nfork p q\nexit p\nfork q p\n")) == 4


def test_regions_are_1_gib_apart():
    assert region_address("A") == 0x1000000000
    assert region_address("C") - region_address("B") == 1 << 30
    assert region_letter(region_address("Z") + 4096) == "Z"


WRONG = {
    "unknown command": ("zap p A 4k", "unknown command 'zap'"),
    "too few": ("mmap p A", "expected: mmap P ADDR LEN PROT?"),
    "too many": ("munmap p A 4k rw", "expected: munmap P ADDR LEN"),
    "process": ("munmap q A 4k", "unknown process 'q'"),
    "dead process": ("exit p\nmunmap p A 4k", "unknown process 'p'"),
    "twice": ("proc p", "lives already"),
    "region": ("munmap p a 4k", "unknown region in 'a'"),
    "no offset": ("munmap p A+ 4k", "unknown region in 'A+'"),
    "size": ("munmap p A 4K", "malformed size '4K'"),
    "negative": ("munmap p A -4k", "malformed size '-4k'"),
    "other digits": ("munmap p A \u0664k", "malformed size"),
    "beyond": ("munmap p A+1023M 2M", "beyond the region's 1 GiB"),
    "far beyond": ("munmap p A+1G 0", "beyond the region's 1 GiB"),
    "stride": ("touch p r A 4k 0", "stride of 0"),
    "access": ("touch p x A 4k", "unknown access 'x'"),
    "advice": ("madvise p A 4k willneed", "unknown advice 'willneed'"),
    "protection": ("mprotect p A 4k w", "unknown protection 'w'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_in_the_language(tmp_path, what):
    text, message = WRONG[what]
    with pytest.raises(ScenarioError) as e:
        read(tmp_path, f"proc p\n{text}\n")
    assert message in str(e.value)
    assert f"a.scn:{2 + text.count(chr(10))}: " in str(e.value)
    assert "\n" not in str(e.value)


def test_files_that_are_no_scenarios(tmp_path):
    with pytest.raises(ScenarioError, match="not UTF-8"):
        read(tmp_path, b"proc \xff\n")
    with pytest.raises(ScenarioError, match="No such file"):
        parse(tmp_path / "b.scn", 4096)
    with pytest.raises(ScenarioError, match="Is a directory"):
        parse(tmp_path, 4096)
