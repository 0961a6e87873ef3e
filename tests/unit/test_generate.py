"""Drop-in use: `model.generate` with a bounded cache in `past_key_values`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.reference import ReferenceCache
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import each_cache
from tests.tiny import expected, llama, stream, text

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
WIDE = EvictionPolicy(4, 124)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


def generate(model: Any, cache: Any, ids: Tensor, n_new: int, **how: Any) -> Tensor:
    """The new tokens [B, n_new] of `model.generate`."""
    how = {"attention_mask": torch.ones_like(ids), "do_sample": False, **how}
    out = model.generate(ids, past_key_values=cache, max_new_tokens=n_new, pad_token_id=0, **how)
    assert isinstance(out, Tensor)
    return out[:, -n_new:]


@torch.no_grad()
def by_hand(model: PreTrainedModel, cache: BoundedCache, ids: Tensor, n_new: int) -> Tensor:
    """The same as a loop of plain forwards: the text so far, then token by token the best one."""
    new = []
    for _ in range(n_new):
        logits = model(input_ids=ids, past_key_values=cache).logits
        ids = logits[:, -1:].argmax(-1)
        new.append(ids)
    return torch.cat(new, dim=1)


@each_cache
def test_while_nothing_is_evicted_generate_is_as_with_a_dynamic_cache(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    cache, ids = cache_type(model, WIDE), text(30, batch=2)
    new = generate(model, cache, ids, 40)
    assert cache.evicted == 0
    assert torch.equal(new, generate(model, DynamicCache(), ids, 40))


@each_cache
def test_a_long_generate_is_the_exact_stream(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    """Every token is the best one by the oracle, over several re-basings."""
    cache, ids = cache_type(model, POLICY), text(10)
    new = generate(model, cache, ids, 150)
    assert cache.seen == 159 and cache.evicted > 130
    assert cache.base > 2 * POLICY.capacity and cache.next_position <= 4 * POLICY.capacity
    assert torch.equal(new, by_hand(model, cache_type(model, POLICY), ids, 150))
    fed = torch.cat([ids, new[:, :-1]], dim=1)
    reference = expected(model, POLICY, fed)
    assert torch.equal(new, reference[:, 9:].argmax(-1))


@each_cache
def test_a_prompt_longer_than_the_capacity(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    ids = text(61)
    new = generate(model, cache_type(model, POLICY), ids, 30)
    assert torch.equal(new, by_hand(model, cache_type(model, POLICY), ids, 30))


@each_cache
def test_a_prompt_in_chunks_of_ones_own(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    ids, cache = text(61), cache_type(model, POLICY)
    new = generate(model, cache, ids, 20, prefill_chunk_size=7)
    other = cache_type(model, POLICY)
    head = stream(model, other, ids, [7] * 8 + [5])[:, -1:].argmax(-1)
    rest = by_hand(model, other, head, 19)
    assert torch.equal(new, torch.cat([head, rest], dim=1))


@each_cache
@pytest.mark.parametrize("passed", ["the whole history", "the new turn and the full mask"])
def test_a_chat_goes_on(
    model: PreTrainedModel, cache_type: type[BoundedCache], passed: str
) -> None:
    cache, question, follow_up = cache_type(model, POLICY), text(13), text(11, seed=1)
    answer = generate(model, cache, question, 20)
    history = torch.cat([question, answer, follow_up], dim=1)
    if passed == "the whole history":
        second = generate(model, cache, history, 20)
    else:  # the answer's last token was never fed
        turn = history[:, cache.seen :]
        second = generate(model, cache, turn, 20, attention_mask=torch.ones_like(history))
    fed = torch.cat([history, second[:, :-1]], dim=1)
    by_one_stream = stream(model, cache_type(model, POLICY), fed, [13] + [1] * 19 + [12] + [1] * 19)
    assert torch.equal(second, by_one_stream[:, 43:].argmax(-1))
    assert cache.seen == fed.shape[1]


def test_beam_search_reorders_the_cache(model: PreTrainedModel) -> None:
    how = {"num_beams": 3, "num_return_sequences": 3}
    ids = text(12, batch=2)
    unbounded = generate(model, DynamicCache(), ids, 25, **how)
    assert unbounded.shape == (6, 25)
    for cache_type in (StreamingCache, RerotatingCache, ReferenceCache):
        assert torch.equal(generate(model, cache_type(model, WIDE), ids, 25, **how), unbounded)
    # With evictions the three still agree, each with its own way of reordering.
    bounded = generate(model, ReferenceCache(model, POLICY), ids, 40, **how)
    for cache_type in (StreamingCache, RerotatingCache):
        assert torch.equal(generate(model, cache_type(model, POLICY), ids, 40, **how), bounded)
