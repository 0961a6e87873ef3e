"""How much of its attention a model puts on the first tokens of a text, layer by layer."""

from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask

from streamcache.caches.attention_override import AttentionOverrideError, require_known
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
    for module in copy.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._attn_implementation_internal = _NAME
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


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, Tensor]:
    """An attention function of transformers that writes down what it finds: [B, T, H, D]."""
    require_known(others)
    n_first, layers = _found.get()
    n_queries, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    scores = (query @ key.mT).float() * scaling
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    sinks = scores.new_full((1, scores.shape[1], n_queries, 1), -torch.inf)
    if s_aux is not None:
        sinks = s_aux.float().reshape(1, -1, 1, 1).expand_as(sinks)
    weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)
    late = weights[0, :, n_queries // 2 :].mean(dim=1)
    layers[int(module.layer_idx)] = late[:, :n_first], late[:, -1]  # type: ignore[arg-type]
    output = weights[..., :-1].to(value.dtype) @ value
    return output.transpose(1, 2).contiguous(), weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)
