# SPDX-License-Identifier: GPL-2.0-only
"""Some rows of a trace, as columns and as tuples."""

from __future__ import annotations

from array import array
from itertools import repeat
from typing import TYPE_CHECKING, Any, cast

from virtmm.tools.trace.schema import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from virtmm.tools.trace.schema import Columns, Row

# Of a row's numbers, in order; the index of its file takes the place of path, inode and size.
_NUMBERS = [name for name in TYPES if name not in ("path", "inode", "size")]
_FILE = list(TYPES).index("path")


class Batch:
    """
    Rows of a trace, in order.

    A row is (time, pid, tid, kind code, addr, len, addr2, len2, prot, flags, offset, index into
    ``TraceReader.files``, arg), all ints.

    Attributes:
        columns: name -> array of shape [rows], kinds as codes.
        files: index of the file of each row; None = all are anonymous.
    """

    def __init__(self, columns: Columns, files: npt.NDArray[Any] | None) -> None:
        self.columns = columns
        self.files = files
        self._numbers: list[array[int]] = []

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows())

    def __getitem__(self, which: slice | npt.NDArray[Any]) -> Batch:
        """Return some of the rows: a slice, or their numbers."""
        files = self.files
        return Batch(
            {name: column[which] for name, column in self.columns.items()},
            None if files is None else files[which],
        )

    def row(self, i: int) -> Row:
        """Return one of the rows as a tuple."""
        # One by one, these are quicker than numpy's arrays; views of those crash Python at its exit.
        if not self._numbers:
            columns = (self.columns[name] for name in _NUMBERS)
            self._numbers = [array(c.dtype.char, c.tobytes()) for c in columns]
        values = [column[i] for column in self._numbers]
        values.insert(_FILE, 0 if self.files is None else self.files.item(i))
        return cast("Row", tuple(values))

    def rows(self) -> list[Row]:
        """Return the rows as tuples; a column that is 0 throughout costs next to nothing."""
        sources: list[Any] = []
        for name in _NUMBERS:
            column = self.columns[name]
            sources.append(column.tolist() if column.any() else repeat(0, len(column)))
        sources.insert(_FILE, repeat(0) if self.files is None else self.files.tolist())
        return list(zip(*sources, strict=False))
