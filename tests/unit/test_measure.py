"""What is measured of a model is measured again when it has changed; the model stays as it was."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from streamcache.caches import isolated_layers
from streamcache.caches.probe import probe_rope
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.onepass import streaming_nll
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED
from tests.tiny import copy_of, error, llama, neox, stream, text, tiny

POLICY = EvictionPolicy(4, 508)


def long_llama(**settings: object) -> PreTrainedModel:
    return llama(max_position_embeddings=1024, head_dim=32, **settings)


def test_a_model_is_measured_once() -> None:
    model = llama()
    assert probe_rope(model) is probe_rope(model)


def test_a_model_in_another_dtype_is_measured_again() -> None:
    """`.bfloat16()` rounds the frequencies a model turns by, and `.float()` does not bring them
    back."""
    model, ids = long_llama(), text(700)
    probe_rope(model)
    model.bfloat16().float()
    fresh = copy_of(model, torch.float32)
    for name, buffer in model.named_buffers():
        fresh.get_buffer(name).copy_(buffer)
    logits = stream(model, StreamingCache(model, POLICY), ids)
    assert error(logits, stream(fresh, StreamingCache(fresh, POLICY), ids)) < 1e-4


def test_a_model_in_training_is_measured_without_its_dropout() -> None:
    model = neox(hidden_dropout=0.3, attention_dropout=0.3)
    model.train()
    assert probe_rope(model) == probe_rope(model)
    assert probe_rope(model).max_position is None


def test_modules_stay_in_the_mode_they_were_in() -> None:
    model = llama()
    model.activation_checkpointing_enable()
    model.train()
    frozen = model.get_decoder().layers[0].eval()
    modes = [module.training for module in model.modules()]
    probe_rope(model)
    streaming_nll(model, text(20)[0], EvictionPolicy(4, 8))
    assert not frozen.training
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_says_nan_is_not_refused_for_its_positions() -> None:
    model = llama()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    assert probe_rope(model).max_position is None


def half(family: str, dtype: torch.dtype) -> PreTrainedModel:
    """With its buffers in half precision as well."""
    model: Any = tiny(family, **ADMITTED[family])
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_a_table_of_angles_in_half_precision_does_not_hide_that_keys_rotate(
    family: str, dtype: torch.dtype
) -> None:
    exact, model = tiny(family, **ADMITTED[family]), half(family, dtype)
    found = [layer.rotation for layer in probe_rope(model).layers]
    for rotation, layer in zip(found, probe_rope(exact).layers, strict=True):
        assert rotation is not None and layer.rotation is not None
        assert (rotation.layout, rotation.start) == (layer.rotation.layout, layer.rotation.start)
        assert torch.allclose(rotation.inv_freq, layer.rotation.inv_freq, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "cohere2", "smollm3"])
def test_layers_that_compute_in_half_precision_alone_show_which_of_them_rotate(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantised layers, of whose weights no float32 is to be had; some layers have no RoPE."""
    exact = [layer.rotation for layer in probe_rope(tiny(family, **ADMITTED[family])).layers]
    monkeypatch.setattr(isolated_layers, "_can_be_float32", lambda weight: False)
    found = [layer.rotation for layer in probe_rope(half(family, dtype)).layers]
    assert [r and (r.layout, r.start) for r in found] == [r and (r.layout, r.start) for r in exact]
