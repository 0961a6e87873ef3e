"""On the CPU, compared with tests/golden/cpu.json: PPL of the packaged reference model, and TPOT of
a model that fits a core's own cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.caches.kinds import MODES
from streamcache.gate.bench import (
    MANY_SINKS,
    SMALL,
    Bench,
    record_baseline,
    record_decoding,
    record_family,
    record_memory,
    record_quality,
    record_speed,
)
from streamcache.gate.recorder import Recorder
from streamcache.gate.torch_environment import TorchEnvironmentProbe
from streamcache.inputs.models import LoadedModel
from streamcache.measure.checked import with_checksum
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.policy import EvictionPolicy

READ = [
    *("baseline", "mit", "ours-standard", "best", "fast", "quality"),
    *("lazy-R32", "lazy-R128", "sink-16", "sink-64", "softlite-slack"),
]
WINDOW = EvictionPolicy(4, 252)
LAZY = EvictionPolicy(4, 252, cache_slack=8, compress_every=16)
TIMED = [
    Configuration(WINDOW, "reference", label="mit"),
    Configuration(WINDOW, "rerotating", label="ours"),
    Configuration(WINDOW, "streaming", label="fast"),
    Configuration(LAZY, "rerotating", label="lazy"),
]


@pytest.fixture(scope="session")
def golden_environment(one_thread: None) -> TorchEnvironmentProbe:
    return TorchEnvironmentProbe(torch.device("cpu"))


@pytest.mark.parametrize("mode", ["mit", "ours", "fast", "captured"])
def test_decoding(mode: str, cpu_bench: Bench, golden: Recorder) -> None:
    record_decoding(cpu_bench, golden, Configuration(SMALL, *MODES[mode]))


@pytest.mark.parametrize("mode", ["ours", "fast", "captured"])
def test_llama(mode: str, cpu_bench: Bench, small_llama: LoadedModel, golden: Recorder) -> None:
    record_family(cpu_bench, golden, small_llama, Configuration(MANY_SINKS, *MODES[mode]))


@pytest.mark.parametrize("mode", ["ours", "fast", "captured"])
def test_memory(mode: str, cpu_bench: Bench, small_llama: LoadedModel, golden: Recorder) -> None:
    record_memory(cpu_bench, golden, small_llama, Configuration(SMALL, *MODES[mode]))


def test_recompute(cpu_bench: Bench, golden: Recorder) -> None:
    record_baseline(cpu_bench, golden)


@pytest.mark.parametrize("name", READ)
def test_quality(name: str, cpu_bench: Bench, measurements: Path, golden: Recorder) -> None:
    record_quality(cpu_bench, golden, NAMED[name], measurements)


@pytest.mark.parametrize("configuration", TIMED, ids=lambda c: c.name)
def test_speed(
    configuration: Configuration, cpu_bench: Bench, golden: Recorder, benchmark: BenchmarkFixture
) -> None:
    golden.identity(cache=configuration.cache)
    record = record_speed(cpu_bench, golden, benchmark, replace(configuration, label=""))
    benchmark.extra_info.update(with_checksum(record))
    assert record.speed is not None and record.speed.speedup > 1
