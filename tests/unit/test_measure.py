"""What is measured of a model is measured again when it has changed; the model stays as it was."""

import torch
from transformers import PreTrainedModel

from streamcache.caches.probe import probe_rope
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.onepass import streaming_nll
from streamcache.policy import EvictionPolicy
from tests.tiny import copy_of, error, llama, neox, stream, text

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
