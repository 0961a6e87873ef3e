"""A linear layer whose weights are 8-bit integers, and are read as such."""

import torch
from torch import Tensor, nn

from streamcache.kernels.linear import scaled_linear, side_by_side, takes


class Int8Linear(nn.Module):
    """x W^T * scale + b: the weights of a quantised layer, wherever they come from.

    Args:
        weight: int8 [N, K].
        scale: [N], of the rows, in the dtype that the layer computes in.
        bias: [N] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x, self.weight, self.scale, self.bias)


@torch.library.custom_op("streamcache::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """One operation to a compiler, so that a graph shows it as the layer that it is."""
    if takes(x):
        return side_by_side(x, [weight], [scale], [bias], [None], [None], 0.0, "")[0]
    return scaled_linear(x, weight, scale, bias)


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
