# SPDX-License-Identifier: GPL-2.0-only
"""Imports as the tests want them: rows in a list, and files with a line changed."""

from itertools import chain
from pathlib import Path

import pytest
from virtmm.tools.trace.format import KINDS, TraceReader
from virtmm.tools.trace.importers.run import import_trace
from virtmm.tools.trace.importers.source import Options

DATA = Path(__file__).resolve().parent.parent / "data"


class Imported:
    """A trace that was imported."""

    def __init__(self, path):
        with TraceReader(path) as reader:
            self.rows = list(chain.from_iterable(reader.batches()))
            self.files = reader.files
            self.metadata = reader.metadata
        self.path = path

    def of(self, *kinds, pid=None):
        """Rows of these kinds, in order."""
        return [r for r in self.rows if KINDS[r[3]] in kinds and pid in (None, r[1])]

    def file(self, row):
        return self.files[row[11]].path

    def count(self, kind):
        return len(self.of(kind))


@pytest.fixture
def load(tmp_path):
    """Return a function: format, files, options -> Imported."""

    def load(fmt, *files, **options):
        path = tmp_path / "imported.parquet"
        import_trace(fmt, [Path(f) for f in files], path, Options(**options))
        return Imported(path)

    return load


@pytest.fixture
def edited(tmp_path):
    """Return a function: sample, text -> a copy in which the text that ``old`` is has become ``new``."""

    def edited(name, old, new, count=1):
        text = (DATA / name).read_text()
        assert old in text
        path = tmp_path / Path(name).name
        path.write_text(text.replace(old, new, count))
        return path

    return edited
