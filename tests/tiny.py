"""Tiny models with random weights, streams fed to them, and what the oracle says of those."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.policy import EvictionPolicy
from streamcache.testing import Oracle
from streamcache.testing import logit_error as error
from tests.oracle import kept_after_each

__all__ = ["error"]

VOCABULARY = 64

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def tiny_config(family: str, **settings: Any) -> PreTrainedConfig:
    """A small config of a family (a `model_type` of transformers); settings override the shape."""
    config = AutoConfig.for_model(family, **{**_SHAPE, **settings})
    config._experts_implementation = "eager"  # the others know no float64 on a CPU
    return config


def tiny(family: str, **settings: Any) -> PreTrainedModel:
    """A tiny float32 model of a family. Its weights are large, so that its attention is not flat
    and an error in one position shows in the logits."""
    torch.set_num_threads(1)
    return build(tiny_config(family, **settings))


def build(config: PreTrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def copy_of(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same model in another dtype, and without hooks."""
    config = copy.deepcopy(model.config)
    other: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    other.load_state_dict(model.state_dict())
    return other.eval()


def neox(**settings: Any) -> PreTrainedModel:
    """GPT-NeoX, the Pythia architecture: rotary on a quarter of each head."""
    return tiny("gpt_neox", hidden_size=64, **settings)


def llama(**settings: Any) -> PreTrainedModel:
    """Llama with grouped-query attention."""
    return tiny("llama", num_key_value_heads=2, **settings)


def text(n_tokens: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Random token ids [batch, n_tokens]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (batch, n_tokens), generator=generator)


def rule(policy: EvictionPolicy) -> tuple[int, int, int, int | None, int]:
    """The parameters of the specification: S, W, sigma in force, delta, R."""
    sigma = policy.cache_slack
    return (
        policy.n_sink,
        policy.window_size,
        policy.compress_every - 1 if sigma is None else sigma,
        policy.max_drop,
        policy.compress_every,
    )


@torch.no_grad()
def stream(
    model: PreTrainedModel, cache: BoundedCache, ids: Tensor, chunks: Sequence[int] | None = None
) -> Tensor:
    """Logits [B, T, V] of plain forwards over ids [B, T], token by token or in chunks."""
    pieces = ids.split(list(chunks) if chunks else 1, dim=1)
    return torch.cat([model(input_ids=p, past_key_values=cache).logits for p in pieces], dim=1)


def expected(
    model: PreTrainedModel,
    policy: EvictionPolicy,
    ids: Tensor,
    dtype: torch.dtype = torch.float64,
    kind: type[Oracle] = Oracle,
) -> Tensor:
    """The oracle's logits [B, T, V] of the same stream, in whatever pieces it is fed."""
    oracle = kind(copy_of(model, dtype))
    kept = kept_after_each(ids.shape[1], *rule(policy))
    return torch.stack([oracle.logits(row, kept) for row in ids])
