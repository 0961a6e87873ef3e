"""Every family of models that is admitted streams exactly.

A family that fails here after an upgrade of transformers has changed how it places its tokens.
"""

import pytest

from streamcache.caches.probe import UnsupportedModelError
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED, ALIBI, BLOOM, HALF, INTERLEAVED, MIXED
from tests.tiny import error, expected, stream, text, tiny

POLICY = EvictionPolicy(n_sink=3, window_size=12, cache_slack=2, max_drop=2, compress_every=4)


@pytest.mark.parametrize("family", ADMITTED)
def test_a_family_streams_exactly(family: str) -> None:
    model, ids = tiny(family, **ADMITTED[family]), text(100)
    cache = StreamingCache(model, POLICY)
    rotations = [layer.rotation for layer in cache.geometry.layers]
    layouts = {rotation.layout if rotation else None for rotation in rotations}
    if family in HALF:
        assert layouts == {"half"}
    elif family in INTERLEAVED:
        assert layouts == {"interleaved"}
    elif family in ALIBI:
        assert layouts == {None}
    logits = stream(model, cache, ids)
    assert cache.evicted > 80 and (cache.base > 0 or family in ALIBI)
    assert error(logits, expected(model, POLICY, ids)) < 1e-4


def test_bloom_streams_exactly_or_is_refused() -> None:
    """Until some transformers 5.x it makes its biases for all tokens seen, not for those kept."""
    model, ids = tiny("bloom", **BLOOM), text(100)
    try:
        cache = StreamingCache(model, POLICY)
    except UnsupportedModelError:
        return
    assert error(stream(model, cache, ids), expected(model, POLICY, ids)) < 1e-4


@pytest.mark.parametrize("family", ["cohere2", "smollm3", "exaone4"])
def test_layers_without_rotation_are_found(family: str) -> None:
    cache = StreamingCache(tiny(family, **MIXED[family]), POLICY)
    turns = [layer.rotation is not None for layer in cache.geometry.layers]
    assert turns == [True, True, True, False]
