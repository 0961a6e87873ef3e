"""Refresh: which tokens come back and where they stand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from streamcache.caches.reference import ReferenceCache
from streamcache.caches.refresh import RefreshCache, RefreshPolicy, evenly_spaced
from streamcache.decoding.loop import nll_between_evictions, sequential_nll
from streamcache.measure import measurement
from streamcache.measure.configurations import Configuration
from streamcache.measure.steps import decoded_nll
from streamcache.policy import EvictionPolicy, PolicyError
from tests.oracle import Oracle, kept_after_each
from tests.shell import Run
from tests.tiny import copy_of, error, llama, neox, rule, stream, text

POLICY = EvictionPolicy(3, 10, compress_every=4)


def held(n_tokens: int, policy: EvictionPolicy, budget: int, where: str) -> list[list[int]]:
    """What is held after each token, in the order of the cache, written out from the definition."""
    order: list[int] = []
    rows, before = [], 0
    for t, kept in enumerate(kept_after_each(n_tokens, *rule(policy))):
        window = [token for token in kept if token >= policy.n_sink and token < t]
        evicted = t + 1 - len(kept)
        if evicted > before:
            old = list(range(policy.n_sink, policy.n_sink + evicted))
            step = (len(old) - 1) / (budget - 1) if len(old) > budget > 1 else 1
            chosen = [old[round(i * step)] for i in range(min(budget, len(old)))]
            sinks = list(range(policy.n_sink))
            order = sinks + (chosen + window if where == "middle" else window + chosen)
        before = evicted
        order.append(t)
        rows.append(list(order))
    return rows


def test_evenly_spaced() -> None:
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    assert evenly_spaced(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly_spaced(100, 1).tolist() == [0]
    assert len(set(evenly_spaced(1000, 64).tolist())) == 64


@pytest.mark.parametrize("where", ["middle", "tail"])
@pytest.mark.parametrize("make", [neox, llama])
def test_against_the_oracle(make: Any, where: RefreshPolicy) -> None:
    """A token's position is its place in the cache, wherever it was put."""
    model, ids = make(), text(90)
    cache = RefreshCache(model, POLICY, 5, where)
    rows = held(90, POLICY, 5, where)
    oracle = Oracle(copy_of(model, torch.float64)).logits(ids[0], rows)
    assert error(stream(model, cache, ids)[0], oracle) < 1e-4
    assert cache.places.tolist() == rows[-1]
    assert len(rows[-1]) <= POLICY.capacity + 5


def test_refreshed_tokens_keep_stream_order_in_the_middle_and_not_at_the_tail() -> None:
    for where, in_order in (("middle", True), ("tail", False)):
        model = neox()
        cache = RefreshCache(model, POLICY, 5, where)  # type: ignore[arg-type]
        for t in range(60):
            model(input_ids=text(60)[:, t : t + 1], past_key_values=cache)
            assert len(cache.places) == min(t + 1, cache.size + min(5, cache.evicted))
            assert set(range(3)) <= set(cache.places.tolist()) or t < 3
        assert bool((cache.places.diff() > 0).all()) == in_order


def test_refresh_from_eviction_to_eviction_equals_token_by_token() -> None:
    model, ids = neox(), text(120)[0]
    one_by_one = sequential_nll(model, ids, RefreshCache(model, POLICY, 4, "middle"))
    configuration = Configuration(POLICY, "reference", refresh=4)
    found = decoded_nll(configuration, model, ids)
    torch.testing.assert_close(found, one_by_one, atol=1e-4, rtol=0)
    plain = sequential_nll(model, ids, ReferenceCache(model, POLICY))
    torch.testing.assert_close(
        nll_between_evictions(model, ids, ReferenceCache(model, POLICY)), plain, atol=1e-4, rtol=0
    )
    assert (one_by_one - plain).abs().max() > 1e-2, "what was put back is attended to"


def test_a_text_that_fits_the_window_has_no_eviction_to_go_to() -> None:
    model, ids = neox(), text(20)[0]
    cache = RefreshCache(model, EvictionPolicy(2, 30), 4, "middle")
    assert nll_between_evictions(model, ids, cache).shape == (19,)


@pytest.mark.parametrize("budget, where", [(0, "middle"), (4, "front")])
def test_misuse_is_named(budget: int, where: Any) -> None:
    with pytest.raises(PolicyError, match="where=tail or middle"):
        RefreshCache(neox(), POLICY, budget, where)


def test_eval_sets_the_budget_aside(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "refresh.json"
    ran = run(
        *("eval", "--max-eval-tokens", "300", "--runs", "1", "--tpot-tokens", "8"),
        *("--cap-total", "128", "--compress-every", "8", "--refresh-budget", "16"),
        *("--refresh-policy", "tail", "--output-file", str(output)),
    )
    assert ran.status == 0, ran.err
    record = measurement.read(output).record
    assert record.configuration["window_size"] == 128 - 4 - 7 - 16
    assert record.sizes.capacity == 112 and record.sizes.total == 128
    assert record.configuration["refresh"] == 16 and record.configuration["refresh_at"] == "tail"
    assert record.quality is not None and record.quality.method == "sequential"
    assert record.evictions.entries > 0 and record.speed is not None
    assert "up to 16 evicted tokens are put back (tail)" in ran.out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--refresh-budget", "16"], ["--cap-total"]),
        (["--refresh-budget", "200", "--cap-total", "128"], ["refresh=200", "at least 205"]),
        (["--refresh-budget", "4", "--refresh-policy", "front"], ["tail", "middle"]),
        (["--refresh-budget", "4", "--cap-total", "128", "--mode", "baseline"], ["refreshed"]),
        (["--refresh-budget", "4", "--cap-total", "128", "--streaming-mode", "mit"], ["leave out"]),
        (["--refresh-budget", "4", "--cap-total", "128", "--ppl-method", "one-pass"], ["one pass"]),
        (["--refresh-policy", "tail"], ["--refresh-budget"]),
    ],
)
def test_bad_input_gets_one_line(run: Run, arguments: list[str], words: list[str]) -> None:
    ran = run("eval", *arguments)
    assert ran.status == 2 and ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err
