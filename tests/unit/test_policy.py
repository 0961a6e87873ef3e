"""EvictionPolicy: the eviction rule, over all its parameters, against a simulation in lists."""

from dataclasses import FrozenInstanceError, replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamcache.policy import EvictionPolicy, PolicyError, Prunes
from tests.oracle import kept_after_each
from tests.tiny import rule

N_TOKENS = 120


@st.composite
def policies(draw: st.DrawFn) -> EvictionPolicy:
    return EvictionPolicy(
        n_sink=draw(st.integers(0, 8)),
        window_size=draw(st.integers(1, 24)),
        cache_slack=draw(st.none() | st.integers(0, 20)),
        max_drop=draw(st.none() | st.integers(1, 12)),
        compress_every=draw(st.integers(1, 40)),
    )


def feed(policy: EvictionPolicy, chunks: list[int]) -> list[list[int]]:
    """The tokens held after each chunk, where the policy alone decides how many to drop."""
    held: list[int] = []
    history, seen = [], 0
    for n in chunks:
        dropped = policy.drop_for(seen, len(held), n)
        rest = held[policy.n_sink :]
        assert dropped <= len(rest), "a sink was evicted"
        held = held[: policy.n_sink] + rest[dropped:] + list(range(seen, seen + n))
        seen += n
        history.append(list(held))
    return history


def assert_well_kept(held: list[int], seen: int, policy: EvictionPolicy) -> None:
    """At most `capacity` entries: the first S tokens and one run, at least W, to the newest."""
    assert len(held) <= policy.capacity
    n_sink = min(policy.n_sink, seen)
    assert held[:n_sink] == list(range(n_sink))
    assert held[n_sink:] == list(range(seen - len(held) + n_sink, seen))
    assert len(held) >= min(seen, policy.floor)


@settings(deadline=None)
@given(policies())
def test_token_by_token(policy: EvictionPolicy) -> None:
    history = feed(policy, [1] * N_TOKENS)
    assert history == kept_after_each(N_TOKENS, *rule(policy))
    for seen, held in enumerate(history, start=1):
        assert_well_kept(held, seen, policy)


@settings(deadline=None)
@given(policies(), st.data())
def test_in_chunks(policy: EvictionPolicy, data: st.DataObject) -> None:
    sizes = st.lists(st.integers(1, policy.window_size), min_size=1, max_size=30)
    chunks = data.draw(sizes, label="chunks")
    token_by_token = kept_after_each(sum(chunks), *rule(policy))
    for seen, held in zip(accumulate(chunks), feed(policy, chunks)):
        assert_well_kept(held, seen, policy)
        assert held == token_by_token[seen - 1]  # however the stream was cut


@settings(deadline=None)
@given(policies(), st.integers(1, 24))
def test_no_eviction_exceeds_max_drop(policy: EvictionPolicy, n: int) -> None:
    assume(policy.max_drop is not None and n <= policy.window_size)
    limit = policy.max_drop or 0
    assert max(policy.drops(N_TOKENS)) <= limit
    sizes = [0, *map(len, feed(policy, [n] * (N_TOKENS // n)))]
    assert all(n - (after - before) <= n * limit for before, after in pairwise(sizes))


@settings(deadline=None)
@given(policies())
def test_evictions_happen_when_scheduled_or_when_full(policy: EvictionPolicy) -> None:
    sizes = [0, *map(len, feed(policy, [1] * N_TOKENS))]
    for t, (size, dropped) in enumerate(zip(sizes, policy.drops(N_TOKENS)), start=1):
        on_schedule = t % policy.compress_every == 0
        assert policy.scheduled(t - 1) == on_schedule
        if dropped:
            assert size >= policy.floor
            assert on_schedule or size == policy.capacity
        elif on_schedule:
            assert size < policy.floor


@settings(deadline=None)
@given(policies(), st.integers(0, N_TOKENS))
def test_count_is_the_sum_of_the_drops(policy: EvictionPolicy, n_tokens: int) -> None:
    drops = list(enumerate(policy.drops(n_tokens), start=1))
    on_schedule = [t % policy.compress_every == 0 for t, dropped in drops if dropped]
    evicted = n_tokens - (len(feed(policy, [1] * n_tokens)[-1]) if n_tokens else 0)
    expected = Prunes(sum(on_schedule), len(on_schedule) - sum(on_schedule), evicted)
    assert policy.count(n_tokens) == expected


def test_vanilla_drops_one_per_token_once_full() -> None:
    drops = list(EvictionPolicy(4, 16).drops(100))
    assert drops == [0] * 20 + [1] * 80
    assert EvictionPolicy(4, 16).count(100) == Prunes(scheduled=80, forced=0, evicted=80)


def test_lazy_pruning_grows_by_31_and_prunes_each_32nd_token() -> None:
    policy = EvictionPolicy(4, 60, compress_every=32)  # floor 64
    assert (policy.floor, policy.slack, policy.capacity) == (64, 31, 95)
    drops = {t: d for t, d in enumerate(policy.drops(300), start=1) if d}
    assert drops == {t: 32 for t in range(96, 300, 32)}
    assert max(map(len, feed(policy, [1] * 300))) == 95
    assert policy.count(300).forced == 0


def test_lazy_pruning_off_phase_first_drops_what_is_there() -> None:
    """Where the floor is no multiple of R the first prune is smaller, the others are of R."""
    policy = EvictionPolicy(4, 58, compress_every=32)
    drops = {t: d for t, d in enumerate(policy.drops(200), start=1) if d}
    assert drops == {64: 2, 96: 32, 128: 32, 160: 32, 192: 32}


def test_an_explicit_zero_slack_prunes_every_token_whatever_the_schedule() -> None:
    policy = EvictionPolicy(4, 16, cache_slack=0, compress_every=64)
    assert policy.capacity == policy.floor
    assert list(policy.drops(200)) == [0] * 20 + [1] * 180
    assert policy.count(200) == Prunes(scheduled=3, forced=177, evicted=180)


def test_best_prunes_at_the_latest_every_17_tokens() -> None:
    policy = EvictionPolicy(32, 2000, cache_slack=16, max_drop=32, compress_every=64)
    pruned = [t for t, dropped in enumerate(policy.drops(4000), start=1) if dropped]
    gaps = [later - earlier for earlier, later in pairwise(pruned)]
    assert max(gaps) == 17
    assert policy.count(4000).forced > policy.count(4000).scheduled > 0


def test_without_sinks_the_window_slides() -> None:
    assert feed(EvictionPolicy(0, 3), [1] * 5)[-1] == [2, 3, 4]


def test_a_window_of_one() -> None:
    assert feed(EvictionPolicy(1, 1), [1] * 5)[-1] == [0, 4]


def test_max_drop_spreads_a_scheduled_prune_over_later_evictions() -> None:
    policy = EvictionPolicy(0, 4, cache_slack=8, max_drop=3, compress_every=8)
    # Token 8: need 4, drops 3. Token 16: held 12, need 9, drops 3. 19 and on: full.
    drops = {t: d for t, d in enumerate(policy.drops(24), start=1) if d}
    assert drops == {8: 3, 16: 3, 19: 3, 22: 3, 24: 3}


def test_a_chunk_longer_than_the_window_is_refused() -> None:
    policy = EvictionPolicy(4, 16)
    assert policy.drop_for(100, 20, 16) == 16
    with pytest.raises(PolicyError, match=r"17 tokens does not fit window_size=16"):
        policy.drop_for(100, 20, 17)


def test_a_policy_is_a_value() -> None:
    policy = EvictionPolicy(4, 16)
    assert policy == EvictionPolicy(n_sink=4, window_size=16) and hash(policy) == hash(policy)
    with pytest.raises(FrozenInstanceError):
        policy.n_sink = 5  # type: ignore[misc]
    with pytest.raises(PolicyError, match="window_size"):
        replace(policy, window_size=0)
