"""What a busy host does to a measurement, and what is not held against the code for it."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from streamcache.golden import gate, host, store
from streamcache.golden.gate import Status
from streamcache.golden.host import Stopwatch
from streamcache.golden.samples import Environment
from tests.goldens import HERE, golden, process, sample, slowed, with_pairs


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


def test_sleeping_is() -> None:
    with Stopwatch() as watch:
        time.sleep(0.05)
    assert watch.seconds >= 0.05


def test_where_the_kernel_says_nothing_it_is_the_wall_clock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_SCHEDSTAT", tmp_path / "none")
    assert host.waited() == 0.0


# A fresh process that had to wait confirms nothing

BUSY = msgspec.structs.replace(slowed(sample(), 1.3), waited=0.3)


def test_a_loss_that_only_a_busy_machine_confirms_is_invalid() -> None:
    found = {v.check: v for v in gate.judge(BUSY, golden(), HERE, process(BUSY))}
    assert found["speed"].status is Status.INVALID and "30 % of the time" in found["speed"].cause


def test_one_that_is_confirmed_in_peace_is_a_failure() -> None:
    found = gate.judge(BUSY, golden(), HERE, process(slowed(sample(), 1.3)))
    assert gate.worst(found) is Status.FAIL


def test_what_is_as_fast_as_ever_on_a_busy_machine_passes() -> None:
    quick = msgspec.structs.replace(sample(), waited=0.3)
    assert gate.worst(gate.judge(quick, golden(), HERE)) is Status.PASS


# Noise is measured again, by a fresh process

NOISY = with_pairs(sample(), [(0.02, 0.1), (0.07, 0.1)] * 5)


def on_speed(again: object) -> Status:
    found = gate.judge(NOISY, golden(), HERE, again)  # type: ignore[arg-type]
    return next(v.status for v in found if v.check == "speed")


def test_noise_is_measured_again_and_a_pass_clears_it() -> None:
    assert gate.needs_confirmation(NOISY, golden(), HERE)
    assert on_speed(None) is Status.INCONCLUSIVE
    assert on_speed(process(sample())) is Status.PASS
    assert on_speed(process(NOISY)) is Status.INCONCLUSIVE


def test_a_loss_that_only_the_fresh_process_shows_is_a_suspicion() -> None:
    assert on_speed(process(slowed(sample(), 1.2))) is Status.SUSPECT


# A host-bound contestant beside a baseline that a GPU is bound by

CANARIES = {"host operations": 1e-3, "device copy": 1e-3}
ON_GPU = msgspec.structs.replace(golden(), canaries=CANARIES)


def lost(slowdown: float, host_slowdown: float, host_bound: bool = True) -> Status:
    now = {**CANARIES, "host operations": 1e-3 * host_slowdown}
    place: Environment = msgspec.structs.replace(HERE, canaries=now)
    slow = msgspec.structs.replace(slowed(sample(), slowdown), host_bound=host_bound)
    entries = {
        name: msgspec.structs.replace(entry, host_bound=host_bound)
        for name, entry in ON_GPU.entries.items()
    }
    held = msgspec.structs.replace(ON_GPU, entries=entries)
    found = gate.judge(slow, held, place, process(slow, place))
    return next(v.status for v in found if v.check == "speed")


def test_a_slower_host_excuses_as_much_as_it_explains() -> None:
    assert lost(1.2, host_slowdown=1.0) is Status.FAIL
    assert lost(1.2, host_slowdown=1.2) is Status.INCONCLUSIVE
    assert lost(1.5, host_slowdown=1.2) is Status.FAIL
    assert lost(1.2, host_slowdown=0.8) is Status.FAIL


@pytest.mark.parametrize(
    ("operations", "product", "status"),
    [(1.2, 1.2, Status.FAIL), (1.2, 1.0, Status.INCONCLUSIVE), (1.03, 1.0, Status.FAIL)],
)
def test_a_cpu_of_another_balance_excuses_it_too(
    operations: float, product: float, status: Status
) -> None:
    canaries = {"host operations": 1e-3, "host product": 1e-3}
    held = msgspec.structs.replace(golden(), canaries=canaries)
    now = {"host operations": 1e-3 * operations, "host product": 1e-3 * product}
    place = msgspec.structs.replace(HERE, canaries=now)
    slow = slowed(sample(), 1.2)
    found = gate.judge(slow, held, place, process(slow, place))
    assert next(v.status for v in found if v.check == "speed") is status


def test_a_captured_step_has_no_such_excuse() -> None:
    assert lost(1.2, host_slowdown=1.2, host_bound=False) is Status.FAIL


def test_a_golden_too_noisy_to_tell_a_loss_by_is_not_recorded() -> None:
    assert store.noisy(golden()) == ""
    wide = [-1.0 + 0.05 * i for i in range(5)]
    assert math.isclose(golden(wide).entries[sample().name].tau, 0.237, abs_tol=1e-3)
    assert "a loss of 27 % would pass" in store.noisy(golden(wide))
