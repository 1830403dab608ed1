# SPDX-License-Identifier: GPL-2.0-only
"""
Fuzz the C core with libFuzzer: ``python -m tests.fuzz [--seconds N] [--kernel NAME] [FILE ...]``.

Every kernel of snapshot.KERNELS is fuzzed for its share of the time, on as many processors as there are;
what was found and the corpus stay in build/fuzz/. Files given are run again instead, with each call and
check shown. Needs clang and its runtime (Debian: ``clang libclang-rt-14-dev``).
"""

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
from pathlib import Path

from virtmm import topdir

from .build import FUZZER, build
from .seeds import write_seeds
from .snapshot import KERNELS

FOLDER = topdir() / "build" / "fuzz"
_RUNTIME = 'clang "libclang-rt-14-dev", or what your distribution calls its runtime'


def fuzz(kernel, seconds):
    """Fuzz a kernel for some seconds; return (it, exit status, what the fuzzer said)."""
    folder = FOLDER / str(kernel)
    harness = build(kernel, folder, FUZZER)
    corpus = folder / "corpus"
    write_seeds(corpus)
    command = [harness, corpus, f"-max_total_time={seconds}", "-max_len=2048", "-timeout=20"]
    command += [f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    (folder / "log").write_text(done.stdout)
    return kernel, done.returncode, done.stdout


def figure(said, name):
    """Return a number of libFuzzer's final statistics, or "?"."""
    line = next((line for line in said.splitlines() if f"::{name}:" in line), "?")
    return line.split()[-1]


def main():
    """Return 0 when nothing was found, 1 when something was, 2 when nothing could be looked for."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Fuzz the C core.")
    parser.add_argument("--seconds", type=int, default=60, help="for all kernels together")
    parser.add_argument("--kernel", choices=[str(k) for k in KERNELS], help="only this one")
    parser.add_argument("file", type=Path, nargs="*", help="an input to run again; needs --kernel")
    args = parser.parse_args()
    if not shutil.which(FUZZER.compiler):
        print(f"no {FUZZER.compiler}: install {_RUNTIME}", file=sys.stderr)
        return 2
    kernels = [k for k in KERNELS if args.kernel in (None, str(k))]
    if args.file:
        if len(kernels) > 1:
            parser.error("say by --kernel whose input it is (the folder it lies in)")
        harness = build(kernels[0], FOLDER / str(kernels[0]), FUZZER)
        env = {**os.environ, "FUZZ_VERBOSE": "1"}
        return subprocess.run([harness, *args.file], env=env, check=False).returncode
    jobs = min(os.cpu_count() or 1, len(kernels))
    each = max(1, args.seconds * jobs // len(kernels))
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for kernel, status, said in pool.map(lambda k: fuzz(k, each), kernels):
            runs, speed = (
                figure(said, n) for n in ("number_of_executed_units", "average_exec_per_sec")
            )
            print(
                f"{kernel}: {runs} inputs in {each} s, {speed}/s: {'FOUND' if status else 'clean'}"
            )
            if status:
                failed = 1
                print("\n".join(said.splitlines()[-60:]))
    return failed


if __name__ == "__main__":
    sys.exit(main())
