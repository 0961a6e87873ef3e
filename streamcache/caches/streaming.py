"""The caches to use: `StreamingCache` (`fast`) and `RerotatingCache` (`ours`).

StreamingLLM gives a token the position of its place in the cache (Xiao et al. 2023, section 3.2).
RoPE scores depend on differences of positions only, so the window may keep the rotation it came
with as long as the sinks are turned to stand right before it.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.buffer import Arena
from streamcache.caches.probe import LayerGeometry
from streamcache.caches.rope import Rotation
from streamcache.policy import Policy


class _Shape(NamedTuple):
    """Layers that agree in this share an arena, so that one operation serves them all."""

    n_kv_heads: int
    key_dim: int
    value_dim: int
    rotation: tuple[str, int, int] | None
    device: torch.device | None


class StreamingCache(BoundedCache):
    """`fast`: window keys stay as they came; an eviction turns and rewrites the sinks, O(S).

    A drop-in for `model.generate(past_key_values=StreamingCache(model, policy))` and for plain
    forwards of one or several tokens. Takes the memory of twice the capacity. Once per capacity the
    window moves to the front of its buffer, and is turned back so that positions start anew: for a
    moment that takes its keys in float32 as well.
    """

    _wide_keys = False  # they are turned once or twice in their life

    def __init__(self, model_or_config: PreTrainedModel | PreTrainedConfig, policy: Policy):
        self._n_slots = 2 * policy.capacity
        self._arenas: list[Arena] = []
        self._begin: int = 0  # the slots of the live entries
        self._end: int = 0
        super().__init__(model_or_config, policy)
        self._build_arenas(self.geometry.layers)

    def _build_arenas(self, layers: tuple[LayerGeometry, ...]) -> None:
        groups: dict[_Shape, list[int]] = {}
        for index, layer in enumerate(layers):
            groups.setdefault(_shape_of(layer), []).append(index)
        self._home: dict[int, tuple[Arena, int]] = {}
        for shape, members in groups.items():
            rotation = None
            if first := layers[members[0]].rotation:
                frequencies = [r.inv_freq for i in members if (r := layers[i].rotation)]
                stacked = torch.stack(frequencies)[:, None, None, None]
                rotation = Rotation(first.layout, first.start, stacked)
            arena = Arena(
                len(members),
                shape.n_kv_heads,
                shape.key_dim,
                shape.value_dim,
                rotation,
                self.policy.n_sink,
                self._n_slots,
                self._wide_keys,
            )
            self._arenas.append(arena)
            self._home.update({index: (arena, i) for i, index in enumerate(members)})

    def _make_room(self, n_tokens: int, dropped: int, rebase: bool) -> None:
        if dropped and dropped == self.evicted:  # the first eviction: nothing was turned so far
            for arena in self._arenas:
                arena.save_sinks()
        self._begin += dropped
        crowded = self._end + n_tokens > self._n_slots
        due = rebase and self._rebase_is_due(dropped, n_tokens)
        if not (dropped or crowded or due):
            return
        if crowded:
            self._move_to_front()
        if due:
            for arena in self._arenas:
                arena.turn(self._begin + self.policy.n_sink, self._end, self.base - self.seen)
            self.base = self.seen
        for arena in self._arenas:
            arena.place_sinks(self._begin, self.evicted - self.base)

    def _rebase_is_due(self, dropped: int, n_tokens: int) -> bool:
        return self.next_position + n_tokens > self.policy.capacity

    def _move_to_front(self) -> None:
        window = self._begin + self.policy.n_sink
        for arena in self._arenas:
            arena.move(window, self._end, self.policy.n_sink)
        self._end -= self._begin
        self._begin = 0

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        arena, layer = self._home[layer_idx]
        end = self._end + keys.shape[-2]
        arena.write(layer, self._end, keys, values)
        states = arena.read(layer, self._begin, end)
        if layer_idx == len(self.geometry.layers) - 1:
            self._end = end
        return states

    def _select(self, rows: Tensor) -> None:
        for arena in self._arenas:
            arena.select(rows)

    @property
    def batch_size(self) -> int:
        return self._arenas[0].keys.shape[1] if self.seen else -1

    def reset(self) -> None:
        super().reset()
        self._begin = self._end = 0
        for arena in self._arenas:
            arena.clear()


class RerotatingCache(StreamingCache):
    """`ours`, the paper's way: every eviction turns the whole window back to its new place.

    Dear, which is why pruning lazily pays there. The keys are turned again and again in the model's
    dtype, as published: exact in float32, a rounding per eviction in float16. bfloat16 has three
    bits less, in which slow planes would not turn at all, one position at a time: there keys are
    kept in float32.
    """

    _wide_keys = True

    def _rebase_is_due(self, dropped: int, n_tokens: int) -> bool:
        return dropped > 0


def _shape_of(layer: LayerGeometry) -> _Shape:
    turning = layer.rotation
    rotation = (turning.layout, turning.start, turning.inv_freq.shape[0]) if turning else None
    device = turning.inv_freq.device if turning else None
    return _Shape(layer.n_kv_heads, layer.key_dim, layer.value_dim, rotation, device)
