"""What the fast cache promises of its cost, measured in turns within one run on the CPU."""

from collections.abc import Callable
from statistics import median

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import DynamicCache

from streamcache import EvictionPolicy, ReferenceCache, RerotatingCache, StreamingCache
from streamcache.decoding.loop import SteadyDecode
from streamcache.gate.bench import Bench
from streamcache.measure.timing import time_tokens

ROUNDS, BLOCK = 24, 16  # short blocks: what disturbs the machine disturbs all contestants alike


def without_eviction(bench: Bench, n_entries: int) -> Callable[[], object]:
    """A decode step of transformers' own cache, held at n_entries."""
    model, ids = bench.read.model, bench.text.input_ids
    cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def step() -> None:
        model(input_ids=ids[None, n_entries : n_entries + 1], past_key_values=cache)
        cache.crop(-1)

    with torch.inference_mode():
        model(input_ids=ids[None, : n_entries - 1], past_key_values=cache, logits_to_keep=1)
    return step


@pytest.fixture(scope="module")
def steps(cpu_bench: Bench) -> dict[str, Callable[[], object]]:
    """The contestants, all with 2048 entries; each call decodes one token."""
    model, ids = cpu_bench.read.model, cpu_bench.text.input_ids
    vanilla, lazy = EvictionPolicy(4, 2044), EvictionPolicy(4, 1981, compress_every=64)
    return {
        "fast": SteadyDecode(model, ids, StreamingCache(model, vanilla)),
        "fast-R64": SteadyDecode(model, ids, StreamingCache(model, lazy)),
        "dynamic": without_eviction(cpu_bench, 2048),
        "ours": SteadyDecode(model, ids, RerotatingCache(model, vanilla)),
        "mit": SteadyDecode(model, ids, ReferenceCache(model, vanilla)),
    }


@pytest.fixture(scope="module")
def tpot(one_thread: None, steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds per token of each contestant."""
    cpu = torch.device("cpu")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        order = list(steps) if turn % 2 else list(reversed(steps))
        for name in order:
            timings = time_tokens(steps[name], BLOCK, cpu)
            if turn:  # the first turn warms up
                times[name] += timings.token_ms
    return {name: median(values) for name, values in times.items()}


@pytest.mark.parametrize(
    "slow, least",
    [("fast-R64", 1 / 1.03), ("dynamic", 1.0), ("ours", 1.4), ("mit", 1.4)],
)
def test_fast_costs_no_more_than(
    slow: str,
    least: float,
    steps: dict[str, Callable[[], object]],
    tpot: dict[str, float],
    benchmark: BenchmarkFixture,
) -> None:
    benchmark.extra_info.update(tpot_ms=tpot)
    benchmark.pedantic(steps[slow], rounds=BLOCK)
    assert tpot[slow] / tpot["fast"] >= least, tpot
