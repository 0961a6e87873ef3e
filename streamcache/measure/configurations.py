"""The configurations with names, as benchmarks, goldens and reports call them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.reference import ReferenceCache
from streamcache.caches.refresh import RefreshCache, RefreshPolicy
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.loop import (
    CapturedSteadyDecode,
    SteadyDecode,
    captured_nll,
    nll_between_prunes,
    sequential_nll,
)
from streamcache.decoding.nll import Advance
from streamcache.decoding.recompute import recompute_step
from streamcache.policy import EvictionPolicy, PolicyWarning

Mode = Literal["mit", "ours", "fast", "captured"]

_CACHES: dict[str, type[BoundedCache]] = {
    "mit": ReferenceCache,
    "ours": RerotatingCache,
    "fast": StreamingCache,
}


@dataclass(frozen=True)
class Configuration:
    """A policy and how a stream is decoded under it.

    The modes are three ways to rotate keys and, "captured", a ring read in a CUDA graph. None is
    the fixed baseline: no cache, the context is recomputed for every token.
    """

    name: str
    policy: EvictionPolicy
    mode: Mode | None = "ours"

    def step(self, model: PreTrainedModel, input_ids: Tensor) -> Callable[[], object]:
        """A function that decodes a token of the text [T] a call, in the steady state."""
        policy = self.policy
        if self.mode is None:
            return recompute_step(model, input_ids, policy.n_sink, policy.window_size)
        if self.mode == "captured":
            return CapturedSteadyDecode(CapturedDecoder(model, policy), input_ids)
        return SteadyDecode(model, input_ids, _CACHES[self.mode](model, policy))

    def sequential_nll(
        self, model: PreTrainedModel, input_ids: Tensor, advance: Advance | None = None
    ) -> Tensor:
        """NLL [T - 1] of the text [T], decoded token by token: see `decoding.loop.sequential_nll`.

        Raises:
            ValueError: the baseline decodes nothing.
        """
        if self.mode is None:
            raise ValueError(f"{self.name} recomputes its context and has no cache")
        if self.mode == "captured":
            return captured_nll(CapturedDecoder(model, self.policy), input_ids, advance)
        return sequential_nll(model, input_ids, _CACHES[self.mode](model, self.policy), advance)


@dataclass(frozen=True)
class RefreshConfiguration(Configuration):
    """A policy with tokens put back at prunes; its PPL is decoded, not taken in one pass."""

    budget: int = 1
    where: RefreshPolicy = "middle"

    @staticmethod
    def of(policy: EvictionPolicy, budget: int, where: RefreshPolicy) -> "RefreshConfiguration":
        name = f"refresh-{where}-{budget} {policy.settings}"
        return RefreshConfiguration(name, policy, "mit", budget, where)

    @property
    def note(self) -> str:
        """What the policy alone does not say."""
        return f"besides, up to {self.budget} evicted tokens are held ({self.where})"

    def cache(self, model: PreTrainedModel) -> RefreshCache:
        return RefreshCache(model, self.policy, self.budget, self.where)

    def step(self, model: PreTrainedModel, input_ids: Tensor) -> SteadyDecode:
        return SteadyDecode(model, input_ids, self.cache(model))

    def sequential_nll(
        self, model: PreTrainedModel, input_ids: Tensor, advance: Advance | None = None
    ) -> Tensor:
        return nll_between_prunes(model, input_ids, self.cache(model), advance)


# The fixed baseline, which everything is compared with: S = 4, W = 2044, no cache.
BASELINE = EvictionPolicy(4, 2044)


def _named() -> dict[str, Configuration]:
    best = EvictionPolicy(32, 2000, cache_slack=16, max_drop=32, compress_every=64)
    rows = [
        Configuration("baseline", BASELINE, None),
        Configuration("mit", BASELINE, "mit"),
        Configuration("ours-standard", BASELINE),
        Configuration("best", best),
        Configuration("fast", BASELINE, "fast"),
        Configuration("best-fast", best, "fast"),
        Configuration("captured", BASELINE, "captured"),
        Configuration("best-captured", best, "captured"),
        Configuration("quality", EvictionPolicy(32, 2016, 16, 32, 32)),
    ]
    for every in (1, 16, 32, 64, 128):
        rows.append(Configuration(f"lazy-R{every}", EvictionPolicy(4, 2044, compress_every=every)))
    for n_sink in (4, 16, 32, 64):
        policy = EvictionPolicy(n_sink, 2048 - n_sink, compress_every=32)
        rows.append(Configuration(f"sink-{n_sink}", policy))
    cells = {"none": (None, None), "slack": (16, None), "maxdrop": (None, 32), "full": (16, 32)}
    for cell, (slack, max_drop) in cells.items():
        policy = EvictionPolicy(32, 2016, slack, max_drop, 32)
        rows.append(Configuration(f"softlite-{cell}", policy))
    return {row.name: row for row in rows}


with warnings.catch_warnings():  # lazy-R128 is here to show what it costs
    warnings.simplefilter("ignore", PolicyWarning)
    NAMED = _named()
