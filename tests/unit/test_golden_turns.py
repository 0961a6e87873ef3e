"""Fresh processes of two trees: one starts while the one before it measures, and waits."""

import time
from pathlib import Path
from typing import Any

import pytest

from streamcache import machine
from streamcache.gate.environment import Environment
from streamcache.gate.plugin import processes
from streamcache.gate.plugin.processes import Order, in_turns, wait_for_turn
from streamcache.gate.samples import Process, SampleError

ORDERS = [(Order(), Path(str(i))) for i in range(6)]
CONFIG: Any = None


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What processes that do nothing but take their time did, in order."""
    found: list[str] = []

    def fresh(config: Any, order: Order, here: Path, tree: Path) -> tuple[Process, str]:
        found.append(f"start {tree}")
        wait_for_turn(order)
        found.append(f"measure {tree}")
        time.sleep(0.02)
        found.append(f"end {tree}")
        if str(tree) == "broken":
            raise SampleError("a process failed")
        return Process(Environment(), [], date=str(tree)), ""

    monkeypatch.setattr(processes, "fresh", fresh)
    monkeypatch.setattr(processes, "_POLL_S", 1e-3)
    monkeypatch.setattr(processes, "idle_cores", lambda: 1.9)
    return found


def measuring(events: list[str]) -> list[str]:
    return [event for event in events if not event.startswith("start")]


def test_one_measures_at_a_time_in_the_order_given(events: list[str]) -> None:
    assert [p.date for p in in_turns(CONFIG, ORDERS, Path())] == list("012345")
    assert measuring(events) == [f"{what} {i}" for i in range(6) for what in ("measure", "end")]


def test_the_next_has_started_by_then(events: list[str]) -> None:
    list(in_turns(CONFIG, ORDERS, Path()))
    assert all(events.index(f"start {i + 1}") < events.index(f"end {i}") for i in range(5))


def test_on_one_idle_core_none_starts_beside_another(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "idle_cores", lambda: 1.1)
    list(in_turns(CONFIG, ORDERS, Path()))
    assert events == [f"{what} {i}" for i in range(6) for what in ("start", "measure", "end")]


def test_one_that_fails_ends_it_and_keeps_nobody_waiting(events: list[str]) -> None:
    with pytest.raises(SampleError):
        list(in_turns(CONFIG, [(Order(), Path("broken")), *ORDERS], Path()))
    assert len(measuring(events)) < 2 * len(ORDERS)


def test_a_core_is_idle_where_nobody_used_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {0: [5, 0, 5, 10, 0], 1: [5, 0, 5, 10, 0]}
    ticks = iter([before, {0: [55, 0, 5, 10, 0], 1: [6, 0, 5, 58, 1]}])
    monkeypatch.setattr(machine, "_core_times", lambda: next(ticks))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert machine.idle_cores(0) == pytest.approx(0.98)


@pytest.mark.parametrize("says", [{}, {0: [5, 0, 5, 10, 0], 1: [5, 0, 5, 10, 0]}])
def test_all_cores_are_idle_where_the_system_does_not_say(
    says: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_core_times", lambda: says)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert machine.idle_cores(0) == 2


def test_nobody_waits_for_a_parent_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = iter([1, 1, 2])
    monkeypatch.setattr("os.getppid", lambda: next(parents))
    with pytest.raises(pytest.exit.Exception, match="has ended"):
        wait_for_turn(Order(turn=str(tmp_path / "never")))
