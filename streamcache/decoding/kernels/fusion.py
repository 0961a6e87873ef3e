"""A torch.compile backend: a model's linear layers become few launches, inductor does the rest.

The graph of a decode step says which layers read the same input and which add up. Linear layers are
taken together with what stands right before (a layer norm), right after (an activation, a sum, a
residual) and beside them, by what the graph computes and not by the model's name.
"""

import operator
from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from streamcache.decoding.kernels import int8, linear  # noqa: F401 (int8 registers its op)
from streamcache.decoding.kernels.fold_rope import drop_rotations

_MOST = 3  # layers a launch
_INT8 = torch.ops.streamcache.int8_linear.default


def fused(module: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """Rewrite a graph of torch functions, as Dynamo traces it, and compile it with inductor."""
    fuse(module)
    compile_inner: Callable[..., Any] = torch._dynamo.lookup_backend("inductor")
    return compile_inner(module, inputs)


def fuse(module: GraphModule) -> None:
    """Replace the linear layers of few tokens in a traced graph."""
    graph = module.graph
    drop_rotations(graph)
    for node in list(graph.nodes):
        if _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target is operator.add and not _is_part_of_a_sum(node):
            _fuse_sum(graph, node)
    _fuse_neighbours(graph)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()


def _does_nothing(node: Node) -> bool:
    if node.target is F.dropout:
        return not (node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True))
    whole = (slice(None), slice(0, None))
    return (
        node.target is operator.getitem
        and isinstance(node.args[1], tuple)
        and all(isinstance(part, slice) and part in whole for part in node.args[1])
    )


def _is_linear(node: object) -> bool:
    """Whether a node is a linear layer of few tokens with parameters of its own."""
    if not isinstance(node, Node) or node.target not in (F.linear, _INT8):
        return False
    few = prod(_value(node.args[0]).shape[:-1]) <= linear.MAX_TOKENS
    return few and all(_is_parameter(p) for p in _parameters(node))


def _is_parameter(node: Any) -> bool:
    """Whether a node is there before all others (None is), as it lies in memory."""
    if node is None:
        return True
    plain = node.op == "placeholder" and not is_traceable_wrapper_subclass(_value(node))
    return plain and _value(node).is_contiguous()


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["example_value"]
    return value


def _parameters(node: Node) -> tuple[Any, Any, Any]:
    """Weight, scale and bias of a linear layer."""
    if node.target is _INT8:
        weight, scale, bias = node.args[1:]
        return weight, scale, bias
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return node.args[1], None, bias


def _is_part_of_a_sum(node: Node) -> bool:
    return len(node.users) == 1 and next(iter(node.users)).target is operator.add


def _fuse_sum(graph: Graph, root: Node) -> None:
    """a W^T + b V^T + ... + residual, whatever the order of the additions."""
    terms: list[Node] = []
    rest: list[Node] = []

    def collect(node: Any) -> bool:
        if not isinstance(node, Node) or _value(node).shape != _value(root).shape:
            return False
        once = node is root or len(node.users) == 1
        if once and node.target is operator.add:
            return all(collect(part) for part in node.args)
        (terms if once and _is_linear(node) else rest).append(node)
        return True

    if not collect(root) or not 0 < len(terms) <= _MOST:
        return
    with graph.inserting_before(root):
        residual = rest[0] if rest else None
        for node in rest[1:]:
            residual = graph.call_function(operator.add, (residual, node))
        layers = [[term.args[0] for term in terms], *map(list, zip(*map(_parameters, terms)))]
        total = graph.call_function(torch.ops.streamcache.added.default, (*layers, residual))
    total.meta["example_value"] = _value(root)
    root.replace_all_uses_with(total)
    graph.erase_node(root)
    graph.eliminate_dead_code()


class _Layer(NamedTuple):
    """A linear layer with its norm and its activation; `out` is the node that it stands for."""

    out: Node
    weight: Any
    scale: Any
    bias: Any
    norm_weight: Any
    norm_bias: Any
    activation: str


def _fuse_neighbours(graph: Graph) -> None:
    groups: defaultdict[tuple[Any, float], list[_Layer]] = defaultdict(list)
    for node in graph.nodes:
        if _is_linear(node):
            x, weight, bias, eps = _norm_before(node.args[0])
            out, activation = _activation_after(node)
            layer = _Layer(out, *_parameters(node), weight, bias, activation)
            groups[x, eps].append(layer)
    for (x, eps), layers in groups.items():
        for begin in range(0, len(layers), _MOST):
            _replace(graph, x, eps, layers[begin : begin + _MOST])


def _replace(graph: Graph, x: Node, eps: float, layers: list[_Layer]) -> None:
    activations = ",".join(layer.activation for layer in layers)
    columns = [[layer[i] for layer in layers] for i in range(1, 6)]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first if x.op == "placeholder" else x.next):
        outs = graph.call_function(
            torch.ops.streamcache.side_by_side.default, (x, *columns, eps, activations)
        )
    for i, layer in enumerate(layers):
        with graph.inserting_after(outs):
            out = graph.call_function(operator.getitem, (outs, i))
        out.meta["example_value"] = _value(layer.out)
        layer.out.replace_all_uses_with(out)


def _norm_before(node: Any) -> tuple[Any, Any, Any, float]:
    """The input of a layer, or of the layer norm before it, with the norm's weight, bias, eps."""
    if node.target is F.layer_norm and not node.kwargs:
        x, shape, weight, bias, eps = (*node.args, None, None, 1e-5)[:5]
        affine = weight is not None and _is_parameter(weight) and _is_parameter(bias)
        if tuple(shape) == _value(x).shape[-1:] and affine:
            return x, weight, bias, eps
    return node, None, None, 0.0


def _activation_after(node: Node) -> tuple[Node, str]:
    (user, *others) = node.users
    if not others and isinstance(user, Node) and user.args[0] is node:
        options = {k: v for k, v in user.kwargs.items() if v not in (False, None, "none")}
        names = {F.gelu: "gelu", F.silu: "silu", F.relu: "relu"}
        if user.target in names and len(user.args) == 1 and not options:
            return user, names[user.target]
        if user.target is F.gelu and options == {"approximate": "tanh"}:
            return user, "gelu_tanh"
    return node, ""
