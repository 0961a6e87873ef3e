"""Where a device waits for its host, the time that it is at work is judged, not what it takes."""

from collections.abc import Callable, Iterator

import msgspec
import pytest

from streamcache.golden import gate
from streamcache.golden.gate import Status
from streamcache.golden.record import Clock, Recorder
from streamcache.golden.samples import Environment, Sample
from streamcache.golden.store import Band, Entry, Golden
from tests.goldens import HERE, NAME, altered, golden, process, sample, slowed


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
    return msgspec.structs.replace(slowed(one, slower_host), busy=at_work)


def recorded() -> Golden:
    return golden(host_bound=False, busy=busy().busy)


def test_the_clock_shows_times_and_the_sample_keeps_both() -> None:
    turns: list[str] = []
    benchmark, clock = Benchmark(), Clock()
    recorder = Recorder(NAME, clock, Toy())
    own = says([9.0, *range(1, 11)], turns, "own")
    beside = says([9.0] + [20.0] * 10, turns, "beside")
    at_work = says([9.0] + [0.5] * 10, turns, "own at work")
    beside_at_work = says([9.0] + [10.0] * 10, turns, "beside at work")
    recorder.time(benchmark, own, beside, pairs=10, busy=(at_work, beside_at_work))
    found = recorder.sample()
    assert found.pairs == [(float(a), 20.0) for a in range(1, 11)]
    assert found.busy == [(0.5, 10.0)] * 10
    assert clock.now == sum(range(1, 11)), "the rate of pytest-benchmark is that of a user"
    assert benchmark.extra_info == {"pairs_s": found.pairs, "busy_s": found.busy}
    assert turns[:6] == ["own", "beside", "own", "beside", "beside", "own"]
    assert turns[22:28] == [
        f"{w} at work" for w in ("own", "beside", "own", "beside", "beside", "own")
    ]
    assert not found.host_bound


def test_times_of_a_host_are_host_bound() -> None:
    recorder = Recorder(NAME, Clock(), Toy())
    recorder.time(Benchmark(), lambda: 1.0, lambda: 2.0, pairs=4)
    assert recorder.sample().host_bound and recorder.sample().busy == []


@pytest.mark.parametrize(
    ("factor", "host", "status"),
    [(1.0, 1.0, Status.PASS), (1.0, 2.0, Status.PASS), (1.05, 1.0, Status.FAIL)],
)
def test_a_host_that_takes_twice_as_long_is_no_loss_and_more_work_is(
    factor: float, host: float, status: Status
) -> None:
    now = busy(factor, host)
    verdicts = gate.judge(now, recorded(), HERE, process(now))
    assert next(v for v in verdicts if v.check == "speed").status is status


def test_a_published_speedup_is_of_times() -> None:
    entry: Entry = altered(golden(), band=Band(2.5, 3.0), log_ratios=[]).entries[NAME]
    assert gate.banded(busy(), entry).status is Status.PASS
    assert gate.banded(busy(slower_host=2.0), entry).status is Status.FAIL
