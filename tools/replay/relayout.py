# SPDX-License-Identifier: GPL-2.0-only
"""
Lay a trace out anew for larger base pages, or a smaller address space, than it was recorded with.

A program that runs on a kernel with 16K or 64K pages is given other addresses: every mapping starts
and ends on a page of its own. The rule, for a recording page r and a larger page S:

1. A new mapping gets whole pages of S for itself. Its first byte keeps its position in the file modulo S,
   so that file pages hold what they would hold. It goes
   directly below or above a neighbour that it touched in the recording, else where it was, rounded
   down to S; if that is taken, to the nearest free place below, else above. The heap and stacks have
   room to grow that no other mapping is given.
2. A mapping made over part of another stays in place if it begins and ends on pages of S there;
   otherwise rule 1 gives it new pages (ELF segments 4K apart, which a linker for large pages puts apart).
3. An address keeps its distance to the start of its mapping, through mremap and brk too. Where mremap
   takes two mappings that the recorded kernel had merged, each moves by itself.
4. A page of S lives as long as any recorded page in it, and allows what any of them allows. munmap,
   MADV_DONTNEED and the like take only pages of S none of whose other recorded pages is in use.
   mremap moves a page of S whole: what of it does not belong to the moved range faults again.
5. Where addresses of the recording lie above the top of the new space, rules 1 to 4 hold with S = r too,
   and "where it was" is the recorded address scaled to 15/16 of the new space, its low KEEP_BITS bits as they
   were: order stays, gaps shrink, alignment to huge pages stays. What falls together goes to the nearest
   free place, one that keeps those bits if there is one. A stack goes to the top. The heap's room is a
   quarter of the space at most.
6. Executable files are laid out anew where the kernel reads them in large folios, with S = r too
   (executables.py). Their mappings have only one another for neighbours in rule 1.

What fits nowhere is an AddressSpaceError.

SIMPLIFIED: the program's own choices that depend on the page size (malloc's trim and growth steps, stack and
arena sizes) stay as recorded; kernels with larger pages are shown with slightly more partly used
pages than a program built for them has.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, Self

from virtmm.tools.replay.executables import place_object
from virtmm.tools.replay.rangemap import RangeMap, joined

from virtmm.accesses import Moved

#: A call of the machine: method and arguments after the pid.
Call = tuple[str, tuple[int, ...]]

PROT_READ_WRITE = 3
MREMAP_FIXED = 2
MREMAP_DONTUNMAP = 4
#: Addresses kept free above the start of a heap and below a stack.
HEAP_ROOM = 64 << 30
STACK_ROOM = 64 << 20
#: Bits of an address that stay when a space is scaled down: 2 MiB, x86's huge page.
KEEP_BITS = 21


class AddressSpaceError(Exception):
    """A program maps more than the address space holds."""


class Piece(NamedTuple):
    """Recorded addresses: the distance to their new ones, PROT_* bits, grown down by faults, object."""

    shift: int
    prot: int
    grows: bool = False
    part_of: int = 0


class Pieces(RangeMap[Piece]):
    """
    Recorded addresses that are mapped.

    Attributes:
        moved: the same, for Machine.move_many().
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved = Moved()

    def copy(self) -> Self:
        """Return an independent copy."""
        other = super().copy()
        other.moved = self.moved.copy()
        return other

    def _replace(self, i: int, j: int, new: list[tuple[int, int, Piece]]) -> None:
        super()._replace(i, j, new)
        self.moved.replace(i, j, [(start, end, piece.shift) for start, end, piece in new])


class AddressSpace:
    """
    One address space in both layouts, all in bytes.

    Methods take recorded addresses and return new ones, or the calls that the machine is to make.

    Attributes:
        pieces: recorded addresses that are mapped. All pieces in one new page have one shift.
        taken: new pages in use, with the protection that the machine gave them.
        reserved: new addresses that only the heap and stacks may take.
        recorded_top: end of the recorded space where that is larger than the new one, else 0.
        exec_align: address and file offset of executable objects are congruent modulo this.
    """

    def __init__(
        self,
        page_size: int,
        task_size: int,
        recorded_page: int,
        recorded_top: int = 0,
        exec_align: int = 0,
    ) -> None:
        self.page = page_size
        self.top = task_size
        self.recorded_page = recorded_page
        self.exec_align = exec_align
        self.recorded_top = recorded_top
        self.heap_room = self._down(min(HEAP_ROOM, task_size // 4))
        self.pieces = Pieces()
        self.taken: RangeMap[int] = RangeMap()
        self.reserved: RangeMap[int] = RangeMap()
        self.heap = self.heap_end = -1  # recorded; -1: none yet
        self.heap_shift = 0

    def copy(self) -> AddressSpace:
        """Return what a forked child has."""
        child = AddressSpace(
            self.page, self.top, self.recorded_page, self.recorded_top, self.exec_align
        )
        child.pieces, child.taken = self.pieces.copy(), self.taken.copy()
        child.reserved = self.reserved.copy()
        child.heap, child.heap_end = self.heap, self.heap_end
        child.heap_shift = self.heap_shift
        return child

    # Pages

    def _down(self, address: int) -> int:
        return address & -self.page

    def _up(self, address: int) -> int:
        return address + self.page - 1 & -self.page

    def _pages(self, span: tuple[int, int, Piece]) -> tuple[int, int]:
        """Return the new pages, from ... to, that a piece lies in."""
        start, end, piece = span
        return self._down(start + piece.shift), self._up(end + piece.shift)

    def _mapped(self, start: int, end: int, shift: int) -> list[Piece]:
        """Return the pieces of one shift in a recorded range."""
        found = self.pieces.overlapping(start, end) if start < end else []
        return [piece for _, _, piece in found if piece.shift == shift]

    def _given(self, page: int) -> int:
        """Return the protection that the machine gave a new page."""
        found = self.taken.at(page)
        return found[2] if found else 0

    def _whole_pages(self, spans: list[tuple[int, int, Piece]]) -> list[tuple[int, int]]:
        """Return the new pages of spans, which have left ``pieces``, that nothing else is in."""
        ranges = []
        for start, end, piece in spans:
            shift = piece.shift
            low, high = self._down(start + shift), self._up(end + shift)
            if low != start + shift and self._mapped(low - shift, start, shift):
                low += self.page
            if high != end + shift and self._mapped(end, high - shift, shift):
                high -= self.page
            ranges.append((low, high, 0))
        return [(low, high) for low, high, _ in joined(ranges)]

    def _release(self, spans: list[tuple[int, int, Piece]]) -> list[Call]:
        """Unmap what _whole_pages() finds."""
        ranges = self._whole_pages(spans)
        for low, high in ranges:
            self.taken.clear(low, high)
        return [("munmap", (low, high - low)) for low, high in ranges]

    # Places

    def blocking(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return what is, or may come to be, at new addresses."""
        return self.taken.overlapping(start, end) + self.reserved.overlapping(start, end)

    def free(self, start: int, end: int) -> bool:
        """Return whether new addresses exist and may be given to a mapping."""
        return (
            start >= self.page
            and end <= self.top
            and not self.taken.any(start, end)
            and not self.reserved.any(start, end)
        )

    def _place(self, wants: list[int], length: int) -> int:
        """Return the start of ``length`` free bytes: the first of ``wants`` that is free, or near it."""
        for want in wants:
            if self.free(want, want + length):
                return want
        for step in (1 << KEEP_BITS, self.page) if self.recorded_top else (self.page,):
            if at := self._near(wants[-1], length, step):
                return at
        raise AddressSpaceError

    def _near(self, want: int, length: int, step: int) -> int:
        """Return the nearest free place below want, else above it, whole steps away; 0 = none."""
        high = min(want, self.top - length)
        while (at := high - (high - want) % step) >= self.page:
            blocking = self.blocking(at, at + length)
            if not blocking:
                return at
            high = min(start for start, *_ in blocking) - length
        low = max(want, self.page)
        while (at := low + (want - low) % step) <= self.top - length:
            blocking = self.blocking(at, at + length)
            if not blocking:
                return at
            low = max(end for _, end, _ in blocking)
        return 0

    def _wants(
        self, start: int, end: int, size: int, grows: bool = False, part_of: int = 0
    ) -> list[int]:
        """Return where a mapping of ``size`` bytes of whole pages would best be, best first."""
        wants = []
        above = self.pieces.at(end)
        if above and above[0] == end and above[2].part_of == part_of:
            wants.append(self._down(end + above[2].shift) - size)
        below = self.pieces.at(start - 1) if start else None
        if below and below[1] == start and below[2].part_of == part_of:
            wants.append(self._up(start + below[2].shift))
        if self.recorded_top and not grows:  # rule 5; a stack is looked for from the top down
            high, low = divmod(start, 1 << KEEP_BITS)
            top = self.top - self.top // 16
            start = (high * top // self.recorded_top << KEEP_BITS) + low
        return [*wants, self._down(start)]

    # Calls

    def mmap(
        self,
        start: int,
        length: int,
        offset: int,
        prot: int,
        *,
        grows: bool = False,
        part_of: int = 0,
    ) -> tuple[int, int, list[Call]]:
        """
        Return (new start, new length, calls to make first) of a mapping of a file at offset.

        The new file offset is ``offset`` rounded down to the page.

        Args:
            grows: it is a stack, which grows down by faults.
            part_of: number of the executable object that it belongs to; 0 = none.
        """
        end = start + length
        removed = self.pieces.clear(start, end)
        calls: list[Call] = []
        if removed and not grows and self._stays(start, end, offset, removed):
            shift, part_of = removed[0][2].shift, part_of or removed[0][2].part_of
        else:
            calls = self._release(removed) if removed else []
            inside, room = offset % self.page, STACK_ROOM if grows else 0
            size = self._up(inside + length) + room
            wants = [want - room for want in self._wants(start, end, size - room, grows, part_of)]
            if part_of:
                wants.insert(0, place_object(self, wants, size, offset - inside, prot))
            low = self._place(wants, size)
            self.reserved.set(low, low + room, 0)
            shift = low + room + inside - start
        piece = Piece(shift, prot, grows, part_of)
        self.pieces.set(start, end, piece)
        low, high = self._pages((start, end, piece))
        self.taken.set(low, high, prot)
        return low, high - low, calls

    def _stays(
        self, start: int, end: int, offset: int, removed: list[tuple[int, int, Piece]]
    ) -> bool:
        """Return whether a new mapping takes the very pages of what it replaces (rule 2)."""
        shifts = {piece.shift for *_, piece in removed}
        if len(shifts) != 1 or removed[0][0] != start or removed[-1][1] != end:
            return False
        shift = shifts.pop()
        low, high = self._down(start + shift), self._up(end + shift)
        return (
            (start + shift - offset) % self.page == 0
            and (low, high) in self._whole_pages(removed)
            and not low < self.heap_end + self.heap_shift < high  # the heap may grow into it
        )

    def munmap(self, start: int, length: int) -> list[Call]:
        """Return the calls that unmap."""
        return self._release(self.pieces.clear(start, start + length))

    def mprotect(self, start: int, length: int, prot: int) -> list[Call]:
        """Return the calls that protect: one, unless pages at the edges need another protection."""
        spans = self.pieces.cut(start, start + length)
        for first, last, piece in spans:
            self.pieces.set(first, last, piece._replace(prot=prot))
        runs = []
        for span in spans:
            low, high = self._pages(span)
            for page in (low, high - self.page):
                runs.append((page, page + self.page, self._allowed(page, span[2].shift)))
            runs.append((low + self.page, high - self.page, prot))
        found = joined(runs)
        changed = [
            run
            for run in found
            if any(was != run[2] for *_, was in self.taken.overlapping(run[0], run[1]))
        ]
        for low, high, allowed in changed:
            self.taken.set(low, high, allowed)
        # A call that changes nothing is still a call.
        return [("mprotect", (low, high - low, a)) for low, high, a in changed or found[:1]]

    def _allowed(self, page: int, shift: int) -> int:
        """Return what the recorded pages in a new page allow together."""
        prot = 0
        for piece in self._mapped(page - shift, page + self.page - shift, shift):
            prot |= piece.prot
        return prot

    def inside(self, start: int, length: int) -> list[tuple[int, int]]:
        """Return the new ranges of pages all of whose recorded pages lie in the range."""
        spans = self.pieces.clear(start, start + length)
        ranges = self._whole_pages(spans)
        for span in spans:
            self.pieces.set(*span)
        return ranges

    def around(self, start: int, length: int) -> list[tuple[int, int]]:
        """Return the new ranges of pages any of whose recorded pages lies in the range."""
        spans = self.pieces.cut(start, start + length)
        return [(low, high) for low, high, _ in joined((*self._pages(s), 0) for s in spans)]

    def brk(self, start: int, length: int) -> list[Call]:
        """Return the calls that give the heap this length."""
        base = -(-start // self.recorded_page) * self.recorded_page
        if base != self.heap:
            self.heap = self.heap_end = base
            room = self.heap_room
            low = self._place(self._wants(base, base + room, room), room)
            self.reserved.set(low, low + room, 0)
            self.heap_shift = low - base
        old, shift = self.heap_end, self.heap_shift
        end = max(-(-(start + length) // self.recorded_page) * self.recorded_page, base)
        self.heap_end = end
        beyond = base + shift + self.heap_room, self._up(end + shift)
        if beyond[0] < beyond[1] and not self.free(*beyond):
            raise AddressSpaceError
        calls: list[Call] = []
        if end < old:
            removed = self.pieces.clear(end, old)
            calls = self._release([span for span in removed if span[2].shift != shift])
            self._release([span for span in removed if span[2].shift == shift])  # brk does it
        elif end > old:
            calls = self._extend_heap(old, end)
        edge = self._down(end + shift)
        if not self.taken.at(edge):  # nothing is left of the page in which the heap ends
            return [*calls, ("brk", (base + shift, max(edge, base + shift)))]
        return [*calls, ("brk", (base + shift, end + shift))]

    def _extend_heap(self, start: int, end: int) -> list[Call]:
        """Map more heap; return what is to be done to the page in which the heap ended before."""
        shift, calls = self.heap_shift, list[Call]()
        edge, high = self._down(start + shift), self._up(start + shift)
        self.pieces.set(start, end, Piece(shift, PROT_READ_WRITE))
        given = self._given(edge)
        if edge < high and not self.taken.at(edge):  # munmap took it: brk is to map it again
            calls = [("brk", (self.heap + shift, edge))]
            high = edge
        elif edge < high and given | PROT_READ_WRITE != given:
            allowed = self._allowed(edge, shift)
            calls = [("mprotect", (edge, self.page, allowed))]
            self.taken.set(edge, high, allowed)
        self.taken.set(high, self._up(end + shift), PROT_READ_WRITE)
        return calls

    def mremap(self, start: int, old_len: int, to: int, new_len: int, flags: int = 0) -> list[Call]:
        """Return the calls that resize or move."""
        calls = self.munmap(to, new_len) if to != start else []
        if new_len < old_len:
            calls += self.munmap(start + new_len, old_len - new_len)
            old_len = new_len
        if not old_len:
            return calls + self._duplicate(start, to, new_len, flags)
        end = start + old_len
        runs = joined((a, b, piece.shift) for a, b, piece in self.pieces.cut(start, end))
        for number, (first, last, _) in enumerate(runs, 1):
            new_last = start + new_len if number == len(runs) else last
            if to != start:
                calls += self._move(first, last, first + to - start, new_last - first, flags)
            elif new_last != last:
                calls += self._grow(first, last, new_last, flags)
        return calls

    def _duplicate(self, start: int, to: int, length: int, flags: int) -> list[Call]:
        """Map shared memory a second time (an old length of 0)."""
        found = self.pieces.at(start)
        if not found:
            return []
        piece = found[2]
        source = self._down(start + piece.shift)
        inside = start + piece.shift - source
        size = self._up(inside + length)
        new = self._place(self._wants(to, to + length, size), size)
        self.pieces.set(to, to + length, piece._replace(shift=new + inside - to))
        self.taken.set(new, new + size, self._given(source))
        return [("mremap", (source, 0, new, size, flags))]

    def _grow(self, start: int, end: int, new_end: int, flags: int) -> list[Call]:
        """Let the range grow in place, or give it another if the pages above are taken."""
        [*_, (_, _, piece)] = self.pieces.cut(start, end)
        high, new_high = self._up(end + piece.shift), self._up(new_end + piece.shift)
        if high < new_high and not self.free(high, new_high):
            return self._move(start, end, start, new_end - start, flags)
        page = high - self.page
        self.pieces.set(end, new_end, piece)
        self.taken.set(high, new_high, self._given(page))
        return [("mremap", (page, self.page, page, self.page + new_high - high, flags))]

    def _move(self, start: int, end: int, to: int, length: int, flags: int) -> list[Call]:
        """Move a range of one shift to pages of its own, as many calls as the machine needs."""
        spans = self.pieces.clear(start, end)
        shift = spans[0][2].shift
        low, high = self._down(start + shift), self._up(end + shift)
        cuts = {low, high}  # between them: pages of one protection that go, or stay too
        shared = set()
        if self._mapped(low - shift, start, shift):
            shared.add(low)
            cuts.add(low + self.page)
        if self._mapped(end, high - shift, shift):
            shared.add(high - self.page)
            cuts.add(high - self.page)
        cuts.update(first for first, *_ in joined(self.taken.cut(low, high)))
        size = self._up(start + shift - low + length)
        new = self._place(self._wants(to, to + length, size), size)
        calls: list[Call] = []
        for first, last in pairwise(sorted(cuts)):
            goes, target = last - first, new + first - low
            room = goes if last < high else new + size - target
            self.taken.set(target, target + room, self._given(first))
            if first in shared:  # the kernel does not resize what it also keeps
                calls.append(("mremap", (first, goes, target, goes, flags | MREMAP_DONTUNMAP)))
                if room > goes:
                    grown = (target, goes, target, room, flags & ~MREMAP_FIXED)
                    calls.append(("mremap", grown))
                continue
            if not flags & MREMAP_DONTUNMAP:
                self.taken.clear(first, last)
            calls.append(("mremap", (first, goes, target, room, flags)))
        if flags & MREMAP_DONTUNMAP:
            for span in spans:
                self.pieces.set(*span)
        new_shift = new + start + shift - low - to
        for first, last, piece in spans:
            self.pieces.set(first + to - start, last + to - start, piece._replace(shift=new_shift))
        last_piece = spans[-1][2]._replace(shift=new_shift)
        self.pieces.set(end + to - start, to + length, last_piece)
        return calls

    def address(self, address: int) -> int | None:
        """Return the new address of an access; None when the recording has nothing mapped there."""
        found = self.pieces.at(address)
        if found:
            return address + found[2].shift
        above = self.pieces.above(address)
        if not above or not above[2].grows:
            return None
        start, _, piece = above
        low, high = self._down(address + piece.shift), self._down(start + piece.shift)
        if low < self.page or self.taken.overlapping(low, high):
            return None
        self.pieces.set(address // self.recorded_page * self.recorded_page, start, piece)
        self.taken.set(low, high, piece.prot)
        return address + piece.shift
