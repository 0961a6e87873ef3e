"""Taking a rotary embedding out of a graph in which every token is at position 0.

There a rotation is the identity: cosines are 1, sines 0, and what they multiply stays or vanishes.
The compiler cannot see it, because the angles go through a buffer of frequencies. So values that
are one number throughout are followed through the graph, and what they leave unchanged is dropped.
What is not recognised is computed and comes to the same.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

_MOVES = {
    *("getitem", "expand", "expand_as", "to", "float", "half", "bfloat16", "double", "type_as"),
    *("unsqueeze", "squeeze", "transpose", "view", "reshape", "flatten", "contiguous", "clone"),
    *("repeat", "repeat_interleave", "permute", "chunk", "split"),
}
_PRODUCTS = {"mul", "matmul", "bmm", "outer", "einsum"}
_MAPS: dict[str, Callable[[float], float]] = {"cos": math.cos, "sin": math.sin, "neg": operator.neg}


def drop_rotations(graph: Graph) -> None:
    """Simplify a graph of torch functions, with `torch.zeros` for its positions."""
    known: dict[Node, float] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        name = node.target if isinstance(node.target, str) else node.target.__name__
        value = _value(name, node, known)
        if value is not None:
            known[node] = value
        elif (same := _same(name, node, known)) is not None and _alike(node, same):
            node.replace_all_uses_with(same)
    graph.eliminate_dead_code()


def _value(name: str, node: Node, known: dict[Node, float]) -> float | None:
    """The number that a tensor consists of, if it is one."""
    if name in ("zeros", "ones"):
        return float(name == "ones")
    values = [known.get(a) if isinstance(a, Node) else a for a in _flat(node.args)]
    if not values:
        return None
    if name in _MOVES:
        return known.get(node.args[0])  # type: ignore[arg-type]
    if name in _MAPS:
        return None if values[0] is None else _MAPS[name](values[0])
    if name in _PRODUCTS and any(a in known and known[a] == 0 for a in node.all_input_nodes):
        return 0.0
    if name in ("mul", "add") and all(isinstance(v, int | float) for v in values):
        return math.prod(values) if name == "mul" else sum(values)  # type: ignore[arg-type]
    if name in ("cat", "stack"):
        parts = [known.get(part) for part in node.all_input_nodes]
        return parts[0] if parts and len(set(parts)) == 1 else None
    return None


def _same(name: str, node: Node, known: dict[Node, float]) -> Node | None:
    """The node that a node equals: x * 1, x + 0, or the pieces of x put together again."""
    if name in ("mul", "add") and len(node.args) == 2:
        neutral = 1.0 if name == "mul" else 0.0
        for x, other in (node.args, node.args[::-1]):
            if isinstance(x, Node) and isinstance(other, Node) and known.get(other) == neutral:
                return x
    if name == "cat" and (node.kwargs.get("dim") == -1 or -1 in node.args):
        return _whole(node.all_input_nodes)
    return None


def _whole(parts: list[Node]) -> Node | None:
    """The tensor that was cut along its last dimension into these parts, in order."""
    end, bases = 0, set()
    for part in parts:
        if part.target is not operator.getitem or not isinstance(part.args[1], tuple):
            return None
        *lead, last = part.args[1]
        if any(x is not Ellipsis and x != slice(None) for x in lead) or not isinstance(last, slice):
            return None
        if last.step is not None or (last.start or 0) != end:
            return None
        base: Any = part.args[0]
        bases.add(base)
        width = base.meta["example_value"].shape[-1]
        end = width if last.stop is None else last.stop
    return bases.pop() if len(bases) == 1 and end == width else None


def _alike(a: Node, b: Node) -> bool:
    x, y = a.meta.get("example_value"), b.meta.get("example_value")
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        return False
    return x.shape == y.shape and x.dtype == y.dtype


def _flat(args: Any) -> list[Any]:
    flat: list[Any] = []
    for arg in args:
        flat += _flat(arg) if isinstance(arg, list | tuple) else [arg]
    return flat
