"""How a configuration becomes a golden benchmark: its quality, its time beside the baseline's."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from streamcache.decoding.loop import SteadyDecode
from streamcache.decoding.onepass import streaming_nll
from streamcache.decoding.recompute import recompute_nll, recompute_step
from streamcache.gate.recorder import Recorder
from streamcache.gate.stopwatch import Stopwatch
from streamcache.inputs.corpora import TokenStream
from streamcache.inputs.models import LoadedModel
from streamcache.measure import baseline as baselines
from streamcache.measure import evaluate
from streamcache.measure.configurations import BASELINE, NAMED, Configuration
from streamcache.measure.records import Quality, Record, Speed
from streamcache.measure.timing import Laps, time_tokens
from streamcache.policy import EvictionPolicy, Policy, count_evictions, fields_that_are_set

SMALL = EvictionPolicy(4, 124, cache_slack=5, max_drop=3, compress_every=8)
SETTLE = 8  # tokens of a block that are not timed
N_SMALL = 400  # tokens decoded one by one, through every kind of cache


class Bench:
    """A model to time, a model and text to take PPL from, and how much of both.

    Args:
        late_positions: of the recompute baseline with a full window; its cost is a forward each.
        window: of the recompute baseline that is timed.
        block: tokens that a configuration decodes at a time, beside the baseline; more where an
            eviction comes more rarely, or where a token is captured and quick.
        beside: tokens that the baseline decodes at a time.
        pairs: blocks timed, each beside the baseline.
        drift: of a PPL, relative: what other kernels of the same precision may change.
    """

    def __init__(
        self,
        timed: LoadedModel,
        read: LoadedModel,
        text: TokenStream,
        late_positions: int,
        window: EvictionPolicy,
        block: int,
        beside: int,
        pairs: int,
        drift: float,
        notes: tuple[str, ...] = (),
    ):
        self.timed, self.read, self.text = timed, read, text
        self.late_positions, self.drift, self.notes = late_positions, drift, notes
        self.window, self.block, self.beside, self.pairs = window, block, beside, pairs
        self._baseline: baselines.Baseline | None = None

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


class Timed:
    """Blocks of a decode; a call runs one and returns seconds a token, evictions included: by the
    device's clock, on a CPU without the time that other processes had the core.

    The first tokens of a block are not timed: on a CPU they find its caches full of the baseline's
    weights and states, and take up to twice as long.
    """

    def __init__(
        self, step: Callable[[], object], n_tokens: int, device: torch.device, settle: int = 0
    ):
        self.step, self.n_tokens, self.device, self.settle = step, n_tokens, device, settle
        self.blocks: list[Laps] = []

    def __call__(self) -> float:
        for _ in range(self.settle):
            self.step()
        with Stopwatch() as host:
            laps = time_tokens(self.step, self.n_tokens, self.device)
        self.blocks.append(laps)
        seconds = sum(laps.token_ms) / 1e3 if laps.on_device else host.seconds
        return seconds / self.n_tokens

    @property
    def laps(self) -> Laps:
        return Laps.join(self.blocks[1:])  # the first warmed up


class Busy:
    """Blocks of a decode; a call runs one and returns seconds a token that the GPU was at work: the
    time of its kernels, one after the other, without the waits for the host in between."""

    def __init__(self, step: Callable[[], object], n_tokens: int):
        self.step, self.n_tokens = step, n_tokens
        self.kernels: list[float] = []  # a token, of each block

    def __call__(self) -> float:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            for _ in range(self.n_tokens):
                self.step()
            torch.cuda.synchronize()
        # As recorded: torch takes seconds to make its own events of tens of thousands.
        events: Any = watched.profiler.kineto_results.events()
        ran = [e.duration_ns() for e in events if e.device_type() == DeviceType.CUDA]
        self.kernels.append(len(ran) / self.n_tokens)
        return sum(ran) / 1e9 / self.n_tokens


def identify(golden: Recorder, loaded: LoadedModel, text: TokenStream, policy: Policy) -> None:
    golden.identity(
        model=loaded.name,
        revision=loaded.revision,
        dtype=evaluate.subject(loaded, text).dtype,
        attention=str(loaded.model.config._attn_implementation),
        n_tokens=len(text.input_ids),
        **fields_that_are_set(policy),
    )
    golden.equal(text=text.digest)


def gate_quality(
    bench: Bench, folder: Path, golden: Recorder, configuration: Configuration
) -> Quality:
    """PPL against the golden's and, as a budget, against the baseline's at the same positions."""
    identify(golden, bench.read, bench.text, configuration.policy)
    quality = bench.quality(configuration, folder)
    golden.metric("ppl", quality.ppl, rel_tol=bench.drift)
    if quality.ppl_steady is not None:
        golden.metric("ppl steady", quality.ppl_steady, rel_tol=bench.drift)
    if quality.ppl_increase is not None:
        ratio = 1 + quality.ppl_increase
        golden.metric("ppl / baseline", ratio, rel_tol=bench.drift, max_value=1.01)
    golden.equal(
        positions=quality.n_positions, steady=quality.n_steady, compared=quality.n_compared
    )
    if configuration.mode is not None:
        fed = len(bench.text.input_ids) - 1
        scheduled, forced, evicted = count_evictions(configuration.policy, fed)
        golden.equal(retained=fed - evicted, scheduled=scheduled, forced=forced, evicted=evicted)
    return quality


def gate_speed(
    bench: Bench, golden: Recorder, benchmark: BenchmarkFixture, configuration: Configuration
) -> Speed:
    """TPOT beside the recompute baseline's, in turns.

    On a GPU what is judged is the time that it is at work, and how many kernels a token takes: what
    eager decoding waits for its host in between was seen to double from one process to the next.
    It is judged beside a copy of the weights' size, for decoding is bound by memory: recomputing is
    bound by power, and took 1.5 % longer on one card than on its neighbour.
    """
    model, device = bench.timed.model, bench.timed.model.device
    ids = bench.text.input_ids.to(device)
    recompute = recompute_step(model, ids, bench.window.n_sink, bench.window.window_size)
    beside = Timed(recompute, bench.beside, device)
    policy, captured = configuration.policy, configuration.mode == "captured"
    if configuration.mode is None:  # against itself: what the clock says where nothing differs
        own = Timed(recompute, beside.n_tokens, device)
    else:
        block = evaluate.whole_rounds(policy, bench.block * (4 if captured else 1))
        own = Timed(configuration.step(model, ids), block, device, SETTLE)
        own()
        own.blocks.clear()
    timed = f"{bench.timed.name} {evaluate.subject(bench.timed, bench.text).dtype}"
    if device.type == "cpu":
        beside_fields = fields_that_are_set(bench.window)
        golden.identity(timed=timed, **{f"beside_{k}": v for k, v in beside_fields.items()})
        golden.time(benchmark, own, beside, bench.pairs)
    else:
        golden.identity(timed=f"{timed}, kernels", beside="a copy")
        at_work: Timed | Busy = Busy(own.step, evaluate.whole_rounds(policy, bench.beside))
        if captured:  # its kernels overlap, and wait for nobody
            at_work = Timed(own.step, own.n_tokens, device, SETTLE)
        golden.time(benchmark, own, beside, bench.pairs, (at_work, Busy(copy_like(model), 4)))
        if isinstance(at_work, Busy):
            golden.metric("kernels a token", median(at_work.kernels), rel_tol=0.02)
    if isinstance(own.step, SteadyDecode):  # what was timed decoded, and evicted
        golden.equal(timed=own.step.cache.seen, held=own.step.cache.size)
    return evaluate.speed(bench.timed.name, own.laps, beside.laps)


def copy_like(model: torch.nn.Module) -> Callable[[], object]:
    """Moves as many bytes as the weights have: half of them are read, as many are written."""
    half = sum(weight.nbytes for weight in model.parameters()) // 2
    source = torch.zeros(half, dtype=torch.uint8, device=next(model.parameters()).device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def gate_configuration(
    bench: Bench, folder: Path, golden: Recorder, benchmark: BenchmarkFixture, name: str
) -> Record:
    """Quality and speed of a configuration; the record goes into `extra_info`."""
    configuration = NAMED[name]
    quality = gate_quality(bench, folder, golden, configuration)
    speed = gate_speed(bench, golden, benchmark, configuration)
    record = evaluate.record(
        configuration, bench.read, bench.text, quality, speed, notes=bench.notes
    )
    benchmark.extra_info.update(msgspec.to_builtins(record))
    return record


def gate_decoding(bench: Bench, golden: Recorder, mode: str) -> None:
    """Token by token through a cache: the one pass does not see what a cache does wrong."""
    configuration = Configuration(mode, SMALL, mode)  # type: ignore[arg-type]
    ids = bench.text.input_ids[:N_SMALL].to(bench.read.model.device)
    identify(golden, bench.read, bench.text, SMALL)
    nll = configuration.sequential_nll(bench.read.model, ids)
    golden.metric("ppl", float(nll.double().mean().exp()), rel_tol=bench.drift)
    # Sinks one place off hardly move the mean of 400 tokens, but each of them by much more than
    # rounding does, of which the size alone is known.
    apart = (nll - streaming_nll(bench.read.model, ids, SMALL)).double().square().mean().sqrt()
    golden.metric("apart from one pass", float(apart), rel_tol=3.0)
    golden.equal(decoded=len(nll))


def gate_baseline(bench: Bench, golden: Recorder) -> None:
    """The recompute baseline with a small window, at every position where it is full."""
    text = bench.text.input_ids[:N_SMALL]
    identify(golden, bench.read, bench.text, EvictionPolicy(SMALL.n_sink, SMALL.window_size))
    positions = torch.arange(SMALL.floor, N_SMALL - 1)
    ids = text.to(bench.read.model.device)
    nll = recompute_nll(bench.read.model, ids, SMALL.n_sink, SMALL.window_size, positions)
    golden.metric("ppl", float(nll.double().mean().exp()), rel_tol=bench.drift)
    golden.equal(evaluated=len(nll))
