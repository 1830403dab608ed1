# SPDX-License-Identifier: GPL-2.0-only
"""Setting up the environment: once, never half, and with a clear line when it fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from virtmm.scripts import setup_venv
from virtmm.scripts.setup_venv import STAMP, UNFINISHED, SetupError, is_current, main


@pytest.fixture
def venv(tmp_path):
    return tmp_path / "env"


@pytest.fixture
def steps(monkeypatch):
    """What would have been run; the first step makes a folder that looks like an environment."""
    ran = []

    def run(command, what, verbose):
        ran.append(what.split(" (")[0])
        if command[1:3] == ["-m", "venv"]:
            folder = Path(command[3])
            assert (folder / UNFINISHED).exists()
            (folder / "bin").mkdir()
            (folder / "bin" / "python").symlink_to(sys.executable)
            (folder / "pyvenv.cfg").touch()

    monkeypatch.setattr(setup_venv, "run", run)
    return ran


def setup(venv, *arguments):
    return main(["--venv", str(venv), *arguments])


def test_second_time_does_nothing(venv, steps):
    assert setup(venv) == 0
    assert steps == ["python3 -m venv", "pip install"]
    assert not (venv / UNFINISHED).exists()
    assert setup(venv) == 0
    assert len(steps) == 2


def test_test_tools_are_added_and_stay(venv, steps):
    setup(venv)
    setup(venv, "--extras", "test")
    assert steps[2:] == ["pip install"]
    setup(venv)
    setup(venv, "--extras", "test")
    assert len(steps) == 3


def test_changed_setup_cfg_updates(venv, steps, monkeypatch, tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    for name in ("setup.cfg", "pyproject.toml"):
        (top / name).write_text("a")
    monkeypatch.setattr(setup_venv, "TOP", top)
    setup(venv)
    (top / "setup.cfg").write_text("b")
    setup(venv)
    assert steps == ["python3 -m venv", "pip install", "pip install"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SetupError("pip install failed: x")])
@pytest.mark.parametrize("step", ["python3 -m venv", "pip install"])
def test_nothing_is_left_half_made(venv, steps, monkeypatch, capsys, failure, step):
    run = setup_venv.run

    def failing(command, what, verbose):
        if what.startswith(step):
            raise failure
        run(command, what, verbose)

    monkeypatch.setattr(setup_venv, "run", failing)
    assert setup(venv) == (130 if failure is KeyboardInterrupt else 2)
    assert not venv.exists()


def test_killed_while_it_worked(venv, steps):
    """A kill cannot be caught: the mark stays, and the next run starts anew."""
    setup(venv)
    (venv / UNFINISHED).touch()
    (venv / "half").touch()
    assert not is_current(venv, "")
    assert setup(venv) == 0
    assert not (venv / "half").exists()


def test_failed_update_keeps_the_environment_and_is_tried_again(venv, steps, monkeypatch):
    setup(venv)
    run = setup_venv.run

    def failing(*_):
        raise SetupError("pip install failed: no network")

    monkeypatch.setattr(setup_venv, "run", failing)
    assert setup(venv, "--extras", "test") == 2
    assert (venv / "bin" / "python").exists()
    assert not (venv / STAMP).exists()
    monkeypatch.setattr(setup_venv, "run", run)
    assert setup(venv) == 0
    assert is_current(venv, "")


def test_folder_that_is_no_environment_is_left_alone(venv, steps, capsys):
    venv.mkdir()
    (venv / "precious").touch()
    assert setup(venv) == 2
    assert (
        capsys.readouterr().err
        == f"{venv}: exists and is no virtual environment; name another by VENV=\n"
    )
    assert (venv / "precious").exists()
    assert steps == []


def test_unwritable_place(tmp_path, steps, capsys):
    (tmp_path / "file").touch()
    assert setup(tmp_path / "file" / "env") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Not a directory" in line


def test_a_failing_command_is_one_line():
    script = "print('some noise'); print('ERROR: No matching distribution'); exit(1)"
    with pytest.raises(SetupError) as e:
        setup_venv.run([sys.executable, "-c", script], "pip install", verbose=False)
    assert str(e.value) == "pip install failed: ERROR: No matching distribution (V=1 shows all)"
    with pytest.raises(SetupError, match="exit status 3"):
        setup_venv.run([sys.executable, "-c", "exit(3)"], "it", verbose=False)


def test_runs_on_a_bare_python():
    """-I and -S: neither the environment's packages nor the source tree are on the path."""
    command = [sys.executable, "-I", "-S", setup_venv.__file__, "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
