"""The configurations with names, as benchmarks, goldens and reports call them."""

import warnings
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from streamcache.bounded import BoundedCache
from streamcache.cache import RerotatingCache, StreamingCache
from streamcache.policy import EvictionPolicy, PolicyWarning
from streamcache.reference import ReferenceCache

Mode = Literal["mit", "ours", "fast"]

MODES: dict[Mode, type[BoundedCache]] = {
    "mit": ReferenceCache,
    "ours": RerotatingCache,
    "fast": StreamingCache,
}


@dataclass(frozen=True)
class Configuration:
    """A policy and the way its cache rotates keys.

    `mode` None is the fixed baseline: no cache, the context is recomputed for every token.
    """

    name: str
    policy: EvictionPolicy
    mode: Mode | None = "ours"

    def cache(self, model: PreTrainedModel) -> BoundedCache:
        if self.mode is None:
            raise ValueError(f"{self.name} recomputes its context and has no cache")
        return MODES[self.mode](model, self.policy)


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
