# SPDX-License-Identifier: GPL-2.0-only
"""How hard hypothesis tries (HYPOTHESIS_PROFILE), and small machines in every flavour."""

import functools
import os

import pytest
from hypothesis import HealthCheck, settings

from virtmm.kconfig import resolve
from virtmm.machine import Machine

# pytest-xdist gives its workers a terminal's width; tables of commands are as wide as without a terminal.
os.environ.pop("COLUMNS", None)

_common = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
}
# The first two try the same programs each time, so that who breaks a test sees it break.
settings.register_profile("default", max_examples=30, derandomize=True, **_common)
settings.register_profile("ci", max_examples=200, derandomize=True, **_common)
settings.register_profile("expensive", max_examples=1500, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# What a small machine has: one block of the buddy allocator at least.
_MEMORY = {"64k": 1024}


@functools.cache
def small_config(arch, defconfig, fragments=(), sets=()):
    """Return the configuration of a small machine whose memory has contents and can be made to fail."""
    mb = _MEMORY.get(
        defconfig.rpartition("_")[2], _MEMORY.get(fragments[-1] if fragments else "", 64)
    )
    own = [s for s in sets if not s.startswith("MEMORY_MB=")] or []
    memory = next((s for s in sets if s.startswith("MEMORY_MB=")), f"MEMORY_MB={mb}")
    return resolve(arch, defconfig, fragments, [memory, *_ALWAYS, *own])


_ALWAYS = ("PHYS_BACKING=y", "FAULT_INJECTION=y")

#: name -> (arch, defconfig, fragments): every page size, with large folios and without.
KERNELS = {
    "arm64-anonfolio-4k": ("arm64", "anonfolio_basic", ()),
    "arm64-anonfolio-16k": ("arm64", "anonfolio_basic", ("16k",)),
    "arm64-anonfolio-64k": ("arm64", "anonfolio_basic", ("64k",)),
    "arm64-baseline-4k": ("arm64", "baseline_4k", ()),
    "x86-baseline-4k": ("x86", "baseline_4k", ()),
    "s390-baseline-4k": ("s390", "baseline_4k", ()),
}


@pytest.fixture(scope="session")
def configure():
    """Return a function: name of KERNELS, further SYMBOL=value settings -> configuration."""
    return lambda kernel, *sets: small_config(*KERNELS[kernel], tuple(sets))


@pytest.fixture
def machine_of():
    """Return a function that boots a configuration; the machines are closed at the end of the test."""
    machines = []

    def boot(config, **kw):
        machines.append(Machine(config, **kw))
        return machines[-1]

    yield boot
    for m in machines:
        m.close()


@pytest.fixture(params=list(KERNELS))
def kernel(request):
    """Return each name of KERNELS in turn."""
    return request.param


@pytest.fixture(params=["c", "python"])
def machine(request, kernel, configure, machine_of):
    """Boot each kernel with loops in C, and in Python; process 1 lives in it."""
    m = machine_of(configure(kernel, f"C_RANGES={'y' if request.param == 'c' else 'n'}"))
    assert m.spawn(1) == 0
    return m
