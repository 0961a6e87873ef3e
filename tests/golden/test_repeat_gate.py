"""What twenty runs are worth, without running them."""

import math

import pytest

from streamcache.gate.goldens import Entry, Golden, Provenance
from tests.golden.repeat_gate import Run, Timing, acceptable, shown, summary

NAME = "tests/bench/test_cpu.py::test_speed[fast]"
GOLDEN = Golden(
    Provenance("", "", "", 5),
    {},
    {},
    {},
    {NAME: Entry(log_ratios=[-1.0] * 5, baselines_s=[1.0] * 5, candidates_s=[0.4] * 5)},
)


def run(busy: bool, ratio: float = -1.0, exit_status: int = 0) -> Run:
    timings = {NAME: Timing(ratio, 0.01, 2.0)}
    return Run("", busy, exit_status, "PASS", 60.0, timings, {}, [])


@pytest.mark.parametrize(
    ("statuses", "fine"),
    [([0] * 20, True), ([0, 75], True), ([75, 0, 75], False), ([0, 1], False), ([0, 4], False)],
)
def test_one_red_run_is_forgiven_and_no_failure(statuses: list[int], fine: bool) -> None:
    assert acceptable([run(False, exit_status=status) for status in statuses]) is fine


def test_summary_holds_quiet_and_busy_apart() -> None:
    runs = [run(False, -1.0), run(True, -0.8), run(False, -1.0), run(True, -0.6)]
    quiet, busy, both = summary(runs, GOLDEN)
    assert [row["runs"] for row in (quiet, busy, both)] == ["quiet (2)", "busy (2)", "all (4)"]
    assert quiet["loss"] == pytest.approx(0) and quiet["sigma"] == 0
    assert busy["loss"] == pytest.approx(0.3)
    assert busy["sigma"] == pytest.approx(0.2 / math.sqrt(2))
    assert both["loss"] == pytest.approx(0.15)
    assert both["baseline"] == pytest.approx(math.log(2))


def test_a_run_is_a_line() -> None:
    assert shown(0, run(True)).split()[:5] == ["1", "busy", "exit", "0", "PASS"]
