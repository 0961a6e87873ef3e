"""Models that a bounded cache would serve silently wrong are refused by the constructor."""

from typing import Any

import pytest
from transformers import CONFIG_MAPPING, T5Config, T5ForConditionalGeneration

from streamcache.caches.base import BoundedCache
from streamcache.caches.probe import UnsupportedModelError
from streamcache.caches.reference import ReferenceCache
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.policy import EvictionPolicy
from tests.tiny import error, expected, stream, text, tiny, tiny_config

POLICY = EvictionPolicy(n_sink=3, window_size=12, cache_slack=2, max_drop=2, compress_every=4)

GQA = {"num_key_value_heads": 2}
HEADS = {**GQA, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256}
LEARNED = "learned or sinusoidal position embeddings"
MLA = "multi-head latent attention"
LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_shared_experts": 1,
}
GLOBAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": (GPT2, LEARNED),
    "opt": ({"ffn_dim": 32, "word_embed_proj_dim": 32}, LEARNED),
    "gpt_neo": (GLOBAL, LEARNED),
    "gpt_bigcode": (GPT2, LEARNED),
    "biogpt": ({}, LEARNED),
    "xglm": ({"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 32}, LEARNED),
    "ctrl": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 32}, LEARNED),
    "deepseek_v2": (LATENT, MLA),
    "deepseek_v3": (LATENT, MLA),
    "llama4_text": ({**HEADS, "intermediate_size_mlp": 32, "num_local_experts": 2}, "chunked"),
    "beam": (HEADS, "what two tokens see of each other depends on where they stand"),
    "ministral3": (HEADS, "scales its queries by absolute position"),
    "mamba": ({"state_size": 4}, "keep a state other"),
    "lfm2": ({**GQA, "layer_types": ["conv", "full_attention"]}, ""),
    "falcon": ({"alibi": True}, ""),
}


@pytest.mark.parametrize("family", REFUSED)
@pytest.mark.parametrize("given", ["model", "config"])
def test_a_refused_family(family: str, given: str) -> None:
    settings, reason = REFUSED[family]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    made = (tiny if given == "model" else tiny_config)(family, **settings)
    with pytest.raises(UnsupportedModelError, match=f"cannot stream {family} .*{reason}"):
        StreamingCache(made, POLICY)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    for made in (config, T5ForConditionalGeneration(config)):
        with pytest.raises(UnsupportedModelError, match=r"cannot stream t5 .*encoder-decoder"):
            StreamingCache(made, POLICY)


#: Their table of angles switches beyond 64 positions.
SWITCHING: dict[str, dict[str, Any]] = {
    "llama": {
        **GQA,
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    },
    "phi3": {
        **GQA,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": 64,
        },
    },
}
each_switching = pytest.mark.parametrize("family", SWITCHING)


@each_switching
@pytest.mark.parametrize("cache_type", [StreamingCache, RerotatingCache, ReferenceCache])
def test_a_switching_table_is_kept_within(family: str, cache_type: type[BoundedCache]) -> None:
    """Dynamic NTK and LongRoPE: the capacity fits into the 64 positions, exactly."""
    model, policy, ids = tiny(family, **SWITCHING[family]), EvictionPolicy(4, 60), text(200)
    logits = stream(model, cache_type(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < 1e-4


@each_switching
@pytest.mark.parametrize("given", ["model", "config"])
def test_a_switching_table_that_is_too_short_is_refused(family: str, given: str) -> None:
    made = (tiny if given == "model" else tiny_config)(family, **SWITCHING[family])
    with pytest.raises(UnsupportedModelError, match=r"holds for 64 positions .* holds 65"):
        StreamingCache(made, EvictionPolicy(4, 61))


@each_switching
def test_a_switching_table_stops_a_stream_whose_positions_grow(family: str) -> None:
    model = tiny(family, **SWITCHING[family])
    cache = StreamingCache(model.config, EvictionPolicy(4, 12))
    with pytest.raises(UnsupportedModelError, match="position 64 is past the model's table"):
        stream(model, cache, text(100))
    assert cache.seen == 64
