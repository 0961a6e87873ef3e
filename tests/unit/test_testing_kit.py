"""The kit by which users check a rule or a cache of theirs: it passes what is right only."""

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy, Policy
from streamcache.testing import check_cache, check_policy
from tests.cases import POLICIES, each_cache, each_policy
from tests.tiny import llama


@dataclass(frozen=True)
class Halving(Policy):
    """When full, evict half of what may go."""

    n_sink: int = 2
    floor: int = 8
    capacity: int = 20

    def drop(self, seen: int, size: int) -> int:
        return (size + 2 - self.floor) // 2 if size == self.capacity else 0


class Wrong:
    """A rule with one thing wrong."""

    n_sink, floor, capacity = 2, 8, 20

    def __init__(self, **members: Any):
        vars(self).update(members)
        self.calls = 0

    def drop(self, seen: int, size: int) -> Any:
        return 4 if size == self.capacity else 0

    def scheduled(self, seen: int) -> bool:
        return False


def flickering(self: Wrong) -> Any:
    def drop(seen: int, size: int) -> int:
        self.calls += 1
        return 4 + self.calls % 2 if size == self.capacity else 0

    return drop


@each_policy
def test_the_rules_of_the_package_pass(policy: EvictionPolicy) -> None:
    check_policy(policy)


def test_a_rule_of_ones_own_passes_with_every_check() -> None:
    check_policy(Halving())
    check_policy(Wrong())


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no room": ({"floor": 2}, "n_sink < floor"),
    "a float": ({"drop": lambda seen, size: 0.0}, "0.0, no integer"),
    "sinks": ({"drop": lambda seen, size: 19 if size == 20 else 0}, "evicts 19 .* 18 are no sinks"),
    "the window": ({"drop": lambda seen, size: 15 if size == 20 else 0}, "leaves 6 .* floor is 8"),
    "never": ({"drop": lambda seen, size: 0}, "leaves 21 entries, capacity is 20"),
    "too many": ({"max_drop": 3}, "evicts 4 > max_drop=3"),
    "a negative one": ({"drop": lambda seen, size: -1}, "evicts -1"),
    "no bool": ({"scheduled": lambda seen: None}, "scheduled gave no bool"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rule_fails_and_the_message_says_why(fault: str) -> None:
    members, message = FAULTS[fault]
    with pytest.raises(AssertionError, match=message):
        check_policy(Wrong(**members))


def test_a_rule_that_remembers_fails() -> None:
    wrong = Wrong()
    wrong.drop = flickering(wrong)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="two answers"):
        check_policy(wrong)


@each_cache
def test_the_caches_of_the_package_pass(cache_type: Any) -> None:
    assert check_cache(cache_type, llama(), POLICIES["softlite"]) < 1e-4


def test_a_cache_with_a_rule_of_ones_own_passes() -> None:
    check_cache(StreamingCache, llama(), Halving())


class Forgetful(StreamingCache):
    """Loses the reordering of rows."""

    def _select(self, rows: Tensor) -> None:
        pass


class Still(StreamingCache):
    """Leaves the sinks where they were."""

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        super()._make_room(n_tokens, n_evicted, base)
        for arena in self._arenas if n_evicted else ():
            arena.place_sinks(self._begin, 0)


@pytest.mark.parametrize(
    ("wrong", "message"), [(Forgetful, "after its rows were reordered"), (Still, "token by token")]
)
def test_a_wrong_cache_fails_and_the_message_says_where(
    wrong: type[StreamingCache], message: str
) -> None:
    with pytest.raises(AssertionError, match=f"{message}: logits are off"):
        check_cache(wrong, llama(), POLICIES["softlite"])
