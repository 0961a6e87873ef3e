"""The effect of an eviction on the predictions right after it, token by token.

The NLL of a text is heavy-tailed and its own ups and downs drown what an eviction adds. So the
statistic is taken of a difference, token by token: the policy's NLL less that of a policy of the
same capacity that evicts one entry per token. Around each eviction (the boundary) the mean of the
first tokens after it is compared with that of the last ones before it. A permutation test shows
whether the difference is large: the same for boundaries put elsewhere at random.
"""

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamcache.measure.checked import SCHEMA_VERSION, Floats
from streamcache.measure.measurement import Environment, WorkloadRecord
from streamcache.measure.student import student_t
from streamcache.policy import EvictionPolicy, Evictions, Policy, evictions

_LONGEST_SPAN = 64  # tokens before and after an eviction that are compared, at most
_BATCHES = 32


class DiagnosisError(ValueError):
    """There are too few evictions or tokens for a result; the message says what would do."""


class CacheState(NamedTuple):
    """Entries that a cache holds when a token is predicted, and that were evicted just before."""

    size: int
    evicted: int
    eviction: str  # "none", "scheduled" or "forced"


def cache_states(policy: Policy, n_tokens: int) -> Iterator[CacheState]:
    """After each token of a stream fed token by token."""
    size = 0
    for seen, dropped in enumerate(evictions(policy, n_tokens)):
        size += 1 - dropped
        kind = "scheduled" if policy.scheduled(seen) else "forced"
        yield CacheState(size, dropped, kind if dropped else "none")


def per_token_eviction(policy: Policy) -> EvictionPolicy:
    """The policy of the same capacity that evicts one entry per token."""
    return EvictionPolicy(policy.n_sink, policy.capacity - policy.n_sink)


def small_window_control(policy: Policy) -> EvictionPolicy:
    """The policy that always holds as little as an eviction leaves: a control without events."""
    return EvictionPolicy(policy.n_sink, policy.floor - policy.n_sink)


class EvictionEffect(msgspec.Struct, frozen=True):
    """A series of nats per token around boundaries, and around as many shuffled ones.

    Offsets count from the boundary: 0 is the first token predicted after the eviction, -1 the last
    before it. Every p is the share of shuffles that reach the measured figure, itself counted as
    one. A small p says that the series rises at the boundaries; a large one does not say that it
    does not.
    """

    n_boundaries: int
    span: int  # tokens after a boundary that are compared with as many before it
    excess: float  # mean after less mean before, nats per token
    excess_p: float
    peak: float  # the highest mean of one offset after, less the mean before, nats
    peak_p: float
    area: float  # excess over the whole span, nats
    width: float  # area over peak, tokens: how long an effect of that height would last
    shuffled_excess: tuple[float, float]  # the middle 95 % of the shuffles
    profile: list[float]  # mean at the offsets -span ... span - 1
    shuffled_low: list[float]  # 2.5 % and 97.5 % of the shuffles at each offset
    shuffled_high: list[float]
    shuffles: int


def span_of(boundaries: NDArray[np.int64]) -> int:
    """Half of the usual distance between boundaries, so that two spans do not meet."""
    usual = int(np.median(np.diff(boundaries))) if len(boundaries) > 1 else 1
    return min(_LONGEST_SPAN, max(1, usual // 2))


def eviction_effect(
    series: Floats, boundaries: NDArray[np.int64], span: int, shuffles: int, seed: int
) -> EvictionEffect:
    """What a series [n] does around boundaries, indices into it.

    A shuffle has the same number of boundaries, all different, anywhere in the series. Where every
    token is a boundary there is nothing to shuffle and every p is 1: each token is as near
    to an eviction as the next.

    Raises:
        DiagnosisError: fewer than two boundaries have `span` tokens on both sides.
    """
    if len(series) < 2 * span:
        raise DiagnosisError(
            f"{len(series)} tokens in the steady state: --max-eval-tokens gives more"
        )
    around = np.lib.stride_tricks.sliding_window_view(series, 2 * span)
    rows = boundaries - span
    rows = rows[(rows >= 0) & (rows < len(around))]
    if len(rows) < 2:
        raise DiagnosisError(
            f"{len(rows)} evictions with {span} tokens of the steady state on both sides, 2 are "
            "needed: --max-eval-tokens gives a longer text, --cap-total a smaller cache"
        )
    random = np.random.default_rng(seed)
    profile = around[rows].mean(axis=0)
    shuffled = np.empty((shuffles, 2 * span))
    for i in range(shuffles):  # in order, so that the same set gives the same sum
        elsewhere = np.sort(random.choice(len(around), len(rows), replace=False))
        shuffled[i] = around[elsewhere].mean(axis=0)
    excess, peak = _excess(profile), _peak(profile)
    null_excess, null_peak = _excess(shuffled), _peak(shuffled)
    low, high = np.quantile(null_excess, (0.025, 0.975))
    bands = np.quantile(shuffled, (0.025, 0.975), axis=0)
    return EvictionEffect(
        n_boundaries=len(rows),
        span=span,
        excess=float(excess),
        excess_p=_share_reaching(excess, null_excess),
        peak=float(peak),
        peak_p=_share_reaching(peak, null_peak),
        area=float(excess) * span,
        width=float(excess) * span / float(peak) if peak else 0.0,
        shuffled_excess=(float(low), float(high)),
        profile=profile.tolist(),
        shuffled_low=bands[0].tolist(),
        shuffled_high=bands[1].tolist(),
        shuffles=shuffles,
    )


def _excess(profile: Floats) -> Floats:
    before, after = np.split(profile, 2, axis=-1)
    return after.mean(axis=-1) - before.mean(axis=-1)


def _peak(profile: Floats) -> Floats:
    before, after = np.split(profile, 2, axis=-1)
    return after.max(axis=-1) - before.mean(axis=-1)


def _share_reaching(measured: Floats, shuffled: Floats) -> float:
    return float((1 + np.sum(shuffled >= measured)) / (1 + len(shuffled)))


class Difference(msgspec.Struct, frozen=True):
    """Of two policies on the same tokens: NLL less NLL, nats per token, in the steady state.

    The interval is that of batch means: neighbouring tokens are not independent, the means of long
    stretches nearly are.
    """

    mean: float
    low: float  # 95 % interval
    high: float
    n_tokens: int
    n_batches: int = _BATCHES


def difference(series: Floats) -> Difference:
    """Mean of a paired difference [n] and its interval.

    Raises:
        DiagnosisError: there is less than one token a batch.
    """
    if len(series) < _BATCHES:
        raise DiagnosisError(
            f"{len(series)} tokens in the steady state, {_BATCHES} are needed: --max-eval-tokens "
            "gives a longer text, --cap-total a smaller cache"
        )
    means = np.array([batch.mean() for batch in np.array_split(series, _BATCHES)])
    margin = student_t(0.975, _BATCHES - 1) * means.std(ddof=1) / _BATCHES**0.5
    mean = float(series.mean())
    return Difference(mean, mean - float(margin), mean + float(margin), len(series))


class Diagnosis(msgspec.Struct, frozen=True, tag="streamcache-diagnosis", tag_field="schema"):
    """The effect of a policy's evictions on a text.

    Attributes:
        first_position: of the steady state, in which both policies have filled their caches.
        effect: of the policy's NLL less that of `against`.
        control: the same boundaries, and a policy without evictions of its own there: it evicts
            one entry per token and always holds as little as the evictions leave. An effect here
            would be of the text, not of the policy.
        raw: of the policy's NLL as it is.
    """

    configuration: str
    against: str
    workload: WorkloadRecord
    environment: Environment
    evictions: Evictions
    first_position: int
    difference: Difference
    effect: EvictionEffect
    control: EvictionEffect
    raw: EvictionEffect
    notes: tuple[str, ...] = ()
    version: int = SCHEMA_VERSION


def tokens_csv(
    ids: list[int], texts: list[str], states: list[CacheState], nll: Floats, against: Floats
) -> bytes:
    """A row per predicted token; what `CacheState` says is of the moment it is predicted."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(
        ("position", "token", "text", "nll", "nll_against", "cache_size", "evicted", "eviction")
    )
    for i, state in enumerate(states):
        numbers = (f"{nll[i]:.6f}", f"{against[i]:.6f}")
        rows.writerow((i + 1, ids[i + 1], texts[i + 1], *numbers, *state))
    return file.getvalue().encode()
