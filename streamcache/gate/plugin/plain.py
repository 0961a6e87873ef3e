"""Benchmarks of pytest-benchmark that do not use the fixture `golden`: times alone."""

import statistics
from typing import Any

import pytest

from streamcache.gate.environment import interpreter
from streamcache.gate.plugin.marks import limits_of
from streamcache.gate.samples import Sample

_GROUPS = 40  # of rounds, in the order taken: each is one pair


def times_are_compared(item: pytest.Item) -> bool:
    """Whether this process times tests without the fixture `golden`, by the usual clock."""
    order = getattr(item.config.option, "golden_order", None)
    usual = item.config.getoption("benchmark_timer", "") == "time.perf_counter"
    return bool(order and order.plain and usual)


def plain_sample(item: pytest.Item) -> Sample | None:
    """What `benchmark(f)` measured in a test that passed; None where nothing was.

    It has no baseline in the same process: its pairs stand beside one second.
    """
    benchmark: Any = getattr(item, "funcargs", {}).get("benchmark")
    if benchmark is None or not benchmark.stats:
        return None
    seconds: list[float] = benchmark.stats.stats.data
    size = max(1, len(seconds) // _GROUPS)
    groups = [seconds[i : i + size] for i in range(0, len(seconds), size)]
    pairs = [(statistics.median(group), 1.0) for group in groups]
    tau, warn_only = limits_of(item)
    return Sample(
        item.nodeid,
        identity={"baseline": "one second", **interpreter()},
        pairs=pairs,
        mean_s=statistics.fmean(seconds),
        tau=tau,
        warn_only=warn_only,
    )
