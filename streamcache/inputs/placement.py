"""Where a model is laid: on one device, over the cards of a host, or over several processes.

Over several cards its layers follow one another (accelerate's `device_map`). Processes that
torchrun has started have a part of every layer each (transformers' tensor parallel).
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from streamcache import ranks


class PlacementError(ValueError):
    """A model cannot be placed as asked; the message says what is possible."""


@dataclass(frozen=True)
class Placement:
    """Where a model is laid.

    Attributes:
        device: of what it is fed.
        over: one device; "cards" of this process; "processes" with a card each, or a core.
    """

    device: torch.device
    over: Literal["one", "cards", "processes"] = "one"

    @property
    def options(self) -> dict[str, Any]:
        """For `from_pretrained`, which then places what it reads."""
        if self.over == "cards":
            return {"device_map": "auto"}
        if self.over == "processes":
            from transformers.distributed.configuration_utils import DistributedConfig

            return {"distributed_config": DistributedConfig(tp_size=ranks.started_together())}
        return {}


def placement(device: str | torch.device) -> Placement:
    """Where "cpu", "cuda", "cuda:<index>" or "auto" (all cards) is, for one of several processes
    its own card.

    Raises:
        PlacementError: there is no such device, or not for each of the processes.
    """
    n_gpus = torch.cuda.device_count()
    gpus = ["cuda", *(f"cuda:{i}" for i in range(n_gpus))] if n_gpus else []
    known = ["cpu", *gpus, "auto"]
    if str(device) not in known:
        raise PlacementError(f"no device {str(device)!r} here: give one of {', '.join(known)}")
    if ranks.started_together() > 1:
        return _of_this_process(str(device), n_gpus)
    if str(device) == "auto":
        first = torch.device("cuda:0" if n_gpus else "cpu")
        return Placement(first, "cards" if n_gpus > 1 else "one")
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return Placement(torch.device("cuda", torch.cuda.current_device()))
    return Placement(found)


def _of_this_process(device: str, n_gpus: int) -> Placement:
    n_here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.started_together()))
    if n_gpus and (device == "cpu" or n_gpus < n_here):
        raise PlacementError(
            f"torchrun has started {n_here} processes, which take a card each, and there are "
            f"{n_gpus}: give --nproc-per-node {n_gpus} and --device cuda"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise PlacementError(f"torchrun's processes take a card each: {device} cannot be chosen")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    return Placement(torch.device("cuda", index) if n_gpus else torch.device("cpu"), "processes")


def lay(model: Any, where: Placement) -> PreTrainedModel:
    """Lay out a model that is whole on the device."""
    if where.over == "cards":
        model = _over_cards(model)
    elif where.over == "processes":
        model = _over_processes(model, where)
    else:
        model = model.to(where.device)
    laid: PreTrainedModel = model
    return laid


def _over_cards(model: Any) -> Any:
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole: dict[str, Any] = {"no_split_module_classes": list(model._no_split_modules)}
    whole["dtype"] = model.dtype
    room = get_balanced_memory(model, **whole)
    return dispatch_model(model, infer_auto_device_map(model, max_memory=room, **whole))


def _over_processes(model: Any, where: Placement) -> Any:
    kind, config = type(model), where.options["distributed_config"]
    config, _, mesh = kind.prepare_distribute_model(config)
    model = kind.maybe_distribute_model(model, config, mesh)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if hasattr(weight, "placements"):
                vars(module)["_parameters"][name] = _alone(weight)
    return model


def _alone(weight: Any) -> nn.Parameter:
    """A sharded weight without the memory of the whole, of which it is a view."""
    part = type(weight.data).from_local(
        weight.to_local().clone(),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
    return nn.Parameter(part, requires_grad=False)


def n_devices(model: nn.Module) -> int:
    """How many devices a model lies on, those of other processes included."""
    if ranks.is_together():
        return ranks.started_together()
    return max(1, len({parameter.device for parameter in model.parameters()}))
