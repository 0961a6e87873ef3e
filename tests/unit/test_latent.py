"""Multi-head latent attention: a cache is given latents, and apart from them the rotated keys."""

from typing import Any

import pytest
import torch

from streamcache import OnePassUnsupported, streaming_nll
from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy
from tests.cases import LATENT, each_cache
from tests.tiny import error, expected, stream, text, tiny

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TIGHT = 1e-4


@pytest.fixture(scope="module", params=["deepseek_v2", "deepseek_v3"])
def model(request: pytest.FixtureRequest) -> Any:
    """Of which one rotates neighbouring pairs, and the other halves."""
    return tiny(request.param, **LATENT)


@each_cache
def test_latents_agree_with_the_oracle(model: Any, cache_type: type[BoundedCache]) -> None:
    """Token by token, and in inputs inside which tokens are evicted."""
    ids, cache = text(60), cache_type(model, POLICY)
    reference = expected(model, POLICY, ids)
    assert error(stream(model, cache, ids), reference) < TIGHT
    cache.reset()
    assert error(stream(model, cache, ids, [50, 1, 9]), reference) < TIGHT
    assert all(layer.rotates_second for layer in cache.geometry.layers)


def test_rows_of_unequal_length_of_latents(model: Any) -> None:
    ids, cache = text(50, batch=2), StreamingCache(model, POLICY)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    with torch.no_grad():
        prompt = model(input_ids=ids[:, :20], attention_mask=mask, past_key_values=cache).logits
    logits = torch.cat([prompt, stream(model, cache, ids[:, 20:])], dim=1)
    for row, own, lead in zip(ids, logits, (7, 0)):
        assert error(own[None, lead:], expected(model, POLICY, row[None, lead:])) < TIGHT


def test_latents_are_taken_back(model: Any) -> None:
    ids, cache = text(50), StreamingCache(model, POLICY, max_rollback=8)
    stream(model, cache, ids[:, :40])
    stream(model, cache, text(6, seed=1))
    cache.crop(-6)
    reference = expected(model, POLICY, ids)[:, 40:]
    assert error(stream(model, cache, ids[:, 40:]), reference) < TIGHT


def test_latents_are_decoded_eagerly_and_not_in_one_pass(model: Any) -> None:
    """The attention is to keys made of latents, which are not those of the cache."""
    ids, decoder = text(40), CapturedDecoder(model, POLICY)
    assert "attends to other keys" in str(decoder.eager_because)
    logits = torch.stack([decoder.step(token).clone() for token in ids.unbind(dim=1)], dim=1)
    assert error(logits, expected(model, POLICY, ids)) < TIGHT
    with pytest.raises(OnePassUnsupported, match="attends to other keys"):
        streaming_nll(model, ids[0], POLICY)
