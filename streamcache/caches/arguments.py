"""The arguments of a call with a bounded cache: what would be silently wrong is refused."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamcache.caches.call import HookedCache
from streamcache.caches.padding import PaddingError, padding_of
from streamcache.caches.side_by_side import Part


def refuse_splitting(decoder: nn.Module, key: str, kwargs: dict[str, Any], n_tokens: int) -> None:
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


def is_step(past: HookedCache, kwargs: dict[str, Any]) -> bool:
    tokens = _tokens_in(kwargs)
    return past.seen > 0 and tokens is not None and tokens.shape[1] == 1


def _tokens_in(kwargs: dict[str, Any]) -> Tensor | None:
    """Ids [B, n] or embeddings [B, n, D]."""
    ids: Tensor | None = kwargs.get("input_ids")
    return kwargs.get("inputs_embeds") if ids is None else ids


_image_like = re.compile("pixel_values|image|video|mm_encoder").match


def has_images_in(kwargs: dict[str, Any]) -> bool:
    return any(kwargs[name] is not None for name in filter(_image_like, kwargs))


def refuse_no_cache(kwargs: dict[str, Any]) -> None:
    if kwargs.get("use_cache") is False:
        raise ValueError(
            "use_cache=False contradicts past_key_values: pass use_cache=True, "
            "since some models have False as their default"
        )


def padding_in(past: HookedCache, kwargs: dict[str, Any], has_images: bool = False) -> list[int]:
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
    if isinstance(mask, Tensor) and _would_sync_device(mask, is_step(past, kwargs)):
        return []
    tokens = _tokens_in(kwargs)
    n_tokens = 0 if tokens is None else tokens.shape[1]
    return padding_of(mask, past.padding, past.seen, n_tokens)


def _would_sync_device(values: Tensor, in_step: bool) -> bool:
    """Reading a GPU's tensor waits for all its work: not at every step of a decode."""
    return in_step and values.device.type != "cpu"


def refuse_positions(position_ids: Tensor, seen: int, in_step: bool) -> None:
    if _would_sync_device(position_ids, in_step):
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


def refuse_positions_of(
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
        refuse_positions(own, seen, seen > 0 and n_tokens == 1)
