"""TPOT of the pythia-2.8b shape and PPL of every named configuration, on a GPU, held against the
golden of its kind (`--golden=h100`)."""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.gate.recorder import Recorder
from streamcache.gate.torch_environment import Surroundings
from streamcache.measure.configurations import NAMED
from tests.bench.harness import (
    Bench,
    gate_baseline,
    gate_configuration,
    gate_decoding,
    gate_quality,
)

pytestmark = pytest.mark.gpu

# Another R or S costs the same: PPL is enough.
TIMED = ["baseline", "mit", "ours-standard", "best", "quality", "fast", "captured", "best-captured"]


@pytest.fixture(scope="session")
def golden_environment(gpu_bench: Bench) -> Surroundings:
    return Surroundings(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize("mode", ["mit", "ours", "fast", "captured"])
def test_decoding(mode: str, gpu_bench: Bench, golden: Recorder) -> None:
    gate_decoding(gpu_bench, golden, mode)


def test_recompute(gpu_bench: Bench, golden: Recorder) -> None:
    gate_baseline(gpu_bench, golden)


@pytest.mark.parametrize("name", [name for name in NAMED if name not in TIMED])
def test_quality(name: str, gpu_bench: Bench, baseline_folder: Path, golden: Recorder) -> None:
    gate_quality(gpu_bench, baseline_folder, golden, NAMED[name])


@pytest.mark.parametrize("name", TIMED)
def test_configuration(
    name: str,
    gpu_bench: Bench,
    baseline_folder: Path,
    golden: Recorder,
    benchmark: BenchmarkFixture,
) -> None:
    record = gate_configuration(gpu_bench, baseline_folder, golden, benchmark, name)
    if name != "baseline":
        assert record.prunes.evicted > 0, "the text must be long enough to evict"
