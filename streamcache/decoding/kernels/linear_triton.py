"""The Triton kernels of `linear`: a program computes a few outputs, and reads whole rows for it.

A product with one vector is a stream of weights. What counts is that enough of it is under way at
any time, so a program asks for its first weights before it waits for the kernel in front of it
(programmatic dependent launch, on GPUs that have it).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rows a program, columns a step and warps. A loop over columns is unrolled, so wide layers, which
# `ADDED` was measured with, take long steps.
SIDE_BY_SIDE = {"ROWS": 2, "BLOCK": 256, "num_warps": 1}
ADDED = {"ROWS": 1, "BLOCK": 2048, "num_warps": 4}
WIDE = 4096  # columns
SIDE_BY_SIDE_INT8 = {"ROWS": 4, "BLOCK": 512, "num_warps": 1}
ADDED_INT8 = {"ROWS": 1, "BLOCK": 512, "num_warps": 1}


@triton.jit
def _wait(PDL: tl.constexpr):
    """Until here a program may run before the kernels in front of it have ended."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0)
    return y


@triton.jit
def _number(w):
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
    w = tl.load(at, mask, other=0, eviction_policy="evict_first")
    return _number(w) if w.dtype == tl.int8 else w.to(tl.float32)


@triton.jit
def _vector(ptr, column, K: tl.constexpr, BLOCK: tl.constexpr):
    columns = column + tl.arange(0, BLOCK)
    return tl.load(ptr + columns, columns < K, other=0.0).to(tl.float32)


@triton.jit
def _times(y, ptr, rows, N: tl.constexpr):
    if ptr is not None:
        y *= tl.load(ptr + rows, rows < N, other=0.0).to(tl.float32)
    return y


@triton.jit
def _plus(y, ptr, rows, N: tl.constexpr):
    if ptr is not None:
        y += tl.load(ptr + rows, rows < N, other=0.0).to(tl.float32)
    return y


@triton.jit
def _normed(
    x_ptr, gain_ptr, shift_ptr, out_ptr, eps, K: tl.constexpr, K_PAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    gain = _vector(gain_ptr, 0, K, K_PAD)
    shift = tl.zeros([K_PAD], tl.float32)
    if shift_ptr is not None:
        shift = _vector(shift_ptr, 0, K, K_PAD)
    _wait(PDL)
    columns = tl.arange(0, K_PAD)
    x = _vector(x_ptr, 0, K, K_PAD)
    x = tl.where(columns < K, x - tl.sum(x) / K, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x) / K + eps) * gain + shift
    tl.store(out_ptr + columns, y.to(out_ptr.dtype.element_ty), columns < K)


@triton.jit
def _norms(
    x, g0, s0, o0, g1, s1, o1, g2, s2, o2, eps, K: tl.constexpr, K_PAD: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    if i == 0:
        _normed(x, g0, s0, o0, eps, K, K_PAD, PDL)
    if g1 is not None:  # noqa: SIM102 (known to the compiler, unlike what follows)
        if i == 1:
            _normed(x, g1, s1, o1, eps, K, K_PAD, PDL)
    if g2 is not None:  # noqa: SIM102
        if i == 2:
            _normed(x, g2, s2, o2, eps, K, K_PAD, PDL)


def _inputs(
    x: Tensor, gains: Sequence[Tensor | None], shifts: Sequence[Tensor | None], eps: float
) -> list[Tensor]:
    """What each layer reads: x as it is, or after the layer's norm. Different norms: one launch.

    A norm in front of the products, and not inside them, leaves nothing in the products to wait
    for while their weights are on the way.
    """
    norms: dict[tuple[int, int], tuple[Tensor, Tensor | None, Tensor]] = {}
    address = lambda tensor: 0 if tensor is None else tensor.data_ptr()  # noqa: E731
    keys = [(address(gain), address(shift)) for gain, shift in zip(gains, shifts)]
    for key, gain, shift in zip(keys, gains, shifts):
        if gain is not None and key not in norms:
            norms[key] = gain, shift, torch.empty_like(x)
    if norms:
        width, absent = x.shape[-1], 3 - len(norms)
        _norms[(len(norms),)](
            x, *(part for norm in norms.values() for part in norm), *(None,) * (3 * absent), eps,
            width, triton.next_power_of_2(width), num_warps=8, **launch(x),
        )  # fmt: skip
    return [norms[key][-1] if key in norms else x for key in keys]


@triton.jit
def _dot(
    total, start: tl.constexpr, x_ptr, w_ptr, rows,
    N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for column in tl.static_range(start, K, BLOCK):
        x = _vector(x_ptr, column, K, BLOCK)
        total += _weights(w_ptr, rows, column, N, K, BLOCK) * x[None, :]
    return total


@triton.jit
def _layer(
    block, x_ptr, w_ptr, scale_ptr, b_ptr, out_ptr,
    N: tl.constexpr, K: tl.constexpr, ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = block * ROWS + tl.arange(0, ROWS)
    first = _weights(w_ptr, rows, 0, N, K, BLOCK)
    _wait(PDL)
    total = first * _vector(x_ptr, 0, K, BLOCK)[None, :]
    y = tl.sum(_dot(total, BLOCK, x_ptr, w_ptr, rows, N, K, BLOCK), 1)
    y = _activate(_plus(_times(y, scale_ptr, rows, N), b_ptr, rows, N), ACTIVATION)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), rows < N)


@triton.jit
def _side_by_side(
    x0, w0, s0, b0, o0, x1, w1, s1, b1, o1, x2, w2, s2, b2, o2,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    A0: tl.constexpr, A1: tl.constexpr, A2: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    P0: tl.constexpr = (N0 + ROWS - 1) // ROWS
    P1: tl.constexpr = (N1 + ROWS - 1) // ROWS
    if pid < P0:
        _layer(pid, x0, w0, s0, b0, o0, N0, K, A0, ROWS, BLOCK, PDL)
    elif pid < P0 + P1:
        if N1 > 0:
            _layer(pid - P0, x1, w1, s1, b1, o1, N1, K, A1, ROWS, BLOCK, PDL)
    else:
        if N2 > 0:
            _layer(pid - P0 - P1, x2, w2, s2, b2, o2, N2, K, A2, ROWS, BLOCK, PDL)


def side_by_side(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor | None],
    norm_biases: Sequence[Tensor | None],
    eps: float,
    activations: Sequence[str],
    **tuned: Any,
) -> list[Tensor]:
    """`linear.side_by_side` for one token and at most three layers."""
    best = SIDE_BY_SIDE if x.shape[-1] <= WIDE else ADDED
    best = SIDE_BY_SIDE_INT8 if weights[0].dtype == torch.int8 else best
    tuned = {**best, **launch(x), **tuned}
    x = x.contiguous()
    outs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    absent = 3 - len(weights)
    inputs = _inputs(x, norm_weights, norm_biases, eps)
    layers = list(zip(inputs, weights, scales, biases, outs)) + [(None,) * 5] * absent
    rows = [weight.shape[0] for weight in weights] + [0] * absent
    names = list(activations) + [""] * absent
    grid = (sum(-(-n // tuned["ROWS"]) for n in rows),)
    _side_by_side[grid](
        *(part for layer in layers for part in layer), *rows, x.shape[-1], *names, **tuned
    )
    return outs


@triton.jit
def _added(
    x0, w0, s0, b0, x1, w1, s1, b1, x2, w2, s2, b2, residual, out,
    N: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = _weights(w0, rows, 0, N, K0, BLOCK)
    _wait(PDL)
    total = first * _vector(x0, 0, K0, BLOCK)[None, :]
    total = _dot(total, BLOCK, x0, w0, rows, N, K0, BLOCK)
    y = tl.zeros([ROWS], tl.float32)
    if K1 > 0:
        if s0 is not None or s1 is not None:  # else one sum does for both
            y += _times(tl.sum(total, 1), s0, rows, N)
            total = tl.zeros([ROWS, BLOCK], tl.float32)
        total = _dot(total, 0, x1, w1, rows, N, K1, BLOCK)
    if K2 > 0:
        if s1 is not None or s2 is not None:
            y += _times(tl.sum(total, 1), s1, rows, N)
            total = tl.zeros([ROWS, BLOCK], tl.float32)
        total = _dot(total, 0, x2, w2, rows, N, K2, BLOCK)
    if K2 > 0:
        y += _times(tl.sum(total, 1), s2, rows, N)
    elif K1 > 0:
        y += _times(tl.sum(total, 1), s1, rows, N)
    else:
        y += _times(tl.sum(total, 1), s0, rows, N)
    y = _plus(_plus(y, b0, rows, N), b1, rows, N)
    y = _plus(_plus(y, b2, rows, N), residual, rows, N)
    tl.store(out + rows, y.to(out.dtype.element_ty), rows < N)


def added(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    **tuned: Any,
) -> Tensor:
    """`linear.added` for one token and at most three layers."""
    xs = [x.contiguous() for x in xs]
    best = ADDED_INT8 if weights[0].dtype == torch.int8 else ADDED
    tuned = {**best, **launch(xs[0]), **tuned}
    n_rows, absent = weights[0].shape[0], 3 - len(xs)
    out = xs[0].new_empty(*xs[0].shape[:-1], n_rows)
    layers = list(zip(xs, weights, scales, biases)) + [(None,) * 4] * absent
    widths = [x.shape[-1] for x in xs] + [0] * absent
    if residual is not None:
        residual = residual.contiguous()
    _added[(-(-n_rows // tuned["ROWS"]),)](
        *(part for layer in layers for part in layer), residual, out, n_rows, *widths,
        **tuned,
    )  # fmt: skip
    return out


USE_PDL = True


def launch(like: Tensor) -> dict[str, Any]:
    """Launch options for the device of a tensor."""
    pdl = USE_PDL and like.is_cuda and torch.cuda.get_device_capability(like.device) >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
