"""What can be measured: a policy, the cache that carries it out, and how a token is decoded."""

import warnings
from dataclasses import dataclass, field, replace

from streamcache.caches.kinds import KINDS, Engine
from streamcache.caches.other_positions import ONE_PASSES
from streamcache.caches.refresh import RefreshPolicy
from streamcache.caches.scored import ScoredPolicy
from streamcache.policy import EvictionPolicy, Policy, PolicyWarning, fields_that_are_set

SCORED = "scored"  # the cache of a rule that looks at content
RECOMPUTE = "recompute"  # in place of a cache: the context is encoded again for every token


@dataclass(frozen=True)
class Configuration:
    """One way to stream. Two configurations are the same if all fields but the label are.

    Attributes:
        policy: what to evict and when; of `recompute`, S and W of the window that is encoded.
        cache: a name in `KINDS`, `recompute`, or `scored` for a rule that looks at content.
        engine: "eager", or "captured": one CUDA graph per token (cache "ring").
        overlap: entries of the budget that stay empty.
        refresh: entries of the budget for evicted tokens that are put back at evictions.
        refresh_at: where these stand: in stream order or behind the newest token.
        weights: quantisation of the linear layers; None: the dtype of the model.
        batch: streams decoded side by side, for times.
        label: for people; no code reads it.
        positions: "compact", as StreamingLLM has them, or an experiment, of which PPL can be taken
            (see `caches.other_positions`): "gaps" or "wrap".

    Raises:
        ValueError: an unknown cache, or fields that exclude each other.
    """

    policy: Policy
    cache: str
    engine: Engine = "eager"
    overlap: int = 0
    refresh: int = 0
    refresh_at: RefreshPolicy = "middle"
    weights: str | None = None
    batch: int = 1
    label: str = field(default="", compare=False)
    positions: str = "compact"

    def __post_init__(self) -> None:
        if self.by_content != (self.cache == SCORED):
            raise ValueError(f"the cache {SCORED!r} is that of rules that look at content")
        if self.cache not in (RECOMPUTE, SCORED, *KINDS):
            raise ValueError(
                f"no cache {self.cache!r}: give one of {RECOMPUTE}, {', '.join(KINDS)}"
            )
        if (self.engine == "captured") > (self.cache == "ring"):
            raise ValueError(f"captured decoding needs the cache 'ring', not {self.cache!r}")
        if self.refresh and self.cache != "reference":
            raise ValueError("refresh is built on the cache 'reference'")
        if self.positions not in ONE_PASSES:
            raise ValueError(
                f"no positions {self.positions!r}: give one of {', '.join(ONE_PASSES)}"
            )
        if self.is_experiment and self.cache != "streaming":
            raise ValueError(f"positions {self.positions!r} are computed in one pass only")

    @property
    def recomputes(self) -> bool:
        """Whether there is no cache."""
        return self.cache == RECOMPUTE

    @property
    def by_content(self) -> bool:
        """Whether the rule looks at content, so that there is no one pass."""
        return isinstance(self.policy, ScoredPolicy)

    @property
    def is_experiment(self) -> bool:
        """Whether it is computed in one pass only, and no cache carries it out."""
        return self.positions != "compact"

    @property
    def total(self) -> int:
        """Entries of the budget: the policy's capacity and what is reserved besides it."""
        return self.policy.capacity + self.overlap + self.refresh

    @property
    def name(self) -> str:
        """The label, or a description made of the fields that are set."""
        return self.label or describe(self)


def identity(configuration: Configuration) -> dict[str, str | int]:
    """The fields that are set: a field at its default is absent, so a new field changes nothing."""
    return fields_that_are_set(configuration)


_SHORT = {
    "n_sink": "S",
    "window_size": "W",
    "cache_slack": "σ",
    "max_drop": "δ",
    "compress_every": "R",
}


def describe(configuration: Configuration) -> str:
    """A configuration in words: "streaming S=4 W=2044"."""
    found = identity(configuration)
    words = [str(found.pop("cache"))]
    for name in ("engine", "rule"):
        words += [str(found.pop(name))] if name in found else []
    return " ".join([*words, *(f"{_SHORT.get(k, k)}={v}" for k, v in found.items())])


def settings(policy: Policy) -> str:
    """A policy in words: "S=4 W=2044 R=32"."""
    return " ".join(f"{_SHORT.get(k, k)}={v}" for k, v in fields_that_are_set(policy).items())


def with_budget(configuration: Configuration, total: int) -> Configuration:
    """The configuration with the window that a total budget leaves, in entries.

    Raises:
        PolicyError: the total leaves no window.
    """
    p = configuration.policy
    assert isinstance(p, EvictionPolicy)
    with warnings.catch_warnings():  # the ablations are there to show what these settings cost
        warnings.simplefilter("ignore", PolicyWarning)
        window = EvictionPolicy.from_budget(
            total,
            p.n_sink,
            p.cache_slack,
            p.max_drop,
            p.compress_every,
            configuration.overlap,
            configuration.refresh,
        ).window_size
        policy = replace(p, window_size=window)  # all other fields stay, also those of a subclass
    if policy == p:
        return configuration
    label = configuration.label and f"{configuration.label}@{total}"
    return replace(configuration, policy=policy, label=label)


# The fixed baseline, which everything is compared with: S = 4, W = 2044, no cache.
BASELINE = EvictionPolicy(4, 2044)


def _named() -> dict[str, Configuration]:
    best = EvictionPolicy(32, 2000, cache_slack=16, max_drop=32, compress_every=64)
    rows = {
        "baseline": Configuration(BASELINE, RECOMPUTE),
        "mit": Configuration(BASELINE, "reference"),
        "ours-standard": Configuration(BASELINE, "rerotating"),
        "best": Configuration(best, "rerotating"),
        "fast": Configuration(BASELINE, "streaming"),
        "window": Configuration(EvictionPolicy(0, 2048), "streaming"),
        "gaps": Configuration(BASELINE, "streaming", positions="gaps"),
        "wrap": Configuration(BASELINE, "streaming", positions="wrap"),
        "best-fast": Configuration(best, "streaming"),
        "captured": Configuration(BASELINE, "ring", "captured"),
        "best-captured": Configuration(best, "ring", "captured"),
        "quality": Configuration(EvictionPolicy(32, 2016, 16, 32, 32), "rerotating"),
    }
    for every in (1, 16, 32, 64, 128):
        policy = EvictionPolicy(4, 2044, compress_every=every)
        rows[f"lazy-R{every}"] = Configuration(policy, "rerotating")
    for n_sink in (4, 16, 32, 64):
        policy = EvictionPolicy(n_sink, 2048 - n_sink, compress_every=32)
        rows[f"sink-{n_sink}"] = Configuration(policy, "rerotating")
    cells = {"none": (None, None), "slack": (16, None), "maxdrop": (None, 32), "full": (16, 32)}
    for cell, (slack, max_drop) in cells.items():
        policy = EvictionPolicy(32, 2016, slack, max_drop, 32)
        rows[f"softlite-{cell}"] = Configuration(policy, "rerotating")
    return {label: replace(row, label=label) for label, row in rows.items()}


with warnings.catch_warnings():  # lazy-R128 is here to show what it costs
    warnings.simplefilter("ignore", PolicyWarning)
    NAMED = _named()

# The paper's three ablations, in the order of what is varied.
ABLATIONS = {
    "lazy": ("lazy-R1", "lazy-R16", "lazy-R32", "lazy-R64", "lazy-R128"),
    "sink": ("sink-4", "sink-16", "sink-32", "sink-64"),
    "softlite": ("softlite-none", "softlite-slack", "softlite-maxdrop", "softlite-full"),
}


def label_of(configuration: Configuration) -> Configuration:
    """The same with the label of the named configuration that it equals, if there is one."""
    same = next((named for named in NAMED.values() if named == configuration), None)
    return configuration if same is None else replace(configuration, label=same.label)
