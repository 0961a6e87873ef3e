"""What a cache has evicted for the last few tokens, so that these tokens can be taken back."""

from collections import deque
from typing import NamedTuple

from torch import Tensor

from streamcache.caches.retained_attention import States


class Eviction(NamedTuple):
    """What one token has evicted.

    Attributes:
        seen: tokens before that one.
        n: entries.
        states: of each layer [B, H, n, D], keys as at position 0.
    """

    seen: int
    n: int
    states: list[States]


class RecentEvictions:
    """The evictions for the last `max_rollback` tokens, oldest first."""

    def __init__(self, max_rollback: int):
        self.max_rollback = max_rollback
        self.known_from = 0  # tokens of the stream; what was evicted for earlier ones is unknown
        self._evictions: deque[Eviction] = deque()

    def add(self, eviction: Eviction) -> None:
        self._evictions.append(eviction)

    def forget_before(self, seen: int) -> None:
        """Drop what no roll back of a stream of `seen` tokens needs."""
        self.known_from = max(self.known_from, seen - self.max_rollback)
        while self._evictions and self._evictions[0].seen < seen - self.max_rollback:
            self._evictions.popleft()

    def since(self, seen: int) -> list[Eviction]:
        """What was evicted after the stream had `seen` tokens."""
        return [eviction for eviction in self._evictions if eviction.seen >= seen]

    def undo(self, seen: int) -> None:
        """Drop what `since` gives."""
        while self._evictions and self._evictions[-1].seen >= seen:
            self._evictions.pop()

    def select(self, rows: Tensor) -> None:
        """Make the batch consist of these rows of the present one."""
        for eviction in self._evictions:
            for layer, states in enumerate(eviction.states):
                chosen = (s.index_select(0, rows.to(s.device)) for s in states)
                eviction.states[layer] = States(*chosen)

    def clear(self, seen: int = 0) -> None:
        """Know nothing of what the first `seen` tokens have evicted."""
        self._evictions.clear()
        self.known_from = seen
