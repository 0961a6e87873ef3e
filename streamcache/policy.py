"""What to evict and when: integers only, no tensors.

One rule contains StreamingLLM (Xiao et al. 2023, section 3.2: `compress_every=1`), Lazy Pruning
(`compress_every=R`), Softlite Eviction (`cache_slack`, `max_drop`) and their combination.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class PolicyError(ValueError):
    """An eviction parameter is outside its range; the message names it and the range."""


class PolicyWarning(UserWarning):
    """A legal setting that is known to cost quality."""


class Prunes(NamedTuple):
    """What a policy does over a stream, counted."""

    scheduled: int  # evictions on an R-th token
    forced: int  # evictions because the capacity would have been exceeded
    evicted: int  # entries removed in all


@dataclass(frozen=True)
class EvictionPolicy:
    """Which cache entries survive: the first `n_sink` tokens and a recent window.

    With `seen` tokens appended so far and `size` entries held, the token to come has the number
    t = seen + 1. Let need = size + 1 - floor. If need > 0 and (t % compress_every == 0 or
    size + 1 > capacity), the oldest min(need, max_drop) entries that are no sinks are dropped
    before the append; otherwise none.

    Args:
        n_sink: S >= 0, the first tokens of the stream, never evicted.
        window_size: W >= 1, the most recent tokens, always kept.
        cache_slack: sigma >= 0, entries beyond S + W the cache may hold. None: compress_every - 1,
            so that lazy pruning alone lets the cache grow until the next scheduled prune.
        max_drop: delta >= 1, the most entries one eviction may remove. None: no limit.
        compress_every: R >= 1, every R-th token of the stream is a scheduled prune.

    Raises:
        PolicyError: an argument is not an integer or is outside its range.

    Warns:
        PolicyWarning: compress_every >= 128 or cache_slack > 32.
    """

    n_sink: int
    window_size: int
    cache_slack: int | None = None
    max_drop: int | None = None
    compress_every: int = 1

    def __post_init__(self) -> None:
        _require("window_size", self.window_size, 1)
        _check(self.n_sink, self.cache_slack, self.max_drop, self.compress_every)
        if self.compress_every >= 128:
            _warn(f"compress_every={self.compress_every}: the paper reports broken PPL from 128 on")
        if self.cache_slack is not None and self.cache_slack > 32:
            _warn(f"cache_slack={self.cache_slack}: the paper advises at most 32")

    @property
    def slack(self) -> int:
        """sigma in force, entries."""
        return self.compress_every - 1 if self.cache_slack is None else self.cache_slack

    @property
    def floor(self) -> int:
        """S + W, entries: what a prune without a `max_drop` leaves, the token to come included."""
        return self.n_sink + self.window_size

    @property
    def capacity(self) -> int:
        """S + W + sigma, entries: the cache never holds more."""
        return self.floor + self.slack

    @property
    def settings(self) -> str:
        """What was given, for people: "S=4 W=2044 R=1"."""
        slack = "" if self.cache_slack is None else f" σ={self.cache_slack}"
        drop = "" if self.max_drop is None else f" δ={self.max_drop}"
        return f"S={self.n_sink} W={self.window_size} R={self.compress_every}{slack}{drop}"

    def drop(self, seen: int, size: int) -> int:
        """Entries to evict before the next token is appended (0 for none)."""
        need = size + 1 - self.floor
        if need <= 0 or not (self.scheduled(seen) or size + 1 > self.capacity):
            return 0
        return need if self.max_drop is None else min(need, self.max_drop)

    def drop_for(self, seen: int, size: int, n_tokens: int) -> int:
        """Entries to evict before a chunk of `n_tokens`: all the rule would, token by token.

        Raises:
            PolicyError: the chunk is longer than the window, so part of it would evict itself.
        """
        if n_tokens > self.window_size:
            raise PolicyError(
                f"a chunk of {n_tokens} tokens does not fit window_size={self.window_size}; "
                "feed the stream in chunks of at most window_size tokens"
            )
        dropped = 0
        for i in range(n_tokens):
            dropped += self.drop(seen + i, size + i - dropped)
        return dropped

    def scheduled(self, seen: int) -> bool:
        """Whether the next token is an R-th one."""
        return (seen + 1) % self.compress_every == 0

    def drops(self, n_tokens: int) -> Iterator[int]:
        """The eviction before each token of a stream fed token by token."""
        size = 0
        for seen in range(n_tokens):
            dropped = self.drop(seen, size)
            size += 1 - dropped
            yield dropped

    def count(self, n_tokens: int) -> Prunes:
        """Scheduled and forced prunes over a stream of `n_tokens` fed token by token."""
        scheduled = forced = evicted = 0
        for seen, dropped in enumerate(self.drops(n_tokens)):
            evicted += dropped
            scheduled += dropped > 0 and self.scheduled(seen)
            forced += dropped > 0 and not self.scheduled(seen)
        return Prunes(scheduled, forced, evicted)

    @classmethod
    def from_budget(
        cls,
        total: int,
        n_sink: int,
        cache_slack: int | None = None,
        max_drop: int | None = None,
        compress_every: int = 1,
        overlap: int = 0,
        refresh: int = 0,
    ) -> "EvictionPolicy":
        """The policy whose capacity, with `overlap` and `refresh` set aside, is exactly `total`.

        window_size = total - n_sink - slack - overlap - refresh, all in entries.

        Raises:
            PolicyError: an argument is out of range, or no room is left for a window.
        """
        for name, value in (("overlap", overlap), ("refresh", refresh)):
            _require(name, value, 0)
        _require("total", total, 1)
        _check(n_sink, cache_slack, max_drop, compress_every)
        slack = compress_every - 1 if cache_slack is None else cache_slack
        window_size = total - n_sink - slack - overlap - refresh
        if window_size < 1:
            raise PolicyError(
                f"total={total} leaves no window after n_sink={n_sink}, slack={slack}, "
                f"overlap={overlap}, refresh={refresh}; total must be at least "
                f"{total - window_size + 1}"
            )
        return cls(n_sink, window_size, cache_slack, max_drop, compress_every)


def warn_beyond(policy: EvictionPolicy, context: int | None) -> None:
    """Warn where the capacity exceeds the `context` a model was trained on, in tokens."""
    if context is not None and policy.capacity > context:
        _warn(
            f"capacity {policy.capacity} (n_sink + window_size + slack) exceeds the model's "
            f"trained context of {context} tokens"
        )


def _check(n_sink: int, cache_slack: int | None, max_drop: int | None, compress_every: int) -> None:
    _require("n_sink", n_sink, 0)
    _require("compress_every", compress_every, 1)
    if cache_slack is not None:
        _require("cache_slack", cache_slack, 0, " or None (= compress_every - 1)")
    if max_drop is not None:
        _require("max_drop", max_drop, 1, " or None (no limit)")


def _require(name: str, value: object, minimum: int, otherwise: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PolicyError(f"{name} must be an integer >= {minimum}{otherwise}, got {value!r}")


def _warn(message: str) -> None:
    warnings.warn(message, PolicyWarning, stacklevel=4)
