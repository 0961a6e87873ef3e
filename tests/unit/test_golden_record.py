"""What a benchmark may say: each thing once, and only what a golden can hold."""

import math
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate.recorder import Clock, Recorder
from streamcache.gate.samples import Number, Sample


@pytest.fixture
def golden() -> Recorder:
    return recorder()


def recorder() -> Recorder:
    return Recorder("a", Clock(), mock.Mock())


def test_a_name_is_said_once(golden: Recorder) -> None:
    golden.number("ppl", 20.0, drift=1e-3)
    golden.exactly(positions=100)
    for name in ("ppl", "positions"):
        with pytest.raises(ValueError, match=f"{name} is said twice"):
            golden.number(name, 20.0, drift=1e-3)
        with pytest.raises(ValueError, match=f"{name} is said twice"):
            golden.exactly(**{name: 100})
    found = golden.sample()
    assert found.numbers == {"ppl": Number(20.0, 1e-3)} and found.exact == {"positions": 100}


def test_what_is_measured_does_not_become_something_else(golden: Recorder) -> None:
    golden.identity(model="toy", length=3)
    golden.identity(model="toy", window=2)
    with pytest.raises(ValueError, match="model is 'toy' already, not 'other'"):
        golden.identity(model="other")
    assert golden.sample().identity == {"model": "toy", "length": 3, "window": 2}


@pytest.mark.parametrize("value", [0.5, True, np.True_, None, np.float32(1), [1], b"text"])
def test_what_cannot_be_recorded_is_refused_where_it_is_said(value: Any, golden: Recorder) -> None:
    with pytest.raises(TypeError, match=r"^digest is .*: it must be text or a whole number"):
        golden.exactly(digest=value)
    with pytest.raises(TypeError, match=r"^digest is .*: it must be text or a whole number"):
        golden.identity(digest=value)


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9).map(np.int64) | st.text())
def test_what_is_taken_is_read_as_it_was_said(value: Any) -> None:
    golden = recorder()
    golden.exactly(digest=value)
    golden.identity(what=value)
    found = msgspec.json.decode(msgspec.json.encode(golden.sample()), type=Sample)
    assert found == golden.sample() and found.exact == {"digest": value}


@pytest.mark.parametrize("drift", [math.nan, math.inf, -1e-9])
def test_a_drift_is_a_number_and_not_below_zero(drift: float, golden: Recorder) -> None:
    with pytest.raises(ValueError, match="ppl may drift by"):
        golden.number("ppl", 20.0, drift=drift)


@pytest.mark.parametrize("budget", [math.nan, math.inf])
def test_a_budget_is_a_number_or_none(budget: float, golden: Recorder) -> None:
    with pytest.raises(ValueError, match="ppl has a budget of"):
        golden.number("ppl", 20.0, drift=0.0, at_most=budget)


def test_a_figure_that_is_no_number_is_for_the_gate_to_judge(golden: Recorder) -> None:
    golden.number("ppl", math.nan, drift=0.0)
    assert math.isnan(golden.sample().numbers["ppl"].value)
