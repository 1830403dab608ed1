# SPDX-License-Identifier: GPL-2.0-only
"""An architecture as the conformance suite (arch_check.py) sees it: its description and its kernels."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from virtmm import topdir
from virtmm.arch import arch_folder, load_arch
from virtmm.boot import check_settings
from virtmm.golden_traces import GoldenError, golden_traces, replay_golden
from virtmm.kconfig import (
    ConfigError,
    ResolvedConfig,
    defconfigs,
    find_defconfig,
    open_kconfig,
    resolve,
    shown,
)
from virtmm.machine import Machine
from virtmm.mm.debug_vm import VmBug, validate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from virtmm.arch.params import ArchParams


#: What the checks switch, and so no named kernel does.
_USUAL = {"C_RANGES": True, "FAST_FAULT": True, "DEBUG_VM": False}


class CheckError(Exception):
    """An architecture does not keep a promise."""


def want(holds: bool, text: str) -> None:
    """Raise CheckError with a text unless something holds."""
    if not holds:
        raise CheckError(text)


class Subject:
    """The architecture that is checked, and its kernels: name -> configuration of a small machine."""

    def __init__(self, name: str, arch_dir: Path | None = None) -> None:
        self.folder = arch_folder(name, arch_dir)
        #: Whether commands find it without being told the folder.
        self.in_tree = self.folder.resolve().parent == topdir() / "arch"
        self.arch: ArchParams = load_arch(name, arch_dir)
        self.kernels: dict[str, ResolvedConfig] = {}
        for kernel in ("defconfig", *defconfigs(name, arch_dir)):
            config = resolve(name, kernel, arch_dir=arch_dir)
            check_settings(config, ())
            for symbol, usual in _USUAL.items():
                if config[symbol] is not usual:
                    raise ConfigError(
                        f"{shown(find_defconfig(self.folder, kernel))}: {symbol}={'n' if usual else 'y'}; "
                        "leave that to who runs the kernel"
                    )
            # Two of the buddy allocator's largest blocks.
            shift = int(config["ARCH_FORCE_MAX_ORDER"]) + int(config["PAGE_SHIFT"]) - 20
            mb = max(64, 2 << max(0, shift))
            sets = [f"MEMORY_MB={mb}"]
            self.kernels[kernel] = resolve(name, kernel, sets=sets, arch_dir=arch_dir)
        symbols = open_kconfig(name, arch_dir).unique_defined_syms
        #: Symbols with which the architecture's contiguous bit is used.
        self.contpte = [
            s.name for s in symbols if any(other.name == "CONTPTE" for other, _ in s.selects)
        ]

    def resolve(self, kernel: str, *sets: str) -> ResolvedConfig:
        """Return the configuration of a kernel with further settings."""
        config = self.kernels[kernel]
        sets = (f"MEMORY_MB={config['MEMORY_MB']}", *sets)
        return resolve(config.arch, kernel, sets=sets, arch_dir=config.arch_dir)

    def folding(self, kernel: str) -> Iterator[str]:
        """Yield the settings of a kernel by which blocks are contiguous, on as in mainline or not."""
        for symbol in self.contpte if self.kernels[kernel].get("TRANSPARENT_HUGEPAGE") else ():
            with contextlib.suppress(ConfigError):  # it depends on another page size
                self.resolve(kernel, f"{symbol}=y")
                yield f"{symbol}=y"

    def variants(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield what the checks boot, as far as cores may differ: a kernel and further settings."""
        for kernel, config in self.kernels.items():
            yield kernel, ()
            for setting in self.folding(kernel):
                if not config[setting.partition("=")[0]]:  # as in mainline, or before the series
                    yield kernel, (setting,)

    def boot(self, kernel: str, *sets: str) -> Machine:
        """Boot a kernel with further settings; memory sizes that it has are all on."""
        config = self.kernels[kernel]
        machine = Machine(self.resolve(kernel, *sets))
        if config.get("TRANSPARENT_HUGEPAGE"):
            machine.set("enabled", "always")
        if config.get("ANON_POLICY_MTHP"):
            for size in machine.sizes():
                machine.set(size, "always")
        return machine

    def replay_golden(self, kernel: str, *sets: str) -> tuple[object, ...]:
        """Replay the golden traces on a kernel; return digests of memory, events and processes."""
        with self.boot(kernel, "PHYS_BACKING=y", *sets) as m:
            base_pages = bool(self.kernels[kernel]["ANON_POLICY_BASE"])
            if base_pages and m.k.config.transparent_hugepage:
                m.set("enabled", "never")
            digests = []
            for path in golden_traces():
                try:
                    digests += replay_golden(m, path, base_pages=base_pages)
                except (GoldenError, VmBug) as e:
                    what = f"{path.name}: DEBUG_VM: {e}" if isinstance(e, VmBug) else str(e)
                    settings = ", ".join((kernel, *sets))
                    raise CheckError(f"{what} ({settings}); compare arch.py with the manual") from e
            validate(m.k)
            return digests, m.events(), m.processes()

    def page_sizes(self) -> dict[int, str]:
        """Return the first kernel of each page shift."""
        found: dict[int, str] = {}
        for kernel, config in self.kernels.items():
            found.setdefault(int(config["PAGE_SHIFT"]), kernel)
        return found
