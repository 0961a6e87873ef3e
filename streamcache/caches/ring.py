"""A cache of fixed shape, for compiled and captured decoding: an eviction moves no data at all.

Token t lives in slot t if it is a sink (t < S) and in slot S + (t - S) mod (C - S) otherwise, for a
capacity of C entries. So what is held is the sinks and one circular run of slots, and a step is
known by four integers. Keys keep their rotation. Instead of moving the sinks to right before the
window, the query is rotated once more, to its place in the cache, for the scores with them: scores
depend on differences only (Xiao et al. 2023, section 3.2, with the rotation on the other side).
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamcache.caches.base import BoundedCache
from streamcache.caches.layer_states import rows_of
from streamcache.caches.one_pass import rotated, widened
from streamcache.caches.retained_attention import States
from streamcache.caches.rope import RopeTable, Rotation
from streamcache.caches.saved import Layout
from streamcache.caches.side_by_side import Part
from streamcache.policy import Policy, checked_drop


class Step(NamedTuple):
    """What the decode of one token must know."""

    position: int  # of its key, and of its query for the window
    slot: int  # where its key and value go
    first: int  # the slot of the oldest window entry
    size: int  # entries it sees, itself included; its query stands at size - 1 for the sinks


class RingCache(BoundedCache):
    """`fast` in a fixed shape: a layer's keys are [B, H, C, D] and never move.

    As a drop-in (`past_key_values`) it copies what it holds at every forward and is slower than
    `StreamingCache`. It is made for an attention function that knows the steps and reads it in
    place (`kernels.attention`). Positions are re-based every few capacities, by one rotation of
    the window.

    Attributes:
        keys, values: by layer, [B, H, C, D], once allocated.
        rope_tables: by layer, how to rotate queries and keys; None where a layer does not.
    """

    takes_long_inputs = True

    def __init__(self, model: nn.Module, policy: Policy, max_rollback: int = 0):
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rope_tables: list[RopeTable | None] = []
        super().__init__(model, policy, max_rollback)

    @property
    def largest_position(self) -> int:
        """Far enough that few keys are rotated twice, near enough for float32 angles."""
        limit = self.geometry.max_position
        capacity = self.policy.capacity
        return (
            4 * capacity - 1 if limit is None else max(2 * capacity, min(4 * capacity, limit)) - 1
        )

    @torch.inference_mode(False)  # so that the stream may leave inference mode later
    def allocate(self, batch: int, dtype: torch.dtype) -> None:
        """Make the slots, and the tables to rotate queries and keys by, where the layers lie."""
        keys, values, tables = list[Tensor](), list[Tensor](), list[RopeTable | None]()
        made: list[tuple[Rotation, int, RopeTable]] = []
        for layer, device in zip(self.geometry.layers, self._devices()):
            shape = (batch, layer.n_kv_heads, self.policy.capacity)
            keys.append(torch.zeros(*shape, layer.key_dim, dtype=dtype, device=device))
            values.append(torch.zeros(*shape, layer.value_dim, dtype=dtype, device=device))
            table = None
            if rotation := layer.rotation:
                alike = (t for r, width, t in made if r is rotation and width == layer.key_dim)
                table = next(alike, None)
                if table is None:
                    table = RopeTable.of(rotation, layer.key_dim, self.largest_position, device)
                    made.append((rotation, layer.key_dim, table))
            tables.append(table)
        self.keys, self.values, self.rope_tables = keys, values, tables

    def plan(self, n_steps: int) -> list[Step]:
        """The next steps of a stream decoded token by token; fewer if positions must be re-based.

        Nothing changes: `advancing` executes the plan.
        """
        sinks, run = self.policy.n_sink, self._run
        seen, evicted = self.seen, self.evicted - self._ahead
        steps: list[Step] = []
        for _ in range(min(n_steps, self.n_steps_left)):
            evicted += checked_drop(self.policy, seen, seen - evicted)
            slot = seen if seen < sinks else sinks + (seen - sinks) % run
            first, size = sinks + evicted % run, seen - evicted + 1
            steps.append(Step(seen - self.base, slot, first, size))
            seen += 1
        return steps

    @property
    def n_steps_left(self) -> int:
        """Steps until positions must be re-based."""
        return self.largest_position + 1 - (self.seen - self.base)

    @contextmanager
    def advancing(self, *steps: Step) -> Iterator[None]:
        """Count a token once it was decoded, and stored, as planned; not if that fails.

        Counting is the last line that runs: what is interrupted before it has changed nothing.

        Args:
            steps: one; or, where rows are of unequal length, one for each of the `streams`.
        """
        yield
        for ring, step in zip(self.streams, steps):
            ring.seen, ring.evicted, ring._ahead = ring.seen + 1, ring.seen + 1 - step.size, 0
        if self.parts:
            self._count_parts()

    @property
    def streams(self) -> list["RingCache"]:
        """The caches that are planned: one for all rows, or one for each part of unequal ones."""
        return [part.cache for part in self.parts] or [self]

    def begin_row(self, row: int) -> "RingCache":
        """End the stream of a row. A cache for the next, in the same slots; it is to be fed, and
        `align_rows` called. Until then this cache refuses all calls."""
        if len(self.parts) < self.batch_size:
            self._part_all_rows()
        stream: RingCache = self.parts[row].cache
        stream.reset()
        return stream

    def align_rows(self) -> None:
        """Align the rows again after one of them has begun a new stream."""
        self._align(self.parts)

    def _part_all_rows(self) -> None:
        parts: list[Part] = []
        for whole in self.parts or [Part(self, self.batch_size, 0)]:
            for n in range(whole.n_rows):
                row = self._empty_part(len(parts), 1)
                for count in ("seen", "evicted", "base", "_ahead"):
                    setattr(row, count, getattr(whole.cache, count))
                row.layers = rows_of(whole.cache.layers, torch.tensor([n]))
                parts.append(Part(row, 1, whole.lead))
        self._hold_parts(parts)

    def _empty_part(self, first: int, n_rows: int) -> "RingCache":
        """A cache in the same slots, if there are any."""
        rows = slice(first, first + n_rows)
        memo: dict[int, object] = {
            id(slots): [layer[rows] for layer in slots] for slots in (self.keys, self.values)
        }
        memo |= {id(self.rope_tables): self.rope_tables, id(self.parts): []}
        return copy.deepcopy(self, memo)

    def rebase(self) -> None:
        """Re-base positions: the window's keys are rotated to their places in the cache."""
        with self.changing("while positions were re-based"):
            self._rotate_window(self.base - self.evicted)
            self.base = self.evicted

    def _rotate_window(self, offset: int) -> None:
        for keys, layer in zip(self.keys, self.geometry.layers):
            if layer.rotation is not None:
                layer.rotation.rotate_(keys[:, :, self.policy.n_sink :], offset)

    def _forget(self) -> None:
        """The slots stay where they are.

        They are emptied: slots that hold nothing yet are read, and counted for nothing, and nothing
        times a NaN of an earlier stream would be NaN.
        """
        for slots in (*self.keys, *self.values):
            slots.zero_()

    @property
    def _run(self) -> int:
        return self.policy.capacity - self.policy.n_sink

    def _next_base(self, n_tokens: int, n_evicted: int) -> int:
        limit = self.geometry.max_position or self.largest_position + 1
        is_due = self.seen - self.base + n_tokens > limit
        return self.evicted + n_evicted if is_due else self.base

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        if base != self.base:
            self._rotate_window(self.base - base)

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if not self.keys or (self.seen == 0 and keys.shape[0] != self.batch_size):
            self.allocate(keys.shape[0], keys.dtype)
        n_sink, end = self.policy.n_sink, self.seen + keys.shape[-2]
        held = self.keys[layer_idx], self.values[layer_idx]
        new, kept = self._slots(layer_idx, self.seen, end), self._slots_held(layer_idx, end)
        for slots, states in zip(held, (keys, values)):
            slots.index_copy_(2, new, states.to(slots.dtype))  # autocast mixes them
        all_keys, all_values = (slots.index_select(2, kept) for slots in held)
        offset = self.evicted - self.base
        if n_sink and offset and (rotation := self.geometry.layers[layer_idx].rotation):
            rotation.rotate_(all_keys[:, :, :n_sink], offset)
        return all_keys, all_values

    def _held(self, layer_idx: int, begin: int = 0, end: int | None = None) -> States:
        n_sink = self.policy.n_sink
        slots = self._slots_held(layer_idx, self.seen)[begin:end]
        keys = self.keys[layer_idx].index_select(2, slots)
        values = self.values[layer_idx].index_select(2, slots)
        # Sinks keep the position that they came with, before any re-basing.
        position = torch.arange(self.size, device=keys.device)
        position[n_sink:] += self.evicted - self.base
        rotation = self.geometry.layers[layer_idx].rotation
        return States(rotated(widened(keys), rotation, -position[begin:end]), values)

    def _hold(self, held: Iterable[States]) -> None:
        for layer_idx, (keys, values) in enumerate(held):
            if not self.keys or values.shape[0] != self.batch_size:
                self.allocate(values.shape[0], values.dtype)
            slots = self._slots_held(layer_idx, self.seen)
            place = torch.arange(self.size, device=keys.device)
            keys = rotated(keys, self.geometry.layers[layer_idx].rotation, place)
            for all_slots, states in ((self.keys, keys), (self.values, values)):
                all_slots[layer_idx].index_copy_(2, slots, states.to(all_slots[layer_idx].dtype))

    def _state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        slots = {"keys": self.keys, "values": self.values} if self.seen else {}
        return {}, {f"{name}.{i}": s for name, held in slots.items() for i, s in enumerate(held)}

    def _layout(self, numbers: dict[str, int]) -> Layout:
        return {
            f"{kind}.{layer}": self._form(layer, kind, self.policy.capacity)
            for kind in ("keys", "values")
            for layer in range(len(self) if numbers["seen"] else 0)
        }

    def _restore(self, numbers: dict[str, int], states: dict[str, Tensor]) -> None:
        if not states:
            return
        like = states["values.0"]
        if like.shape[0] != self.batch_size:
            self.allocate(like.shape[0], like.dtype)
        for i, (keys, values) in enumerate(zip(self.keys, self.values)):
            keys.copy_(states[f"keys.{i}"])
            values.copy_(states[f"values.{i}"])

    def _put_back(self, n: int, entries: list[States]) -> bool:
        end = self.policy.n_sink + self.evicted
        for layer_idx, (keys, values) in enumerate(entries):
            slots = self._slots(layer_idx, end - n, end)
            position = torch.arange(end - n, end, device=keys.device) - self.base
            keys = rotated(keys, self.geometry.layers[layer_idx].rotation, position)
            for all_slots, states in ((self.keys, keys), (self.values, values)):
                all_slots[layer_idx].index_copy_(2, slots, states.to(all_slots[layer_idx].dtype))
        return True

    def _slots_held(self, layer_idx: int, end: int) -> Tensor:
        """Where a layer has the tokens before `end` that are held, in order."""
        n_sink = self.policy.n_sink
        sinks = self._slots(layer_idx, 0, min(n_sink, end))
        return torch.cat([sinks, self._slots(layer_idx, n_sink + self.evicted, end)])

    def _slots(self, layer_idx: int, begin: int, end: int) -> Tensor:
        tokens = torch.arange(begin, max(begin, end), device=self.keys[layer_idx].device)
        n_sink = self.policy.n_sink
        return torch.where(tokens < n_sink, tokens, n_sink + (tokens - n_sink) % self._run)

    @torch.inference_mode(False)
    def _select(self, rows: Tensor) -> None:
        if self.keys:
            self.keys = [keys.index_select(0, rows.to(keys.device)) for keys in self.keys]
            self.values = [held.index_select(0, rows.to(held.device)) for held in self.values]

    @property
    def batch_size(self) -> int:
        return self.keys[0].shape[0] if self.keys else -1
