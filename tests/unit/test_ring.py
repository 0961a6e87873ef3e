"""The ring, read in place by a decoder, against the float64 oracle.

As a cache it is tested with all others, in `test_oracle.py`.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.ring import RingCache
from streamcache.decoding.captured import CapturedDecoder, EagerWarning
from streamcache.decoding.kernels.fusion import fuse
from streamcache.policy import EvictionPolicy
from tests.cases import POLICIES
from tests.tiny import error, expected, llama, neox, stream, text, tiny

TIGHT = 1e-4  # of the logits' standard deviation, in float32

FAMILIES: dict[str, dict[str, Any]] = {
    "cohere": {"num_key_value_heads": 2},  # interleaved
    "cohere2": {"num_key_value_heads": 2, "sliding_window": 7},  # every fourth layer without RoPE
    "smollm3": {"num_key_value_heads": 2, "no_rope_layers": [1, 0]},
    "phi": {"num_key_value_heads": 2},  # a parallel block with biases
    "gemma2": {  # capped scores, which its default attention may leave out
        **{"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
        "attn_implementation": "eager",
    },
    "mistral": {"num_key_value_heads": 1, "sliding_window": 5},
}


def decode(decoder: CapturedDecoder, ids: Tensor, n_prefill: int = 0) -> Tensor:
    """Logits [B, T, V] of ids [B, T]: a prefill, and steps."""
    head = [decoder.prefill(ids[:, :n_prefill])] if n_prefill else []
    steps = [decoder.step(ids[:, t]).clone()[:, None] for t in range(n_prefill, ids.shape[1])]
    return torch.cat([*head, *steps], dim=1)


def test_a_decoder_takes_its_batch_only() -> None:
    decoder = CapturedDecoder(llama(), EvictionPolicy(4, 12), batch=2)
    with pytest.raises(ValueError, match="this decoder has batch=2 and was given 1 prompts"):
        decoder.prefill(text(5))
    with pytest.raises(ValueError, match=r"2 tokens, one per stream, got int64 \[1\]"):
        decoder.step(text(1)[0])


def test_an_eager_decoder_keeps_nothing_of_its_steps() -> None:
    decoder, sizes = CapturedDecoder(llama(), EvictionPolicy(4, 12)), []
    for _ in range(2):
        decode(decoder, text(100))
        held = (len(v) for v in vars(decoder).values() if isinstance(v, list))
        sizes.append(sum(held))
    assert sizes[0] == sizes[1]


def test_a_ring_leaves_inference_mode_and_autocast() -> None:
    model, policy, ids = llama(), EvictionPolicy(4, 12), text(60)
    cache = RingCache(model, policy)
    with torch.inference_mode():
        model(input_ids=ids[:, :1], past_key_values=cache)
    assert error(stream(model, cache, ids[:, 1:]), expected(model, policy, ids)[:, 1:]) < TIGHT
    cache = RingCache(model, policy)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(stream(model, cache, ids), expected(model, policy, ids)) < 1.0


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("make", [neox, llama])
def test_a_decoder_reads_it_in_place(make: Any, name: str) -> None:
    model, policy, ids = make(), POLICIES[name], text(120)
    decoder = CapturedDecoder(model, policy)
    assert "CUDA" in str(decoder.eager_because)
    assert error(decode(decoder, ids), expected(model, policy, ids)) < TIGHT
    assert decoder.cache.base > 0, "positions must be re-based in this stream"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str) -> None:
    model, policy, ids = tiny(family, **FAMILIES[family]), POLICIES["softlite"], text(150)
    decoder = CapturedDecoder(model, policy)
    assert "CUDA" in str(decoder.eager_because)
    assert error(decode(decoder, ids), expected(model, policy, ids)) < TIGHT


def test_streams_follow_each_other() -> None:
    """A new stream, shorter or longer than the cache, starts from nothing; prefill or not."""
    model, policy = neox(), POLICIES["softlite"]
    decoder = CapturedDecoder(model, policy, batch=2)
    for seed, (length, n_prefill) in enumerate([(60, 10), (9, 0), (80, 7), (5, 5), (150, 1)]):
        ids = text(length, batch=2, seed=seed)
        decoder.reset()
        reference = expected(model, policy, ids)
        assert error(decode(decoder, ids, n_prefill), reference) < TIGHT


def test_nothing_of_an_earlier_stream_is_read() -> None:
    """Slots that a new stream has not filled count for nothing, and so does a NaN in them."""
    model, policy, ids = neox(), POLICIES["softlite"], text(20)
    decoder = CapturedDecoder(model, policy)
    decode(decoder, text(30, seed=1))
    for slots in (*decoder.cache.keys, *decoder.cache.values):
        slots.fill_(torch.nan)
    decoder.reset()
    assert error(decode(decoder, ids), expected(model, policy, ids)) < TIGHT


def test_a_prefill_may_come_in_the_middle() -> None:
    model, policy, ids = llama(), POLICIES["slack"], text(60)
    decoder = CapturedDecoder(model, policy)
    logits = [decode(decoder, part, n) for part, n in zip(ids.split(20, dim=1), (3, 9, 0))]
    assert error(torch.cat(logits, dim=1), expected(model, policy, ids)) < TIGHT


def test_positions_start_anew_far_from_any_plan() -> None:
    """Plans are of 1024 steps; here positions are re-based every 60 or so."""
    model, policy, ids = neox(num_hidden_layers=1), EvictionPolicy(4, 16, 4, 3, 5), text(700)
    decoder = CapturedDecoder(model, policy)
    logits = decode(decoder, ids)
    late = error(logits[:, -200:], expected(model, policy, ids)[:, -200:])
    assert late < TIGHT
    assert decoder.cache.next_position <= decoder.cache.largest_position < 4 * policy.capacity


def test_a_model_that_makes_its_own_mask_is_decoded_all_the_same() -> None:
    """Its attention cannot be replaced; it streams by the drop-in, and says so."""
    model, policy, ids = tiny("falcon", alibi=False, new_decoder_architecture=False), None, text(50)
    policy = POLICIES["vanilla"]
    decoder = CapturedDecoder(model, policy)
    assert decoder.eager_because and "CUDA" not in decoder.eager_because
    assert error(decode(decoder, ids, 5), expected(model, policy, ids)) < TIGHT


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "cohere"])
def test_a_step_is_traced_whole_and_fused_without_its_rotations(family: str) -> None:
    """What a GPU compiles, run by torch: few launches, no sines, and the same logits."""
    torch._dynamo.reset()
    model, policy, ids = tiny(family), POLICIES["softlite"], text(60)
    targets: list[str] = []

    def backend(module: Any, inputs: Any) -> Any:
        fuse(module)
        targets.extend(getattr(n.target, "__name__", str(n.target)) for n in module.graph.nodes)
        return module.forward

    decoder = CapturedDecoder(model, policy)
    decoder._forward = torch.compile(decoder._model, backend=backend, fullgraph=True, dynamic=False)
    assert error(decode(decoder, ids), expected(model, policy, ids)) < TIGHT
    assert not {"cos", "sin", "linear"} & set(targets)
    assert targets.count("attend.default") == 2, "and it was traced once, whatever was evicted"


@settings(max_examples=30)
@given(
    policy=st.builds(
        EvictionPolicy,
        st.integers(0, 6),
        st.integers(1, 12),
        st.none() | st.integers(0, 5),
        st.none() | st.integers(1, 4),
        st.integers(1, 9),
    ),
    done=st.integers(0, 200),
)
def test_a_plan_is_what_the_policy_does(policy: EvictionPolicy, done: int) -> None:
    cache = RingCache(MODEL, policy)
    held: list[int] = []
    for t in range(done + 40):
        if not cache.plan(1):
            cache.rebase()
        (step,) = cache.plan(1)
        for _ in range(policy.drop(t, len(held))):
            held.pop(policy.n_sink)
        held.append(t)
        assert step.size == len(held) <= policy.capacity
        assert step.position == cache.seen - cache.base
        assert step.size - 1 <= step.position <= cache.largest_position
        slots = cache.policy.n_sink + torch.arange(cache.policy.capacity - policy.n_sink)
        run = len(held) - policy.n_sink
        if run > 0:
            assert step.slot == slots[(step.first - policy.n_sink + run - 1) % len(slots)]
        else:
            assert step.slot == t
        with cache.advancing(step):
            pass
    assert cache.seen == done + 40 and cache.size == len(held)


MODEL: PreTrainedModel = neox(num_hidden_layers=1)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [neox, llama])
def test_captured(make: Any, compiled: bool, recwarn: pytest.WarningsRecorder) -> None:
    """Evictions, re-basing and new streams go through one captured graph."""
    policy = POLICIES["softlite"]
    model = make()
    references = [
        (ids, expected(model, policy, ids)) for ids in (text(n, seed=n) for n in (300, 9, 80))
    ]
    decoder = CapturedDecoder(model.to("cuda"), policy, compile=compiled)
    assert decoder.eager_because is None, decoder.eager_because
    assert not [w for w in recwarn if w.category is EagerWarning]
    graph = decoder._graph
    for ids, reference in references:
        decoder.reset()
        assert error(decode(decoder, ids.cuda()).cpu(), reference) < 10 * TIGHT
    assert decoder._graph is graph


def test_positions_stay_within_a_table_of_angles() -> None:
    """GPT-J's table ends: a long prompt, and steps after it, must not ask for a row past it."""
    model, policy, ids = (
        tiny("gptj", max_position_embeddings=64, rotary_dim=4),
        EvictionPolicy(4, 56),
        text(200),
    )
    logits = stream(model, RingCache(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < 1e-4
