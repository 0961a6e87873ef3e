"""What transformers asks of any cache, and what a stream without an end answers to it."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from streamcache.caches.probe import ModelGeometry


class EndlessCache(Cache):
    """A cache that has no `layers` in the sense of transformers, and no greatest length."""

    geometry: ModelGeometry

    def __len__(self) -> int:
        return len(self.geometry.layers)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1  # the stream has no end

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self)  # no layer limits the mask by itself

    @property
    def is_linear(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self)

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        return False  # of layers with another state than keys and values there are none

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a bounded cache allocates what it needs in its first forward")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)
