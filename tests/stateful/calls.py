# SPDX-License-Identifier: GPL-2.0-only
"""Strategies for calls that Driver.step() takes, as (name, arguments …)."""

from hypothesis import strategies as st
from virtmm.mm.vm_flags import (
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_WIPEONFORK,
)

from .driver import STRETCHES
from .model import FLAGS

who = st.integers(0, 3)
pages = st.integers(1, 40)
near_the_boundary = st.sampled_from((112, 120, 121, 127, 128, 130, 136))
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
prot = st.sampled_from((3, 3, 3, 1, 0, 2, 7))
backing = st.one_of(
    st.just("private"),
    st.just("private"),
    st.just("shared"),
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.booleans()),
)
advice = st.sampled_from((*FLAGS, *[MADV_DONTNEED] * 6, MADV_POPULATE_READ, MADV_POPULATE_WRITE))
offset = st.sampled_from((0, 1, 4095, -1))
rarely = st.sampled_from((False, False, True))


def call(name, *args):
    return st.tuples(st.just(name), *args)


new_mapping = call("mmap", who, where, prot, backing, st.booleans(), rarely)
zeroes = call("mmap", who, where, st.just(3), st.just("private"), st.just(True), st.just(False))
fill_kind = st.sampled_from(("private", "private", (0, 2, False)))
fill = call("fill", who, favourite, st.integers(0, 255), fill_kind)
advise = call("madvise", who, where, advice)
move = call("mremap", who, where, st.one_of(st.none(), spot), pages, rarely)
write = call("touch", who, page, st.just(True))
touch = call("touch", who, page, st.booleans())
store = call("store", who, page, offset, st.integers(1, 255))
load = call("load", who, page, offset)
about_forks = st.sampled_from((MADV_WIPEONFORK, MADV_DONTFORK))
fork = call("fork", who, rarely, st.one_of(st.none(), st.tuples(where, about_forks)))
refault = call("refault", who, where)
size = st.integers(-4, 4 * STRETCHES[2])

mappings = st.one_of(
    zeroes,
    fill,
    fill,
    new_mapping,
    call("munmap", who, where),
    call("mprotect", who, where, prot),
    call("protect_twice", who, where, st.sampled_from((0, 1))),
    advise,
    advise,
    move,
    move,
    call("brk", who, size),
)
accesses = st.one_of(write, touch, store, store, load)
needs_memory = st.one_of(
    refault,
    refault,
    refault,
    write,
    touch,
    store,
    fork,
    move,
    advise,
    new_mapping,
    call("exec", who),
)
failure = st.sampled_from((0, 0, 2, 3, 4, 5, 7, "charge", "charge", "race", "race", "no memory"))
occasions = st.sampled_from((1, 1, 1, 2, 3, 4))
