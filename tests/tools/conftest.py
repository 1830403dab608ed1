# SPDX-License-Identifier: GPL-2.0-only
"""The command line in this process."""

import pytest
from click.testing import CliRunner
from virtmm.tools import cli
from virtmm.tools.commands import replay


@pytest.fixture
def virtmm():
    """Return a function that runs the command in this process: arguments -> click's result."""

    def run(*args, env=None):
        return CliRunner().invoke(cli.main, [str(a) for a in args], env=env, prog_name="virtmm")

    return run


@pytest.fixture
def no_work(monkeypatch):
    """Make replaying and compiling fail the test."""

    def work(*args, **kw):
        raise AssertionError("work was begun")

    monkeypatch.setattr(replay, "run_replay", work)
    monkeypatch.setattr(replay, "replay_all", work)
    monkeypatch.setattr("virtmm.kbuild.load_core", work)
