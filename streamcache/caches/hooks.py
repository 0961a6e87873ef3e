"""Hooks that let a model be called as usual with a bounded cache in `past_key_values`.

A cache sees keys and values only. What it cannot see, and what would be silently wrong, is settled
before the forward: padding is refused, prompts longer than the window are fed in pieces, and the
positions are those the cache expects. Other calls of the model pass through untouched.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.policy import window_size

if TYPE_CHECKING:
    from streamcache.caches.base import BoundedCache


class PaddingError(ValueError):
    """The batch is padded: pad tokens would become the attention sinks."""


_OUTPUTS = ("output_hidden_states", "output_attentions")


def attach(model: PreTrainedModel, cache_type: type["BoundedCache"]) -> None:
    """Register the hooks on a model, once; they act on calls with a cache of `cache_type`."""
    if not getattr(model, "_streamcache_attached", False):
        model.register_forward_pre_hook(partial(_before, cache_type), with_kwargs=True)
        model.register_forward_hook(partial(_after, cache_type), with_kwargs=True)
        model._streamcache_attached = True  # type: ignore[assignment]


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of a model class's forward, without self."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _before(
    cache_type: type["BoundedCache"],
    model: PreTrainedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    names = _parameters(type(model).forward)
    kwargs = {**dict(zip(names, args)), **kwargs}
    past = kwargs.get("past_key_values")
    if not isinstance(past, cache_type):
        return None
    key = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
    n_tokens = kwargs[key].shape[1]
    if n_tokens == 0:
        raise ValueError(
            f"there is no token to feed: of what is passed the cache has seen {past.seen} tokens "
            "(`generate` wants the whole conversation, and slices off what was seen)"
        )
    is_step = past.seen > 0 and n_tokens == 1
    _refuse_padding(kwargs.get("attention_mask"), is_step)
    _refuse_positions(kwargs.get("position_ids"), past.seen, is_step)
    kwargs["attention_mask"] = None
    positioned = "position_ids" in names
    if positioned:
        kwargs["position_ids"] = None
    past.leading_logits = []
    if n_tokens > window_size(past.policy):
        kwargs[key] = _feed_all_but_last(model, past, key, kwargs)
        n_tokens = kwargs[key].shape[1]
    past.prepare(n_tokens, rebase=positioned)
    if positioned:
        first = past.next_position
        kwargs["position_ids"] = torch.arange(
            first, first + n_tokens, device=kwargs[key].device
        ).unsqueeze(0)
    return (), kwargs


def _feed_all_but_last(
    model: PreTrainedModel, past: "BoundedCache", key: str, kwargs: dict[str, Any]
) -> Tensor:
    """Feed a long input in pieces and return the last; the others' logits wait on the cache.

    The first piece fills the cache. The others are an eighth of the window: the queries of a piece
    no longer see what the whole piece evicts, so short pieces stay close to the exact stream.
    """
    wanted = {
        "labels": kwargs.get("labels") is not None,
        "a tensor of logits_to_keep": isinstance(kwargs.get("logits_to_keep"), Tensor),
        **{name: _wants(model, kwargs, name) for name in _OUTPUTS},
    }
    for name in (name for name, applies in wanted.items() if applies):
        raise ValueError(
            f"{name} needs the input in one forward, and it is longer than the window of "
            f"{window_size(past.policy)} tokens: feed it in pieces"
        )
    tokens: Tensor = kwargs[key]
    room = max(0, min(past.policy.capacity - past.size, window_size(past.policy)))
    pieces = [tokens[:, :room]] if room else []
    pieces += tokens[:, room:].split(max(1, window_size(past.policy) // 8), dim=1)
    past.leading_logits = [
        model(**{**kwargs, key: piece, "return_dict": True}).logits for piece in pieces[:-1]
    ]
    return pieces[-1]


def _wants(model: PreTrainedModel, kwargs: dict[str, Any], name: str) -> bool:
    """Whether an output is asked for, by the call or by the config."""
    asked = kwargs.get(name)
    return bool(getattr(model.config, name, False) if asked is None else asked)


def _after(
    cache_type: type["BoundedCache"],
    model: PreTrainedModel,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    outputs: Any,
) -> Any:
    past = kwargs.get("past_key_values")
    if isinstance(past, cache_type) and past.leading_logits:
        last = outputs[0] if isinstance(outputs, tuple) else outputs.logits
        logits = torch.cat([*past.leading_logits, last], dim=1)
        logits = logits[:, -kwargs.get("logits_to_keep", 0) :]
        past.leading_logits = []
        if isinstance(outputs, tuple):
            return (logits, *outputs[1:])
        outputs.logits = logits
    return outputs


def _refuse_padding(attention_mask: Any, is_step: bool) -> None:
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        raise PaddingError("a bounded cache makes its own mask; pass a 2-D attention_mask or none")
    if _is_dear(attention_mask, is_step):
        return
    if not bool(attention_mask.all()):
        raise PaddingError(
            "the attention_mask has zeros: padding would become the attention sinks; "
            "batch prompts of equal length, or stream them one by one"
        )


def _is_dear(values: Tensor, is_step: bool) -> bool:
    """Reading a GPU's tensor waits for all its work: too dear at every step of a decode."""
    return is_step and values.device.type != "cpu"


def _refuse_positions(position_ids: Tensor | None, seen: int, is_step: bool) -> None:
    if position_ids is None or _is_dear(position_ids, is_step):
        return
    expected = torch.arange(seen, seen + position_ids.shape[-1], device=position_ids.device)
    if not bool((position_ids == expected).all()):
        raise ValueError(
            f"position_ids must count on from the {seen} tokens seen; pass none, the cache knows"
        )
