# SPDX-License-Identifier: GPL-2.0-only
"""What is timed is what its name says, on a machine whose faults are served in C and in Python."""

import pytest
from virtmm.scripts.operations import CHILD, OPERATIONS, PARENT, Lab, measure, settings_of

from virtmm.kconfig import resolve

KIB, MIB = 1 << 10, 1 << 20
#: Operation -> faults with base pages, with folios of 64K, with huge pages; 2 MiB of memory.
FAULTS = {
    "first_touch": (512, 32, 1),
    "first_read": (512, 512, 1),
    "file_read": (32, 32, 32),
    "munmap": (0, 0, 0),
    "fork": (0, 0, 0),
    "exit": (0, 0, 0),
    "copy_on_write": (512, 512, 512),
    "mprotect": (0, 0, 0),
    "mmap_munmap": (0, 0, 0),
}


@pytest.fixture(params=["y", "n"], ids=["C", "Python"])
def lab_of(request):
    labs = []

    def make(kib):
        sets = ["MEMORY_MB=64", f"FAST_FAULT={request.param}"]
        config = resolve("x86", "linux-6.18", sets=sets)
        labs.append(Lab(config, kib * KIB, 2 * MIB, settings_of(kib, 4)))
        return labs[-1]

    yield make
    for lab in labs:
        lab.machine.close()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_take_the_faults_that_are_theirs(name, lab_of):
    labs = [lab_of(kib) for kib in (4, 64, 2048)]
    assert tuple(measure(lab, name).faults for lab in labs) == FAULTS[name]
    assert tuple(measure(lab, name).faults for lab in labs) == FAULTS[name], "the second time"


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_nothing_behind(name, lab_of):
    lab = lab_of(64)
    measure(lab, name)
    assert lab.machine.rss(PARENT) == 0
    assert not lab.machine.has(CHILD)


def test_what_is_timed_is_one_call_or_a_known_number():
    lab = Lab(resolve("x86", "linux-6.18", sets=["MEMORY_MB=64"]), 4 * KIB, 2 * MIB)
    with lab.machine:
        for name, operation in OPERATIONS.items():
            if not operation.calls:
                continue
            operation.prepare(lab)
            before = calls(lab)
            operation.run(lab)
            assert calls(lab) - before == operation.calls, name
            operation.finish(lab)


def calls(lab):
    events = lab.machine.events()
    return sum(events[name] for name in ("mmap", "munmap", "fork", "exit", "mprotect"))


def test_a_refused_operation_is_no_measurement():
    lab = Lab(resolve("x86", "linux-6.18", sets=["MEMORY_MB=64"]), 4 * KIB, 2 * MIB)
    with lab.machine, pytest.raises(RuntimeError, match="refused"):
        lab.write_pages()
