"""With nothing rounded to float32, caches give the logits of the oracle to 1e-9 of their spread."""

import pytest
import torch

from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED, each_cache
from tests.tiny import copy_of, error, expected, stream, text, tiny
from tests.wide import float64_throughout

POLICY = EvictionPolicy(n_sink=2, window_size=7, cache_slack=2, max_drop=2, compress_every=4)
EXACT = 1e-9


@each_cache
@pytest.mark.parametrize("family", ["gpt_neox", "granite", "cohere"])
def test_caches_are_exact_in_float64(family: str, cache_type: type[BoundedCache]) -> None:
    model, ids = tiny(family, **ADMITTED[family]), text(30)
    with float64_throughout():
        wide = copy_of(model, torch.float64)
        reference = expected(wide, POLICY, ids)
        cache = cache_type(wide, POLICY)
        logits = torch.cat(
            [stream(wide, cache, ids[:, :20]), stream(wide, cache, ids[:, 20:], [10])], 1
        )
    assert cache.evicted > 0
    assert error(logits, reference) < EXACT


def test_a_decoder_is_exact_in_float64() -> None:
    model, ids = tiny("llama", **ADMITTED["llama"]), text(30)
    with float64_throughout():
        wide = copy_of(model, torch.float64)
        reference = expected(wide, POLICY, ids)
        decoder = CapturedDecoder(wide, POLICY)
        steps = [decoder.step(token)[0].clone() for token in ids[0][:, None]]
    assert error(torch.stack(steps)[None], reference) < EXACT


def test_a_rounding_shows_in_float64() -> None:
    """Of the frequencies alone: what `float64_throughout` is for."""
    model, ids = tiny("llama", **ADMITTED["llama"]), text(30)
    with float64_throughout():
        wide = copy_of(model, torch.float64)
        reference = expected(wide, POLICY, ids)
    narrow = copy_of(model, torch.float64)
    assert error(stream(narrow, StreamingCache(narrow, POLICY), ids), reference) > 100 * EXACT
