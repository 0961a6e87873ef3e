"""What is tested everywhere: the caches, policies of every kind, and the shapes of model families.

A new cache is here as soon as it has a line in `KINDS`; a new rule is one line.
"""

from typing import Any

import pytest

from streamcache.caches.base import BoundedCache
from streamcache.caches.kinds import KINDS, cache_type
from streamcache.policy import EvictionPolicy

CACHES: list[type[BoundedCache]] = [cache_type(kind) for kind in KINDS]
each_cache = pytest.mark.parametrize("cache_type", CACHES)

#                                 S   W  sigma delta R
POLICIES = {
    "vanilla": EvictionPolicy(4, 12),
    "no sinks": EvictionPolicy(0, 11),
    "one sink": EvictionPolicy(1, 16, 0, None, 3),
    "lazy": EvictionPolicy(4, 9, None, None, 8),
    "slack": EvictionPolicy(2, 14, 3, None, 8),
    "max drop": EvictionPolicy(3, 10, None, 2, 5),
    "softlite": EvictionPolicy(6, 10, 4, 2, 16),
    "window of one": EvictionPolicy(5, 1, 6, 3, 4),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=list(POLICIES))

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
#: The last layers attend to the keys of earlier ones.
_SHARED = {
    **MIXED["gemma4_text"],
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 1,
}
SHARED_KEYS: dict[str, dict[str, Any]] = {
    "gemma4_text": _SHARED,
    "gemma3n_text": {
        **_SHARED,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * 6,
    },
}
#: Distances enter the attention scores (ALiBi); keys carry no position.
ALIBI: dict[str, dict[str, Any]] = {
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
}
BLOOM = {"n_layer": 2, "n_head": 4}
ADMITTED = {**HALF, **INTERLEAVED, **MIXED, **ALIBI}

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256}
LEARNED = "learned or sinusoidal position embeddings"
LATENT = {
    "num_key_value_heads": 4,
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
    "llama4_text": ({**HEADS, "intermediate_size_mlp": 32, "num_local_experts": 2}, "chunked"),
    "beam": (HEADS, "what two tokens see of each other depends on where they stand"),
    "ministral3": (HEADS, "scales its queries by absolute position"),
    "mamba": ({"state_size": 4}, "none of its layers keeps keys and values"),
    "falcon": ({"alibi": True}, ""),
}

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
