"""`mit`: StreamingLLM as first published, what the other caches are compared with.

Keys are kept unrotated and all of them are rotated at every step to their place in the cache
(Xiao et al. 2023, section 3.2). Slow and plain on purpose, and written apart from the other caches:
it shares their bookkeeping, and no line of their storage, eviction or rotation.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from streamcache.caches.base import BoundedCache
from streamcache.caches.retained_attention import States
from streamcache.caches.rope import Rotation
from streamcache.caches.saved import Layout
from streamcache.policy import Policy


class ReferenceCache(BoundedCache):
    """`mit`: unrotated keys, all rotated at every step."""

    takes_long_inputs = True

    def __init__(self, model: nn.Module, policy: Policy, max_rollback: int = 0):
        self._keys: dict[int, Tensor] = {}  # by layer, [B, H, size, D], unrotated
        self._values: dict[int, Tensor] = {}
        super().__init__(model, policy, max_rollback)

    def _next_base(self, n_tokens: int, n_evicted: int) -> int:
        return self.seen

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        if n_evicted:
            for states in (self._keys, self._values):
                for layer, kept in states.items():
                    sinks, rest = kept[:, :, : self.policy.n_sink], kept[:, :, self.policy.n_sink :]
                    states[layer] = torch.cat([sinks, rest[:, :, n_evicted:]], dim=2)

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rotation = self.geometry.layers[layer_idx].rotation
        place = torch.arange(self.size + keys.shape[2], device=keys.device)
        position = place + (self.evicted - self.base)
        new = rotate(keys, -position[self.size :], rotation)
        if self.size and layer_idx in self._keys:
            new = torch.cat([self._keys[layer_idx][:, :, : self.size], new], dim=2)
            values = torch.cat([self._values[layer_idx][:, :, : self.size], values], dim=2)
        self._keys[layer_idx], self._values[layer_idx] = new, values
        return rotate(new, position, rotation), values

    def _held(self, layer_idx: int, begin: int = 0, end: int | None = None) -> States:
        end = self.size if end is None else end
        stored = self._keys[layer_idx], self._values[layer_idx]
        return States(*(states[:, :, begin:end] for states in stored))

    def _hold(self, held: Iterable[States]) -> None:
        for layer_idx, (keys, values) in enumerate(held):
            self._keys[layer_idx], self._values[layer_idx] = keys.to(values.dtype), values

    def _n_stored(self, seen: int, evicted: int) -> int:
        """Tokens of which states are kept."""
        return seen - evicted

    def _state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        stored = {"keys": self._keys, "values": self._values}
        return {}, {
            f"{name}.{layer}": states[:, :, : self._n_stored(self.seen, self.evicted)]
            for name, by_layer in stored.items()
            for layer, states in by_layer.items()
        }

    def _layout(self, numbers: dict[str, int]) -> Layout:
        n = self._n_stored(numbers["seen"], numbers["evicted"])
        return {
            f"{kind}.{layer}": self._form(layer, kind, n)
            for kind in ("keys", "values")
            for layer in range(len(self) if numbers["seen"] else 0)
        }

    def _restore(self, numbers: dict[str, int], states: dict[str, Tensor]) -> None:
        devices = self._devices()
        for name, held in states.items():
            kind, _, layer = name.partition(".")
            states_of = self._keys if kind == "keys" else self._values
            states_of[int(layer)] = held.to(devices[int(layer)])

    def _select(self, rows: Tensor) -> None:
        for states in (self._keys, self._values):
            for layer, kept in states.items():
                states[layer] = kept[rows.to(kept.device)]

    @property
    def batch_size(self) -> int:
        return self._keys[0].shape[0] if self._keys else -1

    def _forget(self) -> None:
        self._keys.clear()
        self._values.clear()


def rotate(keys: Tensor, position: Tensor, rotation: Rotation | None) -> Tensor:
    """RoPE written out: keys [B, H, n, D] rotated to `position` [n] (Su et al. 2021, eq. 34)."""
    if rotation is None:
        return keys
    start, end = rotation.start, rotation.start + 2 * rotation.inv_freq.shape[0]
    middle = (start + end) // 2
    halves = (slice(start, middle), slice(middle, end))
    pairs = (slice(start, end, 2), slice(start + 1, end, 2))
    first, second = halves if rotation.layout == "half" else pairs
    angle = position[:, None].double() * rotation.inv_freq.to(keys.device)
    wide = torch.promote_types(keys.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    x, y = keys[..., first].to(wide), keys[..., second].to(wide)
    rotated = keys.clone()
    rotated[..., first] = x * cos - y * sin
    rotated[..., second] = x * sin + y * cos
    return rotated
