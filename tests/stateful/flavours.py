# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that programs run on, and how many programs each gets."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from virtmm.kconfig import resolve
from virtmm.policy import Policy

_TIMES = {"default": 1, "ci": 4, "expensive": 50}


@dataclass(frozen=True)
class Flavour:
    """
    A kernel and a machine.

    Attributes:
        share: random programs of a default run.
        hypothesis: programs of a default run that hypothesis makes up.
        tight: memory is too small for the programs: the shrinker runs, allocations fail.
        policy: chooses folio sizes in the kernel's place.
        backed: pages have contents.
    """

    arch: str
    defconfig: str
    fragments: tuple[str, ...] = ()
    c_ranges: str = "y"
    knobs: tuple[str, ...] = ()
    memory_mb: int = 64
    share: int = 12
    hypothesis: int = 10
    tight: bool = False
    policy: Policy | None = None
    backed: bool = True

    def __str__(self):
        parts = (self.arch, self.defconfig, *self.fragments, "c" if self.c_ranges == "y" else "py")
        marks = {"tight": self.tight, "policy": self.policy, "unbacked": not self.backed}
        return "-".join((*parts, *(mark for mark, there in marks.items() if there)))

    @property
    def mthp(self):
        return self.defconfig.startswith("linux")

    def programs(self, profile=None):
        return self.share * _TIMES[profile or os.environ.get("HYPOTHESIS_PROFILE", "default")]

    def config(self, *sets):
        return _config(self, sets)


@functools.cache
def _config(flavour, sets):
    sets = [f"C_RANGES={flavour.c_ranges}", f"MEMORY_MB={flavour.memory_mb}", *sets]
    sets += [f"PHYS_BACKING={'y' if flavour.backed else 'n'}", "FAULT_INJECTION=y"]
    return resolve(flavour.arch, flavour.defconfig, flavour.fragments, sets)


# Any of the orders that fit, and the same ones each time.
_ANY = """
def thp_get_order(vma, address, tva_type, orders):
    fit = [order for order in range(orders.bit_length()) if orders >> order & 1]
    return fit[(address * 7 + tva_type >> 12) % len(fit)]
"""
_POLICY = Policy(Path("any.py"), _ANY, "")
_ALWAYS = ("enabled=always",)
SERIES = [
    Flavour("arm64", "anonfolio_basic"),
    Flavour("arm64", "anonfolio_basic", c_ranges="n", knobs=_ALWAYS),
    Flavour("arm64", "anonfolio_basic", ("16k",), knobs=_ALWAYS),
    Flavour("arm64", "anonfolio_basic", ("64k",), knobs=_ALWAYS, memory_mb=1024, share=4),
    Flavour("arm64", "exefolio"),
    Flavour("arm64", "exefolio", c_ranges="n", knobs=_ALWAYS),
    Flavour("arm64", "exefolio", ("16k",), knobs=_ALWAYS),
    *(
        Flavour("arm64", "contpte", (*pages, f"contpte-{step}"), c, _ALWAYS, memory, share=share)
        for pages, c, memory, share in (
            ((), "y", 64, 6),
            (("16k",), "n", 256, 2),
            (("64k",), "y", 1024, 1),
        )
        for step in ("basic", "batch", "fold")
    ),
    Flavour("arm64", "anonfolio_basic", ("v2",), share=6),
    Flavour("arm64", "anonfolio_basic", ("16k", "v2-simple"), knobs=_ALWAYS, share=4),
    Flavour(
        "arm64", "anonfolio_basic", ("v3",), memory_mb=16, knobs=("mem=4M",), share=6, tight=True
    ),
    Flavour("arm64", "anonfolio_basic", ("16k", "v3"), knobs=_ALWAYS, share=4),
    Flavour("arm64", "anonfolio_basic", ("v5",), c_ranges="n", knobs=_ALWAYS, share=4),
    Flavour("arm64", "anonfolio"),
    Flavour("arm64", "anonfolio", c_ranges="n", knobs=_ALWAYS),
    Flavour("arm64", "anonfolio", ("16k",), knobs=_ALWAYS, share=6),
    Flavour("arm64", "anonfolio", memory_mb=16, knobs=("mem=4M",), share=12, tight=True),
    Flavour("arm64", "baseline_4k"),
    Flavour("x86", "baseline_4k", c_ranges="n"),
    Flavour("x86", "baseline_4k"),
    Flavour("alpha", "baseline_8k", memory_mb=128, share=4),
    Flavour("m68k", "baseline_4k", c_ranges="n", share=4),
]
MAINLINE = [
    Flavour("powerpc", "linux-7.3", share=100),
    Flavour("powerpc", "linux-7.3", c_ranges="n", share=40),
    Flavour("powerpc", "linux-7.3", memory_mb=16, share=60, tight=True),
    Flavour("powerpc", "linux-6.12", memory_mb=16, c_ranges="n", share=20, tight=True),
    Flavour("powerpc", "linux-6.12", share=30),
    Flavour("arm64", "linux-6.12", memory_mb=32, share=8),
    Flavour("arm64", "linux-7.3", memory_mb=32, share=16),
    Flavour("arm64", "linux-7.3", memory_mb=32, c_ranges="n", share=4),
    Flavour("arm64", "linux-7.3", memory_mb=32, share=3, hypothesis=5, policy=_POLICY),
    Flavour(
        "powerpc", "linux-6.12", memory_mb=16, share=8, hypothesis=5, tight=True, policy=_POLICY
    ),
    Flavour("arm64", "linux-7.3", memory_mb=16, knobs=("mem=4M",), share=12, tight=True),
    Flavour("arm64", "linux-7.3", ("contpte-basic",), memory_mb=32, share=4),
    Flavour(
        "arm64",
        "linux-6.12",
        ("contpte-batch",),
        memory_mb=16,
        knobs=("mem=4M",),
        share=4,
        tight=True,
    ),
    Flavour("arm64", "linux-7.3", ("16k",), memory_mb=256, share=4),
    Flavour("x86", "linux-7.3", memory_mb=32, share=4),
    Flavour("riscv", "linux-7.3", memory_mb=32, c_ranges="n", share=3),
    Flavour("riscv", "linux-7.3", ("svnapot",), memory_mb=32, share=3),
    Flavour("powerpc", "linux-7.3", ("4k",), memory_mb=64, share=3),
    Flavour("loongarch", "linux-7.3", memory_mb=256, share=2),
    Flavour("mips", "linux-6.12", ("16k",), memory_mb=256, share=2),
    Flavour("sparc", "linux-7.3", memory_mb=64, c_ranges="n", share=2),
    Flavour("s390", "linux-7.3", memory_mb=32, share=8),
    Flavour("s390", "linux-6.12", memory_mb=16, c_ranges="n", share=8, tight=True),
]
FLAVOURS = [*SERIES, *MAINLINE]
