"""Feeding a decoder what it is called with: at once, in passes or pieces, or row by row."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamcache.caches.arguments import refuse_positions_of, refuse_splitting
from streamcache.caches.attention_override import AttentionOverrideError, with_override
from streamcache.caches.call import Call, HookedCache
from streamcache.caches.padding import PaddingError
from streamcache.caches.side_by_side import SideBySide, feed_apart
from streamcache.caches.signatures import CACHE_NAMES, cache_name, parameters_of


def placed(
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


def feed_all_but_last(
    decoder: nn.Module, past: HookedCache, call: Call, key: str, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Feed the beginning of an input inside which something is evicted; the arguments for the rest.

    All but the last token go through a copy of the decoder in one causal pass, where each of them
    sees what it would see if it came alone. Where the decoder or the cache does not allow that,
    pieces are fed, so short that only the first token of each evicts.
    """
    tokens: Tensor = kwargs[key]
    refuse_splitting(decoder, key, kwargs, tokens.shape[1])
    kwargs = _with_named_outputs(decoder, call, kwargs)
    own = {key, "attention_mask", "position_ids", "use_cache", "cache_position", *CACHE_NAMES}
    options = {k: v for k, v in kwargs.items() if k not in own and v is not None}
    if (outputs := _feed_in_passes(decoder, past, tokens[:, :-1], options)) is not None:
        call.pieces = outputs
        return {**kwargs, key: tokens[:, -1:]}
    pieces = tokens.split(past.pieces(tokens.shape[1]), dim=1)
    for piece in pieces[:-1]:
        inputs = placed(decoder, past, key, {**kwargs, key: piece})
        call.pieces.append(decoder.forward(**inputs))
        past.finish(more_to_come=True)
    return {**kwargs, key: pieces[-1]}


def _with_named_outputs(decoder: nn.Module, call: Call, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that give outputs by name; the call knows whether a tuple was asked for."""
    default = getattr(decoder.config, "return_dict", True)
    call.as_tuple = kwargs.get("return_dict", default) is False
    return {**kwargs, "return_dict": True} if call.as_tuple else kwargs


def feed_rows_apart(
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
    refuse_positions_of(past, parts, kwargs.get("position_ids"), n_tokens)
    kwargs = _with_named_outputs(decoder, call, kwargs)
    if n_tokens > 1:
        refuse_splitting(decoder, key, kwargs, n_tokens)
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
