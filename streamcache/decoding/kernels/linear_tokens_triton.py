"""The Triton kernels of `linear` for 2 to 64 tokens: rows of weights times all tokens at once.

The matrix units multiply a tile of rows by the tokens, so weights are still read once. Where the
rows make too few tiles to keep the memory busy, their columns are split among programs, and the one
that is last to finish a tile adds up the others.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamcache.decoding.kernels.epilogue_triton import activate, plus, scaled
from streamcache.decoding.kernels.launch import launch, wait

# Rows and columns of a tile, warps, tiles on their way, and how many programs fill an H200: for
# layers side by side, of up to 16 tokens and of more; for the two of a gate; and for sums.
GROUPED = {"ROWS": 32, "BLOCK": 128, "num_warps": 4, "STAGES": 5, "programs": 264}
GROUPED_MORE = {"ROWS": 32, "BLOCK": 128, "num_warps": 2, "STAGES": 4, "programs": 528}
GATED = {"ROWS": 64, "BLOCK": 128, "num_warps": 4, "STAGES": 3, "programs": 264}
SUMMED = {"ROWS": 64, "BLOCK": 128, "num_warps": 4, "STAGES": 4, "programs": 264}
SHORTEST = 512  # columns a program


@triton.jit
def _share(K: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """The columns of this program: begin, end."""
    each: tl.constexpr = ((K + SPLIT - 1) // SPLIT + BLOCK - 1) // BLOCK * BLOCK
    begin = tl.program_id(1) * each
    return begin, tl.minimum(begin + each, K)


@triton.jit
def _product(
    acc, x_ptr, w_ptr, rows, N, K: tl.constexpr, M: tl.constexpr,
    M_PAD: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """[rows, tokens]: the accumulator plus rows of weights times the tokens."""
    begin, end = _share(K, SPLIT, BLOCK)
    m = tl.arange(0, M_PAD)
    row_at = w_ptr + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * K
    for column in tl.range(begin, end, BLOCK, num_stages=STAGES):
        columns = column + tl.arange(0, BLOCK)
        if K % (SPLIT * BLOCK) == 0:
            w = tl.load(row_at + columns[None, :])
            x = tl.load(x_ptr + m[:, None] * K + columns[None, :], (m < M)[:, None], other=0)
        else:
            inside = (columns < end)[None, :]
            w = tl.load(row_at + columns[None, :], inside, other=0.0)
            x_at = x_ptr + m[:, None] * K + columns[None, :]
            x = tl.load(x_at, (m < M)[:, None] & inside, other=0.0)
        acc = tl.dot(w.to(x.dtype), tl.trans(x), acc)
    return acc


@triton.jit
def _leave(acc, part_ptr, rows, N: tl.constexpr, M_PAD: tl.constexpr):
    """This program's results, for the one that is last."""
    at = rows[:, None] * M_PAD + tl.arange(0, M_PAD)[None, :]
    tl.store(part_ptr + tl.program_id(1) * (N * M_PAD) + at, acc, (rows < N)[:, None])


@triton.jit
def _is_last(count_ptr, SPLIT: tl.constexpr):
    """Whether all other programs of a tile have left their results."""
    tl.debug_barrier()  # all of the program's results are written before it is counted
    last = tl.atomic_add(count_ptr, 1) == SPLIT - 1
    if last:
        tl.store(count_ptr, 0)
    return last


@triton.jit
def _collected(part_ptr, rows, N: tl.constexpr, M_PAD: tl.constexpr, SPLIT: tl.constexpr):
    """The sum of what the programs of a tile have left."""
    at = part_ptr + rows[:, None] * M_PAD + tl.arange(0, M_PAD)[None, :]
    total = tl.load(at, (rows < N)[:, None], other=0.0, cache_modifier=".cg")
    for i in tl.static_range(1, SPLIT):
        part_at = at + i * (N * M_PAD)
        total += tl.load(part_at, (rows < N)[:, None], other=0.0, cache_modifier=".cg")
    return total


@triton.jit
def _store(out_ptr, y, rows, N: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr):
    m = tl.arange(0, M_PAD)[None, :]
    at = out_ptr + m * N + rows[:, None]
    tl.store(at, y.to(out_ptr.dtype.element_ty), (rows < N)[:, None] & (m < M))


@triton.jit
def _finish(
    acc, s, b, o, rows, N: tl.constexpr, ACTIVATION: tl.constexpr, M: tl.constexpr,
    M_PAD: tl.constexpr,
):  # fmt: skip
    y = plus(scaled(acc, s, rows[:, None], N), b, rows[:, None], N)
    _store(o, activate(y, ACTIVATION), rows, N, M, M_PAD)


@triton.jit
def _grouped(
    x0, w0, s0, b0, o0, x1, w1, s1, b1, o1, x2, w2, s2, b2, o2, part, count,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    A0: tl.constexpr, A1: tl.constexpr, A2: tl.constexpr,
    M: tl.constexpr, M_PAD: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    T0: tl.constexpr = (N0 + ROWS - 1) // ROWS
    T1: tl.constexpr = (N1 + ROWS - 1) // ROWS
    T2: tl.constexpr = (N2 + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    # One loop for all layers: a loop for each would need shared memory for each.
    x, w, first, n = x0, w0, 0, N0
    if N1 > 0:  # noqa: SIM102 (known to the compiler, unlike what follows)
        if tile >= T0:
            x, w, first, n = x1, w1, T0, N1
    if N2 > 0:  # noqa: SIM102
        if tile >= T0 + T1:
            x, w, first, n = x2, w2, T0 + T1, N2
    rows = (tile - first) * ROWS + tl.arange(0, ROWS)
    wait(PDL)
    acc = tl.zeros([ROWS, M_PAD], tl.float32)
    acc = _product(acc, x, w, rows, n, K, M, M_PAD, SPLIT, BLOCK, STAGES)
    last = True
    if SPLIT > 1:
        places = tile * ROWS + tl.arange(0, ROWS)
        ALL: tl.constexpr = (T0 + T1 + T2) * ROWS
        _leave(acc, part, places, ALL, M_PAD)
        last = _is_last(count + tile, SPLIT)
        if last:
            acc = _collected(part, places, ALL, M_PAD, SPLIT)
    if last:
        if tile < T0:
            _finish(acc, s0, b0, o0, rows, N0, A0, M, M_PAD)
        elif tile < T0 + T1:
            if N1 > 0:
                _finish(acc, s1, b1, o1, rows, N1, A1, M, M_PAD)
        else:
            if N2 > 0:
                _finish(acc, s2, b2, o2, rows, N2, A2, M, M_PAD)


_scratch: dict[tuple[torch.device, int, int], tuple[Tensor, Tensor]] = {}


def _scratch_for(device: torch.device, tiles: int, n_results: int) -> tuple[Tensor, Tensor]:
    """Room for the programs' results and the counters, which every launch leaves at zero.

    Launches of one shape share it: they may not run at the same time.
    """
    key = (device, tiles, n_results)
    if key not in _scratch:
        counts = torch.zeros(tiles, dtype=torch.int32, device=device)
        _scratch[key] = torch.empty(n_results, device=device), counts
    return _scratch[key]


def _arranged(
    like: Tensor, rows: Sequence[int], width: int, tuned: dict[str, Any]
) -> tuple[tuple[int, int], tuple[Tensor, Tensor], dict[str, Any]]:
    """The grid, the scratch and the options of a launch: `rows` by layer, of `width` columns."""
    tuned = {**launch(like), **tuned}
    programs = tuned.pop("programs")
    tiles = sum(-(-n // tuned["ROWS"]) for n in rows)
    tokens = like.numel() // like.shape[-1]
    split = 1
    while tiles * split * 2 <= programs and width >= 2 * split * SHORTEST:
        split *= 2
    split = tuned.pop("SPLIT", split)
    padded = max(16, triton.next_power_of_2(tokens))
    n_results = split * padded * tiles * tuned["ROWS"] if split > 1 else 1
    scratch = _scratch_for(like.device, tiles, n_results)
    return (tiles, split), scratch, {"M": tokens, "M_PAD": padded, "SPLIT": split, **tuned}


def grouped_linear(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    **tuned: Any,
) -> list[Tensor]:
    """`linear.grouped_linear` for some tokens, after the norms; of at most three layers."""
    x, absent = xs[0], 3 - len(xs)
    outs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    rows = [weight.shape[0] for weight in weights]
    best = GROUPED if x.numel() <= 16 * x.shape[-1] else GROUPED_MORE
    grid, scratch, options = _arranged(x, rows, x.shape[-1], {**best, **tuned})
    layers = list(zip(xs, weights, scales, biases, outs)) + [(None,) * 5] * absent
    _grouped[grid](
        *(part for layer in layers for part in layer), *scratch,
        *rows, *(0,) * absent, x.shape[-1], *activations, *("",) * absent, **options,
    )  # fmt: skip
    return outs


@triton.jit
def _gated(
    x, w0, s0, b0, w1, s1, b1, out, part, count,
    N: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    M: tl.constexpr, M_PAD: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wait(PDL)
    begin, end = _share(K, SPLIT, BLOCK)
    m = tl.arange(0, M_PAD)
    row_at = tl.minimum(rows, N - 1).to(tl.int64)[:, None] * K
    gate, up = tl.zeros([ROWS, M_PAD], tl.float32), tl.zeros([ROWS, M_PAD], tl.float32)
    for column in tl.range(begin, end, BLOCK, num_stages=STAGES):
        columns = column + tl.arange(0, BLOCK)
        if K % (SPLIT * BLOCK) == 0:
            w = tl.load(w0 + row_at + columns[None, :])
            v = tl.load(w1 + row_at + columns[None, :])
            y = tl.load(x + m[:, None] * K + columns[None, :], (m < M)[:, None], other=0)
        else:
            inside = (columns < end)[None, :]
            w = tl.load(w0 + row_at + columns[None, :], inside, other=0.0)
            v = tl.load(w1 + row_at + columns[None, :], inside, other=0.0)
            y_at = x + m[:, None] * K + columns[None, :]
            y = tl.load(y_at, (m < M)[:, None] & inside, other=0.0)
        gate = tl.dot(w.to(y.dtype), tl.trans(y), gate)
        up = tl.dot(v.to(y.dtype), tl.trans(y), up)
    last = True
    if SPLIT > 1:
        up_part = part + SPLIT * M_PAD * N
        _leave(gate, part, rows, N, M_PAD)
        _leave(up, up_part, rows, N, M_PAD)
        last = _is_last(count + tl.program_id(0), SPLIT)
        if last:
            gate = _collected(part, rows, N, M_PAD, SPLIT)
            up = _collected(up_part, rows, N, M_PAD, SPLIT)
    if last:
        gate = plus(scaled(gate, s0, rows[:, None], N), b0, rows[:, None], N)
        up = plus(scaled(up, s1, rows[:, None], N), b1, rows[:, None], N)
        _store(out, activate(gate, ACTIVATION) * up, rows, N, M, M_PAD)


def gated_linear(
    x: Tensor,
    halves: Sequence[tuple[Tensor | None, ...]],
    activation: str,
    **tuned: Any,
) -> Tensor:
    """`linear.gated_linear` for some tokens, after the norm: (weight, scale, bias) of each half."""
    weight = halves[0][0]
    assert weight is not None
    n_rows, width = weight.shape
    (tiles, split), scratch, options = _arranged(x, [n_rows, n_rows], width, {**GATED, **tuned})
    out = x.new_empty(*x.shape[:-1], n_rows)
    _gated[(tiles // 2, split)](
        x, *halves[0], *halves[1], out, *scratch,
        n_rows, width, activation, **options,
    )  # fmt: skip
    return out


@triton.jit
def _add(
    acc, y, x, w, s, rows, N: tl.constexpr, K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A layer's product added to the accumulator; or, where it has a scale, to the sum so far."""
    if K > 0:
        if s is None:
            acc = _product(acc, x, w, rows, N, K, M, M_PAD, SPLIT, BLOCK, STAGES)
        else:
            own = tl.zeros([ROWS, M_PAD], tl.float32)
            own = _product(own, x, w, rows, N, K, M, M_PAD, SPLIT, BLOCK, STAGES)
            y += scaled(own, s, rows[:, None], N)
    return acc, y


@triton.jit
def _summed(
    x0, w0, s0, b0, x1, w1, s1, b1, x2, w2, s2, b2, residual, out, part, count,
    N: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    M: tl.constexpr, M_PAD: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    wait(PDL)
    acc, y = tl.zeros([ROWS, M_PAD], tl.float32), tl.zeros([ROWS, M_PAD], tl.float32)
    acc, y = _add(acc, y, x0, w0, s0, rows, N, K0, M, M_PAD, SPLIT, ROWS, BLOCK, STAGES)
    acc, y = _add(acc, y, x1, w1, s1, rows, N, K1, M, M_PAD, SPLIT, ROWS, BLOCK, STAGES)
    acc, y = _add(acc, y, x2, w2, s2, rows, N, K2, M, M_PAD, SPLIT, ROWS, BLOCK, STAGES)
    y += acc
    last = True
    if SPLIT > 1:
        _leave(y, part, rows, N, M_PAD)
        last = _is_last(count + tl.program_id(0), SPLIT)
        if last:
            y = _collected(part, rows, N, M_PAD, SPLIT)
    if last:
        at_rows = rows[:, None]
        y = plus(plus(plus(y, b0, at_rows, N), b1, at_rows, N), b2, at_rows, N)
        if residual is not None:
            m = tl.arange(0, M_PAD)[None, :]
            mask = (at_rows < N) & (m < M)
            y += tl.load(residual + m * N + at_rows, mask, other=0.0).to(tl.float32)
        _store(out, y, rows, N, M, M_PAD)


def summed_linear(
    layers: Sequence[tuple[Any, ...]],
    residual: Tensor | None,
    **tuned: Any,
) -> Tensor:
    """`linear.summed_linear` for some tokens: (x, weight, scale, bias) of at most three layers."""
    x, weight = layers[0][:2]
    n_rows, absent = weight.shape[0], 3 - len(layers)
    widths = [layer[0].shape[-1] for layer in layers]
    grid, scratch, options = _arranged(x, [n_rows], min(widths), {**SUMMED, **tuned})
    out = x.new_empty(*x.shape[:-1], n_rows)
    filled = [*layers, *[(None,) * 4] * absent]
    _summed[grid](
        *(part for layer in filled for part in layer), residual, out, *scratch,
        n_rows, *widths, *(0,) * absent, **options,
    )  # fmt: skip
    return out
