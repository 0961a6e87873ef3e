"""The Triton kernel of `attention`: one launch that turns, writes the ring, attends and combines.

The window of a head is split into runs of slots, one program each (Flash-Decoding, Dao et al.
2023), and one more program takes the sinks and the new token. The program that is the last of its
head to finish adds up the others.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamcache.caches.rope import RopeTable
from streamcache.decoding.kernels.linear_triton import _wait, launch

# Keys a step, warps, and how many programs fill an H200.
TUNED = {"BLOCK": 16, "num_warps": 1}
PROGRAMS = 1056


@triton.jit
def _tile(ptr, rows, mask, D: tl.constexpr, D_PAD: tl.constexpr):
    """Some rows of a [rows, D] matrix."""
    columns = tl.arange(0, D_PAD)
    at = rows[:, None] * D + columns[None, :]
    return tl.load(ptr + at, mask[:, None] & (columns < D)[None, :], 0.0)


@triton.jit
def _turning(cos_ptr, sin_ptr, partner_ptr, position, D: tl.constexpr, D_PAD: tl.constexpr):
    """What turns a state [D] to a position: see `rope.RopeTable`."""
    d = tl.arange(0, D_PAD)
    cos, sin, partner = 1.0, 0.0, d
    if cos_ptr is not None:
        cos = tl.load(cos_ptr + position * D + d, d < D, other=0.0)
        sin = tl.load(sin_ptr + position * D + d, d < D, other=0.0)
        partner = tl.load(partner_ptr + d, d < D, other=0)
    return cos, sin, partner


@triton.jit
def _turned(ptr, turning, turns: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr):
    cos, sin, partner = turning
    d = tl.arange(0, D_PAD)
    x = tl.load(ptr + d, d < D, other=0.0).to(tl.float32)
    if turns:
        x = x * cos + tl.load(ptr + partner, d < D, other=0.0).to(tl.float32) * sin
    return x


@triton.jit
def _cap(scores, softcap):
    """Scores in powers of two, capped."""
    if softcap is not None:
        scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
    return scores * 1.4426950408889634


@triton.jit
def _attend(
    q_ptr, new_k_ptr, new_v_ptr, k_ptr, v_ptr, step_ptr, cos_ptr, sin_ptr, partner_ptr,
    part_ptr, sum_ptr, count_ptr, out_ptr,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, scaling, softcap,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, SLOTS: tl.constexpr, SINKS: tl.constexpr,
    REACH: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, D_PAD: tl.constexpr,
    DV_PAD: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr, PARTS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    part, pair = tl.program_id(0), tl.program_id(1)
    batch, head = pair // HEADS, pair % HEADS
    row = (batch * (HEADS // GROUPS) + head // GROUPS).to(tl.int64) * SLOTS
    k_ptr += row * D
    v_ptr += row * DV
    d, dv = tl.arange(0, D_PAD), tl.arange(0, DV_PAD)
    is_sinks = part == 0
    begin = tl.where(is_sinks, 0, SINKS + (part - 1) * KEYS)
    end = tl.where(is_sinks, SINKS, tl.minimum(begin + KEYS, SLOTS))

    # All that was there before the kernel in front is asked for before that kernel has ended. A
    # slot is read whether or not it is still seen, so that no read waits for the step's numbers.
    slots = begin + tl.arange(0, BLOCK)
    keys = _tile(k_ptr, slots, slots < end, D, D_PAD)
    values = _tile(v_ptr, slots, slots < end, DV, DV_PAD)
    position, new_slot = tl.load(step_ptr), tl.load(step_ptr + 1)
    first, size = tl.load(step_ptr + 2).to(tl.int32), tl.load(step_ptr + 3).to(tl.int32)
    q_position = tl.where(is_sinks, (size - 1).to(tl.int64), position)
    turning = _turning(cos_ptr, sin_ptr, partner_ptr, q_position, D, D_PAD)
    _wait(PDL)

    turns: tl.constexpr = cos_ptr is not None
    q_at = q_ptr + batch * q_batch + head * q_head
    q = _turned(q_at, turning, turns, D, D_PAD)
    top, mass = -1e30, 0.0
    mixed = tl.zeros([DV_PAD], tl.float32)
    for start in tl.range(begin, end, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        place = slots - first
        place = SINKS + tl.where(place < 0, place + (SLOTS - SINKS), place)
        place = tl.where(slots < SINKS, slots, place)
        seen = (place < size - 1) & (slots < end)  # all but the new token, which is not there yet
        if REACH > 0:
            seen = seen & (place >= size - REACH)
        scores = _cap(tl.sum(keys.to(tl.float32) * q[None, :], 1) * scaling, softcap)
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        keep, weights = tl.exp2(top - higher), tl.exp2(scores - higher)
        mass = mass * keep + tl.sum(weights, 0)
        mixed = mixed * keep + tl.sum(weights[:, None] * values.to(tl.float32), 0)
        top = higher
        if KEYS > BLOCK or SINKS > BLOCK:
            slots += BLOCK
            keys = _tile(k_ptr, slots, slots < end, D, D_PAD)
            values = _tile(v_ptr, slots, slots < end, DV, DV_PAD)

    if is_sinks:  # and the new token
        kv_head = head // GROUPS
        turning = _turning(cos_ptr, sin_ptr, partner_ptr, position, D, D_PAD)
        q = _turned(q_at, turning, turns, D, D_PAD)
        new_k_at = new_k_ptr + batch * k_batch + kv_head * k_head
        new_k = _turned(new_k_at, turning, turns, D, D_PAD).to(k_ptr.dtype.element_ty)
        new_v_at = new_v_ptr + batch * v_batch + kv_head * v_head
        new_v = tl.load(new_v_at + dv, dv < DV, other=0.0)
        if head % GROUPS == 0:
            tl.store(k_ptr + new_slot * D + d, new_k, d < D)
            tl.store(v_ptr + new_slot * DV + dv, new_v, dv < DV)
        new_score = _cap(tl.sum(new_k.to(tl.float32) * q, 0) * scaling, softcap)
        higher = tl.maximum(top, new_score)
        keep, weight = tl.exp2(top - higher), tl.exp2(new_score - higher)
        mass = mass * keep + weight
        mixed = mixed * keep + weight * new_v.to(tl.float32)
        top = higher
    at = pair * PARTS + part
    tl.store(part_ptr + at * DV_PAD + dv, mixed)
    tl.store(sum_ptr + 2 * at, top)
    tl.store(sum_ptr + 2 * at + 1, mass)

    tl.debug_barrier()  # all of the program's results are written before it is counted
    if tl.atomic_add(count_ptr + pair, 1) == PARTS - 1:
        tl.store(count_ptr + pair, 0)
        i = tl.arange(0, PARTS_PAD)
        all_at = pair * PARTS + i
        tops = tl.load(sum_ptr + 2 * all_at, i < PARTS, other=-1e30, cache_modifier=".cg")
        masses = tl.load(sum_ptr + 2 * all_at + 1, i < PARTS, other=0.0, cache_modifier=".cg")
        parts_at = part_ptr + all_at[:, None] * DV_PAD + dv[None, :]
        parts = tl.load(parts_at, (i < PARTS)[:, None], other=0.0, cache_modifier=".cg")
        shares = tl.exp2(tops - tl.max(tops, 0))
        out = tl.sum(shares[:, None] * parts, 0) / tl.sum(shares * masses, 0)
        tl.store(out_ptr + pair * DV + dv, out.to(out_ptr.dtype.element_ty), dv < DV)


_scratch: dict[tuple[torch.device, int, int, int], tuple[Tensor, Tensor, Tensor]] = {}


def _scratch_for(device: torch.device, pairs: int, parts: int, width: int) -> tuple[Tensor, ...]:
    """Room for the programs' results and the counters, which every launch leaves at zero.

    Launches of one shape share it: they may not run at the same time.
    """
    key = (device, pairs, parts, width)
    if key not in _scratch:
        results = torch.empty(pairs * parts * width, device=device)
        sums = torch.empty(pairs * parts * 2, device=device)
        _scratch[key] = results, sums, torch.zeros(pairs, dtype=torch.int32, device=device)
    return _scratch[key]


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
    programs: int | None = None,
    **tuned: Any,
) -> Tensor:
    """`attention.attend` on a GPU."""
    batch, n_heads = query.shape[:2]
    n_kv_heads, n_slots, width = keys.shape[1:]
    value_width = values.shape[-1]
    run, pairs = n_slots - n_sink, batch * n_heads
    tuned = {**TUNED, **launch(query), **tuned}
    most = triton.cdiv(run, tuned["BLOCK"])
    splits = max(1, min(round((programs or PROGRAMS) / pairs), most))
    keys_each = triton.cdiv(triton.cdiv(run, splits), tuned["BLOCK"]) * tuned["BLOCK"]
    parts = triton.cdiv(run, keys_each) + 1
    padded = triton.next_power_of_2(value_width)
    results, sums, counts = _scratch_for(query.device, pairs, parts, padded)
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = query.new_empty(batch, 1, n_heads, value_width)
    _attend[(parts, pairs)](
        query, key, value, keys, values, step, *(turn or (None, None, None)),
        results, sums, counts, out,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], scaling, softcap or None,
        n_heads, n_heads // n_kv_heads, n_slots, n_sink, reach, width, value_width,
        triton.next_power_of_2(width), padded, keys_each, parts,
        triton.next_power_of_2(parts), **tuned,
    )  # fmt: skip
    return out
