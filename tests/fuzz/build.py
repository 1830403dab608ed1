# SPDX-License-Identifier: GPL-2.0-only
"""Compile the fuzzer of a kernel: the core's sources and the cases of this folder in one program."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from virtmm.arch import load_arch

from virtmm import build_core, topdir

from .snapshot import snapshot

HERE = Path(__file__).parent
_FLAGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
_FLAGS += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@dataclass(frozen=True)
class Tool:
    """A compiler, its flags, and further sources."""

    compiler: str
    flags: tuple[str, ...]
    sources: tuple[str, ...] = ()


#: The core is what inputs shall reach all of; watching our own files would take half the time.
FUZZER = Tool(
    "clang",
    ("-fsanitize=fuzzer,address,undefined", f"-fsanitize-coverage-ignorelist={HERE}/not_watched"),
)
_WRAPPED = ("clear_ptes", "check_ptes_none", "vk_touch")
#: Runs inputs that are given, or made by rule: what a test can do without clang.
STANDALONE = Tool(
    "gcc",
    ("-fsanitize=address,undefined", *(f"-Wl,--wrap={name}" for name in _WRAPPED)),
    ("standalone.c", "planted.c"),
)


def build(kernel, folder, tool):
    """Boot the machines of a kernel into a folder and compile its fuzzer there; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    csrc = topdir() / "csrc"
    sources = sorted(csrc.glob("*.c"))
    config, arch = kernel.config(), load_arch(kernel.arch)
    generated = {
        "autoconf.h": build_core.autoconf_h([*sources, *csrc.glob("*.h")], config.values),
        "geometry.h": build_core.geometry_h(arch, int(config["PAGE_SHIFT"])),
        "core_api.h": build_core.declarations(csrc)[1],
    }
    for name, text in generated.items():
        (folder / name).write_text(text)
    snapshot(kernel, folder)
    ours = [HERE / "fuzz.c", HERE / "check.c", *sorted(HERE.glob("*_cases.c"))]
    ours += [HERE / name for name in tool.sources]
    harness = folder / "fuzz"
    command = [tool.compiler, *_FLAGS, *tool.flags, "-o", harness]
    command += ["-include", folder / "autoconf.h", "-I", folder, "-I", csrc, "-I", HERE]
    done = subprocess.run(
        [*command, *sources, *ours],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise build_core.BuildError(
            f"{tool.compiler} refuses the fuzzer of {kernel}:\n{done.stdout}"
        )
    return harness
