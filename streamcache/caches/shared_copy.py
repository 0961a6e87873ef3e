"""A second model object over the same weights, to run a model without changing anything about it.

Attention implementation, training mode and rotary tables are state of the model object, which
every thread that calls the model shares. What is measured or decoded therefore runs on a copy.
"""

import copy
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
_OF_ANY_MODULE = frozenset(vars(nn.Module()))  # tensors, hooks, modules and the mode


def shared_copy(model: Model) -> Model:
    """A copy in evaluation mode that shares every tensor with the model, but rotary frequencies
    that a forward overwrites.

    Modules and configs are the copy's own; hooks are those that the model has at the time, less
    those that serve its bounded caches.
    """
    states = [(module, _state(module)) for module in model.modules()]
    memo: dict[int, Any] = {id(module): _empty(module) for module, _ in states}
    for module, state in states:
        loose = (value for value in state.values() if isinstance(value, Tensor))
        memo.update((id(x), x) for x in (*_tensors(module), *_hooks(module), *loose))
        for buffer in _switching(module):
            memo.pop(id(buffer), None)
    for _, state in states:
        for value in state.values():
            if isinstance(value, FunctionType):
                _rebound(value, memo)
    for module, state in states:
        vars(memo[id(module)]).update(copy.deepcopy(state, memo))
    shared: Model = memo[id(model)]
    return shared.eval()


def fingerprint(model: nn.Module) -> object:
    """Equal as long as a `shared_copy` made earlier is still a copy of the model.

    It is what the copy took over: which modules, tensors and hooks there are, and the numbers,
    flags and names that modules and their configs hold, also in lists (PEFT has the adapters in
    use there). The mode is left out.
    """
    configs = {id(c): c for m in model.modules() if (c := vars(m).get("config")) is not None}
    modules = [
        (type(m), [id(x) for x in (*_tensors(m), *_hooks(m))], _settings(m))
        for m in model.modules()
    ]
    return modules, [_settings(config) for config in configs.values()]


def _empty(module: nn.Module) -> nn.Module:
    kind = type(module)
    return kind.__new__(kind)


def _state(module: nn.Module) -> dict[str, Any]:
    """A module's attributes, less the hooks that serve its bounded caches.

    Dictionaries are copied at once: another thread may add to them meanwhile.
    """
    state = vars(module).copy()
    for name, value in state.items():
        if isinstance(value, dict) and value:
            kept = {k: v for k, v in value.copy().items() if not _is_ours(v)}
            state[name] = type(value)(kept)
    return state


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """What a function refers to, of the copies: tensor parallel gives a module a `forward` that
    is a function around the module's own, which deepcopy would leave as it is."""
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _rebound(value.__self__, memo))
    if not isinstance(value, FunctionType) or not value.__closure__:
        return value
    if id(value) not in memo:
        cells = tuple(CellType() for _ in value.__closure__)
        made = FunctionType(
            value.__code__, value.__globals__, value.__name__, value.__defaults__, cells
        )
        made.__kwdefaults__ = value.__kwdefaults__
        memo[id(value)] = made  # now: a function may refer to itself
        for cell, own in zip(cells, value.__closure__):
            cell.cell_contents = _rebound(own.cell_contents, memo)
    return memo[id(value)]


def _is_ours(hook: object) -> bool:
    function = getattr(hook, "func", hook)  # of a functools.partial
    return getattr(function, "__module__", None) == "streamcache.caches.hooks"


def _switching(module: nn.Module) -> list[Tensor]:
    """Rotary frequencies that depend on the length of the input."""
    kinds = str(getattr(module, "rope_type", ""))
    if "dynamic" not in kinds and "longrope" not in kinds:
        return []
    buffers = module._buffers.copy().items()
    return [buffer for name, buffer in buffers if "inv_freq" in name and buffer is not None]


def _tensors(module: nn.Module) -> list[Tensor | None]:
    return [*module._parameters.copy().values(), *module._buffers.copy().values()]


def _hooks(module: nn.Module) -> list[object]:
    """Its own, and what accelerate puts on a module that it moves between devices."""
    hooks: list[object] = []
    for name, value in vars(module).copy().items():
        if "hook" in name:
            found = value.copy().values() if isinstance(value, dict) else [value]
            hooks += (hook for hook in found if not _is_ours(hook))
    return hooks


def _settings(holder: object) -> dict[str, object]:
    values = vars(holder).copy().items()
    return {k: _frozen(v) for k, v in values if k not in _OF_ANY_MODULE and _is_plain(v)}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.copy().values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | None)


def _frozen(value: object) -> object:
    """As it is now: a list may be changed in place."""
    return repr(value) if isinstance(value, dict | list | set) else value
