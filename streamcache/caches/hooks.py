"""Hooks that let a model be called as usual with a bounded cache in `past_key_values`.

A cache sees keys and values only. What it cannot see, and what would be silently wrong, is settled
around the forward of the decoder, the part of a model that has the layers: padding is left out,
inputs inside which something is evicted go through in one causal pass, positions are those the
cache expects, and
afterwards every layer must have been fed. A hook on the whole model counts the tokens only when
its forward has ended: one that fails in the output embedding can be run again. Calls with other
caches pass through untouched, and the hooks go with the last cache of a model.
"""

import re
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from types import MethodType
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from streamcache.caches.attention_override import AttentionOverrideError, with_override
from streamcache.caches.one_pass import OnePass
from streamcache.caches.outputs import inference_only, joined
from streamcache.caches.padding import PaddingError as PaddingError
from streamcache.caches.padding import padding_of
from streamcache.caches.probe import ModelGeometry
from streamcache.caches.side_by_side import Part, SideBySide, feed_apart
from streamcache.caches.signatures import CACHE_NAMES, cache_name, parameters_of
from streamcache.policy import Policy


class HookedCache(Protocol):
    """What the hooks must know of a cache: `BoundedCache`."""

    policy: Policy
    geometry: ModelGeometry
    seen: int
    parts: list[Part]
    modules: tuple[nn.Module, ...]  # that have hooks for it: `attach` sets them
    call: "Call | None"  # the current one, or one that was interrupted

    @property
    def size(self) -> int: ...
    @property
    def next_position(self) -> int: ...
    @property
    def padding(self) -> list[int]: ...
    def begin_parts(self, padding: Sequence[int]) -> list[Part]: ...
    def require_intact(self) -> None: ...
    def require_same_model(self) -> None: ...
    def prepare(self, n_tokens: int, rebase: bool = True) -> None: ...
    def evicts_inside(self, n_tokens: int) -> bool: ...
    def pieces(self, n_tokens: int) -> list[int]: ...
    def begin_pass(self, copy: PreTrainedModel) -> OnePass | None: ...
    def get_seq_length(self, layer_idx: int = 0) -> int: ...
    def beyond_rollback(self, n_tokens: int) -> int: ...
    def take(self, one_pass: OnePass) -> None: ...
    def finish(self, more_to_come: bool = False) -> None: ...


class Call:
    """A call with a cache, from its beginning until its tokens are counted."""

    in_decoder = False
    of_model = False  # whether the tokens are counted when the whole model has ended
    as_tuple = False

    def __init__(
        self,
        module: nn.Module | None = None,
        has_images: bool = False,
        padding: Sequence[int] = (),
    ):
        self.module = module  # the model or the wrapper that was called last
        self.has_images = has_images
        self.padding = padding  # of each row
        self.pieces: list[Any] = []  # outputs of the decoder, of all pieces but the last


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
    _refuse_no_cache(named)
    has_images = _has_images(named)
    padding: Sequence[int] = ()
    if named.get("attention_mask") is not None:
        padding = _padding_in(past, named)
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
    _refuse_no_cache(kwargs)
    if not call.of_model or call.has_images:  # else the model has made it from none
        call.padding = _padding_in(past, kwargs, call.has_images)
    kwargs["attention_mask"] = None
    if call.padding or past.parts:
        return (), _side_by_side(decoder, past, call, key, kwargs)
    if (position_ids := kwargs.get("position_ids")) is not None:
        _refuse_positions(position_ids, past.get_seq_length(), _is_step(past, kwargs))
    if tokens.shape[1] > 1 and past.evicts_inside(tokens.shape[1]):
        kwargs = _feed_all_but_last(decoder, past, call, key, kwargs)
    return (), _placed(decoder, past, key, kwargs)


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


def _placed(
    decoder: nn.Module, past: HookedCache, key: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments for tokens that the cache is prepared for, at the positions it expects."""
    positioned = "position_ids" in parameters_of(type(decoder).forward)
    n_tokens = kwargs[key].shape[1]
    past.prepare(n_tokens, rebase=positioned)
    if not positioned:
        return kwargs
    first = past.next_position
    position_ids = torch.arange(first, first + n_tokens, device=kwargs[key].device)
    kwargs["position_ids"] = position_ids.unsqueeze(0)
    return kwargs


def _feed_all_but_last(
    decoder: nn.Module, past: HookedCache, call: Call, key: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Feed the beginning of an input inside which something is evicted; the arguments for the rest.

    All but the last token go through a copy of the decoder in one causal pass, where each of them
    sees what it would see if it came alone. Where the decoder or the cache does not allow that,
    pieces are fed, so short that only the first token of each evicts.
    """
    tokens: Tensor = kwargs[key]
    _refuse_splitting(decoder, key, kwargs, tokens.shape[1])
    kwargs = _with_named_outputs(decoder, call, kwargs)
    own = {key, "attention_mask", "position_ids", "use_cache", "cache_position", *CACHE_NAMES}
    options = {k: v for k, v in kwargs.items() if k not in own and v is not None}
    if (outputs := _feed_in_passes(decoder, past, tokens[:, :-1], options)) is not None:
        call.pieces = outputs
        return {**kwargs, key: tokens[:, -1:]}
    pieces = tokens.split(past.pieces(tokens.shape[1]), dim=1)
    for piece in pieces[:-1]:
        inputs = _placed(decoder, past, key, {**kwargs, key: piece})
        call.pieces.append(decoder.forward(**inputs))
        past.finish(more_to_come=True)
    return {**kwargs, key: pieces[-1]}


def _with_named_outputs(decoder: nn.Module, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that give outputs by name; the call knows whether a tuple was asked for."""
    default = getattr(decoder.config, "return_dict", True)
    call.as_tuple = kwargs.get("return_dict", default) is False
    return {**kwargs, "return_dict": True} if call.as_tuple else kwargs


def _side_by_side(
    decoder: nn.Module, past: HookedCache, call: Call, key: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments for the last token of each row, where rows are of unequal length.

    All tokens before are fed at once: those of rows of one length together, and without padding.
    """
    tokens: Tensor = kwargs[key]
    n_rows, n_tokens = tokens.shape[:2]
    positioned = "position_ids" in parameters_of(type(decoder).forward)
    if not positioned and any(layer.rotation for layer in past.geometry.layers):
        raise PaddingError("rows of unequal length need a model that takes position_ids")
    parts = past.begin_parts(call.padding) if call.padding else past.parts
    if n_rows != sum(part.n_rows for part in parts):
        raise ValueError(
            f"the cache holds a batch of {sum(part.n_rows for part in parts)} streams and was "
            f"given {n_rows}: call reset() before the batch size changes"
        )
    _refuse_positions_of(past, parts, kwargs.get("position_ids"), n_tokens)
    kwargs = _with_named_outputs(decoder, call, kwargs)
    if n_tokens > 1:
        _refuse_splitting(decoder, key, kwargs, n_tokens)
        name = cache_name(type(decoder).forward)
        own_names = {key, "position_ids", "cache_position", *CACHE_NAMES}
        options = {k: v for k, v in kwargs.items() if k not in own_names}

        def feed(own: Tensor, cache: Any) -> Any:
            return decoder(**{key: own, name: cache}, **options)

        call.pieces = [feed_apart(feed, parts, tokens[:, :-1])]
    past.parts = parts
    streams = SideBySide(past, positioned)
    kwargs = {**kwargs, key: tokens[:, -1:], cache_name(type(decoder).forward): streams}
    kwargs["attention_mask"] = streams.mask(tokens.device)
    if positioned:
        kwargs["position_ids"] = streams.positions(tokens.device)
    return kwargs


def _feed_in_passes(
    decoder: nn.Module, past: HookedCache, tokens: Tensor, options: dict[str, Any]
) -> list[Any] | None:
    """The outputs of a causal pass over the tokens, which the cache then holds; None: not here.

    Tokens that can be taken back go in a pass of their own, from what the cache holds by then.
    """
    if not isinstance(decoder, PreTrainedModel) or not past.geometry.in_one_pass:
        return None
    outputs: list[Any] = []
    n_first = past.beyond_rollback(tokens.shape[1])
    for part in tokens.tensor_split([n_first] if n_first else [], dim=1):
        try:
            one_pass = past.begin_pass(with_override(decoder))
            if one_pass is None:
                return None
            outputs += one_pass.feed_all(part, **options)
        except AttentionOverrideError:
            return None
        past.take(one_pass)
    return outputs


def _refuse_splitting(decoder: nn.Module, key: str, kwargs: dict[str, Any], n_tokens: int) -> None:
    """
    Raises:
        ValueError: something is given, or asked for, of every token.
    """
    per_token = [
        name
        for name, value in kwargs.items()
        if name not in (key, "position_ids")
        and isinstance(value, Tensor)
        and n_tokens in value.shape[:2]
    ]
    asked = kwargs.get("output_attentions")
    if getattr(decoder.config, "output_attentions", False) if asked is None else asked:
        per_token.append("output_attentions")
    for name in per_token:
        raise ValueError(
            f"{name} needs the input in one forward pass, and this input must be split (tokens "
            "are evicted inside it, or its rows have unequal lengths): feed it token by token"
        )


def _is_step(past: HookedCache, kwargs: dict[str, Any]) -> bool:
    tokens = _tokens_in(kwargs)
    return past.seen > 0 and tokens is not None and tokens.shape[1] == 1


def _tokens_in(kwargs: dict[str, Any]) -> Tensor | None:
    """Ids [B, n] or embeddings [B, n, D]."""
    ids: Tensor | None = kwargs.get("input_ids")
    return kwargs.get("inputs_embeds") if ids is None else ids


_image_like = re.compile("pixel_values|image|video|mm_encoder").match


def _has_images(kwargs: dict[str, Any]) -> bool:
    return any(kwargs[name] is not None for name in filter(_image_like, kwargs))


def _refuse_no_cache(kwargs: dict[str, Any]) -> None:
    if kwargs.get("use_cache") is False:
        raise ValueError(
            "use_cache=False contradicts past_key_values: pass use_cache=True, "
            "since some models have False as their default"
        )


def _padding_in(past: HookedCache, kwargs: dict[str, Any], has_images: bool = False) -> list[int]:
    """Of each row the columns of padding before it begins; empty: none is padded.

    Raises:
        PaddingError: there is other padding, or another mask.
    """
    mask = kwargs.get("attention_mask")
    if mask is None:
        return []
    if has_images and not (isinstance(mask, Tensor) and mask.ndim == 2):
        raise PaddingError(
            "images cannot be streamed with this model: it has a special attention mask for them"
        )
    if isinstance(mask, Tensor) and _would_sync_device(mask, _is_step(past, kwargs)):
        return []
    tokens = _tokens_in(kwargs)
    n_tokens = 0 if tokens is None else tokens.shape[1]
    return padding_of(mask, past.padding, past.seen, n_tokens)


def _would_sync_device(values: Tensor, is_step: bool) -> bool:
    """Reading a GPU's tensor waits for all its work: not at every step of a decode."""
    return is_step and values.device.type != "cpu"


def _refuse_positions(position_ids: Tensor, seen: int, is_step: bool) -> None:
    if _would_sync_device(position_ids, is_step):
        return
    expected = torch.arange(seen, seen + position_ids.shape[-1], device=position_ids.device)
    if bool((position_ids == expected).all()):
        return
    if position_ids.ndim == 3:
        raise ValueError(
            "images and videos cannot be streamed with this model: their positions have more than "
            "one dimension, and a bounded cache counts in one"
        )
    raise ValueError(
        f"position_ids must continue after the {seen} tokens seen: pass none, the cache sets them"
    )


def _refuse_positions_of(
    past: HookedCache, parts: Sequence[Part], position_ids: Tensor | None, n_tokens: int
) -> None:
    """Of rows of unequal length: each row's own must count on from the tokens that it has seen."""
    if position_ids is None:
        return
    rows = position_ids.expand(sum(part.n_rows for part in parts), -1)
    of_turn = past.get_seq_length()
    for part, own in zip(parts, rows.split([part.n_rows for part in parts])):
        seen = part.cache.seen if of_turn == past.seen else of_turn
        own = own if part.cache.seen else own[:, part.lead :]
        _refuse_positions(own, seen, seen > 0 and n_tokens == 1)
