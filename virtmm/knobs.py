# SPDX-License-Identifier: GPL-2.0-only
"""
Run-time knobs and boot parameters: files of /sys/kernel/mm/transparent_hugepage, ``thp_anon=``, ``mem=``.

A setting is ``NAME=VALUE``. ``64kB=always`` is hugepages-64kB/enabled, which may also be written out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtmm.kconfig import ConfigError
from virtmm.mm.arena import Knobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtmm.kconfig import ResolvedConfig

STATES = ("always", "inherit", "madvise", "never")
_CHOICES = {
    "enabled": ("always", "madvise", "never"),
    "defrag": ("always", "defer", "defer+madvise", "madvise", "never"),
    "use_zero_page": ("0", "1"),
    "shrink_underused": ("0", "1"),
}
_NUMBERS = ("fault_around_bytes", "khugepaged/max_ptes_none")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class KnobSet:
    """
    The knobs that a kernel has.

    Attributes:
        per_size: whether each folio size has a knob (ANON_POLICY_MTHP).
    """

    page_size: int
    pmd_order: int
    per_size: bool
    enabled: str

    @staticmethod
    def of(config: ResolvedConfig, pmd_order: int) -> KnobSet:
        """Return the knobs of a configuration."""
        enabled = next(
            (v for v in ("always", "never") if config.get(f"TRANSPARENT_HUGEPAGE_{v.upper()}")),
            "madvise",
        )
        per_size = bool(config.get("ANON_POLICY_MTHP"))
        return KnobSet(1 << int(config["PAGE_SHIFT"]), pmd_order, per_size, enabled)

    def sizes(self) -> dict[str, int]:
        """Return name -> order of the sizes that have a knob, smallest first; none without per_size."""
        orders = range(2, self.pmd_order + 1) if self.per_size else range(0)
        return {self.size_name(order): order for order in orders}

    def size_name(self, order: int) -> str:
        """Return ``<N>kB`` of an order."""
        return f"{self.page_size << order >> 10}kB"

    def after_boot(self, settings: Sequence[str] = ()) -> tuple[Knobs, int]:
        """
        Return (knobs as they are after boot and the settings, memory in bytes by ``mem=`` or 0).

        The PMD size inherits and the others are never, unless ``thp_anon=`` says otherwise.

        Raises:
            ConfigError: a setting that this kernel does not have, or a value that it does not take.
        """
        knobs = Knobs(enabled=self.enabled, max_ptes_none=(1 << self.pmd_order) - 1)
        memory = 0
        if self.per_size:
            knobs.inherit = 1 << self.pmd_order
        for setting in settings:
            name, equals, value = setting.partition("=")
            if not equals:
                raise ConfigError(f"{setting}: not of the form NAME=VALUE")
            if name == "mem":
                memory = _bytes(setting, value)
            elif name == "thp_anon":
                self._thp_anon(knobs, value)
            else:
                self.set(knobs, "enabled" if name == "transparent_hugepage" else name, value)
        return knobs, memory

    def set(self, knobs: Knobs, name: str, value: str) -> None:
        """Write a knob; ConfigError when there is none of the name, or it takes other values."""
        size = re.fullmatch(r"(?:hugepages-)?(\d+kB)(?:/enabled)?", name, re.ASCII)
        if size:
            self._set_size(knobs, size[1], value)
        elif name in _CHOICES:
            choices = _CHOICES[name]
            if value not in choices:
                raise ConfigError(f"{name}={value}: {name} takes {', '.join(choices)}")
            setattr(knobs, name, value == "1" if choices == ("0", "1") else value)
        elif name == "fault_around_bytes":
            if not value.isdigit() or int(value).bit_count() != 1:
                raise ConfigError(f"{name}={value}: {name} takes a power of two, in bytes")
            knobs.fault_around_bytes = int(value)
        elif name == "khugepaged/max_ptes_none":
            if not value.isdigit() or int(value) >= 1 << self.pmd_order:
                raise ConfigError(f"{name}={value}: takes 0 to {(1 << self.pmd_order) - 1}")
            knobs.max_ptes_none = int(value)
        else:
            known = ", ".join([*_CHOICES, *_NUMBERS])
            raise ConfigError(f"{name}={value}: unknown knob; there are {known} and sizes (64kB)")

    def _set_size(self, knobs: Knobs, name: str, value: str) -> None:
        if not self.per_size:
            raise ConfigError(
                f"{name}={value}: this kernel has no per-size knobs; "
                "its ANON_POLICY is not multi-size THP"
            )
        order = self.sizes().get(name)
        if order is None:
            raise ConfigError(f"{name}={value}: no such size; there are {', '.join(self.sizes())}")
        if value not in STATES:
            raise ConfigError(f"{name}={value}: a size takes {', '.join(STATES)}")
        for state in STATES[:3]:
            others = getattr(knobs, state) & ~(1 << order)
            setattr(knobs, state, others | (1 << order if state == value else 0))

    def _thp_anon(self, knobs: Knobs, value: str) -> None:
        """Apply ``thp_anon=<size>[-<size>][,<size>...]:<state>[;...]``; sizes it leaves out are never."""
        for name in self.sizes():
            self._set_size(knobs, name, "never")
        for part in value.split(";"):
            names, colon, state = part.partition(":")
            if not colon:
                raise ConfigError(f"thp_anon={value}: expected SIZES:STATE in {part!r}")
            for span in names.split(","):
                low, _, high = span.partition("-")
                first = _bytes(f"thp_anon={value}", low)
                last = _bytes(f"thp_anon={value}", high) if high else first
                size = first
                while size <= last:
                    self._set_size(knobs, f"{size >> 10}kB", state)
                    size *= 2


def _bytes(setting: str, text: str) -> int:
    """Return a size like 64K or 2M in bytes."""
    match = re.fullmatch(r"(\d+)([KMG]?)B?", text.upper(), re.ASCII)
    if not match or not int(match[1]):
        raise ConfigError(f"{setting}: {text!r} is not a size such as 64K or 512M")
    return int(match[1]) * _UNITS[match[2]]
