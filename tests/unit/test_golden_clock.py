"""The clock of benchmarks without the fixture `golden`: waits for a core do not count."""

import os
import subprocess
import sys
import threading
import time

import pytest

from streamcache.gate.plugin.clock import WaitlessClock
from streamcache.measure import pairs


def worked(seconds: float) -> None:
    """Keep the thread busy for so long by its own time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_waiting_for_a_core_does_not_count() -> None:
    if not hasattr(os, "sched_setaffinity") or not pairs._SCHEDSTAT.exists():
        pytest.skip("the system does not report waits")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        clock = WaitlessClock()
        time.sleep(0.05)
        wall = time.perf_counter()
        start = clock()
        worked(0.1)
        found = clock() - start
        wall = time.perf_counter() - wall
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, allowed)
    assert wall > 0.13, "the core was shared"
    assert 0.1 <= found < 0.1 + (wall - 0.1) / 2, "less than half of the waits are left"


def test_no_round_is_shorter_than_its_work() -> None:
    """A wait between two readings of the system was once taken off the round after it."""
    waits = iter([0.0, 0.0, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5])  # in the third it waits again
    clock = WaitlessClock()
    clock._file = -1
    clock._wait_s = lambda: next(waits)  # type: ignore[method-assign]
    start, middle, end = clock(), clock(), clock()
    assert middle - start == pytest.approx(-0.5, abs=0.05), "all that was waited so far, at once"
    assert end - middle == pytest.approx(0.0, abs=0.05), "and nothing in the next round"


def test_sleeping_and_what_other_threads_of_the_process_take_count() -> None:
    clock = WaitlessClock()
    start = clock()
    time.sleep(0.02)
    assert clock() - start >= 0.02
    done = threading.Event()

    def until_done() -> None:
        while not done.is_set():
            pass

    other = threading.Thread(target=until_done)
    other.start()
    try:
        wall = time.perf_counter()  # around the other: a thread may be switched at any time
        start = clock()
        worked(0.03)
        found = clock() - start
        wall = time.perf_counter() - wall
    finally:
        done.set()
        other.join()
    assert found > 0.03
    assert found <= wall + 1e-3


def test_where_waits_are_not_known_it_is_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr("os.open", refused)
    clock = WaitlessClock()
    assert clock() == pytest.approx(time.perf_counter(), abs=0.05)
