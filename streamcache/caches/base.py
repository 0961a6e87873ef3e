"""What every bounded cache has in common: the bookkeeping of a stream and transformers' protocol.

A forward pass over n tokens goes through `prepare(n)` (evict, before the append), the model's own
mask creation (`get_mask_sizes`), and one `update` per layer. `attach` has `prepare` called before
every forward of the model; without it (a cache built from a config, or a base model called
directly) the first `update` evicts, and positions are never re-based.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from streamcache.caches.hooks import attach
from streamcache.caches.probe import UnsupportedModelError, probe_rope
from streamcache.policy import Policy, evicted_by_chunk, warn_beyond


class BoundedCache(Cache):
    """A KV cache that never holds more than `policy.capacity` entries.

    Args:
        model_or_config: the model that will be fed, or its config. With the model every way of
            calling it is handled (long prompts are split, positions re-based); with a config only,
            chunks are at most as long as the window and positions grow with the stream.
        policy: what to evict and when.

    Attributes:
        seen: tokens appended so far.
        evicted: tokens evicted so far.
        base: tokens subtracted from the positions the model is given. RoPE scores depend on
            differences only; a token's place in the cache is its position less the first sink's.

    Raises:
        UnsupportedModelError: the model cannot be streamed correctly (see `probe_rope`).
    """

    def __init__(self, model_or_config: PreTrainedModel | PreTrainedConfig, policy: Policy):
        super().__init__(layers=[])
        model = None if isinstance(model_or_config, PreTrainedConfig) else model_or_config
        config: PreTrainedConfig = model_or_config if model is None else model.config  # type: ignore[assignment]
        context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.policy = policy
        self.geometry = probe_rope(model_or_config)
        limit = self.geometry.max_position
        if limit is not None and policy.capacity > limit:
            raise UnsupportedModelError(
                f"{config.model_type} turns its keys by a table that holds for {limit} positions "
                f"and this cache holds {policy.capacity}; choose a smaller total"
            )
        warn_beyond(policy, context)
        if model is not None:
            attach(model, BoundedCache)  # type: ignore[type-abstract]
        self.reset()

    @abstractmethod
    def _make_room(self, n_tokens: int, dropped: int, rebase: bool) -> None:
        """Remove the `dropped` oldest entries that are no sinks (already counted in `evicted`)."""

    @abstractmethod
    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new states [B, H, n, D]; return all it holds [B, H, size + n, D]."""

    @abstractmethod
    def _select(self, rows: Tensor) -> None:
        """Make the batch consist of these rows of the present one."""

    @abstractmethod
    def reset(self) -> None:
        """Forget the stream."""
        self.seen = self.evicted = self.base = 0
        self._prepared = 0  # tokens the next forward has room for
        self.leading_logits: list[Tensor] = []  # of the pieces of an input that was split

    @property
    def size(self) -> int:
        """Entries held."""
        return self.seen - self.evicted

    @property
    def next_position(self) -> int:
        """The position the model must give to the next token."""
        return self.seen - self.base

    def prepare(self, n_tokens: int, rebase: bool = True) -> None:
        """Evict for the next `n_tokens`, and start positions anew if it is time.

        Starting anew gives the next token position 0 and turns what is held to before it. So the
        angles a model takes in float32 stay small: below the capacity in positions.

        Raises:
            PolicyError: more tokens than the window of the policy has.
            RuntimeError: room was made for a forward of another length, which was interrupted.
        """
        if self._prepared == n_tokens:  # a forward that was interrupted is run again
            return
        if self._prepared:
            raise RuntimeError(
                f"a forward of {self._prepared} tokens was interrupted, for which the cache has "
                f"evicted: run it again, or reset() the cache"
            )
        dropped = evicted_by_chunk(self.policy, self.seen, self.size, n_tokens)
        self.evicted += dropped
        self._make_room(n_tokens, dropped, rebase)
        self._prepared = n_tokens

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        n_tokens = key_states.shape[-2]
        if self.base and self._prepared != n_tokens:
            raise RuntimeError(
                "positions of this stream were re-based: go on calling the model the cache was "
                "built for, not a part of it"
            )
        if layer_idx == 0 and self.seen and key_states.shape[0] != self.batch_size:
            raise ValueError(
                f"the cache holds a batch of {self.batch_size} streams and is given "
                f"{key_states.shape[0]}: reset() it to start anew"
            )
        self.prepare(n_tokens, rebase=False)
        self._check_position(n_tokens)
        keys, values = self._append(layer_idx, key_states.detach(), value_states.detach())
        if layer_idx == len(self.geometry.layers) - 1:
            self.seen += n_tokens
            self._prepared = 0
        return keys, values

    def _check_position(self, n_tokens: int) -> None:
        limit = self.geometry.max_position
        if limit is not None and self.next_position + n_tokens > limit:
            raise UnsupportedModelError(
                f"position {limit} is past the model's table of angles; build the cache from the "
                "model (not its config) so that positions are re-based"
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """All tokens seen: what `generate` slices its inputs by."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        kept = self.size
        if self._prepared != query_length:
            kept -= evicted_by_chunk(self.policy, self.seen, self.size, query_length)
        return kept + query_length, self.seen - kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("a bounded cache cannot be rolled back: what it evicted is gone")

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1  # the stream has no end

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.seen > 0

    def __len__(self) -> int:
        return len(self.geometry.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.policy}, seen={self.seen}, size={self.size})"
