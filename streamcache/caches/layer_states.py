"""Layers with a state of fixed size: convolution, linear attention, state space.

Their state is one of transformers' own layer classes, which a bounded cache holds beside the keys
and values of the attention layers. It is of the whole stream: nothing is evicted from it.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicCache

_Stateful: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", ())
_Dummy: Any = getattr(cache_utils, "DummyLayer", ())


def layers_of(config: PreTrainedConfig) -> list[Any]:
    """What transformers keeps for each layer of a model; empty where it has no class for one."""
    try:
        return list(DynamicCache(config=config).layers)
    except (KeyError, AttributeError, TypeError):
        return []


def state_layers(config: PreTrainedConfig) -> list[Any]:
    """Of each layer its empty state, or None; an empty list where no layer has one."""
    layers = [layer if isinstance(layer, _Stateful) else None for layer in layers_of(config)]
    return layers if any(layer is not None for layer in layers) else []


def without_attention(config: PreTrainedConfig) -> set[int]:
    """The layers that keep no keys and values of their own: these have a state in place of them, or
    nothing (no attention, or the keys and values of another layer)."""
    return {
        i
        for i, layer in enumerate(layers_of(config))
        if isinstance(layer, (_Stateful, _Dummy)) and not isinstance(layer, CacheLayerMixin)
    }


@torch.inference_mode(False)  # so that the stream may leave inference mode later
def rows_of(layers: list[Any], rows: Tensor) -> list[Any]:
    """Copies of the layers with these rows of all states."""
    copies = copy.deepcopy(layers)
    select(copies, rows)
    return copies


@torch.inference_mode(False)
def select(layers: list[Any], rows: Tensor) -> None:
    """Make the batch of all states consist of these rows of the present one."""
    for layer in layers:
        if layer is not None:
            layer.reorder_cache(rows)


def stored(layers: list[Any]) -> dict[str, Tensor]:
    """All states, by name."""
    return {
        f"{kind}.{i}.{number}": states
        for i, layer in enumerate(layers)
        for kind in ("conv", "recurrent")
        for number, states in getattr(layer, f"{kind}_states", {}).items()
        if states is not None
    }


def cut_gradients(layers: list[Any]) -> None:
    """Let no state have a history, which would grow with the stream."""
    for states in stored(layers).values():
        if states.requires_grad:
            states.detach_()


def beside(parts: Sequence[list[Any]], n_rows: Sequence[int], empty: list[Any]) -> list[Any]:
    """The states of parts of a batch, in empty layers; a part that has none begins at zero.

    Args:
        parts: of each part its layers.
        n_rows: of each part, its rows.
    """
    named = [stored(layers) if begun(layers) else {} for layers in parts]
    like = next((states for states in named if states), {})
    whole = {
        name: torch.cat(
            [
                own[name] if own else state.new_zeros(n, *state.shape[1:])
                for own, n in zip(named, n_rows)
            ]
        )
        for name, state in like.items()
    }
    restore(empty, whole)
    return empty


def take_apart(layers: list[Any], parts: Sequence[list[Any]], n_rows: Sequence[int]) -> None:
    """Give parts of a batch their rows of all states."""
    for name, states in stored(layers).items():
        for own, rows in zip(parts, states.split(list(n_rows))):
            restore(own, {name: rows})


def begun(layers: list[Any]) -> bool:
    """Whether the layers have seen a token."""
    return any(any(layer.has_previous_state.values()) for layer in layers if layer is not None)


@torch.inference_mode(False)
def restore(layers: list[Any], states: dict[str, Tensor]) -> None:
    """Give layers of the same batch, or empty ones, what `stored` has given."""
    for name, held in states.items():
        kind, index, number = name.split(".")
        layer = layers[int(index)]
        layer.has_previous_state[int(number)] = False  # so that a convolution takes it as it is
        getattr(layer, f"update_{kind}_state")(held, state_idx=int(number))
        layer.has_previous_state[int(number)] = True
