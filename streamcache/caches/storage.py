"""What a kind of cache defines: where the states of the layers are stored, and how it evicts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from streamcache.caches.probe import ModelGeometry, probe_rope
from streamcache.caches.protocol import EndlessCache
from streamcache.caches.retained_attention import States
from streamcache.caches.saved import BATCH, Form, Layout
from streamcache.policy import Policy


class Storage(EndlessCache, ABC):
    """The methods of a subclass of `BoundedCache`, and what they may read.

    Attributes:
        seen: tokens appended so far.
        evicted: tokens evicted so far.
        base: tokens subtracted from the positions the model is given.
    """

    takes_long_inputs: ClassVar[bool] = False
    looks_at_content: ClassVar[bool] = False

    policy: Policy
    geometry: ModelGeometry
    seen: int
    evicted: int
    base: int
    _model: nn.Module
    _counts: ClassVar[tuple[str, ...]] = ("seen", "evicted", "base", "_ahead")

    @property
    def size(self) -> int:
        """Entries held."""
        return self.seen - self.evicted

    def _devices(self) -> list[torch.device]:
        """Where the layers lie now, one by one."""
        return [layer.device for layer in probe_rope(self._model).layers]

    @abstractmethod
    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        """Remove the `n_evicted` oldest entries that are no sinks (already counted in `evicted`),
        and move what is held from positions less `self.base` to positions less `base`."""

    @abstractmethod
    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new states [B, H, n, D]; return all it holds [B, H, size + n, D].

        May be called again for the same tokens, with `seen` as before, after an interruption.
        """

    @abstractmethod
    def _select(self, rows: Tensor) -> None:
        """Make the batch consist of these rows of the present one."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop the states of all layers."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Streams held side by side; -1 before the first."""

    def _held(self, layer_idx: int, begin: int = 0, end: int | None = None) -> States:
        """What a layer holds in places `begin` ... `end - 1`, by default in all.

        In order of the stream, keys as at position 0.
        """
        raise NotImplementedError

    def _hold(self, held: Iterable[States]) -> None:
        """Hold nothing but these states of each layer, `size` entries, as `_held` gives them."""
        raise NotImplementedError

    def _state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        """All that the subclass holds, as it is, for `_restore`."""
        raise NotImplementedError(f"a {type(self).__name__} cannot be saved")

    def _layout(self, numbers: dict[str, int]) -> Layout:
        """Names and forms of the states that `_state` gives together with these numbers."""
        raise NotImplementedError(f"a {type(self).__name__} cannot be loaded")

    def _form(self, layer: int, kind: str, n: int) -> Form:
        """Of a layer's "keys" or "values" [B, H, n, D]."""
        of = self.geometry.layers[layer]
        return Form((BATCH, of.n_kv_heads, n, of.key_dim if kind == "keys" else of.value_dim))

    def _restore(self, numbers: dict[str, int], states: dict[str, Tensor]) -> None:
        """Hold what `_state` has given; `seen`, `evicted` and `base` are counted already."""
        raise NotImplementedError(f"a {type(self).__name__} cannot be loaded")

    def _put_back(self, n: int, entries: list[States]) -> bool:
        """Hold the last `n` evicted entries of each layer again, right behind the sinks.

        They are as `_held` gives them; `evicted` is counted afterwards. False, and nothing changed:
        not in place, all that is held must be written.
        """
        return False

    def _next_base(self, n_tokens: int, n_evicted: int) -> int:
        """The base of positions from the next forward on, which evicts `n_evicted` entries."""
        return self.base

    def _count(self, n_tokens: int) -> None:
        """The tokens of a forward are in all layers, and about to be counted in `seen`."""
