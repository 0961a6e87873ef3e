"""What transformers asks of any cache, and what a stream without an end answers to it."""

from functools import cached_property
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from streamcache.caches.probe import ModelGeometry


class EndlessCache(Cache):
    """A cache that has no `layers` in the sense of transformers, and no greatest length."""

    geometry: ModelGeometry
    layers: list[Any]  # of layers with a state, that state (see `layer_states`)

    def __len__(self) -> int:
        return len(self.geometry.layers)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1  # the stream has no end

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        return -1

    @cached_property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self)  # no layer limits the mask by itself

    @cached_property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)

    @cached_property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        layers = self.layers if layer_idx is None else self.layers[layer_idx : layer_idx + 1]
        states = [layer.has_previous_state for layer in layers if layer is not None]
        return bool(states) and all(
            all(each.values()) if state_idx is None else each[state_idx] for each in states
        )

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return False

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a bounded cache allocates what it needs in its first forward")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)
