"""The Triton kernel of `attention`: one launch that rotates, writes the ring, attends and combines.

A program serves all query heads of a key head, so that a key is read once. The window of a key
head is split into runs of slots, one program each (Flash-Decoding, Dao et al. 2023), and one more
program takes the sinks. The last run takes the new token as well. The program that is the last of
its key head to finish adds up the others.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamcache.caches.attention_override import Scores
from streamcache.caches.rope import RopeTable
from streamcache.decoding.kernels.launch import launch, wait

# Keys a step, warps, and how many programs fill an H200: for query heads with keys of their own,
# for groups of them, and for groups of wide heads, whose keys take the registers of more warps.
SINGLE = {"BLOCK": 16, "num_warps": 1, "programs": 1056}
GROUPED = {"BLOCK": 64, "num_warps": 4, "programs": 264}
WIDE = {"BLOCK": 64, "num_warps": 8, "programs": 136}
WIDEST = 128  # dimensions of a head, beyond which it is wide
STAGES = 3  # steps on their way, where a program of a group takes several
SHARED = 96 << 10  # bytes of them, of a program


@triton.jit
def _tile(ptr, rows, mask, D: tl.constexpr, D_PAD: tl.constexpr):
    """Some rows of a [rows, D] matrix."""
    columns = tl.arange(0, D_PAD)
    at = rows[:, None] * D + columns[None, :]
    return tl.load(ptr + at, mask[:, None] & (columns < D)[None, :], 0.0)


@triton.jit
def _turning(cos_ptr, sin_ptr, partner_ptr, position, D: tl.constexpr, D_PAD: tl.constexpr):
    """What rotates states [D] to a position: see `rope.RopeTable`."""
    d = tl.arange(0, D_PAD)
    cos, sin, partner = 1.0, 0.0, d
    if cos_ptr is not None:
        cos = tl.load(cos_ptr + position * D + d, d < D, other=0.0)
        sin = tl.load(sin_ptr + position * D + d, d < D, other=0.0)
        partner = tl.load(partner_ptr + d, d < D, other=0)
        cos, sin, partner = cos[None, :], sin[None, :], partner
    return cos, sin, partner


@triton.jit
def _heads(
    ptr, stride, gain_ptr, eps, offset, turning, turns: tl.constexpr,
    N: tl.constexpr, N_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """[N, D] states of some heads, normed where there is a gain, and rotated."""
    cos, sin, partner = turning
    h, d = tl.arange(0, N_PAD)[:, None], tl.arange(0, D_PAD)
    mask = (h < N) & (d < D)[None, :]
    x = tl.load(ptr + h * stride + d[None, :], mask, other=0.0).to(tl.float32)
    scale = tl.full([N_PAD, 1], 1.0, tl.float32)
    if gain_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x *= scale * (tl.load(gain_ptr + d, d < D, other=0.0).to(tl.float32) + offset)[None, :]
    if turns:
        other = tl.load(ptr + h * stride + partner[None, :], mask, other=0.0).to(tl.float32)
        if gain_ptr is not None:
            gain = tl.load(gain_ptr + partner, d < D, other=0.0).to(tl.float32) + offset
            other *= scale * gain[None, :]
        x = x * cos + other * sin
    return x


@triton.jit
def _cap(scores, softcap):
    """Scores in powers of two, capped."""
    if softcap is not None:
        scores = (2 * tl.sigmoid(2 * scores / softcap) - 1) * softcap
    return scores * 1.4426950408889634


@triton.jit
def _scores(q, keys, MATRIX: tl.constexpr):
    """[G, keys] from q [G, D] and keys [keys, D]."""
    if MATRIX:
        scores = tl.dot(q.to(keys.dtype), tl.trans(keys), input_precision="ieee")
    else:
        scores = tl.sum(keys.to(tl.float32) * q, 1)[None, :]
    return scores


@triton.jit
def _mixed(weights, values, MATRIX: tl.constexpr):
    """[G, D] from weights [G, keys] and values [keys, D]."""
    if MATRIX:
        mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    else:
        mixed = tl.sum(tl.trans(weights) * values.to(tl.float32), 0)[None, :]
    return mixed


@triton.jit
def _take(
    q, keys, values, slots, end, first, size, top, mass, mixed, scaling, softcap,
    SLOTS: tl.constexpr, SINKS: tl.constexpr, WINDOW: tl.constexpr, MATRIX: tl.constexpr,
):  # fmt: skip
    """The running softmax after some slots more: their highest score, mass and mixed values."""
    place = slots - first
    place = SINKS + tl.where(place < 0, place + (SLOTS - SINKS), place)
    place = tl.where(slots < SINKS, slots, place)
    seen = (place < size - 1) & (slots < end)  # all but the new token, which is not there yet
    if WINDOW > 0:
        seen = seen & (place >= size - WINDOW)
    scores = _cap(_scores(q, keys, MATRIX) * scaling, softcap)
    scores = tl.where(seen[None, :], scores, -float("inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    keep, weights = tl.exp2(top - higher), tl.exp2(scores - higher[:, None])
    mass = mass * keep + tl.sum(weights, 1)
    mixed = mixed * keep[:, None] + _mixed(weights, values, MATRIX)
    return higher, mass, mixed


@triton.jit
def _attend(
    q_ptr, new_k_ptr, new_v_ptr, k_ptr, v_ptr, step_ptr, cos_ptr, sin_ptr, partner_ptr,
    q_gain_ptr, k_gain_ptr, eps, offset, learned_ptr, part_ptr, sum_ptr, count_ptr, out_ptr,
    q_batch, q_head, k_batch, k_head, v_batch, v_head, step_batch, scaling, softcap,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr, SLOTS: tl.constexpr,
    SINKS: tl.constexpr, WINDOW: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    D_PAD: tl.constexpr, DV_PAD: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
    MOST: tl.constexpr, TOGETHER: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    MATRIX: tl.constexpr = GROUPS_PAD >= 16
    LOOP: tl.constexpr = KEYS > BLOCK or SINKS > BLOCK
    part, pair = tl.program_id(0), tl.program_id(1)
    batch, kv_head = pair // KV_HEADS, pair % KV_HEADS
    k_ptr += pair.to(tl.int64) * SLOTS * D
    v_ptr += pair.to(tl.int64) * SLOTS * DV
    g, d, dv = tl.arange(0, GROUPS_PAD), tl.arange(0, D_PAD), tl.arange(0, DV_PAD)
    is_sinks = part == 0
    begin = tl.where(is_sinks, 0, SINKS + (part - 1) * KEYS)
    end = tl.where(is_sinks, SINKS, tl.minimum(begin + KEYS, SLOTS))

    # All that was there before the kernel in front is asked for before that kernel has ended. A
    # slot is read whether or not it is still seen, so that no read waits for the step's numbers.
    slots = begin + tl.arange(0, BLOCK)
    if STAGES == 0:
        keys = _tile(k_ptr, slots, slots < end, D, D_PAD)
        values = _tile(v_ptr, slots, slots < end, DV, DV_PAD)
    step_ptr += batch * step_batch
    position, new_slot = tl.load(step_ptr), tl.load(step_ptr + 1)
    first, size = tl.load(step_ptr + 2).to(tl.int32), tl.load(step_ptr + 3).to(tl.int32)
    q_position = tl.where(is_sinks, (size - 1).to(tl.int64), position)
    turning = _turning(cos_ptr, sin_ptr, partner_ptr, q_position, D, D_PAD)
    wait(PDL)

    turns: tl.constexpr = cos_ptr is not None
    q = _heads(
        q_ptr + batch * q_batch + kv_head * GROUPS * q_head, q_head, q_gain_ptr, eps, offset,
        turning, turns, GROUPS, GROUPS_PAD, D, D_PAD,
    )  # fmt: skip
    new_k_ptr += batch * k_batch + kv_head * k_head
    new_k = _heads(new_k_ptr, 0, k_gain_ptr, eps, offset, turning, turns, 1, 1, D, D_PAD)
    new_k = new_k.to(k_ptr.dtype.element_ty)
    new_v = tl.load(new_v_ptr + batch * v_batch + kv_head * v_head + dv, dv < DV, other=0.0)
    top = tl.full([GROUPS_PAD], -1e30, tl.float32)
    mass = tl.zeros([GROUPS_PAD], tl.float32)
    mixed = tl.zeros([GROUPS_PAD, DV_PAD], tl.float32)
    if STAGES > 0:  # several steps are on their way, in shared memory
        for start in tl.range(begin, end, BLOCK, num_stages=STAGES):
            slots = start + tl.arange(0, BLOCK)
            keys = _tile(k_ptr, slots, slots < end, D, D_PAD)
            values = _tile(v_ptr, slots, slots < end, DV, DV_PAD)
            top, mass, mixed = _take(
                q, keys, values, slots, end, first, size, top, mass, mixed, scaling, softcap,
                SLOTS, SINKS, WINDOW, MATRIX,
            )  # fmt: skip
    else:
        for start in tl.range(begin, end, BLOCK):
            slots = start + tl.arange(0, BLOCK)
            if LOOP:
                ahead = slots + BLOCK
                next_keys = _tile(k_ptr, ahead, ahead < end, D, D_PAD)
                next_values = _tile(v_ptr, ahead, ahead < end, DV, DV_PAD)
            top, mass, mixed = _take(
                q, keys, values, slots, end, first, size, top, mass, mixed, scaling, softcap,
                SLOTS, SINKS, WINDOW, MATRIX,
            )  # fmt: skip
            if LOOP:
                keys, values = next_keys, next_values

    if part == PARTS - 1:  # and the new token
        tl.store(k_ptr + new_slot * D + d[None, :], new_k, (d < D)[None, :])
        tl.store(v_ptr + new_slot * DV + dv, new_v, dv < DV)
        new_score = _cap(tl.sum(new_k.to(tl.float32) * q, 1) * scaling, softcap)
        higher = tl.maximum(top, new_score)
        keep, weight = tl.exp2(top - higher), tl.exp2(new_score - higher)
        mass = mass * keep + weight
        mixed = mixed * keep[:, None] + weight[:, None] * new_v.to(tl.float32)[None, :]
        top = higher
        if learned_ptr is not None:
            learned = tl.load(learned_ptr + kv_head * GROUPS + g, g < GROUPS, other=-1e30)
            learned = learned.to(tl.float32) * 1.4426950408889634
            higher = tl.maximum(top, learned)
            keep = tl.exp2(top - higher)
            mass = mass * keep + tl.exp2(learned - higher)
            mixed *= keep[:, None]
            top = higher
    at = (pair * PARTS + part) * GROUPS + g
    tl.store(part_ptr + at[:, None] * DV_PAD + dv[None, :], mixed, (g < GROUPS)[:, None])
    tl.store(sum_ptr + 2 * at, top, g < GROUPS)
    tl.store(sum_ptr + 2 * at + 1, mass, g < GROUPS)

    tl.debug_barrier()  # all of the program's results are written before it is counted
    if tl.atomic_add(count_ptr + pair, 1) == PARTS - 1:
        tl.store(count_ptr + pair, 0)
        i = tl.arange(0, MOST)[:, None]
        for head in tl.static_range(0, GROUPS, TOGETHER):
            heads = head + tl.arange(0, TOGETHER)
            known = heads < GROUPS
            both = (i < PARTS) & known[None, :]
            some_at = (pair * PARTS + i) * GROUPS + heads[None, :]
            parts_at = part_ptr + some_at[:, :, None] * DV_PAD + dv[None, None, :]
            parts = tl.load(parts_at, both[:, :, None], other=0.0, cache_modifier=".cg")
            tops = tl.load(sum_ptr + 2 * some_at, both, other=-1e30, cache_modifier=".cg")
            masses = tl.load(sum_ptr + 2 * some_at + 1, both, other=0.0, cache_modifier=".cg")
            highest = tl.max(tops, 0)
            if MOST < PARTS:
                one_at = (pair * PARTS + MOST) * GROUPS + heads
                one = tl.load(
                    part_ptr + one_at[:, None] * DV_PAD + dv[None, :], known[:, None], other=0.0,
                    cache_modifier=".cg",
                )  # fmt: skip
                one_top = tl.load(sum_ptr + 2 * one_at, known, other=-1e30, cache_modifier=".cg")
                one_mass = tl.load(sum_ptr + 2 * one_at + 1, known, other=0.0, cache_modifier=".cg")
                highest = tl.maximum(highest, one_top)
            shares = tl.exp2(tops - highest[None, :])
            total, whole = tl.sum(shares[:, :, None] * parts, 0), tl.sum(shares * masses, 0)
            if MOST < PARTS:
                share = tl.exp2(one_top - highest)
                total += share[:, None] * one
                whole += share * one_mass
            out_at = out_ptr + (pair * GROUPS + heads)[:, None] * DV + dv[None, :]
            out_mask = known[:, None] & (dv < DV)[None, :]
            tl.store(out_at, (total / whole[:, None]).to(out_ptr.dtype.element_ty), out_mask)


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
    scores: Scores,
    **tuned: Any,
) -> Tensor:
    """`attention.attend` on a GPU."""
    batch, n_heads = query.shape[:2]
    n_kv_heads, n_slots, width = keys.shape[1:]
    value_width = values.shape[-1]
    groups = n_heads // n_kv_heads
    run, pairs = n_slots - n_sink, batch * n_kv_heads
    best = SINGLE if groups == 1 else GROUPED if width <= WIDEST else WIDE
    tuned = {**best, **launch(query), **tuned}
    most = triton.cdiv(run, tuned["BLOCK"])
    splits = max(1, min(round(tuned.pop("programs") / pairs), most))
    keys_each = triton.cdiv(triton.cdiv(run, splits), tuned["BLOCK"]) * tuned["BLOCK"]
    parts = triton.cdiv(run, keys_each) + 1
    padded = triton.next_power_of_2(value_width)
    results, sums, counts = _scratch_for(query.device, pairs, parts * groups, padded)
    if groups == 1 or max(keys_each, n_sink) <= tuned["BLOCK"]:
        tuned["STAGES"] = 0
    else:
        one = tuned["BLOCK"] * (triton.next_power_of_2(width) + padded) * keys.itemsize
        tuned.setdefault("STAGES", max(1, min(STAGES, SHARED // one)))
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = query.new_empty(batch, 1, n_heads, value_width)
    _attend[(parts, pairs)](
        query, key, value, keys, values, step, *(turn or (None, None, None)),
        *(scores.head_norms or (None, None, 0.0, 0.0)), scores.learned_sinks,
        results, sums, counts, out,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        step.stride(0) if step.dim() > 1 else 0, scores.scaling, scores.softcap or None,
        n_kv_heads, groups, 1 if groups == 1 else max(16, triton.next_power_of_2(groups)), n_slots,
        n_sink, scores.sliding_window, width, value_width, max(16, triton.next_power_of_2(width)),
        max(16, padded), keys_each, parts,
        # Of 33 parts, 32 are added up together and one alone: 64 take twice the registers.
        triton.next_power_of_2(parts - 1),
        min(4, triton.next_power_of_2(groups)), **tuned,
    )  # fmt: skip
    return out
