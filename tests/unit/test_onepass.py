"""One pass over a text against a stream of single tokens and against the float64 oracle."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches import one_pass, retained_attention
from streamcache.caches.probe import UnsupportedModelError
from streamcache.caches.retained_attention import States
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.onepass import OnePassUnsupported, streaming_nll
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED
from tests.tiny import copy_of, expected, llama, neox, stream, text, tiny

TIGHT = 5e-4  # nats

#                                     S   W  sigma delta R
POLICIES = {
    "vanilla": EvictionPolicy(4, 12),
    "no sinks": EvictionPolicy(0, 11),
    "odd": EvictionPolicy(3, 97, 5, 2, 7),
    "no slack": EvictionPolicy(1, 16, 0, None, 3),
    "lazy": EvictionPolicy(4, 9, None, None, 8),
    "window of one": EvictionPolicy(5, 1, 6, 3, 4),
    "explicit zero": EvictionPolicy(2, 24, 0, 5, 32),
    "longer than the text": EvictionPolicy(4, 400),
}


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 48 tokens in tiles of 20, so that a short text takes several."""
    monkeypatch.setitem(one_pass._BLOCK, "cpu", 48)
    monkeypatch.setattr(retained_attention, "_TILE", 20)


def nll(logits: Tensor, ids: Tensor) -> Tensor:
    """NLL [T - 1] of ids [1, T] under the logits [1, T - 1 or T, V] of a stream."""
    logits = logits[0, : ids.shape[1] - 1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def off(nll: Tensor, reference: Tensor) -> float:
    """Largest difference in nats; infinite where one is not a number."""
    difference = (nll.double() - reference.double()).abs()
    return float(difference.nan_to_num(nan=torch.inf).max())


def one_by_one(model: PreTrainedModel, policy: EvictionPolicy, ids: Tensor) -> Tensor:
    return nll(stream(model, StreamingCache(model, policy), ids[:, :-1]), ids)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("make", [neox, llama])
def test_the_one_pass_gives_the_nll_of_the_stream_token_by_token(
    make: Callable[..., PreTrainedModel], name: str
) -> None:
    model, policy, ids = make(), POLICIES[name], text(200)
    computed = streaming_nll(model, ids[0], policy)
    assert computed.shape == (199,) and computed.dtype == torch.float32
    assert off(computed, nll(expected(model, policy, ids), ids)) < TIGHT


@pytest.mark.parametrize("policy", [EvictionPolicy(0, 1), EvictionPolicy(4, 1, 0, 1, 3)])
def test_the_one_pass_with_a_window_of_one(policy: EvictionPolicy) -> None:
    model, ids = llama(), text(100)
    reference = nll(expected(model, policy, ids), ids)
    assert off(streaming_nll(model, ids[0], policy), reference) < TIGHT


@settings(max_examples=60, deadline=None)
@given(
    n_sink=st.integers(0, 6),
    window=st.integers(1, 20),
    slack=st.none() | st.integers(0, 9),
    max_drop=st.none() | st.integers(1, 7),
    every=st.integers(1, 12),
    block=st.integers(1, 40),
    n_tokens=st.integers(2, 60),
)
def test_any_policy_in_any_blocks(
    n_sink: int,
    window: int,
    slack: int | None,
    max_drop: int | None,
    every: int,
    block: int,
    n_tokens: int,
) -> None:
    policy = EvictionPolicy(n_sink, window, slack, max_drop, every)
    ids = text(n_tokens, seed=block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(one_pass._BLOCK, "cpu", block)
        computed = streaming_nll(TINIEST, ids[0], policy)
    assert off(computed, nll(expected(TINIEST, policy, ids), ids)) < TIGHT


TINIEST = llama(num_hidden_layers=2, hidden_size=16, intermediate_size=16)

GQA = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        **GQA,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 7.0,
        "sliding_window": 12,
    },
    "gemma3_text": {
        **GQA,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3": {**GQA, "head_dim": 8},
    "phi3": {**GQA, "sliding_window": 12},
    "cohere": {**GQA, "logit_scale": 2.0},
    "cohere2": {
        **GQA,
        "head_dim": 8,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm4": {**GQA, "head_dim": 8},
    "smollm3": {**GQA, "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "exaone4": {
        **GQA,
        "num_hidden_layers": 4,
        "sliding_window": 12,
        "sliding_window_pattern": 4,
    },
    "stablelm": GQA,
    "starcoder2": {**GQA, "sliding_window": 12},
    "olmo2": GQA,
    "granite": {**GQA, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "gpt_oss": {
        **GQA,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # makes its masks with a sliding window, but does not tell its attention
    "qwen2_moe": {
        **GQA,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 0,
    },
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """In a cache larger than the sliding window, and in one whose sinks are partly within it."""
    model, ids = tiny(family, **FAMILIES[family]), text(120)
    model.set_attn_implementation("eager")  # some versions of sdpa ignore a softcap
    for policy in (EvictionPolicy(3, 20, 5, 2, 7), EvictionPolicy(4, 8, 3, 2, 5)):
        computed = streaming_nll(model, ids[0], policy)
        assert off(computed, one_by_one(model, policy, ids)) < TIGHT, policy


def test_a_long_text_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Angles at token 20,000 are as good as at token 1,000: the error does not grow."""
    model, policy, ids = neox(num_hidden_layers=1), EvictionPolicy(4, 60, 5, 3, 7), text(20_000)[0]
    monkeypatch.setitem(one_pass._BLOCK, "cpu", 512)
    exact = streaming_nll(copy_of(model, torch.float64), ids, policy)
    error = (streaming_nll(model, ids, policy) - exact).abs()
    assert error.max() < 1e-4
    assert error[-1000:].mean() < 2 * error[:1000].mean()


def test_a_stream_whose_positions_start_anew() -> None:
    """The cache re-bases every twenty tokens or so, one pass never."""
    model, policy, ids = neox(num_hidden_layers=1), POLICIES["vanilla"], text(1500)
    cache = StreamingCache(model, policy)
    logits = stream(model, cache, ids[:, :-1])
    assert cache.base > 1400
    assert off(streaming_nll(model, ids[0], policy), nll(logits, ids)) < TIGHT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Rounding costs one pass no more than it costs the stream."""
    policy, ids = POLICIES["lazy"], text(200)
    half = copy_of(llama(), dtype)
    reference = streaming_nll(copy_of(half, torch.float32), ids[0], policy)
    computed = streaming_nll(half, ids[0], policy)
    assert computed.dtype == torch.float32
    rounding = (one_by_one(half, policy, ids) - reference).abs().mean()
    assert (computed - reference).abs().mean() < 1.5 * rounding


def test_a_text_of_two_tokens() -> None:
    ids = text(2)
    with torch.no_grad():
        expected = nll(TINIEST(input_ids=ids[:, :1]).logits, ids)
    assert off(streaming_nll(TINIEST, ids[0], EvictionPolicy(4, 12)), expected) < TIGHT


@pytest.mark.parametrize("shape", [(1,), (0,), (1, 8)])
def test_the_one_pass_refuses_ids_without_two_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"input_ids must be \[T\] with T >= 2"):
        streaming_nll(TINIEST, torch.zeros(shape, dtype=torch.long), EvictionPolicy(4, 12))


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([3, -100, 5], r"input_ids has -100: the model knows the tokens 0 \.\.\. 63"),
        ([3, 64, 5], "input_ids has 64"),
        ([0.5, 1.0], "input_ids must be integers"),
        ([True, False], "input_ids must be integers"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(ids: list[Any], reason: str) -> None:
    """-100 is what a loss leaves out: its NLL would be 0."""
    with pytest.raises(ValueError, match=reason):
        streaming_nll(TINIEST, ids, EvictionPolicy(4, 12))


@pytest.mark.parametrize("convert", [Tensor.int, Tensor.tolist, Tensor.short])
def test_ids_of_any_integer_type(convert: Callable[[Tensor], Any]) -> None:
    ids, policy = text(60)[0], EvictionPolicy(4, 12)
    expected = streaming_nll(TINIEST, ids, policy)
    assert torch.equal(streaming_nll(TINIEST, convert(ids), policy), expected)


# --- models that one pass cannot run


NO_POSITIONS = "it takes no position_ids"
UNREGISTERED = "its layers do not each call transformers' registered attention once"
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({}, NO_POSITIONS),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, NO_POSITIONS),
    "gptj": (GPTJ, UNREGISTERED),
    "codegen": (GPTJ, UNREGISTERED),
    "falcon": ({}, UNREGISTERED),
    "doge": (GQA, UNREGISTERED),
    "diffllama": (GQA, "a layer attends more than once"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_refused_families(family: str) -> None:
    settings, reason = REFUSED[family]
    model = tiny(family, **settings)
    before = model.config._attn_implementation
    policy, ids = EvictionPolicy(4, 12), text(100)
    try:
        computed = streaming_nll(model, ids[0], policy)
    except UnsupportedModelError:
        assert family == "bloom", "older releases of transformers cannot run it with such a cache"
        return
    except OnePassUnsupported as refusal:
        assert str(refusal) == f"cannot run {family} in one pass: {reason}"
    else:
        assert family in ("gptj", "codegen"), "from 5.24 on they attend by the registry"
        assert off(computed, nll(expected(model, policy, ids), ids)) < TIGHT
    assert model.config._attn_implementation == before


def test_learned_positions_are_refused_by_the_measurement() -> None:
    model = tiny("gpt2", n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(UnsupportedModelError, match="positions enter its hidden states"):
        streaming_nll(model, text(100)[0], EvictionPolicy(4, 12))


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ({"position_bias": torch.zeros(1)}, "its attention takes 'position_bias'"),
        ({"attention_mask": torch.zeros(1)}, "it makes its attention mask by itself"),
    ],
)
def test_the_one_pass_refuses_attention_with_other_arguments(
    argument: dict[str, Any], reason: str
) -> None:
    model, policy, ids = llama(), EvictionPolicy(4, 12), text(100)[0]
    streaming_nll(model, ids, policy)
    model.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, **argument}), with_kwargs=True
    )
    with pytest.raises(OnePassUnsupported, match=reason):
        streaming_nll(model, ids, policy)


def test_a_table_of_angles_that_ends() -> None:
    """A dynamic table switches at 64 positions: below, one pass is right; above, it refuses."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = llama(rope_parameters=scaling, max_position_embeddings=64)
    policy, ids = EvictionPolicy(4, 12), text(150)
    assert off(streaming_nll(model, ids[0], policy), one_by_one(model, policy, ids)) < TIGHT
    with pytest.raises(OnePassUnsupported, match="holds for 64 positions"):
        streaming_nll(model, ids[0], EvictionPolicy(4, 61))


# --- what it leaves behind


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_it_was(implementation: str, training: bool) -> None:
    model, ids = llama(attention_dropout=0.5), text(60)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        before = model(input_ids=ids).logits
    expected = streaming_nll(model, ids[0], EvictionPolicy(4, 12))
    model.train(training)
    computed = streaming_nll(model, ids[0], EvictionPolicy(4, 12))
    assert torch.equal(computed, expected) and not computed.requires_grad
    assert model.training is training
    assert {m.config._attn_implementation for m in _configured(model)} == {implementation}
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, before)
    model(input_ids=ids).logits.sum().backward()  # gradients are on again


@pytest.mark.parametrize("implementation, ignores", [("eager", False), ("sdpa", True)])
def test_a_softcap_that_the_model_itself_ignores(implementation: str, ignores: bool) -> None:
    """In transformers 5.17 Gemma 2 attends by SDPA, which knows no softcap; later it refuses to."""
    capped, free = (
        tiny("gemma2", **ADMITTED["gemma2"], attn_logit_softcapping=cap) for cap in (0.5, None)
    )
    capped.config._attn_implementation_internal = implementation
    ids, policy = text(40)[0], EvictionPolicy(4, 12)
    given, without = (streaming_nll(model, ids, policy) for model in (capped, free))
    assert bool((given - without).abs().max() < 1e-4) == ignores


def test_the_model_is_as_it_was_after_an_exception() -> None:
    model, ids = llama(), text(300)
    before = model(input_ids=ids[:, :50]).logits
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:  # the trial and two blocks went well
            raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        streaming_nll(model, ids[0], EvictionPolicy(4, 12))
    hook.remove()
    assert {m.config._attn_implementation for m in _configured(model)} == {"sdpa"}
    assert torch.equal(model(input_ids=ids[:, :50]).logits, before)


def _configured(model: PreTrainedModel) -> list[Any]:
    modules = [m for m in model.modules() if hasattr(m, "config")]
    assert len(modules) > 3
    return modules


def test_memory_does_not_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer never holds more than the capacity and a block."""
    policy, held = EvictionPolicy(4, 12, 3, 2, 5), []
    attention = retained_attention.retained_attention

    def watched(query: Tensor, to_sinks: Tensor, run: States, *others: Any) -> Tensor:
        held.append(run.keys.shape[2])
        return attention(query, to_sinks, run, *others)

    monkeypatch.setattr(one_pass, "retained_attention", watched)
    streaming_nll(TINIEST, text(500)[0], policy)
    assert 48 < max(held) <= policy.capacity + 48


def test_progress_counts_every_prediction_once() -> None:
    done: list[int] = []
    streaming_nll(neox(), text(600)[0], EvictionPolicy(4, 60), done.append)
    assert sum(done) == 599 and len(done) > 1
