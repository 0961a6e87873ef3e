"""Golden files of version 1 become ones of version 2, with the same figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from streamcache.gate import storage
from streamcache.gate.convert import converted, identity, main
from streamcache.gate.goldens import Golden, GoldenError, PublishedRange
from streamcache.gate.samples import Metric

NAME = "test_toy.py::test_speed"
POLICY = "EvictionPolicy(n_sink=4, window_size=124, cache_slack=None, max_drop=3, compress_every=1)"
TIMED = {
    "identity": {"model": "toy", "policy": POLICY, "beside": POLICY, "n_tokens": 9},
    "host_bound": False,
    "log_ratios": [-1.01, -1.005, -1.0, -0.995, -0.99],
    "baselines_s": [0.1, 0.1, 0.1, 0.1, 0.1],
    "contestants_s": [0.04, 0.04, 0.04, 0.04, 0.04],
    "anchor": -0.98,
    "numbers": {"ppl": {"value": 20.0, "drift": 1e-3, "at_most": 20.5}},
    "exact": {"positions": 100},
}
PUBLISHED = {
    "identity": {"model": "toy", "policy": "(4, 124)"},
    "band": {"low": 2.0, "high": 3.0},
    "numbers": {"ppl": {"value": 20.0, "drift": 0.05, "at_most": None}},
}
MADE = {"reason": "first", "date": "2026-01-31", "commit": "c0ffee", "processes": 5, "context": {}}


def old(entry: dict[str, Any], processes: int = 5) -> dict[str, Any]:
    return {
        "schema": "streamcache-golden",
        "version": 1,
        "protocol": 1,
        "provenance": {**MADE, "processes": processes},
        "earlier": [{**MADE, "reason": "before"}],
        "machine": {"device": "toy"},
        "host": {"cpu": "abacus"},
        "canaries": {"host product": 1e-3},
        "entries": {NAME: entry},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy.json"


def convert(path: Path, golden: dict[str, Any]) -> Golden:
    path.write_text(json.dumps(golden))
    assert main([str(path)]) == 0
    return storage.read(path)


def test_figures_anchors_and_provenance_are_what_they_were(path: Path) -> None:
    golden = convert(path, old(TIMED))
    entry = golden.entries[NAME]
    assert entry.log_ratios == TIMED["log_ratios"] and entry.anchor == TIMED["anchor"]
    assert entry.baselines_s == TIMED["baselines_s"]
    assert entry.candidates_s == TIMED["contestants_s"]
    assert entry.metrics == {"ppl": Metric(20.0, rel_tol=1e-3, max_value=20.5)}
    assert entry.equal == TIMED["exact"] and not entry.host_bound and not entry.published
    before = old(TIMED)
    assert golden.machine == before["machine"] and golden.host == before["host"]
    assert golden.canaries == before["canaries"]
    assert (golden.provenance.reason, golden.provenance.commit) == ("first", "c0ffee")
    assert [p.reason for p in golden.earlier] == ["before"]


def test_an_identity_has_the_fields_that_are_set() -> None:
    assert identity({"mode": "ours"}) == {"cache": "rerotating"}
    assert identity({"model": "toy", "policy": POLICY, "beside": POLICY, "n_tokens": 9}) == {
        "model": "toy",
        "n_sink": 4,
        "window_size": 124,
        "max_drop": 3,
        "beside_n_sink": 4,
        "beside_window_size": 124,
        "beside_max_drop": 3,
        "n_tokens": 9,
    }
    assert identity({"policy": "(4, 124)"}) == {"n_sink": 4, "window_size": 124}
    assert identity({"beside": "a copy", "policy": "mine"}) == {
        "beside": "a copy",
        "policy": "mine",
    }


def test_published_entries_say_so(path: Path) -> None:
    entry = convert(path, old(PUBLISHED, processes=0)).entries[NAME]
    assert entry.published and entry.published_range == PublishedRange(2.0, 3.0)


def test_converting_again_changes_nothing(path: Path) -> None:
    convert(path, old(TIMED))
    data = path.read_bytes()
    assert main([str(path)]) == 0 and path.read_bytes() == data


def test_another_version_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GoldenError, match="version 7 cannot be converted"):
        converted({**old(TIMED), "version": 7})
    path.write_text("[]")
    assert main([str(path)]) == 2 and "not a golden file" in capsys.readouterr().err
    broken: dict[str, Any]
    for broken in ({}, {"provenance": []}, {"provenance": {"processes": 1}, "entries": {"x": 1}}):
        path.write_text(json.dumps({"schema": "streamcache-golden", "version": 1, **broken}))
        assert main([str(path)]) == 2
        assert f"{path}: it is no valid golden of version 1" in capsys.readouterr().err
    assert main([]) == 2
