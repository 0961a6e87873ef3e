"""What to evict and when: integers only, no tensors.

One rule contains StreamingLLM (Xiao et al. 2023, section 3.2: `compress_every=1`), Lazy Pruning
(`compress_every=R`), Softlite Eviction (`cache_slack`, `max_drop`) and their combination.
"""

import operator
import warnings
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol


class PolicyError(ValueError):
    """An eviction parameter is outside its range; the message names it and the range."""


class PolicyWarning(UserWarning):
    """A legal setting that is known to cost quality."""


class Policy(Protocol):
    """A rule of eviction: what every cache, the one pass and every measurement accept.

    What it keeps is the first `n_sink` tokens and one contiguous run that ends at the newest token.
    A rule may be any class with these members. One that names this class as its base need not
    define `scheduled`. It must decide by its arguments alone: the same ones, the same eviction.

    Attributes:
        n_sink: the first tokens of the stream, never evicted.
        floor: entries always kept, once seen: the sinks and the most recent tokens.
        capacity: the most entries ever held.
    """

    if TYPE_CHECKING:  # at run time a property would become the default of a dataclass's field

        @property
        def n_sink(self) -> int: ...
        @property
        def floor(self) -> int: ...
        @property
        def capacity(self) -> int: ...

    def drop(self, seen: int, size: int) -> int:
        """Entries to evict before the next token is appended (0 for none).

        Args:
            seen: tokens appended so far.
            size: entries held.
        """
        ...

    def scheduled(self, seen: int) -> bool:
        """Whether an eviction before the next token is one that the rule has planned."""
        return False


class Evictions(NamedTuple):
    """What a policy does over a stream, counted."""

    scheduled: int  # evictions that the rule had planned
    forced: int  # all others: the capacity would have been exceeded
    entries: int  # removed in all


@dataclass(frozen=True)
class EvictionPolicy(Policy):
    """Which cache entries survive: the first `n_sink` tokens and a recent window.

    With `seen` tokens appended so far and `size` entries held, the token to come has the number
    t = seen + 1. Let need = size + 1 - floor. If need > 0 and (t % compress_every == 0 or
    size + 1 > capacity), the oldest min(need, max_drop) entries that are no sinks are evicted
    before the append; otherwise none.

    Args:
        n_sink: S >= 0, the first tokens of the stream, never evicted.
        window_size: W >= 1, the most recent tokens, always kept.
        cache_slack: sigma >= 0, entries beyond S + W the cache may hold. None: compress_every - 1,
            so that lazy pruning alone lets the cache grow until the next scheduled eviction.
        max_drop: delta >= 1, the most entries one eviction may remove. None: no limit.
        compress_every: R >= 1, every R-th token of the stream is a scheduled eviction.

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
        for field in fields(self):  # an integer of numpy becomes one of Python
            if (value := getattr(self, field.name)) is not None:
                object.__setattr__(self, field.name, operator.index(value))
        if self.compress_every >= 128:
            _warn(f"compress_every={self.compress_every}: the paper reports broken PPL from 128 on")
        if self.cache_slack is not None and self.cache_slack > 32:
            _warn(f"cache_slack={self.cache_slack}: the paper advises at most 32")

    @cached_property
    def slack(self) -> int:
        """sigma in force, entries."""
        return self.compress_every - 1 if self.cache_slack is None else self.cache_slack

    @cached_property
    def floor(self) -> int:
        """S + W, entries: what is left by an eviction without a `max_drop`, the next included."""
        return self.n_sink + self.window_size

    @cached_property
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

    def scheduled(self, seen: int) -> bool:
        """Whether the next token is an R-th one."""
        return (seen + 1) % self.compress_every == 0

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


def window_size(policy: Policy) -> int:
    """The most recent tokens that are always kept, and the most that fit in one chunk."""
    return policy.floor - policy.n_sink


def require_policy(policy: object) -> None:
    """
    Raises:
        TypeError: it has not the members of a `Policy`.
    """
    missing = [
        name for name in ("n_sink", "floor", "capacity", "drop") if not hasattr(policy, name)
    ]
    if missing:
        raise TypeError(
            f"{type(policy).__name__} is not a policy (such as EvictionPolicy(4, 2044)): it has no "
            f"{', '.join(missing)}"
        )


def require_counts(policy: Policy) -> None:
    """
    Raises:
        PolicyError: the rule decides by content, so what it keeps does not follow from counts.
    """
    if getattr(policy, "by_content", False):
        raise PolicyError(
            f"{type(policy).__name__} decides by content: it needs a ScoredCache, decodes token by "
            "token, and has no one pass"
        )


def checked_drop(policy: Policy, seen: int, size: int) -> int:
    """`policy.drop`, for a cache, which has room for `capacity` entries and loses what is evicted.

    Raises:
        PolicyError: the rule would evict what it has to keep, or exceed its capacity.
    """
    evicted = policy.drop(seen, size)
    left = size + 1 - evicted
    if (evicted and not 0 < evicted <= size + 1 - policy.floor) or left > policy.capacity:
        raise PolicyError(
            f"{type(policy).__name__}.drop(seen={seen}, size={size}) gave {evicted}: it must leave "
            f"{policy.floor} to {policy.capacity} entries, the token to come included"
        )
    return evicted


def evictions(policy: Policy, n_tokens: int) -> Iterator[int]:
    """The eviction before each token of a stream fed token by token, in entries."""
    size = 0
    for seen in range(n_tokens):
        evicted = policy.drop(seen, size)
        size += 1 - evicted
        yield evicted


def evicts_inside(policy: Policy, seen: int, size: int, n_tokens: int) -> bool:
    """Whether anything is evicted before another token than the first of the next `n_tokens`."""
    for t in range(seen, seen + n_tokens):
        evicted = checked_drop(policy, t, size)
        if evicted and t > seen:
            return True
        size += 1 - evicted
    return False


def between_evictions(policy: Policy, seen: int, size: int, n_tokens: int) -> list[int]:
    """Lengths of the pieces of the next `n_tokens` that begin where something is evicted."""
    lengths: list[int] = []
    for t in range(seen, seen + n_tokens):
        evicted = checked_drop(policy, t, size)
        size += 1 - evicted
        if evicted or not lengths:
            lengths.append(0)
        lengths[-1] += 1
    return lengths


def count_evictions(policy: Policy, n_tokens: int) -> Evictions:
    """Scheduled and forced evictions over a stream of `n_tokens` fed token by token."""
    scheduled = forced = entries = 0
    for seen, evicted in enumerate(evictions(policy, n_tokens)):
        entries += evicted
        scheduled += evicted > 0 and policy.scheduled(seen)
        forced += evicted > 0 and not policy.scheduled(seen)
    return Evictions(scheduled, forced, entries)


def fields_that_are_set(settings: object) -> dict[str, str | int]:
    """The identity of a policy, or of any dataclass: its fields that are not at their defaults.

    A field that is added later with a default that changes nothing leaves every identity as it was.
    Fields that are not compared, such as a label, are no part of it.
    Fields without a default are always in it; those of a nested dataclass stand among its own. A
    policy other than an `EvictionPolicy` is named by its class as `rule`; if it is no dataclass,
    its `n_sink`, `floor` and `capacity` are its fields.

    Raises:
        TypeError: a value is not a string, integer or dataclass.
        ValueError: a nested dataclass has a field of the same name.
    """
    identity: dict[str, str | int] = {}

    def add(name: str, value: object) -> None:
        if name in identity:
            raise ValueError(f"{type(settings).__name__} has two fields named {name!r}")
        identity[name] = value if isinstance(value, str) else _index(name, value)

    if is_rule := hasattr(settings, "drop") and type(settings) is not EvictionPolicy:
        add("rule", type(settings).__name__)
    if is_dataclass(settings):
        for field in (field for field in fields(settings) if field.compare):
            value = getattr(settings, field.name)
            default = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            if default is not MISSING and value == default:
                continue
            if is_dataclass(value) or hasattr(value, "drop"):
                for name, inner in fields_that_are_set(value).items():
                    add(name, inner)
            else:
                add(field.name, "none" if value is None else value)
    elif is_rule:
        for name in ("n_sink", "floor", "capacity"):
            add(name, getattr(settings, name))
    else:
        raise TypeError(f"{type(settings).__name__} is neither a dataclass nor a policy")
    return identity


def _index(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} is {value!r}, which is not a string, integer or dataclass"
        ) from None


def warn_beyond(policy: Policy, context: int | None) -> None:
    """Warn where the capacity exceeds the `context` a model was trained on, in tokens."""
    if context is not None and policy.capacity > context:
        _warn(f"capacity {policy.capacity} exceeds the model's trained context of {context} tokens")


def _check(n_sink: int, cache_slack: int | None, max_drop: int | None, compress_every: int) -> None:
    _require("n_sink", n_sink, 0)
    _require("compress_every", compress_every, 1)
    if cache_slack is not None:
        _require("cache_slack", cache_slack, 0, " or None (= compress_every - 1)")
    if max_drop is not None:
        _require("max_drop", max_drop, 1, " or None (no limit)")


def _require(name: str, value: object, minimum: int, otherwise: str = "") -> None:
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_integer or operator.index(value) < minimum:  # type: ignore[arg-type]
        raise PolicyError(f"{name} must be an integer >= {minimum}{otherwise}, got {value!r}")


def _warn(message: str) -> None:
    warnings.warn(message, PolicyWarning, stacklevel=4)
