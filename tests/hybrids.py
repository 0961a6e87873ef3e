"""Hybrids, tiny, and the oracle for them: layers with a state see the whole stream."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from streamcache.caches.layer_states import state_layers, without_attention
from streamcache.policy import EvictionPolicy
from tests.cases import FEW, HEADS, LATENT
from tests.oracle import Oracle
from tests.tiny import expected

MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FOUR = {**HEADS, "num_hidden_layers": 4}
HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        **FOUR,
        **FEW,
        **DELTA,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "jamba": {
        **FOUR,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "num_experts": 4,
    },
    "lfm2": {**FOUR, "layer_types": ["conv", "full_attention"] * 2},
    "falcon_h1": {**HEADS, **MAMBA, "mamba_d_ssm": 64},  # both in every layer
    "bamba": {**FOUR, **MAMBA, "attn_layer_indices": [1, 3]},
    "granitemoehybrid": {
        **FOUR,
        **MAMBA,
        "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 16,
    },
}
if "kimi_linear" in CONFIG_MAPPING:  # delta attention is called `self_attn` like the latent one
    for name in ("kimi_linear", "bailing_hybrid"):
        HYBRIDS[name] = {
            **LATENT,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        }


class HybridOracle(Oracle):
    """What comes out of a layer with a state is known from a forward over all tokens so far."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        states = state_layers(model.config) or [None] * len(self.layers)
        self.has_state = [state is not None for state in states]
        self.without_attention = without_attention(model.config)

    def _last(
        self,
        input_ids: Tensor,
        kept: Sequence[Sequence[int]],
        known: Sequence[Tensor],
        layer: nn.Module | None,
    ) -> Tensor:
        if not known or not self.has_state[len(known) - 1]:
            return super()._last(input_ids, kept, known, layer)
        whole = [range(t + 1) for t in range(len(kept))]
        if len(known) - 1 in self.without_attention:
            return super()._last(input_ids, whole, known, layer)
        parts = self.layers[len(known) - 1].named_modules()
        attention = next(part for name, part in parts if name.endswith("self_attn"))
        # beside the state: what the attention to the kept tokens gives is put in its place
        outputs = self._attended(attention, input_ids, kept, known)
        hook = attention.register_forward_hook(lambda *_: (outputs[None], None))
        try:
            return super()._last(input_ids, whole, known, layer)
        finally:
            hook.remove()

    def _attended(
        self,
        attention: nn.Module,
        input_ids: Tensor,
        kept: Sequence[Sequence[int]],
        known: Sequence[Tensor],
    ) -> Tensor:
        """The output of an attention of the last layer known, for every query [T, hidden].

        Layers may share it (Zamba 2), so what it gave last before that layer ended is taken.
        """
        given: list[Tensor] = []
        rows: list[Tensor] = []
        layer = self.layers[len(known) - 1]
        hooks = [
            attention.register_forward_hook(lambda _, __, out: given.append(out[0])),
            layer.register_forward_hook(lambda *_: rows.append(given[-1][0, -1])),
        ]
        try:
            for tokens in kept:
                super()._last(input_ids, [tokens], known, None)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(rows)


def expected_of_hybrid(
    model: PreTrainedModel,
    policy: EvictionPolicy,
    ids: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The oracle's logits [B, T, V] of a stream of a hybrid, or of any other model."""
    return expected(model, policy, ids, dtype, HybridOracle)
