# SPDX-License-Identifier: GPL-2.0-only
"""
Long programs from a plain random generator: more variety a second than hypothesis gives, no shrinking.

A program that fails is cut down here, call by call, and shown; run it again with Driver.step().
"""

import os
import random

import pytest
from virtmm.mm.vm_flags import (
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WIPEONFORK,
)

from . import invariants
from .driver import STRETCHES, Driver
from .model import FLAGS
from .test_machine import FLAVOURS

LENGTH = 60
#: programs of each flavour
PROGRAMS = {"default": 40, "ci": 150, "expensive": 2000}
AGAIN = (
    (0, 104, 16),
    (0, 120, 16),
    (0, 136, 16),
    (0, 112, 32),
    (0, 96, 64),
    (1, 8, 16),
    (2, 0, 48),
)


def program(rng):
    """Return the calls of one program, (failure or None, (name, arguments …))."""

    def where():
        if rng.random() < 0.6:
            return rng.choice(AGAIN)
        stretch = rng.choice((0, 0, 1, 2))
        return stretch, rng.randrange(STRETCHES[stretch]), rng.randint(1, 40)

    def page():
        return (0, rng.randint(96, 143), rng.randint(1, 4)) if rng.random() < 0.8 else where()

    def kind():
        file = (rng.randrange(2), rng.randrange(6), rng.random() < 0.5)
        return rng.choice(("private", "private", "shared", file))

    def often():
        return rng.random() < 0.3

    fresh = ("private", "private", (0, 2, False))
    forks = (None, (where(), MADV_WIPEONFORK), (where(), MADV_DONTFORK))
    advice = (*FLAGS, *[MADV_DONTNEED] * 8, MADV_POPULATE_READ, MADV_POPULATE_WRITE)
    makers = {
        "fill": (6, lambda: (where(), rng.randrange(256), rng.choice(fresh))),
        "mmap": (5, lambda: (where(), rng.choice((3, 3, 1, 0, 7)), kind(), often(), often())),
        "munmap": (4, lambda: (where(),)),
        "mprotect": (3, lambda: (where(), rng.choice((3, 3, 1, 0)))),
        "protect_twice": (3, lambda: (where(), rng.choice((0, 1)))),
        "madvise": (6, lambda: (where(), rng.choice(advice))),
        "mremap": (
            5,
            lambda: (where(), rng.choice((None, where()[:2])), rng.randint(1, 40), often()),
        ),
        "brk": (2, lambda: (rng.randint(-4, 4 * STRETCHES[2]),)),
        "touch": (8, lambda: (page(), rng.random() < 0.6)),
        "refault": (3, lambda: (where(),)),
        "store": (8, lambda: (page(), rng.choice((0, 1, -1)), rng.randint(1, 255))),
        "load": (4, lambda: (page(), rng.choice((0, 1, -1)))),
        "fork": (5, lambda: (rng.random() < 0.15, rng.choice(forks))),
        "exec": (1, lambda: ()),
        "exit": (3, lambda: ()),
    }
    names = rng.choices(list(makers), [weight for weight, _ in makers.values()], k=LENGTH)
    kinds = (0, 0, 2, 3, 4, 5, 7, "charge", "charge", "race", "race", "no memory")
    return [
        (
            (rng.choice(kinds), rng.choice((1, 1, 2, 3))) if rng.random() < 0.2 else None,
            (name, rng.randrange(4), *makers[name][1]()),
        )
        for name in ("fill", *names)
    ]


def run(config, knobs, calls):
    """Run a program with every check after every call; return what went wrong, or None."""
    driver = Driver(config, knobs)
    try:
        for failure, call in calls:
            if call[0] == "fork" and len(driver.spaces) > 3:
                continue
            if failure:
                driver.arm(*failure)
            driver.step(*call)
            invariants.check(driver.k)
        driver.read_all()
        invariants.check_all_free(driver)
    except Exception as e:
        return e
    finally:
        driver.close()
    return None


def shortest(config, knobs, calls):
    """Return a failing program without the calls that it fails without as well."""
    size = len(calls) // 2
    while size:
        for at in range(0, len(calls), size):
            rest = calls[:at] + calls[at + size :]
            if run(config, knobs, rest):
                calls = rest
                break
        else:
            size //= 2
    return calls


@pytest.mark.parametrize(
    ("kernel", "c_ranges", "knobs"), FLAVOURS, ids=[f"{k}-{c}" for k, c, _ in FLAVOURS]
)
def test_long_programs(configure, kernel, c_ranges, knobs):
    profile = os.environ.get("HYPOTHESIS_PROFILE", "default")
    config = configure(kernel, f"C_RANGES={c_ranges}")
    for seed in range(PROGRAMS[profile] // (3 if "64k" in kernel else 1)):
        calls = program(random.Random(f"{kernel} {c_ranges} {seed}"))
        if run(config, knobs, calls):
            calls = shortest(config, knobs, calls)
            shown = "\n".join(map(str, calls))
            raise AssertionError(f"seed {seed}:\n{shown}") from run(config, knobs, calls)
