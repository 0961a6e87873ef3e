"""A linear layer whose weights have a byte each, int8 or float8_e4m3, and are read as such."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from streamcache.decoding.kernels.linear import one_linear, scaled_linear, supports

_OF_A_BYTE = torch.int8, torch.float8_e4m3fn


class QuantizedLinear(nn.Module):
    """x W^T * scale + b: the weights of a quantised layer, wherever they come from.

    Args:
        weight: [N, K], int8 or float8_e4m3fn.
        scale: [N], of the rows.
        bias: [N] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight)  # no parameter: it does not follow `.float()`
        self.weight: Tensor
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.scale, self.bias)


@torch.library.custom_op("streamcache::quantized_linear", mutates_args=())
def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """One operation to a compiler, so that a graph shows it as the layer that it is."""
    if supports(x):
        return one_linear(x, weight, scale, bias)
    return scaled_linear(x, weight, scale, bias)


@quantized_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


Model = TypeVar("Model", bound=nn.Module)


def with_quantized_kernels(model: Model) -> Model:
    """The model, or if it has such layers of torchao a copy that shares its weights.

    In the copy these layers are `QuantizedLinear`. What has a scale for each row, no zero points,
    and leaves its input as it is, counts as one; others stay as they are.
    """
    if not any(_has_bytes(module) for module in model.modules()):
        return model
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _has_bytes(child):
                layer: Any = child
                weight, scale = layer.weight.qdata, layer.weight.scale.view(-1)
                setattr(module, name, QuantizedLinear(weight, scale, layer.bias))
    return model


def _has_bytes(module: nn.Module) -> bool:
    """Whether a layer computes x W^T * scale + b: no zero points, and x as it is."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear) or not hasattr(weight, "qdata"):
        return False
    if weight.qdata.dtype not in _OF_A_BYTE or weight.scale.numel() != weight.shape[0]:
        return False
    zero_point = getattr(weight, "zero_point", None)
    quantises_x = any(v is not None for k, v in vars(weight).items() if k.startswith("act"))
    return not quantises_x and (zero_point is None or not bool(zero_point.any()))
