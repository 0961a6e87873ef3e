"""Plain forwards with a bounded cache: steps and inputs of any length, against the oracle."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import CACHES, each_cache
from tests.tiny import copy_of, error, expected, llama, stream, text

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TIGHT = 1e-4


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


@each_cache
def test_steps_of_several_tokens(model: PreTrainedModel, cache_type: type[BoundedCache]) -> None:
    ids, steps = text(90), [1, 5, 16, 1, 1, 3, 16, 16, 2, 4, 9, 16]
    logits = stream(model, cache_type(model, POLICY), ids, steps)
    assert error(logits, expected(model, POLICY, ids)) < TIGHT


@each_cache
@pytest.mark.parametrize("n_tokens", [17, 24, 61])
def test_a_long_input_gives_the_logits_of_the_stream(
    model: PreTrainedModel, cache_type: type[BoundedCache], n_tokens: int
) -> None:
    ids, cache = text(n_tokens, batch=2), cache_type(model, POLICY)
    with torch.no_grad():
        logits = model(input_ids=ids, past_key_values=cache).logits
    assert cache.seen == logits.shape[1] == n_tokens
    reference = expected(model, POLICY, ids)
    assert error(logits, reference) < TIGHT


@each_cache
def test_rows_follow_their_beams(model: PreTrainedModel, cache_type: type[BoundedCache]) -> None:
    """After a reordering each row goes on as the stream of the row it came from."""
    ids, rows = text(80, batch=3), torch.tensor([2, 0, 0])
    cache = cache_type(model, POLICY)
    stream(model, cache, ids[:, :50])
    cache.reorder_cache(rows)
    logits = stream(model, cache, ids[:, 50:])
    streams = torch.cat([ids[rows, :50], ids[:, 50:]], dim=1)
    assert error(logits, expected(model, POLICY, streams)[:, 50:]) < TIGHT


@each_cache
def test_reset_forgets_the_stream(model: PreTrainedModel, cache_type: type[BoundedCache]) -> None:
    cache, ids = cache_type(model, POLICY), text(70)
    first = stream(model, cache, ids)
    cache.reset()
    assert (cache.seen, cache.size, cache.get_seq_length()) == (0, 0, 0)
    assert torch.equal(stream(model, cache, ids), first)
    cache.reset()
    other = text(70, batch=2)
    assert error(stream(model, cache, other), expected(model, POLICY, other)) < TIGHT


@pytest.mark.parametrize("n_last", [1, 5])
def test_the_last_logits_of_a_long_input(model: PreTrainedModel, n_last: int) -> None:
    ids = text(61)
    with torch.no_grad():
        every = model(input_ids=ids, past_key_values=StreamingCache(model, POLICY)).logits
        last = model(
            input_ids=ids, past_key_values=StreamingCache(model, POLICY), logits_to_keep=n_last
        ).logits
    assert last.shape == (1, n_last, every.shape[-1])
    assert torch.allclose(last, every[:, -n_last:], atol=1e-5)


@each_cache
def test_embeddings_instead_of_ids(model: PreTrainedModel, cache_type: type[BoundedCache]) -> None:
    ids = text(61)
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        by_ids = model(input_ids=ids, past_key_values=cache_type(model, POLICY)).logits
        by_vectors = model(
            inputs_embeds=embeddings, past_key_values=cache_type(model, POLICY)
        ).logits
    assert torch.equal(by_ids, by_vectors)


def test_two_caches_on_one_model_do_not_mix(model: PreTrainedModel) -> None:
    one, two = text(70), text(70, seed=1)
    policies = POLICY, EvictionPolicy(2, 9)
    caches = [StreamingCache(model, policy) for policy in policies]
    pairs = [
        (stream(model, caches[0], a), stream(model, caches[1], b))
        for a, b in zip(one.split(1, dim=1), two.split(1, dim=1))
    ]
    for policy, ids, logits in zip(policies, (one, two), zip(*pairs)):
        assert error(torch.cat(logits, dim=1), expected(model, policy, ids)) < TIGHT


@each_cache
def test_a_deep_copy_of_a_cache(model: PreTrainedModel, cache_type: type[BoundedCache]) -> None:
    """A stream can be forked: each branch goes on by itself."""
    ids, other = text(90), text(90, seed=1)
    other[:, :50] = ids[:, :50]
    trunk = cache_type(model, POLICY)
    stream(model, trunk, ids[:, :50])
    branch = copy.deepcopy(trunk)
    for cache, whole in ((branch, other), (trunk, ids)):
        logits = stream(model, cache, whole[:, 50:])
        assert error(logits, expected(model, POLICY, whole)[:, 50:]) < TIGHT


@each_cache
@pytest.mark.parametrize("n_tokens", [1, 3, 16])
def test_a_forward_of_any_length_may_follow_an_interrupted_one(
    cache_type: type[BoundedCache], n_tokens: int
) -> None:
    model, ids = llama(), text(80)
    cache = cache_type(model, POLICY)
    stream(model, cache, ids[:, :50])
    hook = model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream(model, cache, ids[:, 50 : 50 + n_tokens], [n_tokens])
    hook.remove()
    logits = stream(model, cache, ids[:, 50:], [1, 5, 16, 8])
    assert error(logits, expected(model, POLICY, ids)[:, 50:]) < TIGHT


@each_cache
def test_another_batch_takes_a_new_stream(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    cache = cache_type(model, POLICY)
    stream(model, cache, text(30, batch=2))
    with pytest.raises(ValueError, match="holds a batch of 2 streams and was given 1: call reset"):
        stream(model, cache, text(1))
    cache.reset()
    ids = text(30)
    assert error(stream(model, cache, ids), expected(model, POLICY, ids)) < TIGHT


@each_cache
def test_another_batch_after_an_interrupted_first_forward(cache_type: type[BoundedCache]) -> None:
    model, ids = llama(), text(30)
    cache = cache_type(model, POLICY)
    hook = model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream(model, cache, text(1, batch=2))
    hook.remove()
    assert error(stream(model, cache, ids), expected(model, POLICY, ids)) < TIGHT


def interrupt(module: nn.Module, args: Any) -> None:
    raise KeyboardInterrupt


@each_cache
def test_beams_are_chosen_in_inference_mode_and_decoded_outside(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    ids, cache = text(60, batch=2), cache_type(model, POLICY)
    with torch.inference_mode():
        model(input_ids=ids[:, :10], past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
    rest = stream(model, cache, ids.flip(0)[:, 10:])
    reference = expected(model, POLICY, ids.flip(0))
    assert error(rest, reference[:, 10:]) < TIGHT


def test_in_bfloat16_slow_rotations_add_little_to_the_error_without_a_cache() -> None:
    """After 132 evictions of one entry: rotating the window by one position with an angle of 8 bits
    would double the error."""
    policy, ids = EvictionPolicy(4, 28), text(160)
    half = copy_of(llama(head_dim=32), torch.bfloat16)
    reference = expected(copy_of(half, torch.float32), policy, ids)
    without = (reference - expected(half, policy, ids, dtype=torch.bfloat16)).abs()
    for cache_type in CACHES:
        off = (reference - stream(half, cache_type(half, policy), ids)).abs()
        assert off[:, -40:].mean() < 1.5 * without[:, -40:].mean(), cache_type


@each_cache
def test_an_interrupted_forward_can_be_run_again(cache_type: type[BoundedCache]) -> None:
    model, ids = llama(), text(80)
    cache = cache_type(model, POLICY)
    first = stream(model, cache, ids[:, :50])
    hook = model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        stream(model, cache, ids[:, 50:53], [3])
    hook.remove()
    assert cache.seen == 50
    rest = stream(model, cache, ids[:, 50:], [3] + [1] * 27)
    reference = expected(model, POLICY, ids)
    assert error(torch.cat([first, rest], dim=1), reference) < TIGHT


@each_cache
def test_a_fork_made_in_inference_mode_goes_on_outside(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    ids, trunk = text(80), cache_type(model, POLICY)
    with torch.inference_mode():
        for token in ids[:, :50].split(1, dim=1):
            model(input_ids=token, past_key_values=trunk)
        branch = copy.deepcopy(trunk)
    logits = stream(model, branch, ids[:, 50:])
    assert error(logits, expected(model, POLICY, ids)[:, 50:]) < TIGHT
