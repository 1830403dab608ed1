# SPDX-License-Identifier: GPL-2.0-only
"""
Kconfig targets of the Makefile: make, edit and complete the .config of an output folder.

Run by the Makefile from the top of the source tree, with the Python of the virtual environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtmm.arch import arch_folder
from virtmm.arch.params import ArchError

from virtmm.kconfig import (
    Assignment,
    ConfigError,
    assign,
    config_text,
    find_defconfig,
    find_fragment,
    load,
    open_kconfig,
    parse_config,
    resolve,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Front:
    """
    One run: an architecture and the folder that holds, or gets, its .config.

    ``arch_dir`` is the architecture's folder when it is outside the tree.

    Methods that are named as a make target print what they did.
    """

    def __init__(self, arch: str, out: Path, arch_dir: Path | None = None) -> None:
        self.arch = arch
        self.arch_dir = arch_dir
        self.folder = arch_folder(arch, arch_dir)
        self.out = out
        self.path = out / ".config"

    def write(self, text: str) -> None:
        """Write .config unless it has that content already; the old one becomes .config.old."""
        if self.path.is_file():
            old = self.path.read_text()
            if old == text:
                print(f"No change to {self.path}")
                return
            (self.out / ".config.old").write_text(old)
        self.out.mkdir(parents=True, exist_ok=True)
        # Under another name first: an interrupted make leaves the old file or the new one.
        new = self.out / ".config.new"
        new.write_text(text)
        new.replace(self.path)
        print(f"Configuration saved to {self.path}")

    def existing(self) -> list[Assignment]:
        """Return the assignments of .config, or of the plain defconfig when there is none."""
        if self.path.is_file():
            return parse_config(self.path)
        path = find_defconfig(self.folder, "defconfig")
        print(f"No {self.path}: starting from the defconfig of {self.arch}")
        return parse_config(path)

    def needed(self, step: str) -> list[Assignment]:
        """Return the assignments of .config; ConfigError when there is none."""
        if not self.path.is_file():
            raise ConfigError(f"{self.path}: no such file; run make defconfig before {step}")
        return parse_config(self.path)

    def defconfig(self, name: str) -> None:
        """Make .config from a named kernel."""
        self.write(resolve(self.arch, name, arch_dir=self.arch_dir).text)

    def fragment(self, name: str) -> None:
        """Put a fragment on top of .config."""
        base = self.needed(f"{name}.config")
        kconf = open_kconfig(self.arch, self.arch_dir)
        problems = assign(kconf, [base])
        # Only what is not a default stays asked for; the rest may follow the fragment.
        minimal = config_text(kconf, minimal=True)
        kconf = open_kconfig(self.arch, self.arch_dir)
        base = parse_text(minimal, self.path)
        path = find_fragment(self.folder, name)
        wanted = parse_config(path)
        bad = {a.where for a in wanted}
        for text in assign(kconf, [base, wanted]):
            if any(text.startswith(f"{where}: ") for where in bad):
                raise ConfigError(text)
            problems.append(text)
        warn(problems)
        self.write(config_text(kconf))

    def olddefconfig(self) -> None:
        """Give new symbols their defaults; list values that could not be kept."""
        kconf = open_kconfig(self.arch, self.arch_dir)
        warn(assign(kconf, [self.existing()]))
        self.write(config_text(kconf))

    def savedefconfig(self) -> None:
        """Write the minimal form of .config to ``defconfig`` in the output folder."""
        self.needed("savedefconfig")
        load(self.path, self.arch, self.arch_dir)
        kconf = open_kconfig(self.arch, self.arch_dir)
        assign(kconf, [parse_config(self.path)])
        path = self.out / "defconfig"
        path.write_text(config_text(kconf, minimal=True))
        print(f"Minimal configuration saved to {path}")

    def listnewconfig(self) -> None:
        """Print the symbols one can set that .config does not mention, with their defaults."""
        kconf = open_kconfig(self.arch, self.arch_dir)
        mentioned = self.needed("listnewconfig")
        assign(kconf, [mentioned])
        names = {a.symbol for a in mentioned}
        for symbol in kconf.unique_defined_syms:
            if symbol.visibility and symbol.name not in names:
                print(symbol.config_string, end="")

    def menuconfig(self) -> None:
        """Edit .config in the terminal."""
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigError("menuconfig: needs a terminal; make olddefconfig does without one")
        import curses

        try:
            curses.setupterm()
        except curses.error as e:
            raise ConfigError(f"menuconfig: TERM={os.environ.get('TERM', '')}: {e}") from None
        import menuconfig

        # Started with SIGHUP ignored it would draw for ever on a terminal that is gone.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self.edit(menuconfig.menuconfig)

    def guiconfig(self) -> None:
        """Edit .config in a window."""
        try:
            import tkinter
        except ImportError:
            raise ConfigError(
                "guiconfig: this Python has no Tk; install python3-tk, or use make menuconfig"
            ) from None
        try:
            tkinter.Tk().destroy()
        except tkinter.TclError as e:
            raise ConfigError(f"guiconfig: {e}; use make menuconfig in a terminal") from None
        import guiconfig

        self.edit(guiconfig.menuconfig)

    def edit(self, editor: Callable[[Any], None]) -> None:
        """Open an editor of kconfiglib on .config."""
        kconf = open_kconfig(self.arch, self.arch_dir)
        warn(assign(kconf, [self.existing()]))
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.path.resolve()
        fallback = find_defconfig(self.folder, "defconfig")
        os.environ["KCONFIG_CONFIG"] = str(path)
        kconf.warn = False  # said above; the editor would print over its own screen
        load_file = kconf.load_config

        def load_config(filename: str | None = None, *args: object, **kwargs: object) -> str:
            """Load a file; the editor starts without a name, that is .config or the defconfig."""
            if filename is None:
                filename = str(path if path.is_file() else fallback)
            return str(load_file(filename, *args, **kwargs))

        kconf.load_config = load_config
        editor(kconf)


def parse_text(text: str, path: Path) -> list[Assignment]:
    """Return the assignments of a minimal configuration; messages name ``path`` for them."""
    found = []
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            symbol, _, value = line.removeprefix("CONFIG_").partition("=")
            found.append(Assignment(symbol, value, str(path)))
        elif line.endswith(" is not set"):
            found.append(Assignment(line.split()[1].removeprefix("CONFIG_"), "n", str(path)))
    return found


def warn(problems: list[str]) -> None:
    """Print values that could not be kept."""
    for text in problems:
        print(f"warning: {text}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one target; return the exit status."""
    parser = argparse.ArgumentParser(description="Kconfig targets of the Makefile.")
    parser.add_argument("--arch", required=True, help="architecture, a folder below arch/")
    parser.add_argument("--arch-dir", type=Path, help="its folder when it is outside the tree")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of .config")
    parser.add_argument("target", help="make target")
    args = parser.parse_args(argv)
    target = args.target
    plain = ("menuconfig", "guiconfig", "olddefconfig", "savedefconfig", "listnewconfig")
    try:
        front = Front(args.arch, args.out, args.arch_dir)
        if target in plain:
            getattr(front, target)()
        elif target.endswith("defconfig"):
            front.defconfig(target.removesuffix("_defconfig"))
        elif target.endswith(".config"):
            front.fragment(target.removesuffix(".config"))
        else:
            raise ConfigError(f"{shlex.quote(target)}: no such target; make help lists them")
    except (ArchError, ConfigError) as e:
        print(e, file=sys.stderr)
        return 2
    except OSError as e:
        print(f"{e.filename or args.out}: {e.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
