# SPDX-License-Identifier: GPL-2.0-only
"""Every architecture of the tree with every page size that it has: found by looking, named nowhere."""

import pytest
from virtmm.arch import load_arch, names

from virtmm.kconfig import resolve
from virtmm.machine import Machine

PLATFORMS = [(arch, g) for arch in names() for g in load_arch(arch).geometries]


@pytest.fixture(
    scope="module", params=PLATFORMS, ids=[f"{a}-{1 << g.page_shift >> 10}k" for a, g in PLATFORMS]
)
def platform(request):
    """Return (name, geometry)."""
    return request.param


@pytest.fixture(scope="module")
def kernel(platform):
    """Return the name of the platform's base-page kernel."""
    return f"baseline_{1 << platform[1].page_shift >> 10}k"


@pytest.fixture(scope="module")
def boot(platform, kernel):
    """Return a function: settings -> the platform's base-page kernel on a small machine."""
    machines = []
    (arch, geometry), order = platform, int(resolve(platform[0], kernel)["ARCH_FORCE_MAX_ORDER"])
    mb = max(64, 2 << order + geometry.page_shift - 20)  # two blocks of the buddy allocator

    def boot(*sets):
        machines.append(Machine(resolve(arch, kernel, sets=[f"MEMORY_MB={mb}", *sets])))
        return machines[-1]

    yield boot
    for machine in machines:
        machine.close()
