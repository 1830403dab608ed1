# SPDX-License-Identifier: GPL-2.0-only
"""The core under the sanitizers: a short workload here, the whole C-facing suite by scripts/sanitize.py."""

import subprocess
import sys

import pytest

from scripts.sanitize import BOTH, SANITIZERS, environment, main

SHIFT, OVERFLOW = "runtime error: shift exponent 64", "heap-buffer-overflow"
FINDING = {"undefined": SHIFT, "address": OVERFLOW, "address,undefined": SHIFT}


def workload(sanitizer, *arguments):
    env = environment(sanitizer)
    if env is None:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer: the core was NOT checked by it")
    command = [sys.executable, "-m", "tests.csrc.workload", *arguments]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_core_is_clean():
    done = workload(BOTH)
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_sanitizer_is_really_there(sanitizer):
    done = workload(sanitizer, "--break")
    assert done.returncode != 0
    assert FINDING[sanitizer] in done.stderr


def test_an_unknown_sanitizer_is_one_line(capsys):
    assert main(["thread"]) == 2
    assert capsys.readouterr().err.startswith("unknown sanitizer 'thread'; choose of:")
