"""EvictionPolicy: the eviction rule, over all its parameters, against a simulation in lists."""

from dataclasses import FrozenInstanceError, dataclass, field, make_dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streamcache import policy as policy_module
from streamcache.policy import (
    EvictionPolicy,
    Evictions,
    Policy,
    PolicyError,
    between_evictions,
    checked_drop,
    count_evictions,
    evictions,
    evicts_inside,
    fields_that_are_set,
    window_size,
)
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
    """The tokens held after each chunk, before which the policy evicts."""
    held: list[int] = []
    history, seen = [], 0
    for n in chunks:
        dropped = checked_drop(policy, seen, len(held))
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
def test_inputs_of_several_tokens_are_cut_where_they_evict(
    policy: EvictionPolicy, data: st.DataObject
) -> None:
    """Then a piece evicts what its first token evicts, and the stream is that of single tokens."""
    sizes = st.lists(st.integers(1, 3 * policy.capacity), min_size=1, max_size=8)
    inputs = data.draw(sizes, label="inputs")
    token_by_token = kept_after_each(sum(inputs), *rule(policy))
    pieces, seen, size = [], 0, 0
    for n_tokens in inputs:
        lengths = between_evictions(policy, seen, size, n_tokens)
        assert sum(lengths) == n_tokens
        assert (len(lengths) > 1) == evicts_inside(policy, seen, size, n_tokens)
        pieces += lengths
        seen += n_tokens
        size = len(token_by_token[seen - 1])
    for seen, held in zip(accumulate(pieces), feed(policy, pieces)):
        assert_well_kept(held, seen, policy)
        assert held == token_by_token[seen - 1]


@settings(deadline=None)
@given(policies())
def test_no_eviction_exceeds_max_drop(policy: EvictionPolicy) -> None:
    assume(policy.max_drop is not None)
    assert max(evictions(policy, N_TOKENS)) <= (policy.max_drop or 0)


@settings(deadline=None)
@given(policies())
def test_evictions_happen_when_scheduled_or_when_full(policy: EvictionPolicy) -> None:
    sizes = [0, *map(len, feed(policy, [1] * N_TOKENS))]
    for t, (size, dropped) in enumerate(zip(sizes, evictions(policy, N_TOKENS)), start=1):
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
    drops = list(enumerate(evictions(policy, n_tokens), start=1))
    on_schedule = [t % policy.compress_every == 0 for t, dropped in drops if dropped]
    evicted = n_tokens - (len(feed(policy, [1] * n_tokens)[-1]) if n_tokens else 0)
    expected = Evictions(sum(on_schedule), len(on_schedule) - sum(on_schedule), evicted)
    assert count_evictions(policy, n_tokens) == expected


def test_vanilla_drops_one_per_token_once_full() -> None:
    drops = list(evictions(EvictionPolicy(4, 16), 100))
    assert drops == [0] * 20 + [1] * 80
    assert count_evictions(EvictionPolicy(4, 16), 100) == Evictions(
        scheduled=80, forced=0, entries=80
    )


def test_lazy_pruning_grows_by_31_and_prunes_each_32nd_token() -> None:
    policy = EvictionPolicy(4, 60, compress_every=32)  # floor 64
    assert (policy.floor, policy.slack, policy.capacity) == (64, 31, 95)
    drops = {t: d for t, d in enumerate(evictions(policy, 300), start=1) if d}
    assert drops == {t: 32 for t in range(96, 300, 32)}
    assert max(map(len, feed(policy, [1] * 300))) == 95
    assert count_evictions(policy, 300).forced == 0


def test_lazy_pruning_off_phase_first_drops_what_is_there() -> None:
    """Where the floor is no multiple of R the first prune is smaller, the others are of R."""
    policy = EvictionPolicy(4, 58, compress_every=32)
    drops = {t: d for t, d in enumerate(evictions(policy, 200), start=1) if d}
    assert drops == {64: 2, 96: 32, 128: 32, 160: 32, 192: 32}


def test_an_explicit_zero_slack_prunes_every_token_whatever_the_schedule() -> None:
    policy = EvictionPolicy(4, 16, cache_slack=0, compress_every=64)
    assert policy.capacity == policy.floor
    assert list(evictions(policy, 200)) == [0] * 20 + [1] * 180
    assert count_evictions(policy, 200) == Evictions(scheduled=3, forced=177, entries=180)


def test_best_prunes_at_the_latest_every_17_tokens() -> None:
    policy = EvictionPolicy(32, 2000, cache_slack=16, max_drop=32, compress_every=64)
    pruned = [t for t, dropped in enumerate(evictions(policy, 4000), start=1) if dropped]
    gaps = [later - earlier for earlier, later in pairwise(pruned)]
    assert max(gaps) == 17
    assert count_evictions(policy, 4000).forced > count_evictions(policy, 4000).scheduled > 0


def test_without_sinks_the_window_slides() -> None:
    assert feed(EvictionPolicy(0, 3), [1] * 5)[-1] == [2, 3, 4]


def test_a_window_of_one() -> None:
    assert feed(EvictionPolicy(1, 1), [1] * 5)[-1] == [0, 4]


def test_max_drop_spreads_a_scheduled_prune_over_later_evictions() -> None:
    policy = EvictionPolicy(0, 4, cache_slack=8, max_drop=3, compress_every=8)
    # Token 8: need 4, drops 3. Token 16: held 12, need 9, drops 3. 19 and on: full.
    drops = {t: d for t, d in enumerate(evictions(policy, 24), start=1) if d}
    assert drops == {8: 3, 16: 3, 19: 3, 22: 3, 24: 3}


def test_an_input_is_cut_where_something_is_evicted() -> None:
    lazy = EvictionPolicy(1, 5, compress_every=3)
    assert between_evictions(lazy, 0, 0, 14) == [8, 3, 3]  # tokens 9 and 12 evict
    assert between_evictions(lazy, 8, 8, 3) == [3]
    assert not evicts_inside(lazy, 0, 0, 8) and evicts_inside(lazy, 0, 0, 9)
    assert not evicts_inside(lazy, 8, 8, 3) and evicts_inside(lazy, 8, 8, 4)
    assert between_evictions(EvictionPolicy(4, 16), 100, 20, 3) == [1, 1, 1]


def test_a_policy_is_a_value() -> None:
    policy = EvictionPolicy(4, 16)
    assert policy == EvictionPolicy(n_sink=4, window_size=16) and hash(policy) == hash(policy)
    with pytest.raises(FrozenInstanceError):
        policy.n_sink = 5  # type: ignore[misc]
    with pytest.raises(PolicyError, match="window_size"):
        replace(policy, window_size=0)


class EverySecond:
    """A rule of one's own, without a base class: every second token evicts two."""

    n_sink, floor, capacity = 1, 5, 6

    def drop(self, seen: int, size: int) -> int:
        return 2 if size == self.capacity else 0

    def scheduled(self, seen: int) -> bool:
        return True


@dataclass(frozen=True)
class Halving(Policy):
    """A rule with the protocol as its base: when full it evicts all but the floor."""

    n_sink: int
    floor: int
    capacity: int = 32

    def drop(self, seen: int, size: int) -> int:
        return size + 1 - self.floor if size == self.capacity else 0


@dataclass(frozen=True)
class Setting:
    name: str
    policy: Policy
    batch: int = 1
    notes: tuple[str, ...] = field(default_factory=tuple)


def test_any_class_with_the_members_of_a_policy_is_a_policy() -> None:
    rule: Policy = EverySecond()
    assert window_size(rule) == 4
    assert list(evictions(rule, 10)) == [0, 0, 0, 0, 0, 0, 2, 0, 2, 0]
    assert count_evictions(rule, 10) == Evictions(scheduled=2, forced=0, entries=4)
    assert between_evictions(rule, 0, 0, 10) == [6, 2, 2]


def test_a_rule_based_on_the_protocol_has_planned_no_eviction_unless_it_says_so() -> None:
    rule = Halving(2, 16)
    assert count_evictions(rule, 100) == Evictions(scheduled=0, forced=4, entries=68)


@pytest.mark.parametrize("drop", [-1, 3, 6, 0])
def test_a_cache_is_not_given_an_eviction_outside_what_the_rule_declares(drop: int) -> None:
    class Wrong(EverySecond):
        def drop(self, seen: int, size: int) -> int:
            return drop

    with pytest.raises(PolicyError, match=r"Wrong.drop\(seen=9, size=6\) gave .* 5 to 6 entries"):
        checked_drop(Wrong(), 9, 6)


def test_the_identity_of_a_policy_is_its_fields_that_are_set() -> None:
    assert fields_that_are_set(EvictionPolicy(4, 16)) == {"n_sink": 4, "window_size": 16}
    assert fields_that_are_set(EvictionPolicy(4, 16, cache_slack=0, compress_every=2)) == {
        "n_sink": 4,
        "window_size": 16,
        "cache_slack": 0,
        "compress_every": 2,
    }


def test_a_new_field_with_a_neutral_default_changes_no_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = make_dataclass(
        "EvictionPolicy", [("priority", int, 0)], bases=(EvictionPolicy,), frozen=True
    )
    before = fields_that_are_set(EvictionPolicy(4, 16, max_drop=3))
    monkeypatch.setattr(policy_module, "EvictionPolicy", later)
    assert fields_that_are_set(later(4, 16, max_drop=3)) == before
    assert fields_that_are_set(later(4, 16, max_drop=3, priority=1)) == {**before, "priority": 1}


def test_the_identity_of_another_rule_names_its_class() -> None:
    assert fields_that_are_set(Halving(2, 16)) == {"rule": "Halving", "n_sink": 2, "floor": 16}
    assert fields_that_are_set(EverySecond()) == {
        "rule": "EverySecond",
        "n_sink": 1,
        "floor": 5,
        "capacity": 6,
    }


def test_the_identity_of_a_nested_dataclass_is_flat() -> None:
    setting = Setting("lazy", EvictionPolicy(4, 16))
    assert fields_that_are_set(setting) == {"name": "lazy", "n_sink": 4, "window_size": 16}
    assert fields_that_are_set(Setting("mine", EverySecond(), batch=2))["rule"] == "EverySecond"


def test_an_identity_holds_strings_and_integers_only() -> None:
    with pytest.raises(TypeError, match=r"notes is \('x',\)"):
        fields_that_are_set(Setting("lazy", EvictionPolicy(4, 16), notes=("x",)))
    with pytest.raises(TypeError, match="neither a dataclass nor a policy"):
        fields_that_are_set("S=4")


def test_integers_of_numpy_are_integers() -> None:
    numbers: tuple[Any, ...] = (numpy.int64(4), numpy.int32(16), None, numpy.uint8(3))
    policy = EvictionPolicy(*numbers)
    assert policy == EvictionPolicy(4, 16, max_drop=3)
    assert all(type(value) is int for value in fields_that_are_set(policy).values())
