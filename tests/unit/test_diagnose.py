"""Diagnosis: the statistic finds a planted effect, and nothing where nothing is planted."""

import csv
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamcache.measure.checked import Floats
from streamcache.measure.diagnose import (
    Diagnosis,
    DiagnosisError,
    cache_states,
    difference,
    eviction_effect,
    per_token_eviction,
    small_window_control,
    span_of,
)
from streamcache.policy import EvictionPolicy, count_evictions
from tests.oracle import kept_after_each
from tests.shell import Run
from tests.tiny import rule


def noise(n: int, seed: int) -> Floats:
    """Heavy-tailed and autocorrelated, as differences of NLL are."""
    shocks = np.random.default_rng(seed).standard_t(df=3, size=n) * 0.1
    for i in range(1, n):
        shocks[i] += 0.3 * shocks[i - 1]
    return shocks


def every(n: int, length: int) -> Any:
    return np.arange(n, length, n)


@pytest.mark.parametrize(
    "policy",
    [EvictionPolicy(4, 9, None, None, 8), EvictionPolicy(2, 14, 3, 2, 8), EvictionPolicy(0, 5)],
)
def test_cache_states_follow_from_the_policy(policy: EvictionPolicy) -> None:
    kept = [len(tokens) for tokens in kept_after_each(200, *rule(policy))]
    states = list(cache_states(policy, 200))
    assert [state.size for state in states] == kept
    assert [state.evicted for state in states] == [
        before + 1 - after for before, after in zip([0, *kept], kept)
    ]
    counted = count_evictions(policy, 200)
    assert [state.eviction for state in states].count("scheduled") == counted.scheduled
    assert [state.eviction for state in states].count("forced") == counted.forced


def test_the_policies_compared_with() -> None:
    policy = EvictionPolicy(4, 509, compress_every=512)
    assert per_token_eviction(policy) == EvictionPolicy(4, 1020)
    assert small_window_control(policy) == EvictionPolicy(4, 509)


def test_a_planted_effect_is_found_and_measured() -> None:
    series, evictions = noise(10_000, seed=1), every(200, 10_000)
    for position in evictions:
        series[position : position + 20] += 0.2
    found = eviction_effect(series, evictions, 50, 499, seed=0)
    assert found.excess_p == found.peak_p == 1 / 500
    assert found.excess == pytest.approx(0.2 * 20 / 50, abs=0.02)
    assert found.area == pytest.approx(4, abs=1) and 10 < found.width < 25
    assert found.shuffled_excess[0] < 0 < found.shuffled_excess[1] < found.excess
    assert len(found.profile) == 100 and found.n_boundaries == len(evictions)


def test_where_nothing_is_planted_p_is_what_it_says() -> None:
    """Of 200 series without an effect about 5 % have p <= 0.05: evenly spaced evictions, shuffled
    ones that may overlap, heavy tails and autocorrelation do not upset the test."""
    found = [
        eviction_effect(noise(4000, s), every(128, 4000), 32, 199, s).excess_p for s in range(200)
    ]
    assert 3 <= sum(p <= 0.05 for p in found) <= 20
    assert 0.4 < np.mean(found) < 0.6


def test_a_dip_after_evictions_is_no_eviction_effect() -> None:
    series, evictions = noise(10_000, seed=1), every(200, 10_000)
    for position in evictions:
        series[position : position + 20] -= 0.2
    found = eviction_effect(series, evictions, 50, 199, seed=0)
    assert found.excess < found.shuffled_excess[0] and found.excess_p == 1


def test_where_every_token_is_an_eviction_there_is_nothing_to_shuffle() -> None:
    series = noise(3000, seed=2)
    evictions = np.arange(3000)
    assert span_of(evictions) == 1
    found = eviction_effect(series, evictions, 1, 99, seed=0)
    assert found.excess_p == found.peak_p == 1.0 and abs(found.excess) < 1e-3


def test_shuffles_are_seeded() -> None:
    series, evictions = noise(3000, seed=2), every(100, 3000)
    first, again, other = (eviction_effect(series, evictions, 30, 99, seed) for seed in (0, 0, 1))
    assert first == again and first.shuffled_low != other.shuffled_low
    assert first.profile == other.profile


def test_spans_do_not_meet() -> None:
    assert span_of(every(512, 5000)) == 64
    assert span_of(every(17, 5000)) == 8
    assert span_of(np.array([7])) == 1


def test_the_interval_of_a_difference_holds_the_truth() -> None:
    """95 % of the time, for autocorrelated noise, whose naive interval is too narrow."""
    found = [difference(noise(4000, seed) + 0.05) for seed in range(200)]
    assert 0.90 <= np.mean([d.low <= 0.05 <= d.high for d in found]) <= 0.985
    assert found[0].low < found[0].mean < found[0].high


def test_too_little_to_say_anything() -> None:
    with pytest.raises(DiagnosisError, match="1 evictions with 8 tokens"):
        eviction_effect(noise(100, 0), np.array([4, 50, 99]), 8, 19, 0)
    with pytest.raises(DiagnosisError, match="15 tokens in the steady state"):
        eviction_effect(noise(15, 0), np.array([4, 6]), 8, 19, 0)
    with pytest.raises(DiagnosisError, match="31 tokens in the steady state, 32"):
        difference(noise(31, 0))


def only(folder: Path, suffix: str) -> Path:
    (path,) = (folder / "runs" / "diagnose").glob(f"*/*{suffix}")
    return path


def test_256_entries_evicted_at_once_show_an_effect_and_one_at_a_time_does_not(
    run: Run, tmp_path: Path
) -> None:
    arguments = ["diagnose", "--cap-total", "344", "--max-eval-tokens", "4096"]
    ran = run(*arguments, "--compress-every", "256")
    assert ran.status == 0, ran.err
    assert "after evictions" in ran.out and "control" in ran.out
    found = msgspec.json.decode(only(tmp_path, ".json").read_bytes(), type=Diagnosis)
    assert found.evictions.scheduled == 15 and found.evictions.forced == 0
    assert found.effect.excess > 0 and found.effect.excess_p < 0.01
    assert found.control.excess_p > 0.05, "a policy that does not evict there shows nothing there"
    assert found.difference.low > 0, "half-empty after each eviction, it must be worse in all"

    rows = list(csv.DictReader(only(tmp_path, ".csv").open()))
    assert len(rows) == 4095 and rows[0]["position"] == "1"
    assert [r["position"] for r in rows if r["eviction"] == "scheduled"][:2] == ["256", "512"]
    assert {int(r["evicted"]) for r in rows} == {0, 256 - 89, 256}
    assert max(int(r["cache_size"]) for r in rows) == 344
    late = [float(r["nll"]) - float(r["nll_against"]) for r in rows[found.first_position - 1 :]]
    assert np.mean(late) == pytest.approx(found.difference.mean, abs=1e-5)
    assert only(tmp_path, ".svg").read_text().startswith("<?xml")
    for path in (tmp_path / "runs" / "diagnose").glob("*/*"):
        path.unlink()

    assert run(*arguments, "--max-eval-tokens", "1200", "--no-plot").status == 0
    found = msgspec.json.decode(only(tmp_path, ".json").read_bytes(), type=Diagnosis)
    assert found.effect.excess == 0 and found.effect.excess_p == found.raw.excess_p == 1


def test_two_policies_on_the_same_tokens(run: Run, tmp_path: Path) -> None:
    ran = run(
        *("diagnose", "--max-eval-tokens", "2400", "--n-sink", "0", "--window-size", "100"),
        *("--compress-every", "16", "--against", "best", "--no-plot"),
    )
    assert ran.status == 0, ran.err
    found = msgspec.json.decode(only(tmp_path, ".json").read_bytes(), type=Diagnosis)
    assert found.against == "best" and found.first_position == 2049
    assert found.difference.low > 0 and found.difference.n_tokens == 2399 - 2048
    assert "best" in ran.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--max-eval-tokens", "300"], ["steady state", "--max-eval-tokens"]),
        (["--against", "beast"], ["'beast'", "baseline, mit"]),
        (["--against", "baseline"], ["baseline has no cache"]),
        (["--against", "mit"], ["mit has the same policy"]),
        (["--seed", "-1"], ["--seed"]),
        (["--model-name", "random:reference"], ["random weights"]),
        (["--overlap", "4"], ["--cap-total"]),
    ],
)
def test_bad_input_gets_one_line(run: Run, arguments: list[str], words: list[str]) -> None:
    ran = run("diagnose", "--no-plot", *arguments)
    assert ran.status == 2 and ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err


def test_without_matplotlib_one_line_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("diagnose")
    assert ran.status == 2 and "streamcache[plots]" in ran.err and ran.err.count("\n") == 1
