"""The bookkeeping of a stream: what a forward pass evicts, and when its tokens are counted.

A forward pass over n tokens is `prepare(n)`, which decides what to evict and where positions start
and changes nothing; one `update` per layer, the first of which evicts; and `finish`, which counts
the tokens. The hooks on the model (see `hooks`) call the first and the last. So a forward that
fails before its first `update` has changed nothing, one that fails later can be run again, and
where neither holds the cache refuses every call until `reset()`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from streamcache.caches.admission import UnsupportedModelError, decoder_of
from streamcache.caches.call import Call
from streamcache.caches.fingerprint import Fingerprint
from streamcache.caches.layer_states import cut_gradients, select, state_layers
from streamcache.caches.recent_evictions import Eviction, RecentEvictions
from streamcache.caches.retained_attention import States
from streamcache.caches.storage import Storage
from streamcache.policy import checked_drop

Self = TypeVar("Self", bound="Bookkeeping")


@dataclass
class Forward:
    """What the current forward pass does to a cache."""

    n_tokens: int
    n_evicted: int  # entries to evict before the append
    base: int  # of positions, from this forward on
    to_come: set[int]  # layers that have not appended yet
    has_room: bool = False  # whether entries were evicted


class Bookkeeping(Storage):
    """Counts tokens and entries, and knows whether all that was begun has been finished."""

    modules: tuple[nn.Module, ...]  # of the model, that have hooks for this cache
    call: Call | None = None  # the current call of the model
    _fingerprint: Fingerprint
    _some_rotate_second: bool  # whether a layer does
    _recent: RecentEvictions

    def reset(self) -> None:
        """Forget the stream."""
        with self.changing("in reset()"):
            self._clear()

    def _clear(self) -> None:
        self._forward: Forward | None = None
        self._forget()
        self._recent.clear()
        self.seen = self.evicted = self.base = 0
        self._ahead = 0  # entries evicted for a forward that was then interrupted
        self._before_turn = 0  # tokens that `generate` does not count
        self._half_fed = False  # with a long input
        self._states_moved = False  # of layers, in a forward that has not ended
        self.layers = self._new_states()

    @property
    def next_position(self) -> int:
        """The position the model must give to the next token."""
        return self.seen - (self._forward.base if self._forward else self.base)

    @contextmanager
    def changing(self, act: str) -> Iterator[None]:
        """A change that must be finished: interrupted, it leaves a cache that refuses all calls."""
        self._damage: str | None = f"interrupted {act}"
        yield
        self._damage = None

    def require_intact(self) -> None:
        """
        Raises:
            RuntimeError: a change of the cache, or a long input, was interrupted.
        """
        if self._half_fed:
            raise RuntimeError(
                "a long input was interrupted after some of its tokens had been fed "
                f"({self.seen} tokens seen): call reset() and feed the stream again"
            )
        if self._states_moved:
            raise RuntimeError(
                "a forward was interrupted after some layers had changed their state, of which no "
                "copy is kept: call reset() and feed the stream again"
            )
        if self._damage:
            raise RuntimeError(
                f"this cache was {self._damage}: call reset() and feed the stream again"
            )

    def require_same_model(self) -> None:
        """
        Raises:
            RuntimeError: the rotary frequencies have changed since the model was probed.
        """
        self._fingerprint.undo_growth()
        if not self._fingerprint.is_current():
            raise RuntimeError(
                "the model was cast, or its rotary frequencies changed, after this cache was built "
                "for it: build a new cache"
            )

    @property
    def _size_before(self) -> int:
        """Entries that the last finished forward left."""
        return self.size + self._ahead

    def prepare(self, n_tokens: int, rebase: bool = True) -> None:
        """Decide what the next forward evicts, and where its positions start; change nothing.

        When positions are re-based, the next token gets a small position, and the keys that are
        held are rotated to the positions before it. So the angles that a model computes in float32
        stay small.

        Args:
            n_tokens: tokens of the forward pass; only the first of them may evict.
            rebase: whether the model accepts positions.
        """
        n_evicted = checked_drop(self.policy, self.seen, self._size_before) - self._ahead
        self._forward = None
        base = self._next_base(n_tokens, n_evicted) if rebase else self.base
        self._forward = Forward(n_tokens, n_evicted, base, set(range(len(self))))
        limit = self.geometry.max_position
        if limit is not None and self.next_position + n_tokens > limit:
            self._forward = None
            raise UnsupportedModelError(
                f"position {limit} is beyond the model's table of angles, and positions cannot be "
                "re-based: the model takes no position_ids"
            )

    def evict(self) -> None:
        """Do what `prepare` has decided."""
        forward = self._forward or self._prepared()
        self._damage = "interrupted while it evicted"  # as by `changing`, which takes 2 µs a step
        self._remember(1)
        self.evicted += forward.n_evicted
        self._ahead += forward.n_evicted
        self._make_room(forward.n_tokens, forward.n_evicted, forward.base)
        self.base = forward.base
        forward.has_room = True
        self._damage = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append a layer's new states [B, H, n, D]; all that the layer holds [B, H, size + n, D].

        Raises:
            RuntimeError: no forward was prepared, or another one.
            ValueError: a batch of another size than the cache holds.
        """
        if is_dynamo_compiling():
            return _uncompiled_update(self, key_states, value_states, layer_idx)
        forward = self._forward or self._prepared()
        layer_idx = self.geometry.places[layer_idx]
        if key_states.shape[-2] != forward.n_tokens or layer_idx not in forward.to_come:
            raise RuntimeError(
                f"layer {layer_idx} appends {key_states.shape[-2]} tokens in a forward pass of "
                f"{forward.n_tokens}, or appends twice: the model cannot be streamed"
            )
        if not forward.has_room:
            if self.seen and key_states.shape[0] != self.batch_size:
                raise ValueError(
                    f"the cache holds a batch of {self.batch_size} streams and was given "
                    f"{key_states.shape[0]}: call reset() before the batch size changes"
                )
            self.evict()
        if key_states.requires_grad or value_states.requires_grad:
            key_states, value_states = key_states.detach(), value_states.detach()
        if self._some_rotate_second and self.geometry.layers[layer_idx].rotates_second:
            held = self._append(layer_idx, value_states, key_states)[::-1]
        else:
            held = self._append(layer_idx, key_states, value_states)
        forward.to_come.remove(layer_idx)
        return held

    def finish(self, more_to_come: bool = False) -> None:
        """Count the tokens of the forward, once all layers have appended them.

        Args:
            more_to_come: they are a part of a longer input. Until the rest is counted, too, the
                cache refuses another input.

        Raises:
            RuntimeError: some layers have not.
        """
        forward = self._forward or self._prepared()
        if forward.to_come:
            self._forward = None
            n_appended = len(self) - len(forward.to_come)
            raise RuntimeError(
                f"only {n_appended} of {len(self)} layers have appended to the cache: "
                "the model ran in a mode that uses no cache, such as gradient checkpointing"
            )
        self._damage = "interrupted while it counted tokens"
        self._count(forward.n_tokens)
        self.seen += forward.n_tokens
        self._ahead = 0
        self._forward = None
        if self._recent.max_rollback:
            self._recent.forget_before(self.seen)
        self._half_fed = more_to_come
        if self.layers:
            cut_gradients(self.layers)
        self._states_moved = False
        self._damage = None

    def _new_states(self) -> list[Any]:
        config = decoder_of(self._model).config
        return state_layers(config) if self.geometry.has_states else []

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        self._states_moved = True  # models write to what they get
        return super().get_conv_state(layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        self._states_moved = True
        return super().get_recurrent_state(layer_idx, state_idx)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        self._prepared()
        self._states_moved = True
        with torch.inference_mode(False):  # so that the stream may leave inference mode later
            return super().update_conv_state(conv_states.detach(), layer_idx, state_idx, **kwargs)

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        self._prepared()
        self._states_moved = True
        with torch.inference_mode(False):
            return super().update_recurrent_state(
                recurrent_states.detach(), layer_idx, state_idx, **kwargs
            )

    def _prepared(self) -> Forward:
        if self._forward is None:
            raise RuntimeError(
                "the cache was built for another model, or only a part of its model was called"
            )
        return self._forward

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
            begin = max(self.policy.n_sink, end - n)  # some were evicted before an interruption
            if begin < end:
                held = [self._held(layer, begin, end) for layer in range(len(self))]
                copies = [States(*(s.clone() for s in states)) for states in held]
                self._recent.add(Eviction(seen, end - begin, copies))
        self._recent.forget_before(self.seen + n_tokens)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """All tokens seen, or outside of a forward those of the turn: `generate` slices its inputs
        by them."""
        return self.seen if self._forward else self.seen - self._before_turn

    def turn(self: Self) -> Self:
        """This cache, for a `generate` that is given the tokens of a new turn alone.

            reply = model.generate(turn, past_key_values=cache.turn())

        From then on the text before is not to be passed again, and every turn begins with a call of
        this. The last token that `generate` returns has not been fed: the next turn begins with it.
        """
        self._forward, self._before_turn = None, self.seen
        return self

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        kept = self.size
        if self._forward and not self._forward.has_room:
            kept -= self._forward.n_evicted
        return kept + query_length, self.seen - kept

    @property
    def is_initialized(self) -> bool:
        return self.seen > 0

    def batch_select_indices(self, indices: Tensor) -> None:
        self.require_intact()
        with self.changing("while rows of its batch were chosen"):
            self._recent.select(indices)
            self._select(indices)
            select(self.layers, indices)


_uncompiled_update = torch.compiler.disable(Bookkeeping.update)
