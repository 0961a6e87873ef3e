"""Sums over the processes that run one model, in a graph that can be captured.

A step of one token sums a few kilobytes behind each layer. Measured in a CUDA graph on two H100
without NVLink multicast, 8 to 64 KB take NCCL 7.8 to 8.5 us, and the one-shot and two-shot kernels
of PyTorch's symmetric memory 8.6 to 9.4 us.
"""

from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, distributed
from torch.fx import Graph, Node


def _group(name: str) -> Any:
    find: Any = torch._C._distributed_c10d._resolve_process_group
    return find(name)


@torch.library.custom_op("streamcache::sum_over_ranks", mutates_args=())
def _sum(part: Tensor, group: str) -> Tensor:
    total = part.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=_group(group))
    return total


@_sum.register_fake
def _(part: Tensor, group: str) -> Tensor:
    return torch.empty_like(part, memory_format=torch.contiguous_format)


@torch.library.custom_op("streamcache::gather_from_ranks", mutates_args=())
def _gather(part: Tensor, begin: int, width: int, group: str) -> Tensor:
    whole = part.new_zeros((*part.shape[:-1], width))
    whole[..., begin : begin + part.shape[-1]] = part
    distributed.all_reduce(whole, group=_group(group))
    return whole


@_gather.register_fake
def _(part: Tensor, begin: int, width: int, group: str) -> Tensor:
    return part.new_empty((*part.shape[:-1], width))


def sum_over_ranks(part: Tensor, group: str) -> Tensor:
    """The sum of the parts that all processes of a group have, in each of them."""
    total: Tensor = _sum(part, group)
    return total


def gather_from_ranks(part: Tensor, begin: int, width: int, group: str) -> Tensor:
    """The parts [..., n] of all processes side by side, [..., width].

    Args:
        begin: where the part of this process stands.
    """
    whole: Tensor = _gather(part, begin, width, group)
    return whole


def move_sums_inside(graph: Graph) -> None:
    """residual + sum(x) + sum(y) becomes sum(x + y + residual), the residual in the first process.

    So a layer and the residual are one launch, as in a whole model, and two sums are one.
    """
    for root in list(graph.nodes):
        is_part = len(root.users) == 1 and next(iter(root.users)).target is add
        if root.target is add and not is_part:
            _move_inside(graph, root)


def _move_inside(graph: Graph, root: Node) -> None:
    inside: list[Node] = []
    outside: list[Node] = []
    groups: set[str] = set()
    kind = _kind(root)

    def collect(node: Any) -> bool:
        if not isinstance(node, Node) or _kind(node) != kind:
            return False
        once = node is root or len(node.users) == 1
        if once and node.target is add:
            return all(collect(part) for part in node.args)
        if once and node.target is torch.ops.streamcache.sum_over_ranks.default:
            inside.append(node.args[0])  # type: ignore[arg-type]
            groups.add(node.args[1])  # type: ignore[arg-type]
        else:
            outside.append(node)
        return True

    if not collect(root) or len(groups) != 1:
        return
    (group,) = groups
    terms = inside + (outside if _group(group).rank() == 0 else [])

    def added(left: Node, right: Node) -> Node:
        node = graph.call_function(add, (left, right))
        node.meta["example_value"] = root.meta["example_value"]
        return node

    with graph.inserting_before(root):
        part = reduce(added, terms)
        total = graph.call_function(torch.ops.streamcache.sum_over_ranks.default, (part, group))
    total.meta["example_value"] = root.meta["example_value"]
    root.replace_all_uses_with(total)
    graph.erase_node(root)
    graph.eliminate_dead_code()


def _kind(node: Node) -> tuple[Any, Any]:
    value = node.meta.get("example_value")
    return getattr(value, "shape", None), getattr(value, "dtype", None)
