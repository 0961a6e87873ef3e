"""`retained_attention` as Triton kernels, which rotate the states as they read them."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor

from streamcache.caches.attention_override import Scores
from streamcache.caches.retained_attention import States
from streamcache.caches.rope import RopeTable


@triton.jit
def _rotated(ptr, rows, row_stride, cos_ptr, sin_ptr, partner_ptr, mask, d, D: tl.constexpr):
    """States [rows, D], rotated by the angles [rows, D] of their tokens."""
    dims = mask[:, None] & (d < D)[None, :]
    x = tl.load(ptr + rows[:, None] * row_stride + d[None, :], mask=dims, other=0.0)
    if cos_ptr is not None:
        partner = tl.load(partner_ptr + d, mask=d < D, other=0)
        y = tl.load(ptr + rows[:, None] * row_stride + partner[None, :], mask=dims, other=0.0)
        at = rows[:, None] * D + d[None, :]
        cos = tl.load(cos_ptr + at, mask=dims, other=0.0)
        sin = tl.load(sin_ptr + at, mask=dims, other=0.0)
        x = (x.to(tl.float32) * cos + y.to(tl.float32) * sin).to(x.dtype)
    return x


@triton.jit(do_not_specialize=["n_tokens", "offset"])
def _append_kernel(
    key_ptr, value_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, partner_ptr,
    n_tokens, offset, n_heads,
    key_batch, key_head, key_row, value_batch, value_head, value_row,
    keys_head, values_head,
    D: tl.constexpr, D_PAD: tl.constexpr, DV: tl.constexpr, DV_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write a block's keys, rotated, and values behind the run of a head."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    which = tl.program_id(1)
    batch, head = which // n_heads, which % n_heads
    mask = rows < n_tokens
    d, dv = tl.arange(0, D_PAD), tl.arange(0, DV_PAD)
    key = _rotated(
        key_ptr + batch * key_batch + head * key_head, rows, key_row,
        cos_ptr, sin_ptr, partner_ptr, mask, d, D,
    )  # fmt: skip
    to = keys_ptr + which.to(tl.int64) * keys_head + (offset + rows)[:, None] * D + d[None, :]
    tl.store(to, key, mask=mask[:, None] & (d < D)[None, :])
    dims = mask[:, None] & (dv < DV)[None, :]
    source = value_ptr + batch * value_batch + head * value_head
    value = tl.load(source + rows[:, None] * value_row + dv[None, :], mask=dims, other=0.0)
    to = values_ptr + which.to(tl.int64) * values_head + (offset + rows)[:, None] * DV + dv[None, :]
    tl.store(to, value, mask=dims)


@triton.jit
def _softmax_step(scores, values, best, total, out):
    """Take further scores [M, N], in base 2, and values [N, DV] into a running softmax."""
    new = tl.maximum(best, tl.max(scores, 1))
    shift = tl.exp2(best - new)
    weights = tl.exp2(scores - new[:, None])
    total = total * shift + tl.sum(weights, 1)
    out = out * shift[:, None]
    out = tl.dot(weights.to(values.dtype), values, out, input_precision="ieee")
    return new, total, out


@triton.jit
def _scores_of(query, keys, scaling, softcap):
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scaling
    if softcap > 0:
        tanh = 2 * tl.sigmoid(2 * scores / softcap) - 1
        scores = softcap * tanh
    return scores * 1.4426950408889634


@triton.jit(do_not_specialize=["n_tokens", "offset", "n_sink", "scaling", "softcap"])
def _attend_kernel(
    query_ptr, keys_ptr, values_ptr, sink_keys_ptr, sink_values_ptr, learned_ptr, out_ptr,
    cos_ptr, sin_ptr, cache_cos_ptr, cache_sin_ptr, partner_ptr,
    oldest_ptr, first_sink_ptr,
    n_tokens, offset, n_sink, n_heads, groups, scaling, softcap,
    query_batch, query_head, query_row, keys_head, values_head, sink_keys_head, sink_values_head,
    D: tl.constexpr, D_PAD: tl.constexpr, DV: tl.constexpr, DV_PAD: tl.constexpr,
    S_PAD: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """M queries of a head over the run, from the oldest key that each sees, and over the sinks."""
    first = tl.program_id(0) * M
    which = tl.program_id(1)
    batch, head = which // n_heads, which % n_heads
    kv = (batch * (n_heads // groups) + head // groups).to(tl.int64)
    rows = first + tl.arange(0, M)
    mask = rows < n_tokens
    d, dv = tl.arange(0, D_PAD), tl.arange(0, DV_PAD)
    at = query_ptr + batch.to(tl.int64) * query_batch + head * query_head
    query = _rotated(at, rows, query_row, cos_ptr, sin_ptr, partner_ptr, mask, d, D)
    oldest = tl.load(oldest_ptr + rows, mask=mask, other=2147483647)
    own = offset + rows  # the place of a query's own key in the run

    best = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    if learned_ptr is not None:
        best = tl.zeros([M], tl.float32) + tl.load(learned_ptr + head).to(tl.float32)
        best *= 1.4426950408889634
        total += 1.0
    out = tl.zeros([M, DV_PAD], tl.float32)

    if S_PAD > 0:
        j = tl.arange(0, S_PAD)
        to_sinks = _rotated(
            at, rows, query_row, cache_cos_ptr, cache_sin_ptr, partner_ptr, mask, d, D
        )
        held = (j < n_sink)[:, None]
        sink_keys = tl.load(
            sink_keys_ptr + kv * sink_keys_head + j[:, None] * D + d[None, :],
            mask=held & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        sink_values = tl.load(
            sink_values_ptr + kv * sink_values_head + j[:, None] * DV + dv[None, :],
            mask=held & (dv < DV)[None, :], other=0.0,
        )  # fmt: skip
        first_sink = tl.load(first_sink_ptr + rows, mask=mask, other=2147483647)
        sink_scores = _scores_of(to_sinks, sink_keys, scaling, softcap)
        sees = (j[None, :] >= first_sink[:, None]) & (j < n_sink)[None, :]
        sink_scores = tl.where(sees, sink_scores, -float("inf"))
        best, total, out = _softmax_step(sink_scores, sink_values, best, total, out)

    last = tl.minimum(first + M, n_tokens) - 1
    begin = tl.min(oldest, 0) // N * N
    inside = (tl.load(oldest_ptr + last) + N - 1) // N * N  # from here on all rows see each key
    outside = (offset + first + 1) // N * N  # and up to here
    end = offset + last + 1
    inside = tl.minimum(inside, end)
    outside = tl.maximum(outside, inside)
    for part in tl.static_range(3):
        if part == 0:
            low, high = begin, inside
        elif part == 1:
            low, high = inside, outside
        else:
            low, high = outside, end
        for start in tl.range(low, high, N):
            n = start + tl.arange(0, N)
            there = (n < end)[:, None]
            keys = tl.load(
                keys_ptr + kv * keys_head + n[:, None] * D + d[None, :],
                mask=there & (d < D)[None, :], other=0.0,
            )  # fmt: skip
            values = tl.load(
                values_ptr + kv * values_head + n[:, None] * DV + dv[None, :],
                mask=there & (dv < DV)[None, :], other=0.0,
            )  # fmt: skip
            scores = _scores_of(query, keys, scaling, softcap)
            if part != 1:
                seen = (n[None, :] >= oldest[:, None]) & (n[None, :] <= own[:, None])
                scores = tl.where(seen, scores, -float("inf"))
            best, total, out = _softmax_step(scores, values, best, total, out)

    out = out / total[:, None]
    to = out_ptr + ((batch * n_tokens + rows).to(tl.int64) * n_heads + head)[:, None] * DV
    tl.store(to + dv[None, :], out.to(out_ptr.dtype.element_ty), mask=mask[:, None] & (dv < DV))


def append(
    key: Tensor, value: Tensor, keys: Tensor, values: Tensor, offset: int, table: RopeTable | None
) -> None:
    """Write states [B, Hkv, n, D] to a run [B, Hkv, m, D] from `offset` on, keys rotated.

    Args:
        table: of the n tokens, or None for keys that do not rotate.
    """
    batch, n_heads, n_tokens, width = key.shape
    rows = 32
    _append_kernel[triton.cdiv(n_tokens, rows), batch * n_heads](
        key, value, keys, values, *(table or (None, None, None)), n_tokens, offset, n_heads,
        *key.stride()[:3], *value.stride()[:3], keys.stride(1), values.stride(1),
        width, triton.next_power_of_2(width),
        value.shape[-1], triton.next_power_of_2(value.shape[-1]), rows,
    )  # fmt: skip


def attend(
    query: Tensor,
    run: States,
    sinks: States,
    oldest: Tensor,
    first_sink: Tensor,
    tables: tuple[RopeTable | None, RopeTable | None],
    scores: Scores,
) -> Tensor:
    """As `retained_attention`, of queries [B, H, n, D] that are not rotated.

    Args:
        run: contiguous [B, Hkv, m, D]; the last n are of the queries' own tokens.
        sinks: contiguous [B, Hkv, S, D], or of fewer tokens if nothing was evicted.
        oldest, first_sink: int32 [n], the first key of the run and the first sink of each query.
        tables: that rotate the queries to meet the run, and the sinks.

    Returns:
        [B, n, H, Dv].
    """
    if query.stride(-1) != 1:
        query = query.contiguous()
    batch, n_heads, n_tokens, width = query.shape
    n_kv_heads, n_keys = run.keys.shape[1:3]
    out = query.new_empty(batch, n_tokens, n_heads, run.values.shape[-1])
    here, in_cache = (table or (None, None, None) for table in tables)
    n_sink = sinks.keys.shape[2]
    padded = triton.next_power_of_2(width)
    narrow = padded <= 128
    m, n, warps = (128, 64, 8) if narrow else (64, 64, 4)
    _attend_kernel[triton.cdiv(n_tokens, m), batch * n_heads](
        query, *run, *sinks, scores.learned_sinks, out,
        here[0], here[1], in_cache[0], in_cache[1], here[2], oldest, first_sink,
        n_tokens, n_keys - n_tokens, n_sink, n_heads, n_heads // n_kv_heads,
        scores.scaling, scores.softcap,
        *query.stride()[:3], run.keys.stride(1), run.values.stride(1),
        sinks.keys.stride(1), sinks.values.stride(1),
        width, padded, run.values.shape[-1], triton.next_power_of_2(run.values.shape[-1]),
        max(16, triton.next_power_of_2(n_sink)) if n_sink else 0, m, n,
        num_warps=warps, num_stages=3 if narrow else 2,
    )  # fmt: skip
    return out
