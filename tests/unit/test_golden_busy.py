"""Where a device waits for its host, the time that it is at work is judged, not what it takes."""

import math
from collections.abc import Callable, Iterator

import msgspec
import pytest

from streamcache.gate.environment import Environment
from streamcache.gate.goldens import Golden, GoldenError, PublishedRange
from streamcache.gate.judge import judge
from streamcache.gate.recorder import Clock, Recorder
from streamcache.gate.samples import Sample
from streamcache.gate.updates import updated
from streamcache.gate.verdicts import Status
from tests.goldens import (
    HERE,
    NAME,
    PROVENANCE,
    altered,
    golden,
    process,
    processes,
    sample,
    slowed,
    with_pairs,
)


class Benchmark:
    """What is used of pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}

    def pedantic(self, target: Callable[[], None], *, rounds: int) -> None:
        for _ in range(rounds):
            target()


class Toy:
    def sample(self) -> Environment:
        return HERE


def says(seconds: list[float], turns: list[str], name: str) -> Callable[[], float]:
    left: Iterator[float] = iter(seconds)

    def block() -> float:
        turns.append(name)
        return next(left)

    return block


def busy(factor: float = 1.0, slower_host: float = 1.0) -> Sample:
    """Its device is at work for a tenth of the baseline's time; the rest is its host's."""
    one = sample(host_bound=False)
    at_work = [(0.01 * factor, b) for _, b in one.pairs]
    return msgspec.structs.replace(slowed(one, slower_host), device_pairs=at_work)


def recorded() -> Golden:
    return golden(host_bound=False, device_pairs=busy().device_pairs)


def test_the_clock_shows_times_and_the_sample_keeps_both() -> None:
    turns: list[str] = []
    benchmark, clock = Benchmark(), Clock()
    recorder = Recorder(NAME, clock, Toy())
    own = says([9.0, *range(1, 11)], turns, "own")
    beside = says([9.0] + [20.0] * 10, turns, "beside")
    at_work = says([9.0] + [0.5] * 5, turns, "own at work")
    beside_at_work = says([9.0] + [10.0] * 5, turns, "beside at work")
    recorder.time(benchmark, own, beside, pairs=10, busy=(at_work, beside_at_work))
    found = recorder.sample()
    assert found.pairs == [(float(a), 20.0) for a in range(1, 11)]
    assert found.device_pairs == [(0.5, 10.0)] * 5
    assert clock.now == sum(range(1, 11)), "the rate of pytest-benchmark is that of a user"
    assert benchmark.extra_info == {"pairs_s": found.pairs, "device_pairs_s": found.device_pairs}
    assert turns[:6] == ["own", "beside", "own", "beside", "beside", "own"]
    assert turns[22:28] == [
        f"{w} at work" for w in ("own", "beside", "own", "beside", "beside", "own")
    ]
    assert not found.host_bound


def test_times_of_a_host_are_host_bound() -> None:
    recorder = Recorder(NAME, Clock(), Toy())
    recorder.time(Benchmark(), lambda: 1.0, lambda: 2.0, pairs=4)
    assert recorder.sample().host_bound and recorder.sample().device_pairs == []


@pytest.mark.parametrize(
    ("factor", "host", "status"),
    [(1.0, 1.0, Status.PASS), (1.0, 2.0, Status.PASS), (1.05, 1.0, Status.FAIL)],
)
def test_a_host_that_takes_twice_as_long_is_no_loss_and_more_work_is(
    factor: float, host: float, status: Status
) -> None:
    now = busy(factor, host)
    verdicts = judge(now, recorded(), HERE, process(now))
    assert next(v for v in verdicts if v.check == "speed").status is status


def published() -> Golden:
    """By somebody who timed a host."""
    nothing: dict[str, list[float]] = {"log_ratios": [], "baselines_s": [], "candidates_s": []}
    band = altered(
        golden(host_bound=False), published_range=PublishedRange(2.5, 3.0), anchor=None, **nothing
    )
    made = msgspec.structs.replace(PROVENANCE, processes=0)
    return msgspec.structs.replace(band, provenance=made)


def spoken(now: Sample, was: Golden, again: Sample | None = None) -> dict[str, Status]:
    verdicts = judge(now, was, HERE, process(again) if again else None)
    return {v.check: v.status for v in verdicts}


@pytest.mark.parametrize(
    ("now", "check", "status"),
    [
        (busy(), "speed", Status.PASS),
        (busy(factor=2.0), "speed", Status.PASS),
        (busy(slower_host=2.0), "speed", Status.FAIL),
        (with_pairs(busy(), [(math.nan, 1.0)] * 10), "times", Status.FAIL),
        (msgspec.structs.replace(busy(), device_pairs=[(0.0, 0.0)] * 5), "speed", Status.PASS),
    ],
)
def test_a_published_speedup_is_of_times(now: Sample, check: str, status: Status) -> None:
    assert spoken(now, published(), now)[check] is status


def test_a_contended_host_confirms_no_failure_of_its_own_times() -> None:
    slow = busy(slower_host=2.0)
    crowded = msgspec.structs.replace(slow, wait_share=0.3)
    assert spoken(slow, published(), crowded)["speed"] is Status.INVALID


def test_a_contended_host_confirms_a_failure_of_device_times() -> None:
    slow = busy(factor=1.05)
    crowded = msgspec.structs.replace(slow, wait_share=0.3)
    assert spoken(slow, recorded(), crowded)["speed"] is Status.FAIL


def test_host_times_and_device_times_do_not_compare() -> None:
    assert spoken(sample(), recorded()) == {"identity": Status.INVALID}
    assert spoken(busy(), golden()) == {"identity": Status.INVALID}


def test_host_times_and_device_times_are_not_recorded_together() -> None:
    mixed = [*processes(), process(busy())]
    with pytest.raises(GoldenError, match="did not measure the same"):
        updated(None, mixed, PROVENANCE)


def test_device_times_start_an_anchor_of_their_own() -> None:
    work = [process(busy())] * 5
    now, _ = updated(golden(), work, PROVENANCE, reset_anchors=True)
    assert now.entries[NAME].anchor == pytest.approx(work[0].samples[0].median_log_ratio)
