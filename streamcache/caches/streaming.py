"""The caches to use: `StreamingCache` (`fast`) and `RerotatingCache` (`ours`).

StreamingLLM gives a token the position of its place in the cache (Xiao et al. 2023, section 3.2).
RoPE scores depend on differences of positions only, so the window may keep the rotation it came
with as long as the sinks are rotated to stand right before it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamcache.caches.base import BoundedCache
from streamcache.caches.buffer import Arena
from streamcache.caches.one_pass import rotated, widened
from streamcache.caches.probe import LayerGeometry
from streamcache.caches.retained_attention import States
from streamcache.caches.rope import Rotation
from streamcache.caches.saved import Layout, StreamFileError
from streamcache.policy import Policy


class _Shape(NamedTuple):
    """Layers that agree in this share an arena, so that one operation serves them all."""

    n_kv_heads: int
    key_dim: int
    value_dim: int
    rotation: tuple[str, int, int] | None
    device: torch.device


class StreamingCache(BoundedCache):
    """`fast`: window keys keep their rotation; an eviction rotates and rewrites the sinks, O(S).

    A drop-in for `model.generate(past_key_values=StreamingCache(model, policy))` and for plain
    forwards of one or several tokens. Takes the memory of twice the capacity. Once per capacity the
    window moves to the front of its buffer, and positions are re-based: for a moment its keys
    are in memory in float32 as well.
    """

    takes_long_inputs = True
    _wide_keys = False  # they are rotated once or twice in their life

    def __init__(self, model: nn.Module, policy: Policy, max_rollback: int = 0):
        self._arenas: list[Arena] = []
        self._begin: int = 0  # the slot of the first entry held
        super().__init__(model, policy, max_rollback)
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

    @property
    def _n_slots(self) -> int:
        return 2 * self.policy.capacity

    @property
    def _end(self) -> int:
        """The slot behind the last entry held."""
        return self._begin + self.size

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        if n_evicted and n_evicted == self.evicted:  # the first eviction: no sink has moved so far
            for arena in self._arenas:
                arena.save_sinks()
        self._begin += n_evicted
        is_full = self._end + n_tokens > self._n_slots
        if is_full:
            self._move_to_front()
        begin, end = self._begin, self._begin + self.size
        for arena in self._arenas:
            if base != self.base:
                arena.rotate(begin + self.policy.n_sink, end, self.base - base)
            if n_evicted or is_full or base != self.base:
                arena.place_sinks(begin, self.evicted - base)
            arena.begin_append(begin, end, n_tokens)

    def _next_base(self, n_tokens: int, n_evicted: int) -> int:
        is_due = self.seen - self.base + n_tokens > self.policy.capacity
        return self.seen if is_due else self.base

    def _move_to_front(self) -> None:
        window = self._begin + self.policy.n_sink
        for arena in self._arenas:
            arena.move(window, self._end, self.policy.n_sink)
        self._begin = 0

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        arena, layer = self._home[layer_idx]
        if not self.seen:
            arena.fit(keys)
            arena.begin_append(0, 0, keys.shape[-2])
        return arena.append(layer, keys, values)

    def _held(self, layer_idx: int, begin: int = 0, end: int | None = None) -> States:
        arena, layer = self._home[layer_idx]
        end = self.size if end is None else end
        slots = slice(self._begin + begin, self._begin + end)
        keys, values = arena.keys[layer, :, :, slots], arena.values[layer, :, :, slots]
        rotation = self.geometry.layers[layer_idx].rotation
        position = torch.arange(begin, end, device=keys.device) + self.evicted - self.base
        keys = rotated(widened(keys), rotation, -position)
        n_sink = self.policy.n_sink
        if self.evicted and begin < n_sink:  # from the copies that never moved
            places = torch.arange(begin, min(end, n_sink), device=keys.device)
            copies = arena.sinks(layer)[0][:, :, begin:end]
            sinks = rotated(widened(copies), rotation, -places)
            keys = torch.cat([sinks, keys[:, :, len(places) :]], dim=2)
        return States(keys, values)

    def _hold(self, held: Iterable[States]) -> None:
        self._begin = 0
        for layer_idx, (keys, values) in enumerate(held):
            arena, layer = self._home[layer_idx]
            place = torch.arange(self.size, device=keys.device)
            keys = rotated(keys, self.geometry.layers[layer_idx].rotation, place)
            arena.fit(values)
            arena.write(layer, 0, keys, values)
        if self.evicted:
            for arena in self._arenas:
                arena.save_sinks()

    _counts = (*BoundedCache._counts, "begin")

    def _state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        states = {
            f"{i}.{name}": held
            for i, arena in enumerate(self._arenas)
            for name, held in (arena.state(self._begin, self._end) if self.seen else {}).items()
            if self.evicted or not name.startswith("sink")
        }
        return {"begin": self._begin}, states

    def _layout(self, numbers: dict[str, int]) -> Layout:
        size = numbers["seen"] - numbers["evicted"]
        if numbers["begin"] + size > (self._n_slots if numbers["seen"] else 0):
            raise StreamFileError("is not a stream: its entries are behind the last slot")
        if not numbers["seen"]:
            return {}
        return {
            f"{i}.{name}": form
            for i, arena in enumerate(self._arenas)
            for name, form in arena.layout(size, with_sinks=numbers["evicted"] > 0).items()
        }

    def _restore(self, numbers: dict[str, int], states: dict[str, Tensor]) -> None:
        self._begin = numbers["begin"]
        devices = self._devices()
        for i, arena in enumerate(self._arenas):
            device = next(devices[i] for i, (home, _) in self._home.items() if home is arena)
            own = {k.partition(".")[2]: v for k, v in states.items() if k.startswith(f"{i}.")}
            if own:
                arena.restore(self._begin, {name: held.to(device) for name, held in own.items()})

    def _put_back(self, n: int, entries: list[States]) -> bool:
        evicted = self.evicted - n
        if n > self._begin or evicted == 0:
            return False
        self._begin -= n
        first = self.policy.n_sink
        for layer_idx, (keys, values) in enumerate(entries):
            arena, layer = self._home[layer_idx]
            position = torch.arange(n, device=keys.device) + first + evicted - self.base
            rotation = self.geometry.layers[layer_idx].rotation
            arena.write(layer, self._begin + first, rotated(keys, rotation, position), values)
        for arena in self._arenas:
            arena.place_sinks(self._begin, evicted - self.base)
        return True

    def _select(self, rows: Tensor) -> None:
        for arena in self._arenas:
            arena.select(rows)

    @property
    def batch_size(self) -> int:
        keys = self._arenas[0].keys
        return keys.shape[1] if self.seen and keys.numel() else -1

    def _forget(self) -> None:
        self._begin = 0
        for arena in self._arenas:
            arena.clear()


class RerotatingCache(StreamingCache):
    """`ours`, the paper's way: every eviction re-rotates the whole window to its new positions.

    This is expensive, which is why Lazy Pruning pays there. The keys are rotated again and again in
    the model's dtype, as published: exact in float32, a rounding per eviction in float16. bfloat16
    has three bits less, in which slow pairs would not move at all, one position at a time: there
    keys are kept in float32.
    """

    _wide_keys = True

    def _next_base(self, n_tokens: int, n_evicted: int) -> int:
        return self.seen if n_evicted else self.base


def _shape_of(layer: LayerGeometry) -> _Shape:
    rotation = layer.rotation
    kind = (rotation.layout, rotation.start, rotation.inv_freq.shape[0]) if rotation else None
    return _Shape(layer.n_kv_heads, layer.key_dim, layer.value_dim, kind, layer.device)
