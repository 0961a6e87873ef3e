"""TPOT and PPL on the packaged reference model, on the CPU."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.bench.harness import CPU_CONFIGURATIONS, Bench, measure


@pytest.mark.parametrize("name", CPU_CONFIGURATIONS)
def test_configuration(
    name: str, cpu_bench: Bench, baseline_folder: Path, benchmark: BenchmarkFixture
) -> None:
    record = measure(cpu_bench, baseline_folder, benchmark, name)
    assert record.quality is not None and record.speed is not None
    assert 1 < record.quality.ppl < 4096, "a PPL beyond the vocabulary is no language model's"
    if name != "baseline":
        assert record.prunes.evicted > 0, "the stream must be long enough to evict"
        assert record.speed.speedup is not None and record.speed.speedup > 1
