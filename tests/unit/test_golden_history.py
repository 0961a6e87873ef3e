"""A history of runs: what is kept, what has changed in it, and what other tools read."""

import json
import math
import random
from pathlib import Path

import msgspec
import pytest

from streamcache.gate import history
from streamcache.gate.__main__ import main
from streamcache.gate.history import HistoryError, Line, encoded, lines, read, series, trend
from streamcache.gate.samples import Process
from tests.goldens import HERE, NAME, sample

NOISE = 0.008  # between processes, as measured on a CPU


def runs(logs: list[float], seed: int = 0) -> list[Line]:
    """A run a commit, with the noise that processes have."""
    source = random.Random(seed)
    return [
        Line(
            f"2026-01-01T{i:04}",
            f"commit{i}",
            NAME,
            {"device": "toy"},
            log + source.gauss(0, NOISE),
        )
        for i, log in enumerate(logs)
    ]


def values(logs: list[float], seed: int = 0) -> list[float]:
    ((_, points),) = series(runs(logs, seed)).items()
    return [point.value for point in points]


def test_a_line_has_the_figures_of_a_benchmark_and_where_they_were_taken() -> None:
    (line,) = lines(Process(HERE, [sample()], "2026-01-31"), "c0ffee")
    assert (line.name, line.commit, line.date) == (NAME, "c0ffee", "2026-01-31")
    assert line.machine == {"device": "toy", "cpu": "abacus"} and line.n_pairs == 10
    assert line.log_ratio == pytest.approx(-1.0, abs=1e-3) and line.metrics == {"ppl": 20.0}
    assert line.baseline_s == pytest.approx(0.1)


def test_a_history_grows_by_lines_and_one_cut_off_at_the_end_is_left_out(tmp_path: Path) -> None:
    path, found = tmp_path / "history.jsonl", runs([0.0, 0.1])
    path.write_bytes(encoded(found[:1]) + encoded(found[1:])[:20])
    assert read(path) == found[:1]
    path.write_bytes(b"{}\n")
    with pytest.raises(HistoryError, match="line 1"):
        read(path)
    with pytest.raises(HistoryError, match="No such file"):
        read(tmp_path / "none")


def test_only_figures_of_one_machine_form_a_series() -> None:
    found = runs([0.0] * 3)
    other = [msgspec.structs.replace(line, machine={"device": "other"}) for line in found]
    assert sorted(len(points) for points in series([*found, *other]).values()) == [3, 3]


def test_a_drift_of_a_third_of_a_percent_a_run_is_found() -> None:
    pytest.importorskip("otava")
    found = trend(values([0.003 * i for i in range(60)]))
    assert found.steps == [] and found.drift == pytest.approx(0.003, rel=0.2)


@pytest.mark.parametrize("at", [20, 30, 45])
def test_a_step_of_four_percent_is_found_at_its_commit(at: int) -> None:
    pytest.importorskip("otava")
    found = trend(values([0.04 * (i >= at) for i in range(60)]))
    assert found.steps == [at] and found.drift == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_history_without_a_change_has_none(seed: int) -> None:
    pytest.importorskip("otava")
    assert trend(values([0.0] * 60, seed)) == history.Trend([], 0.0)


def test_few_runs_and_equal_ones_have_no_trend() -> None:
    assert trend([1.0, 2.0, 3.0]) == trend([1.0] * 60) == history.Trend([], 0.0)


def test_the_report_names_the_commits_between_which_something_changed(tmp_path: Path) -> None:
    pytest.importorskip("otava")
    found = runs([0.04 * (i >= 20) for i in range(60)])
    (line,) = history.report(found)
    assert "between commit19 and commit20" in line and "step of +4" in line and NAME in line
    page = history.page(found)
    assert "<polyline" in page and "between commit19 and commit20" in page


def test_what_other_tools_read() -> None:
    found = runs([0.0, 0.0])
    last = math.exp(found[-1].log_ratio or 0.0)
    (entry,) = json.loads(history.exported(found, "github"))
    assert entry == {
        "name": f"{NAME} {history.SPEED}",
        "unit": history.SPEED,
        "value": pytest.approx(last),
    }
    measures = json.loads(history.exported(found, "bencher"))
    assert measures == {NAME: {history.SPEED: {"value": pytest.approx(last)}}}
    rows = history.exported(found, "otava").splitlines()
    assert len(rows) == 3 and rows[1].startswith("2026-01-01T0000,commit0,")


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("ERROR: ")
    path = tmp_path / "history.jsonl"
    path.write_bytes(encoded(runs([0.0] * 3)))
    assert main(["history", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "no change" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
