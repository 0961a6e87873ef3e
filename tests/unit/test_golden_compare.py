"""Two trees in turns: what passes, what fails, and what says nothing."""

import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from streamcache.gate.compare import Round, changes, compare, confirmed, undecided
from streamcache.gate.environment import Environment
from streamcache.gate.samples import Metric, Process, Sample
from streamcache.gate.verdicts import Status, Verdict, exit_status, worst
from tests.goldens import HERE, NAME, sample, slowed, with_pairs

DRIFT = (0.0, 0.3, -0.2, 0.1)  # of the machine from round to round: of both trees


def rounds(
    new: float = 1.0, noise: float = 0.0, seed: int = 0, n: int = 4, **more: Any
) -> list[Round]:
    """Rounds in which this tree takes so many times as long, and processes differ by a noise."""
    source = random.Random(seed)

    def process(factor: float, machine: float, **fields: Any) -> Process:
        one = slowed(sample(**fields), factor * math.exp(source.gauss(0, noise)))
        pairs = [(a * math.exp(machine), b * math.exp(machine)) for a, b in one.pairs]
        return Process(HERE, [with_pairs(one, pairs)])

    return [Round(process(1.0, d), process(new, d, **more)) for d in (DRIFT * n)[:n]]


def statuses(found: list[Verdict]) -> dict[str, Status]:
    return {v.check: v.status for v in found}


def test_a_tree_against_itself_passes_whatever_the_machine_does_from_round_to_round() -> None:
    found = statuses(compare(rounds()))
    assert set(found) == {"positions", "ppl", "speed", "mean", "baseline"}
    assert set(found.values()) == {Status.PASS}


@pytest.mark.parametrize(
    ("factor", "status"),
    [(1.02, Status.PASS), (1.05, Status.FAIL), (0.98, Status.PASS), (0.9, Status.IMPROVED)],
)
def test_a_loss_beyond_three_percent_fails(factor: float, status: Status) -> None:
    found = {v.check: v for v in compare(rounds(factor))}
    assert found["speed"].status is status
    assert found["speed"].loss == pytest.approx(factor - 1, abs=1e-6)


def test_a_failure_is_confirmed_by_further_rounds() -> None:
    slow = rounds(1.05)
    first = compare(slow)
    assert undecided(first) == [NAME]
    assert worst(confirmed(first, slow, rounds(1.05))) is Status.FAIL
    slow = rounds(1.1)
    doubted = {v.check: v for v in confirmed(compare(slow), slow, rounds(1.02))}
    assert doubted["speed"].status is Status.SUSPECT
    assert "do not agree" in doubted["speed"].cause


def test_noise_is_inconclusive_until_further_rounds_tell() -> None:
    wild = rounds(noise=0.08)
    found = compare(wild)
    assert statuses(found)["speed"] is Status.INCONCLUSIVE and undecided(found) == [NAME]
    many = confirmed(found, wild, rounds(n=40))
    assert statuses(many)["speed"] is Status.PASS
    assert statuses(many)["ppl"] is Status.PASS, "figures are judged once"


def test_how_often_chance_alone_fails_and_how_often_a_loss_is_caught() -> None:
    """With the noise between processes that was measured on a CPU, 0.8 %."""

    def fails(factor: float, seed: int) -> bool:
        first = rounds(factor, 0.008, seed)
        found = compare(first)
        if undecided(found):
            found = confirmed(found, first, rounds(factor, 0.008, 10_000 + seed))
        return worst(found) is Status.FAIL

    shares = {factor: sum(fails(factor, seed) for seed in range(200)) for factor in (1, 1.05, 1.1)}
    assert shares[1] == 0
    assert shares[1.05] >= 160, "of 200: 16 of 20"
    assert shares[1.1] == 200


def test_rare_slow_blocks_show_in_the_mean() -> None:
    """The median does not see one block of ten that takes ten times as long."""
    one = sample()
    rare = with_pairs(
        one, [(10 * a, b) if i == 3 else (a, b) for i, (a, b) in enumerate(one.pairs)]
    )
    found = statuses(compare([Round(Process(HERE, [one]), Process(HERE, [rare]))] * 4))
    assert found["speed"] is Status.PASS and found["mean"] is Status.FAIL


def test_the_mean_of_a_plain_benchmark_is_over_all_its_rounds() -> None:
    """Its pairs are medians of many rounds each, which do not show the rare ones either."""
    pairs = [(1e-3, 1.0)] * 40
    base, new = (sample(pairs=pairs, mean_s=mean) for mean in (1e-3, 1.5e-3))
    found = statuses(compare([Round(Process(HERE, [base]), Process(HERE, [new]))] * 4))
    assert found == {"positions": Status.PASS, "ppl": Status.PASS} | {
        "speed": Status.PASS,
        "mean": Status.FAIL,  # and it has no baseline
    }


def test_both_sides_slower_shows_in_the_baselines_time() -> None:
    one = sample()
    both = with_pairs(one, [(1.5 * a, 1.5 * b) for a, b in one.pairs])
    found = statuses(compare([Round(Process(HERE, [one]), Process(HERE, [both]))] * 4))
    assert found["speed"] is Status.PASS and found["baseline"] is Status.FAIL


def test_a_baseline_slower_in_most_blocks_is_seen() -> None:
    """Its quickest block alone would not tell."""
    one = sample()
    most = with_pairs(
        one, [(1.4 * a, 1.6 * b) if i else (a, b) for i, (a, b) in enumerate(one.pairs)]
    )
    found = statuses(compare([Round(Process(HERE, [one]), Process(HERE, [most]))] * 4))
    assert found["baseline"] is Status.FAIL


@pytest.mark.parametrize(
    ("new", "check"),
    [
        ({"metrics": {"ppl": Metric(20.1, 1e-3, 20.5)}}, "ppl"),
        ({"metrics": {"ppl": Metric(20.1, 1.0, 20.5)}}, "ppl"),
        ({"equal": {"positions": 99}}, "positions"),
    ],
)
def test_figures_are_judged_by_the_tighter_of_both_tolerances(
    new: dict[str, Any], check: str
) -> None:
    assert statuses(compare(rounds(**new)))[check] is Status.FAIL


def test_something_else_measured_is_invalid() -> None:
    assert statuses(compare(rounds(identity={"model": "other"}))) == {"identity": Status.INVALID}


def test_changes_are_of_each_round_with_times_that_are_times() -> None:
    found = changes([*rounds(1.1, n=2), *rounds(pairs=[(0.0, 0.1)] * 10, n=1)])
    assert found[f"{NAME} speed"] == pytest.approx([math.log(1.1)] * 2)
    assert found[f"{NAME} baseline"] == [0.0, 0.0]


def test_a_benchmark_that_only_one_tree_measures() -> None:
    empty, full = Process(HERE, []), Process(HERE, [sample()])
    new = compare([Round(empty, full)] * 4)
    assert statuses(new) == {"benchmark": Status.INCONCLUSIVE} and "new here" in new[0].cause
    assert statuses(compare([Round(full, empty)] * 4)) == {"benchmark": Status.INCONCLUSIVE}
    required = compare([Round(full, empty)] * 4, required=True)
    assert statuses(required) == {"benchmark": Status.MISSING}


def test_a_test_that_fails_here_alone_is_a_failure() -> None:
    full, failed = Process(HERE, [sample()]), Process(HERE, [], failed=[NAME])
    assert statuses(compare([Round(full, failed)] * 4)) == {"test": Status.FAIL}
    assert compare([Round(failed, failed)] * 4) == []
    late = compare([Round(full, full)] * 3 + [Round(full, failed)])
    assert statuses(late) == {"test": Status.FAIL}, "in any of the rounds"


@pytest.mark.parametrize(
    "disturb",
    [
        lambda s: Process(msgspec.structs.replace(HERE, problems=["throttled"]), [s]),
        lambda s: Process(HERE, [msgspec.structs.replace(s, wait_share=0.5)]),
    ],
)
def test_a_disturbed_round_does_not_count_and_too_few_are_invalid(disturb: Any) -> None:
    calm = Round(Process(HERE, [sample()]), Process(HERE, [sample()]))
    odd = Round(calm.base, disturb(slowed(sample(), 2.0)))
    assert statuses(compare([calm, odd, calm, calm]))["speed"] is Status.PASS
    found = {v.check: v for v in compare([calm, odd, odd, calm])}
    assert found["speed"].status is Status.INVALID and "3 are needed" in found["speed"].cause
    assert found["ppl"].status is Status.PASS
    assert undecided(found.values()) == [NAME], "further rounds may be calm"
    more = confirmed(found.values(), [calm, odd, odd, calm], [calm, odd, calm, calm])
    assert statuses(more) == dict.fromkeys(
        ("positions", "ppl", "speed", "mean", "baseline"), Status.PASS
    )


@pytest.mark.parametrize(
    "disturb",
    [
        lambda s: Process(msgspec.structs.replace(HERE, problems=["a mode is on"]), [s]),
        lambda s: Process(HERE, [msgspec.structs.replace(s, wait_share=0.5)]),
    ],
)
def test_what_disturbs_this_tree_in_each_round_and_never_the_base_is_its_own(disturb: Any) -> None:
    calm = Process(HERE, [sample()])
    found = {v.check: v for v in compare([Round(calm, disturb(slowed(sample(), 2.0)))] * 4)}
    assert found["speed"].status is Status.FAIL
    assert found["speed"].cause.startswith("in each round, and never at the base: ")
    both = compare([Round(disturb(sample()), disturb(slowed(sample(), 2.0)))] * 4)
    assert statuses(both)["speed"] is Status.INVALID


def shaky_rounds(base: Sequence[float], new: Sequence[float]) -> list[Round]:
    """Rounds in which the two trees take so many times as long as usual."""
    one = sample()
    trees = ([Process(HERE, [slowed(one, factor)]) for factor in side] for side in (base, new))
    return [Round(*pair) for pair in zip(*trees)]


def test_a_loss_that_scatters_is_no_pass() -> None:
    """No bound is narrow, but on average the loss is there."""
    shaky = shaky_rounds((1.0, 1.4, 1.0, 1.4), (1.0, 1.9, 1.3, 1.3))
    first = compare(shaky)
    assert statuses(first)["speed"] is Status.INCONCLUSIVE
    found = {v.check: v for v in confirmed(first, shaky, shaky)}
    assert found["speed"].status is Status.INVALID
    assert "slower on average" in found["speed"].cause
    calm = confirmed(first, shaky, rounds())
    assert statuses(calm)["speed"] is Status.INCONCLUSIVE


def test_a_loss_of_a_tree_that_alone_scatters_is_a_failure() -> None:
    """Noise is no way out: the same machine times the base without it."""
    shaky = shaky_rounds((1.0, 1.001, 1.0, 0.999), (1.0, 1.9, 1.3, 0.93))
    first = compare(shaky)
    assert statuses(first)["speed"] is Status.INCONCLUSIVE
    found = {v.check: v for v in confirmed(first, shaky, shaky)}
    assert found["speed"].status is Status.FAIL and "x as much as the base" in found["speed"].cause


@pytest.mark.parametrize("both", [False, True])
def test_more_than_twice_as_fast_does_not_do_its_work(both: bool) -> None:
    one = sample()
    quick = with_pairs(one, [(0.4 * a, (0.4 if both else 1.0) * b) for a, b in one.pairs])
    found = {v.check: v for v in compare([Round(Process(HERE, [one]), Process(HERE, [quick]))] * 4)}
    check = "baseline" if both else "speed"
    assert found[check].status is Status.FAIL
    assert "2.5 x as fast: does it still do its work?" in found[check].cause


def test_another_number_of_threads_is_another_measurement() -> None:
    more = msgspec.structs.replace(HERE, machine={"device": "toy", "threads": 2})
    found = compare([Round(Process(HERE, [sample()]), Process(more, [sample()]))] * 4)
    assert statuses(found) == {"identity": Status.INVALID}
    assert exit_status(found, 1) == 76


@pytest.mark.parametrize("pairs", [[(math.nan, 0.1)] * 10, [(0.0, 0.1)] * 10])
def test_a_time_that_is_no_time_fails(pairs: list[tuple[float, float]]) -> None:
    assert statuses(compare(rounds(pairs=pairs)))["times"] is Status.FAIL


def test_times_that_are_gone_are_missing() -> None:
    full = Process(HERE, [sample()])
    without = Process(HERE, [sample(pairs=[])])
    assert statuses(compare([Round(full, without)] * 4))["speed"] is Status.MISSING


def test_environments_need_no_canaries() -> None:
    plain = Environment()
    assert worst(compare([Round(Process(plain, [sample()]), Process(plain, [sample()]))] * 4)) is (
        Status.PASS
    )


def test_samples_with_few_pairs_are_invalid() -> None:
    few: Sample = with_pairs(sample(), sample().pairs[:3])
    found = compare([Round(Process(HERE, [few]), Process(HERE, [few]))] * 4)
    assert statuses(found)["speed"] is Status.INVALID
