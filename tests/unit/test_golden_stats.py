"""The statistics of the gate."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate import stats
from streamcache.measure.student import student_t

NUMBERS = st.floats(-10, 10)
SEVERAL = st.lists(NUMBERS, min_size=5, max_size=20)


@pytest.mark.parametrize(
    ("share", "degrees", "quantile"),
    [
        *((0.95, 3, 2.3534), (0.95, 4, 2.1318), (0.95, 5, 2.0150), (0.95, 7, 1.8946)),
        *((0.95, 9, 1.8331), (0.95, 19, 1.7291), (0.95, 99, 1.6604)),
        *((0.975, 9, 2.2622), (0.975, 31, 2.0395)),
    ],
)
def test_quantiles_of_students_t_are_those_of_the_tables(
    share: float, degrees: int, quantile: float
) -> None:
    assert student_t(share, degrees) == pytest.approx(quantile, rel=5e-3)


def test_spread_is_that_between_processes() -> None:
    assert stats.spread([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert math.isnan(stats.spread([1.0]))


@given(SEVERAL)
def test_the_order_of_values_does_not_matter(values: list[float]) -> None:
    shuffled = sorted(values)
    assert stats.error_of_median(values) == pytest.approx(stats.error_of_median(shuffled))
    assert stats.threshold(values, 0.03) == pytest.approx(stats.threshold(shuffled, 0.03))


def test_error_of_the_median_is_that_of_normal_values() -> None:
    values = statistics.NormalDist(0, 1).samples(20_000, seed=1)
    assert stats.error_of_median(values) == pytest.approx(1.2533 / math.sqrt(20_000), rel=0.03)


def test_error_of_the_median_does_not_see_an_outlier() -> None:
    calm = [0.01 * i for i in range(12)]
    assert stats.error_of_median([*calm[:-1], 1e6]) == stats.error_of_median(calm)


def test_error_of_the_median_of_too_few_is_none() -> None:
    assert math.isnan(stats.error_of_median([1.0] * (stats.MIN_PAIRS - 1)))


@given(SEVERAL, st.floats(0.001, 1))
def test_threshold_is_the_least_or_three_deviations(values: list[float], least: float) -> None:
    assert stats.threshold(values, least) == max(least, 3 * statistics.stdev(values))


@given(SEVERAL, NUMBERS, st.floats(0, 1), st.floats(0, 1))
def test_loss_grows_with_the_time_and_its_bound_with_the_error(
    values: list[float], now: float, error: float, more: float
) -> None:
    loss, later = stats.Loss(now, error, values), stats.Loss(now + more, error, values)
    assert later.lower_bound >= loss.lower_bound and later.upper_bound >= loss.upper_bound
    assert stats.Loss(now, error + more, values).margin >= loss.margin >= 0
    assert loss.lower_bound <= loss.estimate <= loss.upper_bound


def test_bound_of_a_loss_covers_the_truth_19_times_of_20() -> None:
    """One-sided: where nothing was lost, the bound exceeds 0 at most once in twenty."""
    noise = statistics.NormalDist(0, 1).samples(6 * 2000, seed=2)
    groups = [noise[i : i + 6] for i in range(0, len(noise), 6)]
    false = sum(stats.Loss(now, 0.0, golden).lower_bound > 0 for now, *golden in groups)
    assert 0.03 < false / len(groups) < 0.07


@given(SEVERAL, NUMBERS)
def test_an_error_smaller_than_that_between_processes_adds_nothing(
    values: list[float], now: float
) -> None:
    between = stats.spread(values)
    assert stats.Loss(now, between, values).margin == stats.Loss(now, 0.0, values).margin


def test_percent_is_of_the_time_and_shows_what_is_beyond_any() -> None:
    assert stats.percent(math.log(1.5)) == pytest.approx(50)
    assert stats.percent(1e308) > 1e300
