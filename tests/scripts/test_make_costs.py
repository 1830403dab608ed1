# SPDX-License-Identifier: GPL-2.0-only
"""
make_costs.py finds the prices that measurements were made of.

The measurements here are composed from known prices, so every subtraction is checked without the real
ones; where those are there (../shared/costs), the committed tables must come out byte for byte.
"""

import csv
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[2]
SHARED = TOP.parent / "shared" / "costs"
SCRIPT = TOP / "scripts" / "make_costs.py"


@pytest.fixture(scope="module")
def make_costs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_costs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_costs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_costs"]


# --- a machine of known prices -------------------------------------------------------------------

LOOP, CLEAR, COPY = 5.0, 300.0, 700.0
ALLOC, FREE, NONE = 1000.0, 400.0, 10.0
ZAP_FILE, READ, AROUND, REUSE, ZERO = 450.0, 2000.0, 600.0, 1400.0, 1300.0
CALL, MMAP, MERGE, MUNMAP, MADVISE = 500.0, 7000.0, 4000.0, 5500.0, 1900.0
VMA, EXIT_VMA, CALL_ANON, EXIT_ANON = 1600.0, 1500.0, 1800.0, 1000.0
FORK, EXIT, VFORK, EXEC = 21000.0, 20000.0, 17000.0, 60000.0
PAGES = 16384
UNSEEDED = 9430.0


def fault(n):
    return 3000.0 if n == 1 else 4000.0 + 400 * n


def zap(n):
    return 230.0 if n == 1 else 400 / n + 40


def free(n):
    return 800.0 if n == 1 else 1000.0 + 80 * n


def share(n):
    return 190.0 if n == 1 else 400 / n + 90


def protect(n):
    return 160.0 if n == 1 else 400 / n + 100


WP_COPY = fault(1) + COPY + 500
WP_ZERO = fault(1) + 130


def sweep_rows(arch, page_size, unseeded):
    """Yield (op, order, faults, instructions) as kernel-instructions.csv has them."""
    entries = page_size // 8
    tables, left = PAGES / entries, unseeded
    vmas = 6 if arch == "arm64" else 8.5
    base_tables = 7 if page_size == 4096 else 5
    call_base = FORK + vmas * VMA + 2 * CALL_ANON + 5 * share(1) + base_tables * ALLOC
    gone = EXIT + WP_COPY + REUSE + vmas * EXIT_VMA + 2 * EXIT_ANON + 5 * zap(1) + free(1)
    gone += base_tables * FREE
    for order in (0, *range(2, entries.bit_length())):
        n = 1 << order
        fork = PAGES * share(n) + tables * ALLOC + call_base + 3 * WP_COPY + left
        yield "touch", order, PAGES / n, PAGES / n * fault(n) + PAGES * LOOP + tables * ALLOC
        yield "retouch", order, 0, PAGES * LOOP
        yield "read_touch", order, PAGES, PAGES * (ZERO + LOOP) + tables * ALLOC
        yield "wp_reuse_after_child_exit", order, PAGES, PAGES * (REUSE + LOOP)
        yield "cow_write", order, PAGES, PAGES * (WP_COPY + LOOP)
        yield "write_after_read", order, PAGES, PAGES * (WP_ZERO + LOOP)
        yield "fork_call", order, 3, fork
        child = PAGES * zap(n) + tables * FREE + gone + 2 * left
        yield "fork_exit_wait", order, 4, fork + child
        unmap = PAGES * zap(n) + PAGES / n * free(n) + tables * FREE
        yield "munmap", order, 0, unmap + MUNMAP + left
        yield "mprotect_r", order, 0, PAGES * protect(n) * 0.5 + CALL + left
        yield "mprotect_rw", order, 0, PAGES * protect(n) * 1.5 + CALL + left


def life_rows(arch, page_size):
    """Yield (op, pages, instructions) as kernel-life.csv has them; pages 0: not per page."""
    entries = page_size // 8
    around = (64 << 10) // page_size
    vmas = 6 if arch == "arm64" else 8.5
    base_tables = 7 if page_size == 4096 else 5
    page, table = zap(1) + free(1), ALLOC / entries
    call_base = FORK + vmas * VMA + 2 * CALL_ANON + 5 * share(1) + base_tables * ALLOC
    gone = EXIT + WP_COPY + REUSE + vmas * EXIT_VMA + 2 * EXIT_ANON + 5 * zap(1) + free(1)
    gone += base_tables * FREE
    program = vmas * EXIT_VMA + READ + ZAP_FILE + fault(1) + page + base_tables * (ALLOC + FREE)
    per_table = (128 << 10) / (entries * page_size)
    call_touched = VMA + CALL_ANON + share(1) + per_table * ALLOC
    exit_touched = EXIT_VMA + EXIT_ANON + zap(1) + per_table * FREE
    exit_touched += ((64 << 10) // page_size - 1) * NONE
    yield from {
        "touch_sparse_pmd": ALLOC + fault(1),
        "touch_sparse_pmd_second": fault(1),
        "munmap_sparse_pmd": FREE + page + (entries - 1) * NONE,
        "munmap_sparse_pmd_2p": FREE + 2 * page + (entries - 2) * NONE,
        "madvise_empty": MADVISE,
        "madvise_ptempty": MADVISE + (4 << 20) / page_size * NONE,
        "clear_page": CLEAR,
        "copy_page": COPY,
        "mmap_anon_empty": MMAP,
        "mmap_anon_merge": MERGE,
        "munmap_empty": MUNMAP,
        "mmap_munmap_file_pair": MMAP + MUNMAP + 100,
        "mmap_munmap_file_pair_ext4": MMAP + MUNMAP + 300,
        "mprotect_empty": CALL,
        "mprotect_split_merge_empty": 6300.0,
        "brk_grow_empty": 8000.0,
        "brk_grow_empty_early": 3000.0,
        "fork_call_base": call_base,
        "fork_base": call_base + gone,
        "vfork_base": VFORK + EXIT,
        "vfork_exec_static": VFORK + EXIT + EXEC + program,
        "fork_call_per_vma": VMA,
        "fork_per_vma": VMA + EXIT_VMA,
        "fork_call_per_vma_touched": call_touched,
        "fork_per_vma_touched": call_touched + exit_touched,
    }.items()
    for op, instructions in {
        "file_read_fault_nofa": PAGES * (READ + LOOP + table),
        "file_read_fault_64k": PAGES * ((READ + (around - 1) * AROUND + LOOP) / around + table),
        "file_write_fault": PAGES * (5000.0 + LOOP),
        "file_write_fault_fresh": PAGES * (5200.0 + LOOP + table),
        "munmap_file_read": PAGES * (ZAP_FILE + FREE / entries) + MUNMAP,
    }.items():
        yield op, instructions, PAGES


def write_measurements(folder):
    machines = [
        (arch, release, size)
        for arch, sizes in (("arm64", (4096, 16384)), ("x86", (4096,)))
        for release in ("6.12.117", "7.3.4")
        for size in sizes
    ]
    header = "arch,kernel,page_size,op,folio_kb,faults,bytes,instructions,x\n"
    sweep, life = [header], [header]
    for arch, release, size in machines:
        start = f"{arch},{release}+deb,{size}"
        wrong = UNSEEDED if (arch, release) == ("arm64", "6.12.117") else 0.0
        for op, order, faults, value in sweep_rows(arch, size, wrong):
            kb = (size << order) >> 10 if order else 0
            sweep.append(f"{start},{op},{kb},{faults:.0f},{PAGES * size},{value!r},\n")
        for op, value, *pages in life_rows(arch, size):
            life.append(f"{start},{op},0,0,{pages[0] * size if pages else 0},{value!r},\n")
        life.append(f"{start},mmap_anon_empty@init_on_alloc=0,0,0,0,1,\n")  # another knob
    sweep.append("riscv,7.2.13,4096,touch,0,1,4096,1,\n")  # no table is made of it
    (folder / "kernel-instructions.csv").write_text("".join(sweep))
    (folder / "kernel-life.csv").write_text("".join(life))
    return machines


def read_prices(text):
    """Return (release, page size) -> (event, order) -> (instructions, source)."""
    tables = {}
    for row in csv.DictReader(io.StringIO(text)):
        order = int(row["order"]) if row["order"] else None
        table = tables.setdefault((row["release"], int(row["page_size"])), {})
        table[row["event"], order] = float(row["instructions"]), row["source"]
    return tables


@pytest.fixture(scope="module")
def composed(make_costs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    write_measurements(folder)
    return {arch: read_prices(text) for arch, text in make_costs.make_tables(folder)}


KNOWN = {
    "zero_page_fault": ZERO,
    "wp_reuse": REUSE,
    "spurious_fault": REUSE,
    "file_read_fault": READ,
    "file_around_pages": AROUND,
    "file_write_fault": 5100.0,
    "file_shared_fault": READ,
    "pt_page_alloc": ALLOC,
    "pt_page_free": FREE,
    "zap_none": NONE,
    "zap_file": ZAP_FILE,
    "fork_vma": VMA,
    "exit_vma": EXIT_VMA,
    "fork_vma_anon": CALL_ANON + EXIT_ANON,
    "fork": FORK,
    "exit": EXIT,
    "vfork": VFORK,
    "exec": EXEC,
    "mmap": MMAP,
    "mmap_merge": MERGE - MMAP,
    "mmap_file": MMAP + 200,
    "munmap": MUNMAP,
    "mremap": MERGE + MUNMAP,
    "mremap_pages": 160.0,
    "mprotect": 6300.0,
    "madvise": MADVISE,
    "brk": 5500.0,
}
KNOWN_BY_ORDER = {
    "anon_fault": fault,
    "wp_copy": lambda n: fault(n) + (WP_COPY - fault(1) - COPY) + n * COPY,
    "wp_zero": lambda n: fault(n) + WP_ZERO - fault(1),
    "zap_anon": zap,
    "anon_free": free,
    "fork_anon": share,
    "mprotect_anon": protect,
}


@pytest.mark.parametrize(
    ("arch", "release", "page_size"),
    [
        ("arm64", "6.12", 4096),
        ("arm64", "6.12", 16384),
        ("arm64", "7.3", 4096),
        ("arm64", "7.3", 16384),
        ("x86", "6.12", 4096),
        ("x86", "7.3", 4096),
    ],
)
def test_known_prices_are_found(composed, arch, release, page_size):
    prices = composed[arch][release, page_size]
    # Prices are rounded to a tenth; a folio's, from a page's, to a tenth of each page.
    slack = 0.2
    for event, known in KNOWN.items():
        assert prices[event, None][0] == pytest.approx(known, abs=slack), event
    top = (page_size // 8).bit_length() - 1
    for event, known in KNOWN_BY_ORDER.items():
        assert {o for e, o in prices if e == event} == set(range(top + 1))
        for order in range(2, top + 1):
            n = 1 << order
            unit = n if event == "anon_free" else 1
            got, source = prices[event, order]
            assert got == pytest.approx(known(n), abs=slack * unit), (event, order)
            assert "a + b n" not in source
        assert prices[event, 0][0] == pytest.approx(known(1), abs=slack)


def test_the_order_without_a_measurement_is_interpolated_and_says_so(composed):
    prices = composed["arm64"]["7.3", 4096]
    got, source = prices["anon_fault", 1]
    assert got == pytest.approx(4000 + 400 * 2, abs=0.1)
    assert source.endswith("; order 1: a + b n of orders 2 and 3")
    got, source = prices["zap_anon", 1]  # by page: the folio is on the line
    assert got == pytest.approx((400 + 40 * 2) / 2, abs=0.5)


def test_what_is_not_measured_says_simplified(composed):
    prices = composed["x86"]["6.12", 4096]
    for event, order in (
        ("wp_copy", 4),
        ("wp_zero", 4),
        ("spurious_fault", None),
        ("file_shared_fault", None),
        ("mremap", None),
        ("mremap_pages", None),
    ):
        assert prices[event, order][1].startswith("SIMPLIFIED: "), event
    assert not prices["wp_copy", 0][1].startswith("SIMPLIFIED")


def test_components_are_what_grows_with_the_page(composed):
    prices = composed["arm64"]["6.12", 4096]
    # 400 a page is once 300: cleared once.
    assert prices["component:anon_fault", 4][0] == 16 * CLEAR
    assert prices["component:wp_copy", 4][0] == 16 * (CLEAR + COPY)
    assert prices["component:pt_page_alloc", None][0] == CLEAR


# --- the real measurements -------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/costs beside the source tree")
def test_the_committed_tables_come_out_byte_for_byte(make_costs, tmp_path, capsys):
    assert make_costs.main([str(SHARED), "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("costs.csv: ") == 2
    for arch in make_costs.measured():
        made = (tmp_path / arch / "costs.csv").read_bytes()
        assert made == (TOP / "arch" / arch / "costs.csv").read_bytes(), (
            f"arch/{arch}/costs.csv is stale: run scripts/make_costs.py {SHARED}"
        )


# --- errors -----------------------------------------------------------------------------------------


def run(make_costs, folder, capsys):
    status = make_costs.main([str(folder), "-o", str(folder / "out")])
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return status, err


def test_no_measurements(make_costs, tmp_path, capsys):
    status, err = run(make_costs, tmp_path, capsys)
    assert status == 2
    assert "kernel-instructions.csv: No such file or directory; give the folder" in err


def test_measurements_of_nothing(make_costs, tmp_path, capsys):
    for name in ("kernel-instructions.csv", "kernel-life.csv"):
        (tmp_path / name).write_text(
            "arch,kernel,page_size,op,folio_kb,faults,bytes,instructions\n"
        )
    assert run(make_costs, tmp_path, capsys) == (
        2,
        f"make_costs: {tmp_path}: nothing, or one file of two, of arm64 6.12\n",
    )


@pytest.mark.parametrize(
    "text",
    ["base_vmas = ", "vmas = 6.0", "", "base_vmas = '6'", "base_vmas = 6\nunseeded_call = 5"],
)
def test_conditions_that_are_none_are_named(make_costs, tmp_path, monkeypatch, text):
    path = tmp_path / "arch" / "foo" / "measured.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    monkeypatch.setattr(make_costs, "TOP", tmp_path)
    with pytest.raises(make_costs.MakeCostsError) as e:
        make_costs.measured()
    assert str(e.value).startswith(f"{path}: ")


def test_a_broken_row_is_named(make_costs, tmp_path, capsys):
    write_measurements(tmp_path)
    path = tmp_path / "kernel-life.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = "arm64,6.12.117,many,fork_base\n"
    path.write_text("".join(lines))
    status, err = run(make_costs, tmp_path, capsys)
    assert status == 2
    assert f"{path}:3: not a row of measurements" in err


@pytest.mark.parametrize(
    ("name", "op", "message"),
    [
        ("kernel-life.csv", "brk_grow_empty,", "kernel-life.csv: no brk_grow_empty for arm64 6.12"),
        ("kernel-instructions.csv", ",munmap,", "kernel-instructions.csv: no munmap of order 0"),
    ],
)
def test_a_missing_operation_is_named(make_costs, tmp_path, capsys, name, op, message):
    write_measurements(tmp_path)
    path = tmp_path / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if op not in line))
    status, err = run(make_costs, tmp_path, capsys)
    assert status == 2
    assert message in err
    assert not (tmp_path / "out" / "arm64" / "costs.csv").exists()
