"""What every bounded cache has in common: the bookkeeping of a stream and transformers' protocol.

A forward pass over n tokens is `prepare(n)`, which decides what to evict and where positions start
and changes nothing; one `update` per layer, the first of which evicts; and `finish`, which counts
the tokens. The hooks on the model (see `hooks`) call the first and the last. So a forward that
fails before its first `update` has changed nothing, one that fails later can be run again, and
where neither holds the cache refuses every call until `reset()`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from streamcache.caches.admission import UnsupportedModelError, decoder_of
from streamcache.caches.fingerprint import Fingerprint
from streamcache.caches.hooks import attach, uncompiled
from streamcache.caches.one_pass import OnePass
from streamcache.caches.probe import probe_rope
from streamcache.caches.retained_attention import States
from streamcache.caches.rollback import Eviction, RecentEvictions
from streamcache.caches.saved import Owner, read_stream, write_stream
from streamcache.policy import (
    Policy,
    PolicyError,
    between_evictions,
    checked_drop,
    evicts_inside,
    require_counts,
    require_policy,
    warn_beyond,
)

Self = TypeVar("Self", bound="BoundedCache")


@dataclass
class Forward:
    """What the forward pass at work does to a cache."""

    n_tokens: int
    n_evicted: int  # entries to evict before the append
    base: int  # of positions, from this forward on
    has_room: bool = False  # whether that was done
    updated: set[int] = field(default_factory=set)  # layers that have appended


class BoundedCache(Cache, ABC):
    """A KV cache that never holds more than `policy.capacity` entries.

    A subclass stores the states of the layers: it defines `_make_room`, `_append`, `_select`,
    `_forget` and `batch_size`, and `_next_base` if it starts positions anew. One that holds what
    the policy keeps, and nothing else, may define `_held` and `_hold` and say `takes_long_inputs`:
    long inputs then go through the model in one pass, and not in pieces.

    Args:
        model: the model that will be fed, or a wrapper around it (`torch.compile`, PEFT). Hooks on
            it take inputs of any length, set positions and refuse padding; they go with
            the last cache of the model.
        policy: what to evict and when.
        max_rollback: tokens that `crop` can take back, at most W. What they have evicted is kept in
            memory.

    Attributes:
        seen: tokens appended so far.
        evicted: tokens evicted so far.
        base: tokens subtracted from the positions the model is given. RoPE scores depend on
            differences only; a token's place in the cache is its position less the first sink's.

    Raises:
        UnsupportedModelError: the model cannot be streamed correctly (see `probe_rope`).
        TypeError: a config in place of a model, or something else in place of a policy.
        PolicyError: `max_rollback` is negative, more than W, or more than 0 for a cache that cannot
            give back what it holds.
    """

    takes_long_inputs: ClassVar[bool] = False
    looks_at_content: ClassVar[bool] = False

    def __init__(self, model: nn.Module, policy: Policy, max_rollback: int = 0):
        super().__init__(layers=[])
        if isinstance(model, PreTrainedConfig):
            raise TypeError(
                "pass the model itself, not its config: without hooks on a model, padding would "
                "become the attention sinks, and positions would grow without bound"
            )
        decoder = decoder_of(model)
        require_policy(policy)
        if not self.looks_at_content:
            require_counts(policy)
        config = decoder.config.get_text_config(decoder=True)
        most_taken_back = policy.floor - policy.n_sink if self.takes_long_inputs else 0
        if not 0 <= max_rollback <= most_taken_back:
            raise PolicyError(
                f"max_rollback must be from 0 to {most_taken_back} here, got {max_rollback}"
            )
        self.policy = policy
        self._recent = RecentEvictions(max_rollback)
        self.geometry = probe_rope(model)
        limit = self.geometry.max_position
        if limit is not None and policy.capacity > limit:
            raise UnsupportedModelError(
                f"{config.model_type} rotates its keys by a table that holds for {limit} positions "
                f"and this cache holds {policy.capacity}; choose a smaller total"
            )
        most = self.geometry.max_entries
        if most is not None and policy.capacity > most:
            raise UnsupportedModelError(
                f"{config.model_type} attends to at most {most} tokens and this cache holds "
                f"{policy.capacity}; choose a smaller total"
            )
        warn_beyond(policy, getattr(config, "max_position_embeddings", None))
        self._model = model
        self._fingerprint = Fingerprint(decoder)
        self.reset()
        attach(self, model, decoder)

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

    def reset(self) -> None:
        """Forget the stream."""
        self._damage: str | None = "interrupted in reset()"
        self._forward: Forward | None = None
        self._forget()
        self._recent.clear()
        self.seen = self.evicted = self.base = 0
        self._ahead = 0  # entries evicted for a forward that was then interrupted
        self._half_fed = False  # with a long input
        self._damage = None

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    @property
    def size(self) -> int:
        """Entries held."""
        return self.seen - self.evicted

    @property
    def next_position(self) -> int:
        """The position the model must give to the next token."""
        return self.seen - (self._forward.base if self._forward else self.base)

    @contextmanager
    def changing(self, act: str) -> Iterator[None]:
        """A change that must be finished: interrupted, it leaves a cache that refuses all calls."""
        self._damage = f"interrupted {act}"
        yield
        self._damage = None

    def require_intact(self) -> None:
        """
        Raises:
            RuntimeError: a change of the cache, or a long input, was interrupted.
        """
        if self._half_fed:
            raise RuntimeError(
                f"a long input was interrupted, and of its tokens some are among the {self.seen} "
                "seen: reset() the cache to start anew"
            )
        if self._damage:
            raise RuntimeError(f"this cache was {self._damage}: reset() it to start anew")

    def require_same_model(self) -> None:
        """
        Raises:
            RuntimeError: the model takes its angles from other numbers than when it was probed.
        """
        self._fingerprint.undo_growth()
        if not self._fingerprint.is_current():
            raise RuntimeError(
                "the model was cast, or its rotary frequencies changed, after this cache was built "
                "for it: build a new cache"
            )

    def save(self, path: Path | str) -> None:
        """Write the stream to a file, from which `load` goes on bit for bit.

        Raises:
            OSError: it cannot be written.
            RuntimeError: the cache must be reset.
        """
        self.require_intact()
        numbers, states = self._state()
        numbers |= {name: getattr(self, name) for name in ("seen", "evicted", "base", "_ahead")}
        write_stream(Path(path), Owner.of(self, self.policy, self._model), numbers, states)

    def load(self, path: Path | str) -> None:
        """Go on with a stream that `save` has written, in place of this one.

        Tokens that were fed before cannot be taken back.

        Raises:
            OSError: the file cannot be read.
            StreamFileError: it holds no stream, was damaged, or is the stream of another cache,
                policy or model. The cache is then what it was.
        """
        owner = Owner.of(self, self.policy, self._model)
        numbers, states = read_stream(Path(path), owner)
        self.reset()
        with self.changing("while a stream was loaded"):
            for name in ("seen", "evicted", "base", "_ahead"):
                setattr(self, name, numbers[name])
            self._restore(numbers, states)
            self._recent.clear(self.seen)

    def prepare(self, n_tokens: int, rebase: bool = True) -> None:
        """Decide what the next forward evicts, and where its positions start; change nothing.

        Where positions start anew, the next token gets a small position and what is held is
        rotated to before it. So the angles a model takes in float32 stay small.

        Args:
            n_tokens: of which only the first may evict.
            rebase: whether the model can be told positions.
        """
        n_evicted = checked_drop(self.policy, self.seen, self._size_before) - self._ahead
        self._forward = None
        base = self._next_base(n_tokens, n_evicted) if rebase else self.base
        self._forward = Forward(n_tokens, n_evicted, base)
        limit = self.geometry.max_position
        if limit is not None and self.next_position + n_tokens > limit:
            self._forward = None
            raise UnsupportedModelError(
                f"position {limit} is past the model's table of angles, and the model takes no "
                "position_ids by which positions could start anew"
            )

    @property
    def _size_before(self) -> int:
        """Entries that the last finished forward left."""
        return self.size + self._ahead

    def evicts_inside(self, n_tokens: int) -> bool:
        """Whether the next `n_tokens` do not all see what the first one sees, and each other."""
        return evicts_inside(self.policy, self.seen, self._size_before, n_tokens)

    def pieces(self, n_tokens: int) -> list[int]:
        """Lengths of the pieces of the next `n_tokens` in which only the first token evicts."""
        return between_evictions(self.policy, self.seen, self._size_before, n_tokens)

    def begin_pass(self, copy: PreTrainedModel) -> OnePass | None:
        """A causal pass over the tokens to come, from what is held; None: not for this cache.

        Args:
            copy: of the model, made by `with_override`.
        """
        if not self.takes_long_inputs:
            return None
        held = [self._held(layer) for layer in range(len(self))] if self.seen else []
        counts = self.seen, self.evicted, self._ahead
        return OnePass(copy, self.geometry, self.policy, *counts, held)

    def beyond_rollback(self, n_tokens: int) -> int:
        """How many of the next tokens are not among those that can be taken back afterwards."""
        most = self._recent.max_rollback
        return max(0, n_tokens - most) if most else 0

    def take(self, one_pass: OnePass) -> None:
        """Hold what the stream holds at the end of a pass, the beginning of a longer input."""
        with self.changing("while it took a long input"):
            if self.seen and one_pass.evicted - self.evicted <= self.size - self.policy.n_sink:
                self._take_new(one_pass)
            else:
                self._recent.clear(one_pass.seen)
                self._hold_all(
                    one_pass.seen,
                    one_pass.evicted,
                    (one_pass.held(layer) for layer in range(len(self))),
                )
            self._forward, self._ahead = None, 0
            self._recent.forget_before(self.seen)
            self._half_fed = True

    def _take_new(self, one_pass: OnePass) -> None:
        """Append the tokens of a pass. What stays is not touched: rounding it would add up."""
        n_new, n_evicted = one_pass.seen - self.seen, one_pass.evicted - self.evicted
        self._remember(n_new)
        base = self._next_base(n_new, n_evicted)
        self.evicted += n_evicted
        self._make_room(n_new, n_evicted, base)
        self.base = base
        for layer in range(len(self)):
            keys, values = one_pass.newest(layer, n_new, base)
            self._append(layer, keys, values)
        self.seen += n_new

    def _hold_all(self, seen: int, evicted: int, held: Iterable[States]) -> None:
        self.seen, self.evicted = seen, evicted
        self.base = evicted  # so that every entry is at the position of its place
        self._hold(held)

    def _remember(self, n_tokens: int) -> None:
        """Keep what the next tokens evict, of what is held, as far as they may be taken back."""
        if not self._recent.max_rollback:
            return
        evicted = self.evicted - self._ahead
        for seen in range(self.seen, self.seen + n_tokens):
            n = checked_drop(self.policy, seen, seen - evicted)
            evicted += n
            end = self.policy.n_sink + evicted - self.evicted
            begin = max(self.policy.n_sink, end - n)  # some are gone where it was interrupted
            if begin < end:
                held = [self._held(layer, begin, end) for layer in range(len(self))]
                copies = [States(*(s.clone() for s in states)) for states in held]
                self._recent.add(Eviction(seen, end - begin, copies))
        self._recent.forget_before(self.seen + n_tokens)

    def evict(self) -> None:
        """Do what `prepare` has decided."""
        forward = self._prepared()
        with self.changing("while it evicted"):
            self._remember(1)
            self.evicted += forward.n_evicted
            self._ahead += forward.n_evicted
            self._make_room(forward.n_tokens, forward.n_evicted, forward.base)
            self.base = forward.base
            forward.has_room = True

    @uncompiled
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append a layer's new states [B, H, n, D]; all that the layer holds [B, H, size + n, D].

        Raises:
            RuntimeError: no forward was prepared, or another one.
            ValueError: a batch of another size than the cache holds.
        """
        forward = self._prepared()
        if key_states.shape[-2] != forward.n_tokens or layer_idx in forward.updated:
            raise RuntimeError(
                f"layer {layer_idx} appends {key_states.shape[-2]} tokens to the cache in a forward"
                f" of {forward.n_tokens}, or a second time: it cannot be streamed"
            )
        if not forward.has_room:
            if self.seen and key_states.shape[0] != self.batch_size:
                raise ValueError(
                    f"the cache holds a batch of {self.batch_size} streams and is given "
                    f"{key_states.shape[0]}: reset() it to start anew"
                )
            self.evict()
        held = self._append(layer_idx, key_states.detach(), value_states.detach())
        forward.updated.add(layer_idx)
        return held

    def finish(self, more_to_come: bool = False) -> None:
        """Count the tokens of the forward, once all layers have appended them.

        Args:
            more_to_come: they are a part of a longer input. Until the rest is counted, too, the
                cache refuses another input.

        Raises:
            RuntimeError: some layers have not.
        """
        forward = self._prepared()
        if len(forward.updated) < len(self):
            self._forward = None
            raise RuntimeError(
                f"{len(forward.updated)} of {len(self)} layers have appended to the cache: the "
                "model was called in a way that uses none (gradient checkpointing does so)"
            )
        with self.changing("while it counted tokens"):
            self._count(forward.n_tokens)
            self.seen += forward.n_tokens
            self._ahead = 0
            self._forward = None
            self._recent.forget_before(self.seen)
            self._half_fed = more_to_come

    def _prepared(self) -> Forward:
        if self._forward is None:
            raise RuntimeError(
                "the cache is fed by another model than it was built for, or by a part of it"
            )
        return self._forward

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """All tokens seen: what `generate` slices its inputs by."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        kept = self.size
        if self._forward and not self._forward.has_room:
            kept -= self._forward.n_evicted
        return kept + query_length, self.seen - kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.require_intact()
        with self.changing("while rows of its batch were chosen"):
            self._recent.select(indices)
            self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.batch_size, device="cpu")
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens: the stream is what it was before them.

        Args:
            tokens_to_remove: minus their number; or, above 0, how many tokens stay seen.

        Raises:
            ValueError: more than were seen, or to more than `max_rollback` tokens before the most
                that the stream has been: several calls together reach no further than one.
            RuntimeError: the cache must be reset.
        """
        n = int(tokens_to_remove)
        seen = min(n, self.seen) if n > 0 else self.seen + n
        if seen == self.seen:
            return
        if self.seen - seen > self._recent.max_rollback or seen < self._recent.known_from:
            raise ValueError(
                f"{self.seen - seen} of {self.seen} tokens cannot be taken back from a cache with "
                f"max_rollback={self._recent.max_rollback}"
            )
        self.require_intact()
        with self.changing("while tokens were taken back"):
            undone = self._recent.since(seen)
            n_undone = sum(eviction.n for eviction in undone)
            entries = [_joined(states) for states in zip(*(e.states for e in undone))]
            if seen < self.base or (undone and not self._put_back(n_undone, entries)):
                held = [self._before(layer, entries, seen) for layer in range(len(self))]
                self._hold_all(seen, self.evicted - n_undone, held)
            else:
                self.evicted -= n_undone
            self._forward, self._ahead, self.seen = None, 0, seen
            self._recent.undo(seen)

    def _before(self, layer: int, entries: list[States], seen: int) -> States:
        """What a layer held when so many tokens were seen, given what was evicted since."""
        n_sink, held = self.policy.n_sink, self._held(layer)
        sinks, run = (
            States(*(s[:, :, :n_sink] for s in held)),
            States(*(s[:, :, n_sink:] for s in held)),
        )
        whole = _joined([sinks, *entries[layer : layer + 1], run])
        return States(*(s[:, :, : s.shape[2] - (self.seen - seen)] for s in whole))

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1  # the stream has no end

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_croppable(self) -> bool:
        return self._recent.max_rollback > 0

    @property
    def is_initialized(self) -> bool:
        return self.seen > 0

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

    def activate_past_recording(self) -> None:
        """What is taken back must have been kept: `max_rollback` says how much.

        Raises:
            ValueError: nothing is.
        """
        if not self.is_croppable:
            raise ValueError(
                "drafts are taken back where the model disagrees: build the cache with "
                "max_rollback of at least the longest draft, and one more"
            )

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("a bounded cache allocates what it needs in its first forward")

    @torch.inference_mode(False)  # so that a copy made in inference mode may leave it
    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """A fork of the stream, which goes on by itself on the same model."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        for shared in (self._model, self._fingerprint, self.geometry, self.policy):
            memo[id(shared)] = shared
        other.__dict__.update({k: copy.deepcopy(v, memo) for k, v in self.__dict__.items()})
        attach(other, self._model, decoder_of(self._model))
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a bounded cache is of one model in one process, and cannot be pickled: "
            "copy.deepcopy(cache) forks its stream"
        )

    def __len__(self) -> int:
        return len(self.geometry.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.policy}, seen={self.seen}, size={self.size})"


def _joined(parts: Iterable[States]) -> States:
    """States one after another."""
    return States(*(torch.cat(each, dim=2) for each in zip(*parts)))
