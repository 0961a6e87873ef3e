"""Canaries: the state of a machine, and how fast it is as a whole."""

import math

import pytest

from streamcache.gate import canaries


def test_pace_is_of_the_device_where_there_is_one() -> None:
    golden = {"host product": 1.0, "device copy": 1.0, "device product": 1.0}
    now = {"host product": 9.0, "device copy": 2.0, "device product": 2.0}
    assert canaries.paces(now, golden) == pytest.approx([math.log(2)] * 2)
    assert canaries.paces({"host product": 9.0}, {"host product": 1.0}) == [math.log(9)]


@pytest.mark.parametrize("now", [None, 0.0, -1.0, math.nan])
def test_pace_without_a_time_is_none(now: float | None) -> None:
    assert math.isnan(canaries.pace(now, 1.0))
    assert math.isnan(canaries.pace(1.0, 0.0))
    assert canaries.paces({} if now is None else {"host": now}, {"host": 1.0}) == []


def test_what_is_out_of_its_band_is_named() -> None:
    golden = {"device copy": 1.0, "host product": 1.0}
    assert canaries.out_of_band({"device copy": 1.09, "host product": 2.5}, golden, True) == ""
    off = canaries.out_of_band({"device copy": 1.2}, golden, True)
    assert off == "canary 'device copy' took 1.20 x its reference; " + (
        "canary 'host product' has no time"
    )


@pytest.mark.parametrize(
    ("operations", "product", "device", "slower"),
    [
        (1.3, 1.0, None, math.log(1.3)),
        (1.3, 1.3, None, 0.0),
        (1.3, 1.3, 1.0, math.log(1.3)),
        (1.04, 1.0, None, 0.0),
        (0.7, 1.0, None, 0.0),
    ],
)
def test_a_slower_host_is_what_a_baseline_does_not_feel(
    operations: float, product: float, device: float | None, slower: float
) -> None:
    now = {"host operations": operations, "host product": product}
    now |= {} if device is None else {"device copy": device}
    assert canaries.slower_host(now, dict.fromkeys(now, 1.0)) == pytest.approx(slower)
    assert canaries.slower_host({}, now) == canaries.slower_host(now, {}) == 0.0
