# SPDX-License-Identifier: GPL-2.0-only
"""
Long programs from a plain random generator: more variety a second than hypothesis gives, no shrinking.

A program that fails is cut down here, call by call, and shown; run it again with Driver.step().
"""

import functools
import random

import pytest
from virtmm.mm.vm_flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WIPEONFORK,
)

from . import invariants
from .driver import Driver
from .flavours import FLAVOURS
from .model import FLAGS
from .places import FAR, HUGE, HUGE_AGAIN, STRETCHES

LENGTH = 60
AGAIN = (
    (0, 104, 16),
    (0, 120, 16),
    (0, 136, 16),
    (0, 112, 32),
    (0, 96, 64),
    (1, 8, 16),
    (2, 0, 48),
)


def program(rng, mthp=False, tight=False):
    """Return the calls of one program, (failure or None, (name, arguments …))."""
    huge = 0.6 if mthp else 0

    def where():
        if rng.random() < huge:
            return rng.choice(HUGE_AGAIN)
        if rng.random() < 0.6:
            return rng.choice(AGAIN)
        stretch = rng.choice((0, 0, 1, 2))
        return stretch, rng.randrange(STRETCHES[stretch]), rng.randint(1, 40)

    def room():
        """Where memory is made: all of a stretch where it shall be short."""
        if tight and rng.random() < 0.5:
            return rng.choice(((0, 0, 192), (HUGE, (0, 0), (96, 0)), (0, 0, 96)))
        return where()

    def page():
        if rng.random() < huge:
            return HUGE, (rng.randrange(64), rng.choice((0, 0, 1, -1))), rng.randint(1, 4)
        return (0, rng.randint(96, 143), rng.randint(1, 4)) if rng.random() < 0.8 else where()

    def kind():
        file = (rng.randrange(2), rng.randrange(6), rng.random() < 0.5)
        return rng.choice(("private", "private", "shared" if not mthp else "private", file))

    def often():
        return rng.random() < 0.3

    def move():
        source = where()
        if source[0] == HUGE and rng.random() < 0.7:
            offset = rng.choice(((48, 0), (16, 0), (0, 0), (17, 0), (48, 1)))
            target = (FAR, (rng.choice((0, 32)), 0)) if rng.random() < 0.3 else (HUGE, offset)
            return source, target, source[2], often()
        return source, rng.choice((None, where()[:2])), rng.randint(1, 40), often()

    fresh = ("private", "private", "private" if mthp else (0, 2, False))
    forks = (None, None, (where(), MADV_WIPEONFORK), (where(), MADV_DONTFORK))
    advice = (*FLAGS, *[MADV_DONTNEED] * 8, MADV_POPULATE_READ, MADV_POPULATE_WRITE)
    advice += (MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_DONTNEED_LOCKED)
    if mthp:
        advice += (*[MADV_FREE] * 4, *[MADV_COLD] * 2, *[MADV_COLLAPSE] * 6, *[MADV_HUGEPAGE] * 4)
    hints = (None, MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE) if mthp else (None,)
    rights = (3, 3, 3, 3, 1, 0, 7) if mthp else (3, 3, 1, 0, 7)
    makers = {
        "fill": (14 if mthp else 8, lambda: (room(), rng.randrange(256), rng.choice(fresh))),
        "mmap": (3, lambda: (where(), rng.choice(rights), kind(), often(), often())),
        "text": (3, lambda: (where(), rng.choice((5, 7)), often())),
        "munmap": (4, lambda: (where(),)),
        "mprotect": (3, lambda: (where(), rng.choice(rights))),
        "protect_twice": (3, lambda: (where(), rng.choice((0, 1)))),
        "madvise": (10, lambda: (where(), rng.choice(advice))),
        "mremap": (5, move),
        "lock": (2, lambda: (where(), rng.random() < 0.3)),
        "brk": (2, lambda: (rng.randint(-4, 4 * STRETCHES[2]),)),
        "touch": (8, lambda: (page(), rng.random() < 0.6)),
        "batch": (6, lambda: (where(), rng.randrange(256))),
        "refault": (4, lambda: (where(), rng.choice(hints))),
        "zeroes": (3, lambda: (where(),)),
        "cow": (0 if mthp else 8, lambda: (where(), often(), rng.randint(1, 255))),
        "reclaim": (2, lambda: (where(), often())),
        "store": (8, lambda: (page(), rng.choice((0, 1, -1)), rng.randint(1, 255))),
        "load": (4, lambda: (page(), rng.choice((0, 1, -1)))),
        "fork": (5, lambda: (rng.random() < 0.15, rng.choice(forks))),
        "exec": (1, lambda: ()),
        "exit": (2, lambda: ()),
    }
    names = rng.choices(list(makers), [weight for weight, _ in makers.values()], k=LENGTH)
    kinds = (0, 0, 2, 3, 4, 5, 7, 9, "charge", "charge", "race", "race", "no memory")

    def knob(which=None):
        which = which or rng.choice(("pmd", "enabled", *(rng.randrange(16) for _ in range(3))))
        return None, ("knob", which, rng.choice((0, 0, rng.randrange(12), rng.randrange(12))))

    few = "khugepaged/max_ptes_none"
    first = [knob(few)] if tight and rng.random() < 0.7 else []
    calls = (
        [*first, knob("enabled"), *(knob() for _ in range(rng.choice((0, 3, 6))))] if mthp else []
    )
    for name in ("fill", *(("fill",) if mthp else ()), *names):
        if mthp and rng.random() < 0.05:
            calls.append(knob())
        failure = (rng.choice(kinds), rng.choice((1, 1, 2, 3))) if rng.random() < 0.2 else None
        calls.append((failure, (name, rng.choice((0, 0, 0, 1, 2, 3)), *makers[name][1]())))
    return calls


def run(flavour, config, calls):
    """Run a program with every check after every call; return what went wrong, or None."""
    driver = Driver(config, flavour.knobs, flavour.tight, flavour.policy)
    try:
        for failure, call in calls:
            if call[0] in ("fork", "cow") and len(driver.spaces) > 3:
                continue
            if failure:
                driver.arm(*failure)
            driver.step(*call)
            invariants.check(driver.k, driver.most)
        driver.read_all()
        invariants.check_all_free(driver)
    except Exception as e:
        return e
    finally:
        driver.close()
    return None


def shortest(fails, calls):
    """Return a failing program without the calls that it fails without as well."""
    size = len(calls) // 2
    while size:
        for at in range(0, len(calls), size):
            rest = calls[:at] + calls[at + size :]
            if fails(rest):
                calls = rest
                break
        else:
            size //= 2
    return calls


@pytest.mark.parametrize("flavour", FLAVOURS, ids=str)
def test_long_programs(flavour):
    config = flavour.config()
    before = Driver.steps
    for seed in range(flavour.programs()):
        calls = program(random.Random(f"{flavour} {seed}"), flavour.mthp, flavour.tight)
        if run(flavour, config, calls):
            calls = shortest(functools.partial(run, flavour, config), calls)
            shown = "\n".join(map(str, calls))
            raise AssertionError(f"seed {seed}:\n{shown}") from run(flavour, config, calls)
    print(f"{flavour}: {Driver.steps - before} steps")
    assert (
        Driver.steps - before >= flavour.programs() * LENGTH * 19 // 20
    )  # some forks are left out


def test_these_are_20000_steps():
    assert sum(f.programs("default") for f in FLAVOURS) * LENGTH * 19 // 20 >= 20_000
