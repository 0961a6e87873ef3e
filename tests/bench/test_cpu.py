"""TPOT and PPL on the packaged reference model, on the CPU, held against tests/golden/cpu.json."""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.configurations import NAMED
from streamcache.golden.record import Recorder
from streamcache.machine import Surroundings
from tests.bench.harness import (
    Bench,
    gate_baseline,
    gate_configuration,
    gate_decoding,
    gate_quality,
)

TIMED = ["mit", "ours-standard", "best", "fast"]  # each beside the baseline
READ = ["baseline", "quality", "lazy-R32", "lazy-R128", "sink-16", "sink-64", "softlite-slack"]


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


@pytest.mark.parametrize("name", TIMED)
def test_configuration(
    name: str,
    cpu_bench: Bench,
    baseline_folder: Path,
    golden: Recorder,
    benchmark: BenchmarkFixture,
) -> None:
    record = gate_configuration(cpu_bench, baseline_folder, golden, benchmark, name)
    assert record.speed is not None and record.speed.speedup is not None
    assert record.prunes.evicted > 0, "the stream must be long enough to evict"
    assert record.speed.speedup > 1
