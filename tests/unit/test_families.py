"""Every family of models that is admitted streams exactly.

A family that fails here after an upgrade of transformers has changed how it places its tokens.
"""

from typing import Any

import pytest

from streamcache.caches.probe import UnsupportedModelError
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.tiny import error, expected, stream, text, tiny

POLICY = EvictionPolicy(n_sink=3, window_size=12, cache_slack=2, max_drop=2, compress_every=4)

GQA = {"num_key_value_heads": 2}
HEADS = {**GQA, "head_dim": 8}
LOCAL = {**HEADS, "sliding_window": 8}  # some layers see less than the cache holds
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPED = {**ROUTED, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
GPTJ = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4}
FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}

#: Keys turn in half-split pairs.
HALF: dict[str, dict[str, Any]] = {
    "gpt_neox": {"hidden_size": 64},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "llama": GQA,
    "mistral": {**GQA, "sliding_window": 8},
    "ministral": LOCAL,
    "qwen2": GQA,
    "qwen3": HEADS,
    "phi": {},
    "phi3": {**GQA, "sliding_window": None},
    "gemma": HEADS,
    "gemma2": LOCAL,
    "falcon": {"alibi": False, **FALCON},
    "stablelm": {**GQA, "hidden_size": 64},
    "olmo": GQA,
    "olmo2": GQA,
    "olmo3": LOCAL,
    "granite": GQA,
    "starcoder2": GQA,
    "nemotron": HEADS,
    "persimmon": {},
    "arcee": HEADS,
    "seed_oss": HEADS,
    "apertus": HEADS,
    "diffllama": HEADS,
    "bitnet": GQA,
    "hunyuan_v1_dense": HEADS,
    "vaultgemma": LOCAL,
    "mixtral": {**GQA, "num_local_experts": 4, "sliding_window": None},
    "qwen2_moe": {**GQA, **FEW, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**HEADS, **FEW},
    "olmoe": {**GQA, **FEW},
    "gpt_oss": {**LOCAL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**GQA, "num_local_experts": 4, "sliding_window": None},
    "glm4_moe": {**HEADS, **GROUPED},
    "dots1": {**HEADS, **GROUPED, "n_shared_experts": 1},
}
#: Keys turn in neighbouring pairs.
INTERLEAVED: dict[str, dict[str, Any]] = {
    "gptj": GPTJ,
    "codegen": GPTJ,
    "cohere": GQA,
    "glm": HEADS,
    "glm4": HEADS,
    "helium": HEADS,
    "ernie4_5": HEADS,
}
#: Layers differ: in their frequencies, or some do not turn their keys.
MIXED: dict[str, dict[str, Any]] = {
    "gemma3_text": {**LOCAL, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma4_text": {
        **LOCAL,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 4,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,  # of unlike head sizes
    },
    "cohere2": {**LOCAL, "num_hidden_layers": 4},
    "smollm3": {**GQA, "num_hidden_layers": 4},
    "exaone4": {**LOCAL, "num_hidden_layers": 4},
}
#: Distances enter the attention scores (ALiBi); keys carry no position.
ALIBI: dict[str, dict[str, Any]] = {
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
}
BLOOM = {"n_layer": 2, "n_head": 4}
ADMITTED = {**HALF, **INTERLEAVED, **MIXED, **ALIBI}


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
