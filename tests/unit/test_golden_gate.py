"""Verdicts, as a specification: what passes, what fails, and what says nothing."""

import itertools
import math
import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate.environment import Environment
from streamcache.gate.figures import check_metric
from streamcache.gate.goldens import Entry, Golden, Provenance, PublishedRange
from streamcache.gate.judge import judge, missing, needs_confirmation
from streamcache.gate.samples import Metric, Process, Sample
from streamcache.gate.times import MIN_NOISE
from streamcache.gate.updates import updated
from streamcache.gate.verdicts import Status, Verdict, exit_status, worst
from tests.goldens import (
    HERE,
    NAME,
    RATIOS,
    altered,
    golden,
    process,
    sample,
    samples,
    slowed,
    with_pairs,
)

GOLDEN = golden()
# From the best to the worst that can be said of a time.
RANK = {
    Status.IMPROVED: 0,
    Status.PASS: 1,
    Status.INCONCLUSIVE: 1,
    Status.SUSPECT: 2,
    Status.INVALID: 3,
    Status.FAIL: 3,
}
LOSS = GOLDEN.entries[NAME].tau
SICK = [0.0, -1.0, math.nan, math.inf, -math.inf]
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def verdicts(
    sample: Sample,
    golden: Golden = GOLDEN,
    environment: Environment = HERE,
    again: Process | None = None,
) -> dict[str, Verdict]:
    return {v.check: v for v in judge(sample, golden, environment, again)}


def statuses(*arguments: Any, **named: Any) -> dict[str, Status]:
    return {check: v.status for check, v in verdicts(*arguments, **named).items()}


def place(**fields: Any) -> Environment:
    return msgspec.structs.replace(HERE, **fields)


# What passes


@pytest.mark.parametrize("own", samples())
def test_a_golden_judged_by_its_own_samples_passes(own: Sample) -> None:
    found = statuses(own)
    assert set(found) == {"positions", "ppl", "speed", "anchor", "mean", "baseline"}
    assert set(found.values()) == {Status.PASS}


def test_a_golden_of_identical_samples_passes_on_another() -> None:
    same = golden([-1.0] * 5)
    assert set(statuses(sample(-1.0), same).values()) == {Status.PASS}


@given(st.permutations(sample().pairs), st.permutations(RATIOS), st.floats(-0.2, 0.2))
def test_the_order_of_pairs_and_of_processes_does_not_matter(
    pairs: list[tuple[float, float]], ratios: list[float], moved: float
) -> None:
    slow = slowed(with_pairs(sample(), pairs), math.exp(moved))
    found = verdicts(slow, golden(ratios))
    plain = verdicts(slowed(sample(), math.exp(moved)))
    assert {c: v.status for c, v in found.items()} == {c: v.status for c, v in plain.items()}
    assert found["speed"].loss == pytest.approx(plain["speed"].loss, abs=1e-9)
    assert found["speed"].margin == pytest.approx(plain["speed"].margin)


@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_entries_does_not_matter(names: list[str]) -> None:
    entries = {name: GOLDEN.entries[NAME] for name in [*names, NAME]}
    several = msgspec.structs.replace(GOLDEN, entries=entries)
    assert judge(sample(), several, HERE) == judge(sample(), GOLDEN, HERE)
    assert [v.name for v in missing(several, [NAME])] == ["a", "b", "c"]


# Speed


def noisier(noise: float, log: float) -> Sample:
    """Its pairs scatter so many times as much, around a loss."""
    usual = 0.1 * math.exp(-1)
    pairs = [(a * (a / usual) ** noise * math.exp(log), b) for a, b in sample().pairs]
    return with_pairs(sample(), pairs)


@given(
    st.floats(-0.5, 0.5),
    st.floats(-0.5, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 200),
    st.floats(0, 200),
    st.sampled_from([1.0, 1.1, 1.3]),
    st.booleans(),
)
def test_a_slower_contestant_never_gets_a_better_status(
    one: float,
    two: float,
    more: float,
    more_again: float,
    noise: float,
    noise_again: float,
    host: float,
    confirmed: bool,
) -> None:
    """However noisy each of two processes is, and whatever its host explains."""
    was, here = golden(where=beside_a_gpu(1.0)), beside_a_gpu(host)
    found = [
        statuses(noisier(noise, first), was, here, process(again, here) if confirmed else None)
        for first, again in (
            (one, noisier(noise_again, two)),
            (one + more, noisier(noise_again, two + more_again)),
        )
    ]
    for check in ("speed", "anchor"):
        assert RANK[found[1][check]] >= RANK[found[0][check]]


SCATTERED = st.lists(st.floats(-3, 3), min_size=4, max_size=12)


@given(SCATTERED, SCATTERED, st.floats(0, 1))
def test_a_loss_that_two_processes_show_is_red_however_unevenly_it_is_spread(
    one: list[float], two: list[float], more: float
) -> None:
    """Beyond tau and the widest bound that a pass may have."""
    least = 0.001 + LOSS + MIN_NOISE + more
    first, again = (
        with_pairs(
            sample(), [(math.exp(x - statistics.median(logs) + least - 1), 1.0) for x in logs]
        )
        for logs in (one, two)
    )
    assert statuses(first, again=process(again))["speed"] in (Status.FAIL, Status.INVALID)


def test_a_loss_within_tau_passes_and_one_beyond_is_confirmed_first() -> None:
    assert statuses(slowed(sample(), 1.02))["speed"] is Status.PASS
    slow = slowed(sample(), 1.05)
    assert statuses(slow)["speed"] is Status.SUSPECT
    assert needs_confirmation(slow, GOLDEN, HERE)
    assert not needs_confirmation(sample(), GOLDEN, HERE)


def test_a_loss_that_a_fresh_process_confirms_fails() -> None:
    slow = slowed(sample(), 1.05)
    found = verdicts(slow, again=process(slowed(sample(), 1.06)))["speed"]
    assert found.status is Status.FAIL
    assert found.loss == pytest.approx(0.05, abs=1e-3) and found.tau == pytest.approx(0.03)
    assert "slower by 5.0" in found.cause and "slower by 6.0" in found.cause


def test_a_loss_that_a_fresh_process_does_not_confirm_is_suspect() -> None:
    found = verdicts(slowed(sample(), 1.05), again=process(sample()))["speed"]
    assert found.status is Status.SUSPECT and not found.status.fails_build


@pytest.mark.parametrize(
    ("again", "why"),
    [
        (Process(HERE, []), "did not measure"),
        (Process(place(problems=["it fell over"]), []), "it fell over"),
        (process(sample(), place(problems=["the GPU is throttled"])), "throttled"),
        (process(sample(), place(canaries={"host product": 1.0})), "canary"),
        (process(sample(pairs=[])), "no times"),
        (process(sample(), place(machine={"device": "other"})), "another machine"),
        (process(sample(identity={"model": "other"})), "not what the golden measured"),
        (process(sample(host_bound=False)), "host times and device times"),
        (process(sample(), place(host={"cpu": "slide rule"})), "another host"),
        (process(with_pairs(sample(), [(math.nan, 1.0)] * 10)), "not a number"),
        (process(with_pairs(sample(), [(0.02, 0.1), (0.07, 0.1)] * 5)), "too noisy"),
    ],
)
def test_a_loss_that_no_process_can_confirm_is_invalid(again: Process, why: str) -> None:
    found = verdicts(slowed(sample(), 1.1), again=again)["speed"]
    assert found.status is Status.INVALID and why in found.cause


def test_another_model_or_machine_confirms_no_loss() -> None:
    """Another model, or another machine, that agrees confirms nothing."""
    slow = slowed(sample(), 1.1)
    other = msgspec.structs.replace(slow, identity={"model": "other"})
    assert statuses(slow, again=process(other))["speed"] is Status.INVALID
    elsewhere = place(machine={"device": "other"})
    assert statuses(slow, again=process(slow, elsewhere))["speed"] is Status.INVALID


def test_a_slow_fresh_process_does_not_change_a_pass() -> None:
    slow = process(slowed(sample(), 2.0))
    assert statuses(sample(), again=slow) == statuses(sample())


def test_a_gain_beyond_tau_is_to_be_recorded() -> None:
    assert statuses(slowed(sample(), 0.98))["speed"] is Status.PASS
    assert statuses(slowed(sample(), 0.9))["speed"] is Status.IMPROVED


WILD = with_pairs(sample(), [(0.1 * math.exp(-1 + x), 0.1) for x in (-1.0, 1.0) * 5])
WILD_AND_SLOW = slowed(WILD, 1.2)


def test_pairs_all_over_the_place_are_inconclusive_and_measured_again() -> None:
    assert statuses(WILD)["speed"] is Status.INCONCLUSIVE
    assert needs_confirmation(WILD, GOLDEN, HERE)


@pytest.mark.parametrize(
    ("first", "again", "status"),
    [
        (WILD, sample(), Status.PASS),
        (WILD, slowed(sample(), 0.8), Status.IMPROVED),
        (WILD, slowed(sample(), 1.2), Status.SUSPECT),
        (WILD, WILD, Status.INCONCLUSIVE),
        (WILD, WILD_AND_SLOW, Status.INCONCLUSIVE),
        (WILD_AND_SLOW, WILD, Status.INCONCLUSIVE),
        (WILD_AND_SLOW, sample(), Status.PASS),
        (WILD_AND_SLOW, slowed(sample(), 0.8), Status.PASS),
        (WILD_AND_SLOW, WILD_AND_SLOW, Status.INVALID),
        (WILD_AND_SLOW, slowed(sample(), 1.2), Status.INVALID),
        (slowed(sample(), 1.2), WILD, Status.INVALID),
    ],
)
def test_noise_hides_a_loss_in_one_process_and_not_in_two(
    first: Sample, again: Sample, status: Status
) -> None:
    """A loss seen by one calm process alone is a suspicion, as ever."""
    assert statuses(first, again=process(again))["speed"] is status


@pytest.mark.parametrize(
    "again",
    [
        Process(place(problems=["it fell over"]), []),
        process(sample(), place(problems=["it fell over"])),
        process(sample(identity={"model": "it fell over"})),
    ],
)
def test_noise_that_nothing_can_clear_is_red(again: Process) -> None:
    found = verdicts(WILD, again=again)["speed"]
    assert found.status is Status.INVALID
    assert "too noisy" in found.cause and "it fell over" in found.cause


def test_every_other_pair_three_times_slower_is_no_pass() -> None:
    pairs = [(a * (3 if i % 2 else 1.1), b) for i, (a, b) in enumerate(sample().pairs)]
    slow = with_pairs(sample(), pairs)
    assert statuses(slow, again=process(slow))["speed"] is Status.INVALID


def test_a_bound_narrower_than_what_noise_may_be_is_never_too_wide() -> None:
    scattered = with_pairs(sample(), [(math.exp(x - 1), 1.0) for x in (-0.032, 0.032) * 5])
    found = verdicts(scattered)["speed"]
    assert found.margin is not None and LOSS < found.margin < MIN_NOISE
    assert found.status is Status.PASS


def test_tau_is_three_deviations_between_processes_where_those_are_more() -> None:
    noisy = golden([-1.04, -1.02, -1.0, -0.98, -0.96])
    entry = noisy.entries[NAME]
    assert entry.tau == pytest.approx(3 * 0.03162, rel=1e-3)
    slow = slowed(sample(), 1.15)  # the anchor's budget is no narrower
    assert set(statuses(slow, noisy, again=process(slow)).values()) == {Status.PASS}


def test_too_few_pairs_are_invalid() -> None:
    found = verdicts(with_pairs(sample(), sample().pairs[:3]))["speed"]
    assert found.status is Status.INVALID and "too few" in found.cause


@pytest.mark.parametrize("pairs_missing_from", ["sample", "golden"])
def test_times_that_are_gone_or_new_are_missing(pairs_missing_from: str) -> None:
    without = golden(pairs=[]) if pairs_missing_from == "golden" else GOLDEN
    one = sample(pairs=[]) if pairs_missing_from == "sample" else sample()
    assert statuses(one, without)["speed"] is Status.MISSING


def test_a_benchmark_without_times_needs_none() -> None:
    assert set(statuses(sample(pairs=[]), golden(pairs=[]))) == {"positions", "ppl"}


# The anchor


def test_ten_steps_of_one_percent_do_not_pass() -> None:
    """Each update is accepted, and each is within tau of the one before."""
    accepted = GOLDEN
    for step in range(1, 11):
        ratios = [r + 0.01 * 1.05 * step for r in RATIOS]
        slower = [process(sample(r)) for r in ratios]
        found = statuses(slower[2].samples[0], accepted, again=slower[3])
        assert found["speed"] is Status.PASS, "no single step is a failure"
        if found["anchor"] is Status.FAIL:
            break
        accepted, changes = updated(accepted, slower, Provenance(f"step {step}", "", "", 5))
        assert len(changes) == 1
    assert 5 <= step <= 6, "the budget is 5 % in all"
    assert accepted.entries[NAME].anchor == GOLDEN.entries[NAME].anchor


def test_the_anchor_is_confirmed_by_a_fresh_process_too() -> None:
    later = altered(golden([r + 0.06 for r in RATIOS]), anchor=-1.0)
    slow = sample(-0.94)
    assert statuses(slow, later)["anchor"] is Status.SUSPECT
    assert statuses(slow, later, again=process(slow))["anchor"] is Status.FAIL
    assert statuses(slow, later, again=process(slow))["speed"] is Status.PASS


# The baseline's own time


def both_slower(factor: float) -> Sample:
    return with_pairs(sample(), [(a * factor, b * factor) for a, b in sample().pairs])


def test_a_slower_baseline_does_not_pass_for_a_speedup() -> None:
    lame = with_pairs(sample(), [(a, 1.3 * b) for a, b in sample().pairs])
    assert statuses(lame)["speed"] is Status.IMPROVED
    assert statuses(lame)["baseline"] is Status.SUSPECT
    assert statuses(lame, again=process(lame))["baseline"] is Status.FAIL
    assert statuses(lame, again=process(sample()))["baseline"] is Status.SUSPECT


def test_a_loss_common_to_candidate_and_baseline_is_seen() -> None:
    slow = both_slower(1.3)
    found = statuses(slow, again=process(slow))
    assert found["speed"] is Status.PASS and found["baseline"] is Status.FAIL


def test_the_guard_of_the_baseline_is_looser_than_the_ratio_and_takes_gains_up_to_twice() -> None:
    assert statuses(both_slower(1.1))["baseline"] is Status.PASS
    assert statuses(both_slower(0.6))["baseline"] is Status.PASS


def test_both_ten_times_as_fast_do_not_do_their_work() -> None:
    quick = both_slower(0.1)
    found = {v.check: v for v in judge(quick, GOLDEN, HERE, process(quick))}
    assert found["speed"].status is Status.PASS
    assert found["baseline"].status is Status.FAIL
    assert "10.0 x as fast: does it still do its work?" in found["baseline"].cause


def test_a_candidate_that_does_nothing_is_no_gain() -> None:
    idle = slowed(sample(), 1e-3)
    found = verdicts(idle, again=process(idle))["speed"]
    assert found.status is Status.FAIL and "does it still do its work?" in found.cause
    assert statuses(slowed(sample(), 0.6))["speed"] is Status.IMPROVED


# The mean


def rare(factor: float, n: int) -> Sample:
    """Of its pairs, so many take so many times as long."""
    pairs = [(a * factor, b) if i < n else (a, b) for i, (a, b) in enumerate(sample().pairs)]
    return with_pairs(sample(), pairs)


@pytest.mark.parametrize(
    ("factor", "n", "status"),
    [(100.0, 2, Status.FAIL), (5.0, 1, Status.FAIL), (2.0, 2, Status.PASS), (1.02, 4, Status.PASS)],
)
def test_rare_slow_blocks_fail_by_the_mean(factor: float, n: int, status: Status) -> None:
    """The median does not see them."""
    slow = rare(factor, n)
    found = statuses(slow, again=process(slow))
    assert found["speed"] is Status.PASS and found["mean"] is status


def test_rare_slow_blocks_of_one_process_alone_are_a_suspicion() -> None:
    assert statuses(rare(5.0, 1), again=process(sample()))["mean"] is Status.SUSPECT


def test_a_golden_that_was_recorded_without_the_mean_does_not_judge_it() -> None:
    assert "mean" not in statuses(rare(5.0, 1), altered(GOLDEN, mean_log_ratios=[]))


def test_a_machine_slower_as_a_whole_is_no_regression() -> None:
    slow = place(canaries={"host product": 1.3e-3})
    assert statuses(both_slower(1.3), environment=slow)["baseline"] is Status.PASS


def test_how_much_slower_a_machine_is_is_the_mean_of_its_canaries_and_as_sure_as_they_agree() -> (
    None
):
    was = golden(where=place(canaries={"host a": 1e-3, "host b": 1e-3}))
    now = place(canaries={"host a": 1e-3, "host b": math.exp(0.2) * 1e-3})
    within, beyond = both_slower(math.exp(0.34)), both_slower(math.exp(0.36))
    assert statuses(within, was, now, process(within, now))["baseline"] is Status.PASS
    assert statuses(beyond, was, now, process(beyond, now))["baseline"] is Status.FAIL


@given(st.floats(0.6, 2), st.floats(1, 2))
def test_a_slower_baseline_never_gets_a_better_status(factor: float, more: float) -> None:
    one, two = both_slower(factor), both_slower(factor * more)
    assert RANK[statuses(two)["baseline"]] >= RANK[statuses(one)["baseline"]]


# Figures and counts


def test_a_figure_may_drift_by_so_much_either_way() -> None:
    was = Metric(20.0, rel_tol=1e-3)
    for value, status in [
        (20.0, Status.PASS),
        (20.019, Status.PASS),
        (19.981, Status.PASS),
        (20.021, Status.FAIL),
        (19.979, Status.FAIL),
        (-20.0, Status.FAIL),
    ]:
        assert check_metric("n", "ppl", Metric(value, 1e-3), was).status is status, value


@given(FINITE, FINITE, FINITE, st.floats(0, 1), st.none() | FINITE)
def test_a_larger_drift_never_gets_a_better_status(
    golden: float, one: float, two: float, rel_tol: float, max_value: float | None
) -> None:
    """Of two figures on one side of the golden the one that is farther away is never better."""
    near, far = sorted((one, two), key=lambda x: abs(x - golden))
    if (near - golden) * (far - golden) < 0 or (max_value is not None and golden > max_value):
        return
    was = Metric(golden, rel_tol, max_value)
    found = [check_metric("n", "ppl", Metric(x, rel_tol), was).status for x in (near, far)]
    if max_value is None or far >= golden:
        assert found != [Status.FAIL, Status.PASS]


@given(FINITE, st.floats(0, 1))
def test_a_figure_that_did_not_move_passes(value: float, rel_tol: float) -> None:
    assert (
        check_metric("n", "ppl", Metric(value, rel_tol), Metric(value, rel_tol)).status
        is Status.PASS
    )


def test_a_bound_of_the_golden_holds_whatever_the_test_says() -> None:
    was = Metric(20.0, rel_tol=0.1, max_value=20.5)
    found = check_metric("n", "ppl", Metric(20.6, rel_tol=1.0, max_value=99.0), was)
    assert found.status is Status.FAIL and "ppl is 20.6, max_value is 20.5" in found.cause


@pytest.mark.parametrize("recorded", [None, 99.0])
def test_a_bound_of_the_test_holds_beside_the_goldens(recorded: float | None) -> None:
    was, now = Metric(20.0, 0.1, max_value=recorded), Metric(20.6, 0.1, max_value=20.5)
    found = check_metric("n", "ppl", now, was)
    assert found.status is Status.FAIL and "ppl is 20.6, max_value is 20.5" in found.cause


def test_a_figure_recorded_as_zero_must_stay_zero() -> None:
    assert check_metric("n", "x", Metric(0.0, 1e-3), Metric(0.0, 1e-3)).status is Status.PASS
    assert check_metric("n", "x", Metric(1e-15, 1e-3), Metric(0.0, 1e-3)).status is Status.FAIL


@pytest.mark.parametrize(
    "field", [{"equal": {"positions": 101}}, {"equal": {}}, {"equal": {"positions": 100, "x": 1}}]
)
def test_a_count_that_differs_fails(field: dict[str, Any]) -> None:
    assert worst(verdicts(sample(**field)).values()) is Status.FAIL


@pytest.mark.parametrize(
    ("metrics", "cause"), [({}, "ppl is missing"), ({"nll": Metric(3.0, 1e-3)}, "nll is new")]
)
def test_a_figure_that_is_gone_or_new_is_missing(metrics: dict[str, Metric], cause: str) -> None:
    found = verdicts(sample(metrics=metrics))
    assert cause in [v.cause for v in found.values() if v.status is Status.MISSING]


def test_quality_is_never_tried_again() -> None:
    worse = sample(metrics={"ppl": Metric(20.3, 1e-3)})
    assert not needs_confirmation(worse, GOLDEN, HERE)
    assert statuses(worse, again=process(sample()))["ppl"] is Status.FAIL


# No number passes


@pytest.mark.parametrize("sick", [math.nan, math.inf, -math.inf, 0.0])
def test_a_figure_that_is_no_number_fails(sick: float) -> None:
    found = verdicts(sample(metrics={"ppl": Metric(sick, math.inf, math.inf)}))
    assert found["ppl"].status is Status.FAIL


@pytest.mark.parametrize("sick", SICK)
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("every", [True, False])
def test_a_time_that_is_no_time_fails_and_is_not_tried_again(
    sick: float, side: int, every: bool
) -> None:
    pairs = [list(pair) for pair in sample().pairs]
    for pair in pairs if every else pairs[:1]:
        pair[side] = sick
    broken = with_pairs(sample(), [(a, b) for a, b in pairs])
    found = verdicts(broken, again=process(sample()))
    assert found["times"].status is Status.FAIL and "speed" not in found


@given(
    st.lists(st.tuples(st.floats(), st.floats()), max_size=12),
    st.floats(),
    st.floats(),
    st.none() | st.floats(),
    st.lists(st.floats(), max_size=7),
    st.floats(),
    st.booleans(),
)
def test_whatever_is_measured_is_judged_and_no_nonsense_passes(
    pairs: list[tuple[float, float]],
    value: float,
    rel_tol: float,
    anchor: float | None,
    ratios: list[float],
    canary: float,
    repeated: bool,
) -> None:
    """Any floats anywhere: never an exception; a pass only of numbers."""
    wild = sample(pairs=pairs, metrics={"ppl": Metric(value, rel_tol)})
    times = ratios or [1.0] * 5
    entry = {"log_ratios": ratios, "baselines_s": times, "candidates_s": times, "anchor": anchor}
    here = place(canaries={"host product": canary})
    again = process(wild, here) if repeated else None
    for against in (GOLDEN, altered(GOLDEN, **entry), altered(GOLDEN, metrics=wild.metrics)):
        for where in (here, HERE):
            found = verdicts(wild, against, where, again)
            sane = all(0 < x < math.inf for pair in pairs for x in pair)
            if not (math.isfinite(value) and (sane or not pairs)):
                assert worst(found.values()).fails_build
            for verdict in found.values():
                assert isinstance(verdict.cause, str)
            needs_confirmation(wild, against, where)


@pytest.mark.parametrize(
    "fields",
    [
        {"log_ratios": [-1.0]},
        {"log_ratios": [math.nan, *RATIOS[1:]]},
        {"baselines_s": [0.0, 0.1, 0.1, 0.1, 0.1]},
        {"candidates_s": [math.inf, 0.1, 0.1, 0.1, 0.1]},
        {"log_ratios": [1e308, *RATIOS[1:]]},
        {"anchor": math.nan},
        {"anchor": None},
        {"anchor": 5.0},
        {"metrics": {}, "equal": {}, "log_ratios": [], "baselines_s": [], "candidates_s": []},
        {"published_range": PublishedRange(2.0, 3.0)},
        {"metrics": {"ppl": Metric(math.nan, 1e-3)}},
        {"metrics": {"ppl": Metric(20.0, math.nan)}},
        {"metrics": {"ppl": Metric(20.0, math.inf)}},
        {"metrics": {"ppl": Metric(20.0, -1.0)}},
        {"metrics": {"ppl": Metric(20.0, 1e-3, max_value=math.nan)}},
        {"metrics": {"ppl": Metric(20.0, 1e-3, max_value=19.0)}},
        {"published_range": PublishedRange(2.0, 1.0)},
        {"published_range": PublishedRange(math.nan, 1.0)},
    ],
)
def test_a_golden_of_no_numbers_fails_everything(fields: dict[str, Any]) -> None:
    found = verdicts(sample(), altered(GOLDEN, **fields))
    assert [v.status for v in found.values()] == [Status.FAIL]


# Where it was measured


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"device": "other"}, "device is 'other', not 'toy'"),
        ({}, "device is None"),
        ({"device": "toy", "power_limit_w": "300"}, "power_limit_w is '300', not None"),
    ],
)
def test_another_machine_is_invalid(machine: dict[str, str | int], says: str) -> None:
    (found,) = judge(sample(), GOLDEN, place(machine=machine))
    assert found.status is Status.INVALID and says in found.cause


def test_something_else_measured_is_invalid() -> None:
    (found,) = judge(sample(identity={"model": "other"}), GOLDEN, HERE)
    assert (found.check, found.status) == ("identity", Status.INVALID)


def beside_a_gpu(host: float) -> Environment:
    return place(canaries={"device copy": 1e-3, "host operations": host * 1e-3})


@pytest.mark.parametrize(
    ("slower", "host", "host_bound", "status"),
    [
        (1.3, 1.0, True, Status.FAIL),
        (1.3, 1.3, True, Status.INCONCLUSIVE),
        (1.3, 1.1, True, Status.FAIL),
        (1.3, 1.3, False, Status.FAIL),
        (1.3, 0.7, True, Status.FAIL),
        (1.5, 1.2, True, Status.FAIL),
        (1.0, 1.3, True, Status.PASS),
    ],
)
def test_a_slower_host_explains_so_much_of_a_loss_beside_a_gpu(
    slower: float, host: float, host_bound: bool, status: Status
) -> None:
    """Of what the host bounds; the rest is the code's."""
    was = golden(where=beside_a_gpu(1.0), host_bound=host_bound)
    slow, now = slowed(sample(host_bound=host_bound), slower), beside_a_gpu(host)
    found = statuses(slow, was, now, process(slow, now))
    assert found["speed"] is found["anchor"] is status


@pytest.mark.parametrize(
    ("operations", "product", "status"),
    [(1.2, 1.2, Status.FAIL), (1.2, 1.0, Status.INCONCLUSIVE), (1.03, 1.0, Status.FAIL)],
)
def test_a_cpu_of_another_balance_explains_a_loss_beside_a_gpu(
    operations: float, product: float, status: Status
) -> None:
    was = golden(where=place(canaries={"host operations": 1e-3, "host product": 1e-3}))
    now = place(canaries={"host operations": 1e-3 * operations, "host product": 1e-3 * product})
    slow = slowed(sample(), 1.2)
    assert statuses(slow, was, now, process(slow, now))["speed"] is status


def test_a_loss_that_one_of_two_hosts_explains_is_no_pass() -> None:
    was, slow = golden(where=beside_a_gpu(1.0)), slowed(sample(), 1.3)
    itself, slower = beside_a_gpu(1.0), beside_a_gpu(1.3)
    assert statuses(slow, was, slower, process(slow, itself))["speed"] is Status.SUSPECT
    assert statuses(slow, was, itself, process(slow, slower))["speed"] is Status.INVALID


def test_a_slower_host_excuses_nothing_where_both_run_on_it() -> None:
    slow, host = slowed(sample(), 1.3), place(canaries={"host product": 1.3e-3})
    assert statuses(slow, environment=host, again=process(slow, host))["speed"] is Status.FAIL


def test_another_host_says_nothing_of_what_is_host_bound() -> None:
    slow, elsewhere = slowed(sample(), 1.5), place(host={"cpu": "slide rule"})
    found = statuses(slow, environment=elsewhere)
    assert found["host"] is Status.INCONCLUSIVE and found["ppl"] is Status.PASS
    assert "speed" not in found
    apart = golden(host_bound=False)
    free = msgspec.structs.replace(slow, host_bound=False)
    found = statuses(free, apart, elsewhere, process(free, elsewhere))
    assert found["speed"] is Status.FAIL


def test_another_version_of_python_changes_no_verdict() -> None:
    assert statuses(sample(), environment=place(context={"python": "4"})) == statuses(sample())


def test_a_disturbed_machine_is_invalid_for_speed_and_not_for_quality() -> None:
    found = verdicts(slowed(sample(), 2), environment=place(problems=["the GPU is throttled"]))
    assert found["speed"].status is Status.INVALID and "throttled" in found["speed"].cause
    assert found["ppl"].status is Status.PASS and "baseline" not in found


DEVICE = msgspec.structs.replace(HERE, canaries={"device copy": 1e-3, "host product": 1e-3})


@pytest.mark.parametrize(
    ("canaries", "host_bound", "valid"),
    [
        ({"device copy": 1e-3, "host product": 1e-3}, False, True),
        ({"device copy": 1.09e-3, "host product": 1e-3}, False, True),
        ({"device copy": 1.2e-3, "host product": 1e-3}, False, False),
        ({"device copy": 0.8e-3, "host product": 1e-3}, False, False),
        ({"device copy": 1e-3, "host product": 2.5e-3}, True, True),
        ({"device copy": 1e-3, "host product": 3e-3}, True, False),
        ({"device copy": 1e-3, "host product": 3e-3}, False, True),
        ({"device copy": math.nan, "host product": 1e-3}, False, False),
        ({"device copy": 0.0, "host product": 1e-3}, False, False),
        ({"host product": 1e-3}, False, False),
    ],
)
def test_a_canary_out_of_its_band_is_invalid(
    canaries: dict[str, float], host_bound: bool, valid: bool
) -> None:
    here = golden(where=DEVICE, host_bound=host_bound)
    one = sample(host_bound=host_bound)
    found = statuses(one, here, place(canaries=canaries))
    assert found["speed"] is (Status.PASS if valid else Status.INVALID)


# What was published


PUBLISHED = Golden(
    Provenance("published, not measured here", "2026-01-31", "", processes=0),
    machine={"device": "toy"},
    host={},
    canaries={},
    entries={
        NAME: Entry(
            {"model": "toy"},
            published=True,
            published_range=PublishedRange(2.5, 3.0),
            metrics={"ppl": Metric(20.0, 0.05, max_value=20.5)},
        )
    },
)


@pytest.mark.parametrize(
    ("speedup", "status"), [(2.4, Status.FAIL), (2.6, Status.PASS), (3.1, Status.IMPROVED)]
)
def test_a_published_speedup_is_a_band(speedup: float, status: Status) -> None:
    one = sample(-math.log(speedup))
    assert statuses(one, PUBLISHED, again=process(one))["speed"] is status


def test_a_speedup_below_the_published_band_is_confirmed_first() -> None:
    slow = sample(-math.log(2.4))
    assert statuses(slow, PUBLISHED)["speed"] is Status.SUSPECT
    assert statuses(slow, PUBLISHED, again=process(sample()))["speed"] is Status.SUSPECT


def test_figures_that_were_not_published_are_not_compared() -> None:
    here = place(machine={"device": "toy", "memory_gib": 80}, host={"cpu": "any"})
    one = sample(identity={"model": "toy", "revision": "1"})
    assert statuses(one, PUBLISHED, here) == {"ppl": Status.PASS, "speed": Status.PASS}
    strict = sample(identity={"model": "toy"}, metrics={"ppl": Metric(20.0, 0.05, max_value=19.0)})
    assert statuses(strict, PUBLISHED, here)["ppl"] is Status.PASS, "today's budget was not"
    other = msgspec.structs.replace(one, name="unpublished")
    assert list(statuses(other, PUBLISHED, here).values()) == [Status.INCONCLUSIVE]
    assert statuses(one, PUBLISHED, place(machine={"device": "x"})) == {"machine": Status.INVALID}


# What is missing, and what it comes to


def test_benchmarks_without_a_golden_and_goldens_without_a_benchmark_are_missing() -> None:
    (found,) = judge(sample(name="unknown"), GOLDEN, HERE)
    assert found.status is Status.MISSING and found.name == "unknown"
    (found,) = missing(GOLDEN, ["unknown"])
    assert found.status is Status.MISSING and found.name == NAME
    assert missing(GOLDEN, [NAME]) == []


def of(*found: Status) -> list[Verdict]:
    return [Verdict("name", "check", status) for status in found]


def test_precedence_of_statuses() -> None:
    green = ["PASS", "IMPROVED", "INCONCLUSIVE", "SUSPECT", "WARNING"]
    assert [s.name for s in Status] == [*green, "INVALID", "MISSING", "FAIL"]
    for less, more in itertools.combinations(Status, 2):
        assert worst(of(more, less)) is worst(of(less, more)) is more
    assert worst([]) is Status.PASS
    assert [s.name for s in Status if s.fails_build] == ["INVALID", "MISSING", "FAIL"]


@pytest.mark.parametrize(
    ("found", "n_measured", "status"),
    [
        ([Status.PASS], 1, 0),
        ([Status.IMPROVED, Status.INCONCLUSIVE, Status.SUSPECT], 1, 0),
        ([Status.FAIL], 1, 1),
        ([Status.MISSING], 1, 1),
        ([Status.INVALID, Status.PASS], 2, 75),
        ([Status.INVALID, Status.FAIL], 2, 1),
        ([], 0, 5),
        ([Status.MISSING], 0, 5),
    ],
)
def test_exit_status(found: list[Status], n_measured: int, status: int) -> None:
    assert exit_status(of(*found), n_measured) == status


def test_what_is_not_the_same_is_not_the_machines_fault() -> None:
    other = Verdict("a", "identity", Status.INVALID)
    assert exit_status([other, *of(Status.INVALID)], 2) == 76
    assert exit_status([other, *of(Status.FAIL)], 2) == 1


def test_a_metric_of_zero_may_move_by_its_absolute_tolerance() -> None:
    was = Metric(0.0, rel_tol=0.0, abs_tol=1e-6)
    for value, status in ((9e-7, Status.PASS), (1.1e-6, Status.FAIL)):
        assert (
            check_metric("n", "x", msgspec.structs.replace(was, value=value), was).status is status
        )


def test_a_tolerance_that_the_test_tightens_holds_at_once() -> None:
    was = Metric(20.0, rel_tol=0.1)
    assert check_metric("n", "x", Metric(20.5, rel_tol=0.1), was).status is Status.PASS
    found = check_metric("n", "x", Metric(20.5, rel_tol=0.01), was)
    assert found.status is Status.FAIL and "rel_tol is 1 %" in found.cause


def test_a_metric_below_its_lower_bound_fails() -> None:
    was = Metric(3e-6, rel_tol=3.0, min_value=1e-8)
    found = check_metric("n", "x", msgspec.structs.replace(was, value=0.0), was)
    assert found.status is Status.FAIL and "min_value is 1e-08" in found.cause


def test_a_publication_compares_the_fields_that_it_names_anywhere() -> None:
    """One that it sets elsewhere is at its default here."""
    other = Entry({"model": "toy", "max_drop": 3}, published=True, metrics={"x": Metric(1.0, 0.1)})
    entries = {**PUBLISHED.entries, "other": other}
    golden = msgspec.structs.replace(PUBLISHED, entries=entries)
    assert "identity" not in statuses(
        sample(identity={"model": "toy", "attention": "sdpa"}), golden
    )
    assert "identity" in statuses(sample(identity={"model": "toy", "max_drop": 3}), golden)
