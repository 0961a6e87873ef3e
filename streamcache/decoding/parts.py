"""A model of which each process has a part, as plain layers and sums over the processes.

transformers' tensor parallel runs each sharded layer between DTensors and all-reduces in place. A
captured step has the same parts as plain weights, which the fusions know, and sums that can be
moved in its graph (`kernels.ranks`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from streamcache.caches.sharded import is_sharded
from streamcache.caches.shared_copy import shared_copy
from streamcache.decoding.kernels.ranks import gather_from_ranks, sum_over_ranks


class UnknownPartsError(ValueError):
    """Layers are sharded in a way that is not known here."""


def with_plain_parts(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself if it is whole; else a copy that computes the same with plain weights.

    Raises:
        UnknownPartsError: a layer's parts are summed or gathered in a way that is not known here.
    """
    if not any(is_sharded(weight) for weight in model.parameters()):
        return model
    copy = shared_copy(model)
    for module in list(copy.modules()):
        for name, child in module.named_children():
            if "forward" in vars(child):
                setattr(module, name, _plain(child))
    if any(is_sharded(weight) for weight in copy.parameters()):
        raise UnknownPartsError("some of its weights are sharded in a way that is not known here")
    return copy


def _plain(module: nn.Module) -> nn.Module:
    wrapped = vars(module).pop("forward")
    known = dict(zip(wrapped.__code__.co_freevars, wrapped.__closure__ or ()))
    weight: Any = module._parameters.get("weight")
    if weight is None or not is_sharded(weight):
        return module  # replicated: its forward adds what training needs
    style, mesh = known["self"].cell_contents, known["mesh"].cell_contents
    group = mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")
    part = _Part(module, group)
    kind = type(style).__name__
    if isinstance(module, nn.Embedding) and weight.placements[0].dim == 0:
        return _SummedEmbedding(part, weight.shape[0])
    if isinstance(module, nn.Linear) and kind == "ColwiseParallel":
        is_whole = style.output_layouts.is_replicate()
        return _Gathered(part, weight.shape[0]) if is_whole else _Split(part)
    if isinstance(module, nn.Linear) and kind == "RowwiseParallel":  # noqa: SIM102
        if style.input_layouts.is_shard() and style.output_layouts.is_replicate():
            return _Summed(part)
    raise UnknownPartsError(f"{type(module).__name__} layers are sharded by {kind}")


class _Part:
    """What a process has of a layer."""

    def __init__(self, module: nn.Module, group: Any):
        self.group = str(group.group_name)
        self.rank, self.n_ranks = group.rank(), group.size()
        self.weight, self.bias = (_local(module._parameters.get(n)) for n in ("weight", "bias"))

    def begin(self, whole: int) -> int:
        """The first of this process's rows, of which the last process may have fewer."""
        return min(whole, -(-whole // self.n_ranks) * self.rank)


def _local(weight: Any) -> nn.Parameter | None:
    if weight is None:
        return None
    part = weight.to_local() if is_sharded(weight) else weight.data
    return nn.Parameter(part.detach().contiguous(), requires_grad=False)


class _Plain(nn.Module):
    def __init__(self, part: _Part):
        super().__init__()
        self.weight, self.bias, self.group = part.weight, part.bias, part.group


class _Split(_Plain):
    """Each process computes some of the outputs, and needs no others."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)


class _Summed(_Plain):
    """Each process has some of the inputs; the first adds the bias."""

    def __init__(self, part: _Part):
        super().__init__(part)
        if part.rank:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return sum_over_ranks(F.linear(x, self.weight, self.bias), self.group)


class _Gathered(_Plain):
    """Each process computes some of the outputs, and all are needed."""

    def __init__(self, part: _Part, n_outputs: int):
        super().__init__(part)
        self.begin, self.n_outputs = part.begin(n_outputs), n_outputs

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        out = F.linear(x, self.weight, self.bias)
        return gather_from_ranks(out, self.begin, self.n_outputs, self.group)


class _SummedEmbedding(_Plain):
    """Each process has some of the vocabulary."""

    def __init__(self, part: _Part, n_tokens: int):
        super().__init__(part)
        self.begin = part.begin(n_tokens)

    def forward(self, ids: Tensor) -> Tensor:
        assert self.weight is not None
        row = ids - self.begin
        is_here = (row >= 0) & (row < self.weight.shape[0])
        found = F.embedding(torch.where(is_here, row, 0), self.weight)
        return sum_over_ranks(torch.where(is_here[..., None], found, 0), self.group)
