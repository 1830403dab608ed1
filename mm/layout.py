# SPDX-License-Identifier: GPL-2.0-only
"""
The arena's layout for Python: csrc/arena.def, parsed once.

Every FIELD and CONST of that file is a module attribute (``from .layout import PAGE_FLAGS``);
events and counters are numbered as C numbers them: ``EV_fork``, ``VM_pgfault``,
``MTHP_split_deferred``, ``WORK_tlbi``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Array:
    """One array: ``count`` names a number that boot knows, ``words`` elements make a record."""

    name: str
    bits: int
    count: str
    words: str


_text = (Path(__file__).resolve().parent.parent / "csrc" / "arena.def").read_text()
_entries = re.findall(
    r'^(ARRAY|FIELD|CONST|EVENT|VMSTAT|WORK|MTHP_STAT)\((.*?)(?:, )?"(.*)"\)$', _text, re.M
)

ARRAYS: list[Array] = []
#: (name, counted by folio order?)
EVENTS: list[tuple[str, bool]] = []
VMSTATS: list[str] = []
MTHP_STATS: list[str] = []
WORKS: list[str] = []

for _kind, _arguments, _doc in _entries:
    _words = _arguments.split(", ")
    if _kind == "ARRAY":
        ARRAYS.append(Array(_words[0], int(_words[1][1:]), _words[2], _words[3]))
    elif _kind == "EVENT":
        globals()[f"EV_{_words[0]}"] = len(EVENTS)
        EVENTS.append((_words[0], _words[1] == "1"))
    elif _kind == "VMSTAT":
        globals()[f"VM_{_words[0]}"] = len(VMSTATS)
        VMSTATS.append(_words[0])
    elif _kind == "WORK":
        globals()[f"WORK_{_words[0]}"] = len(WORKS)
        WORKS.append(_words[0])
    elif _kind == "MTHP_STAT":
        globals()[f"MTHP_{_words[0]}"] = len(MTHP_STATS)
        MTHP_STATS.append(_words[0])
    else:
        globals()[_words[0]] = int(_words[1])

for _name, _needed in (("event", len(EVENTS)), ("mthp_stat", len(MTHP_STATS))):
    _have = next(int(a.words) for a in ARRAYS if a.name == _name)
    assert _needed * globals()["NR_ORDERS"] <= _have, f"csrc/arena.def: array {_name} is too small"


def __getattr__(name: str) -> int:
    """Tell type checkers that every other attribute is an int; at run time there is none."""
    raise AttributeError(f"csrc/arena.def has no {name}")
