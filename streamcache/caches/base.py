"""A bounded cache of a model: how it is built for the model, saved, loaded and forked.

What it is made of, from the ground up: `protocol` answers transformers, `storage` is what a kind of
cache defines, `bookkeeping` counts, and on top of that `long_inputs`, `rollback` and `rows`.
"""

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from streamcache.caches.admission import UnsupportedModelError, decoder_of
from streamcache.caches.fingerprint import Fingerprint
from streamcache.caches.hooks import attach
from streamcache.caches.probe import probe_rope
from streamcache.caches.recent_evictions import RecentEvictions
from streamcache.caches.rows import Rows
from streamcache.caches.saved import Layout, Owner, StreamFileError, read_stream, write_stream
from streamcache.policy import Policy, PolicyError, require_counts, require_policy, warn_beyond

Self = TypeVar("Self", bound="BoundedCache")


class BoundedCache(Rows):
    """A KV cache that never holds more than `policy.capacity` entries.

    A subclass stores the states of the layers: it defines `_make_room`, `_append`, `_select`,
    `_forget` and `batch_size`, and `_next_base` if it re-bases positions. One that holds what
    the policy keeps, and nothing else, may define `_held` and `_hold` and say `takes_long_inputs`:
    long inputs then go through the model in one pass, and not in pieces.

    Args:
        model: the model that will be fed, or a wrapper around it (`torch.compile`, PEFT). Hooks on
            it take inputs of any length, set positions and leave out padding; they go with
            the last cache of the model.
        policy: what to evict and when.
        max_rollback: tokens that `crop` can take back, at most W. What they have evicted is kept in
            memory.

    Attributes:
        seen: tokens appended so far; of rows of unequal length (see `lengths`) the columns of the
            batch, padding included.
        evicted: tokens evicted so far.
        base: tokens subtracted from the positions the model is given. RoPE scores depend on
            differences only; a token's place in the cache is its position less the first sink's.

    Raises:
        UnsupportedModelError: the model cannot be streamed correctly (see `probe_rope`).
        TypeError: a config in place of a model, or something else in place of a policy.
        PolicyError: `max_rollback` is negative, more than W, or more than 0 for a cache that cannot
            give back what it holds.
    """

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
        self.geometry = probe_rope(model)
        can_take_back = self.takes_long_inputs and not self.geometry.has_states
        most_taken_back = policy.floor - policy.n_sink if can_take_back else 0
        if not 0 <= max_rollback <= most_taken_back:
            raise PolicyError(
                f"max_rollback must be from 0 to {most_taken_back} here, got {max_rollback}"
            )
        self.policy = policy
        self._recent = RecentEvictions(max_rollback)
        self._some_rotate_second = any(layer.rotates_second for layer in self.geometry.layers)
        limit = self.geometry.max_position
        if limit is not None and policy.capacity > limit:
            raise UnsupportedModelError(
                f"{config.model_type} has a table of angles for {limit} positions only, and this "
                f"cache can hold {policy.capacity} entries: choose a smaller total"
            )
        most = self.geometry.max_entries
        if most is not None and policy.capacity > most:
            raise UnsupportedModelError(
                f"{config.model_type} attends to at most {most} tokens, and this cache can hold "
                f"{policy.capacity} entries: choose a smaller total"
            )
        warn_beyond(policy, getattr(config, "max_position_embeddings", None))
        self._model = model
        self._fingerprint = Fingerprint(decoder)
        self.reset()
        attach(self, model, decoder)

    def save(self, path: Path | str) -> None:
        """Write the stream to a file, from which `load` continues it bit for bit.

        Raises:
            OSError: it cannot be written.
            RuntimeError: the cache must be reset.
            ValueError: the rows of the batch are of unequal length, or layers keep a state.
        """
        self.require_intact()
        if self.parts:
            raise ValueError("rows of unequal length are saved one by one: cache.row(i).save(path)")
        if self.geometry.has_states:
            raise ValueError(
                "a stream of a model whose layers keep a state cannot be saved: keep its text, and "
                "feed that again"
            )
        numbers, states = self._state()
        numbers |= {name: getattr(self, name) for name in BoundedCache._counts}
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
        numbers, states = read_stream(Path(path), owner, self._counts, self._layout_of_possible)
        self.reset()
        with self.changing("while a stream was loaded"):
            for name in BoundedCache._counts:
                setattr(self, name, numbers[name])
            self._restore(numbers, states)
            self._recent.clear(self.seen)

    def _layout_of_possible(self, numbers: dict[str, int]) -> Layout:
        """
        Raises:
            StreamFileError: no stream has such numbers.
        """
        seen, evicted, ahead = (numbers[name] for name in ("seen", "evicted", "_ahead"))
        if (
            not ahead <= evicted <= seen
            or not seen - evicted + ahead <= self.policy.capacity
            or (evicted and seen - evicted < self.policy.floor - 1)
            or numbers["base"] > seen
        ):
            raise StreamFileError("is not a stream: its counts contradict each other or the policy")
        return self._layout(numbers)

    @torch.inference_mode(False)  # so that a copy made in inference mode may leave it
    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """A fork of the stream, which continues by itself on the same model."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        for shared in (self._model, self._fingerprint, self.geometry, self.policy):
            memo[id(shared)] = shared
        own = {k: v for k, v in vars(self).items() if k not in ("modules", "call")}
        vars(other).update({name: copy.deepcopy(value, memo) for name, value in own.items()})
        attach(other, self._model, decoder_of(self._model))
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a bounded cache belongs to one model in one process and cannot be pickled: "
            "copy.deepcopy(cache) forks its stream"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.policy}, seen={self.seen}, size={self.size})"
