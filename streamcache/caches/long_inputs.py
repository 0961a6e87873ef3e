"""Inputs inside which something is evicted: they go through the model in one causal pass.

Where the model or the cache does not allow that, they go through in pieces between evictions.
"""

from transformers import PreTrainedModel

from streamcache.caches.bookkeeping import Bookkeeping
from streamcache.caches.one_pass import OnePass
from streamcache.policy import between_evictions, evicts_inside


class LongInputs(Bookkeeping):
    """How the tokens of a long input come into a cache."""

    def evicts_inside(self, n_tokens: int) -> bool:
        """Whether the next `n_tokens` do not all see what the first one sees, and each other."""
        if self._goes_token_by_token and n_tokens > 1:
            return True
        return evicts_inside(self.policy, self.seen, self._size_before, n_tokens)

    def pieces(self, n_tokens: int) -> list[int]:
        """Lengths of the pieces of the next `n_tokens` in which only the first token evicts."""
        if self._goes_token_by_token:
            return [1] * n_tokens
        pieces = between_evictions(self.policy, self.seen, self._size_before, n_tokens)
        if self.geometry.continues_states:
            return pieces
        return [pieces[0], *[1] * (n_tokens - pieces[0])]

    @property
    def _goes_token_by_token(self) -> bool:
        return self.seen > 0 and not self.geometry.continues_states

    def begin_pass(self, copy: PreTrainedModel) -> OnePass | None:
        """A causal pass over the tokens to come, from what is held; None: not for this cache.

        Args:
            copy: of the model, made by `with_override`.
        """
        if not self.takes_long_inputs or not self.geometry.in_one_pass:
            return None
        held = [self._held(layer) for layer in range(len(self))] if self.seen else []
        counts = self.seen, self.evicted, self._ahead
        return OnePass(copy, self.geometry, self.policy, *counts, held, for_cache=True)

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
