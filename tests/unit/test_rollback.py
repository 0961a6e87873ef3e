"""Tokens taken back: the stream goes on as if they had never been fed."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.refresh import RefreshCache
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy, PolicyError
from tests.cases import each_cache, each_policy
from tests.tiny import VOCABULARY, copy_of, error, expected, llama, neox, stream, text

POLICY = EvictionPolicy(2, 30, None, None, 4)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


@torch.no_grad()
def with_wrong_guesses(
    model: Any, cache: BoundedCache, ids: Tensor, most: int, seed: int
) -> Tensor:
    """Logits [B, T, V] of a stream fed in chunks, whose last tokens are wrong and taken back."""
    rng, logits, seen = random.Random(seed), [], 0
    while seen < ids.shape[1]:
        n_right = min(rng.choice([1, 2, 3, 5, 25]), ids.shape[1] - seen)
        n_wrong = rng.randint(0, most)
        wrong = (ids[:, seen : seen + n_wrong] + 1 + n_wrong) % VOCABULARY
        chunk = torch.cat([ids[:, seen : seen + n_right], wrong], dim=1)
        fed = model(input_ids=chunk, past_key_values=cache).logits
        logits.append(fed[:, :n_right])
        cache.crop(n_right - chunk.shape[1])
        seen += n_right
        assert cache.seen == seen and cache.size <= cache.policy.capacity
    return torch.cat(logits, dim=1)


@each_cache
@each_policy
def test_what_was_taken_back_leaves_no_trace(
    model: PreTrainedModel, cache_type: type[BoundedCache], policy: EvictionPolicy
) -> None:
    ids, most = text(100, batch=2), min(6, policy.window_size)
    logits = with_wrong_guesses(model, cache_type(model, policy, most), ids, most, seed=0)
    assert error(logits, expected(model, policy, ids)) < 1e-4


@each_cache
def test_several_steps_are_taken_back_one_by_one_or_at_once(
    cache_type: type[BoundedCache],
) -> None:
    model, ids = neox(), text(90)
    once, one_by_one = (cache_type(model, POLICY, 9) for _ in range(2))
    for cache, crops in ((once, [-9]), (one_by_one, [-1] * 9)):
        stream(model, cache, ids[:, :60])
        for n in crops:
            cache.crop(n)
        assert cache.seen == 51
        rest = stream(model, cache, ids[:, 51:])
        assert error(rest, expected(model, POLICY, ids)[:, 51:]) < 1e-4


@each_cache
def test_rounding_to_bfloat16_does_not_add_up_with_the_guesses(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    half, ids = copy_of(model, torch.bfloat16), text(160)
    policy = EvictionPolicy(4, 20)
    reference = expected(model, policy, ids)[:, 80:]
    plain = stream(half, cache_type(half, policy), ids)[:, 80:]
    guessed = with_wrong_guesses(half, cache_type(half, policy, 3), ids, 3, seed=0)[:, 80:]

    def mean_error(logits: Tensor) -> float:
        return float((logits.double() - reference).norm(dim=-1).mean() / reference.std())

    assert mean_error(guessed) < 1.5 * mean_error(plain)


n_new_tokens = pytest.mark.parametrize("n", [60, pytest.param(2000, marks=pytest.mark.slow)])


@each_cache
@n_new_tokens
def test_prompt_lookup_gives_what_greedy_decoding_gives(
    model: Any, cache_type: type[BoundedCache], n: int
) -> None:
    """With a prompt longer than the window, and evictions at nearly every draft."""
    options: dict[str, Any] = {"max_new_tokens": n, "do_sample": False}
    ids = text(50)
    greedy = model.generate(ids, past_key_values=cache_type(model, POLICY), **options)
    cache = cache_type(model, POLICY, 16)
    guessed = model.generate(ids, past_key_values=cache, prompt_lookup_num_tokens=5, **options)
    assert torch.equal(greedy, guessed)


@each_cache
@n_new_tokens
def test_an_assistant_gives_what_greedy_decoding_gives(
    model: Any, cache_type: type[BoundedCache], n: int
) -> None:
    options: dict[str, Any] = {"max_new_tokens": n, "do_sample": False}
    ids, assistant = text(50), llama(num_hidden_layers=1)
    greedy = model.generate(ids, past_key_values=cache_type(model, POLICY), **options)
    cache = cache_type(model, POLICY, max_rollback=24)
    guessed = model.generate(ids, past_key_values=cache, assistant_model=assistant, **options)
    assert torch.equal(greedy, guessed)


def test_a_cache_without_reserve_says_what_drafts_need(model: Any) -> None:
    with pytest.raises(ValueError, match="build the cache with a max_rollback"):
        model.generate(
            text(5),
            past_key_values=StreamingCache(model, POLICY),
            max_new_tokens=5,
            prompt_lookup_num_tokens=3,
        )


def test_a_number_above_zero_is_how_many_tokens_stay(model: PreTrainedModel) -> None:
    cache = StreamingCache(model, POLICY, 5)
    stream(model, cache, text(20))
    cache.crop(17)
    assert cache.seen == 17
    cache.crop(0)
    cache.crop(40)
    assert cache.seen == 17


@pytest.mark.parametrize("n", [-6, -21])
def test_more_than_the_reserve_is_refused_and_changes_nothing(
    model: PreTrainedModel, n: int
) -> None:
    cache, ids = StreamingCache(model, POLICY, 5), text(40)
    stream(model, cache, ids[:, :20])
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(n)
    rest = stream(model, cache, ids[:, 20:])
    assert error(rest, expected(model, POLICY, ids)[:, 20:]) < 1e-4


@each_cache
def test_two_roll_backs_reach_no_further_than_one(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    """What was evicted for tokens further back is gone, although few are taken back each time."""
    policy, ids = EvictionPolicy(2, 14), text(60)
    cache = cache_type(model, policy, 5)
    stream(model, cache, ids[:, :40])
    cache.crop(-3)
    with pytest.raises(ValueError, match=r"3 of 37 tokens cannot be taken back .*: 2 can"):
        cache.crop(-3)
    cache.crop(-2)
    rest = stream(model, cache, ids[:, 35:])
    assert error(rest, expected(model, policy, ids)[:, 35:]) < 1e-4


@each_cache
def test_no_reserve_takes_no_memory(model: PreTrainedModel, cache_type: type[BoundedCache]) -> None:
    cache = cache_type(model, POLICY)
    stream(model, cache, text(80))
    assert not cache._recent.since(0)


@each_cache
def test_a_reserve_keeps_no_more_than_the_last_tokens_have_evicted(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    cache = cache_type(model, EvictionPolicy(2, 14), 4)
    stream(model, cache, text(80))
    assert [eviction.seen for eviction in cache._recent.since(0)] == [76, 77, 78, 79]


def test_reserves_that_are_refused(model: PreTrainedModel) -> None:
    for n in (-1, 31):
        with pytest.raises(PolicyError, match="from 0 to 30"):
            StreamingCache(model, POLICY, n)
    assert not RefreshCache(model, POLICY, 4, "tail").is_croppable


def test_rows_chosen_after_an_eviction_are_taken_back_with_their_own_entries(
    model: PreTrainedModel,
) -> None:
    ids = text(60, batch=2)
    cache = StreamingCache(model, EvictionPolicy(2, 14), 4)
    stream(model, cache, ids[:, :40])
    cache.batch_select_indices(torch.tensor([1]))
    cache.crop(-4)
    rest = stream(model, cache, ids[1:, 36:])
    assert error(rest, expected(model, EvictionPolicy(2, 14), ids[1:])[:, 36:]) < 1e-4
