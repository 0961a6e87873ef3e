"""Turns of a conversation: `generate` is given the new tokens alone, or the whole text."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache import CapturedGeneration
from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import each_cache
from tests.tiny import llama, text

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TURNS = [30, 1, 7, 40]  # tokens of each, some more than the cache holds


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


def reply(model: Any, ids: Tensor, cache: Any, **how: Any) -> Tensor:
    """A prompt and what follows, as `generate` returns it."""
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **how}
    how.setdefault("attention_mask", torch.ones_like(ids))
    out: Tensor = model.generate(ids, past_key_values=cache, **how)
    return out


def in_turns(model: Any, cache: BoundedCache, turns: list[Tensor], **how: Any) -> Tensor:
    """The whole conversation, of which every call is given its turn alone."""
    whole = turns[0][:, :0]
    for turn in turns:
        said = reply(model, torch.cat([whole[:, -1:], turn], dim=1), cache.turn(), **how)
        whole = torch.cat([whole[:, :-1], said], dim=1)
    return whole


def as_a_whole(model: Any, cache: BoundedCache, turns: list[Tensor], **how: Any) -> Tensor:
    """The same, with the whole text in every call."""
    whole = turns[0][:, :0]
    for turn in turns:
        whole = reply(model, torch.cat([whole, turn], dim=1), cache, **how)
    return whole


@each_cache
@pytest.mark.parametrize("batch", [1, 3])
def test_a_turn_alone_gives_what_the_whole_text_gives(
    model: PreTrainedModel, cache_type: type[BoundedCache], batch: int
) -> None:
    turns = [text(n, batch=batch, seed=n) for n in TURNS]
    expected = as_a_whole(model, cache_type(model, POLICY), turns)
    cache = cache_type(model, POLICY)
    assert torch.equal(in_turns(model, cache, turns), expected)
    assert cache.seen == expected.shape[1] - 1 and cache.evicted > 0


def test_turns_with_drafts(model: PreTrainedModel) -> None:
    """Drafts need turns alone: transformers feeds them the whole text whatever a cache has seen."""
    turns = [text(n, seed=n) for n in TURNS]
    expected = as_a_whole(model, StreamingCache(model, POLICY), turns)
    cache = StreamingCache(model, POLICY, max_rollback=8)
    assert torch.equal(in_turns(model, cache, turns, prompt_lookup_num_tokens=3), expected)


def test_a_turn_with_beams(model: PreTrainedModel) -> None:
    ids, caches = text(30), [StreamingCache(model, POLICY) for _ in range(2)]
    first = reply(model, ids, caches[0].turn(), num_beams=3)
    assert torch.equal(first, reply(model, ids, caches[1], num_beams=3))


def test_turns_of_rows_of_unequal_length(model: PreTrainedModel) -> None:
    """Each as many tokens in every row."""
    ids, mask = text(32, batch=2), torch.ones(2, 32, dtype=torch.long)
    mask[0, :9] = 0
    cache, whole = StreamingCache(model, POLICY), StreamingCache(model, POLICY)
    first = reply(model, ids, cache.turn(), attention_mask=mask)
    assert torch.equal(first, reply(model, ids, whole, attention_mask=mask))
    turn = text(7, batch=2, seed=1)
    second = reply(model, torch.cat([first[:, -1:], turn], dim=1), cache.turn())
    both = torch.cat([first, turn], dim=1)
    wide = torch.cat([mask, torch.ones(2, both.shape[1] - 32, dtype=torch.long)], dim=1)
    assert torch.equal(second[:, -6:], reply(model, both, whole, attention_mask=wide)[:, -6:])


def test_turns_by_captured_generation(model: PreTrainedModel) -> None:
    captured = CapturedGeneration(model, POLICY)
    how = {"custom_generate": captured, "return_dict_in_generate": True}
    turns = [text(n, seed=n) for n in TURNS]
    expected = as_a_whole(model, StreamingCache(model, POLICY), turns)
    out: Any = reply(model, turns[0], None, **how)
    whole = out.sequences
    for turn in turns[1:]:
        ids = torch.cat([whole[:, -1:], turn], dim=1)
        out = reply(model, ids, out.past_key_values.turn(), **how)
        whole = torch.cat([whole[:, :-1], out.sequences], dim=1)
    assert captured.eager_because is None and torch.equal(whole, expected)


@pytest.mark.slow
def test_a_million_tokens_of_turns_take_as_long_at_the_end(model: PreTrainedModel) -> None:
    cache, policy_text = StreamingCache(model, EvictionPolicy(4, 252)), text(2_000)
    turn, times = policy_text, list[float]()
    while cache.seen < 1_000_000:
        begin = time.process_time()
        said = reply(model, turn, cache.turn(), max_new_tokens=4)
        times.append(time.process_time() - begin)
        turn = torch.cat([said[:, -1:], policy_text], dim=1)
    tenth = len(times) // 10
    first, last = (sorted(part)[tenth // 2] for part in (times[1 : tenth + 1], times[-tenth:]))
    print(f"{cache.seen} tokens in {len(times)} turns: median {first:.4f} s, at the end {last:.4f}")
    assert cache.size == 256 and last < 1.25 * first
