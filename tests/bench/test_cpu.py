"""On the CPU, held against tests/golden/cpu.json: PPL of the packaged reference model, and TPOT of
one that fits a core's own cache."""

from pathlib import Path

import msgspec
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.gate.recorder import Recorder
from streamcache.gate.torch_environment import Surroundings
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.policy import EvictionPolicy, fields_that_are_set
from tests.bench.harness import (
    Bench,
    gate_baseline,
    gate_decoding,
    gate_quality,
    gate_speed,
)

READ = [
    *("baseline", "mit", "ours-standard", "best", "fast", "quality"),
    *("lazy-R32", "lazy-R128", "sink-16", "sink-64", "softlite-slack"),
]
WINDOW = EvictionPolicy(4, 252)
LAZY = EvictionPolicy(4, 252, cache_slack=8, compress_every=16)
TIMED = [
    *(Configuration(mode, WINDOW, mode) for mode in ("mit", "ours", "fast")),
    Configuration("lazy", LAZY, "ours"),
]


@pytest.fixture(scope="session")
def golden_environment(one_thread: None) -> Surroundings:
    return Surroundings(torch.device("cpu"))


@pytest.mark.parametrize("mode", ["mit", "ours", "fast", "captured"])
def test_decoding(mode: str, cpu_bench: Bench, golden: Recorder) -> None:
    gate_decoding(cpu_bench, golden, mode)


def test_recompute(cpu_bench: Bench, golden: Recorder) -> None:
    gate_baseline(cpu_bench, golden)


@pytest.mark.parametrize("name", READ)
def test_quality(name: str, cpu_bench: Bench, baseline_folder: Path, golden: Recorder) -> None:
    gate_quality(cpu_bench, baseline_folder, golden, NAMED[name])


@pytest.mark.parametrize("configuration", TIMED, ids=lambda c: c.name)
def test_speed(
    configuration: Configuration, cpu_bench: Bench, golden: Recorder, benchmark: BenchmarkFixture
) -> None:
    golden.identity(mode=str(configuration.mode), **fields_that_are_set(configuration.policy))
    speed = gate_speed(cpu_bench, golden, benchmark, configuration)
    benchmark.extra_info.update(msgspec.to_builtins(speed))
    assert speed.speedup is not None and speed.speedup > 1
