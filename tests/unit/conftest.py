"""Fixtures of the unit tests."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from streamcache import EvictionPolicy
from streamcache.cli import console, summarize
from streamcache.measure import workload
from tests import made
from tests.shell import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMCACHE_DATA", raising=False)
    monkeypatch.setattr(console.out, "width", 160)
    monkeypatch.setattr(workload, "BASELINE", EvictionPolicy(4, 124))  # a short one is quicker
    return Run(monkeypatch, capsys)


@pytest.fixture(scope="session")
def summarised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of records of every kind, after `streamcache summarize`."""
    folder = tmp_path_factory.mktemp("summarised")
    made.everything(folder)
    ran = CliRunner().invoke(summarize.summarize, ["--output-dir", str(folder)])
    assert ran.exit_code == 0, ran.output
    return folder
