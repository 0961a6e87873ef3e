"""A torch.compile backend: a model's linear layers become few launches, inductor does the rest.

The graph of a decode step says which layers read the same input, which gate each other and which
are added up. Linear layers are taken together with what stands right before (a norm), right after
(an activation, a gate, a sum, a residual) and beside them, by what the graph computes and not by
the model's name. RMS norms of queries and keys become part of the attention.
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

from streamcache.caches import attention_override  # noqa: F401 (registers its op)
from streamcache.decoding.kernels import linear, quantized  # noqa: F401 (likewise)
from streamcache.decoding.kernels.fold_rope import drop_rotations
from streamcache.decoding.kernels.graph_nodes import is_parameter, value
from streamcache.decoding.kernels.graph_norms import norm_before, rms_norm
from streamcache.decoding.kernels.ranks import move_sums_inside

_MOST = 3  # layers a launch
_QUANTIZED = torch.ops.streamcache.quantized_linear.default
_GROUPED = torch.ops.streamcache.grouped_linear.default
_GATED = torch.ops.streamcache.gated_linear.default
_SUMMED_NORM = torch.ops.streamcache.summed_norm.default
_SUMMED = torch.ops.streamcache.summed_linear.default
_ATTEND = torch.ops.streamcache.attend.default
_ACTIVATIONS: dict[Any, str] = {F.gelu: "gelu", F.silu: "silu", F.relu: "relu"}


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
    move_sums_inside(graph)
    for node in list(graph.nodes):
        if node.target is operator.add and not _is_part_of_a_sum(node):
            _fuse_sum(graph, node)
    for node in list(graph.nodes):
        if node.target is operator.mul:
            _fuse_gate(graph, node)
    _fuse_neighbours(graph)
    for node in list(graph.nodes):
        if node.target is operator.add:
            _fuse_summed_norm(graph, node)
    for node in list(graph.nodes):
        if node.target is _ATTEND:
            _fuse_head_norms(node)
    for node in graph.nodes:
        if node.target is _SUMMED:
            _start_early(node)
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
    if not isinstance(node, Node) or node.target not in (F.linear, _QUANTIZED):
        return False
    few = prod(value(node.args[0]).shape[:-1]) <= linear.MAX_TOKENS
    return few and all(is_parameter(p) for p in _parameters(node))


def _parameters(node: Node) -> tuple[Any, Any, Any]:
    """Weight, scale and bias of a linear layer."""
    if node.target is _QUANTIZED:
        weight, scale, bias = node.args[1:]
        return weight, scale, bias
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return node.args[1], None, bias


def _is_part_of_a_sum(node: Node) -> bool:
    return len(node.users) == 1 and next(iter(node.users)).target is operator.add


def _fuse_sum(graph: Graph, root: Node) -> None:
    """a W^T + b V^T + ... + residual, in any order of the additions."""
    terms: list[Node] = []
    rest: list[Node] = []

    def collect(node: Any) -> bool:
        if not isinstance(node, Node) or value(node).shape != value(root).shape:
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
            residual.meta["example_value"] = value(root)
        layers = [[term.args[0] for term in terms], *map(list, zip(*map(_parameters, terms)))]
        total = graph.call_function(_SUMMED, (*layers, residual))
    total.meta["example_value"] = value(root)
    root.replace_all_uses_with(total)
    graph.erase_node(root)
    graph.eliminate_dead_code()


class _Layer(NamedTuple):
    """A linear layer with its norm and its activation, which together stand for `out`."""

    node: Node
    out: Node
    weight: Any
    scale: Any
    bias: Any
    gain: Any
    shift: Any
    activation: str


def _fuse_gate(graph: Graph, node: Node) -> None:
    """activation(x W^T) * x V^T, of two layers or of the halves of one."""
    for gate, up in (node.args, node.args[::-1]):
        activation = _activation(gate)
        if not activation or len(gate.users) != 1:  # type: ignore[union-attr]
            continue
        halves = [gate.args[0], up]  # type: ignore[union-attr]
        layers = [_half_of(*halves)] if _half_of(*halves) else halves
        if not all(_is_linear(n) for n in layers) or any(len(n.users) > 1 for n in halves):  # type: ignore[union-attr]
            continue
        norms = {norm_before(layer.args[0]) for layer in layers}  # type: ignore[union-attr]
        shapes = {value(half).shape for half in halves}
        if len(norms) > 1 or len(shapes) > 1:
            continue
        x, *norm = norms.pop()
        weights, scales, biases = map(list, zip(*map(_parameters, layers)))  # type: ignore[arg-type]
        with graph.inserting_before(node):
            out = graph.call_function(_GATED, (x, weights, scales, biases, *norm, activation))
        out.meta["example_value"] = value(node)
        node.replace_all_uses_with(out)
        graph.erase_node(node)
        graph.eliminate_dead_code()
        return


def _half_of(first: Any, second: Any) -> Node | None:
    """The node of which two are the halves, and nothing else is made."""
    if not all(isinstance(n, Node) and n.target is operator.getitem for n in (first, second)):
        return None
    whole = first.args[0]
    if whole is not second.args[0] or (first.args[1], second.args[1]) != (0, 1):
        return None
    dim = whole.args[2] if len(whole.args) > 2 else whole.kwargs.get("dim", 0)
    is_halves = whole.target in ("chunk", torch.chunk) and whole.args[1] == 2 and dim == -1
    base: Node = whole.args[0]
    return base if is_halves and len(whole.users) == 2 and len(base.users) == 1 else None


def _fuse_summed_norm(graph: Graph, node: Node) -> None:
    """residual + norm(x), after the layers of a block."""
    for residual, term in (node.args, node.args[::-1]):
        norm = rms_norm(term)
        shape = value(node).shape
        if norm is None or not isinstance(residual, Node) or value(residual).shape != shape:
            continue
        if shape[:-1].numel() > linear.MAX_TOKENS or value(residual).dtype != value(term).dtype:
            continue
        with graph.inserting_before(node):
            out = graph.call_function(
                _SUMMED_NORM, (norm.x, residual, norm.gain, norm.eps, norm.kind)
            )
        out.meta["example_value"] = value(node)
        node.replace_all_uses_with(out)
        graph.erase_node(node)
        return


def _fuse_neighbours(graph: Graph) -> None:
    groups: defaultdict[tuple[Any, float, str], list[_Layer]] = defaultdict(list)
    for node in graph.nodes:
        if _is_linear(node):
            x, gain, shift, eps, kind = norm_before(node.args[0])
            out, activation = _activation_after(node)
            layer = _Layer(node, out, *_parameters(node), gain, shift, activation)
            groups[x, eps, kind].append(layer)
    for (_, eps, kind), layers in groups.items():
        x = norm_before(layers[0].node.args[0]).x  # what a group before has made of it
        if len(layers) == 1 and not kind and not layers[0].activation:
            _replace_alone(graph, x, layers[0])
            continue
        for begin in range(0, len(layers), _MOST):
            _replace(graph, x, eps, kind, layers[begin : begin + _MOST])


def _replace_alone(graph: Graph, x: Node, layer: _Layer) -> None:
    with graph.inserting_before(layer.out):
        parts = [x], [layer.weight], [layer.scale], [layer.bias]
        out = graph.call_function(_SUMMED, (*parts, None))
    out.meta["example_value"] = value(layer.out)
    layer.out.replace_all_uses_with(out)


def _replace(graph: Graph, x: Node, eps: float, kind: str, layers: list[_Layer]) -> None:
    activations = ",".join(layer.activation for layer in layers)
    columns = [list(column) for column in zip(*(layer[2:7] for layer in layers))]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first if x.op == "placeholder" else x.next):
        outs = graph.call_function(_GROUPED, (x, *columns, eps, kind, activations))
    for i, layer in enumerate(layers):
        with graph.inserting_after(outs):
            out = graph.call_function(operator.getitem, (outs, i))
        out.meta["example_value"] = value(layer.out)
        layer.out.replace_all_uses_with(out)


def _fuse_head_norms(node: Node) -> None:
    """RMS norms of queries and keys are taken over by the attention."""
    plain, norms = [], []
    for states in node.args[:2]:
        moved = isinstance(states, Node) and states.target == "transpose"
        norm = rms_norm(states.args[0]) if moved else None  # type: ignore[union-attr]
        if norm is None:
            return
        with node.graph.inserting_before(node):
            plain.append(node.graph.call_method("transpose", (norm.x, *states.args[1:])))  # type: ignore[union-attr]
        plain[-1].meta["example_value"] = value(states)
        norms.append(norm)
    query, key = norms
    if (query.eps, query.kind) == (key.eps, key.kind):
        offset = float(query.kind == "rms_unit_offset")
        node.args = (*plain, *node.args[2:8], query.gain, key.gain, query.eps, offset)


def _start_early(node: Node) -> None:
    """In a parallel block, the product of the MLP need not wait for the attention.

    Its input comes from the launch that gives the attention its query, and the other input from
    the attention, so that the attention is always launched between that launch and the sum.
    """
    xs, *parts, residual = node.args
    for i, x in enumerate(xs):  # type: ignore[arg-type]
        origin = _origin(x, _GROUPED)
        others = [_origin(other, _ATTEND) for j, other in enumerate(xs) if j != i]  # type: ignore[arg-type]
        if x.target is not operator.getitem or origin is None or not others:
            continue
        if all(other is not None and _origin(other, _GROUPED) is origin for other in others):
            order = [i, *(j for j in range(len(others) + 1) if j != i)]
            node.args = (*([column[j] for j in order] for column in (xs, *parts)), residual, True)  # type: ignore[index]
            return


def _origin(node: Any, target: Any) -> Node | None:
    """The nearest node of a target from which a node comes, by first arguments."""
    node = node.args[0] if isinstance(node, Node) and node.args else None
    while isinstance(node, Node) and node.target is not target:
        node = node.args[0] if node.args else None
    return node


def _activation_after(node: Node) -> tuple[Node, str]:
    (user, *others) = node.users
    if not others and isinstance(user, Node) and user.args[0] is node and _activation(user):
        return user, _activation(user)
    return node, ""


def _activation(node: Any) -> str:
    """The name of an activation, or nothing for any other node."""
    if not isinstance(node, Node) or len(node.args) != 1:
        return ""
    options = {k: v for k, v in node.kwargs.items() if v not in (False, None, "none")}
    if node.target is F.gelu and options == {"approximate": "tanh"}:
        return "gelu_tanh"
    return _ACTIVATIONS.get(node.target, "") if not options else ""
