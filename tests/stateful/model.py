# SPDX-License-Identifier: GPL-2.0-only
"""
What memory calls mean, page by page: the naive model that a machine is held against.

No VMAs, no page tables, no folios: an address space is a dict from page number to Page. A call either
fails as a whole (a negative errno) or changes pages; ``at`` is a page number, ``nr`` a count of pages.
"""

import copy
from dataclasses import dataclass, field

from virtmm.mm.vm_flags import (
    EEXIST,
    EFAULT,
    EINVAL,
    ENOMEM,
    MADV_DODUMP,
    MADV_DOFORK,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_KEEPONFORK,
    MADV_NOHUGEPAGE,
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_WIPEONFORK,
    PROT_WRITE,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
)

#: advice -> what it makes of one page; all of these split a VMA where they end.
FLAGS = {
    MADV_DONTFORK: {"dontfork": True},
    MADV_DOFORK: {"dontfork": False},
    MADV_WIPEONFORK: {"wipe": True},
    MADV_KEEPONFORK: {"wipe": False},
    MADV_HUGEPAGE: {"huge": 1},
    MADV_NOHUGEPAGE: {"huge": -1},
    MADV_DONTDUMP: {"dump": False},
    MADV_DODUMP: {"dump": True},
    MADV_RANDOM: {"random": True},
    MADV_NORMAL: {"random": False},
}


@dataclass
class File:
    """A file, or the memory behind a shared anonymous mapping: bytes that all its mappings see."""

    pages: int
    number: int = 0
    data: dict = field(default_factory=dict)  # page -> {offset: byte}


@dataclass
class Page:
    """
    One mapped page.

    ``own`` are the bytes of a private page that was written to; None = it shows zeroes, or the file.
    ``held``: "anon" or "file" when the page is surely in the resident set, "" when it need not be.
    ``lazy``: MADV_FREE, and not written to since: MADV_PAGEOUT may drop it.
    """

    prot: int
    shared: bool = False
    file: File | None = None
    index: int = 0
    own: dict | None = None
    held: str = ""
    dontfork: bool = False
    wipe: bool = False
    huge: int = 0
    dump: bool = True
    random: bool = False
    locked: bool = False
    lazy: bool = False

    def bytes(self):
        if self.own is not None:
            return self.own
        return self.file.data.setdefault(self.index, {}) if self.file else {}

    def drop(self):
        """Forget what a private page has of its own: MADV_DONTNEED, or the place it moved from."""
        self.own, self.held, self.lazy = None, "", False


class Space:
    """An address space."""

    def __init__(self):
        self.pages = {}
        self.brk = 0

    def hole(self, at, nr):
        return any(p not in self.pages for p in range(at, at + nr))

    def mmap(self, at, nr, new, fixed):
        """``new(i)`` makes the i-th page."""
        if not fixed and any(p in self.pages for p in range(at, at + nr)):
            return -EEXIST
        for i in range(nr):
            self.pages[at + i] = new(i)
        return 0

    def munmap(self, at, nr):
        for p in range(at, at + nr):
            self.pages.pop(p, None)
        return 0

    def mprotect(self, at, nr, prot, locked):
        """``locked``: a private page that is locked is populated when it becomes writable."""
        for p in range(at, at + nr):
            page = self.pages.get(p)
            if page is None:
                return -ENOMEM
            becomes = prot & PROT_WRITE and not page.prot & PROT_WRITE
            page.prot = prot
            if locked and page.locked and becomes and not page.shared:
                self.access(p, True)
        return 0

    def advise(self, at, nr, advice):
        for p in range(at, at + nr):
            page = self.pages.get(p)
            if page and advice == MADV_WIPEONFORK and page.file:
                return -EINVAL
            if page:
                vars(page).update(FLAGS[advice])
        return -ENOMEM if self.hole(at, nr) else 0

    def drop(self, at, nr, advice):
        """MADV_DONTNEED and its kin: advice that locked memory, or memory of files, may refuse."""
        for p in range(at, at + nr):
            page = self.pages.get(p)
            if page and page.locked and advice != MADV_DONTNEED_LOCKED:
                return -EINVAL
            if page and page.file and advice == MADV_FREE:
                return -EINVAL
            if page and advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
                page.drop()
            elif page and advice == MADV_FREE:
                page.lazy = True
        return -ENOMEM if self.hole(at, nr) else 0

    def lock(self, at, nr, lock):
        """Memory is locked up to a hole."""
        for p in range(at, at + nr):
            if p not in self.pages:
                return -ENOMEM
            self.pages[p].locked = lock
        return 0

    def populate_locked(self, at, nr):
        for p in range(at, at + nr):
            page = self.pages[p]
            if self.access(p, bool(page.prot & PROT_WRITE) and not page.shared):
                return -ENOMEM
        return 0

    def populate(self, at, nr, write):
        for p in range(at, at + nr):
            if p not in self.pages:
                return -ENOMEM
            error = self.access(p, write)
            if error:
                return -EINVAL if error == VM_FAULT_SIGSEGV else -EFAULT
        return 0

    def access(self, p, write):
        page = self.pages.get(p)
        if page is None or not page.prot or (write and not page.prot & PROT_WRITE):
            return VM_FAULT_SIGSEGV
        if page.own is None and page.file and page.index >= page.file.pages:
            return VM_FAULT_SIGBUS
        if write and not page.shared:
            page.own = dict(page.bytes())
            page.held, page.lazy = "anon", False
        elif page.file and page.own is None:
            page.held = "file"
        return 0

    def mremap(self, at, old, to, new, one_vma, end, keep, early):
        """
        Resize and move; ``keep`` is MREMAP_DONTUNMAP.

        What no model without VMAs can know: whether the pages that stay lie in one VMA, and its end.
        ``early``: what goes does so also when the call is then refused, as up to 6.16.
        """
        if keep and new != old:
            return -EINVAL
        if early and at not in self.pages:
            return -EFAULT
        if to != at and at < to + new and to < at + old:
            return -EINVAL
        for now in (early, True):
            if now and to != at:
                self.munmap(to, new)
            if now and new < old:
                self.munmap(at + new, old - new)
            if not one_vma or at not in self.pages:
                return -EFAULT
            if not old and not self.pages[at].shared:
                return -EINVAL
        old = min(old, new)
        if (
            to == at
            and new > old
            and (end != at + old or any(at + i in self.pages for i in range(old, new)))
        ):
            return -ENOMEM
        last = self.pages[at + old - 1] if old else self.pages[at]
        if to != at:
            self.move(at, old, to, keep)
        for i in range(old, new):
            fresh = copy.copy(last)
            fresh.drop()
            fresh.index = last.index + i - (old - 1 if old else 0)
            self.pages[to + i] = fresh
        if last.locked and new > old:
            self.populate_locked(to + old, new - old)  # it may fail, and the call does not
        return 0

    def move(self, at, nr, to, keep):
        """Move the pages that there are to where something else may be, which goes."""
        for i in range(nr):
            page = self.pages.get(at + i)
            if page is None:
                continue
            self.pages[to + i] = page
            if keep:
                self.pages[at + i] = copy.copy(page)
                self.pages[at + i].drop()
            else:
                del self.pages[at + i]

    def set_brk(self, at, end, new):
        """``at`` and ``end`` are the old and new end of the heap in whole pages."""
        if end > at:
            return self.mmap(at, end - at, new, fixed=False) and -ENOMEM
        return self.munmap(end, at - end)

    def fork(self):
        child = Space()
        child.brk = self.brk
        for p, page in self.pages.items():
            if page.dontfork:
                continue
            new = child.pages[p] = copy.copy(page)
            new.locked = False
            if page.wipe:
                new.drop()
            elif page.own is not None:
                new.own = dict(page.own)
            if new.held == "file":
                new.held = ""  # a fork leaves file pages to the child's own faults
        return child

    def resident(self, splits):
        """
        Return least and most of (anonymous pages, file pages) that can be mapped.

        ``splits``: where folios are split, a page that is all zero may be the zero page's again.
        """
        sure = might = sure_file = might_file = 0
        for page in self.pages.values():
            anon = page.held == "anon"
            if not page.shared:
                sure += anon and (not splits or any(page.own.values()))
                might += page.file is None or anon
            if page.file and not anon:
                sure_file += page.held == "file"
                might_file += 1
        return (sure, might), (sure_file, might_file)
