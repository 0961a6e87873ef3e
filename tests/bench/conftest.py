"""What the benchmarks share: models, a text, and speeds taken in turn within one run."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache import baseline as baselines
from streamcache import evaluate
from streamcache.configurations import BASELINE, NAMED, Configuration
from streamcache.corpora import TokenStream, load_tokens
from streamcache.decode import Stream
from streamcache.models import LoadedModel, ModelError, load_model
from streamcache.recompute import recompute_step
from streamcache.records import Quality, Record, Speed

Measure = Callable[[BenchmarkFixture, str], Record]


class Bench:
    """A model to time, a model and text to take PPL from, and the configurations of a run."""

    def __init__(
        self,
        timed: LoadedModel,
        read: LoadedModel,
        text: TokenStream,
        names: list[str],
        late_positions: int,
        tpot_tokens: int,
        notes: tuple[str, ...],
    ):
        self.timed, self.read, self.text = timed, read, text
        self.configurations = [NAMED[name] for name in names]
        self.late_positions, self.tpot_tokens, self.notes = late_positions, tpot_tokens, notes
        self._speeds: dict[str, Speed] = {}
        self._baseline: baselines.Baseline | None = None

    def speed(self, name: str) -> Speed:
        """All configurations are timed together, in turns, the first time one is asked for."""
        if not self._speeds:
            self._speeds = evaluate.speeds(
                self.timed, self.text, BASELINE, self.configurations, self.tpot_tokens, 16
            )
        return self._speeds[name]

    def baseline(self, folder: Path) -> baselines.Baseline:
        if self._baseline is None:
            subject = evaluate.subject(self.read, self.text)
            wanted = baselines.Fingerprint(
                model=subject.model,
                revision=subject.revision,
                dtype=subject.dtype,
                text_digest=subject.text_digest,
                n_tokens=subject.n_tokens,
                n_sink=BASELINE.n_sink,
                window_size=BASELINE.window_size,
                late_positions=min(self.late_positions, subject.n_tokens - 1 - BASELINE.floor),
            )
            path = folder / f"{wanted.digest()}.json"
            ids = self.text.input_ids.to(self.read.model.device)
            self._baseline = baselines.obtain(path, wanted, self.read.model, ids, lambda n: None)
        return self._baseline

    def quality(self, configuration: Configuration, folder: Path) -> Quality:
        against = self.baseline(folder)
        if configuration.mode is None:
            return evaluate.baseline_quality(against)
        nll = evaluate.stream_nll(self.read, self.text, configuration, "one-pass")
        return evaluate.quality(nll, configuration.policy.floor, "one-pass", against)

    def step(self, configuration: Configuration) -> Callable[[], object]:
        """One token, device-synchronised, for pytest-benchmark's own statistics."""
        model, device = self.timed.model, self.timed.model.device
        ids = self.text.input_ids.to(device)
        policy = configuration.policy
        decode: Callable[[], object] = (
            recompute_step(model, ids, policy.n_sink, policy.window_size)
            if configuration.mode is None
            else Stream(model, ids, configuration.cache(model))
        )

        def synchronised() -> None:
            decode()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return synchronised


@pytest.fixture(scope="session")
def baseline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baselines")


def measure(bench: Bench, folder: Path, benchmark: BenchmarkFixture, name: str) -> Record:
    """Benchmark a configuration by name; its record goes into `extra_info`."""
    configuration = NAMED[name]
    rounds = 4 if configuration.mode is None else 64
    benchmark.pedantic(bench.step(configuration), rounds=rounds, warmup_rounds=2)
    record = evaluate.record(
        configuration,
        bench.read,
        bench.text,
        bench.quality(configuration, folder),
        bench.speed(name),
        bench.notes,
    )
    benchmark.extra_info.update(msgspec.to_builtins(record))
    return record


@pytest.fixture(scope="session")
def cpu_bench() -> Bench:
    loaded = load_model("reference", device="cpu")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=8192)
    return Bench(loaded, loaded, text, CPU_CONFIGURATIONS, 32, 128, ())


@pytest.fixture(scope="session")
def gpu_bench() -> Bench:
    notes: tuple[str, ...] = ()
    try:
        timed = read = load_model("EleutherAI/pythia-2.8b", device="cuda")
    except ModelError:
        timed = load_model("random:pythia-2.8b", device="cuda")
        read = load_model("reference", device="cuda")
        notes = (
            "EleutherAI/pythia-2.8b is out of reach: TPOT on random:pythia-2.8b, "
            "PPL on the packaged reference model",
        )
    real = "STREAMCACHE_DATA" in os.environ or timed is read
    text = load_tokens("pg19" if real else "stream", tokenizer=read.tokenizer, max_tokens=20_000)
    return Bench(timed, read, text, list(NAMED), text.input_ids.shape[0], 128, notes)


CPU_CONFIGURATIONS = ["baseline", "mit", "ours-standard", "best", "fast", "best-fast"]
