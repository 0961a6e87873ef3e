"""Limits of one's own: a marker of the test, a run that only warns, noise from a history."""

import json
import math
import random

import msgspec
import pytest

from streamcache.gate import history
from streamcache.gate.compare import Round, compare, compare_times, softened
from streamcache.gate.environment import Environment
from streamcache.gate.explain import explained
from streamcache.gate.goldens import MIN_TAU, Golden
from streamcache.gate.judge import judge
from streamcache.gate.plugin.noise import with_noise
from streamcache.gate.plugin.options import Usage
from streamcache.gate.recorder import Clock, Recorder
from streamcache.gate.samples import Sample
from streamcache.gate.updates import updated
from streamcache.gate.verdicts import Status
from tests.goldens import HERE, NAME, PROVENANCE, golden, process, processes, sample, slowed
from tests.unit import test_golden_plugin
from tests.unit.test_golden_plugin import MARKERS, Toy, one_line, said

toy, recorded = test_golden_plugin.toy, test_golden_plugin.recorded  # fixtures
GOLDEN, LENIENT = golden(), golden(tau=0.10)


def speed(now: Sample, against: Golden = GOLDEN) -> Status:
    (found,) = (v for v in judge(now, against, HERE) if v.check == "speed")
    return found.status


# The marker


def test_a_test_may_say_which_loss_counts() -> None:
    lenient = sample(tau=0.10)
    assert speed(slowed(lenient, 1.08), LENIENT) is Status.PASS
    assert speed(slowed(lenient, 1.12), LENIENT) is Status.SUSPECT


def test_neither_the_test_nor_the_golden_loosens_it_alone() -> None:
    assert speed(slowed(sample(tau=0.10), 1.08), GOLDEN) is Status.SUSPECT
    assert speed(slowed(sample(), 1.08), LENIENT) is Status.SUSPECT
    assert speed(slowed(sample(tau=0.01), 1.02), LENIENT) is Status.SUSPECT


def test_an_update_says_that_it_takes_another_tau() -> None:
    _, (line,) = updated(GOLDEN, processes(tau=0.10), PROVENANCE)
    assert "tau of the test: 0.0 becomes 0.1" in line


@pytest.mark.parametrize(("base", "here", "tau"), [(0.1, 0.1, 0.1), (0.1, 0, 0.03), (0, 0.1, 0.03)])
def test_of_two_trees_the_stricter_tau_counts(base: float, here: float, tau: float) -> None:
    rounds = [Round(process(sample(tau=base)), process(sample(tau=here)))] * 3
    own, mean, baseline = compare_times(NAME, rounds)
    assert own.tau == pytest.approx(math.log1p(tau) if tau > 0.03 else MIN_TAU)
    assert mean.tau == 0.15 and baseline.tau == pytest.approx(math.log(1.1))


def test_what_is_only_warned_of_is_not_red() -> None:
    slow = process(slowed(sample(warn_only=True), 1.2))
    found = softened(compare([Round(process(sample()), slow)] * 3), slow)
    (warning,) = (v for v in found if v.check == "speed")
    assert warning.status is Status.WARNING and warning.cause.startswith("FAIL: slower by 20")
    assert not any(v.status.fails_build for v in found)


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ("loss=0.1", "takes no loss"),
        ("0.1", "takes no 0.1"),
        ("tau=0", "tau is 0"),
        ("tau=2", "tau is 2"),
    ],
)
def test_a_marker_that_makes_no_sense_is_one_line(marker: str, says: str, toy: Toy) -> None:
    toy.edit("def test_sort", f"import pytest\n@pytest.mark.golden({marker})\ndef test_sort")
    one_line(toy(), says)


def test_a_marked_test_only_warns(toy: Toy) -> None:
    toy.edit("numbers=len(found)", "numbers=3")
    toy.edit("def test_sort", f"import pytest\n{MARKERS}def test_sort")  # the lines of the docs
    ran = toy("--strict-markers", "--golden-json=all.out")
    assert ran.ret == 0
    (found,) = json.loads((toy.path / "all.out").read_text())["streamcache"]["process"]["samples"]
    assert (found["tau"], found["warn_only"]) == (0.1, True)
    said(ran, "warn * numbers is 3", "golden: WARNING (1 warning, 5 pass)")


def test_a_run_only_warns(toy: Toy) -> None:
    toy.edit("numbers=len(found)", "numbers=3")
    toy.adds_entry("test_toy.py::test_gone", equal={"n": 1})
    ran = toy("--golden-warn-only", "--golden-required")
    assert ran.ret == 0
    said(ran, "golden: WARNING (2 warning, 5 pass)")


# Noise


def past(noise: float, n: int = 60, step: float = 0.0) -> list[history.Line]:
    source = random.Random(0)
    machine = {**HERE.machine, **HERE.host}
    logs = [source.gauss(0, noise) + step * (i >= n // 2) for i in range(n)]
    return [history.Line(f"{i:03}", "c", NAME, machine, log) for i, log in enumerate(logs)]


@pytest.mark.parametrize("step", [0.0, 0.5])
def test_noise_is_what_differs_from_run_to_run_and_a_step_is_none(step: float) -> None:
    found = history.noise(past(0.02, n=1000, step=step), {**HERE.machine, **HERE.host})
    assert found[NAME] == pytest.approx(0.02, rel=0.1)
    assert history.noise(past(0.02), {"device": "other"}) == {}
    assert history.noise(past(0.02, n=7), {**HERE.machine, **HERE.host}) == {}


def test_a_loss_within_the_noise_of_a_history_passes() -> None:
    slow = slowed(sample(), 1.05)
    assert speed(slow) is Status.SUSPECT
    assert speed(slow, with_noise(GOLDEN, {NAME: 0.02})) is Status.PASS
    assert speed(slow, with_noise(GOLDEN, {})) is Status.SUSPECT
    with pytest.raises(Usage, match="so noisy that a loss of 13 % would pass"):
        with_noise(GOLDEN, {NAME: 0.04})


def test_rounds_that_agree_by_chance_scatter_as_the_history_does() -> None:
    rounds = [Round(process(sample()), process(slowed(sample(), 1.05)))] * 4
    assert compare(rounds)[2].status is Status.FAIL
    assert compare(rounds, noise={NAME: 0.02})[2].status is not Status.FAIL


def test_a_history_that_cannot_be_read_is_one_line(toy: Toy) -> None:
    one_line(toy("--golden-noise-from=none"), "none: No such file")


def test_a_history_that_the_gate_wrote_is_read(toy: Toy) -> None:
    for _ in range(2):
        assert toy("--golden-history=runs.out").ret == 0
    assert toy("--golden-noise-from=runs.out").ret == 0


# Why


def test_what_changed_most_comes_first_and_what_hardly_changed_is_left_out() -> None:
    before = {"product": 1.0, "norm": 0.2, "copy": 0.1}
    now = {"product": 1.001, "norm": 0.5, "sort": 0.4}
    assert explained(before, now) == [
        "sort: 0.000 -> 0.400 ms (+0.400)",
        "norm: 0.200 -> 0.500 ms (+0.300)",
        "copy: 0.100 -> 0.000 ms (-0.100)",
    ]
    assert explained({}, {}) == []


class Probe:
    def sample(self) -> Environment:
        return HERE


def test_a_profile_is_taken_only_where_it_is_asked_for() -> None:
    calm, asked = (Recorder(NAME, Clock(), Probe()) for _ in range(2))
    asked.explains = True
    for each in (calm, asked):
        each.profile(lambda: {"product": 1.0})
    assert (calm.sample().profile, asked.sample().profile) == ({}, {"product": 1.0})
    assert msgspec.json.decode(msgspec.json.encode(asked.sample()))["profile"] == {"product": 1.0}
