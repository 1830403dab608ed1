# SPDX-License-Identifier: GPL-2.0-only
"""Strategies for calls that Driver.step() takes, as (name, arguments …)."""

from types import SimpleNamespace

from hypothesis import strategies as st
from virtmm.mm.vm_flags import (
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WIPEONFORK,
)

from .model import FLAGS
from .places import FAR, HUGE, HUGE_AGAIN, STRETCHES

who = st.integers(0, 3)
pages = st.integers(1, 40)
near_the_boundary = st.sampled_from((112, 120, 121, 127, 128, 130, 136))
prot = st.sampled_from((3, 3, 3, 1, 0, 2, 5, 7))
backing = st.one_of(
    st.just("private"),
    st.just("private"),
    st.just("shared"),
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.booleans()),
)
ADVICE = (
    *FLAGS,
    *[MADV_DONTNEED] * 6,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_FREE,
    MADV_COLD,
    MADV_PAGEOUT,
    MADV_DONTNEED_LOCKED,
)
HUGE_ADVICE = (*[MADV_COLLAPSE] * 3, *[MADV_HUGEPAGE] * 3, MADV_FREE, MADV_COLD)
offset = st.sampled_from((0, 1, 4095, -1))
rarely = st.sampled_from((False, False, True))
failure = st.sampled_from((0, 0, 2, 3, 4, 5, 7, 9, "charge", "charge", "race", "race", "no memory"))
occasions = st.sampled_from((1, 1, 1, 2, 3, 4))


def call(name, *args):
    return st.tuples(st.just(name), *args)


def calls(huge):
    """
    Return the strategies of calls by kind.

    ``huge``: programs meet at whole PMDs as well, and folio sizes have knobs.
    """
    spot = st.one_of(
        st.tuples(st.just(0), near_the_boundary),
        st.tuples(st.sampled_from((0, 0, 1, 2)), st.integers(0, max(STRETCHES) - 1)),
    )
    # Calls that meet one another say more than calls all over the place.
    favourite = st.sampled_from(
        ((0, 104, 16), (0, 120, 16), (0, 136, 16), (0, 112, 32), (0, 96, 64), (1, 8, 16))
    )
    where = st.one_of(
        favourite,
        favourite,
        st.builds(lambda s, nr: (*s, nr), spot, pages),
        st.sampled_from([(s, 0, nr) for s, nr in enumerate(STRETCHES)]),
        st.builds(
            lambda block, nr: (0, 16 * block, nr), st.integers(0, 11), st.sampled_from((4, 16, 20))
        ),
    )
    page = st.one_of(
        st.tuples(st.just(0), st.integers(96, 143), st.integers(1, 4)),
        st.tuples(st.just(0), st.integers(112, 131), st.integers(1, 2)),
        where,
    )
    advice = ADVICE
    if huge:
        whole = st.sampled_from(HUGE_AGAIN)
        favourite = st.one_of(whole, favourite)
        where = st.one_of(whole, where)
        units = st.tuples(st.integers(0, 63), st.sampled_from((0, 0, 1, -1)))
        page = st.one_of(st.tuples(st.just(HUGE), units, st.integers(1, 4)), page)
        blocks = st.sampled_from(((48, 0), (16, 0), (0, 0), (17, 0)))
        far = st.just((FAR, (0, 0)))
        spot = st.one_of(st.tuples(st.just(HUGE), blocks), far, spot)
        advice = (*ADVICE, *HUGE_ADVICE)
    count = st.one_of(st.just((32, 0)), pages) if huge else pages
    new_mapping = call("mmap", who, where, prot, backing, st.booleans(), rarely)
    zeroes = call("mmap", who, where, st.just(3), st.just("private"), st.just(True), st.just(False))
    fill_kind = st.sampled_from(("private", "private", (0, 2, False)))
    fill = call("fill", who, favourite, st.integers(0, 255), fill_kind)
    advise = call("madvise", who, where, st.sampled_from(advice))
    move = call("mremap", who, where, st.one_of(st.none(), spot), count, rarely)
    write = call("touch", who, page, st.just(True))
    touch = call("touch", who, page, st.booleans())
    store = call("store", who, page, offset, st.integers(1, 255))
    load = call("load", who, page, offset)
    batch = call("batch", who, where, st.integers(0, 255))
    about_forks = st.sampled_from((MADV_WIPEONFORK, MADV_DONTFORK))
    fork = call("fork", who, rarely, st.one_of(st.none(), st.tuples(where, about_forks)))
    cow = call("cow", who, where, st.booleans(), st.integers(1, 255))
    refault = call("refault", who, where)
    text = call("text", who, where, st.sampled_from((5, 7)), rarely)
    knob = call("knob", st.integers(0, 15), st.integers(0, 11))
    mappings = st.one_of(
        zeroes,
        fill,
        fill,
        text,
        new_mapping,
        call("munmap", who, where),
        call("mprotect", who, where, prot),
        call("protect_twice", who, where, st.sampled_from((0, 1))),
        call("lock", who, where, st.booleans()),
        call("reclaim", who, where, st.booleans()),
        call("zeroes", who, where),
        advise,
        advise,
        move,
        move,
        knob if huge else call("brk", who, st.integers(-4, 4 * STRETCHES[2])),
        call("brk", who, st.integers(-4, 4 * STRETCHES[2])),
    )
    needs_memory = st.one_of(
        refault,
        refault,
        refault,
        batch,
        write,
        touch,
        store,
        fork,
        move,
        advise,
        new_mapping,
        call("exec", who),
    )
    return SimpleNamespace(
        fill=fill,
        fork=fork if huge else st.one_of(fork, cow),
        mappings=mappings,
        accesses=st.one_of(write, touch, store, store, load, batch),
        needs_memory=needs_memory,
        knobs=st.lists(knob, max_size=6) if huge else st.just([]),
        end=st.one_of(call("exit", who), call("exec", who)),
    )


SERIES, MAINLINE = calls(huge=False), calls(huge=True)
