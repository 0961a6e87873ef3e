"""What a benchmark may say: each thing once, and only what a golden can hold."""

import math
import sys
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate.recorder import Clock, Recorder
from streamcache.gate.samples import Metric, Sample
from streamcache.measure.pairs import Stopwatch


@pytest.fixture
def golden() -> Recorder:
    return recorder()


def recorder() -> Recorder:
    return Recorder("a", Clock(), mock.Mock())


def test_a_name_is_recorded_once(golden: Recorder) -> None:
    golden.metric("ppl", 20.0, rel_tol=1e-3)
    golden.equal(positions=100)
    for name in ("ppl", "positions"):
        with pytest.raises(ValueError, match=f"metric '{name}' was recorded twice"):
            golden.metric(name, 20.0, rel_tol=1e-3)
        with pytest.raises(ValueError, match=f"metric '{name}' was recorded twice"):
            golden.equal(**{name: 100})
    found = golden.sample()
    assert found.metrics == {"ppl": Metric(20.0, 1e-3)} and found.equal == {"positions": 100}


def test_an_identity_field_cannot_change_within_a_benchmark(golden: Recorder) -> None:
    golden.identity(model="toy", length=3)
    golden.identity(model="toy", window=2)
    with pytest.raises(ValueError, match="model is 'toy' already, not 'other'"):
        golden.identity(model="other")
    assert golden.sample().identity == {"model": "toy", "length": 3, "window": 2}


@pytest.mark.parametrize("value", [0.5, True, np.True_, None, np.float32(1), [1], b"text"])
def test_values_that_json_cannot_hold_are_refused(value: Any, golden: Recorder) -> None:
    with pytest.raises(TypeError, match=r"^digest is .*: it must be text or a whole number"):
        golden.equal(digest=value)
    with pytest.raises(TypeError, match=r"^digest is .*: it must be text or a whole number"):
        golden.identity(digest=value)


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9).map(np.int64) | st.text())
def test_recorded_values_survive_a_round_trip_through_json(value: Any) -> None:
    golden = recorder()
    golden.equal(digest=value)
    golden.identity(what=value)
    found = msgspec.json.decode(msgspec.json.encode(golden.sample()), type=Sample)
    assert found == golden.sample() and found.equal == {"digest": value}


@pytest.mark.parametrize("rel_tol", [math.nan, math.inf, -1e-9])
def test_a_tolerance_is_a_number_and_not_below_zero(rel_tol: float, golden: Recorder) -> None:
    with pytest.raises(ValueError, match="ppl: rel_tol is"):
        golden.metric("ppl", 20.0, rel_tol=rel_tol)


@pytest.mark.parametrize("budget", [math.nan, math.inf])
def test_a_budget_is_a_number_or_none(budget: float, golden: Recorder) -> None:
    with pytest.raises(ValueError, match="ppl: max_value is"):
        golden.metric("ppl", 20.0, rel_tol=0.0, max_value=budget)


def test_a_figure_that_is_no_number_is_for_the_gate_to_judge(golden: Recorder) -> None:
    golden.metric("ppl", math.nan, rel_tol=0.0)
    assert math.isnan(golden.sample().metrics["ppl"].value)


def test_the_former_names_record_the_same() -> None:
    old, new = recorder(), recorder()
    old.exactly(positions=100)
    old.number("ppl", 20.0, drift=1e-3, at_most=21.0)
    new.equal(positions=100)
    new.metric("ppl", 20.0, rel_tol=1e-3, max_value=21.0)
    assert old.sample() == new.sample()


def test_times_measured_elsewhere_are_rounds_of_the_clock(golden: Recorder) -> None:
    benchmark, seen = mock.Mock(extra_info={}), []

    def pedantic(target: Any, *, rounds: int) -> None:
        for _ in range(rounds):
            before = golden.clock()
            target()
            seen.append(golden.clock() - before)

    benchmark.pedantic = pedantic
    pairs = [(1.0, 2.0), (3.0, 4.0)]
    golden.record(benchmark, pairs=pairs, device_pairs=[(5.0, 6.0)], wait_share=0.1)
    found = golden.sample()
    assert seen == [1.0, 3.0] and found.pairs == pairs and found.device_pairs == [(5.0, 6.0)]
    assert found.wait_share == 0.1 and not found.host_bound
    assert benchmark.extra_info == {"pairs_s": pairs, "device_pairs_s": [(5.0, 6.0)]}
    with pytest.raises(ValueError, match="recorded twice"):
        golden.record(benchmark, pairs=pairs)


@pytest.mark.parametrize(
    ("limits", "value", "allowed"),
    [
        ({"rel_tol": 0.1}, 21.9, True),
        ({"rel_tol": 0.1}, 22.1, False),
        ({"rel_tol": 0.0, "abs_tol": 0.5}, 20.4, True),
        ({"rel_tol": 0.0, "abs_tol": 0.5}, 20.6, False),
        ({"rel_tol": 0.0, "better": "lower"}, 1.0, True),
        ({"rel_tol": 0.0, "better": "lower"}, 20.1, False),
        ({"rel_tol": 0.0, "better": "higher"}, 99.0, True),
        ({"rel_tol": 0.0, "better": "higher"}, 19.9, False),
    ],
)
def test_a_tolerance_is_relative_or_absolute_and_may_be_one_sided(
    limits: dict[str, Any], value: float, allowed: bool
) -> None:
    assert Metric(20.0, **limits).allows(value) is allowed


def test_a_time_that_is_no_time_does_not_stop_the_report(golden: Recorder) -> None:
    """pytest-benchmark cannot sort NaN; the gate judges it."""
    before, benchmark = golden.clock.now, mock.Mock(extra_info={})
    benchmark.pedantic = lambda target, rounds: [target() for _ in range(rounds)]
    golden.record(benchmark, pairs=[(math.nan, 1.0), (1.0, 1.0), (-1.0, 1.0)])
    assert golden.clock.now == before + 1.0
    assert len(golden.sample().pairs) == 3 and math.isnan(golden.sample().pairs[0][0])


def test_a_block_that_takes_no_longer_than_the_clock_is_refused(golden: Recorder) -> None:
    def block() -> float:
        with Stopwatch() as watch:
            pass
        return watch.seconds

    with pytest.raises(ValueError, match="repeat its work, so that it takes at least 1 ms"):
        golden.time(mock.Mock(extra_info={}), block, block)


def test_where_other_processes_measure_too_few_pairs_do() -> None:
    many = recorder()
    few = Recorder("a", Clock(), mock.Mock(), few_pairs=True)
    assert (many.n_pairs(40), few.n_pairs(40), few.n_pairs(5)) == (40, 10, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_memory_is_what_a_block_holds_at_most(golden: Recorder) -> None:
    before = bytearray(64 << 20)
    with golden.peak_memory():
        assert len(bytearray(b"x") * (100 << 20)) == 100 << 20
    found = golden.sample().metrics["peak memory"]
    assert 95 << 20 < found.value < 140 << 20 and found.better == "lower"
    assert not found.allows(2 * found.value) and found.allows(found.value / 2)
    assert len(before)


def test_memory_of_a_device_is_read_by_its_own_functions(golden: Recorder) -> None:
    with golden.peak_memory((lambda: None, lambda: 7), name="device memory", rel_tol=0.0):
        pass
    assert golden.sample().metrics["device memory"].value == 7
