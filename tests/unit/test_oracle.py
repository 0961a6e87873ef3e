"""Logits of every cache against a float64 oracle that has no cache and no rotation code."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.reference import ReferenceCache
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import CACHES, POLICIES, each_cache
from tests.tiny import copy_of, error, expected, llama, neox, stream, text, tiny

Model = Callable[..., PreTrainedModel]

MODELS = [neox, llama]
TIGHT = 1e-4  # of the logits' standard deviation, in float32

each_model = pytest.mark.parametrize("make", MODELS)


@pytest.mark.parametrize("name", POLICIES)
@each_model
def test_token_by_token(make: Model, name: str) -> None:
    model, policy, ids = make(), POLICIES[name], text(100)
    reference = expected(model, policy, ids)
    for cache_type in CACHES:
        cache = cache_type(model, policy)
        assert error(stream(model, cache, ids), reference) < TIGHT, cache_type
        is_rebased = cache.base > 0 or cache_type is ReferenceCache
        assert is_rebased, "positions must be re-based in this stream"


CHUNKS = {
    "vanilla": [1, 7, 12, 12, 1, 1, 5, 12, 3, 8] * 3,
    "no sinks": [11, 2, 1, 9, 11, 6] * 4,
    "lazy": [9, 9, 1, 4, 8, 7, 1, 1] * 4,
    "softlite": [10, 6, 1, 10, 10, 3] * 4,
}


@pytest.mark.parametrize("name", CHUNKS)
@each_model
def test_chunks_equal_the_oracle(make: Model, name: str) -> None:
    model, policy, chunks = make(), POLICIES[name], CHUNKS[name]
    ids = text(sum(chunks))
    reference = expected(model, policy, ids)
    for cache_type in CACHES:
        logits = stream(model, cache_type(model, policy), ids, chunks)
        assert error(logits, reference) < TIGHT, cache_type


@each_cache
@each_model
def test_a_batch_is_its_rows(make: Model, cache_type: type[BoundedCache]) -> None:
    model, policy, ids = make(), POLICIES["softlite"], text(120, batch=3)
    logits = stream(model, cache_type(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < TIGHT


def test_positions_start_anew_many_times_in_a_long_stream() -> None:
    """At 1500 tokens and a capacity of 24 a stream re-bases more than fifty times."""
    model, policy, ids = neox(num_hidden_layers=1), EvictionPolicy(4, 16, 4, 3, 5), text(1500)
    assert policy.capacity == 24
    cache = StreamingCache(model, policy)
    logits = stream(model, cache, ids)
    assert cache.base > 1400 and cache.next_position <= policy.capacity
    assert error(logits, expected(model, policy, ids)) < TIGHT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_model
def test_half_precision(make: Model, dtype: torch.dtype) -> None:
    """A cache adds little to the error that the same dtype makes without a cache."""
    model, policy, ids = make(), POLICIES["softlite"], text(120)
    half = copy_of(model, dtype)
    rounded = copy_of(half, torch.float32)
    reference = expected(rounded, policy, ids)
    without = (reference - expected(half, policy, ids, dtype=dtype)).abs()
    for cache_type in CACHES:
        off = (reference - stream(half, cache_type(half, policy), ids)).abs()
        assert off.mean() < 1.5 * without.mean(), cache_type
        assert off.max() < 3 * without.max(), cache_type


def test_no_drift_in_bfloat16() -> None:
    """After 4000 tokens, and 800 shifts of the sinks, the error is what it was after 100."""
    policy, chunks = EvictionPolicy(4, 16, 4, 5, 5), [4, *[5] * 820]  # the first of each evicts
    half = copy_of(neox(num_hidden_layers=1), torch.bfloat16)
    rounded = copy_of(half, torch.float32)
    ids = text(sum(chunks))
    reference = stream(rounded, StreamingCache(rounded, policy), ids, chunks)
    logits = stream(half, StreamingCache(half, policy), ids, chunks)
    off = (logits - reference).abs().mean(dim=(0, 2))
    assert off[4000:4100].mean() < 1.5 * off[100:200].mean()


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_rope(scaling: str) -> None:
    rope = {"rope_theta": 10000.0, **SCALINGS[scaling]}
    model, policy, ids = llama(rope_parameters=rope), POLICIES["softlite"], text(150)
    reference = expected(model, policy, ids)
    for cache_type in CACHES:
        assert error(stream(model, cache_type(model, policy), ids), reference) < TIGHT, cache_type


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_within_the_window(attention: str) -> None:
    """The model's own sliding window counts places in the cache, as everything does."""
    model = tiny("mistral", num_key_value_heads=2, sliding_window=7, attn_implementation=attention)
    chunks = [1] * 80 + [12, 5, 1, 9] * 4
    policy, ids = EvictionPolicy(4, 12, 3, 2, 8), text(sum(chunks))
    reference = expected(model, policy, ids)
    unbounded = tiny("mistral", num_key_value_heads=2, sliding_window=None)
    assert error(expected(unbounded, policy, ids), reference) > 0.1, "it must matter"
    for cache_type in CACHES:
        logits = stream(model, cache_type(model, policy), ids, chunks)
        assert error(logits, reference) < TIGHT, cache_type
