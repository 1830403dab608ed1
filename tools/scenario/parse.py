# SPDX-License-Identifier: GPL-2.0-only
"""
The scenario language: one command a line, words separated by blanks, ``#`` starts a comment.

Sizes are decimal with an optional suffix ``k``, ``M``, ``G`` (powers of 1024) or ``p`` (base pages
of the running kernel). An address is a region letter ``A`` to ``Z``, optionally ``+SIZE``; region
i begins at ``0x1000000000 + i * 0x40000000`` and is 1 GiB long.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

REGION_SIZE = 1 << 30
FIRST_REGION = 0x1000000000

PROTECTIONS = {"none": 0, "r": 1, "rw": 3}
ADVICE = {
    "hugepage": 14,
    "nohugepage": 15,
    "dontneed": 4,
    "free": 8,
    "cold": 20,
    "pageout": 21,
    "collapse": 25,
    "populate_read": 22,
    "populate_write": 23,
    "dontfork": 10,
    "dofork": 11,
    "wipeonfork": 18,
    "keeponfork": 19,
}
#: command -> its words behind the name; ``?`` marks those that may be left out
GRAMMAR = {
    "set": "KNOB VALUE",
    "proc": "NEW",
    "mmap": "P ADDR LEN PROT?",
    "munmap": "P ADDR LEN",
    "mprotect": "P ADDR LEN PROT",
    "mremap": "P ADDR LEN ADDR LEN",
    "madvise": "P ADDR LEN ADVICE",
    "mlock": "P ADDR LEN",
    "munlock": "P ADDR LEN",
    "touch": "P ACCESS ADDR LEN STRIDE?",
    "fork": "P NEW",
    "exit": "P",
    "observe": "LABEL",
}
_SUFFIX = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class ScenarioError(Exception):
    """A scenario is not in the language: file, line, what was expected."""


@dataclass(frozen=True)
class Command:
    """
    One command.

    Attributes:
        line: 1-based.
        name: a key of GRAMMAR.
        words: its arguments: process names and labels as text; addresses, sizes, protections and
        advice as ints.
    """

    line: int
    name: str
    words: tuple[str | int, ...]


def region_address(letter: str) -> int:
    """Return where a region begins."""
    return FIRST_REGION + (ord(letter) - ord("A")) * REGION_SIZE


def region_letter(address: int) -> str:
    """Return the region that an address is in."""
    return chr(ord("A") + (address - FIRST_REGION) // REGION_SIZE)


def parse(path: Path, page_size: int) -> list[Command]:
    """
    Return the commands of a scenario file.

    Raises:
        ScenarioError: unreadable file, or a line that is not in the language.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ScenarioError(f"{path}: not UTF-8 text; is it a scenario?") from None
    except OSError as e:
        raise ScenarioError(f"{path}: {e.strerror}; name a scenario file") from None
    commands = []
    alive: set[str] = set()
    for line, content in enumerate(text.splitlines(), 1):
        words = content.partition("#")[0].split()
        if words:
            parser = _Line(path, line, page_size, alive)
            commands.append(parser.parse(words))
    return commands


class _Line:
    """One line on its way to a Command; ``alive`` are the processes that live there."""

    def __init__(self, path: Path, line: int, page_size: int, alive: set[str]) -> None:
        self.path, self.line, self.page_size, self.alive = path, line, page_size, alive

    def fail(self, expected: str) -> ScenarioError:
        return ScenarioError(f"{self.path}:{self.line}: {expected}")

    def parse(self, words: list[str]) -> Command:
        name, *rest = words
        if name not in GRAMMAR:
            raise self.fail(f"unknown command {name!r}; there are {', '.join(GRAMMAR)}")
        wanted = GRAMMAR[name].split()
        least = sum(not w.endswith("?") for w in wanted)
        if not least <= len(rest) <= len(wanted):
            raise self.fail(f"expected: {name} {GRAMMAR[name]}")
        readers: dict[str, Callable[[str], str | int]] = {
            "P": self._process,
            "NEW": self._new_process,
            "ADDR": self._address,
            "LEN": self._size,
            "STRIDE": self._stride,
            "PROT": lambda w: self._choice(w, PROTECTIONS, "protection"),
            "ADVICE": lambda w: self._choice(w, ADVICE, "advice"),
            "ACCESS": lambda w: self._choice(w, {"r": 0, "w": 1}, "access"),
        }
        values: list[str | int] = [
            readers.get(want.rstrip("?"), str)(word)
            for want, word in zip(wanted, rest, strict=False)
        ]
        kinds = [w.rstrip("?") for w in wanted[: len(values)]]
        for (kind, value), (following, length) in zip(
            zip(kinds, values, strict=True), list(zip(kinds, values, strict=True))[1:], strict=False
        ):
            if kind == "ADDR" and following == "LEN":
                self._inside(int(value), int(length))
        if name == "exit":
            self.alive.discard(rest[0])
        return Command(self.line, name, tuple(values))

    def _process(self, word: str) -> str:
        if word not in self.alive:
            raise self.fail(f"unknown process {word!r}; start it with proc or fork")
        return word

    def _new_process(self, word: str) -> str:
        if word in self.alive:
            raise self.fail(f"process {word!r} lives already; choose another name")
        self.alive.add(word)
        return word

    def _size(self, word: str) -> int:
        match = re.fullmatch(r"(\d+)([kMGp]?)", word, re.ASCII)
        if not match:
            raise self.fail(f"malformed size {word!r}; expected digits and k, M, G or p")
        unit = self.page_size if match[2] == "p" else _SUFFIX[match[2]]
        return int(match[1]) * unit

    def _stride(self, word: str) -> int:
        stride = self._size(word)
        if not stride:
            raise self.fail("a stride of 0 never ends; expected a size of 1 or more")
        return stride

    def _address(self, word: str) -> int:
        letter, plus, offset = word.partition("+")
        if not re.fullmatch("[A-Z]", letter, re.ASCII) or (plus and not offset):
            raise self.fail(f"unknown region in {word!r}; expected a letter A to Z, or A+SIZE")
        at = self._size(offset) if plus else 0
        if at >= REGION_SIZE:
            raise self.fail(f"{word}: beyond the region's 1 GiB")
        return region_address(letter) + at

    def _inside(self, address: int, length: int) -> None:
        if (address - FIRST_REGION) % REGION_SIZE + length > REGION_SIZE:
            raise self.fail(f"address and length {length} reach beyond the region's 1 GiB")

    def _choice(self, word: str, choices: dict[str, int], what: str) -> int:
        if word not in choices:
            raise self.fail(f"unknown {what} {word!r}; choose one of {', '.join(choices)}")
        return choices[word]
