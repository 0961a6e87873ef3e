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

from streamcache.kernels import has_kernels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}

MAX_TOKENS = 1  # of the kernels; more are left to the vendor's matrix product


def _has_kernel(x: Tensor) -> bool:
    return has_kernels(x) and x.numel() <= MAX_TOKENS * x.shape[-1]


@torch.library.custom_op("streamcache::side_by_side", mutates_args=())
def side_by_side(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    norm_weights: Sequence[Tensor | None],
    norm_biases: Sequence[Tensor | None],
    eps: float,
    activations: str,
) -> list[Tensor]:
    """activation(norm(x) W^T + b) for each layer.

    Args:
        x: [..., K].
        weights: [N, K] each.
        biases: [N] each, or None.
        norm_weights, norm_biases: [K] each, of a layer norm before the layer; no weight, no norm.
        eps: of the norms.
        activations: names out of ACTIVATIONS, joined by commas.

    Returns:
        [..., N] for each layer.
    """
    if _has_kernel(x):
        from streamcache.kernels import linear_triton

        return linear_triton.side_by_side(
            x, weights, biases, norm_weights, norm_biases, eps, activations.split(",")
        )
    outs = []
    rows = zip(weights, biases, norm_weights, norm_biases, activations.split(","))
    for weight, bias, norm_weight, norm_bias, activation in rows:
        y = x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        outs.append(ACTIVATIONS[activation](F.linear(y, weight, bias)))
    return outs


@side_by_side.register_fake
def _(
    x: Tensor,
    weights: Sequence[Tensor],
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
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
) -> Tensor:
    """The sum of x W^T + b over the layers, and of a residual.

    Args:
        xs: [..., K] each; K may differ.
        weights: [N, K] each.
        biases: [N] each, or None.
        residual: [..., N] or None.

    Returns:
        [..., N].
    """
    if _has_kernel(xs[0]):
        from streamcache.kernels import linear_triton

        return linear_triton.added(xs, weights, biases, residual)
    terms = [F.linear(*layer) for layer in zip(xs, weights, biases)]
    total = terms[0] if residual is None else terms[0] + residual
    for term in terms[1:]:
        total = total + term
    return total


@added.register_fake
def _(
    xs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
) -> Tensor:
    return xs[0].new_empty(*xs[0].shape[:-1], weights[0].shape[0])


class OneByOne(TorchFunctionMode):
    """A context in which every linear layer of few tokens runs by the kernel, alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _has_kernel(args[0]):
            x, weight, bias = (*args, None)[:3]
            if weight.is_contiguous():
                return side_by_side(x, [weight], [bias], [None], [None], 0.0, "")[0]
        return func(*args, **(kwargs or {}))
