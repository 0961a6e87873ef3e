"""Known mistakes, planted on purpose: the comparison with the oracle must notice every one.

A cache that is right stays below 1e-4 of the logits' spread; a mistake must exceed ten times that.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.buffer import Arena
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.policy import EvictionPolicy
from tests.tiny import error, expected, llama, stream, text

POLICY = EvictionPolicy(n_sink=4, window_size=12, cache_slack=6, max_drop=2, compress_every=5)
CHUNKS = [1] * 60 + [7, 1, 12, 2] * 3
YARN_SCALE = 1.2
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "attention_factor": YARN_SCALE,
}

place_sinks, rotate, move = Arena.place_sinks, Arena.rotate, Arena.move
make_arena = Arena.__init__
make_room, drop = StreamingCache._make_room, EvictionPolicy.drop


def no_sink_shift(self: Arena, begin: int, offset: int) -> None:
    place_sinks(self, begin, 0)


def sink_shift_off_by_one(self: Arena, begin: int, offset: int) -> None:
    place_sinks(self, begin, offset + 1)


def sink_shift_of_wrong_sign(self: Arena, begin: int, offset: int) -> None:
    place_sinks(self, begin, -offset)


def sink_shift_scales_again(self: Arena, begin: int, offset: int) -> None:
    place_sinks(self, begin, offset)
    self.keys[..., begin : begin + self.n_sink, :] *= YARN_SCALE


def sinks_left_behind(self: Arena, begin: int, offset: int) -> None:
    """The slots before the window keep what is there, the last evicted tokens."""


def sink_values_left_behind(self: Arena, begin: int, offset: int) -> None:
    values = self.values.clone()
    place_sinks(self, begin, offset)
    self.values = values


def one_sink_less(self: Arena, *shape: Any) -> None:
    make_arena(self, *shape)
    self.n_sink -= 1


def no_rotation_on_rebasing(self: Arena, begin: int, end: int, offset: int) -> None:
    pass


def rotation_of_wrong_sign_on_rebasing(self: Arena, begin: int, end: int, offset: int) -> None:
    rotate(self, begin, end, -offset)


def move_one_short(self: Arena, begin: int, end: int, to: int) -> None:
    move(self, begin, end - 1, to)


def rotation_by_chunk_length(
    self: StreamingCache, n_tokens: int, n_evicted: int, base: int
) -> None:
    """Sinks rotated by the length of the chunk to come instead of by the overflow."""
    make_room(self, n_tokens, n_evicted, base)
    for each in self._arenas if n_evicted else []:
        each.place_sinks(self._begin, self.evicted - base - n_evicted + n_tokens)


def one_too_many_dropped(self: EvictionPolicy, seen: int, size: int) -> int:
    return drop(self, seen, size) + (drop(self, seen, size) > 0)


def one_too_few_dropped(self: EvictionPolicy, seen: int, size: int) -> int:
    return max(0, drop(self, seen, size) - 1)


def max_drop_ignored(self: EvictionPolicy, seen: int, size: int) -> int:
    need = size + 1 - self.floor
    return need if drop(self, seen, size) else 0


def schedule_off_by_one(self: EvictionPolicy, seen: int) -> bool:
    return seen % self.compress_every == 0


def window_off_by_one(self: EvictionPolicy) -> int:
    return self.n_sink + self.window_size - 1


def mask_one_short(self: BoundedCache, query_length: int, layer_idx: int) -> tuple[int, int]:
    kept = self.size
    return kept + query_length, self.seen - kept - 1


MUTANTS: list[tuple[type, str, Callable[..., Any]]] = [
    (Arena, "place_sinks", no_sink_shift),
    (Arena, "place_sinks", sink_shift_off_by_one),
    (Arena, "place_sinks", sink_shift_of_wrong_sign),
    (Arena, "place_sinks", sink_shift_scales_again),
    (Arena, "place_sinks", sinks_left_behind),
    (Arena, "place_sinks", sink_values_left_behind),
    (Arena, "__init__", one_sink_less),
    (Arena, "rotate", no_rotation_on_rebasing),
    (Arena, "rotate", rotation_of_wrong_sign_on_rebasing),
    (Arena, "move", move_one_short),
    (StreamingCache, "_make_room", rotation_by_chunk_length),
    (EvictionPolicy, "drop", one_too_many_dropped),
    (EvictionPolicy, "drop", one_too_few_dropped),
    (EvictionPolicy, "drop", max_drop_ignored),
    (EvictionPolicy, "scheduled", schedule_off_by_one),
    (EvictionPolicy, "floor", window_off_by_one),
    (BoundedCache, "get_mask_sizes", mask_one_short),
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama(rope_parameters=YARN)


@pytest.fixture(scope="module")
def reference(model: PreTrainedModel) -> Tensor:
    return expected(model, POLICY, text(sum(CHUNKS)))


def off(model: PreTrainedModel, cache_type: type[StreamingCache], reference: Tensor) -> float:
    try:
        policy = replace(POLICY)  # another, which has computed nothing yet
        logits = stream(model, cache_type(model, policy), text(sum(CHUNKS)), CHUNKS)
    except RuntimeError:  # what is held has another shape than the mask
        return math.inf
    return error(logits, reference)


@pytest.mark.parametrize("cache_type", [StreamingCache, RerotatingCache])
def test_without_a_mistake(
    model: PreTrainedModel, cache_type: type[StreamingCache], reference: Tensor
) -> None:
    assert off(model, cache_type, reference) < 1e-4


@pytest.mark.parametrize(
    ("owner", "name", "mutant"), MUTANTS, ids=[mutant.__name__ for *_, mutant in MUTANTS]
)
def test_a_mistake_is_noticed(
    model: PreTrainedModel,
    owner: type,
    name: str,
    mutant: Callable[..., Any],
    reference: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_property = isinstance(getattr(owner, name), property | cached_property)
    planted = property(mutant) if is_property else mutant
    monkeypatch.setattr(owner, name, planted)
    assert off(model, StreamingCache, reference) > 1e-3
