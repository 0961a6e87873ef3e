"""Goldens shown, compared and checked without a run of pytest."""

from pathlib import Path

import msgspec
import pytest

from streamcache.gate import storage
from streamcache.gate.__main__ import main
from tests.goldens import NAME, RATIOS, altered, golden


@pytest.fixture
def path(tmp_path: Path) -> Path:
    storage.write(tmp_path / "toy.json", golden())
    return tmp_path / "toy.json"


def test_show_tells_what_was_recorded_and_where(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 entries, 2026-01-31 from 5 processes at c0ffee: a first record" in out
    assert "device toy, cpu abacus" in out
    assert f"{NAME}: ppl 20, speedup 2.718 (tau 3.0 %) (model toy)" in out


def test_diff_names_what_changed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = path.with_name("other.json")
    slower = golden([r + 0.1 for r in RATIOS])
    entries = {**slower.entries, "test_new": slower.entries[NAME]}
    storage.write(other, msgspec.structs.replace(slower, entries=entries, host={"cpu": "x"}))
    assert main(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", str(path), str(other)]) == 1
    out = capsys.readouterr().out
    assert "host: cpu is 'x', not 'abacus'" in out and "+ test_new" in out
    assert "speedup 2.718 (tau 3.0 %) -> ppl 20, speedup 2.460" in out and "anchor -1.0 ->" in out


def test_check_refuses_what_cannot_judge(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0
    wild = path.with_name("wild.json")
    storage.write(wild, altered(golden(), log_ratios=[-1.1, -1.05, -1.0, -0.95, -0.9]))
    assert main(["check", str(path), str(wild)]) == 1
    out = capsys.readouterr().out
    assert "1 entries can judge" in out and "so noisy that a loss of 27 % would pass" in out


def test_a_file_that_is_no_golden_is_one_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("[]")
    assert main(["show", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
