"""Attention of one new token over a ring: read in place, with no mask and no copy."""

import torch
from torch import Tensor

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
    scaling: float,
    softcap: float = 0.0,
    reach: int = 0,
) -> Tensor:
    """Store the token's key and value in the ring and attend to all that it holds.

    Args:
        query: [B, H, 1, D], not turned; H is a multiple of Hkv.
        key, value: the token's own, [B, Hkv, 1, D] (not turned) and [B, Hkv, 1, Dv].
        keys, values: the ring, [B, Hkv, C, D] and [B, Hkv, C, Dv], contiguous; written to.
        step: int64 [4], the fields of a `ring.Step`, on the device: nothing is read by the host.
        turn: how query and key are turned; None: not at all.
        n_sink: S, slots.
        scaling: of the scores.
        softcap: c > 0 caps scores to c tanh(score / c) (Gemma 2); 0, not.
        reach: places of the cache the token sees, itself included; 0, all.

    Returns:
        [B, 1, H, Dv] in the query's dtype.
    """
    if has_kernels(query):
        from streamcache.decoding.kernels import attention_triton

        return attention_triton.attend(
            query, key, value, keys, values, step, turn, n_sink, scaling, softcap, reach
        )
    position, slot, first, size = step.unbind()
    wide = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // keys.shape[1]
    q = query.to(wide).unflatten(1, (-1, groups)).squeeze(3)  # [B, Hkv, G, D]
    key = key.to(wide) if turn is None else turn(key.to(wide), position)
    keys.index_copy_(2, slot[None], key.to(keys.dtype))
    values.index_copy_(2, slot[None], value)

    n_slots = keys.shape[2]
    slots = torch.arange(n_slots, device=query.device)
    is_sink = slots < n_sink
    place = torch.where(is_sink, slots, n_sink + (slots - first) % (n_slots - n_sink))
    seen = place < size
    if reach:
        seen = seen & (place >= size - reach)

    k, v = keys.to(wide), values.to(wide)
    if turn is None:
        scores = q @ k.mT
    else:
        scores = torch.where(is_sink, turn(q, size - 1) @ k.mT, turn(q, position) @ k.mT)
    scores = scores * scaling
    if softcap:
        scores = (scores / softcap).tanh() * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return (weights @ v).flatten(1, 2)[:, None].to(query.dtype)
