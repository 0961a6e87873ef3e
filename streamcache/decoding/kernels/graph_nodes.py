"""What a node of a traced graph stands for."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def value(node: Any) -> Tensor:
    value: Tensor = node.meta["example_value"]
    return value


def is_parameter(node: Any) -> bool:
    """Whether a node is there before all others (None is), as it lies in memory."""
    if node is None:
        return True
    plain = node.op == "placeholder" and not is_traceable_wrapper_subclass(value(node))
    return plain and value(node).is_contiguous()


def uncast(node: Any) -> Any:
    """The node before changes of its dtype."""
    casts = ("to", "float", "type_as", "half", "bfloat16")
    while isinstance(node, Node) and node.op == "call_method" and node.target in casts:
        node = node.args[0]
    return node


def operands(node: Any, target: Any) -> list[tuple[Any, Any]]:
    """Both orders of a commutative operation's operands."""
    name = target.__name__
    known = isinstance(node, Node) and node.target in (target, getattr(torch, name), name)
    return [node.args, node.args[::-1]] if known and len(node.args) == 2 else []
