# SPDX-License-Identifier: GPL-2.0-only
"""The Makefile's targets, run by make; the environment that the tests run in is the one it finds."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from virtmm.arch import names

from virtmm import topdir
from virtmm.kconfig import defconfigs, fragment_names, load, resolve
from virtmm.new_arch import new_arch, parse_shape


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make with O= a new folder: (status, output, errors)."""

    def run(*goals, env=None):
        command = [
            "make",
            "-C",
            str(topdir()),
            "--no-print-directory",
            *variables(tmp_path),
            *goals,
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "MAKEFLAGS": "", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def variables(out):
    """Return make's variables: no set-up, this Python, output below ``out``."""
    return ["SETUP=:", f"VENV={sys.prefix}", f"O={out / 'o'}"]


def errors(stderr):
    """Return what a failing target printed, without make's own line."""
    return [line for line in stderr.splitlines() if not line.startswith("make")]


def test_help_is_the_default_and_lists_what_exists(make):
    status, text, _ = make()
    assert status == 0
    assert make("help")[1] == text
    targets = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    for name in defconfigs("arm64"):
        assert f"{name}_defconfig" in targets
    for name in fragment_names("arm64"):
        assert f"{name}.config" in targets
    assert {"run", "test", "bench", "check", "menuconfig", "core", "mrproper"} <= set(targets)
    assert "anonfolio_basic_defconfig" not in make("help", "ARCH=x86")[1]
    assert f"(of: {' '.join(names())})" in text


def test_defconfig_fragments_and_core(make, tmp_path):
    status, _, err = make("anonfolio_basic_defconfig", "64k.config", "core", "-j4")
    assert (status, err) == (0, "")
    config = load(tmp_path / "o" / ".config", "arm64")
    assert config == resolve("arm64", "anonfolio_basic", ["64k"])


def test_every_defconfig(make, tmp_path):
    for arch in names():
        for goal in ["defconfig", *(f"{name}_defconfig" for name in defconfigs(arch))]:
            assert make(goal, f"ARCH={arch}")[0] == 0
            want = resolve(arch, goal.removesuffix("_defconfig"))
            assert load(tmp_path / "o" / ".config", arch) == want


def test_same_configuration_again_leaves_the_file_alone(make, tmp_path):
    make("defconfig")
    path = tmp_path / "o" / ".config"
    os.utime(path, (1, 1))
    assert "No change" in make("defconfig")[1]
    assert path.stat().st_mtime == 1
    make("baseline_16k_defconfig")
    assert (tmp_path / "o" / ".config.old").read_text() == resolve("arm64").text


def test_fragment_keeps_what_was_set_before(make, tmp_path):
    path = tmp_path / "o" / ".config"
    make("defconfig")
    path.write_text(resolve("arm64", sets=["MEMORY_MB=64", "LARGE_ANON_FOLIO=y"]).text)
    status, _, err = make("16k.config")
    assert (status, err) == (0, "")
    config = load(path, "arm64")
    assert (config["MEMORY_MB"], config["PAGE_SHIFT"]) == (64, 14)
    assert config["LARGE_ANON_FOLIO_THP_ORDER_MAX"] == 7


def test_fragment_without_config(make):
    status, _, err = make("16k.config")
    assert status == 2
    (line,) = errors(err)
    assert "run make defconfig before 16k.config" in line


def test_savedefconfig_is_what_a_defconfig_file_says(make, tmp_path):
    assert make("anonfolio_basic_defconfig", "savedefconfig")[0] == 0
    file = topdir() / "arch" / "arm64" / "configs" / "anonfolio_basic_defconfig"
    assert (tmp_path / "o" / "defconfig").read_text() == file.read_text()


def test_olddefconfig_warns_about_what_it_cannot_keep(make, tmp_path):
    make("defconfig")
    path = tmp_path / "o" / ".config"
    text = path.read_text().replace("CONFIG_MEMORY_MB=16384", "CONFIG_MEMORY_MB=1")
    text = text.replace("CONFIG_ANON_POLICY_BASE=y", "CONFIG_ANON_POLICY_V1=y")
    lines = [line for line in text.splitlines() if "DEBUG_VM" not in line]
    path.write_text("\n".join([*lines, "CONFIG_OLD_THING=y", ""]))
    assert make("listnewconfig")[1].splitlines() == [
        "CONFIG_ANON_POLICY_BASE=y",
        "# CONFIG_DEBUG_VM is not set",
    ]
    status, _, err = make("olddefconfig")
    assert status == 0
    assert len(err.splitlines()) == 3
    for part in (
        "unknown symbol OLD_THING",
        "wanted MEMORY_MB=1, got 16384",
        "wanted ANON_POLICY_V1=y, got n: unmet dependency LARGE_ANON_FOLIO (is n)",
    ):
        assert part in err
    assert load(path, "arm64") == resolve("arm64")
    assert make("listnewconfig")[1] == ""


def test_olddefconfig_without_config_starts_from_the_defconfig(make, tmp_path):
    assert make("olddefconfig", "ARCH=x86")[0] == 0
    assert load(tmp_path / "o" / ".config", "x86") == resolve("x86")


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        (["nope_defconfig"], "arm64 has no defconfig 'nope'; choose one of: baseline_4k, "),
        (["defconfig", "nope.config"], "arm64 has no fragment 'nope'; choose one of: 16k, 64k, "),
        (["defconfig", "ARCH=vax"], "unknown architecture 'vax'; choose one of: alpha, arm64"),
        (["core"], "no such file; run make defconfig first"),
        (["savedefconfig"], "no such file; run make defconfig before savedefconfig"),
        (["menuconfig"], "menuconfig: needs a terminal"),
    ],
)
def test_one_clear_line_and_status_2(goals, message, make):
    status, _, err = make(*goals)
    assert status == 2
    (line,) = errors(err)
    assert message in line


def test_core_names_what_is_missing(make, tmp_path):
    make("defconfig")
    status, _, err = make("core", env={"CC": "no-such-cc", "VIRTMM_CACHE": str(tmp_path / "c")})
    assert status == 2
    assert errors(err) == ["no C compiler 'no-such-cc'; install gcc and libc6-dev, or set CC"]


def test_unwritable_output(make, tmp_path):
    (tmp_path / "o").touch()
    status, _, err = make("defconfig")
    assert status == 2
    (line,) = errors(err)
    assert str(tmp_path / "o") in line


def test_new_arch_wants_a_name_and_no_terminal(make, tmp_path):
    """The architecture of the other targets is there already: it is not what is to be written."""
    shape = ("PAGE=8K", "LEVELS=10,10,10", f"IN={tmp_path}")
    status, _, err = make("new-arch", *shape)
    assert status == 2
    (line,) = errors(err)
    assert "NAME: is not given, and there is no terminal to ask at" in line
    assert make("new-arch", "ARCH=foo", *shape)[::2] == (0, "")
    status, _, err = make("new-arch", "ARCH=foo", *shape)
    assert (status, errors(err)) == (
        2,
        [f"virtmm: {tmp_path}/foo: is there already; choose another name"],
    )


def test_an_architecture_outside_the_tree(make, tmp_path):
    folder = new_arch("foo", parse_shape("8K", "10,10,10", "32"), tmp_path)
    (folder / "configs" / "small.config").write_text("CONFIG_MEMORY_MB=64\n")
    path, which = tmp_path / "o" / ".config", f"ARCH_DIR={folder}"
    targets = [
        line.split()[0] for line in make("help", which)[1].splitlines() if line.startswith("  ")
    ]
    assert {"linux-6.12_defconfig", "baseline_8k_defconfig", "small.config"} <= set(targets)
    assert "anonfolio_basic_defconfig" not in targets
    for name in ("defconfig", *(f"{n}_defconfig" for n in defconfigs("foo", folder))):
        assert make(name, which)[::2] == (0, "")
        assert load(path, "foo", folder) == resolve("foo", name, arch_dir=folder)
    status, text, err = make("small.config", "core", "savedefconfig", "olddefconfig", which)
    assert (status, err) == (0, "")
    assert " for foo in " in text
    assert load(path, "foo", folder)["MEMORY_MB"] == 64
    assert "CONFIG_MEMORY_MB=64\n" in (tmp_path / "o" / "defconfig").read_text()
    assert make("listnewconfig", which)[1] == ""
    status, text, err = make("run", which, "SET=256kB=always")
    assert (status, err) == (0, "")
    assert {"baseline_8k", "linux-6.12"} <= set(text.split())


def test_run_takes_the_architecture(make):
    status, text, _ = make("run", "ARCH=alpha")
    assert status == 0
    assert "baseline_8k" in text.split()


@pytest.mark.parametrize("goal", ["defconfig", "core", "run", "arch-check"])
def test_a_folder_that_is_no_architecture(make, tmp_path, goal):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / ".config").touch()
    status, text, err = make(goal, f"ARCH_DIR={tmp_path}/nope")
    assert (status, text) == (2, "")
    (line,) = errors(err)
    assert f"{tmp_path}/nope: no" in line


@pytest.mark.parametrize("variable", ["ARCH_DIR", "O"])
def test_a_folder_with_a_blank(make, tmp_path, variable):
    status, text, err = make("defconfig", f"{variable}={tmp_path}/a b")
    assert (status, text) == (2, "")
    (line,) = err.splitlines()
    assert f"*** {variable}={tmp_path}/a b: has a blank, which make takes for the end" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("old", "status"), [("", 0), ("young=Attr.bit(5)", 2)])
def test_arch_check_tells_a_wrong_port(make, tmp_path, old, status):
    """The status of make is 2 whatever a command's was; make itself says which."""
    folder = new_arch("foo", parse_shape("8K", "10,10,10", "32"), tmp_path)
    text = (folder / "arch.py").read_text().replace("to be filled in: ", "")
    (folder / "arch.py").write_text(text.replace(old, "young=Attr.bit(9)") if old else text)
    got, out, err = make("arch-check", f"ARCH_DIR={folder}")
    assert got == status
    assert ("FAILED" in out, "Error 1" in err) == (bool(old), bool(old))


def test_guiconfig_without_tk(make, tmp_path):
    (tmp_path / "tkinter.py").write_text("raise ImportError('no Tk here')\n")
    status, _, err = make("guiconfig", env={"PYTHONPATH": str(tmp_path)})
    assert status == 2
    assert errors(err) == [
        "guiconfig: this Python has no Tk; install python3-tk, or use make menuconfig"
    ]


def test_guiconfig_without_display(make, tmp_path):
    """A Tk that finds no display, whether or not this machine has Tk."""
    (tmp_path / "tkinter.py").write_text(
        "class TclError(Exception): pass\ndef Tk(): raise TclError('no display name')\n"
    )
    status, _, err = make("guiconfig", env={"PYTHONPATH": str(tmp_path)})
    assert status == 2
    assert errors(err) == ["guiconfig: no display name; use make menuconfig in a terminal"]


# menuconfig, in a terminal


class Terminal:
    """make menuconfig in a pseudo terminal."""

    def __init__(self, *arguments):
        self.screen = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", LINES="30", COLUMNS="100", MAKEFLAGS="")
            os.execvp("make", ["make", "-C", str(topdir()), *arguments])  # noqa: S606

    def wait_for(self, text, seconds=20):
        """Read until the text is on the screen; what was before it is forgotten."""
        end = time.monotonic() + seconds
        while text.encode() not in self.screen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            if not ready:
                os.killpg(self.pid, signal.SIGKILL)  # it would go on drawing, for ever
                os.close(self.fd)
                pytest.fail(f"no {text!r} in {self.screen!r}")
            self.screen += os.read(self.fd, 65536)
        seen, _, self.screen = self.screen.partition(text.encode())
        return seen

    def keys(self, text):
        os.write(self.fd, text.encode())

    def finish(self):
        """Read to the end; return the exit status."""
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass  # the other side is closed
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_menuconfig_switches_large_anon_folio_on_for_arm64(tmp_path):
    terminal = Terminal(*variables(tmp_path), "menuconfig")
    terminal.wait_for("Kernel hacking")
    terminal.keys("jj\n")  # Memory management
    terminal.wait_for("[ ] Large folios for anonymous memory")
    terminal.keys("jj ")
    terminal.wait_for("v1 series")
    terminal.keys("q")
    terminal.wait_for("Save configuration?")
    terminal.keys("y")
    assert terminal.finish() == 0
    config = load(tmp_path / "o" / ".config", "arm64")
    assert config.hash == resolve("arm64", "anonfolio_basic").hash


def test_menuconfig_does_not_offer_it_for_x86(tmp_path):
    terminal = Terminal(*variables(tmp_path), "ARCH=x86", "menuconfig")
    terminal.wait_for("Kernel hacking")
    terminal.keys("j\n")
    above = terminal.wait_for("The v1 series, patch by patch")
    assert b"Transparent huge pages" in above
    assert b"Large folios" not in above
    terminal.keys("q")
    terminal.wait_for("Save configuration?")
    terminal.keys("n")
    assert terminal.finish() == 0
    assert not (tmp_path / "o" / ".config").exists()


def test_menuconfig_lists_overridden_values(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / ".config").write_text("CONFIG_ANON_POLICY_V1=y\n")
    terminal = Terminal(*variables(tmp_path), "menuconfig")
    terminal.wait_for("warning: ")
    terminal.wait_for("wanted ANON_POLICY_V1=y, got n: unmet dependency LARGE_ANON_FOLIO (is n)")
    terminal.wait_for("Kernel hacking")
    terminal.keys("q")
    terminal.wait_for("Save configuration?")
    terminal.keys("n")
    assert terminal.finish() == 0


def test_bench_saves_and_compares(make):
    """By pytest-benchmark, which finds a saved run by its name."""
    plain, both = (make("-n", "bench", *v)[1] for v in ((), ("SAVE=new", "COMPARE=old")))
    assert "tests/benchmarks" in plain
    assert "--benchmark-save" not in plain and "--benchmark-compare" not in plain
    assert "--benchmark-save='new'" in both
    assert "--benchmark-compare='*_old'" in both


def test_bench_compares_with_the_stored_run(make):
    assert (topdir() / "tests" / "benchmarks" / "baseline.json").is_file()
    text = make("-n", "bench", "COMPARE=baseline")[1]
    assert "--benchmark-compare='tests/benchmarks/baseline.json'" in text


def test_ci_runs_each_benchmark_once(make):
    assert "tests/benchmarks --benchmark-disable" in make("-n", "bench-once")[1]
    assert "bench-once" in (topdir() / ".ci" / "run").read_text()


def test_ci_checks_every_architecture(tmp_path):
    """Its goals, with a make that does nothing."""
    (tmp_path / "make").write_text("#!/bin/sh\n")
    (tmp_path / "make").chmod(0o755)
    text = (topdir() / ".ci" / "run").read_text()
    done = subprocess.run(
        ["bash", "-euc", text[text.index("goals=") :]],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=topdir(),
        capture_output=True,
        text=True,
        check=True,
    )
    goals = done.stdout.splitlines()
    assert {f"+ make arch-check ARCH={name}" for name in names()} < set(goals)
    assert {"+ make test", "+ make check"} < set(goals)


def test_bench_real_keeps_its_figures(make):
    plain, kept = (make("-n", "bench-real", *v)[1] for v in ((), ("JSON=a.json",)))
    assert "scripts.bench_real" in plain and "--json" not in plain
    assert "--json 'a.json'" in kept
