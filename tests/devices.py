"""Two devices on a CPU: tensors that say where they lie, and refuse to meet.

`two_devices` is a context in which `cpu:0` and `cpu:1`, devices that this PyTorch does not have,
can be used like two GPUs. What is computed there is computed on the CPU. An operation on tensors of
unlike devices raises what CUDA raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

FIRST, SECOND = torch.device("cpu:0"), torch.device("cpu:1")
_aten = torch.ops.aten
_MOVES = {_aten.copy_.default, _aten._to_copy.default}
_READS = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_same_size.default}


class Elsewhere(Tensor):
    """A tensor of the CPU that says it lies on another device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Elsewhere":
        with torch.inference_mode(False):  # else it may not be sliced
            made: Elsewhere = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=device,
            )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()


def held(tensor: Tensor) -> Tensor:
    """What lies elsewhere, as a tensor of the CPU."""
    assert isinstance(tensor, Elsewhere)
    return tensor.held


class _NewTensors(TorchFunctionMode):
    """`torch.tensor` fills memory of the CPU without a word to a dispatch mode."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        made = function(*args, **kwargs)
        if function is torch.tensor and device is not None and _is_made_up(device):
            return Elsewhere(made, torch.device(device))
        return made


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with self:  # in inference mode composite operations come as they are
            if function.namespace == "streamcache":
                with _NewTensors():
                    return OPDEFS[function.name()]._init_fn(*args, **(kwargs or {}))
            parts = function.decompose(*args, **(kwargs or {}))
        return _run(function, args, kwargs or {}) if parts is NotImplemented else parts


@contextmanager
def two_devices() -> Iterator[None]:
    """A context in which there are `cpu:0` and `cpu:1`."""
    with _NewTensors(), _Devices():
        yield


def _is_made_up(device: Any) -> bool:
    return torch.device(device).index is not None


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    target = kwargs.get("device")
    if target is None:
        target = _device_of(function, tensors)
    if _is_made_up(target):
        kwargs = {**kwargs, **({"device": "cpu"} if "device" in kwargs else {})}
    kwargs.pop("pin_memory", None)
    plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs))
    result = function(*plain_args, **plain_kwargs)
    own = {id(t.held): t for t in tensors if isinstance(t, Elsewhere)}
    if function in _READS or not _is_made_up(target):
        return result

    def placed(tensor: Tensor) -> Tensor:
        same = own.get(id(tensor))
        return Elsewhere(tensor, torch.device(target)) if same is None else same

    return tree_map_only(Tensor, placed, result)


def _device_of(function: Any, tensors: list[Tensor]) -> torch.device:
    """Of what an operation gives: its tensors agree, but for numbers and indices of the CPU."""
    if function in _MOVES:
        return tensors[0].device
    places = {t.device for t in tensors if _is_made_up(t.device)}
    on_cpu = [t for t in tensors if not _is_made_up(t.device) and t.ndim]
    is_index = function in (_aten.index.Tensor, _aten.index_put_.default)
    if len(places) > 1 or (places and on_cpu and not is_index):
        found = sorted({str(t.device) for t in tensors})
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {found} ({function})"
        )
    return next(iter(places), torch.device("cpu"))


def laid_over_two(model: PreTrainedModel) -> PreTrainedModel:
    """The model as accelerate's `dispatch_model` leaves it: first layers and embedding on the first
    device, the last layers, the norm behind them and the head on the second."""
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    first = {id(m) for layer in layers[: len(layers) // 2] for m in layer.modules()}
    first |= {id(model.get_input_embeddings())}
    blocks = [*layers, model.get_input_embeddings(), model.get_output_embeddings()]
    inside = {id(m) for block in blocks for m in block.modules()}
    rest = [m for m in model.modules() if id(m) not in inside and not list(m.children())]
    with torch.no_grad():
        for module in model.modules():
            device = FIRST if id(module) in first else SECOND
            for name, parameter in module.named_parameters(recurse=False):
                held = nn.Parameter(Elsewhere(parameter.data, device), requires_grad=False)
                module.register_parameter(name, held)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = Elsewhere(buffer, device)
    for block in [*blocks, *rest]:
        device = FIRST if id(block) in first else SECOND
        add_hook_to_module(block, AlignDevicesHook(execution_device=device))
    add_hook_to_module(model, AlignDevicesHook(execution_device=FIRST, io_same_device=True))
    vars(model)["hf_device_map"] = {"first": FIRST, "second": SECOND}
    return model
