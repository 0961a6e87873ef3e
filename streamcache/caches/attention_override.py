"""Running a model with another attention function, without changing anything about the model.

transformers looks its attention up by a name in the model's config. A copy that shares the model's
weights (`shared_copy`) has the name that is registered here; what it attends by is the function
in use in the thread that runs it (`use_attention`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

from streamcache.caches.layer_states import state_layers, without_attention
from streamcache.caches.shared_copy import fingerprint, shared_copy
from streamcache.caches.signatures import cache_name, parameters_of


class HeadNorms(NamedTuple):
    """RMS norms of queries and keys, head by head, before they are rotated.

    Attributes:
        query, key: [D], their gains.
        eps: of both.
        offset: added to the gains.
    """

    query: Tensor
    key: Tensor
    eps: float
    offset: float


class Scores(NamedTuple):
    """How a layer makes its attention weights.

    Attributes:
        scaling: of the products of queries and keys.
        softcap: c > 0 caps scores to c tanh(score / c) (Gemma 2); 0, not.
        sliding_window: places back that a token sees, itself included; 0, all.
        learned_sinks: [H], a further score of each head, without a value (gpt-oss); or None.
        head_norms: that the layer leaves to its attention; None: what it gives is normed. No layer
            of a model does so, but a rewritten graph may.
    """

    scaling: float
    softcap: float = 0.0
    sliding_window: int = 0
    learned_sinks: Tensor | None = None
    head_norms: HeadNorms | None = None


# layer, query [B, H, n, D], key [B, Hkv, n, D], value [B, Hkv, n, Dv], scores -> [B, n, H, Dv]
Attention = Callable[[int, Tensor, Tensor, Tensor, Scores], Tensor]


class AttentionOverrideError(ValueError):
    """A model's attention cannot be replaced; the message says why."""


_NAME = "streamcache"
_NAME_WITHOUT_CAP = "streamcache_without_cap"
_active_attention: ContextVar[Attention] = ContextVar("active_attention")
_overridden: WeakKeyDictionary[PreTrainedModel, tuple[object, PreTrainedModel]]
_overridden = WeakKeyDictionary()


@contextmanager
def use_attention(attention: Attention) -> Iterator[None]:
    """In this thread, have every model of `with_override` attend by a function."""
    token = _active_attention.set(attention)
    try:
        yield
    finally:
        _active_attention.reset(token)


def with_override(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that shares the model's weights, is in evaluation mode and attends as we say.

    It is kept until the model changes. Two threads that ask at once may get two copies, which are
    equal. The copy is to be run by `forward_unrotated`.

    Raises:
        AttentionOverrideError: the model's attention cannot be replaced.
    """
    state, copy = _overridden.get(model, (None, None))
    if copy is None or state != fingerprint(model):
        state, copy = fingerprint(model), shared_copy(model)
        by_sdpa = model.config._attn_implementation == "sdpa"
        set_attention(copy, _NAME_WITHOUT_CAP if by_sdpa else _NAME)
        vars(copy)["cache_argument"] = cache_name(type(copy).forward)
        _require_registered_attention(copy)
        _overridden[model] = state, copy
    return copy


def set_attention(copy: nn.Module, name: str) -> None:
    """Have the modules of a `shared_copy` attend by what is registered under a name.

    Not by transformers' setter, which sets configs that belong to no module as well.
    """
    for module in copy.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._attn_implementation_internal = name


class PassthroughCache(Cache):
    """Gives a layer's new states to its attention, and keeps nothing.

    Without any cache transformers would look for packed sequences in the positions, which makes
    the host wait for the device.
    """

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


def forward_unrotated(copy: PreTrainedModel, tokens: Tensor, **options: Any) -> Any:
    """The output of a copy with every token at position 0, where nothing is rotated.

    Args:
        copy: made by `with_override`, and run within `use_attention`.
        tokens: ids [B, n] or embeddings [B, n, D].
        options: further arguments of the model's forward.
    """
    name = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
    positions = torch.zeros((1, tokens.shape[1]), dtype=torch.long, device=tokens.device)
    cache: dict[str, Any] = {vars(copy)["cache_argument"]: PassthroughCache()}
    return copy(**{name: tokens}, position_ids=positions, **cache, use_cache=True, **options)


def _require_registered_attention(copy: PreTrainedModel) -> None:
    """Try two tokens: every layer must ask for its attention by name, and once."""
    if state_layers(copy.config):
        raise AttentionOverrideError("some of its layers keep a state beside keys and values")
    if without_attention(copy.config):
        raise AttentionOverrideError("some of its layers have no keys of their own")
    if "position_ids" not in parameters_of(type(copy).forward):
        raise AttentionOverrideError("it takes no position_ids")
    served: list[int] = []

    def attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        if layer in served:
            raise AttentionOverrideError("a layer attends more than once")
        served.append(layer)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])

    unregistered = "its layers do not each call transformers' registered attention once"
    ids = torch.zeros(1, 2, dtype=torch.long, device=copy.device)
    with use_attention(attention), torch.no_grad():
        try:
            forward_unrotated(copy, ids)
        except Exception as error:
            raise AttentionOverrideError(str(error) if served else unregistered) from error
    n_layers = copy.config.get_text_config(decoder=True).num_hidden_layers
    if sorted(served) != list(range(n_layers)):
        raise AttentionOverrideError(unregistered)


@torch.library.custom_op("streamcache::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    learned_sinks: Tensor | None,
    layer: int,
    scaling: float,
    softcap: float,
    sliding_window: int,
    query_gain: Tensor | None = None,
    key_gain: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> Tensor:
    """The active function, over states that a compiler does not see.

    If it saw them it would have to prove that it need not copy them. A layer's query depends on the
    layer before, which keeps what is written in order.
    """
    norms = None
    if query_gain is not None and key_gain is not None:
        norms = HeadNorms(query_gain, key_gain, eps, offset)
    scores = Scores(scaling, softcap, sliding_window, learned_sinks, norms)
    return _active_attention.get()(layer, query, key, value, scores)


@_attend.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    learned_sinks: Tensor | None,
    layer: int,
    scaling: float,
    softcap: float,
    sliding_window: int,
    query_gain: Tensor | None = None,
    key_gain: Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])


# What does not change attention in evaluation mode; the sliding window is in the mask.
_IGNORED = {"dropout", "position_ids", "use_cache", "sliding_window", "return_dict"}
_IGNORED |= {"output_hidden_states", "output_router_logits"}


def require_known(arguments: Mapping[str, object]) -> None:
    """
    Raises:
        AttentionOverrideError: one of the arguments of an attention may change it.
    """
    for name, given in arguments.items():
        if name not in _IGNORED and given is not None and given is not False:
            raise AttentionOverrideError(f"its attention takes {name!r}")


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, Tensor]:
    """Attention of transformers' interface, [B, H, n, D] to [B, n, H, D], and its weights.

    Weights are [B, H, n, T + 1] in float32, the last on the learned sink of a head, 0 where there
    is none.

    Raises:
        AttentionOverrideError: it is given something that may change it.
    """
    require_known(others)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    scores = (query @ key.mT).float() * scaling
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    sinks = scores.new_full((*scores.shape[:3], 1), -torch.inf)
    if s_aux is not None:
        sinks = s_aux.float().reshape(1, -1, 1, 1).expand_as(sinks)
    weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)
    output = weights[..., :-1].to(value.dtype) @ value
    return output.transpose(1, 2).contiguous(), weights


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """An attention function of transformers: states [B, H, n, D] to [B, n, H, D]."""
    if not isinstance(attention_mask, int):
        raise AttentionOverrideError("it makes its attention mask by itself")
    require_known(others)
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer: int = module.layer_idx  # type: ignore[assignment]
    cap = softcap or 0.0
    return _attend(query, key, value, s_aux, layer, scaling, cap, attention_mask), None


def _attention_without_cap(
    *args: Any, softcap: float | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The same for a model that attends by SDPA: transformers 5.17 has Gemma 2 do so by default,
    and its SDPA ignores a softcap."""
    return _attention(*args, **kwargs)


def _sliding_window(
    *, local_size: int | None = None, use_vmap: bool = False, **_: object
) -> int | None:
    """A mask function of transformers: how many places back a layer sees; 0, all.

    None where the model lays a mask of its own over the causal one.
    """
    return None if use_vmap else (local_size or 0)


AttentionInterface.register(_NAME, _attention)
AttentionInterface.register(_NAME_WITHOUT_CAP, _attention_without_cap)
for name in (_NAME, _NAME_WITHOUT_CAP):
    AttentionMaskInterface.register(name, _sliding_window)
