"""A stateful property test: the policy in plain lists and three real caches, side by side.

No model runs. The test hands each cache keys whose angle tells their position, and values that tell
their token; every answer of the cache is then read back into tokens and positions.
"""

from functools import cache

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.reference import ReferenceCache
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.policy import EvictionPolicy
from tests.oracle import kept_after_each
from tests.tiny import rule as rule_of
from tests.tiny import tiny

N_STEPS, LONGEST_CHUNK = 40, 12
BATCH, N_LAYERS, N_HEADS, HEAD_DIM = 2, 2, 2, 8
FAST, SLOW = 1.0, 0.004  # radians per position of the planes (0, 2) and (1, 3) of a head


@cache
def model() -> PreTrainedModel:
    """GPT-NeoX with half of each head rotary; it only tells the caches this geometry."""
    rope = {"rope_type": "default", "rope_theta": SLOW**-2, "partial_rotary_factor": 0.5}
    return tiny("gpt_neox", hidden_size=16, num_attention_heads=N_HEADS, rope_parameters=rope)


def keys_at(position: Tensor, labels: Tensor, layer: int) -> Tensor:
    """Keys [B, H, n, D]: unit planes at their positions [n], and the tokens' labels [B, n]."""
    keys = torch.zeros(BATCH, N_HEADS, len(position), HEAD_DIM)
    angle = position[:, None] * torch.tensor([FAST, SLOW], dtype=torch.float64)
    keys[..., 0:2] = angle.cos()
    keys[..., 2:4] = angle.sin()
    keys[..., 4] = labels[:, None]
    keys[..., 5] = layer
    return keys


def values_of(labels: Tensor, layer: int) -> Tensor:
    """Values [B, H, n, D] that say whose they are."""
    values = torch.zeros(*labels.shape, N_HEADS, HEAD_DIM)
    values[..., 0] = labels[..., None]
    values[..., 1] = torch.arange(N_HEADS)
    values[..., 2] = layer
    return values.transpose(1, 2)


def positions(keys: Tensor) -> Tensor:
    """The positions [B, H, n] that keys stand at, from their slow plane (below pi / SLOW = 785)."""
    return (torch.atan2(keys[..., 3], keys[..., 1]) / SLOW).round().long()


class Streams(RuleBasedStateMachine):
    @initialize(
        n_sink=st.integers(0, 5),
        window_size=st.integers(1, LONGEST_CHUNK),
        cache_slack=st.none() | st.integers(0, 8),
        max_drop=st.none() | st.integers(1, 6),
        compress_every=st.integers(1, 12),
    )
    def start(
        self,
        n_sink: int,
        window_size: int,
        cache_slack: int | None,
        max_drop: int | None,
        compress_every: int,
    ) -> None:
        self.policy = EvictionPolicy(n_sink, window_size, cache_slack, max_drop, compress_every)
        kinds = (StreamingCache, RerotatingCache, ReferenceCache)
        self.caches: list[BoundedCache] = [kind(model(), self.policy) for kind in kinds]
        self.history = kept_after_each(N_STEPS * LONGEST_CHUNK, *rule_of(self.policy))
        self.forget()

    def forget(self) -> None:
        self.tokens: list[list[int]] = []  # of each token, its label in every row of the batch
        self.held: list[int] = []

    @rule(n_tokens=st.integers(1, 10))
    def append_single_tokens(self, n_tokens: int) -> None:
        for _ in range(n_tokens):
            self.feed(1)

    @rule(
        n_tokens=st.integers(1, LONGEST_CHUNK) | st.just(LONGEST_CHUNK), interrupted=st.booleans()
    )
    def append_a_chunk(self, n_tokens: int, interrupted: bool) -> None:
        # The hooks feed an input in pieces in which only the first token evicts, or in one pass.
        pieces = self.caches[0].pieces(n_tokens)
        assert sum(pieces) == n_tokens
        for piece in pieces:
            self.feed(piece, interrupted)

    @rule(rows=st.lists(st.integers(0, BATCH - 1), min_size=BATCH, max_size=BATCH))
    def reorder(self, rows: list[int]) -> None:
        self.tokens = [[labels[row] for row in rows] for labels in self.tokens]
        for each in self.caches:
            each.reorder_cache(torch.tensor(rows))

    @rule()
    def reset(self) -> None:
        self.forget()
        for each in self.caches:
            each.reset()

    def feed(self, n: int, interrupted: bool = False) -> None:
        before, seen = self.held, len(self.tokens)
        self.tokens += [
            [BATCH * token + row for row in range(BATCH)] for token in range(seen, seen + n)
        ]
        self.held = self.history[seen + n - 1]
        n_dropped = len(before) + n - len(self.held)
        assert n_dropped <= n * (self.policy.max_drop or len(before))
        for each in self.caches:
            self.feed_one(each, n, interrupted)

    def feed_one(self, cache: BoundedCache, n: int, interrupted: bool) -> None:
        seen, n_kept = len(self.tokens) - n, len(self.held) - n
        mask_sizes = (n_kept + n, seen - n_kept)
        labels = torch.tensor(self.tokens[seen:]).T
        assert cache.get_seq_length() == seen
        for _ in range(interrupted):  # after its first layer
            cache.prepare(n)
            position = cache.next_position + torch.arange(n)
            cache.update(keys_at(position, labels, 0), values_of(labels, 0), 0)
        cache.prepare(n)
        assert cache.get_mask_sizes(n, 0) == mask_sizes
        position = cache.next_position + torch.arange(n)
        held = torch.tensor([self.tokens[token] for token in self.held]).T
        for layer in range(N_LAYERS):
            states = keys_at(position, labels, layer), values_of(labels, layer)
            keys, values = cache.update(*states, layer)
            # In stream order the kept tokens, sinks first, at positions that end at the query's.
            place = position[-1] + torch.arange(1 - len(self.held), 1)
            assert torch.equal(values, values_of(held, layer))
            assert torch.equal(positions(keys), place.expand(BATCH, N_HEADS, -1))
            assert (keys - keys_at(place, held, layer)).abs().max() < 1e-4
        cache.finish()

    @invariant()
    def sizes_are_bounded_and_agree(self) -> None:
        sigma = rule_of(self.policy)[2]
        assert len(self.held) <= self.policy.n_sink + self.policy.window_size + sigma
        for each in self.caches:
            assert (each.size, each.seen) == (len(self.held), len(self.tokens))
            assert each.seen - each.evicted == each.size


TestStreams = Streams.TestCase
TestStreams.settings = settings(deadline=None, max_examples=30, stateful_step_count=N_STEPS)
