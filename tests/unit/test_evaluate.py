"""From NLLs to the figures of a record, by hand."""

import math

import pytest
import torch

from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model
from streamcache.measure import evaluate, timing
from streamcache.measure.baseline import Baseline, Fingerprint
from streamcache.measure.configurations import Configuration
from streamcache.measure.evaluate import quality
from streamcache.measure.timing import Laps
from streamcache.policy import EvictionPolicy


def test_the_increase_and_its_error_are_over_the_positions_in_common() -> None:
    made_from = Fingerprint("m", "r", "float32", "d", 20, 2, 6, 4)
    positions = made_from.positions()
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 18]
    nll = torch.full((19,), 2.0)
    nll[[8, 11, 15, 18]] = torch.tensor([2.1, 2.3, 2.1, 2.3])
    found = quality(nll, 8, "one-pass", Baseline(made_from, [2.0] * 12))
    assert found.n_compared == 4
    assert found.ppl_compared == pytest.approx(math.exp(2.2))
    assert found.ppl_increase == pytest.approx(math.exp(0.2) - 1)
    deviation = math.sqrt(4 * 0.1**2 / 3)
    assert found.ppl_increase_error == pytest.approx(math.exp(0.2) * deviation / 2)


def test_without_positions_in_common_there_is_no_increase() -> None:
    made_from = Fingerprint("m", "r", "float32", "d", 20, 2, 6, 0)
    found = quality(torch.full((19,), 2.0), 8, "one-pass", Baseline(made_from, [2.0] * 8))
    assert found.n_compared == 0 and found.ppl_increase is found.ppl_increase_error is None
    assert found.ppl == pytest.approx(math.exp(2.0)) and found.n_steady == 12


@pytest.mark.parametrize("every", [1, 5, 36, 72])
def test_timed_tokens_have_their_share_of_the_evictions(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block, whatever its phase: of R tokens one finds the cache pruned."""
    policy = EvictionPolicy(2, 8, compress_every=every)
    configuration = Configuration("lazy", policy, "fast")
    loaded, text = load_model(), load_tokens("stream", tokenizer=None, max_tokens=100)
    sizes: dict[int, list[int]] = {}
    real = timing.time_tokens

    def watched(step: object, n_tokens: int, device: torch.device) -> Laps:
        laps = real(step, n_tokens, device)  # type: ignore[arg-type]
        if hasattr(step, "cache"):
            sizes.setdefault(step.cache.seen, []).append(n_tokens)
        return laps

    monkeypatch.setattr(evaluate, "time_tokens", watched)
    calls: list[int] = []
    laps = evaluate.lap_times(loaded, text, policy, [configuration], 64, 1, calls.append)
    timed = len(laps["lazy"].token_ms)
    blocks = [n for (n,) in sizes.values() if n != evaluate._SETTLE][1:]  # the first warmed up
    assert all(n % every == 0 for n in blocks) and sum(blocks) == timed
    assert 64 <= timed < 64 + 8 * every and len(blocks) == len(calls)
    assert len(calls) == evaluate.n_blocks(configuration, 64)
