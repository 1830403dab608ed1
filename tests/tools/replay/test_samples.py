# SPDX-License-Identifier: GPL-2.0-only
"""The samples against what was recorded and what the real kernel counted."""

from collections import Counter
from pathlib import Path

import pytest
from virtmm.tools.replay.replay import Replay
from virtmm.tools.trace.format import KIND_FAULT, TraceReader

from virtmm.kconfig import resolve
from virtmm.machine import Machine

SAMPLES = Path(__file__).resolve().parents[3] / "samples"
# What the real kernel counted for the same commands with fault-around (samples/README.md).
REAL = {"gcc": 17209, "python": 49518}


@pytest.fixture(params=sorted(REAL))
def sample(request):
    return SAMPLES / f"{request.param}.parquet"


def test_every_recorded_fault_is_one(sample):
    """
    Without fault-around, as it was recorded, each row is a fault of the model, and each program has
    a page or more of arguments that exec filled.

    But for two of python's: the model merges the read-only data of ld.so with its relro, which the
    kernel keeps apart by VM_ACCOUNT; with the relro's anon_vma, fork copies a page of that data to
    each of the two children, which fault for it in the recording.
    """
    served = Counter()
    config = resolve("arm64", "baseline_4k", sets=["MEMORY_MB=512", "FAST_FAULT=n"])
    with TraceReader(sample) as reader, Machine(config, ["fault_around_bytes=4096"]) as machine:
        rows = sum(row[3] == KIND_FAULT for rows in reader.batches() for row in rows)
        run, touch = Replay(machine, reader), machine.touch

        def counted(pid, address, write):
            before = machine.vmstat()["pgfault"]
            error = touch(pid, address, write)
            served[machine.vmstat()["pgfault"] - before] += 1
            return error

        machine.touch = counted
        run.run()
        assert (run.segv, run.refused) == (0, 0)
        execs = machine.events()["exec"]
    assert execs <= served[1] + served[0] - rows <= 2 * execs
    assert served[0] <= {"gcc": 0, "python": 2}[sample.stem]


def test_with_fault_around_it_is_what_the_real_kernel_counted(sample, run):
    """But for the pages of the stack that exec fills itself (the metadata's minflt knows)."""
    result = run(sample)
    with TraceReader(sample) as reader:
        rows = sum(row[3] == KIND_FAULT for rows in reader.batches() for row in rows)
        by_exec = reader.metadata["minflt"] - rows
    assert abs(result["minflt"] + by_exec - REAL[sample.stem]) <= 5


@pytest.mark.parametrize("kernel", ["baseline_16k", "baseline_64k"])
def test_samples_laid_out_anew_run_without_refusal(sample, run, kernel):
    result = run(sample, kernel)
    assert (result["segv"], result["refused_calls"], result["oom"]) == (0, 0, None)


def test_large_folios_save_two_faults_in_five(run):
    """Acceptance 4: on the gcc sample less than 60 % of the faults of base pages, on arm64."""
    path = SAMPLES / "gcc.parquet"
    assert run(path, "anonfolio_basic")["minflt"] < 0.6 * run(path)["minflt"]
