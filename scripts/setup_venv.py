# SPDX-License-Identifier: GPL-2.0-only
"""
Make the virtual environment that the Makefile's targets run in, or bring it up to date.

Needs nothing but Python's own library. The environment holds virtmm in editable form and what it
depends on. A stamp in it says for which setup.cfg and pyproject.toml that was done, so that running
this again costs nothing. One that was left half-made is made anew.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
# Inside the environment: what it was made for; and, while pip runs, that it cannot be used.
STAMP = ".virtmm-stamp"
UNFINISHED = ".virtmm-unfinished"


class SetupError(Exception):
    """The environment cannot be made."""


def stamp(extras: str) -> str:
    """Return what decides about the content of an environment, as one line."""
    digest = hashlib.sha256()
    for name in ("setup.cfg", "pyproject.toml"):
        digest.update((TOP / name).read_bytes())
    digest.update(f"{TOP}\0{sys.version}".encode())
    return f"{digest.hexdigest()} {extras}".strip()


def is_current(venv: Path, extras: str) -> bool:
    """Tell whether an environment is usable and has the wanted extras, or more."""
    if (venv / UNFINISHED).exists() or not os.access(venv / "bin" / "python", os.X_OK):
        return False
    try:
        have = (venv / STAMP).read_text().strip()
    except OSError:
        return False
    return have in (stamp(extras), stamp("test"))


def run(command: list[str], what: str, verbose: bool) -> None:
    """Run a command, quietly unless it fails; SetupError names the last line that it printed."""
    if verbose:
        print(" ".join(command), flush=True)
    out = None if verbose else subprocess.PIPE
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout or "").strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines[-1:]
        reason = errors[0].strip() if errors else f"exit status {done.returncode}"
        raise SetupError(f"{what} failed: {reason} (V=1 shows all)")


def make(venv: Path, extras: str, verbose: bool) -> None:
    """Make or update the environment; what is begun here is finished or removed."""
    python = venv / "bin" / "python"
    if (venv / UNFINISHED).exists():
        shutil.rmtree(venv)
    fresh = not venv.exists()
    if not fresh and not (venv / "pyvenv.cfg").is_file():
        raise SetupError(f"{venv}: exists and is no virtual environment; name another by VENV=")
    target = f"{TOP}[{extras}]" if extras else str(TOP)
    try:
        if fresh:
            print(f"Setting up {venv} (once; downloads what virtmm depends on)", flush=True)
            venv.mkdir(parents=True)
            (venv / UNFINISHED).touch()
            make_venv = [sys.executable, "-m", "venv", str(venv)]
            run(make_venv, "python3 -m venv (is python3-venv installed?)", verbose)
        else:
            print(f"Updating {venv}", flush=True)
            (venv / STAMP).unlink(missing_ok=True)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
        quiet = [] if verbose else ["--quiet"]
        run([*pip, *quiet, "--editable", target], "pip install", verbose)
        new = venv / (STAMP + ".new")
        new.write_text(stamp(extras) + "\n")
        (venv / UNFINISHED).unlink(missing_ok=True)
        new.replace(venv / STAMP)
    except BaseException:
        # Also on an interrupt. An environment that was there before stays, without its stamp.
        if fresh:
            shutil.rmtree(venv, ignore_errors=True)
        raise


def main(argv: list[str] | None = None) -> int:
    """Set up; return the exit status."""
    parser = argparse.ArgumentParser(description="Make or update the virtual environment.")
    parser.add_argument("--venv", type=Path, required=True, help="its folder")
    parser.add_argument("--extras", default="", choices=["", "test"], help="extras of setup.cfg")
    parser.add_argument("--verbose", action="store_true", help="show commands and their output")
    args = parser.parse_args(argv)
    venv = args.venv.absolute()
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever has an older one shall be told
        print(f"Python {sys.version.split()[0]} is too old; virtmm needs 3.11", file=sys.stderr)
        return 2
    try:
        # Two makes at once: the second waits and finds the work done. Reading suffices to lock.
        with (TOP / "setup.cfg").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_current(venv, args.extras):
                make(venv, args.extras, args.verbose)
    except SetupError as e:
        print(e, file=sys.stderr)
        return 2
    except OSError as e:
        print(f"{e.filename or venv}: {e.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
