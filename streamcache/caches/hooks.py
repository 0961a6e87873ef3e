"""Hooks that let a model be called as usual with a bounded cache in `past_key_values`.

A cache sees keys and values only. What it cannot see, and what would be silently wrong, is settled
around the forward of the decoder, the part of a model that has the layers: padding is left out,
inputs inside which something is evicted go through in one causal pass, positions are those the
cache expects, and afterwards every layer must have been fed. A hook on the whole model counts the
tokens only when its forward has ended: one that fails in the output embedding can be run again.
Calls with other caches pass through untouched, and the hooks go with the last cache of a model.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from types import MethodType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from streamcache.caches.arguments import (
    has_images_in,
    is_step,
    padding_in,
    refuse_no_cache,
    refuse_positions,
)
from streamcache.caches.call import Call, HookedCache
from streamcache.caches.feeding import feed_all_but_last, feed_rows_apart, placed
from streamcache.caches.outputs import inference_only, joined
from streamcache.caches.padding import PaddingError
from streamcache.caches.side_by_side import SideBySide
from streamcache.caches.signatures import CACHE_NAMES, cache_name, parameters_of


class _Hooked:
    """A module with hooks, and the caches for which it has them."""

    def __init__(self) -> None:
        self.caches: WeakSet[Any] = WeakSet()
        self.handles: list[RemovableHandle] = []


_hooked: WeakKeyDictionary[nn.Module, _Hooked] = WeakKeyDictionary()
_lock = threading.RLock()

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Keep a function that changes from step to step out of what `torch.compile` compiles.

    Outside of it the function is called as it is: leaving a compiler takes 6 µs a call, and asking
    for the compiler of this function alone takes half of what `is_compiling` takes.
    """
    disabled = torch.compiler.disable(function)

    @wraps(function)
    def call(*args: Any) -> Any:
        return (disabled if is_dynamo_compiling() else function)(*args)

    return call  # type: ignore[return-value]


def attach(past: HookedCache, model: nn.Module, decoder: nn.Module) -> None:
    """Register the hooks on a model and its decoder, once, for as long as a cache of it lives."""
    past.modules = (decoder, *(m for m in _wrappers(model) if m is not decoder))
    for module in past.modules:
        # On one line, as below: no exception can come between the block's end and the release.
        with _lock: _register(past, module, module is decoder)  # fmt: skip  # noqa: E701


def _register(past: HookedCache, module: nn.Module, of_decoder: bool) -> None:
    hooked = _hooked.setdefault(module, _Hooked())
    hooked.caches.add(past)
    weakref.finalize(past, _detach, weakref.ref(module)).atexit = False
    if not hooked.handles:
        _remove_own(module)
        before, after = (_before, _after) if of_decoder else (_before_model, _after_model)
        hooked.handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        if hasattr(module, "generate_batch"):
            vars(module)["generate_batch"] = MethodType(generate_batch, module)


def _is_own(hook: object) -> bool:
    """Whether a hook is one of these, which find no cache on a copy of the module they are on."""
    return hook in (_before, _after, _before_model, _after_model)


def _remove_own(module: nn.Module) -> None:
    """Of a copy of a model with hooks: take away those that came along."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if _is_own(hook):
                del hooks[key]
    vars(module).pop("generate_batch", None)


def _wrappers(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward is one of the whole model: a model, and a wrapper around it."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose hooks are the model's
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)
    return [model] if inner is model else [model, inner]


def _detach(module_ref: "weakref.ref[nn.Module]") -> None:
    if (module := module_ref()) is not None:
        with _lock: _unregister(module)  # fmt: skip  # noqa: E701


def _unregister(module: nn.Module) -> None:
    """Remove the hooks of a module that no living cache needs."""
    hooked = _hooked.get(module)
    if hooked is None or any(True for _ in hooked.caches):
        return
    for handle in hooked.handles:
        handle.remove()
    vars(module).pop("generate_batch", None)
    del _hooked[module]


def generate_batch(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    """transformers' continuous batching, which would ignore a bounded cache without an error."""
    if _cache_in(model, kwargs) is not None:
        raise ValueError(
            "generate_batch uses a paged cache that is not bounded: call generate with a bounded "
            "cache instead"
        )
    return type(model).generate_batch(model, *args, **kwargs)  # type: ignore[attr-defined]


def _cache_in(module: nn.Module, kwargs: dict[str, Any]) -> Any:
    """The bounded cache of this module that a call passes, if it does."""
    for name in CACHE_NAMES:
        past = kwargs.get(name)
        if past is not None and module in getattr(past, "modules", ()):
            return past.owner if isinstance(past, SideBySide) else past
    return None


def _named(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """The arguments of a call by name, the bounded cache by the name that the forward knows.

    And this cache, if there is one.
    """
    forward = type(module).forward
    named = {**dict(zip(parameters_of(forward), args)), **kwargs} if args else dict(kwargs)
    past = _cache_in(module, named)
    if past is not None and named.get(known := cache_name(forward)) is not past:
        named = {name: value for name, value in named.items() if value is not past}
        named[known] = past
    return named, past


@uncompiled
def _before_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    named, past = _named(model, args, kwargs)
    if past is None:
        return None
    past.require_intact()
    refuse_no_cache(named)
    has_images = has_images_in(named)
    padding: Sequence[int] = ()
    if named.get("attention_mask") is not None:
        padding = padding_in(past, named)
        named["attention_mask"] = None
    elif (outer := past.call) and not outer.in_decoder and outer.module is not model:
        padding = outer.padding  # a wrapper's hook has taken the mask away
    if padding and has_images:
        raise PaddingError("images and padding cannot be combined: feed prompts of equal length")
    past.call = Call(model, has_images, padding)
    return (), named


@uncompiled
def _after_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
) -> None:
    past = _cache_in(model, kwargs)
    if past is None:
        return
    call, past.call = past.call, None
    if call and call.of_model and outputs is not None:  # None: its forward has raised
        past.finish()


@uncompiled
def _before(
    decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    kwargs, past = _named(decoder, args, kwargs)
    if past is None:
        return None
    call = past.call
    if call is None or call.in_decoder:  # the decoder is called by itself
        past.require_intact()
        call = past.call = Call()
    else:
        call.of_model = True
    past.require_same_model()
    call.in_decoder = True
    key = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
    tokens: Tensor = kwargs[key]
    if tokens.shape[1] == 0:
        raise ValueError(
            f"there are no tokens to feed: the cache has seen all {past.seen} tokens so far "
            "(pass `generate` the whole conversation: it skips the tokens that were seen)"
        )
    refuse_no_cache(kwargs)
    if not call.of_model or call.has_images:  # else the model has made it from none
        call.padding = padding_in(past, kwargs, call.has_images)
    kwargs["attention_mask"] = None
    if call.padding or past.parts:
        return (), feed_rows_apart(decoder, past, call, key, kwargs)
    if (position_ids := kwargs.get("position_ids")) is not None:
        refuse_positions(position_ids, past.get_seq_length(), is_step(past, kwargs))
    if tokens.shape[1] > 1 and past.evicts_inside(tokens.shape[1]):
        kwargs = feed_all_but_last(decoder, past, call, key, kwargs)
    return (), placed(decoder, past, key, kwargs)


@uncompiled
def _after(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> Any:
    past = _cache_in(decoder, kwargs)
    if past is None or (call := past.call) is None or outputs is None:
        return outputs
    if call.pieces:
        outputs = joined([*call.pieces, outputs], outputs["last_hidden_state"].shape[0])
        call.pieces = []
    if past.parts:
        for name, value in outputs.items():
            if isinstance(value, SideBySide):
                outputs[name] = past
    outputs = inference_only(outputs)
    if call.as_tuple:
        outputs = outputs.to_tuple()
    if not call.of_model:
        past.call = None
        past.finish()
    return outputs
