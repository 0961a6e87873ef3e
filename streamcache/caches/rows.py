"""A batch whose rows differ in length: begun by left padding, or by rows that join.

As long as all rows have the same length, a cache holds them itself. Otherwise it holds one cache
for each group of rows of one length (see `side_by_side`), and no states of its own.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from streamcache.caches.layer_states import beside, take_apart
from streamcache.caches.long_inputs import LongInputs
from streamcache.caches.rollback import RollBack
from streamcache.caches.side_by_side import Part

Self = TypeVar("Self", bound="Rows")


class Rows(LongInputs, RollBack):
    """What is done to the rows of a batch.

    Attributes:
        parts: of a batch of unequal rows; empty if all are equal.
    """

    parts: list[Part]

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has seen, padding not counted."""
        if not self.parts:
            return [self.seen] * max(0, self.batch_size)
        return [part.cache.seen for part in self.parts for _ in range(part.n_rows)]

    @property
    def padding(self) -> list[int]:
        """Columns of the batch before the first token of each row."""
        return [part.lead for part in self.parts for _ in range(part.n_rows)]

    def begin_parts(self, padding: Sequence[int]) -> list[Part]:
        """Empty parts for rows that begin behind so many columns."""
        parts: list[Part] = []
        first = 0
        for lead, rows in groupby(padding):
            n_rows = len(list(rows))
            parts.append(Part(self._empty_part(first, n_rows), n_rows, lead))
            first += n_rows
        return parts

    def _empty_part(self: Self, first: int, n_rows: int) -> Self:
        """A cache for some rows of this one, which is empty."""
        return copy.deepcopy(self)

    def join(self: Self, other: Self) -> None:
        """Let the streams of another cache join this batch, as its last rows.

        The other cache is left as it is; what joins here is a fork.

        Raises:
            ValueError: it is of another model, kind or policy, or holds no stream.
            RuntimeError: one of the two must be reset.
        """
        self.require_intact()
        other.require_intact()
        if type(other) is not type(self) or other.policy != self.policy:
            raise ValueError(f"{other!r} cannot join {self!r}: another cache or policy")
        if other.geometry is not self.geometry:  # of one model there is one
            raise ValueError("the cache that is to join is of another model")
        if not other.seen:
            raise ValueError("the cache that is to join holds no stream: feed it a prompt before")
        mine = self._as_parts() if self.seen else []
        self._become([*mine, *copy.deepcopy(other)._as_parts()])

    def row(self: Self, index: int) -> Self:
        """A fork of the stream of one row, which continues by itself.

        Raises:
            IndexError: there is no such row.
            RuntimeError: the cache must be reset.
        """
        self.require_intact()
        index = range(len(self.lengths))[index]
        for part in self.parts:
            if index < part.n_rows:
                return part.cache.row(index)
            index -= part.n_rows
        fork = copy.deepcopy(self)
        fork.batch_select_indices(torch.tensor([index]))
        return fork

    def _as_parts(self) -> list[Part]:
        return self.parts or [Part(copy.deepcopy(self), self.batch_size, 0)]

    def _become(self, parts: list[Part]) -> None:
        """Hold these parts, aligned at their newest tokens, and nothing else."""
        with self.changing("while its rows changed"):
            self._clear()
            self._align(parts)

    def _align(self, parts: list[Part]) -> None:
        """Hold these parts, with no more padding than the longest of them needs."""
        seen = max(part.cache.seen for part in parts)
        self._hold_parts([part._replace(lead=seen - part.cache.seen) for part in parts])

    def _hold_parts(self, parts: list[Part]) -> None:
        self.parts = parts
        self._count_parts()

    def _count_parts(self) -> None:
        """Count the columns of the batch; the last line makes them agree with the parts."""
        seen = self.parts[0].lead + self.parts[0].cache.seen
        self.evicted = self.base = seen - max(part.cache.size for part in self.parts)
        self.seen = seen

    def _clear(self) -> None:
        self.parts = []
        super()._clear()

    def require_intact(self) -> None:
        super().require_intact()
        for part in self.parts:
            part.cache.require_intact()
            if part.lead + part.cache.seen != self.seen:
                raise RuntimeError(
                    "an input to rows of unequal length was interrupted, and some have seen its "
                    "tokens: call reset() and feed the streams again"
                )

    def put_states_beside(self) -> None:
        """Have the states of all rows in `layers`, for a forward of the whole batch."""
        layers = [part.cache.layers for part in self.parts]
        n_rows = [part.n_rows for part in self.parts]
        self.layers = beside(layers, n_rows, self._new_states())

    def finish(self, more_to_come: bool = False) -> None:
        if not self.parts:
            return super().finish(more_to_come)
        with self.changing("while it counted tokens"):
            layers = [part.cache.layers for part in self.parts]
            take_apart(self.layers, layers, [part.n_rows for part in self.parts])
            for part in self.parts:
                part.cache.finish()
            self._count_parts()

    def crop(self, tokens_to_remove: int) -> None:
        if not self.parts:
            return super().crop(tokens_to_remove)
        n = int(tokens_to_remove)
        n_taken_back = max(0, self.seen - self._before_turn - n) if n > 0 else -n
        self.require_intact()
        for part in self.parts:
            part.cache.crop(-n_taken_back)
        self._count_parts()

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.lengths), device="cpu")
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if not self.parts:
            return super().batch_select_indices(indices)
        self.require_intact()
        with self.changing("while rows of its batch were chosen"):
            where = [(i, row) for i, p in enumerate(self.parts) for row in range(p.n_rows)]
            runs = groupby((where[index] for index in indices.tolist()), key=lambda w: w[0])
            chosen = [(i, [row for _, row in rows]) for i, rows in runs]
            uses = Counter(i for i, _ in chosen)
            parts: list[Part] = []
            for i, rows in chosen:
                uses[i] -= 1
                cache = self.parts[i].cache
                cache = copy.deepcopy(cache) if uses[i] else cache
                cache.batch_select_indices(torch.tensor(rows))
                parts.append(Part(cache, len(rows), self.parts[i].lead))
            self._hold_parts(parts)
