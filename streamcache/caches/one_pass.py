"""Many tokens of a stream in one causal pass, without decoding them one by one.

For a known input, the policy alone determines what a cache holds after every token. So all queries
can be computed at once: query t attends to the sinks, as if they stood right before its window, and
to its window, the tokens S + evicted(t) ... t. A stream of StreamingLLM (Xiao et al. 2023,
section 3.2) is then a prefill with an unusual mask.

The model is given position 0 for every token, so its queries and keys are unrotated.
They are rotated here, by angles taken in float64: as exact at token 10^7 as at the first.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.attention_override import (
    AttentionOverrideError,
    Scores,
    forward_unrotated,
    use_attention,
)
from streamcache.caches.probe import ModelGeometry
from streamcache.caches.retained_attention import (
    Band,
    States,
    oldest_in_run,
    retained_attention,
)
from streamcache.caches.rope import RopeTable, Rotation
from streamcache.policy import Policy, checked_drop

# Tokens a block, by device: few need little memory, many keep a GPU busy.
_BLOCK = {"cpu": 256, "cuda": 4096}
_TRITON = find_spec("triton") is not None


def block_size(device: torch.device) -> int:
    """Tokens that go through a model at a time."""
    return _BLOCK.get(device.type, 1024)


class OnePass:
    """Streams side by side on their way through a model, block by block.

    Beside what the model computes, memory grows with the capacity and a block, not with the text.

    Args:
        model: a copy made by `with_override`.
        geometry: how its layers rotate their keys.
        policy: what to evict and when.
        seen, evicted: tokens, where the streams are under way.
        ahead: of the evicted, those that go for the next token.
        held: then of each layer what is held, in order of the stream, keys as at position 0.
        for_cache: a cache will hold what the pass leaves.

    Attributes:
        seen, evicted: tokens so far.

    Raises:
        AttentionOverrideError: in `feed`, where no cache can hold it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: ModelGeometry,
        policy: Policy,
        seen: int = 0,
        evicted: int = 0,
        ahead: int = 0,
        held: Sequence[States] = (),
        for_cache: bool = False,
    ):
        if any(layer.rotates_second for layer in geometry.layers):
            raise AttentionOverrideError("multi-head latent attention attends to other keys")
        self.model, self.layers, self.policy = model, geometry.layers, policy
        self._places, self._for_cache = geometry.places, for_cache
        self.seen, self.evicted, self._ahead = seen, evicted, ahead
        self._first_key = oldest_in_run(evicted, policy.n_sink)  # of the runs
        self._runs: dict[int, States] = {}  # by layer; keys rotated to the number of their token
        self._sinks: dict[int, States] = {}
        for layer, states in enumerate(held):
            self._take(layer, states)

    def feed(self, tokens: Tensor, **options: Any) -> Any:
        """The model's output for the next block.

        Args:
            tokens: ids [B, n] or embeddings [B, n, D].
            options: further arguments of the model's forward.
        """
        n_tokens, evicted = tokens.shape[1], self.evicted - self._ahead
        counts: list[int] = []
        for seen in range(self.seen, self.seen + n_tokens):
            evicted += checked_drop(self.policy, seen, seen - evicted)
            counts.append(evicted)
        self._counts = counts
        self._bands: dict[torch.device, Band] = {}  # the layers may lie on several devices
        self._angles: dict[int, tuple[Angles, Angles]] = {}
        self._tables: dict[tuple[int, int], tuple[RopeTable, RopeTable]] = {}
        with use_attention(self._attend):
            output = forward_unrotated(self.model, tokens, **options)
        self._first_key = oldest_in_run(counts[0], self.policy.n_sink)
        self.seen, self.evicted, self._ahead = self.seen + n_tokens, evicted, 0
        return output

    @torch.no_grad()
    def feed_all(self, tokens: Tensor, **options: Any) -> list[Any]:
        """The model's outputs for the blocks of a longer input: see `feed`."""
        size = block_size(tokens.device)
        return [self.feed(block, **options) for block in tokens.split(size, dim=1)]

    def positions(self, tokens: Tensor) -> Tensor:
        """Of tokens with these numbers [n]: keys of sinks and run, and queries to the run."""
        return tokens

    def positions_for_sinks(self, tokens: Tensor, evicted: Tensor) -> Tensor:
        """Of queries with these numbers [n] to the sinks, where so many [n] were evicted."""
        return tokens - evicted

    def held(self, layer: int) -> States:
        """What a layer holds [B, Hkv, size, D], in order of the stream.

        Keys are as at position 0, in the next wider dtype.
        """
        oldest = oldest_in_run(self.evicted, self.policy.n_sink)
        keys, values = (states[:, :, oldest - self._first_key :] for states in self._runs[layer])
        tokens = torch.arange(oldest, self.seen, device=keys.device)
        if self.evicted:
            sinks = self._sinks[layer]
            tokens = torch.cat([torch.arange(self.policy.n_sink, device=keys.device), tokens])
            keys, values = (torch.cat(s, dim=2) for s in zip(sinks, (keys, values)))
        back = -self.positions(tokens)
        return States(rotated(widened(keys), self.layers[layer].rotation, back), values)

    def newest(self, layer: int, n_tokens: int, base: int) -> States:
        """The states of the newest tokens [B, Hkv, n, D], keys at their positions less `base`."""
        keys, values = (states[:, :, -n_tokens:] for states in self._runs[layer])
        offset = torch.full((n_tokens,), -base, device=keys.device)
        rotation = self.layers[layer].rotation
        return States(rotated(widened(keys), rotation, offset).to(keys.dtype), values)

    def _take(self, layer: int, held: States) -> None:
        """Go on from what a layer holds."""
        held = States(*(states.to(self.layers[layer].device) for states in held))
        n_sink, oldest = self.policy.n_sink, self._first_key
        tokens = torch.arange(oldest, self.seen, device=held.keys.device)
        if self.evicted:
            tokens = torch.cat([torch.arange(n_sink, device=tokens.device), tokens])
        positions = self.positions(tokens)
        keys = rotated(held.keys, self.layers[layer].rotation, positions).to(held.values.dtype)
        states = States(keys, held.values)
        self._sinks[layer] = States(*(s[:, :, :n_sink].clone() for s in states))
        n_apart = n_sink if self.evicted else 0
        self._runs[layer] = States(*(s[:, :, n_apart:] for s in states))

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Unrotated states [B, H, n, D] to [B, n, H, Dv]: see `attention_override.Attention`."""
        layer = self._places[layer]
        if self._for_cache and key.shape[1] != self.layers[layer].n_kv_heads:  # JetMoE repeats them
            raise AttentionOverrideError("a layer attends to other keys than it gives to a cache")
        rotation, band = self.layers[layer].rotation, self._band_on(query.device)
        query, key = query.to(value.dtype), key.to(value.dtype)  # autocast mixes them
        if _TRITON and query.is_cuda and query.element_size() == 2 and query.shape[-1] <= 256:
            return self._attend_by_kernels(layer, query, States(key, value), scores)
        to_sinks = query
        if rotation is not None:
            here, in_cache = self._angles_of(rotation, band)
            if band.has_evicted and band.n_sink:
                to_sinks = rotate(query, rotation, in_cache)
            query, key = rotate(query, rotation, here), rotate(key, rotation, here)
        run = States(key, value)
        if before := self._runs.get(layer):
            stale = band.first_key - self._first_key
            run = States(
                *(torch.cat([a[:, :, stale:].to(b.dtype), b], dim=2) for a, b in zip(before, run))
            )
        if band.first_key == 0:
            self._sinks[layer] = States(*(s[:, :, : band.n_sink].clone() for s in run))
        self._runs[layer] = run
        return retained_attention(query, to_sinks, run, self._sinks[layer], band, scores)

    def _attend_by_kernels(self, layer: int, query: Tensor, new: States, scores: Scores) -> Tensor:
        """The same by two kernels, which rotate the states as they read them."""
        from streamcache.caches import retained_attention_triton as kernels

        rotation, band = self.layers[layer].rotation, self._band_on(query.device)
        tables = self._tables_of(rotation, query.shape[-1], band) if rotation else (None, None)
        before, n_held = self._runs.get(layer), band.first - band.first_key
        batch, n_heads, n_new, _ = new.keys.shape
        run = States(*(s.new_empty(batch, n_heads, n_held + n_new, s.shape[-1]) for s in new))
        if before:
            stale = band.first_key - self._first_key
            for old, all_states in zip(before, run):
                all_states[:, :, :n_held] = old[:, :, stale:]
        kernels.append(*new, *run, n_held, tables[0])
        if band.first_key == 0:
            self._sinks[layer] = States(*(s[:, :, : band.n_sink].clone() for s in run))
        self._runs[layer] = run
        limits = band.limits(scores.sliding_window)
        return kernels.attend(query, run, self._sinks[layer], *limits, tables, scores)

    def _band_on(self, device: torch.device) -> Band:
        """The band of the current block, for the layers on a device."""
        if device not in self._bands:
            self._bands[device] = Band(self.seen, self._counts, self.policy.n_sink, device)
        return self._bands[device]

    def _tables_of(self, rotation: Rotation, width: int, band: Band) -> tuple[RopeTable, RopeTable]:
        """What `_angles_of` gives, as tables for states of a width."""
        if (id(rotation), width) not in self._tables:
            tokens, evicted = band.queries()
            here, in_cache = self.positions(tokens), self.positions_for_sinks(tokens, evicted)
            self._tables[id(rotation), width] = (
                RopeTable.at(rotation, width, here),
                RopeTable.at(rotation, width, in_cache),
            )
        return self._tables[id(rotation), width]

    def _angles_of(self, rotation: Rotation, band: Band) -> tuple["Angles", "Angles"]:
        """Of the block's tokens: to their numbers, and to their places after all evictions."""
        if id(rotation) not in self._angles:
            tokens, evicted = band.queries()
            self._angles[id(rotation)] = (
                angles(rotation, self.positions(tokens)),
                angles(rotation, self.positions_for_sinks(tokens, evicted)),
            )
        return self._angles[id(rotation)]


class Angles(NamedTuple):
    """Cosines and sines [n, pairs] of n tokens, in float64."""

    cos: Tensor
    sin: Tensor


def angles(rotation: Rotation, positions: Tensor) -> Angles:
    phase = rotation.to(positions.device).phase(positions)
    return Angles(phase.real, phase.imag)


def widened(states: Tensor) -> Tensor:
    """In the next wider dtype, so that what is done between two roundings adds none."""
    return states.to(torch.float32 if states.element_size() == 2 else torch.float64)


def rotate(states: Tensor, rotation: Rotation, by: Angles) -> Tensor:
    """States [B, H, n, D] rotated in float32, or float64, and rounded once."""
    pairs = rotation.pairs(states)
    x, y = pairs.to(torch.promote_types(pairs.dtype, torch.float32)).unbind(dim=-1)
    cos, sin = by.cos.to(x.dtype), by.sin.to(x.dtype)
    out = states.clone()
    out_x, out_y = rotation.pairs(out).unbind(dim=-1)
    out_x.copy_(x * cos - y * sin)
    out_y.copy_(x * sin + y * cos)
    return out


def rotated(states: Tensor, rotation: Rotation | None, positions: Tensor) -> Tensor:
    """States [B, H, n, D] moved by as many positions as their token has: int64 [n]."""
    return states if rotation is None else rotate(states, rotation, angles(rotation, positions))
