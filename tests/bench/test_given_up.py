"""What the paper tried and gave up: entries of the budget put to other uses than the window.

On the packaged reference model; a record each in `extra_info`. Results: docs/findings.md.
"""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.gate.bench import Bench
from streamcache.measure.checked import with_checksum
from streamcache.measure.configurations import Configuration
from streamcache.measure.run import Method, What, run
from streamcache.measure.steps import steady_step
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy

TOTAL, RESERVED = 256, 64  # entries: a small window is where they are missed
_all = EvictionPolicy.from_budget(TOTAL, 4, compress_every=32)
_less = EvictionPolicy.from_budget(TOTAL, 4, compress_every=32, overlap=RESERVED)
CONFIGURATIONS = [
    Configuration(_all, "reference", label="all for the window"),
    Configuration(_less, "reference", overlap=RESERVED, label="overlap"),
    Configuration(_less, "reference", refresh=RESERVED, label="refresh-middle"),
    Configuration(_less, "reference", refresh=RESERVED, refresh_at="tail", label="refresh-tail"),
]

PPL: dict[str, float] = {}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
def test_reserved_entries(
    configuration: Configuration,
    cpu_bench: Bench,
    measurements: Path,
    benchmark: BenchmarkFixture,
) -> None:
    loaded, text = cpu_bench.read, cpu_bench.text
    step = steady_step(configuration, loaded.model, text.input_ids)
    benchmark.pedantic(step, rounds=64, warmup_rounds=8)
    method: Method = "sequential" if configuration.refresh else "one-pass"
    workload = Workload(loaded, text, window=None)
    measured = run(configuration, workload, What(method, tpot_tokens=0), Store(measurements))
    benchmark.extra_info.update(with_checksum(measured.record))
    assert measured.record.sizes.total == TOTAL and measured.nll is not None
    assert measured.record.quality is not None
    PPL[configuration.name] = measured.record.quality.ppl


def test_the_window_is_the_best_use_of_the_budget() -> None:
    """Measured: 26.058 for the window, 26.343 empty, 26.060 middle, 34.377 tail."""
    if len(PPL) < len(CONFIGURATIONS):
        pytest.skip("needs the measurements above")
    window, empty, middle, tail = PPL.values()
    assert empty > 1.005 * window, "entries that hold nothing are missed"
    assert 0.998 * window < middle < 0.995 * empty, "in stream order they help, and do not pay"
    assert tail > 1.25 * window, "behind the newest token they break it"
