"""Fixtures of the unit tests."""

from pathlib import Path

import pytest

from streamcache import EvictionPolicy
from streamcache.cli import common, measure
from tests.shell import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMCACHE_DATA", raising=False)
    monkeypatch.setattr(common.out, "width", 160)
    monkeypatch.setattr(measure, "BASELINE", EvictionPolicy(4, 124))  # a short one is quicker
    return Run(monkeypatch, capsys)
