"""EvictionPolicy: what it accepts, what it refuses, what it warns of, and sizing it by a budget."""

import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcache.policy import EvictionPolicy, PolicyError, PolicyWarning, warn_beyond

GOOD: dict[str, Any] = {
    "n_sink": 4,
    "window_size": 16,
    "cache_slack": 2,
    "max_drop": 3,
    "compress_every": 5,
}
MINIMUM = {"n_sink": 0, "window_size": 1, "cache_slack": 0, "max_drop": 1, "compress_every": 1}
OPTIONAL = {"cache_slack": "None (= compress_every - 1)", "max_drop": "None (no limit)"}
BAD = [
    (name, value)
    for name, minimum in MINIMUM.items()
    for value in (minimum - 1, -7, float(minimum), 2.5, True, False, "4", [4], None)
    if not (value is None and name in OPTIONAL)
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name_with_the_allowed_range(name: str, value: Any) -> None:
    with pytest.raises(PolicyError) as error:
        EvictionPolicy(**{**GOOD, name: value})
    message = str(error.value)
    assert message.startswith(f"{name} must be an integer >= {MINIMUM[name]}")
    assert message.endswith(f"got {value!r}")
    assert OPTIONAL.get(name, "integer") in message


@pytest.mark.parametrize("name", MINIMUM)
def test_the_smallest_allowed_value(name: str) -> None:
    policy = EvictionPolicy(**{**GOOD, name: MINIMUM[name]})
    assert getattr(policy, name) == MINIMUM[name]


@pytest.mark.parametrize("name", OPTIONAL)
def test_none_where_it_means_something(name: str) -> None:
    assert getattr(EvictionPolicy(**{**GOOD, name: None}), name) is None


def test_policy_errors_are_value_errors() -> None:
    assert issubclass(PolicyError, ValueError)


@pytest.mark.parametrize(
    ("cache_slack", "compress_every", "slack"), [(None, 1, 0), (None, 8, 7), (0, 8, 0), (5, 8, 5)]
)
def test_slack_defaults_to_one_less_than_the_schedule(
    cache_slack: int | None, compress_every: int, slack: int
) -> None:
    policy = EvictionPolicy(4, 16, cache_slack, compress_every=compress_every)
    assert (policy.floor, policy.slack, policy.capacity) == (20, slack, 20 + slack)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compress_every": 128}, "compress_every=128"),
        ({"compress_every": 512, "cache_slack": 8}, "compress_every=512"),
        ({"cache_slack": 33}, "cache_slack=33"),
    ],
)
def test_warnings_name_the_setting(arguments: dict[str, int], message: str) -> None:
    with pytest.warns(PolicyWarning, match=message) as caught:
        EvictionPolicy(4, 16, **arguments)
    assert [w.filename for w in caught] == [__file__], "the warning must point at the caller"


@pytest.mark.parametrize(
    "arguments", [{"compress_every": 127}, {"cache_slack": 32}, {"compress_every": 64}, {}]
)
def test_no_warning_up_to_the_limits(arguments: dict[str, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EvictionPolicy(4, 16, **arguments)


def test_warn_beyond_the_trained_context() -> None:
    policy = EvictionPolicy(4, 16, cache_slack=2)  # capacity 22
    with pytest.warns(PolicyWarning, match="capacity 22 .* trained context of 21 tokens"):
        warn_beyond(policy, 21)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_beyond(policy, 22)
        warn_beyond(policy, None)


@settings(deadline=None)
@given(
    n_sink=st.integers(0, 64),
    window_size=st.integers(1, 2048),
    cache_slack=st.none() | st.integers(0, 32),
    max_drop=st.none() | st.integers(1, 64),
    compress_every=st.integers(1, 127),
    overlap=st.integers(0, 64),
    refresh=st.integers(0, 64),
)
def test_a_budget_is_met_exactly(
    n_sink: int,
    window_size: int,
    cache_slack: int | None,
    max_drop: int | None,
    compress_every: int,
    overlap: int,
    refresh: int,
) -> None:
    expected = EvictionPolicy(n_sink, window_size, cache_slack, max_drop, compress_every)
    total = expected.capacity + overlap + refresh
    rest = (cache_slack, max_drop, compress_every, overlap, refresh)
    assert EvictionPolicy.from_budget(total, n_sink, *rest) == expected
    with pytest.raises(PolicyError, match="total"):
        EvictionPolicy.from_budget(total - window_size, n_sink, *rest)


def test_the_budget_of_the_paper() -> None:
    policy = EvictionPolicy.from_budget(2048, 32, cache_slack=16, max_drop=32, compress_every=64)
    assert (policy.window_size, policy.capacity) == (2000, 2048)
    assert EvictionPolicy.from_budget(2048, 4) == EvictionPolicy(4, 2044)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 4}, r"total=4 leaves no window after n_sink=4.*at least 5"),
        ({"total": 39, "overlap": 20, "refresh": 15}, r"overlap=20, refresh=15.*at least 40"),
        ({"total": 35, "compress_every": 32}, r"slack=31.*at least 36"),
        ({"total": 0}, "total must be an integer >= 1"),
        ({"total": 20.0}, "total must be an integer >= 1"),
        ({"overlap": -1}, "overlap must be an integer >= 0"),
        ({"refresh": -1}, "refresh must be an integer >= 0"),
        ({"refresh": True}, "refresh must be an integer >= 0"),
        ({"compress_every": 0}, "compress_every must be an integer >= 1"),
        ({"n_sink": -1}, "n_sink must be an integer >= 0"),
        ({"n_sink": "4"}, "n_sink must be an integer >= 0"),
        ({"cache_slack": -1}, "cache_slack must be an integer >= 0"),
        ({"cache_slack": 1.5}, "cache_slack must be an integer >= 0"),
        ({"max_drop": 0}, "max_drop must be an integer >= 1"),
    ],
)
def test_budget_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        EvictionPolicy.from_budget(**{"total": 64, "n_sink": 4, **arguments})
