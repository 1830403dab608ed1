# SPDX-License-Identifier: GPL-2.0-only
"""How much memory a machine may have."""

import pytest

from virtmm.boot import BootError, check_settings
from virtmm.kconfig import ConfigError, resolve
from virtmm.machine import Machine


def test_memory_that_entries_cannot_name():
    """m68k has 32-bit physical addresses: Kconfig says so, and boot does where mem= asks for more."""
    with pytest.raises(ConfigError, match="4096 is not in its range, 16 to 3840"):
        resolve("m68k", sets=["MEMORY_MB=4096"])
    config = resolve("m68k")
    message = "8192 MiB of memory: page-table entries of m68k reach 4096 MiB; give the machine less"
    for attempt in (check_settings, Machine):
        with pytest.raises(BootError) as e:
            attempt(config, ["mem=8G"])
        assert str(e.value) == message
    check_settings(config, ["mem=4G"])
    check_settings(resolve("alpha"), ["mem=8G"])
