# SPDX-License-Identifier: GPL-2.0-only
"""
The same program on machines that must not differ: three that share work between C and Python in the
three ways there are, two with DEBUG_VM and without, and twice the same.
"""

import functools
import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import calls
from .driver import Driver
from .flavours import FLAVOURS, Flavour
from .test_soak import program, shortest

_ALWAYS = ("enabled=always",)
KERNELS = [
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
    Flavour("powerpc", "linux-6.12", memory_mb=16, share=4, tight=True, backed=False),
    Flavour("arm64", "linux-7.3", ("contpte-basic",), memory_mb=32, share=4, backed=False),
    Flavour("arm64", "contpte", ("contpte-fold",), knobs=_ALWAYS, share=9, backed=False),
    Flavour("arm64", "anonfolio", knobs=("mem=4M",), memory_mb=16, share=6, tight=True),
    Flavour("arm64", "anonfolio_basic", ("v3",), knobs=_ALWAYS, share=3),
    Flavour("arm64", "anonfolio_basic", ("v5",), knobs=_ALWAYS, share=3),
    Flavour("alpha", "baseline_8k", memory_mb=128, share=3),
    Flavour("m68k", "baseline_4k", share=6),
    Flavour("s390", "linux-7.3", memory_mb=32, share=2, backed=False),
    Flavour("ia64", "baseline_16k", memory_mb=256, share=3, backed=False),
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


#: Who serves what: C all it can, Python the faults and C the loops, Python everything.
THREE = ("FAST_FAULT=y", "FAST_FAULT=n", "C_RANGES=n")


def state(driver):
    """Return what must be the same after each call. Reading it changes nothing."""
    m = driver.m
    return {
        "events": m.events(),
        "work": m.work(),
        "vmstat": m.vmstat(),
        "hugepages": m.hugepages(),
        "refusals": m.refusals(),
        "refused mappings": m.refused_mappings(),
        "memory": m.memory(),
        "failed": driver.failed,
        "process": m.current_pid(),
        "digest": m.digest(),  # last, as the others say more
    }


def results(driver):
    """Return what must be the same at the end; reading it brings peaks up to date."""
    return {"tlb": driver.m.tlb(), "processes": driver.m.processes()}


def same(states, call):
    """Fail with the names of what is not the same, and a value of each."""
    for name, first in states[0].items():
        for other in states[1:]:
            assert first == other[name], f"{name} after {call}"


def alike(flavour, sets, steps):
    """Run a program on machines that differ by one setting; all must agree after every call."""
    machines = []
    try:
        for setting in sets:
            config = flavour.config(setting)
            machines.append(Driver(config, flavour.knobs, flavour.tight, flavour.policy))
        for failure, call in steps:
            if call[0] in ("fork", "cow") and len(machines[0].spaces) > 3:
                continue
            for driver in machines:
                if failure:
                    driver.arm(*failure)
                driver.step(*call)
            same([state(driver) for driver in machines], call)
        same([results(driver) for driver in machines], "the end")
        for driver in machines:
            for pid in list(driver.spaces):
                driver.m.exit(pid)
        for what in (state, results):
            same([what(driver) for driver in machines], "all exits")
    finally:
        for driver in machines:
            driver.close()


@pytest.mark.parametrize("flavour", KERNELS, ids=str)
def test_three_machines_agree_after_every_call(flavour):
    kinds = calls.MAINLINE if flavour.mthp else calls.SERIES
    first = (None, ("mmap", 0, (0, 0, 192), 3, "private", True, False))

    @settings(max_examples=max(1, settings().max_examples * flavour.share // 9))
    @given(knobs=kinds.knobs, steps=programs(kinds))
    def run(knobs, steps):
        alike(flavour, THREE, [*((None, knob) for knob in knobs), first, *steps])

    run()


@pytest.mark.parametrize("flavour", KERNELS, ids=str)
def test_three_machines_agree_on_long_programs(flavour):
    """More variety a second than hypothesis gives; HYPOTHESIS_PROFILE=expensive runs 50 times as many."""
    for seed in range(max(1, flavour.programs() // 3)):
        steps = program(random.Random(f"three {seed}"), flavour.mthp, flavour.tight)
        if disagreement(flavour, steps):
            steps = shortest(functools.partial(disagreement, flavour), steps)
            shown = "\n".join(map(str, steps))
            raise AssertionError(f"seed {seed}:\n{shown}") from disagreement(flavour, steps)


def disagreement(flavour, steps):
    """Return what goes wrong when three machines run a program, or None."""
    try:
        alike(flavour, THREE, steps)
    except Exception as e:
        return e
    return None


@pytest.mark.parametrize("flavour", KERNELS, ids=str)
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
