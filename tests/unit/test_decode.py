"""Decoding loops: the same NLL from every cache, and honest times."""

import time

import pytest
import torch

from streamcache import EvictionPolicy, ReferenceCache, RerotatingCache, StreamingCache
from streamcache.decoding.loop import SteadyDecode, sequential_nll
from streamcache.decoding.nll import token_nll
from streamcache.measure.timing import TokenTimings, time_tokens
from tests import tiny

POLICIES = [
    EvictionPolicy(4, 20),
    EvictionPolicy(0, 16),
    EvictionPolicy(3, 17, cache_slack=5, max_drop=2, compress_every=7),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("kind", [StreamingCache, RerotatingCache, ReferenceCache])
def test_sequential_nll_is_that_of_the_oracle(
    kind: type[StreamingCache], policy: EvictionPolicy
) -> None:
    model, ids = tiny.neox(), tiny.text(150)
    logits = tiny.expected(model, policy, ids[:, :-1])[0]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    nll = sequential_nll(model, ids[0], kind(model, policy))
    assert nll.shape == (149,) and nll.dtype == torch.float32
    assert (nll.double() - expected).abs().max() < 5e-4


def test_a_single_token_predicts_nothing() -> None:
    model = tiny.llama()
    with pytest.raises(ValueError, match="a stream of 1 tokens predicts nothing"):
        sequential_nll(model, tiny.text(1)[0], StreamingCache(model, POLICIES[0]))


def test_a_text_shorter_than_the_window_is_one_causal_pass() -> None:
    model, ids = tiny.llama(), tiny.text(12)
    nll = sequential_nll(model, ids[0], StreamingCache(model, EvictionPolicy(4, 60)))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
    assert torch.allclose(nll, token_nll(logits, ids[0, 1:]), atol=1e-5)


def test_progress_counts_every_token_once() -> None:
    model, ids = tiny.neox(), tiny.text(60)
    done: list[int] = []
    cache = StreamingCache(model, EvictionPolicy(4, 20))
    sequential_nll(model, ids[0], cache, done.append)
    assert sum(done) == 59 == cache.seen


def test_a_stream_starts_full_and_goes_on_past_the_end_of_its_text() -> None:
    model, ids = tiny.neox(), tiny.text(40)
    cache = StreamingCache(model, EvictionPolicy(4, 20))
    stream = SteadyDecode(model, ids[0], cache)
    assert cache.size == cache.policy.floor
    for _ in range(50):
        logits = stream()
    assert cache.seen == 24 + 50 and logits.shape == (1, 1, tiny.VOCABULARY)


def test_token_timings_are_the_time_of_each_call() -> None:
    pauses = iter([0.001, 0.03, 0.001])
    timings = time_tokens(lambda: time.sleep(next(pauses)), 3, torch.device("cpu"))
    assert len(timings.token_ms) == 3 and not timings.on_device
    assert timings.token_ms[1] > 30 > max(timings.token_ms[0], timings.token_ms[2])
    assert timings.wall_ms == pytest.approx(sum(timings.token_ms), rel=1e-6)
    joined = TokenTimings.join([timings, timings])
    assert joined.token_ms == timings.token_ms * 2 and joined.wall_ms == 2 * timings.wall_ms
