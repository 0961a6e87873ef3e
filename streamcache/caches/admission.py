"""Which part of what is passed is fed a cache, and which models are refused for what they are."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from streamcache.caches.layer_states import without_attention
from streamcache.caches.signatures import takes_cache


class UnsupportedModelError(ValueError):
    """Streaming this model with a bounded cache would be silently wrong; the message says why."""


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The model of transformers that a wrapper is around: `torch.compile`, PEFT, data parallel.

    Raises:
        TypeError: there is none.
        UnsupportedModelError: a wrapper feeds the model more than it is given.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is not a transformers model")
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
        adapter = getattr(module, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"cannot stream {type(module).__name__} with a bounded cache: its adapter puts "
                "learned tokens or states before every input (PEFT prompt learning)"
            )
    raise TypeError(f"{type(model).__name__} contains no transformers model")


def decoder_of(model: nn.Module) -> PreTrainedModel:
    """The part of a model that has its layers, and is fed a cache."""
    inner = pretrained(model)
    candidates = (inner.get_decoder(), inner.base_model)
    found: Any = next((m for m in candidates if takes_cache(m)), inner)
    return found


def refusal(config: PreTrainedConfig, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"cannot stream {config.model_type} with a bounded cache: {reason}"
    )


def require_admissible(model: PreTrainedModel) -> None:
    """Refuse what a probe cannot see, or need not be asked.

    Raises:
        UnsupportedModelError: the model cannot be streamed.
    """
    require_in_memory(model)
    config = model.config
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    tables = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    reasons = {
        "none of its layers keeps keys and values": len(without_attention(config))
        == getattr(text, "num_hidden_layers", None),
        "it is an encoder-decoder": getattr(config, "is_encoder_decoder", False),
        "chunked attention masks by absolute position": getattr(text, "attention_chunk_size", None),
        "it scales its queries by absolute position": getattr(text, "attn_temperature_tuning", None)
        or any(table.get("llama_4_scaling_beta") for table in tables),
        "its decoder takes no cache by a name that this version of streamcache knows": not (
            takes_cache(decoder_of(model))
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise refusal(config, reason)


def require_in_memory(model: PreTrainedModel) -> None:
    """
    Raises:
        UnsupportedModelError: the model has weights on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        reason = "some of its weights are not in memory (meta device, offloading)"
        raise refusal(model.config, reason)
