"""Norms in a traced graph, by what is computed: in transformers each family writes its own."""

import operator
from typing import Any, NamedTuple

import torch
from torch.fx import Node
from torch.nn import functional as F

from streamcache.decoding.kernels.graph_nodes import is_parameter, operands, uncast, value


class Norm(NamedTuple):
    """A norm over the last dimension of x; without a gain, none."""

    x: Any
    gain: Any = None
    shift: Any = None
    eps: float = 0.0
    kind: str = ""


def norm_before(node: Any) -> Norm:
    """The norm that gives a layer its input; without one, the input itself."""
    return _layer_norm(node) or rms_norm(node) or Norm(node)


def _layer_norm(node: Any) -> Norm | None:
    if node.target is not F.layer_norm or node.kwargs:
        return None
    x, shape, weight, bias, eps = (*node.args, None, None, 1e-5)[:5]
    affine = weight is not None and is_parameter(weight) and is_parameter(bias)
    return Norm(x, weight, bias, eps, "layer") if affine and _is_last(shape, x) else None


def _is_last(shape: Any, x: Any) -> bool:
    return tuple(shape) == value(x).shape[-1:]


def rms_norm(node: Any) -> Norm | None:
    """x / sqrt(mean(x^2) + eps) * gain, or * (1 + gain), between any dtypes."""
    if not isinstance(node, Node):
        return None
    if node.target is F.rms_norm:
        x, shape, gain, default = (*node.args, None, None)[:4]
        eps: Any = node.kwargs.get("eps", default)
        found = gain is not None and eps is not None and is_parameter(gain)
        return Norm(x, gain, None, eps, "rms") if found and _is_last(shape, x) else None
    for scaled, factor in operands(uncast(node), operator.mul):
        gain, kind = _gain(factor)
        x, eps = _over_root_mean_square(uncast(scaled))
        if gain is None or x is None:
            continue
        same = value(x).shape == value(node).shape and value(x).dtype == value(node).dtype
        if same and tuple(value(gain).shape) == value(x).shape[-1:]:
            return Norm(x, gain, None, eps, kind)
    return None


def _gain(node: Any) -> tuple[Node | None, str]:
    node = uncast(node)
    for weight, one in operands(node, operator.add):
        if isinstance(one, int | float) and one == 1 and _is_gain(uncast(weight)):
            return uncast(weight), "rms_unit_offset"
    return (node, "rms") if _is_gain(node) else (None, "")


def _is_gain(node: Any) -> bool:
    return isinstance(node, Node) and is_parameter(node)


def _over_root_mean_square(node: Any) -> tuple[Any, float]:
    """x and eps, of x * rsqrt(mean(x^2) + eps)."""
    for x, root in operands(node, operator.mul):
        if not isinstance(root, Node) or root.target not in (torch.rsqrt, "rsqrt"):
            continue
        for mean, eps in operands(root.args[0], operator.add):
            is_mean = isinstance(mean, Node) and mean.target in ("mean", torch.mean)
            if not is_mean or not isinstance(eps, float):
                continue
            dim = mean.args[1] if len(mean.args) > 1 else mean.kwargs.get("dim")
            square = mean.args[0]
            is_square = square.target in ("pow", torch.pow) and square.args[1] == 2
            if dim in (-1, [-1], (-1,)) and is_square and square.args[0] is x:
                return uncast(x), eps
    return None, 0.0
