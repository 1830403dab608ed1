# SPDX-License-Identifier: GPL-2.0-only
"""
Run all benchmarks, and put their figures into Documentation/benchmarks.md and the stored baseline.

``python -m scripts.benchmarks`` takes some minutes; run it on a machine that does nothing else. The
figures are of that machine, so nothing compares the document with them. ``make bench
COMPARE=baseline`` sets a run beside tests/benchmarks/baseline.json, which this writes too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtmm.tools.predict.real import RealError, require

from scripts import bench_real
from scripts.document import TOP, replace_section, section, table

OUTPUT = TOP / "Documentation" / "benchmarks.md"
BASELINE = TOP / "tests" / "benchmarks" / "baseline.json"
#: Of make bench-real.
MIB, REPEAT = 64, 15


def run() -> dict[str, Any]:
    """Run tests/benchmarks and return pytest-benchmark's JSON, with the summary that conftest.py adds."""
    with tempfile.TemporaryDirectory(prefix="virtmm-benchmarks-") as folder:
        target = Path(folder) / "run.json"
        command = [sys.executable, "-m", "pytest", "-q", "tests/benchmarks", "--benchmark-only"]
        command += [f"--benchmark-json={target}"]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nbenchmarks: the run failed; nothing was written")
        found: dict[str, Any] = json.loads(target.read_text())
        return found


def baseline(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a run is kept: enough to be compared with, nothing of the machine but its kind."""
    cpu = found["machine_info"]["cpu"]
    benchmarks = [
        {
            **{name: one[name] for name in ("group", "name", "fullname", "params", "param")},
            "extra_info": _rounded(one["extra_info"]),
            "stats": _rounded({k: v for k, v in one["stats"].items() if k != "data"}),
        }
        for one in found["benchmarks"]
    ]
    kind = {name: cpu.get(name) for name in ("arch", "brand_raw")}
    return {
        "machine_info": {"cpu": kind, "python_version": found["machine_info"]["python_version"]},
        "datetime": found["datetime"],
        "version": found["version"],
        "benchmarks": benchmarks,
    }


def lines(kept: Mapping[str, Any]) -> str:
    """Return a stored run as JSON with a benchmark a line, so that a diff shows which changed."""
    head = {name: value for name, value in kept.items() if name != "benchmarks"}
    rows = ",\n".join(json.dumps(one) for one in kept["benchmarks"])
    return f'{json.dumps(head)[:-1]}, "benchmarks": [\n{rows}\n]}}\n'


def _rounded(value: Any) -> Any:
    """Return the value with four digits of each fraction."""
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def summary(found: Mapping[str, Any]) -> str:
    """Return the tables of the summary."""
    parts = []
    for name, rows in found["summary"].items():
        columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
        cells = [[row, *(figures.get(c, "") for c in columns)] for row, figures in rows.items()]
        parts.append(f"**{name}**\n\n{table(('', *columns), cells)}")
    return "\n".join(parts)


def real(force: Sequence[int] = ()) -> str:
    """Return the table of make bench-real, measured on this machine; ``force`` as in compare()."""
    arch, kernel = bench_real.choose()
    config = bench_real.configure(arch, kernel, MIB)
    rows, missing = bench_real.compare(config, MIB, REPEAT, force)
    release = ".".join(platform.release().split(".")[:2])
    lines = [f"Linux {release} and {arch} {kernel}, medians of {REPEAT}.\n"]
    lines.append(table(bench_real.HEADER, map(bench_real.cells, rows)))
    lines += [f"{kib}K on the real kernel: {why}.  " for kib, why in missing.items()]
    page_kib = 1 << int(config["PAGE_SHIFT"]) >> 10
    lines += [f"- {line}" for line in bench_real.verdicts(rows, page_kib)]
    return "\n".join(lines).rstrip() + "\n"


def machine(found: Mapping[str, Any]) -> str:
    """Return what the figures are of."""
    info = found["machine_info"]
    return (
        f"{info['cpu']['brand_raw']}, Python {info['python_version']}, {found['datetime'][:10]}.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Run, write, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--sizes", type=bench_real.sizes, default=[], help="as bench_real's")
    args = parser.parse_args(argv)
    document = OUTPUT.read_text(encoding="utf-8")
    for name in ("machine", "summary", "real"):
        section(document, name, OUTPUT)  # before minutes go by
    try:
        if args.sizes:
            require([dict.fromkeys(args.sizes, "madvise")])
        found = run()
        bench_real.pin()
        texts = {"machine": machine(found), "summary": summary(found), "real": real(args.sizes)}
    except RealError as e:
        print(f"benchmarks: {e}", file=sys.stderr)
        return 2
    for name, text in texts.items():
        document = replace_section(document, name, text, OUTPUT)
    OUTPUT.write_text(document, encoding="utf-8")
    BASELINE.write_text(lines(baseline(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
