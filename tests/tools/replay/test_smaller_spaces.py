# SPDX-License-Identifier: GPL-2.0-only
"""Recordings on architectures with a smaller address space."""

import pytest
from virtmm.tools.replay.figures import SIMPLIFIED_RELAYOUT, SIMPLIFIED_SMALLER
from virtmm.tools.trace.format import TraceError

from .events import (
    ANON,
    GROWSDOWN,
    PROG,
    READ,
    RW,
    STACK,
    A,
    K,
    call,
    exec_,
    exit_,
    fault,
    faults,
    fork,
    mmap,
)


def program(size=64 * K):
    heap = 0x555555600000
    return [
        exec_(),
        mmap(0x555555554000, 64 * K, READ | 4, 2, file=PROG),
        mmap(STACK, 132 * K, RW, ANON | GROWSDOWN),
        call("brk", heap),
        call("brk", heap, size),
        *faults(heap, size),
        mmap(A, size),
        *faults(A, size),
        fault(STACK - 4 * K),
        fork(2),
        fault(A, pid=2),
        exit_(2),
        exit_(),
    ]


@pytest.mark.parametrize(
    ("arch", "kernel", "page"),
    [
        ("m68k", "baseline_4k", 4),
        ("alpha", "baseline_8k", 8),
        ("ia64", "baseline_4k", 4),
        ("ia64", "baseline_16k", 16),
        ("s390", "linux-6.12", 4),
    ],
)
def test_a_smaller_address_space(write_trace, run, arch, kernel, page):
    result = run(write_trace(*program()), kernel, arch=arch)
    assert (result["segv"], result["refused_calls"], result["oom"]) == (0, 0, None)
    assert result["minflt"] == 2 * 64 // page + 3, "and a page of arguments"
    assert SIMPLIFIED_SMALLER in result["simplified"]
    assert (SIMPLIFIED_RELAYOUT in result["simplified"]) == (page > 4)


@pytest.mark.parametrize("arch", ["arm64", "x86", "riscv"])
def test_a_space_that_is_large_enough(write_trace, run, arch):
    result = run(write_trace(*program(), name=arch), arch=arch)
    assert SIMPLIFIED_SMALLER not in result["simplified"]
    # Somebody's wild pointer does not change that.
    path = write_trace(exec_(), fault(1 << 63), exit_(), name="wild")
    result = run(path, arch=arch)
    assert (result["segv"], SIMPLIFIED_SMALLER in result["simplified"]) == (1, False)


def test_recorded_in_a_small_space_it_stays_there(write_trace, run):
    path = write_trace(exec_(), mmap(0xEFFF0000, 16 * K), *faults(0xEFFF0000, 16 * K), exit_())
    result = run(path, arch="m68k")
    assert result["minflt"] == 4
    assert SIMPLIFIED_SMALLER not in result["simplified"]


def test_a_program_that_does_not_fit(write_trace, run):
    path = write_trace(exec_(), mmap(A - (8 << 30), 8 << 30), exit_())
    with pytest.raises(TraceError) as e:
        run(path, arch="m68k")
    assert str(e.value) == (
        f"{path}: row 1: process 1 does not fit into the 3840 MiB of addresses that m68k gives it; "
        "replay it on another architecture"
    )
    assert run(path, "baseline_8k", arch="alpha")["refused_calls"] == 0
