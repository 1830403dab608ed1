# SPDX-License-Identifier: GPL-2.0-only
"""
Run the tests with cores built under sanitizers.

``python -m scripts.sanitize [undefined | address | address,undefined] [-- PYTEST ARGUMENTS]``, from the
source root; without a name, both in one core; without arguments, the whole suite, which takes a quarter
of an hour on two cores. A finding ends the test process, so the exit status says whether all is clean.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from virtmm.build_core import SANITIZERS

BOTH = "address,undefined"
# One test counts the faults of a program to within a few, and AddressSanitizer in its parent adds some.
_FAULTS = "tests/tools/trace/test_record.py::test_recording_adds_no_fault"
TESTS = ["tests", "--ignore=tests/benchmarks", f"--deselect={_FAULTS}"]


def environment(sanitizer: str) -> dict[str, str] | None:
    """
    Return the environment in which Python can load cores built under a sanitizer.

    None when this compiler has no such sanitizer. AddressSanitizer must be in the process before
    anything else is, hence LD_PRELOAD, and the C++ library with it, as exceptions of pyarrow's would
    end the process otherwise. Python itself leaks by design, so leaks are not looked for.
    """
    library = _library("libubsan.so" if sanitizer == "undefined" else "libasan.so")
    if library is None:
        return None
    env = {**os.environ, "VIRTMM_SANITIZE": sanitizer, "UBSAN_OPTIONS": "print_stacktrace=1"}
    if sanitizer != "undefined":
        env |= {
            "LD_PRELOAD": " ".join(filter(None, (library, _library("libstdc++.so.6")))),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        }
    return env


def _library(name: str) -> str | None:
    compiler = os.environ.get("CC", "gcc").split()[0]
    try:
        command = [compiler, f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return found if Path(found).is_absolute() else None


def run(sanitizer: str, arguments: list[str]) -> int:
    """Run the workload and the tests under one sanitizer; return the first exit status that is not 0."""
    env = environment(sanitizer)
    if env is None:
        print(f"{sanitizer}: this compiler has no such sanitizer; nothing was checked")
        return 2
    pytest = ["pytest", "-q", "-n", "auto", "--dist", "worksteal", *(arguments or TESTS)]
    for module in (["tests.csrc.workload"], pytest):
        print(f"{sanitizer}: {' '.join(module)}", flush=True)
        status = subprocess.run([sys.executable, "-m", *module], env=env, check=False).returncode
        if status:
            return status
    return 0


def main(argv: list[str]) -> int:
    """Run what the arguments name; return the exit status."""
    names, rest = argv, []
    if "--" in argv:
        names, rest = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    unknown = [name for name in names if name not in SANITIZERS]
    if unknown:
        print(
            f"unknown sanitizer {unknown[0]!r}; choose of: {' '.join(SANITIZERS)}", file=sys.stderr
        )
        return 2
    results = {name: run(name, rest) for name in names or [BOTH]}
    for name, status in results.items():
        print(f"{name}: {'clean' if not status else f'NOT clean (exit status {status})'}")
    return max(abs(status) for status in results.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
