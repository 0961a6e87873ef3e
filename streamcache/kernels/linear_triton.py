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

# Rows a program, columns a step and warps, found on an H200. With 256 columns a warp a thread holds
# the same columns of the vector and of every row, and nothing goes through shared memory.
SIDE_BY_SIDE = {"ROWS": 4, "BLOCK": 512, "num_warps": 2}
ADDED = {"ROWS": 2, "BLOCK": 512, "num_warps": 2}


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
def _weights(w_ptr, rows, column, N: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [ROWS, BLOCK] of a matrix [N, K]."""
    columns = column + tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (columns < K)[None, :]
    at = w_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :]
    return tl.load(at, mask, other=0.0, eviction_policy="evict_first").to(tl.float32)


@triton.jit
def _vector(ptr, column, K: tl.constexpr, BLOCK: tl.constexpr):
    columns = column + tl.arange(0, BLOCK)
    return tl.load(ptr + columns, columns < K, other=0.0).to(tl.float32)


@triton.jit
def _moments(x_ptr, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and reciprocal deviation, in one pass about the first element (no cancellation)."""
    about = tl.load(x_ptr).to(tl.float32)
    once, twice = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for column in tl.static_range(0, K, BLOCK):
        x = _vector(x_ptr, column, K, BLOCK) - about
        x = tl.where(column + tl.arange(0, BLOCK) < K, x, 0.0)
        once += x
        twice += x * x
    mean = tl.sum(once) / K
    return mean + about, tl.rsqrt(tl.sum(twice) / K - mean * mean + eps)


@triton.jit
def _layer(
    block,
    x_ptr,
    w_ptr,
    b_ptr,
    gain_ptr,
    shift_ptr,
    out_ptr,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    rows = block * ROWS + tl.arange(0, ROWS)
    first = _weights(w_ptr, rows, 0, N, K, BLOCK)
    _wait(PDL)
    mean, scale = 0.0, 1.0
    if gain_ptr is not None:
        mean, scale = _moments(x_ptr, eps, K, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for column in tl.static_range(0, K, BLOCK):
        x = _vector(x_ptr, column, K, BLOCK)
        if gain_ptr is not None:
            x = (x - mean) * scale * _vector(gain_ptr, column, K, BLOCK)
        if shift_ptr is not None:
            x += _vector(shift_ptr, column, K, BLOCK)
        if column == 0:
            total += first * x[None, :]
        else:
            total += _weights(w_ptr, rows, column, N, K, BLOCK) * x[None, :]
    y = tl.sum(total, 1)
    if b_ptr is not None:
        y += tl.load(b_ptr + rows, rows < N, other=0.0).to(tl.float32)
    y = _activate(y, ACTIVATION)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), rows < N)


@triton.jit
def _side_by_side(
    x, w0, b0, g0, s0, o0, w1, b1, g1, s1, o1, w2, b2, g2, s2, o2, eps,
    N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K: tl.constexpr,
    A0: tl.constexpr, A1: tl.constexpr, A2: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    P0: tl.constexpr = (N0 + ROWS - 1) // ROWS
    P1: tl.constexpr = (N1 + ROWS - 1) // ROWS
    if pid < P0:
        _layer(pid, x, w0, b0, g0, s0, o0, eps, N0, K, A0, ROWS, BLOCK, PDL)
    elif pid < P0 + P1:
        if N1 > 0:
            _layer(pid - P0, x, w1, b1, g1, s1, o1, eps, N1, K, A1, ROWS, BLOCK, PDL)
    else:
        if N2 > 0:
            _layer(pid - P0 - P1, x, w2, b2, g2, s2, o2, eps, N2, K, A2, ROWS, BLOCK, PDL)


def side_by_side(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor | None],
    norm_biases: Sequence[Tensor | None],
    eps: float,
    activations: Sequence[str],
    **tuned: Any,
) -> list[Tensor]:
    """`linear.side_by_side` for one token and at most three layers."""
    tuned = {**SIDE_BY_SIDE, **launch(x), **tuned}
    x = x.contiguous()
    outs = [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]
    absent = 3 - len(weights)
    layers = list(zip(weights, biases, norm_weights, norm_biases, outs)) + [(None,) * 5] * absent
    rows = [weight.shape[0] for weight in weights] + [0] * absent
    names = list(activations) + [""] * absent
    width = x.shape[-1]
    grid = (sum(-(-n // tuned["ROWS"]) for n in rows),)
    _side_by_side[grid](
        x, *(part for layer in layers for part in layer), eps, *rows, width, *names,
        **tuned,
    )  # fmt: skip
    return outs


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
def _bias(y, b_ptr, rows, N: tl.constexpr):
    if b_ptr is not None:
        y += tl.load(b_ptr + rows, rows < N, other=0.0).to(tl.float32)
    return y


@triton.jit
def _added(
    x0, w0, b0, x1, w1, b1, x2, w2, b2, residual, out,
    N: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = _weights(w0, rows, 0, N, K0, BLOCK)
    _wait(PDL)
    total = first * _vector(x0, 0, K0, BLOCK)[None, :]
    total = _dot(total, BLOCK, x0, w0, rows, N, K0, BLOCK)
    if K1 > 0:
        total = _dot(total, 0, x1, w1, rows, N, K1, BLOCK)
    if K2 > 0:
        total = _dot(total, 0, x2, w2, rows, N, K2, BLOCK)
    y = _bias(tl.sum(total, 1), b0, rows, N)
    y = _bias(_bias(y, b1, rows, N), b2, rows, N)
    y = _bias(y, residual, rows, N)
    tl.store(out + rows, y.to(out.dtype.element_ty), rows < N)


def added(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    **tuned: Any,
) -> Tensor:
    """`linear.added` for one token and at most three layers."""
    xs = [x.contiguous() for x in xs]
    tuned = {**ADDED, **launch(xs[0]), **tuned}
    n_rows, absent = weights[0].shape[0], 3 - len(xs)
    out = xs[0].new_empty(*xs[0].shape[:-1], n_rows)
    layers = list(zip(xs, weights, biases)) + [(None,) * 3] * absent
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
