"""Linear layers of a few tokens, which take as long as it takes to read their weights.

Two operations cover what surrounds them in a decoder. `side_by_side`: several layers that read the
same input, each after a norm of its own and before an activation. `added`: several layers whose
results are added up, with a residual. Each is one launch, so that the memory never rests between.
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

MAX_TOKENS = 64  # of the operations; the kernels take one, more are the vendor's matrix products


def takes(x: Tensor) -> bool:
    """Whether there is a kernel for layers that read x: [..., K], of one token."""
    return has_kernels(x) and x.numel() == x.shape[-1]


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """x W^T * scale + b, for x [..., K] and W [N, K]; without a scale, an ordinary layer."""
    return F.linear(x, dequantised(weight, scale, x.dtype), bias)


def dequantised(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Weights [N, K] as numbers; those without a scale [N] are that already."""
    return weight if scale is None else (weight * scale[:, None]).to(dtype)


@torch.library.custom_op("streamcache::side_by_side", mutates_args=())
def side_by_side(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor | None],
    norm_biases: Sequence[Tensor | None],
    eps: float,
    activations: str,
) -> list[Tensor]:
    """activation(norm(x) W^T * scale + b) for each layer.

    Args:
        x: [..., K].
        weights: [N, K] each, in the dtype of x, or int8 with a scale.
        scales: [N] each, of the rows of a weight; or None.
        biases: [N] each, or None.
        norm_weights, norm_biases: [K] each, of a layer norm before the layer; no weight, no norm.
        eps: of the norms.
        activations: names out of ACTIVATIONS, joined by commas.

    Returns:
        [..., N] for each layer.
    """
    if takes(x):
        from streamcache.decoding.kernels import linear_triton

        return linear_triton.side_by_side(
            x, weights, scales, biases, norm_weights, norm_biases, eps, activations.split(",")
        )
    outs = []
    norms = zip(norm_weights, norm_biases, activations.split(","))
    for layer, (norm_weight, norm_bias, activation) in zip(zip(weights, scales, biases), norms):
        y = x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        outs.append(ACTIVATIONS[activation](scaled_linear(y, *layer)))
    return outs


@side_by_side.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor | None],
    norm_biases: Sequence[Tensor | None],
    eps: float,
    activations: str,
) -> list[Tensor]:
    return [x.new_empty(*x.shape[:-1], weight.shape[0]) for weight in weights]


@torch.library.custom_op("streamcache::added", mutates_args=())
def added(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
) -> Tensor:
    """The sum of x W^T * scale + b over the layers, and of a residual.

    Args:
        xs: [..., K] each; K may differ.
        weights, scales: [N, K] and [N] each, as for `side_by_side`.
        biases: [N] each, or None.
        residual: [..., N] or None.

    Returns:
        [..., N].
    """
    if takes(xs[0]):
        from streamcache.decoding.kernels import linear_triton

        return linear_triton.added(xs, weights, scales, biases, residual)
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


@added.register_fake
def _(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
) -> Tensor:
    return xs[0].new_empty(*xs[0].shape[:-1], weights[0].shape[0])


class OneByOne(TorchFunctionMode):
    """A context in which every linear layer of few tokens runs by the kernel, alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and takes(args[0]):
            x, weight, bias = (*args, None)[:3]
            if weight.is_contiguous():
                return side_by_side(x, [weight], [None], [bias], [None], [None], 0.0, "")[0]
        return func(*args, **(kwargs or {}))
