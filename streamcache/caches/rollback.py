"""Roll back: the newest tokens are taken back, exactly, as if they had never been fed."""

from collections.abc import Iterable

import torch

from streamcache.caches.bookkeeping import Bookkeeping
from streamcache.caches.retained_attention import States


class RollBack(Bookkeeping):
    """`crop`, and what transformers asks of a cache from which a draft is taken back."""

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the newest tokens: the stream is what it was before them.

        Args:
            tokens_to_remove: minus their number; or, above 0, how many tokens stay seen, as
                `get_seq_length` counts them.

        Raises:
            ValueError: more than were seen, or to more than `max_rollback` tokens before the most
                that the stream has been: several calls together reach no further than one.
            RuntimeError: the cache must be reset.
        """
        n = int(tokens_to_remove)
        seen = min(self._before_turn + n, self.seen) if n > 0 else self.seen + n
        if seen == self.seen:
            return
        most = min(self._recent.max_rollback, self.seen - self._recent.known_from)
        if self.seen - seen > most:
            raise ValueError(
                f"{self.seen - seen} of {self.seen} tokens cannot be taken back from a cache with "
                f"max_rollback={self._recent.max_rollback}: {most} can be taken back now"
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

    @property
    def is_croppable(self) -> bool:
        return self._recent.max_rollback > 0

    def activate_past_recording(self) -> None:
        """What is taken back must have been kept: `max_rollback` says how much.

        Raises:
            ValueError: nothing is.
        """
        if not self.is_croppable:
            raise ValueError(
                "rejected drafts must be taken back: build the cache with a max_rollback of at "
                "least the length of the longest draft plus 1"
            )


def _joined(parts: Iterable[States]) -> States:
    """States one after another."""
    return States(*(torch.cat(each, dim=2) for each in zip(*parts)))
