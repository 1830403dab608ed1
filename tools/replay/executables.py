# SPDX-License-Identifier: GPL-2.0-only
"""
Where executable files go on a kernel that reads them in large folios (EXEC_FOLIO).

arm64 programs are linked for pages of up to 64K, and the kernel and ld.so map them so that address and
file offset are congruent modulo 64K. Traces of x86-64 have them congruent modulo 4K only, and most
text could then never be mapped by contiguous entries. So an object (all mappings of one file that the
trace somewhere maps executable, with its bss) is moved as a whole: the program down to the next
congruent address, since the heap may follow it directly, libraries up, to the next that is free,
since a process's later mappings come below them.

SIMPLIFIED: anonymous memory and other files stay where they were recorded (laid out anew for larger
base pages they no longer follow a library that they touched), but page tables that they shared with
libraries may become two: about 16 KiB more in the samples. A segment that begins at another distance
from its file offset than its object's first one (data, on x86-64) keeps its distance to that one. What
an mprotect() makes executable is not known beforehand and not moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtmm.tools.replay.relayout import AddressSpace
    from virtmm.tools.trace.format import File, TraceReader

_PROT_EXEC = 4


def executables(reader: TraceReader) -> frozenset[File]:
    """
    Return the files that the trace maps executable: one pass over some of its columns.

    The kernel's own pages, ``[vdso]``, are none.
    """
    found = reader.mapped_files(_PROT_EXEC)
    return frozenset(file for file in found if not file.path.startswith("["))


def place_object(space: AddressSpace, wants: list[int], length: int, offset: int, prot: int) -> int:
    """
    Return where a mapping of an object goes, in new addresses; 0 = nothing fits.

    Args:
        wants: beside other mappings of the object, and last where it was recorded.
        length: whole pages.
        offset: in the file, of the mapping's first page.
    """
    step = space.exec_align
    *beside, start = wants
    for at in beside:
        suits = not prot & _PROT_EXEC or not (at - offset) % step
        if suits and space.free(at, at + length):
            return at
    if not any(piece.part_of for *_, piece in space.pieces.ranges):
        at = start - (start - offset) % step
        if space.free(at, at + length):
            return at
    at = start + (offset - start) % step
    while blocking := space.blocking(at, at + length):
        at = max(end for _, end, _ in blocking)
        at += (offset - at) % step
    return at if space.free(at, at + length) else 0
