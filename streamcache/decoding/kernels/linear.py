"""Linear layers of a few tokens, which take as long as it takes to read their weights.

Three operations cover what surrounds them in a decoder. `grouped_linear`: several layers that read
the same input, each after a norm and before an activation. `gated_linear`: two of them, one of
which gates the other. `summed_linear`: several layers whose results are added up, with a residual.
Each is one launch, so that memory traffic does not pause.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from streamcache.decoding.kernels import has_kernels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}

MAX_TOKENS = 64


def supports(x: Tensor) -> bool:
    """Whether there is a kernel for layers that read x: [..., K].

    Of one token in any dtype, of more in 16 bits: the matrix units take no float32 as it is.
    """
    n_tokens = x.numel() // max(1, x.shape[-1])
    return has_kernels(x) and (n_tokens == 1 or (n_tokens <= MAX_TOKENS and x.itemsize == 2))


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """x W^T * scale + b, for x [..., K] and W [N, K]; without a scale, an ordinary layer."""
    return F.linear(x, dequantised(weight, scale, x.dtype), bias)


def dequantised(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights [N, K] as numbers; those without a scale [N] are that already."""
    if scale is None:
        return weight
    return (weight.to(scale.dtype) * scale[:, None]).to(dtype)


def normed(x: Tensor, gain: Tensor | None, shift: Tensor | None, eps: float, norm: str) -> Tensor:
    """x after its norm over the last dimension; see `grouped_linear`."""
    if gain is None:
        return x
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], gain, shift, eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    gain = gain.to(wide.dtype) + (norm == "rms_unit_offset")
    return F.rms_norm(wide, x.shape[-1:], gain, eps).to(x.dtype)


@torch.library.custom_op("streamcache::grouped_linear", mutates_args=())
def grouped_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    gains: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    eps: float,
    norm: str,
    activations: str,
) -> list[Tensor]:
    """activation(norm(x) W^T * scale + b) for each layer.

    Args:
        x: [..., K].
        weights: [N, K] each, in the dtype of x, or int8 or float8_e4m3fn with a scale.
        scales: [N] each, of the rows of a weight; or None.
        biases: [N] each, or None.
        gains, shifts: [K] each, of a norm before the layer; no gain, no norm.
        eps: of the norms.
        norm: "layer", "rms" or "rms_unit_offset", whose gain is 1 + g.
        activations: names out of ACTIVATIONS, joined by commas.

    Returns:
        [..., N] for each layer.
    """
    names = activations.split(",")
    if supports(x):
        from streamcache.decoding.kernels import linear_triton

        return linear_triton.grouped_linear(
            x, weights, scales, biases, gains, shifts, eps, norm, names
        )
    outs = []
    for *layer, gain, shift, name in zip(weights, scales, biases, gains, shifts, names):
        y = normed(x, gain, shift, eps, norm)
        outs.append(ACTIVATIONS[name](scaled_linear(y, *layer)))
    return outs


@grouped_linear.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    gains: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    eps: float,
    norm: str,
    activations: str,
) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]


@torch.library.custom_op("streamcache::gated_linear", mutates_args=())
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
) -> Tensor:
    """activation(gate) * up, of two layers that read norm(x).

    Args:
        x: [..., K].
        weights: gate and up, [N, K] each; or one [2 N, K], the gate's rows first.
        scales, biases: of these, as for `grouped_linear`.
        gain, shift, eps, norm: of the norm before both; no gain, no norm.
        activation: a name out of ACTIVATIONS.

    Returns:
        [..., N].
    """
    if supports(x):
        from streamcache.decoding.kernels import linear_triton

        return linear_triton.gated_linear(
            x, weights, scales, biases, gain, shift, eps, norm, activation
        )
    y = normed(x, gain, shift, eps, norm)
    outs = [scaled_linear(y, *layer) for layer in zip(weights, scales, biases)]
    gate, up = outs if len(outs) == 2 else outs[0].chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


@gated_linear.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    gain: Tensor | None,
    shift: Tensor | None,
    eps: float,
    norm: str,
    activation: str,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weights[0].shape[0] * len(weights) // 2)


@torch.library.custom_op("streamcache::summed_linear", mutates_args=())
def summed_linear(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    early: bool = False,
) -> Tensor:
    """The sum of x W^T * scale + b over the layers, and of a residual.

    Args:
        xs: [..., K] each; K may differ.
        weights, scales, biases: of each layer, as for `grouped_linear`.
        residual: [..., N] or None.
        early: on a GPU, the first x is older than the launch in front, so that its product need
            not wait for that one.

    Returns:
        [..., N].
    """
    if supports(xs[0]):
        from streamcache.decoding.kernels import linear_triton

        return linear_triton.summed_linear(xs, weights, scales, biases, residual, early)
    total, layers = residual, list(zip(xs, weights, scales, biases))
    if total is None:
        total = scaled_linear(*layers.pop(0))
    total = total.reshape(-1, total.shape[-1])
    for x, weight, scale, bias in layers:
        if bias is not None:
            total = total + bias
        weight = dequantised(weight, scale, x.dtype)
        total = torch.addmm(total, x.reshape(-1, x.shape[-1]), weight.mT)
    return total.view(*xs[0].shape[:-1], -1)


@summed_linear.register_fake
def _(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    early: bool = False,
) -> Tensor:
    return xs[0].new_empty(*xs[0].shape[:-1], weights[0].shape[0])


@torch.library.custom_op("streamcache::summed_norm", mutates_args=())
def summed_norm(x: Tensor, residual: Tensor, gain: Tensor, eps: float, norm: str) -> Tensor:
    """residual + norm(x), for x and residual [..., K]; see `grouped_linear` for the rest."""
    if supports(x):
        from streamcache.decoding.kernels import norm_triton

        x, residual = x.contiguous(), residual.contiguous()
        return norm_triton.norms(x, [gain], [None], eps, norm, residual)[0]
    return residual + normed(x, gain, None, eps, norm)


@summed_norm.register_fake
def _(x: Tensor, residual: Tensor, gain: Tensor, eps: float, norm: str) -> Tensor:
    return torch.empty_like(residual, memory_format=torch.contiguous_format)


def one_linear(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """x W^T * scale + b by the kernel."""
    return grouped_linear(x, [weight], [scale], [bias], [None], [None], 0.0, "", "")[0]


class KernelLinearMode(TorchFunctionMode):
    """A context in which every linear layer of few tokens runs by the kernel, alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and supports(args[0]):
            x, weight, bias = (*args, None)[:3]
            if weight.is_contiguous():
                return one_linear(x, weight, None, bias)
        return func(*args, **(kwargs or {}))
