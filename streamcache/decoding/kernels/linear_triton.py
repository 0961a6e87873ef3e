"""The Triton kernels of `linear` for one token: a program computes a few outputs, from whole rows.

A product with one vector is a stream of weights. What counts is that enough of it is under way at
any time, so a program asks for its first weights before it waits for the kernel in front of it
(see `launch`).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from streamcache.decoding.kernels import linear_tokens_triton
from streamcache.decoding.kernels.epilogue_triton import activate, plus, scaled
from streamcache.decoding.kernels.launch import launch, wait
from streamcache.decoding.kernels.norm_triton import norms

# Rows a program, columns a step and warps, as measured on an H200 in chains of whole layers. A loop
# over columns is unrolled, so long rows take long steps.
GROUPED = {  # by the columns up to which it is best
    2816: {"ROWS": 4, "BLOCK": 512, "num_warps": 1},
    3584: {"ROWS": 2, "BLOCK": 1024, "num_warps": 1},
    4096: {"ROWS": 4, "BLOCK": 512, "num_warps": 1},
}
GATED = {
    2048: {"ROWS": 2, "BLOCK": 256, "num_warps": 1},
    2816: {"ROWS": 1, "BLOCK": 256, "num_warps": 1},
    3584: {"ROWS": 4, "BLOCK": 512, "num_warps": 1},
    4096: {"ROWS": 2, "BLOCK": 4096, "num_warps": 4},
}
SUMMED = {
    2048: {"ROWS": 4, "BLOCK": 1024, "num_warps": 2},
    4096: {"ROWS": 1, "BLOCK": 1024, "num_warps": 2},
}
SUMMED_SEVERAL = {"ROWS": 2, "BLOCK": 512, "num_warps": 1}  # layers, of more columns
SUMMED_LONG = {  # one layer, by the rows up to which it is best
    2048: {"ROWS": 2, "BLOCK": 1024, "num_warps": 2},
    3072: {"ROWS": 4, "BLOCK": 512, "num_warps": 2},
    1 << 30: {"ROWS": 2, "BLOCK": 2048, "num_warps": 4},
}
LONGEST = 4096  # columns beyond which layers side by side and gates are
LONG = {"ROWS": 2, "BLOCK": 1024, "num_warps": 4}
OWN_NORM = 4096  # columns from which on an RMS norm is a launch of its own
GROUPED_BYTES = {"ROWS": 4, "BLOCK": 512, "num_warps": 1}  # of weights of a byte
GATED_BYTES = {"ROWS": 1, "BLOCK": 256, "num_warps": 1}
SUMMED_BYTES = {"ROWS": 4, "BLOCK": 1024, "num_warps": 2}


def _at(options: dict[int, dict[str, int]], size: int) -> dict[str, int]:
    """The options for a size, out of those that are given up to a size."""
    return next(chosen for most, chosen in options.items() if size <= most)


@triton.jit
def _int8_to_float(w):
    """Four int8 at a time as float32: w + 128 becomes the lowest bits of 2^23, of which 2^23 + 128
    is taken off again. Converting each takes about as many instructions, and longer (H100: 492
    and 410 us for the products that are added)."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 biased, a, b, c, d;
        xor.b32 biased, $4, 0x80808080;
        prmt.b32 a, biased, 0x4b000000, 0x7650;
        prmt.b32 b, biased, 0x4b000000, 0x7651;
        prmt.b32 c, biased, 0x4b000000, 0x7652;
        prmt.b32 d, biased, 0x4b000000, 0x7653;
        sub.f32 $0, a, 0f4B000080;
        sub.f32 $1, b, 0f4B000080;
        sub.f32 $2, c, 0f4B000080;
        sub.f32 $3, d, 0f4B000080;
        }""",
        "=f,=f,=f,=f,r",
        args=[w],
        dtype=tl.float32,
        is_pure=True,
        pack=4,
    )


@triton.jit
def _weights(w_ptr, rows, column, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [ROWS, BLOCK] of a matrix [N, K]."""
    columns = column + tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (columns < K)[None, :]
    at = w_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :]
    return tl.load(at, mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _numbers(w):
    return _int8_to_float(w) if w.dtype == tl.int8 else w.to(tl.float32)


@triton.jit
def _vector(ptr, column, K: tl.constexpr, BLOCK: tl.constexpr):
    columns = column + tl.arange(0, BLOCK)
    return tl.load(ptr + columns, columns < K, other=0.0).to(tl.float32)


@triton.jit
def _input(x_ptr, gain_ptr, column, OFFSET: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Columns of x, times the norm's gain if there is one, and their squares."""
    x = _vector(x_ptr, column, K, BLOCK)
    squares = x * x
    if gain_ptr is not None:
        x *= _vector(gain_ptr, column, K, BLOCK) + OFFSET
    return x, squares


@triton.jit
def _product(
    total, w, x_ptr, gain_ptr, w_ptr, rows, N: tl.constexpr, K: tl.constexpr,
    OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Products [ROWS, BLOCK] added to a total, of whose weights the first tile is under way.

    And the squares [BLOCK] of x, which an RMS norm needs in the end.
    """
    x, squares = _input(x_ptr, gain_ptr, 0, OFFSET, K, BLOCK)
    total += _numbers(w) * x[None, :]
    for column in tl.static_range(BLOCK, K, BLOCK):
        x, more = _input(x_ptr, gain_ptr, column, OFFSET, K, BLOCK)
        squares += more
        total += _numbers(_weights(w_ptr, rows, column, N, K, BLOCK)) * x[None, :]
    return total, squares


@triton.jit
def _layer(
    block, x_ptr, gain_ptr, w_ptr, scale_ptr, b_ptr, out_ptr, eps,
    N: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr, OFFSET: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = block * ROWS + tl.arange(0, ROWS)
    first = _weights(w_ptr, rows, 0, N, K, BLOCK)
    wait(PDL)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    total, squares = _product(total, first, x_ptr, gain_ptr, w_ptr, rows, N, K, OFFSET, BLOCK)
    y = tl.sum(total, 1)
    if gain_ptr is not None:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    y = activate(plus(scaled(y, scale_ptr, rows, N), b_ptr, rows, N), ACTIVATION)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), rows < N)


@triton.jit
def _grouped(
    x0, g0, w0, s0, b0, o0, x1, g1, w1, s1, b1, o1, x2, g2, w2, s2, b2, o2, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    A0: tl.constexpr, A1: tl.constexpr, A2: tl.constexpr, OFFSET: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    P0: tl.constexpr = (N0 + ROWS - 1) // ROWS
    P1: tl.constexpr = (N1 + ROWS - 1) // ROWS
    if pid < P0:
        _layer(pid, x0, g0, w0, s0, b0, o0, eps, N0, K, A0, OFFSET, ROWS, BLOCK, PDL)
    elif pid < P0 + P1:
        if N1 > 0:
            _layer(pid - P0, x1, g1, w1, s1, b1, o1, eps, N1, K, A1, OFFSET, ROWS, BLOCK, PDL)
    else:
        if N2 > 0:
            pid -= P0 + P1
            _layer(pid, x2, g2, w2, s2, b2, o2, eps, N2, K, A2, OFFSET, ROWS, BLOCK, PDL)


def _before(
    x: Tensor,
    gains: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    eps: float,
    norm: str,
) -> tuple[list[Tensor], Sequence[Tensor | None]]:
    """What layers read and the gains of RMS norms that they apply themselves.

    A layer norm is a launch in front of the products: inside them its moments would have to be
    waited for while the weights are on the way. An RMS norm is a factor, which can come last; of
    long vectors too much would be read for it beside each row of weights.
    """
    if norm == "layer" or x.shape[-1] >= OWN_NORM:
        return norms(x, gains, shifts, eps, norm), [None] * len(gains)
    return [x] * len(gains), gains


def grouped_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    gains: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    eps: float,
    norm: str,
    activations: Sequence[str],
    **tuned: Any,
) -> list[Tensor]:
    """`linear.grouped_linear` on a GPU, for at most three layers."""
    x = x.contiguous()
    if x.numel() > x.shape[-1]:
        inputs = norms(x, gains, shifts, eps, norm)
        return linear_tokens_triton.grouped_linear(
            inputs, weights, scales, biases, activations, **tuned
        )
    best = _at(GROUPED, x.shape[-1]) if x.shape[-1] <= LONGEST else LONG
    best = GROUPED_BYTES if weights[0].itemsize == 1 else best
    tuned = {**best, **launch(x), **tuned}
    outs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    absent = 3 - len(weights)
    inputs, gains = _before(x, gains, shifts, eps, norm)
    layers = list(zip(inputs, gains, weights, scales, biases, outs)) + [(None,) * 6] * absent
    rows = [weight.shape[0] for weight in weights] + [0] * absent
    names = list(activations) + [""] * absent
    grid = (sum(-(-n // tuned["ROWS"]) for n in rows),)
    _grouped[grid](
        *(part for layer in layers for part in layer), eps,
        *rows, x.shape[-1], *names, float(norm == "rms_unit_offset"), **tuned,
    )  # fmt: skip
    return outs


@triton.jit
def _gated(
    x, gain, w0, s0, b0, w1, s1, b1, out, eps,
    N: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr, OFFSET: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = _weights(w0, rows, 0, N, K, BLOCK)
    other = _weights(w1, rows, 0, N, K, BLOCK)
    wait(PDL)
    x_tile, squares = _input(x, gain, 0, OFFSET, K, BLOCK)
    gate, up = _numbers(first) * x_tile[None, :], _numbers(other) * x_tile[None, :]
    for column in tl.static_range(BLOCK, K, BLOCK):
        x_tile, more = _input(x, gain, column, OFFSET, K, BLOCK)
        squares += more
        gate += _numbers(_weights(w0, rows, column, N, K, BLOCK)) * x_tile[None, :]
        up += _numbers(_weights(w1, rows, column, N, K, BLOCK)) * x_tile[None, :]
    y, z = tl.sum(gate, 1), tl.sum(up, 1)
    if gain is not None:
        scale = tl.rsqrt(tl.sum(squares) / K + eps)
        y, z = y * scale, z * scale
    y = activate(plus(scaled(y, s0, rows, N), b0, rows, N), ACTIVATION)
    y *= plus(scaled(z, s1, rows, N), b1, rows, N)
    tl.store(out + rows, y.to(out.dtype.element_ty), rows < N)


def gated_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    norm: str,
    activation: str,
    **tuned: Any,
) -> Tensor:
    """`linear.gated_linear` on a GPU."""
    x = x.contiguous()
    halves: list[tuple[Tensor | None, ...]] = list(zip(weights, scales, biases))
    if len(halves) == 1:
        pairs = [(None, None) if p is None else p.chunk(2) for p in halves[0]]
        halves = list(zip(*pairs))
    if x.numel() > x.shape[-1]:
        (x,) = norms(x, [gain], [shift], eps, norm)
        return linear_tokens_triton.gated_linear(x, halves, activation, **tuned)
    n_rows, width = weights[0].shape[0] * len(weights) // 2, x.shape[-1]
    best = _at(GATED, width) if width <= LONGEST else LONG
    best = GATED_BYTES if weights[0].itemsize == 1 else best
    tuned = {**best, **launch(x), **tuned}
    (x,), (gain,) = _before(x, [gain], [shift], eps, norm)
    out = x.new_empty(*x.shape[:-1], n_rows)
    _gated[(-(-n_rows // tuned["ROWS"]),)](
        x, gain, *halves[0], *halves[1], out, eps,
        n_rows, width, activation, float(norm == "rms_unit_offset"), **tuned,
    )  # fmt: skip
    return out


@triton.jit
def _summed(
    x0, w0, s0, b0, x1, w1, s1, b1, x2, w2, s2, b2, residual, out,
    N: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    EARLY: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = _weights(w0, rows, 0, N, K0, BLOCK)
    if not EARLY:
        wait(PDL)
    zeros = tl.zeros([ROWS, BLOCK], tl.float32)
    total, _ = _product(zeros, first, x0, None, w0, rows, N, K0, 0.0, BLOCK)
    y = tl.zeros([ROWS], tl.float32)
    if K1 > 0:
        if s0 is not None or s1 is not None:  # else one sum does for both
            y += scaled(tl.sum(total, 1), s0, rows, N)
            total = zeros
        first = _weights(w1, rows, 0, N, K1, BLOCK)
        if EARLY:
            wait(PDL)
        total, _ = _product(total, first, x1, None, w1, rows, N, K1, 0.0, BLOCK)
    if K2 > 0:
        if s1 is not None or s2 is not None:
            y += scaled(tl.sum(total, 1), s1, rows, N)
            total = zeros
        first = _weights(w2, rows, 0, N, K2, BLOCK)
        total, _ = _product(total, first, x2, None, w2, rows, N, K2, 0.0, BLOCK)
    if K2 > 0:
        y += scaled(tl.sum(total, 1), s2, rows, N)
    elif K1 > 0:
        y += scaled(tl.sum(total, 1), s1, rows, N)
    else:
        y += scaled(tl.sum(total, 1), s0, rows, N)
    y = plus(plus(y, b0, rows, N), b1, rows, N)
    y = plus(plus(y, b2, rows, N), residual, rows, N)
    tl.store(out + rows, y.to(out.dtype.element_ty), rows < N)


def summed_linear(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    early: bool = False,
    **tuned: Any,
) -> Tensor:
    """`linear.summed_linear` on a GPU, for at most three layers."""
    xs = [x.contiguous() for x in xs]
    if residual is not None:
        residual = residual.contiguous()
    layers: list[tuple[Any, ...]] = list(zip(xs, weights, scales, biases))
    if xs[0].numel() > xs[0].shape[-1]:
        return linear_tokens_triton.summed_linear(layers, residual, **tuned)
    width, n_rows = max(x.shape[-1] for x in xs), weights[0].shape[0]
    best = _at(SUMMED, width) if width <= LONGEST else _at(SUMMED_LONG, n_rows)
    best = SUMMED_SEVERAL if len(xs) > 1 and width > LONGEST else best
    best = SUMMED_BYTES if weights[0].itemsize == 1 else best
    tuned = {**best, **launch(xs[0]), **tuned}
    absent = 3 - len(xs)
    out = xs[0].new_empty(*xs[0].shape[:-1], n_rows)
    layers += [(None,) * 4] * absent
    widths = [x.shape[-1] for x in xs] + [0] * absent
    _summed[(-(-n_rows // tuned["ROWS"]),)](
        *(part for layer in layers for part in layer), residual, out,
        n_rows, *widths, early, **tuned,
    )  # fmt: skip
    return out
