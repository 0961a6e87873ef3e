"""How a model's layers come to attend by a function of ours, without a line of the model changed.

transformers looks its attention up by name. The function registered here is one opaque operation to
a compiler, `streamcache::attend`, and hands on to whoever is at work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

# layer, query [B, H, 1, D], key and value [B, Hkv, 1, D], scaling, softcap, reach -> [B, 1, H, D]
Attend = Callable[[int, Tensor, Tensor, Tensor, float, float, int], Tensor]

_NAME = "streamcache_ring"
_at_work: ContextVar[Attend] = ContextVar("at_work")


@contextmanager
def attention_named(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Have the model's layers attend by the function registered as `name`; then as before.

    Not by transformers' public setter, which sets configs that belong to no module as well.
    """
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(c): c for c in found if isinstance(c, PreTrainedConfig)}.values()
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


@contextmanager
def attention_by(attend: Attend, model: PreTrainedModel) -> Iterator[None]:
    """Have the model's layers attend by a function, for forwards over one token.

    They raise ValueError where their attention asks for what the function is not told.
    """
    token = _at_work.set(attend)
    try:
        with attention_named(model, _NAME):
            yield
    finally:
        _at_work.reset(token)


class Handover(Cache):
    """Hands a layer's new states on to the attention function, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


@torch.library.custom_op("streamcache::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scaling: float,
    softcap: float,
    reach: int,
) -> Tensor:
    """The function at work, over states that a compiler does not see.

    If it saw them it would have to prove that it need not copy them. A layer's query depends on the
    layer before, which keeps what is written in order.
    """
    return _at_work.get()(layer, query, key, value, scaling, softcap, reach)


@_attend.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scaling: float,
    softcap: float,
    reach: int,
) -> Tensor:
    return query.new_empty(query.shape[0], 1, query.shape[1], value.shape[-1])


_IGNORED = {"dropout", "position_ids", "use_cache", "sliding_window"}  # the last is in the mask


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """An attention function of transformers: states [B, H, 1, D] to [B, 1, H, D]."""
    if not isinstance(attention_mask, int):
        raise ValueError("it makes its attention mask by itself")
    for name, given in others.items():
        if name not in _IGNORED and given is not None and given is not False:
            raise ValueError(f"its attention takes {name!r}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer: int = module.layer_idx  # type: ignore[assignment]
    return _attend(query, key, value, layer, scaling, softcap or 0.0, attention_mask), None


def _reach(*, local_size: int | None = None, use_vmap: bool = False, **_: object) -> int:
    """A mask function of transformers: how many places back a layer sees; 0, all."""
    if use_vmap:
        raise ValueError("it lays a mask of its own over the causal one")
    return local_size or 0


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _reach)
