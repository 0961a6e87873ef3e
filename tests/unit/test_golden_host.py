"""What a busy host does to a measurement, and what is not held against the code for it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate import recorder as record
from streamcache.gate.judge import judge
from streamcache.gate.recorder import Clock, Recorder
from streamcache.gate.verdicts import Status, worst
from streamcache.measure import pairs as host
from streamcache.measure.pairs import Stopwatch
from tests.goldens import HERE, golden, process, sample, slowed


@pytest.fixture
def every_core_busy() -> Iterator[None]:
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(4)]
    yield
    for other in others:
        other.kill()
        other.wait()


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.skipif(not host._SCHEDSTAT.exists(), reason="the kernel does not say who waited")
def test_waiting_for_a_core_is_no_time_of_the_benchmark(every_core_busy: None) -> None:
    start = time.perf_counter()
    with Stopwatch() as watch:
        spin(0.3)
    wall = time.perf_counter() - start
    assert watch.seconds == pytest.approx(0.3, rel=0.1)
    assert wall > 1.15 * watch.seconds, "the test needs a machine that is busy"


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8))
def test_time_waited_is_never_more_than_the_wall_time(delays: list[float]) -> None:
    """Wherever another takes the core: between two looks at the clocks, too."""
    left, clock = iter(delays), {"wall": 0.0, "waited": 0.0}

    def look(name: str) -> float:
        waits = next(left)
        clock["wall"] += waits + 1e-6
        clock["waited"] += waits
        return clock[name]

    wall = SimpleNamespace(perf_counter=lambda: look("wall"))
    clocks: dict[str, Any] = {
        "time": wall,
        "run_queue_wait_s": lambda: look("waited"),
        "_other_threads_s": lambda: 0.0,
    }
    with mock.patch.multiple(host, **clocks), Stopwatch() as watch:
        look("wall")
    assert 0.9e-6 < watch.seconds < 2 + 5e-6 and 0 <= watch.wait_share < 1


def test_sleeping_counts() -> None:
    with Stopwatch() as watch:
        time.sleep(0.05)
    assert watch.seconds >= 0.05


def test_without_schedstat_no_time_was_waited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_SCHEDSTAT", tmp_path / "none")
    assert host.run_queue_wait_s() == 0.0


@pytest.mark.parametrize(("seconds", "waited"), [(0.6, 0.3), (0.4, 0.0)])
def test_the_share_that_was_waited_is_that_of_the_pairs_if_they_took_long(
    seconds: float, waited: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(Stopwatch):
        def __exit__(self, *_: object) -> None:
            self.seconds, self.wait_share = seconds, 0.3

    monkeypatch.setattr(record, "Stopwatch", Busy)
    recorder = Recorder("a", Clock(), mock.Mock())
    recorder.time(mock.MagicMock(), lambda: 1.0, lambda: 1.0)
    assert recorder.sample().wait_share == waited


# A fresh process that had to wait confirms nothing

BUSY = msgspec.structs.replace(slowed(sample(), 1.3), wait_share=0.3)


def test_a_loss_that_only_a_busy_machine_confirms_is_invalid() -> None:
    found = {v.check: v for v in judge(BUSY, golden(), HERE, process(BUSY))}
    assert found["speed"].status is Status.INVALID and "30 % of the time" in found["speed"].cause


def test_a_loss_that_an_idle_machine_confirms_fails() -> None:
    found = judge(BUSY, golden(), HERE, process(slowed(sample(), 1.3)))
    assert worst(found) is Status.FAIL


def test_an_unchanged_time_on_a_busy_machine_passes() -> None:
    quick = msgspec.structs.replace(sample(), wait_share=0.3)
    assert worst(judge(quick, golden(), HERE)) is Status.PASS


def test_the_wait_for_a_core_that_threads_of_this_process_had_counts() -> None:
    """Threads that a change leaves busy make it slower."""
    clock = {"wait": 0.0, "others": 0.0, "wall": 0.0}
    wall = SimpleNamespace(perf_counter=lambda: clock["wall"])
    clocks: dict[str, Any] = {
        "time": wall,
        "run_queue_wait_s": lambda: clock["wait"],
        "_other_threads_s": lambda: clock["others"],
    }
    with mock.patch.multiple(host, **clocks):
        with Stopwatch() as own:
            clock.update(wall=3.0, wait=2.0, others=2.0)
        with Stopwatch() as foreign:
            clock.update(wall=6.0, wait=4.0)
    assert (own.seconds, own.wait_share) == (3.0, 0.0)
    assert foreign.seconds == 1.0
