"""The configurations with names, as benchmarks, goldens and reports call them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PreTrainedModel

from streamcache.bounded import BoundedCache
from streamcache.cache import RerotatingCache, StreamingCache
from streamcache.capture import CapturedDecoder
from streamcache.decode import Advance, CapturedStream, Stream, captured_nll, sequential_nll
from streamcache.policy import EvictionPolicy, PolicyWarning
from streamcache.recompute import recompute_step
from streamcache.reference import ReferenceCache

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
            return CapturedStream(CapturedDecoder(model, policy), input_ids)
        return Stream(model, input_ids, _CACHES[self.mode](model, policy))

    def sequential_nll(
        self, model: PreTrainedModel, input_ids: Tensor, advance: Advance | None = None
    ) -> Tensor:
        """NLL [T - 1] of the text [T], decoded token by token: see `decode.sequential_nll`.

        Raises:
            ValueError: the baseline decodes nothing.
        """
        if self.mode is None:
            raise ValueError(f"{self.name} recomputes its context and has no cache")
        if self.mode == "captured":
            return captured_nll(CapturedDecoder(model, self.policy), input_ids, advance)
        return sequential_nll(model, input_ids, _CACHES[self.mode](model, self.policy), advance)


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
