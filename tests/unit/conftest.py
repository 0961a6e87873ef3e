"""Fixtures of the unit tests."""

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from streamcache.cli import commands, console
from tests import made
from tests.shell import Run, load_two_layers, measure_little

# Tiny models: a second thread of a matrix product costs more than it saves.
torch.set_num_threads(1)
# In a worker of pytest-xdist (`-n 2`): else the pytest runs inside of tests measure nothing, since
# pytest-benchmark switches itself off where it finds this.
os.environ.pop("PYTEST_XDIST_WORKER", None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMCACHE_DATA", raising=False)
    monkeypatch.setattr(console.out, "width", 160)
    measure_little(monkeypatch.setattr)
    return Run(monkeypatch, capsys)


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    load_two_layers(monkeypatch.setattr)


@pytest.fixture(scope="session")
def summarised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of records of every kind, after `streamcache summarize`."""
    folder = tmp_path_factory.mktemp("summarised")
    made.everything(folder)
    ran = CliRunner().invoke(commands, ["summarize", "--output-dir", str(folder)])
    assert ran.exit_code == 0, ran.output
    return folder
