"""Streams of unequal length, as a model is fed them in one batch.

Every part is a cache of its own, for one stream or several of equal length. So each stream keeps,
evicts and counts what it would alone. Their newest tokens stand side by side, and a mask hides what
is before the beginning of a shorter one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from streamcache.caches.outputs import beside
from streamcache.caches.protocol import EndlessCache


class Part(NamedTuple):
    """Streams of equal length in a batch.

    Attributes:
        cache: a `BoundedCache`.
        n_rows: streams.
        lead: columns of the batch before their first token.
    """

    cache: Any
    n_rows: int
    lead: int


class SideBySide(EndlessCache):
    """The parts of a cache during one forward of one token a row."""

    def __init__(self, owner: Any, has_positions: bool):
        owner.put_states_beside()
        super().__init__(layers=owner.layers)
        self.owner, self.geometry, self.modules = owner, owner.geometry, owner.modules
        self._parts: list[Part] = owner.parts
        self._rows = [part.n_rows for part in self._parts]
        for part in self._parts:
            part.cache.prepare(1, rebase=has_positions)
        self._widths = [part.cache.get_mask_sizes(1, 0)[0] for part in self._parts]

    def mask(self, device: torch.device) -> Tensor | None:
        """int64 [B, width], 0 where a row holds nothing; None where every row is full."""
        widest = max(self._widths)
        if min(self._widths) == widest:
            return None
        place, widths = torch.arange(widest), torch.tensor(self._per_row(self._widths))
        return (place >= widest - widths[:, None]).long().to(device)

    def positions(self, device: torch.device) -> Tensor:
        """int64 [B, 1]."""
        positions = [part.cache.next_position for part in self._parts]
        return torch.tensor(self._per_row(positions), device=device)[:, None]

    def _per_row(self, values: Sequence[int]) -> list[int]:
        return [value for value, n in zip(values, self._rows) for _ in range(n)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append a layer's states [B, H, 1, D]; what the rows hold [B, H, width, D]."""
        new = key_states.split(self._rows), value_states.split(self._rows)
        held = [
            part.cache.update(keys, values, layer_idx)
            for part, keys, values in zip(self._parts, *new)
        ]
        keys, values = zip(*held)
        return self._aligned(keys), self._aligned(values)

    def _aligned(self, states: Sequence[Tensor]) -> Tensor:
        """States [b, H, n, D] of the parts, their newest in the last place."""
        _, n_heads, _, dim = states[0].shape
        whole = states[0].new_zeros(sum(self._rows), n_heads, max(self._widths), dim)
        for rows, own in zip(whole.split(self._rows), states):
            rows[:, :, rows.shape[2] - own.shape[2] :] = own
        return whole

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self._widths) - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return max(self._widths), 0

    @property
    def is_initialized(self) -> bool:
        return True


def feed_apart(
    feed: Callable[..., ModelOutput], parts: Sequence[Part], tokens: Tensor
) -> ModelOutput:
    """Feed tokens [B, n] or embeddings [B, n, D] part by part; the outputs as of one batch.

    Args:
        feed: the decoder, given tokens and a cache.
        parts: of which the last `cache.seen + n - lead` ... columns are fed.
    """
    outputs: list[ModelOutput | None] = []
    first = 0
    for part in parts:
        own = tokens[first : first + part.n_rows, 0 if part.cache.seen else part.lead :]
        outputs.append(feed(own, part.cache) if own.shape[1] else None)
        first += part.n_rows
    return beside(outputs, [part.n_rows for part in parts], tokens.shape[1])
