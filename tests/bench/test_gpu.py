"""TPOT of the pythia-2.8b shape and PPL of every named configuration, on a GPU, compared with the
golden of its kind (`--golden=h100`)."""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.caches.kinds import MODES
from streamcache.gate.bench import (
    SMALL,
    Bench,
    record_baseline,
    record_configuration,
    record_decoding,
    record_quality,
)
from streamcache.gate.recorder import Recorder
from streamcache.gate.torch_environment import TorchEnvironmentProbe
from streamcache.measure.configurations import NAMED, Configuration

pytestmark = pytest.mark.gpu

# Another R or S costs the same: PPL is enough.
TIMED = ["baseline", "mit", "ours-standard", "best", "quality", "fast", "captured", "best-captured"]
# By name, so that a new named configuration needs no golden on a GPU that few have.
READ = [
    *("best-fast", "lazy-R1", "lazy-R16", "lazy-R32", "lazy-R64", "lazy-R128"),
    *("sink-4", "sink-16", "sink-32", "sink-64"),
    *("softlite-none", "softlite-slack", "softlite-maxdrop", "softlite-full"),
]


@pytest.fixture(scope="session")
def golden_environment(gpu_bench: Bench) -> TorchEnvironmentProbe:
    return TorchEnvironmentProbe(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize("mode", ["mit", "ours", "fast", "captured"])
def test_decoding(mode: str, gpu_bench: Bench, golden: Recorder) -> None:
    record_decoding(gpu_bench, golden, Configuration(SMALL, *MODES[mode]))


def test_recompute(gpu_bench: Bench, golden: Recorder) -> None:
    record_baseline(gpu_bench, golden)


@pytest.mark.parametrize("name", READ)
def test_quality(name: str, gpu_bench: Bench, measurements: Path, golden: Recorder) -> None:
    record_quality(gpu_bench, golden, NAMED[name], measurements)


@pytest.mark.parametrize("name", TIMED)
def test_configuration(
    name: str, gpu_bench: Bench, measurements: Path, golden: Recorder, benchmark: BenchmarkFixture
) -> None:
    record = record_configuration(gpu_bench, golden, benchmark, NAMED[name], measurements)
    if name != "baseline":
        assert record.evictions.entries > 0, "the text must be long enough to evict"
