"""Layers that attend to the keys and values of an earlier layer (Gemma 3n and 4)."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, cache_utils

from streamcache import OnePassUnsupported, streaming_nll
from streamcache.caches.admission import UnsupportedModelError
from streamcache.caches.base import BoundedCache
from streamcache.caches.ring import RingCache
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy
from tests.cases import SHARED_KEYS
from tests.tiny import error, expected, stream, text, tiny

POLICY = EvictionPolicy(3, 12, 2, 2, 4)


@pytest.fixture(scope="module", params=SHARED_KEYS)
def model(request: pytest.FixtureRequest) -> Any:
    if request.param not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {request.param}")
    model = tiny(request.param, **{**SHARED_KEYS[request.param], "num_kv_shared_layers": 2})
    if not hasattr(cache_utils, "DummyLayer"):  # as in transformers 5.17
        with pytest.raises(UnsupportedModelError, match="no keys and values of their own"):
            StreamingCache(model, POLICY)
        pytest.skip("this transformers does not say which layers keep keys")
    return model


@pytest.mark.parametrize("cache_type", [StreamingCache, RingCache])
def test_layers_without_keys_of_their_own(model: Any, cache_type: type[BoundedCache]) -> None:
    """Token by token, and in inputs inside which tokens are evicted."""
    ids, cache = text(50), cache_type(model, POLICY)
    assert len(cache) == 4, "layers that keep keys"
    reference = expected(model, POLICY, ids)
    assert error(stream(model, cache, ids), reference) < 1e-4
    cache.reset()
    assert error(stream(model, cache, ids, [35, 1, 14]), reference) < 1e-4


def test_they_are_not_run_in_one_pass(model: Any) -> None:
    reason = "some of its layers have no keys of their own"
    assert reason in str(CapturedDecoder(model, POLICY).eager_because)
    with pytest.raises(OnePassUnsupported, match=reason):
        streaming_nll(model, text(40)[0], POLICY)


def test_left_padding(model: Any) -> None:
    ids, cache = text(40, batch=2), StreamingCache(model, POLICY)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0
    with torch.no_grad():
        prompt = model(input_ids=ids[:, :20], attention_mask=mask, past_key_values=cache).logits
    logits = torch.cat([prompt, stream(model, cache, ids[:, 20:])], dim=1)
    for row, own, lead in zip(ids, logits, (7, 0)):
        assert error(own[None, lead:], expected(model, POLICY, row[None, lead:])) < 1e-4
