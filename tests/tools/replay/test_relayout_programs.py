# SPDX-License-Identifier: GPL-2.0-only
"""
Addresses laid out anew: random programs against a naive model.

The model keeps one entry for each recorded page; what it allows the new layout must allow, on a real
machine too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from virtmm.mm import layout
from virtmm.mm.arena import VMA_RECORD
from virtmm.mm.vma import vmas_in
from virtmm.tools.replay.relayout import AddressSpace, joined

from virtmm.kconfig import resolve
from virtmm.machine import Machine

R = 4096
TOP = 1 << 47
#: Page size and end of the new space, alignment of executables: larger pages, a smaller space, both.
SPACES = [
    (16384, TOP, 0),
    (65536, TOP, 0),
    (4096, TOP, 65536),
    (16384, TOP, 65536),
    (4096, 0xF0000000, 0),
    (8192, 1 << 42, 0),
    (65536, 1 << 32, 0),
]
BASE = 0x7F0000000000
NONE, READ, RW, RX = 0, 1, 3, 5
FIXED, GROWSDOWN, ANON, SHARED = 0x10, 0x100, 0x20, 1
DONTUNMAP, DONTNEED, HUGEPAGE = 4, 4, 14


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """
    A recorded page.

    origin: its first mapping; part: that or what mremap made of it; offset: its byte in the file;
    index: its page in shared memory, which nobody may touch past the end of that.
    """

    origin: int
    part: int
    prot: int
    offset: int | None
    grows: bool = False
    shared: bool = False
    index: int = 0
    pages: int = 1


@dataclass
class Model:
    """What is mapped in a recording, page by page."""

    pages: dict[int, Page] = field(default_factory=dict)
    heap: tuple[int, int] = (-1, -1)  # in pages
    next: int = 1

    def fresh(self):
        self.next += 1
        return self.next

    def copy(self):
        return Model(self.pages.copy(), self.heap, self.next)

    def covered(self, start, pages):
        return all(p in self.pages for p in range(start, start + pages))

    def one_vma(self, start, pages):
        """Whether the kernel may have had the range as one mapping."""
        kinds = {
            (page.prot, page.grows, page.shared, page.offset is None)
            for page in map(self.pages.get, range(start, start + pages))
            if page
        }
        anonymous = all(k[3] and not k[2] for k in kinds)
        origins = {self.pages[p].part for p in range(start, start + pages) if p in self.pages}
        return len(kinds) == 1 and self.covered(start, pages) and (anonymous or len(origins) == 1)


@dataclass
class Pair:
    """The model and the layout under test, driven together; with a machine, that as well."""

    page: int
    align: int = 0
    machine: Machine | None = None
    pid: int = 0
    model: Model = field(default_factory=Model)
    space: AddressSpace = None
    top: int = TOP

    def __post_init__(self):
        if self.machine:
            self.top = min(TOP, self.machine.task_size)
        if self.space is None:
            recorded_top = TOP if self.top < TOP else 0
            self.space = AddressSpace(self.page, self.top, R, recorded_top, self.align)

    def make(self, calls):
        for name, args in calls:
            assert name in ("munmap", "mprotect", "brk", "mremap", "madvise")
            start = args[0]
            assert start % self.page == 0
            assert start + args[1] <= self.top or name == "brk"
            if name in ("munmap", "mprotect", "madvise"):
                assert args[1] > 0
                assert args[1] % self.page == 0
            if self.machine:
                assert getattr(self.machine, name)(self.pid, *args) == 0, (name, args)

    # Each call: arguments in recorded pages.

    def mmap(self, at, pages, prot, offset=None, flags=0x22):
        start, length = at * R, pages * R
        part_of = offset % 3 if self.align and offset else 0  # two executable files, and others
        low, size, calls = self.space.mmap(
            start,
            length,
            (offset or 0) * R,
            prot,
            grows=bool(flags & GROWSDOWN),
            part_of=part_of,
        )
        self.make(calls)
        assert low % self.page == size % self.page == 0 < size
        if self.machine:
            file = self.machine.open(7, 1 << 20) if offset is not None else 0
            pgoff = (offset or 0) * R // self.page
            assert self.machine.mmap(self.pid, low, size, prot, flags | FIXED, file, pgoff) == 0
        name = self.model.fresh()
        for i in range(pages):
            byte = None if offset is None else (offset + i) * R
            page = Page(name, name, prot, byte, bool(flags & GROWSDOWN))
            if flags & SHARED:
                page = replace(page, shared=True, index=i, pages=pages)
            self.model.pages[at + i] = page

    def munmap(self, at, pages):
        self.make(self.space.munmap(at * R, pages * R))
        for p in range(at, at + pages):
            self.model.pages.pop(p, None)

    def mprotect(self, at, pages, prot):
        calls = self.space.mprotect(at * R, pages * R, prot)
        assert calls
        self.make(calls)
        for p in range(at, at + pages):
            self.model.pages[p] = replace(self.model.pages[p], prot=prot)

    def madvise(self, at, pages, advice):
        rule = self.space.inside if advice == DONTNEED else self.space.around
        for low, high in rule(at * R, pages * R):
            self.make([("madvise", (low, high - low, advice))])

    def brk(self, at, pages):
        self.make(self.space.brk(at * R, pages * R))
        model = self.model
        start, old = model.heap if model.heap[0] == at else (at, at)
        end = start + pages
        for p in range(old, end):
            model.pages[p] = Page(-at, -at, RW, None)
        for p in range(end, old):
            model.pages.pop(p, None)
        model.heap = (start, end)

    def mremap(self, at, old, to, new, flags=0):
        self.make(self.space.mremap(at * R, old * R, to * R, new * R, flags))
        pages = self.model.pages
        source = [pages[at + i] for i in range(max(old, 1))]
        names = {page.part: self.model.fresh() for page in source}
        if not flags & DONTUNMAP and old:
            for p in range(at, at + old):
                del pages[p]
        if to != at:
            for p in range(to, to + new):
                pages.pop(p, None)
        for i in range(new):
            like = source[min(i, len(source) - 1)]
            past = i - min(i, len(source) - 1)
            offset = None if like.offset is None else like.offset + past * R
            index = like.index + past
            pages[to + i] = replace(like, part=names[like.part], offset=offset, index=index)

    def deeper(self, pages):
        """The stack grows by an access so many pages below it."""
        lowest = min(p for p, page in self.model.pages.items() if page.grows)
        at = lowest - pages
        new = self.space.address(at * R + 5)
        assert new is not None
        if self.machine:
            assert self.machine.touch(self.pid, new, True) == 0
        for p in range(at, lowest):
            self.model.pages[p] = self.model.pages[lowest]

    # What must hold.

    def check(self):
        space, model, size = self.space, self.model, self.page
        owners, shifts, wanted = {}, {}, set()
        for p, page in model.pages.items():
            new = space.address(p * R)
            assert new is not None, hex(p * R)
            wanted.add(new // size)
            assert owners.setdefault(new // size, page.origin) == page.origin
            assert shifts.setdefault(page.part, new - p * R) == new - p * R
            if page.offset is not None:
                assert (new - page.offset) % size == 0
        taken = [(a, b) for a, b, _ in joined((a, b, 0) for a, b, _ in space.taken.ranges)]
        assert taken == [
            (a, b) for a, b, _ in joined((n * size, (n + 1) * size, 0) for n in wanted)
        ]
        assert not taken or (taken[0][0] >= size and taken[-1][1] <= self.top)
        if self.machine:
            assert mapped(self.machine, self.pid) == joined(space.taken.ranges)

    def touch_all(self):
        for p, page in self.model.pages.items():
            if page.prot and page.index < page.pages:
                new = self.space.address(p * R + 123)
                assert self.machine.touch(self.pid, new, bool(page.prot & 2)) == 0, hex(p * R)


def mapped(machine, pid):
    """The machine's mappings: (start, end, protection), touching ones of one protection as one."""
    k, found = machine.k, []
    for vma in vmas_in(k, machine._mm(pid), 0, machine.task_size):
        base = vma * VMA_RECORD
        start, end = k.vma[base + layout.VMA_START], k.vma[base + layout.VMA_END]
        found.append((start, end, k.vma[base + layout.VMA_FLAGS] & 7))
    return joined(found)


# --- random programs ------------------------------------------------------------------------------

SPAN = 96  # pages of the window in which a random program maps
WINDOW = BASE // R
STACK = WINDOW + SPAN + 2000
HEAP = 0x400000 // R + 3
PROTS = st.sampled_from([NONE, READ, RW, RX])
AT = st.integers(0, SPAN - 1)
LENGTH = st.integers(1, 40)
STEP = st.one_of(
    st.tuples(st.just("mmap"), AT, LENGTH, PROTS, st.none() | st.integers(0, 63)),
    st.tuples(st.just("shared"), AT, LENGTH, PROTS),
    st.tuples(st.just("munmap"), AT, LENGTH),
    st.tuples(st.just("mprotect"), AT, LENGTH, PROTS),
    st.tuples(st.just("madvise"), AT, LENGTH, st.sampled_from([DONTNEED, HUGEPAGE])),
    st.tuples(st.just("mremap"), AT, LENGTH, AT, LENGTH, st.booleans()),
    st.tuples(st.just("again"), AT, LENGTH, AT),
    st.tuples(st.just("heap"), st.integers(0, 40)),
    st.tuples(st.just("in heap"), st.integers(0, 39), st.integers(1, 9), st.integers(0, 3), PROTS),
    st.tuples(st.just("deeper"), st.integers(1, 99)),
    st.tuples(st.just("fork")),
)


def step(pair, kind, *args):
    """Make a call if the recorded kernel would have let it succeed."""
    model = pair.model
    at = WINDOW + args[0] if args else 0
    if kind == "mmap":
        pair.mmap(at, *args[1:])
    elif kind == "shared":
        pair.mmap(at, args[1], args[2], flags=SHARED | ANON)
    elif kind == "munmap":
        pair.munmap(at, args[1])
    elif kind in ("mprotect", "madvise"):
        if model.covered(at, args[1]):
            getattr(pair, kind)(at, *args[1:])
    elif kind == "mremap":
        _, old, to, new, keep = args
        to, new = to + WINDOW, old if keep else new
        if not model.one_vma(at, old):
            return
        grows_in_place = to == at and not any(p in model.pages for p in range(at + old, at + new))
        apart = to + new <= at or at + old <= to
        if keep and apart:
            pair.mremap(at, old, to, new, DONTUNMAP)
        elif not keep and (grows_in_place or apart):
            pair.mremap(at, old, to, new)
    elif kind == "again":
        page, to = model.pages.get(at), WINDOW + args[2]
        if page and page.shared and not to <= at < to + args[1]:
            pair.mremap(at, 0, to, args[1])
    elif kind == "deeper":
        pair.deeper(args[0])
    elif kind == "heap":
        end = model.heap[1] if model.heap[0] == HEAP else HEAP
        if not any(p in model.pages for p in range(end, HEAP + args[0])):
            pair.brk(HEAP, args[0])
    elif kind == "in heap":
        at, pages = HEAP + args[0], args[1]
        if args[2] == 0:
            pair.munmap(at, pages)
        elif args[2] == 1 and model.covered(at, pages):
            pair.mprotect(at, pages, args[3])
        elif args[2] == 2 and at + pages <= model.heap[1]:
            pair.mmap(at, pages, args[3])


# The heap ends within a page of S, and that page is unmapped, closed, or replaced; then it grows.
TAILS = [
    [("heap", 18), ("in heap", 16, 2, 0, NONE), ("heap", 19), ("heap", 40)],
    [("heap", 18), ("in heap", 16, 2, 1, NONE), ("heap", 19)],
    [("heap", 18), ("in heap", 16, 2, 2, READ), ("heap", 19)],
    [("heap", 19), ("in heap", 16, 2, 0, NONE), ("heap", 18), ("heap", 19)],
]


def with_tails(test):
    for steps in TAILS:
        test = example(steps=steps)(test)
    return test


@pytest.mark.parametrize(("size", "top", "align"), SPACES)
@with_tails
@settings(max_examples=10 * settings.default.max_examples)
@given(steps=st.lists(STEP, min_size=4, max_size=40))
def test_any_program_keeps_the_rules(size, top, align, steps):
    pair, parents = Pair(size, align, top=top), []
    pair.mmap(STACK, 4, RW, flags=0x22 | GROWSDOWN)
    for kind, *args in steps:
        if kind == "fork":
            parents.append((pair, pair.model.copy()))
            pair = Pair(size, align, model=pair.model.copy(), space=pair.space.copy(), top=top)
        step(pair, kind, *args)
        pair.check()
    for parent, model in parents:  # what the child did is not to be seen
        assert parent.model == model
        parent.check()


MACHINES = [
    ("arm64", "baseline_16k", 512),
    ("arm64", "baseline_64k", 2048),
    ("arm64", "exefolio", 512),
    ("alpha", "baseline_8k", 256),
    ("m68k", "baseline_4k", 256),
]


@pytest.fixture(scope="module", params=MACHINES, ids=lambda m: f"{m[0]}-{m[1]}")
def machine(request):
    """A machine that finds its own mistakes."""
    arch, name, mb = request.param
    sets = ["DEBUG_VM=y", f"MEMORY_MB={mb}"]
    with Machine(resolve(arch, name, sets=sets)) as m:
        yield m


@with_tails
@settings(max_examples=3 * settings.default.max_examples)
@given(steps=st.lists(STEP, min_size=4, max_size=40))
def test_any_program_runs_on_a_machine(machine, steps):
    pids = [max((p.pid for p in machine.processes()), default=0) + 1]
    assert machine.spawn(pids[0]) == 0
    align = machine.page_size << machine.k.config.exec_folio_order
    align = align if align > machine.page_size else 0
    pair = Pair(machine.page_size, align, machine, pids[0])
    pair.mmap(STACK, 4, RW, flags=0x22 | GROWSDOWN)
    try:
        for kind, *args in steps:
            if kind == "fork":
                pids.append(pids[-1] + 1)
                assert machine.fork(pair.pid, pids[-1]) == 0
                model, space = pair.model.copy(), pair.space.copy()
                pair = Pair(machine.page_size, align, machine, pids[-1], model, space)
            step(pair, kind, *args)
            pair.check()
            pair.touch_all()
    finally:
        for pid in pids:
            machine.exit(pid)
