# SPDX-License-Identifier: GPL-2.0-only
"""Inputs to begin with: batches of accesses that the recorded samples made, as program_cases.c reads them."""

import re
from pathlib import Path

from virtmm.tools.trace.format import TraceReader
from virtmm.tools.trace.schema import KIND_FAULT

from virtmm import topdir

HERE = Path(__file__).parent
_BATCH, _BATCHES, _SEEDS = 64, 12, 16


def case_names():
    """Return the names of the cases in the order in which fuzz.c numbers them."""
    order = re.search(r"groups\[\] = \{(.*?)\}", (HERE / "fuzz.c").read_text())[1]
    return [
        name
        for group in re.findall(r"\w+", order)
        for name in re.findall(r'\{"(\w+)", case_', (HERE / f"{group}.c").read_text())
    ]


def write_seeds(corpus):
    """Write the seeds that a corpus has not got."""
    corpus.mkdir(exist_ok=True)
    touch_many = case_names().index("vk_touch_many")
    for sample in sorted((topdir() / "samples").glob("*.parquet")):
        accesses = iter(_accesses(sample))
        for number in range(_SEEDS):
            seed = bytearray([number % 4])
            for _ in range(_BATCHES):
                seed += bytes((touch_many, _BATCH - 1, 0))
                for _ in range(_BATCH):
                    write, area, page = next(accesses)
                    seed += bytes((write | 2, area % 255, page & 255, page >> 8 & 255))
                seed.append(0)
            (corpus / f"{sample.stem}-{number}").write_bytes(seed)


def _accesses(sample):
    """Yield (1 for a write, a number for the part of memory, page) of each fault of a trace."""
    with TraceReader(sample) as reader:
        for rows in reader.batches():
            for _, _, _, kind, addr, _, _, _, prot, *_ in rows:
                if kind == KIND_FAULT:
                    yield prot >> 1 & 1, addr >> 24, addr >> 12
