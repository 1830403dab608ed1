# SPDX-License-Identifier: GPL-2.0-only
"""The options that choose kernels and what runs on them."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from virtmm.tools.commands.output import TRACE

from virtmm.boot import BootError, check_policy, check_settings
from virtmm.kconfig import default_arch, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from virtmm.kconfig import ResolvedConfig
    from virtmm.policy import Policy

SET_HELP = (
    "Kconfig symbol (LARGE_ANON_FOLIO=y, MEMORY_MB=512) or run-time knob (enabled=always); "
    "may be repeated."
)
policy_option = click.option(
    "--policy",
    "policy_file",
    type=TRACE,
    metavar="FILE.py",
    help="Ask thp_get_order() of this file for the size of each folio (Documentation/policies.md), "
    "in every kernel with large folios.",
)


def arch_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --arch and --arch-dir; the command gets ``arch``, always a name, and ``arch_dir``."""

    @functools.wraps(command)
    def named(arch: str | None, arch_dir: Path | None, **kw: Any) -> None:
        if arch is None:
            arch = Path(os.path.realpath(arch_dir)).name if arch_dir else default_arch()
        command(arch=arch, arch_dir=arch_dir, **kw)

    for option in (
        click.option(
            "--arch-dir",
            type=TRACE,
            metavar="DIR",
            help="Folder of an architecture outside the tree (virtmm new-arch writes one).",
        ),
        click.option(
            "--arch",
            show_default=default_arch(),
            help="Architecture of the virtual machine, a folder below arch/.",
        ),
    ):
        named = option(named)
    return named


def split_sets(sets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return (Kconfig assignments, run-time knobs) of --set; Kconfig symbols are upper case."""
    symbols = [s for s in sets if re.match(r"(CONFIG_)?[A-Z][A-Z0-9_]*=", s)]
    return symbols, [s for s in sets if s not in symbols]


def own_knobs(
    config: ResolvedConfig, knobs: list[str], others: Iterable[ResolvedConfig]
) -> list[str]:
    """Return the knobs meant for one kernel of several: a size's are for those that have per-size knobs."""
    if config.get("ANON_POLICY_MTHP") or not any(c.get("ANON_POLICY_MTHP") for c in others):
        return knobs
    return [k for k in knobs if not re.match(r"(hugepages-)?\d+kB|thp_anon=", k)]


def kernel_config(
    arch: str, name: str, symbols: list[str], arch_dir: Path | None = None
) -> ResolvedConfig:
    """Return the kernel of a name in a list of kernels, NAME or NAME+FRAGMENT+…, as replay calls it."""
    defconfig, *fragments = [name] if Path(name).exists() else name.split("+")
    return resolve(arch, defconfig, fragments, symbols, arch_dir)


def own_policies(configs: Mapping[str, ResolvedConfig], policy: Policy | None) -> dict[str, Policy]:
    """
    Return the policy of each kernel that asks one: those with large folios.

    Raises:
        ConfigError: there is a policy, and no kernel asks it.
    """
    if policy is None:
        return {}
    asking = {n: policy for n, c in configs.items() if not c.get("ANON_POLICY_BASE")}
    for name, config in configs.items():
        if name in asking or not asking:
            check_policy(config, policy)
    return asking


def without_memory(
    configs: dict[str, ResolvedConfig], settings: dict[str, list[str]]
) -> dict[str, str]:
    """
    Take the kernels that have too little memory to boot out of ``configs``; return why they do not.

    Raises:
        BootError: none has enough.
        ConfigError: settings that one does not know.
    """
    reasons: dict[str, str] = {}
    for name, config in configs.items():
        try:
            check_settings(config, settings[name])
        except BootError as e:
            reasons[name] = str(e)
    if len(reasons) == len(configs):
        raise BootError(next(iter(reasons.values())))
    for name in reasons:
        del configs[name]
    return reasons
