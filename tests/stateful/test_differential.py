# SPDX-License-Identifier: GPL-2.0-only
"""
The same program on two machines that must not differ: loops in C and in Python, faults in C and in
Python, with DEBUG_VM and without, and twice the same.
"""

import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import calls
from .driver import Driver
from .flavours import FLAVOURS, Flavour
from .test_soak import program

_ALWAYS = ("enabled=always",)
PAIRS = [
    Flavour("arm64", "anonfolio_basic", knobs=_ALWAYS, share=9),
    Flavour("arm64", "anonfolio_basic", ("16k",), knobs=_ALWAYS, share=9),
    Flavour("arm64", "anonfolio_basic", ("64k",), knobs=_ALWAYS, memory_mb=1024, share=2),
    Flavour("arm64", "exefolio", knobs=_ALWAYS, share=9),
    Flavour("arm64", "contpte", ("contpte-basic",), knobs=_ALWAYS, share=9),
    Flavour("arm64", "contpte", ("16k", "contpte-batch"), knobs=_ALWAYS, memory_mb=256, share=3),
    Flavour("arm64", "contpte", ("64k", "contpte-fold"), knobs=_ALWAYS, memory_mb=1024, share=2),
    Flavour("arm64", "anonfolio", knobs=_ALWAYS, share=9),
    Flavour("x86", "baseline_4k", share=9),
    Flavour("arm64", "linux-6.12", memory_mb=32, share=3),
    Flavour("arm64", "linux-7.3", memory_mb=32, share=4),
    Flavour("arm64", "linux-6.12", ("contpte-basic",), memory_mb=32, share=3),
    Flavour("arm64", "linux-7.3", ("16k",), memory_mb=256, share=1),
    Flavour("x86", "linux-7.3", memory_mb=32, share=2),
    Flavour("riscv", "linux-7.3", memory_mb=32, share=2),
    Flavour("riscv", "linux-7.3", ("svnapot",), memory_mb=32, share=2),
    Flavour("powerpc", "linux-7.3", share=4),
    Flavour("powerpc", "linux-7.3", memory_mb=16, share=8, tight=True),
]


def programs(kinds):
    processes = st.one_of(kinds.fork, kinds.end)
    return st.lists(
        st.one_of(
            st.tuples(st.none(), kinds.mappings),
            st.tuples(st.none(), kinds.accesses),
            st.tuples(st.none(), kinds.accesses),
            st.tuples(st.none(), processes),
            st.tuples(st.tuples(calls.failure, calls.occasions), kinds.needs_memory),
        ),
        min_size=5,
        max_size=40,
    )


def alike(flavour, sets, steps):
    """Run a program on two machines; their state must be the same after every call."""
    pair = [Driver(flavour.config(s), flavour.knobs, flavour.tight) for s in sets]
    try:
        for failure, call in steps:
            if call[0] in ("fork", "cow") and len(pair[0].spaces) > 3:
                continue
            for driver in pair:
                if failure:
                    driver.arm(*failure)
                driver.step(*call)
            first, second = (driver.m.digest() for driver in pair)
            assert first == second, f"after {call}"
            assert pair[0].m.events() == pair[1].m.events()
            assert pair[0].m.work() == pair[1].m.work(), f"after {call}"
            assert pair[0].m.refusals() == pair[1].m.refusals(), f"after {call}"
    finally:
        for driver in pair:
            driver.close()


@pytest.mark.parametrize("flavour", PAIRS, ids=str)
def test_digests_are_the_same_after_every_call(flavour):
    kinds = calls.MAINLINE if flavour.mthp else calls.SERIES
    first = (None, ("mmap", 0, (0, 0, 192), 3, "private", True, False))

    @settings(max_examples=max(1, settings().max_examples * flavour.share // 9))
    @given(knobs=kinds.knobs, steps=programs(kinds))
    def run(knobs, steps):
        sets = ("C_RANGES=y", "C_RANGES=n")
        alike(flavour, sets, [*((None, knob) for knob in knobs), first, *steps])

    run()


@pytest.mark.parametrize("flavour", PAIRS, ids=str)
def test_faults_in_c_change_nothing(flavour):
    for seed in range(max(1, flavour.share // 2)):
        steps = program(random.Random(f"fast {seed}"), flavour.mthp, flavour.tight)
        alike(flavour, ("FAST_FAULT=y", "FAST_FAULT=n"), steps)


@pytest.mark.parametrize("flavour", PAIRS, ids=str)
def test_debug_vm_changes_nothing(flavour):
    for seed in range(max(1, flavour.share // 3)):
        steps = program(random.Random(f"debug {seed}"), flavour.mthp, flavour.tight)
        alike(flavour, ("DEBUG_VM=y", "DEBUG_VM=n"), steps[:40])


def answers(flavour, config, steps):
    """Return all that a program leaves to see, as one text."""
    driver = Driver(config, flavour.knobs, flavour.tight, flavour.policy)
    try:
        for failure, call in steps:
            if failure:
                driver.arm(*failure)
            if call[0] not in ("fork", "cow") or len(driver.spaces) < 4:
                driver.step(*call)
        m = driver.m
        seen = [
            m.digest(),
            m.events(),
            m.work(),
            m.vmstat(),
            m.hugepages(),
            m.memory(),
            m.processes(),
        ]
        maps = [list(m.mapped_pages(pid, 0, m.task_size)) for pid in sorted(driver.spaces)]
        return json.dumps([seen, maps])
    finally:
        driver.close()


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_two_runs_are_the_same_to_the_byte(flavour):
    steps = program(random.Random(f"again {flavour}"), flavour.mthp, flavour.tight)
    runs = [answers(flavour, flavour.config(), steps) for _ in (1, 2)]
    assert runs[0] == runs[1]
    debug = answers(flavour, flavour.config("DEBUG_VM=y"), steps)
    assert hashlib.sha256(debug.encode()).digest() == hashlib.sha256(runs[0].encode()).digest()
