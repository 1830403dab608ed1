# SPDX-License-Identifier: GPL-2.0-only
"""Build stage: configuration -> compiled core, loaded."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from virtmm import build_core, methods, topdir
from virtmm.arch import load_arch
from virtmm.arch.params import ArchError, ArchParams
from virtmm.kconfig import ConfigError, ResolvedConfig, load

BuildError = build_core.BuildError


@dataclass(frozen=True)
class Core:
    """
    A compiled core.

    Attributes:
        ffi, lib: as cffi gives them.
        hash: SHA-256 of its sources and of what was generated for them, hexadecimal.
    """

    ffi: Any
    lib: Any
    hash: str


_loaded: dict[Path, tuple[Any, Any]] = {}


def cache_folder() -> Path:
    """Return where compiled cores are kept: $VIRTMM_CACHE, else the user's cache folder."""
    if os.environ.get("VIRTMM_CACHE"):
        return Path(os.environ["VIRTMM_CACHE"]).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "virtmm"


def load_core_of(config: ResolvedConfig) -> Core | None:
    """Return the core of a configuration; None with C_RANGES=n."""
    if not config.get("C_RANGES", True):
        return None
    return load_core(config, load_arch(config.arch, config.arch_dir))


def compile_cores(configs: Iterable[ResolvedConfig]) -> None:
    """
    Compile the cores of several kernels that the cache has not, as many at a time as there are processors.

    Raises:
        BuildError: one of them cannot be compiled.
    """
    sources = sorted((topdir() / "csrc").glob("*.[ch]"))
    different = {
        (int(c["PAGE_SHIFT"]), build_core.autoconf_h(sources, c.values)): c for c in configs
    }
    # Processes: a compilation takes standard output and error for itself.
    with get_context("fork").Pool(min(len(different), len(os.sched_getaffinity(0)))) as pool:
        pool.map(_compile, different.values(), chunksize=1)


def _compile(config: ResolvedConfig) -> None:
    load_core_of(config)


def load_core(config: ResolvedConfig, arch: ArchParams) -> Core:
    """
    Return the core of a configuration, compiled if need be.

    Several cores live in one process; one that is loaded already is used again.

    Args:
        config: the configuration; its page size is one that ``arch`` has.
        arch: the architecture that the configuration was resolved for.

    Raises:
        BuildError: it cannot be compiled or loaded.
    """
    page_shift = int(config["PAGE_SHIFT"])
    path, content = build_core.build_core(
        arch, page_shift, config.values, topdir() / "csrc", cache_folder()
    )
    if path not in _loaded:
        spec = importlib.util.spec_from_file_location("_core", path)
        if spec is None or spec.loader is None:
            raise BuildError(f"{path}: not a loadable module; delete its folder and try again")
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as e:
            raise BuildError(f"{path}: {e}; delete its folder and try again") from None
        _loaded[path] = module.ffi, module.lib
    ffi, lib = _loaded[path]
    return Core(ffi, lib, content)


def main(argv: list[str] | None = None) -> int:
    """Compile the core of a .config (``make core``); return the exit status."""
    parser = argparse.ArgumentParser(prog="kbuild", description="Compile the core of a .config.")
    parser.add_argument("--arch", required=True, help="architecture, a folder below arch/")
    parser.add_argument("--arch-dir", type=Path, help="its folder when it is outside the tree")
    parser.add_argument("config", type=Path, help="the .config")
    args = parser.parse_args(argv)
    try:
        config = load(args.config, args.arch, args.arch_dir)
        core = load_core(config, load_arch(args.arch, args.arch_dir))
    except (ArchError, BuildError, ConfigError) as e:
        print(e, file=sys.stderr)
        return 2
    print(f"core {core.hash[:16]} for {args.arch} in {cache_folder()}")
    if config.get("PHYS_BACKING"):
        for what, names in methods.choose(core).names.items():
            sizes = zip(("4K", "16K", "64K", "2M"), names, strict=True)
            print(f"{what}: {', '.join(f'{size} {name}' for size, name in sizes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
