"""Models that a bounded cache would serve silently wrong are refused by the constructor."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from streamcache.caches.base import BoundedCache
from streamcache.caches.probe import UnsupportedModelError, probe_rope
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED, REFUSED, SWITCHING, each_cache
from tests.tiny import copy_of, error, expected, stream, text, tiny, tiny_config

POLICY = EvictionPolicy(n_sink=3, window_size=12, cache_slack=2, max_drop=2, compress_every=4)


@pytest.mark.parametrize("family", REFUSED)
def test_a_refused_family(family: str) -> None:
    settings, reason = REFUSED[family]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    with pytest.raises(UnsupportedModelError, match=f"cannot stream {family} .*{reason}"):
        StreamingCache(tiny(family, **settings), POLICY)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModelError, match=r"cannot stream t5 .*encoder-decoder"):
        StreamingCache(T5ForConditionalGeneration(config), POLICY)


def test_a_config_is_refused() -> None:
    """There would be no hooks: padding would pass, and positions would grow without bound."""
    with pytest.raises(TypeError, match="pass the model itself, not its config"):
        StreamingCache(tiny_config("llama"), POLICY)  # type: ignore[arg-type]


def test_a_module_that_is_no_model_of_transformers_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear contains no transformers model"):
        StreamingCache(nn.Linear(2, 2), POLICY)


each_switching = pytest.mark.parametrize("family", SWITCHING)


@each_switching
@each_cache
def test_a_switching_table_is_kept_within(family: str, cache_type: type[BoundedCache]) -> None:
    """Dynamic NTK and LongRoPE: the capacity fits into the 64 positions, exactly."""
    model, policy, ids = tiny(family, **SWITCHING[family]), EvictionPolicy(4, 60), text(200)
    logits = stream(model, cache_type(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < 1e-4


@each_switching
def test_a_switching_table_of_a_float64_model(family: str) -> None:
    """Its frequencies are float64 as well, and are overwritten when the table switches."""
    model: Any = tiny(family, **SWITCHING[family])
    model, policy, ids = model.double(), EvictionPolicy(4, 20), text(60)
    logits = stream(model, StreamingCache(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < 1e-4


@each_switching
def test_a_probe_does_not_switch_the_table_of_a_model(family: str) -> None:
    model = tiny(family, **SWITCHING[family])
    buffers = {name: (b, b._version, b.clone()) for name, b in model.named_buffers()}
    probe_rope(model)
    for name, now in model.named_buffers():
        before, version, numbers = buffers[name]
        assert now is before and now._version == version and torch.equal(now, numbers)


@each_switching
def test_a_switching_table_that_is_too_short_is_refused(family: str) -> None:
    model = tiny(family, **SWITCHING[family])
    with pytest.raises(UnsupportedModelError, match=r"angles for 64 positions .* can hold 65"):
        StreamingCache(model, EvictionPolicy(4, 61))


@each_cache
@torch.no_grad()
def test_a_longer_input_of_others_does_not_switch_the_table_of_a_stream(
    cache_type: type[BoundedCache],
) -> None:
    """Dynamic NTK keeps the table it has grown as long as inputs are as long as its context."""
    model, policy, ids = tiny("llama", **SWITCHING["llama"]), EvictionPolicy(4, 60), text(140)
    cache = cache_type(model, policy)
    logits = []
    for t in range(140):
        if t % 20 == 7:
            model(input_ids=text(200))
        logits.append(model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits)
    assert error(torch.cat(logits, dim=1), expected(model, policy, ids)) < 1e-4


def test_a_table_whose_long_form_is_scaled_a_little_differently_is_seen_to_switch() -> None:
    """PhiMoE's two scales are 1.1 and 1.3: only lengths of keys tell, not angles."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0] * 4,
        "short_mscale": 1.1,
        "long_mscale": 1.3,
        "original_max_position_embeddings": 64,
    }
    model = tiny("phimoe", **{**ADMITTED["phimoe"], "rope_parameters": rope})
    if probe_rope(model).max_position is None:
        ids = text(1, seed=1)
        near, far = (
            model(input_ids=ids, position_ids=torch.tensor([[p]])).logits for p in (0, 100)
        )
        assert torch.allclose(near, far, atol=1e-4), "this transformers has one scale"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_computes_its_frequencies_anew_is_admitted_after_a_cast(
    dtype: torch.dtype,
) -> None:
    """PhiMoE: `.half()` rounds the frequencies that it keeps, and it does not use those."""
    model = tiny("phimoe", **ADMITTED["phimoe"])
    cast: Any = copy_of(model, torch.float32)
    cast, ids = cast.to(dtype), text(60)
    before, after = probe_rope(model).layers[0], probe_rope(cast).layers[0]
    assert before.rotation is not None and after.rotation is not None
    assert torch.equal(before.rotation.inv_freq, after.rotation.inv_freq)
    wide: Any = cast.float()  # buffers stay rounded
    logits = stream(wide, StreamingCache(wide, POLICY), ids)
    assert error(logits, expected(wide, POLICY, ids)) < 1e-4


def test_queries_scaled_by_position_are_refused_in_half_precision_too() -> None:
    if "beam" not in CONFIG_MAPPING:
        pytest.skip("this transformers has no beam")
    model = tiny("beam", **REFUSED["beam"][0])
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(UnsupportedModelError, match="depends on where they stand"):
            StreamingCache(copy_of(model, dtype), POLICY)


def test_a_large_bias_does_not_hide_that_keys_rotate() -> None:
    """Of one slow pair: the length of whole keys would hardly change."""
    model: Any = tiny("qwen2", num_key_value_heads=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 1e-4
            layer.self_attn.q_proj.bias.zero_()
            layer.self_attn.k_proj.bias.zero_()
            layer.self_attn.k_proj.bias.view(2, 8)[:, [3, 7]] = 1e4
    layers = probe_rope(model).layers
    assert all(layer.rotation is not None for layer in layers)


def test_keys_so_large_that_angles_are_too_coarse_are_refused_with_this_reason() -> None:
    """Scores of 10,000 from one slow pair: a rounding of 6e-8 of its angle is seen in them."""
    model: Any = tiny("qwen2", num_key_value_heads=2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.zero_()
            layer.self_attn.k_proj.bias.view(2, 8)[:, [3, 7]] = 1e4
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(UnsupportedModelError, match="its keys are as large as 1e"):
            StreamingCache(copy_of(model, dtype), POLICY)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gemma3_text"])
def test_the_verdict_on_a_deep_model_is_the_same_in_every_dtype(family: str) -> None:
    shape = {k: v for k, v in ADMITTED[family].items() if k != "layer_types"}
    model = tiny(family, **{**shape, "num_hidden_layers": 24})
    limit = probe_rope(model).max_position
    for dtype in (torch.float16, torch.bfloat16):
        assert probe_rope(copy_of(model, dtype)).max_position == limit


def test_autocast_changes_no_verdict() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert probe_rope(tiny("llama", num_key_value_heads=2)).max_position is None


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    with pytest.raises(UnsupportedModelError, match="not in memory"):
        StreamingCache(model, POLICY)


def test_a_table_of_biases_that_is_too_short_is_refused() -> None:
    model, ids = tiny("mpt", **{**ADMITTED["mpt"], "max_seq_len": 32}), text(100)
    with pytest.raises(
        UnsupportedModelError, match="at most 32 tokens, and this cache can hold 33"
    ):
        StreamingCache(model, EvictionPolicy(4, 29))
    policy = EvictionPolicy(4, 28)
    logits = stream(model, StreamingCache(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < 1e-4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("layers.0.mlp.down_proj", "layer 0"),
        ("layers.1.self_attn.k_proj", "layer 1"),
        ("embed_tokens", "its embedding"),
    ],
)
def test_damaged_weights_are_named(module: str, place: str, value: float) -> None:
    """And not taken for a model whose positions cannot be handled."""
    model = tiny("llama", num_hidden_layers=2)
    with torch.no_grad():
        model.get_decoder().get_submodule(module).weight[:] = value
    with pytest.raises(UnsupportedModelError, match=f"{place} gives NaN or infinity: its weights"):
        StreamingCache(model, POLICY)
