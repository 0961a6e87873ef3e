"""Inputs of any length, in one forward, are the exact stream: at every token, and afterwards."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches import feeding, one_pass, retained_attention
from streamcache.caches.base import BoundedCache
from streamcache.caches.refresh import RefreshCache
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy
from tests.cases import CACHES, HEADS, LOCAL, POLICIES, each_cache
from tests.families import model_of
from tests.tiny import copy_of, error, expected, llama, neox, stream, text, tiny

TIGHT = 1e-4
POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24

FAMILIES = {
    "gpt_neox": neox,
    "llama": llama,
    "cohere2": lambda: tiny("cohere2", num_hidden_layers=4, **LOCAL),  # interleaved, some NoPE
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param]()


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 tokens in tiles of 12, so that a short input takes several."""
    monkeypatch.setitem(one_pass._BLOCK, "cpu", 32)
    monkeypatch.setattr(retained_attention, "_TILE", 12)


def cut(n_tokens: int, seed: int) -> list[int]:
    """Random lengths, from single tokens to most of the input."""
    generator, lengths = random.Random(seed), list[int]()
    while (left := n_tokens - sum(lengths)) > 0:
        lengths.append(min(left, generator.choice([1, 2, 5, 17, 40, left])))
    return lengths


@each_cache
def test_layers_that_repeat_their_keys_take_long_inputs_in_pieces(
    cache_type: type[BoundedCache],
) -> None:
    """JetMoE gives each head to the cache once, and to its attention twice."""
    model, ids = model_of("jetmoe", 2), text(70)
    logits = stream(model, cache_type(model, POLICY), ids, [40, 1, 4, 25])
    assert error(logits, expected(model, POLICY, ids)) < TIGHT


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("llama", name) for name in POLICIES), ("gpt_neox", "softlite"), ("cohere2", "one sink")],
)
def test_inputs_of_one_to_six_windows(family: str, name: str) -> None:
    """In one call, and what follows in random pieces: the logits of the oracle."""
    model, policy = FAMILIES[family](), POLICIES[name]
    ids = text(6 * policy.window_size + policy.n_sink + 40)
    reference = expected(model, policy, ids)
    for cache_type in CACHES:
        for n_windows in (1, 2, 6):
            n_tokens = n_windows * policy.window_size + policy.n_sink + 3
            lengths = [n_tokens, *cut(ids.shape[1] - n_tokens, seed=n_windows)]
            cache = cache_type(model, policy)
            logits = stream(model, cache, ids, lengths)
            assert error(logits, reference) < TIGHT, (cache_type, lengths)
            assert cache.seen == ids.shape[1] and cache.size <= policy.capacity


@each_cache
def test_long_inputs_follow_each_other(
    cache_type: type[BoundedCache], model: PreTrainedModel
) -> None:
    """Each goes on from what the one before has left; batches too, against the float64 oracle."""
    ids = text(260, batch=2)
    lengths = [70, 1, 1, 60, 3, 50, 1, 74]
    logits = stream(model, cache_type(model, POLICY), ids, lengths)
    assert error(logits, expected(model, POLICY, ids)) < TIGHT


@settings(max_examples=30, deadline=None)
@given(
    policy=st.builds(
        EvictionPolicy,
        st.integers(0, 6),
        st.integers(1, 20),
        st.none() | st.integers(0, 9),
        st.none() | st.integers(1, 7),
        st.integers(1, 12),
    ),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    cache_type=st.sampled_from(CACHES),
)
def test_any_policy_and_any_inputs(
    policy: EvictionPolicy, lengths: list[int], cache_type: type[BoundedCache]
) -> None:
    ids = text(sum(lengths), seed=len(lengths))
    reference = expected(TINIEST, policy, ids)
    assert error(stream(TINIEST, cache_type(TINIEST, policy), ids, lengths), reference) < TIGHT


TINIEST = llama(hidden_size=16, intermediate_size=16)


@each_cache
def test_generate_goes_on_from_a_long_prompt(
    cache_type: type[BoundedCache], model: PreTrainedModel
) -> None:
    ids, cache = text(110), cache_type(model, POLICY)
    options: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    new = model.generate(ids, past_key_values=cache, **options)[:, 110:]  # type: ignore[operator]
    fed = torch.cat([ids, new[:, :-1]], dim=1)
    assert torch.equal(new, expected(model, POLICY, fed)[:, 109:].argmax(-1))
    assert cache.seen == 149


def test_a_decoder_goes_on_from_a_long_prompt(model: PreTrainedModel) -> None:
    ids, decoder = text(150, batch=2), CapturedDecoder(model, POLICY, batch=2)
    reference = expected(model, POLICY, ids)
    for _ in range(2):
        decoder.reset()
        head = decoder.prefill(ids[:, :70])
        steps = [decoder.step(ids[:, t]).clone()[:, None] for t in range(70, 90)]
        more = decoder.prefill(ids[:, 90:130])
        steps_after = [decoder.step(ids[:, t]).clone()[:, None] for t in range(130, 150)]
        logits = torch.cat([head, *steps, more, *steps_after], dim=1)
        assert error(logits, reference) < TIGHT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_cache
def test_rounding_costs_a_long_input_no_more_than_single_tokens(
    cache_type: type[BoundedCache], dtype: torch.dtype
) -> None:
    half, ids = copy_of(llama(head_dim=32), dtype), text(200)
    reference = expected(copy_of(half, torch.float32), POLICY, ids)

    def rounding(lengths: list[int]) -> float:
        logits = stream(half, cache_type(half, POLICY), ids, lengths)
        return float((logits.float() - reference).abs().mean())

    assert rounding([60, 1, 1, 48, 90]) < 1.25 * rounding([1] * 200)


@pytest.mark.parametrize("family", ["gptj", "bloom", "falcon", "diffllama"])
@each_cache
def test_models_whose_attention_cannot_be_replaced_get_pieces(
    cache_type: type[BoundedCache], family: str
) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        "bloom": {"n_layer": 2, "n_head": 4},
        "falcon": {"alibi": False, "new_decoder_architecture": False},
        "diffllama": HEADS,
    }
    model, ids = tiny(family, **shapes[family]), text(90)
    if family == "bloom" and cache_type is not StreamingCache:
        return
    passed = feeding._feed_in_passes(model.get_decoder(), cache_type(model, POLICY), ids, {})
    assert passed is None
    logits = stream(model, cache_type(model, POLICY), ids, [60, 1, 29])
    single = stream(model, cache_type(model, POLICY), ids)
    assert error(logits, single) < TIGHT


def test_what_a_refresh_cache_holds_is_not_what_the_policy_keeps() -> None:
    model, ids = llama(), text(80)
    logits, single = (
        stream(model, RefreshCache(model, POLICY, 6, "middle"), ids, lengths)
        for lengths in ([80], [1] * 80)
    )
    assert error(logits, single) < TIGHT


def test_hidden_states_of_a_long_input_are_those_of_the_stream() -> None:
    model, ids = llama(), text(70)
    caches = StreamingCache(model, POLICY), StreamingCache(model, POLICY)
    with torch.no_grad():
        whole = model(ids, past_key_values=caches[0], output_hidden_states=True).hidden_states
        steps = [
            model(token, past_key_values=caches[1], output_hidden_states=True).hidden_states
            for token in ids.split(1, dim=1)
        ]
    single = [torch.cat(layer, dim=1) for layer in zip(*steps)]
    assert len(whole) == len(single) == 3
    for states, reference in zip(whole, single):
        assert error(states, reference) < TIGHT


def test_no_layer_attends_to_more_than_the_capacity_and_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []
    attention = retained_attention.retained_attention

    def watched(query: Tensor, to_sinks: Tensor, run: Any, *others: Any) -> Tensor:
        widths.append(run.keys.shape[2])
        return attention(query, to_sinks, run, *others)

    monkeypatch.setattr(one_pass, "retained_attention", watched)
    stream(TINIEST, StreamingCache(TINIEST, POLICY), text(400), [400])
    assert 32 < max(widths) <= POLICY.capacity + 32
