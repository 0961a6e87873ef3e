"""Attention of one new token over a ring: read in place, with no mask and no copy."""

import torch
from torch import Tensor
from torch.nn import functional as F

from streamcache.caches.attention_override import HeadNorms, Scores
from streamcache.caches.rope import RopeTable
from streamcache.decoding.kernels import has_kernels


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Tensor,
    turn: RopeTable | None,
    n_sink: int,
    scores: Scores,
) -> Tensor:
    """Store the token's key and value in the ring and attend to all that it holds.

    Args:
        query: [B, H, 1, D], not rotated; H is a multiple of Hkv.
        key, value: the token's own, [B, Hkv, 1, D] (not rotated) and [B, Hkv, 1, Dv].
        keys, values: the ring, [B, Hkv, C, D] and [B, Hkv, C, Dv], contiguous; written to.
        step: int64 [4] or [B, 4], the fields of a `ring.Step`, on the device: nothing is read by
            the host.
        turn: how query and key are rotated; None: not at all.
        n_sink: S, slots.
        scores: how the attention weights are made.

    Returns:
        [B, 1, H, Dv] in the query's dtype.
    """
    if has_kernels(query):
        from streamcache.decoding.kernels import attention_triton

        return attention_triton.attend(query, key, value, keys, values, step, turn, n_sink, scores)
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = query.to(wide), key.to(wide)
    if norms := scores.head_norms:
        query, key = _head_norm(query, norms.query, norms), _head_norm(key, norms.key, norms)
    groups = query.shape[1] // keys.shape[1]
    query = query.unflatten(1, (-1, groups)).squeeze(3)  # [B, Hkv, G, D]
    rows = step.expand(query.shape[0], 4)
    outs = [
        _attend_row(q, k, v, k_ring, v_ring, row, turn, n_sink, scores)
        for q, k, v, k_ring, v_ring, row in zip(query, key, value, keys, values, rows)
    ]
    return torch.stack(outs).flatten(1, 2)[:, None].to(value.dtype)


def _head_norm(x: Tensor, gain: Tensor, norms: HeadNorms) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain.to(x.dtype) + norms.offset, norms.eps)


def _attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    step: Tensor,
    turn: RopeTable | None,
    n_sink: int,
    scores: Scores,
) -> Tensor:
    """Of one stream: query [Hkv, G, D], key and value [Hkv, 1, D], ring [Hkv, C, D]."""
    position, slot, first, size = step.unbind()
    key = key if turn is None else turn(key, position)
    keys.index_copy_(1, slot[None], key.to(keys.dtype))
    values.index_copy_(1, slot[None], value)

    n_slots = keys.shape[1]
    slots = torch.arange(n_slots, device=query.device)
    is_sink = slots < n_sink
    place = torch.where(is_sink, slots, n_sink + (slots - first) % (n_slots - n_sink))
    seen = place < size
    if scores.sliding_window:
        seen = seen & (place >= size - scores.sliding_window)

    k, v = keys.to(query.dtype), values.to(query.dtype)
    if turn is None:
        products = query @ k.mT
    else:
        at_window, at_sinks = turn(query, position), turn(query, size - 1)
        products = torch.where(is_sink, at_sinks @ k.mT, at_window @ k.mT)
    logits = products * scores.scaling
    if cap := scores.softcap:
        logits = (logits / cap).tanh() * cap
    logits = logits.masked_fill(~seen, -torch.inf)
    if scores.learned_sinks is not None:
        learned = scores.learned_sinks.to(logits.dtype).view(*query.shape[:2], 1)
        logits = torch.cat([logits, learned], dim=-1)
    return logits.softmax(dim=-1)[..., :n_slots] @ v
