# SPDX-License-Identifier: GPL-2.0-only
"""
Predict and measure a set of programs on this machine (make predict-check); as root, nothing else running.

Writes the table to Documentation/predict-check.md. Programs that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from virtmm.tools.predict.check import Row, predict_check, prediction_notes
from virtmm.tools.predict.real import RealError, require
from virtmm.tools.predict.show import render
from virtmm.tools.trace.schema import TraceError

from virtmm.kconfig import host_arch, resolve

TOP = Path(__file__).resolve().parent.parent
SETTINGS = ("none", "16", "64", "128", "16,32,64", "2048")
KERNEL = "linux-6.18"


class Program(NamedTuple):
    """A program of the set: kind, files to make before, command in their folder."""

    kind: str
    prepare: Callable[[], None]
    command: tuple[str, ...]


def nothing() -> None:
    """Make no files."""


def words() -> None:
    """Write 400,000 lines of numbers in no order."""
    rng = random.Random(1)  # noqa: S311
    Path("words").write_text("\n".join(str(rng.random()) for _ in range(400_000)))


def c_files() -> None:
    """Write forty small C files and a makefile."""
    rule = "%.o: %.c\n\tgcc -O2 -c $< -o /dev/null\n"
    names = " ".join(f"f{i}.o" for i in range(40))
    Path("Makefile").write_text(f"all: {names}\n{rule}")
    for i in range(40):
        body = f'int f{i}(int a) {{ char b[99]; memset(b, a, 99); return printf("%s", b) + {i}; }}'
        Path(f"f{i}.c").write_text(f"#include <stdio.h>\n#include <string.h>\n{body}\n")


def java_class() -> None:
    """Compile a Java program."""
    Path("H.java").write_text(
        "import java.util.*; public class H { public static void main(String[] a) {"
        " Map<String, Integer> m = new HashMap<>(); for (int i = 0; i < 300000; i++)"
        ' m.merge("k" + i % 5000, 1, Integer::sum); System.out.println(m.size()); } }'
    )
    os.system("javac H.java")  # noqa: S605


def threads() -> None:
    """Compile a program of four threads that allocate and free."""
    Path("threads.c").write_text(
        "#include <pthread.h>\n#include <stdlib.h>\n#include <string.h>\n"
        "static void *work(void *a) { for (int i = 0; i < 200; i++) {"
        " char *p = malloc(100000 + i * 1000); memset(p, i, 100000); if (i % 3) free(p); }"
        " return a; }\n"
        "int main(void) { pthread_t t[4]; for (int i = 0; i < 4; i++)"
        " pthread_create(t + i, 0, work, 0); for (int i = 0; i < 4; i++) pthread_join(t[i], 0);"
        " return 0; }\n"
    )
    os.system("gcc -O1 -pthread threads.c -o threads")  # noqa: S605


SQL = (
    "create table t(a integer primary key, b text);"
    "with recursive c(x) as (select 1 union all select x + 1 from c where x < 200000)"
    " insert into t select x, hex(x * 7919) from c;"
    "create index i on t(b); select count(*) from t where b like '3%';"
)
FORKS = (
    "import os\nx = [i * 7 for i in range(200000)]\nfor k in range(6):\n"
    "    p = os.fork()\n    if not p:\n        s = sum(x[k::6])\n        os._exit(0)\n"
    "    os.waitpid(p, 0)\n"
)
PROGRAMS = (
    Program("compiler", c_files, ("gcc", "-O2", "-c", "f1.c", "-o", "/dev/null")),
    Program("compilers, forking", c_files, ("make", "-j2", "all")),
    Program("sort", words, ("sort", "words")),
    Program("sort, two threads", words, ("sort", "--parallel=2", "-S", "20M", "words")),
    Program("compress, two threads", words, ("xz", "-k", "-c", "-1", "-T2", "words")),
    Program("compress", words, ("zstd", "-q", "-k", "-c", "-9", "words")),
    Program("database", nothing, ("sqlite3", ":memory:", SQL)),
    Program("interpreter", nothing, ("perl", "-e", "$h{$_} = $_ * 2 for 1..200000;")),
    Program("interpreter, forking", nothing, (sys.executable, "-c", FORKS)),
    Program("interpreter", nothing, (sys.executable, "-c", "x = [str(i) for i in range(300000)]")),
    Program("version control", nothing, ("git", "-C", str(TOP), "log", "--stat", "-200")),
    Program("JavaScript", nothing, ("node", "-e", "m={};for(i=0;i<3e5;i++)m['k'+i%5000]=i")),
    Program("JVM", java_class, ("java", "-XX:+UseSerialGC", "-Xmx256m", "-cp", ".", "H")),
    Program("four threads", threads, ("./threads",)),
)


def short(program: Program) -> str:
    """Return a name for the table."""
    name = Path(program.command[0]).name
    return f"{name} ({program.kind})"


def main(argv: list[str] | None = None) -> int:
    """Run all, write the document, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="real runs of each setting")
    parser.add_argument("--only", metavar="WORD", help="programs whose name has the word")
    default = TOP / "Documentation" / "predict-check.md"
    parser.add_argument("-o", "--output", type=Path, default=default)
    args = parser.parse_args(argv)
    rows: list[Row] = []
    missing = []
    try:
        require([{16: "always", 32: "always", 64: "always", 128: "always", 2048: "always"}])
        config = resolve(host_arch(), KERNEL)
        for program in PROGRAMS:
            if args.only and args.only not in short(program):
                continue
            with tempfile.TemporaryDirectory(prefix="virtmm-programs-") as folder:
                os.chdir(folder)
                program.prepare()
                if not shutil.which(program.command[0]):
                    missing.append(short(program))
                    continue
                print(f"{short(program)} …", file=sys.stderr, flush=True)
                found = predict_check(program.command, SETTINGS, config, KERNEL, repeat=args.repeat)
                rows += [row.named(short(program)) for row in found]
                os.chdir(TOP)
    except (RealError, TraceError) as e:
        print(f"predict-check: {e}", file=sys.stderr)
        return 2
    notes = prediction_notes(KERNEL, args.repeat)
    notes += [f"Not installed here: {', '.join(missing)}."] if missing else []
    text = args.output.read_text() if args.output.exists() else "<!-- table -->\n<!-- end -->\n"
    head, _, rest = text.partition("<!-- table -->")
    _, _, tail = rest.partition("<!-- end -->")
    table = render(rows, "md", notes)
    args.output.write_text(f"{head}<!-- table -->\n{table}<!-- end -->{tail}")
    print(render(rows, "text", notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
