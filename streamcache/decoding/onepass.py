"""The exact streaming NLL of a whole text in one causal pass, without decoding it token by token.

In teacher forcing the policy alone tells what the cache holds after every token. So query t can be
computed beside all the others: it attends to the sinks, as if they stood right before its window,
and to its window, the tokens S + evicted(t) ... t. A stream of StreamingLLM (Xiao et al. 2023,
section 3.2) is then a prefill with an unusual mask.

The model is told that every token is at position 0 and so hands out unrotated queries and keys.
They are turned here, by angles taken in float64: as exact at token 10^7 as at the first.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from transformers import PreTrainedModel

from streamcache.caches.attention_override import (
    AttentionOverrideError,
    Scores,
    use_attention,
    with_override,
)
from streamcache.caches.probe import ModelGeometry, probe_rope
from streamcache.caches.rope import Rotation, turn
from streamcache.policy import Policy, evictions, warn_beyond

# Tokens a block, by device: short ones look at fewer keys in vain, long ones keep a GPU busy.
_BLOCK = {"cpu": 256, "cuda": 1024}


class OnePassUnsupported(ValueError):
    """The model's attention cannot be computed in one pass; the message says why.

    Decoding the text token by token may work nevertheless.
    """


@torch.no_grad()
def streaming_nll(
    model: PreTrainedModel,
    input_ids: Tensor,
    policy: Policy,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """NLL of each token of a teacher-forced stream, predicted from what the cache then holds.

    Agrees with feeding the text token by token to the model and a cache with this policy. The text
    goes through the model in blocks, and a layer keeps what the next block sees: beside the result
    and a count a token (some 50 bytes), memory grows with the policy's capacity, not with the text.

    Args:
        model: a causal language model whose attention goes through transformers' registry.
        input_ids: int64 [T], T >= 2, on any device.
        policy: what to evict and when.
        advance: called with the number of tokens just finished.

    Returns:
        float32 [T - 1], nats, on the model's device: entry t is -log p(token t + 1) after token t
        was appended.

    Raises:
        UnsupportedModelError: no bounded cache fits the model (see `caches.probe.probe_rope`).
        OnePassUnsupported: a bounded cache may, one pass does not.
        ValueError: input_ids is not [T] with T >= 2.
    """
    if input_ids.ndim != 1 or len(input_ids) < 2:
        raise ValueError(f"input_ids must be [T] with T >= 2, got {list(input_ids.shape)}")
    text = input_ids.to(model.device)
    n_queries = len(text) - 1  # the last token predicts nothing
    config = model.config.get_text_config(decoder=True)
    warn_beyond(policy, getattr(config, "max_position_embeddings", None))
    block = _BLOCK.get(text.device.type, 1024)
    nll = torch.empty(n_queries, device=text.device)
    try:
        copy, geometry = _admit(model, policy, n_queries)
        stream = _Stream(geometry, policy, n_queries)
        for begin in range(0, n_queries, block):
            end = min(begin + block, n_queries)
            logits = stream.feed(copy, text, begin, end).float()
            nll[begin:end] = cross_entropy(logits, text[begin + 1 : end + 1], reduction="none")
            if advance:
                advance(end - begin)
    except AttentionOverrideError as error:
        reason = f"cannot run {model.config.model_type} in one pass: {error}"
        raise OnePassUnsupported(reason) from error
    return nll


def _admit(
    model: PreTrainedModel, policy: Policy, n_tokens: int
) -> tuple[PreTrainedModel, ModelGeometry]:
    """The copy of the model that is run, and how it turns its keys."""

    geometry = probe_rope(model)
    limit = geometry.max_position
    if limit is not None and min(policy.capacity, n_tokens) > limit:
        raise AttentionOverrideError(f"its table of angles holds for {limit} positions")
    return with_override(model), geometry


class _Stream:
    """A text on its way through a model, block by block.

    Attributes:
        states: by layer, keys and values [1, Hkv, n, D] of the sinks and of one run of tokens.
    """

    def __init__(self, geometry: ModelGeometry, policy: Policy, n_tokens: int):
        self.layers = geometry.layers
        self.n_sink = policy.n_sink
        self.evicted = list(accumulate(evictions(policy, n_tokens)))  # before token t is appended
        self.begin = 0
        self.states: dict[int, tuple[Tensor, ...]] = {}

    def feed(self, model: PreTrainedModel, text: Tensor, begin: int, end: int) -> Tensor:
        """Logits [end - begin, V] of the next block, text[begin:end]."""
        n_stale = self.evicted[begin] - self.evicted[self.begin]  # no query sees them any longer
        self.kept = slice(self.n_sink), slice(self.n_sink + n_stale, None)
        self.block = _Block(self.n_sink, begin, self.evicted[begin:end], text.device)
        self.begin = begin
        ids = text[None, begin:end]
        with use_attention(self.attend):
            out = model(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False)
        return out.logits[0]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Unrotated states [1, H, n, D] to [1, n, H, Dv]: see `attention_override.Attention`."""
        scaling, softcap, sliding_window, sinks = scores
        (n_heads, n_queries), n_kv_heads = query.shape[1:3], key.shape[1]
        if rotation := self.layers[layer].rotation:
            query_phase, key_phase = self.block.phases(rotation)
            query, key = _spread(query, rotation, query_phase), _spread(key, rotation, key_phase)
        key, value = self._append(layer, key, value)
        # The query heads that share a key head become further queries of that head.
        query = query.reshape(1, n_kv_heads, -1, query.shape[-1])
        mask = self.block.mask(sliding_window, n_heads // n_kv_heads, query.dtype)
        if not softcap and sinks is None:
            out = _fused(query, key, value, mask, scaling)
        else:  # Gemma 2 caps its scores, gpt-oss has a further score without a value
            logits = _capped_scores(query, key, scaling, softcap) + mask
            if sinks is not None:
                sinks = sinks.repeat_interleave(n_queries).reshape(1, n_kv_heads, -1, 1)
                logits = torch.cat([logits, sinks.to(logits.dtype)], dim=-1)
            weights = logits.softmax(dim=-1)[..., : key.shape[2]]
            out = weights.to(value.dtype) @ value
        return out.reshape(1, n_heads, n_queries, -1).transpose(1, 2).contiguous()

    def _append(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        if held := self.states.get(layer):
            new = tuple(
                torch.cat([*(old[:, :, part] for part in self.kept), states], dim=2)
                for old, states in zip(held, new)
            )
        self.states[layer] = new
        return new


class _Block:
    """What the queries of a block see: alike in all layers, so worked out once.

    Args:
        n_sink: S, tokens.
        begin: the first query's token.
        evicted: tokens evicted before each query.
    """

    def __init__(self, n_sink: int, begin: int, evicted: list[int], device: torch.device):
        end = begin + len(evicted)
        sinks = torch.arange(min(n_sink, end), device=device)
        run = torch.arange(min(n_sink + evicted[0], end), end, device=device)
        self.n_sink = n_sink
        self.query = torch.arange(begin, end, device=device)
        self.key = torch.cat([sinks, run])
        self.evicted = torch.tensor(evicted, device=device)
        self._phases: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}

    def phases(self, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Phases [n, 2, planes] of the block's queries and of its keys, for `_spread`.

        The first part is for window keys, the second for sinks: there a query is turned back by
        what was evicted before it. A key is one of the two, and its other part is zero.
        """
        if id(rotation) not in self._phases:
            phase = rotation.phase(self.query)
            query = torch.stack([phase, rotation.phase(self.query - self.evicted)], dim=1)
            is_sink = self.query < self.n_sink
            parts = torch.stack([~is_sink, is_sink], dim=1)
            self._phases[id(rotation)] = query, phase[:, None] * parts[..., None]
        return self._phases[id(rotation)]

    def mask(self, sliding_window: int, groups: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [groups * queries, keys]: what the cache holds of the sliding window."""
        if (sliding_window, groups) not in self._masks:
            query, evicted = self.query[:, None], self.evicted[:, None]
            is_sink = self.key < self.n_sink
            seen = (self.key <= query) & (is_sink | (self.key >= self.n_sink + evicted))
            if sliding_window:
                seen &= query - self.key - is_sink * evicted < sliding_window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            filled = mask.masked_fill_(~seen, -torch.inf)
            self._masks[sliding_window, groups] = filled.repeat(groups, 1)
        return self._masks[sliding_window, groups]


def _spread(states: Tensor, rotation: Rotation, phase: Tensor) -> Tensor:
    """States [1, H, n, D] with their rotated planes twice, turned by phase [n, 2, planes].

    So the product of a query and a key takes the angle of a window key or of a sink, as the zero
    part of the key decides, and one matrix product serves both.
    """
    turned = turn(rotation.planes(states).unsqueeze(-3), phase).flatten(-3).to(states.dtype)
    end = rotation.start + 2 * phase.shape[-1]
    return torch.cat([turned, states[..., : rotation.start], states[..., end:]], dim=-1)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """SDPA, whose fast kernels want one width for all and, on a GPU, a multiple of eight."""
    width = max(query.shape[-1], value.shape[-1])
    width += -width % 8
    query, key, padded = (pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
    out = scaled_dot_product_attention(query, key, padded, attn_mask=mask, scale=scaling)
    return out[..., : value.shape[-1]]


def _capped_scores(query: Tensor, key: Tensor, scaling: float, softcap: float) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).mT * scaling
    return scores if not softcap else (scores / softcap).tanh_() * softcap
