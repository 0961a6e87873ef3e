"""TPOT of the pythia-2.8b shape and PPL of every named configuration, on a GPU."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.configurations import NAMED
from tests.bench.harness import Bench, measure


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(NAMED))
def test_configuration(
    name: str, gpu_bench: Bench, baseline_folder: Path, benchmark: BenchmarkFixture
) -> None:
    record = measure(gpu_bench, baseline_folder, benchmark, name)
    assert record.quality is not None and record.speed is not None
    assert record.quality.ppl > 1
    if name != "baseline":
        assert record.prunes.evicted > 0, "the text must be long enough to evict"
