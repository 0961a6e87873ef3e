"""How a configuration becomes a benchmark: timed in turns with the others, and its record kept."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache import baseline as baselines
from streamcache import evaluate
from streamcache.configurations import BASELINE, NAMED, Configuration
from streamcache.corpora import TokenStream
from streamcache.models import LoadedModel
from streamcache.records import Quality, Record, Speed

CPU_CONFIGURATIONS = ["baseline", "mit", "ours-standard", "best", "fast", "best-fast"]


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
            wanted = baselines.wanted_for(subject, BASELINE, self.late_positions)
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
        decode = configuration.step(model, self.text.input_ids.to(device))

        def synchronised() -> None:
            decode()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return synchronised


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
