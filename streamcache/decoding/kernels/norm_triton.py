"""The Triton kernel of the norms before linear layers: different norms of one input, one launch."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamcache.decoding.kernels.launch import launch, wait


@triton.jit
def _norm(
    x_ptr, gain_ptr, shift_ptr, residual_ptr, out_ptr, eps, NORM: tl.constexpr, K: tl.constexpr,
    K_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, K_PAD)
    gain = tl.load(gain_ptr + columns, columns < K, other=0.0).to(tl.float32)
    if NORM == "rms_unit_offset":
        gain += 1
    shift = tl.zeros([K_PAD], tl.float32)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + columns, columns < K, other=0.0).to(tl.float32)
    wait(PDL)
    at = tl.program_id(1).to(tl.int64) * K + columns
    x = tl.load(x_ptr + at, columns < K, other=0.0).to(tl.float32)
    if NORM == "layer":
        x = tl.where(columns < K, x - tl.sum(x) / K, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x) / K + eps) * gain + shift
    if residual_ptr is not None:
        y += tl.load(residual_ptr + at, columns < K, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), columns < K)


@triton.jit
def _norms(
    x, g0, s0, o0, g1, s1, o1, g2, s2, o2, residual, eps, NORM: tl.constexpr, K: tl.constexpr,
    K_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    if i == 0:
        _norm(x, g0, s0, residual, o0, eps, NORM, K, K_PAD, PDL)
    if g1 is not None:  # noqa: SIM102 (known to the compiler, unlike what follows)
        if i == 1:
            _norm(x, g1, s1, None, o1, eps, NORM, K, K_PAD, PDL)
    if g2 is not None:  # noqa: SIM102
        if i == 2:
            _norm(x, g2, s2, None, o2, eps, NORM, K, K_PAD, PDL)


def norms(
    x: Tensor,
    gains: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    eps: float,
    norm: str,
    residual: Tensor | None = None,
) -> list[Tensor]:
    """What each layer reads: x [..., K] as it is, or after the layer's norm.

    A residual [..., K] is added to the first that has a norm.
    """
    made: dict[tuple[int, int], tuple[Tensor, Tensor | None, Tensor]] = {}
    address = lambda tensor: 0 if tensor is None else tensor.data_ptr()  # noqa: E731
    keys = [(address(gain), address(shift)) for gain, shift in zip(gains, shifts)]
    for key, gain, shift in zip(keys, gains, shifts):
        if gain is not None and key not in made:
            made[key] = gain, shift, torch.empty_like(x)
    if made:
        width, absent = x.shape[-1], 3 - len(made)
        _norms[(len(made), x.numel() // width)](
            x, *(part for layer in made.values() for part in layer), *(None,) * (3 * absent),
            residual, eps, norm, width, triton.next_power_of_2(width), num_warps=8, **launch(x),
        )  # fmt: skip
    return [made[key][-1] if key in made else x for key in keys]
