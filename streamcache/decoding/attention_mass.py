"""How much of its attention a model puts on the first tokens of a text, layer by layer."""

from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask

from streamcache.caches.attention_override import (
    AttentionOverrideError,
    eager_attention,
    set_attention,
)
from streamcache.caches.shared_copy import shared_copy

_NAME = "streamcache_mass"


class AttentionMass(NamedTuple):
    """Shares of the attention, means over the queries of the second half of a text.

    Attributes:
        first: [L, H, n], on each of the first n tokens.
        learned: [L, H], on the learned sink of a head (gpt-oss); 0 where there is none.
    """

    first: Tensor
    learned: Tensor


_found: ContextVar[tuple[int, dict[int, tuple[Tensor, Tensor]]]] = ContextVar("found")


@torch.no_grad()
def attention_mass(model: PreTrainedModel, input_ids: Tensor, n_first: int) -> AttentionMass:
    """Attention on the first tokens of a text [T], in one causal forward over all of it.

    Attention weights [H, T, T] of one layer at a time are held, in float32.

    Raises:
        AttentionOverrideError: a layer does not call transformers' registered attention.
    """
    copy = shared_copy(model)
    set_attention(copy, _NAME)
    layers: dict[int, tuple[Tensor, Tensor]] = {}
    token = _found.set((n_first, layers))
    try:
        copy(input_ids=input_ids[None].to(copy.device), use_cache=False, logits_to_keep=1)
    finally:
        _found.reset(token)
    if not layers:
        raise AttentionOverrideError("its layers do not call transformers' registered attention")
    first, learned = zip(*(layers[layer] for layer in sorted(layers)))
    return AttentionMass(torch.stack(first).cpu(), torch.stack(learned).cpu())


def _attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """An attention function of transformers that writes down what it finds."""
    output, weights = eager_attention(module, *args, **kwargs)
    n_first, layers = _found.get()
    late = weights[0, :, weights.shape[2] // 2 :].mean(dim=1)
    layers[int(module.layer_idx)] = late[:, :n_first], late[:, -1]  # type: ignore[arg-type]
    return output, weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)
