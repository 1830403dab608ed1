# SPDX-License-Identifier: GPL-2.0-only
"""
Config stage: defconfig, fragments and single settings -> one resolved configuration.

Layers assign values and later ones win: the defconfig, then each fragment, then each ``--set``.
What was assigned must be what comes out. Kconfig itself drops a value silently when a dependency is
not met; here that is an error that names the symbol, both values and the dependency.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import platform
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import kconfiglib

from virtmm import topdir
from virtmm.arch import arch_folder, load_arch, loadable
from virtmm.arch import reference as reference_arch

# tools/ may not look into arch/: its public names for them.
from virtmm.arch import shown as shown
from virtmm.arch.params import ArchError as ArchError
from virtmm.arch.params import one_line as one_line

_lock = threading.Lock()
# "CONFIG_" is a variable of that name: the prefix of symbols in files.
_KCONFIG_VARIABLE = re.compile(r"KCONFIG_.*|CONFIG_|srctree|ARCH|SRCARCH")
_SET = re.compile(r"CONFIG_(\w+)=(.*)")
_UNSET = re.compile(r"# CONFIG_(\w+) is not set")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BOOL = (kconfiglib.BOOL, kconfiglib.TRISTATE)
_NUMBER = {kconfiglib.INT: 10, kconfiglib.HEX: 16}
# What stands for itself in a Kconfig expression.
_LITERAL = re.compile(r"-?[0-9]+|0[xX][0-9a-fA-F]+")
# What Kconfig reads as a pattern or a variable in the name of a file.
_PATTERN = re.compile(r"[$*?[]")


class ConfigError(Exception):
    """A configuration cannot be had; an argument, and one line, for each problem found."""

    def __str__(self) -> str:
        """Return the lines."""
        return "\n".join(map(one_line, self.args))


class Assignment(NamedTuple):
    """``symbol`` (without CONFIG_) shall be ``value``, as ``where`` (file:line or --set) says."""

    symbol: str
    value: str
    where: str


@dataclass(frozen=True)
class ResolvedConfig:
    """
    A configuration with every symbol decided.

    Attributes:
        arch: name of the architecture.
        values: symbol without CONFIG_ -> bool, int or str. A bool that is off, or not offered, is
            False; an integer without a value (an architecture need not give one) is absent.
        text: the same as the content of a .config file.
        hash: SHA-256 over the sorted values, hexadecimal.
        arch_dir: folder of the architecture when it is outside the tree.
    """

    arch: str
    values: Mapping[str, bool | int | str]
    text: str
    hash: str
    arch_dir: Path | None = None

    def __post_init__(self) -> None:
        """Make the values read-only."""
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Let other processes have it; a read-only mapping cannot be pickled."""
        return ResolvedConfig, (
            *(self.arch, dict(self.values), self.text, self.hash),
            self.arch_dir,
        )

    def __getitem__(self, name: str) -> bool | int | str:
        """Return a value; KeyError when the symbol is unknown or has none."""
        return self.values[name]

    def get(self, name: str, default: bool | int | str = False) -> bool | int | str:
        """Return a value, or the default when the symbol is unknown or has none."""
        return self.values.get(name, default)


def resolve(
    arch: str,
    defconfig: str | Path = "defconfig",
    fragments: Sequence[str | Path] = (),
    sets: Sequence[str] = (),
    arch_dir: Path | None = None,
) -> ResolvedConfig:
    """
    Resolve a named kernel.

    Args:
        arch: name of the architecture, a folder below arch/.
        defconfig: D for arch/<arch>/configs/D_defconfig, "defconfig" for the plain one, or a path.
        fragments: F for arch/<arch>/configs/F.config, else configs/F.config, or a path.
        sets: SYMBOL=value, with or without CONFIG_; bools are y or n.
        arch_dir: folder of an architecture outside the tree.

    Raises:
        ConfigError: no such file, a line or a value that is wrong, or a value that was overridden.
        ArchError: no such architecture.
    """
    folder = arch_folder(arch, arch_dir)
    layers = [parse_config(find_defconfig(folder, defconfig))]
    layers += [parse_config(find_fragment(folder, name)) for name in fragments]
    # Each --set is a layer of its own: a later one may take back an earlier one.
    layers += [[parse_set(text)] for text in sets]
    return _resolve(arch, arch_dir, layers)


def load(path: Path, arch: str, arch_dir: Path | None = None) -> ResolvedConfig:
    """
    Resolve an existing .config.

    Symbols that it does not mention get their defaults.

    Raises:
        ConfigError: unreadable, or any of the reasons of resolve().
        ArchError: no such architecture.
    """
    return _resolve(arch, arch_dir, [parse_config(Path(path))])


def _resolve(arch: str, arch_dir: Path | None, layers: list[list[Assignment]]) -> ResolvedConfig:
    """Resolve layers of assignments strictly."""
    kconf = open_kconfig(arch, arch_dir)
    problems = assign(kconf, layers)
    if not problems:
        problems = [_message(text, kconf.folder) for text in kconf.warnings]
    values = _values(kconf)
    _check_arch(arch, arch_dir, values)  # first: what it lacks other symbols may depend on
    if problems:
        raise ConfigError(*(_foreign(kconf, arch, layers) or problems))
    digest = hashlib.sha256(repr(sorted(values.items())).encode())
    return ResolvedConfig(arch, values, config_text(kconf), digest.hexdigest(), arch_dir)


def _check_arch(arch: str, arch_dir: Path | None, values: Mapping[str, bool | int | str]) -> None:
    """Raise ConfigError unless the symbols that each architecture defines have values."""
    where = shown(arch_folder(arch, arch_dir) / "Kconfig")
    for symbol in ("PAGE_SHIFT", "ARCH_FORCE_MAX_ORDER"):
        if symbol not in values:
            raise ConfigError(f"{where}: {symbol} has no value; define it with a default")
    symbol = load_arch(arch, arch_dir).kconfig_symbol
    if values.get(symbol) is not True:
        raise ConfigError(
            f"{arch}.kconfig_symbol: {symbol} is not y; define it def_bool y in {where}"
        )


def _foreign(kconf: _Kconfig, arch: str, layers: list[list[Assignment]]) -> list[str]:
    """Return that a layer is another architecture's, so that its symbols are unknown here; or nothing."""
    others = {other.kconfig_symbol: other.name for other in loadable()}
    for a in (a for layer in layers for a in layer if a.symbol in others and a.value == "y"):
        if a.symbol not in kconf.syms:
            other = others[a.symbol]
            text = f"{a.where}: {a.symbol} is {other}, not {arch}; say --arch {other} (make: ARCH={other})"
            return [text]
    return []


# Files and names


def default_arch() -> str:
    """Return the architecture of commands where none is named."""
    return reference_arch()


def host_arch() -> str:
    """Return the architecture of this machine; ArchError when no folder below arch/ is it."""
    machine = platform.machine()
    for arch in loadable():
        if arch.machine == machine:
            return arch.name
    raise ArchError(f"{machine}: no architecture below arch/ is this machine's; add one")


def defconfigs(arch: str, arch_dir: Path | None = None) -> list[str]:
    """
    Return the named kernels of an architecture, the plain defconfig not among them.

    The kernels of the series come in the order of its table, others behind them; numbers in names
    count as numbers.
    """
    return _names(arch_folder(arch, arch_dir) / "configs", "_defconfig")


def fragment_names(arch: str, arch_dir: Path | None = None) -> list[str]:
    """Return the fragments that an architecture can use, those of configs/ included."""
    folder = arch_folder(arch, arch_dir)
    folders = (folder / "configs", topdir() / "configs")
    return [n for f in folders for n in _names(f, ".config")]


def _names(folder: Path, suffix: str) -> list[str]:
    names = [p.name.removesuffix(suffix) for p in folder.glob(f"?*{suffix}") if not p.is_dir()]
    return sorted(names, key=_table_order) if suffix == "_defconfig" else sorted(names)


#: Beginnings of names, in the order of the series' table.
_TABLE = ("baseline_4k", "anonfolio_basic", "anonfolio", "contpte", "exefolio", "baseline")


def _table_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    parts = re.findall(r"\d+|\D+", name)
    numbers = [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
    place = next((i for i, start in enumerate(_TABLE) if name.startswith(start)), len(_TABLE))
    return place, numbers


def _as_path(name: str | Path) -> Path | None:
    """Return the path that a name is, or None when it is to be looked up."""
    if isinstance(name, Path) or os.sep in name:
        return Path(name)
    return None


def find_defconfig(folder: Path, name: str | Path) -> Path:
    """Return the file of a defconfig of the architecture in ``folder``; ConfigError lists names."""
    path = _as_path(name)
    if path is not None:
        return path
    name = str(name)
    configs = folder / "configs"
    file = configs / (
        "defconfig" if name == "defconfig" else f"{name.removesuffix('_defconfig')}_defconfig"
    )
    if _is_file(file):
        return file
    if Path(name).suffix and _is_file(Path(name)):
        return Path(name)
    if name == "defconfig":
        raise ConfigError(f"{shown(file)}: no such file; every architecture has one")
    have = [*_names(configs, "_defconfig"), "defconfig"]
    raise ConfigError(f"{folder.name} has no defconfig {name!r}; choose one of: {', '.join(have)}")


def find_fragment(folder: Path, name: str | Path) -> Path:
    """Return the file of a fragment for the architecture in ``folder``; ConfigError lists names."""
    path = _as_path(name)
    if path is not None:
        return path
    name = str(name)
    places = (folder / "configs", topdir() / "configs")
    for place in places:
        file = place / f"{name.removesuffix('.config')}.config"
        if _is_file(file):
            return file
    if Path(name).suffix and _is_file(Path(name)):
        return Path(name)
    have = [n for place in places for n in _names(place, ".config")]
    raise ConfigError(
        f"{folder.name} has no fragment {name!r}; choose one of: {', '.join(have) or 'none'}"
    )


def _is_file(path: Path) -> bool:
    """Return whether a path is a file; ConfigError when that cannot be known."""
    try:
        return path.is_file()
    except OSError as e:
        raise ConfigError(f"{shown(path)}: {e.strerror}") from None


def parse_config(path: Path) -> list[Assignment]:
    """
    Return the assignments of a defconfig, fragment or .config, in order.

    Raises:
        ConfigError: unreadable, or lines that are neither assignments nor comments.
    """
    file = shown(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise ConfigError(f"{file}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file}: not a text file (byte {e.start} is not UTF-8)") from None
    found, wrong = [], []
    for number, line in enumerate(map(str.strip, lines), start=1):
        where = f"{file}:{number}"
        if m := _SET.fullmatch(line):
            found.append(Assignment(m[1], m[2], where))
        elif m := _UNSET.fullmatch(line):
            found.append(Assignment(m[1], "n", where))
        elif line and not line.startswith("#"):
            wrong.append(f"{where}: malformed line {line!r}; write CONFIG_SYMBOL=value")
    if wrong:
        more = f" (and {len(wrong) - 1} more such lines)" if len(wrong) > 1 else ""
        raise ConfigError(wrong[0] + more)
    return found


def parse_set(text: str) -> Assignment:
    """Return the assignment of one ``--set`` argument; ConfigError when it is not one."""
    symbol, equals, value = text.partition("=")
    symbol = symbol.strip().removeprefix("CONFIG_")
    if not equals or not re.fullmatch(r"\w+", symbol):
        raise ConfigError(f"--set {text}: malformed; write SYMBOL=value, for example DEBUG_VM=y")
    return Assignment(symbol, value.strip(), "--set")


# Kconfig


class _Kconfig(kconfiglib.Kconfig):  # type: ignore[misc]  # kconfiglib has no types
    """
    A Kconfig tree.

    Attributes:
        folder: the architecture's, as Kconfig calls it and as messages show it.
    """

    folder: tuple[str, str]


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Let Kconfig see these variables and nothing of the caller's settings for it."""
    with _lock:
        saved = {k: v for k, v in os.environ.items() if _KCONFIG_VARIABLE.fullmatch(k)}
        for name in saved:
            del os.environ[name]
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del os.environ[name]
            os.environ.update(saved)


def open_kconfig(arch: str, arch_dir: Path | None = None) -> _Kconfig:
    """
    Return the Kconfig tree of an architecture with all symbols at their defaults.

    Depends neither on the caller's environment nor on the current folder.

    Raises:
        ConfigError: a Kconfig file is missing or wrong; says file and line.
        ArchError: no such architecture.
    """
    folder = arch_folder(arch, arch_dir)
    if not _is_file(folder / "Kconfig"):
        raise ConfigError(
            f"{shown(folder / 'Kconfig')}: no such file; write it, as Documentation/arch/porting.md says"
        )
    top = topdir()
    # Relative, also to a folder outside the tree, so that "arch/$(SRCARCH)/Kconfig" finds it.
    srcarch = os.path.relpath(folder.resolve(), top / "arch")
    place = f"arch/{srcarch}", shown(folder)
    pattern = _PATTERN.sub(r"[\g<0>]", srcarch)
    try:
        with _environment({"srctree": str(top), "ARCH": arch, "SRCARCH": pattern}):
            kconf = _Kconfig("Kconfig", warn_to_stderr=False)
    except (kconfiglib.KconfigError, OSError) as e:
        raise ConfigError(_message(str(e), place)) from None
    except Exception as e:  # kconfiglib's own mistakes, about lines in the wrong place
        text = f"{place[1]}/Kconfig: not in the form of Kconfig ({type(e).__name__}: {e})"
        raise ConfigError(_message(text, place)) from None
    kconf.folder = place
    problems = [*kconf.warnings, *_undefined(kconf)]
    if problems:
        raise ConfigError(*(_message(text, place) for text in problems))
    kconf.config_header = f"#\n# {kconf.mainmenu_text}\n#\n"
    return kconf


def _undefined(kconf: _Kconfig) -> Iterator[str]:
    """Yield what an architecture's Kconfig names, in a select or a condition, and no file defines."""
    for node in kconf.node_iter():
        if node.filename.startswith(f"{kconf.folder[0]}/"):
            named = [i for i in node.referenced if not i.nodes and not i.is_constant]
            for name in sorted(i.name for i in named if not _LITERAL.fullmatch(i.name)):
                where = f"{node.filename}:{node.linenr}"
                yield f"{where}: {name} is defined nowhere; define it, or do without"


def _message(text: str, folder: tuple[str, str]) -> str:
    """Return a message of Kconfig's as one line; ``folder`` as it calls it, and as messages show it."""
    return " ".join(text.removeprefix("warning: ").replace(*folder).split())


def config_text(kconf: _Kconfig, minimal: bool = False) -> str:
    """Return the .config of a tree, or its minimal form: only what is not a default."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config"
            if minimal:
                kconf.write_min_config(str(path), header="")
            else:
                kconf.write_config(str(path))
            return path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(
            f"{tempfile.gettempdir()}: cannot write: {e.strerror}; set TMPDIR to a folder with room"
        ) from None


def _values(kconf: _Kconfig) -> dict[str, bool | int | str]:
    values: dict[str, bool | int | str] = {}
    for symbol in kconf.unique_defined_syms:
        text = symbol.str_value
        if symbol.orig_type in _BOOL:
            values[symbol.name] = text == "y"
        elif symbol.orig_type == kconfiglib.STRING:
            values[symbol.name] = text
        elif text:
            values[symbol.name] = int(text, _NUMBER[symbol.orig_type])
    return values


def assign(kconf: _Kconfig, layers: Iterable[Sequence[Assignment]]) -> list[str]:
    """
    Assign layers of values, later ones win, and return what is wrong: one line for each problem.

    Everything that can be set is set even then, as ``make olddefconfig`` wants it.
    """
    problems: list[str] = []
    wanted: dict[str, Assignment] = {}
    last: Mapping[str, Assignment] = {}
    for layer in layers:
        seen: dict[str, Assignment] = {}
        for a in layer:
            problem = _check(kconf, a, seen)
            if problem:
                problems.append(f"{a.where}: {problem}")
                continue
            seen[a.symbol] = a
            symbol = kconf.syms[a.symbol]
            if symbol.choice and a.value == "y":
                # The later layer chose again; what an earlier one chose is no longer asked for.
                for sibling in symbol.choice.syms:
                    if sibling.name in wanted and sibling.name not in seen:
                        del wanted[sibling.name]
            wanted[a.symbol] = a
            if any(node.prompt for node in symbol.nodes):
                symbol.set_value(_plain(symbol, a.value))
        last = seen
    for a in wanted.values():
        problem = _overridden(kconf.syms[a.symbol], a)
        if problem and a.value == "y" and a.symbol not in last:
            problem += f"; add {a.symbol}=n if that is meant"
        if problem:
            problems.append(problem)
    return problems


def _plain(symbol: Any, value: str) -> str:
    """Return a value as Kconfig holds it: strings without quotes and escapes."""
    if symbol.orig_type == kconfiglib.STRING and (m := _QUOTED.fullmatch(value)):
        return re.sub(r"\\(.)", r"\1", m[1])
    return value


def _check(kconf: _Kconfig, a: Assignment, seen: Mapping[str, Assignment]) -> str:
    """Return what is wrong with an assignment as such, or nothing."""
    symbol = kconf.syms.get(a.symbol)
    if symbol is None or not symbol.nodes:
        names = [s.name for s in kconf.unique_defined_syms]
        near = difflib.get_close_matches(a.symbol, names, 1)
        return f"unknown symbol {a.symbol}" + (f"; did you mean {near[0]}?" if near else "")
    if a.symbol in seen:
        return f"{a.symbol} was already set by {seen[a.symbol].where}; keep one of the two"
    if symbol.choice and a.value == "y":
        for other in symbol.choice.syms:
            if other.name in seen and seen[other.name].value == "y":
                return (
                    f"{a.symbol}=y: {seen[other.name].where} already chose {other.name}; keep one"
                )
    return _check_value(symbol, a)


def _check_value(symbol: Any, a: Assignment) -> str:
    """Return what is wrong with the type or the form of a value, or nothing."""
    if symbol.orig_type in _BOOL:
        return "" if a.value in ("y", "n") else f"{a.symbol}={a.value}: y or n expected"
    if symbol.orig_type == kconfiglib.STRING:
        # A shell takes the quotes of --set away; a file has to have them.
        if a.where == "--set" or _QUOTED.fullmatch(a.value):
            return ""
        return f'{a.symbol}={a.value}: a string in double quotes expected, {a.symbol}="..."'
    try:
        int(a.value, _NUMBER[symbol.orig_type])
    except ValueError:
        kind = "a whole" if symbol.orig_type == kconfiglib.INT else "a hexadecimal"
        return f"{a.symbol}={a.value}: {kind} number expected"
    return ""


def _overridden(symbol: Any, a: Assignment) -> str:
    """Return why a symbol does not have the value it was assigned, or nothing if it has it."""
    got, want = symbol.str_value, _plain(symbol, a.value)
    base = _NUMBER.get(symbol.orig_type)
    if got == want or (base and got and int(got, base) == int(want, base)):
        return ""
    if symbol.orig_type in _BOOL and (got or "n") == want:
        return ""
    return f"{a.where}: wanted {a.symbol}={want}, got {got or 'no value'}: {_reason(symbol, want)}"


def _reason(symbol: Any, want: str) -> str:
    """Return the reason for an overridden value."""
    unmet = _unmet(symbol.direct_dep)
    if unmet:
        return f"unmet dependency {unmet}"
    if not any(node.prompt for node in symbol.nodes):
        return "it has no prompt, its value follows from other symbols"
    if not symbol.visibility:
        conditions = [_unmet(node.prompt[1]) for node in symbol.nodes if node.prompt]
        return f"it can only be set with {' or '.join(c for c in conditions if c)}"
    if symbol.orig_type in _NUMBER:
        for low, high, condition in symbol.ranges:
            if kconfiglib.expr_value(condition):
                return f"{want} is not in its range, {low.str_value} to {high.str_value}"
    if symbol.choice:
        chosen = symbol.choice.selection
        return f"one of its choice must be y, and that is {chosen.name if chosen else 'none'}"
    if symbol.orig_type in _BOOL and want == "n":
        forces = kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR)
        active = [kconfiglib.expr_str(e) for e in forces if kconfiglib.expr_value(e)]
        return f"selected by {', '.join(active)}"
    return "Kconfig gave it another value"


def _unmet(expression: Any) -> str:
    """Return the terms of a condition that do not hold, with their symbols' values, or nothing."""
    texts = []
    for term in kconfiglib.split_expr(expression, kconfiglib.AND):
        if kconfiglib.expr_value(term):
            continue
        if isinstance(term, kconfiglib.Choice):
            texts.append(_unmet(term.direct_dep))
            continue
        items = sorted(
            f"{s.name}={s.str_value or 'n'}"
            for s in kconfiglib.expr_items(term)
            if isinstance(s, kconfiglib.Symbol) and not s.is_constant and s is not term
        )
        values = ", ".join(items) or "is n"
        texts.append(f"{kconfiglib.expr_str(term)} ({values})")
    return " && ".join(dict.fromkeys(t for t in texts if t))
