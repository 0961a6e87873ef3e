"""Golden benchmarks of a model of one's own: the quality of configurations, and their speed.

A benchmark measures by `measure.run` and records what the `Measurement` has: the gate and the
reports read the same figures.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from streamcache.decoding.loop import SteadyDecode
from streamcache.decoding.nll import Advance
from streamcache.decoding.onepass import streaming_nll
from streamcache.gate.recorder import Recorder
from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure.checked import with_checksum
from streamcache.measure.configurations import BASELINE, RECOMPUTE, Configuration
from streamcache.measure.measurement import Record
from streamcache.measure.profile import profile_steps
from streamcache.measure.progress import Progress
from streamcache.measure.run import What, run
from streamcache.measure.steps import decoded_nll, steady_step
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy, Policy, fields_that_are_set

SMALL = EvictionPolicy(4, 124, cache_slack=5, max_drop=3, compress_every=8)
# More sinks than any model needs, and so few entries that a ring re-bases its positions.
MANY_SINKS = EvictionPolicy(16, 40, cache_slack=5, max_drop=3, compress_every=8)
N_SMALL = 400  # tokens decoded one by one, through every kind of cache
_MAX_PPL_RATIO = 1.01  # PPL over that of the recompute baseline
_MIN_APART = 1e-9  # of NLLs that two ways of computing give: none is the other one's
_SETTLE = 64  # tokens after which decoding takes no more memory
_PROFILED = 64  # tokens
_CAPTURED_BLOCKS = 4  # a captured token is quick: so many times the tokens per block


@dataclass(frozen=True, eq=False)
class Bench:
    """A model to time, a model and text to take PPL from, and how much of both.

    Attributes:
        positions: of the recompute baseline with a full window; each costs a forward. None: all.
        window: of the recompute baseline that is timed.
        block: tokens that a configuration decodes at a time; more where an eviction comes more
            rarely, or where a token is captured.
        baseline_forwards: forwards of the baseline at a time.
        pairs: blocks timed, each beside the baseline.
        rel_tol: of a PPL: what other kernels of the same precision may change.
        notes: recorded with each measurement.
    """

    timed: LoadedModel
    read: LoadedModel
    text: TokenizedText
    positions: int | None
    window: EvictionPolicy
    block: int
    baseline_forwards: int
    pairs: int
    rel_tol: float
    notes: tuple[str, ...] = ()

    def excerpt(self, n_tokens: int) -> TokenizedText:
        """The first tokens of the text."""
        ids = self.text.input_ids[:n_tokens]
        return replace(self.text, input_ids=ids, digest=digest_of(ids))


def record_quality(
    bench: Bench, golden: Recorder, configuration: Configuration, folder: Path
) -> Record:
    """PPL against the golden's and, as a budget, against the baseline's at the same positions."""
    _identify(bench, golden, configuration.policy)
    workload = Workload(bench.read, bench.text, window=BASELINE)
    what = What(positions=bench.positions, tpot_tokens=0)
    record = run(configuration, workload, what, Store(folder)).record
    quality, evictions = record.quality, record.evictions
    assert quality is not None
    golden.metric("ppl", quality.ppl, rel_tol=bench.rel_tol)
    if quality.ppl_steady is not None:
        golden.metric("ppl steady", quality.ppl_steady, rel_tol=bench.rel_tol)
    if quality.ppl_increase is not None:
        ratio = 1 + quality.ppl_increase
        golden.metric("ppl / baseline", ratio, rel_tol=bench.rel_tol, max_value=_MAX_PPL_RATIO)
    golden.equal(
        positions=quality.n_positions, steady=quality.n_steady, compared=quality.n_compared
    )
    if not configuration.recomputes:
        golden.equal(
            retained=len(bench.text.input_ids) - 1 - evictions.entries,
            scheduled=evictions.scheduled,
            forced=evictions.forced,
            evicted=evictions.entries,
        )
    return record


def record_speed(
    bench: Bench, golden: Recorder, benchmark: BenchmarkFixture, configuration: Configuration
) -> Record:
    """TPOT and the recompute baseline's, measured alternately.

    On a GPU the gate judges the time that the device computes, and the number of kernels per
    token: the time that eager decoding waits for its host was seen to double from one process to
    the next. It is compared with a copy of the weights' size, since decoding is bound by memory;
    recomputing is bound by power, and took 1.5 % longer on one card than on its neighbour.
    """
    captured = configuration.engine == "captured"
    block = bench.block * (_CAPTURED_BLOCKS if captured else 1)
    pairs = golden.n_pairs(bench.pairs)
    what = What(
        ppl=None,
        tpot_tokens=block * pairs,
        pairs=pairs,
        baseline_forwards=bench.baseline_forwards,
        device_time=True,
    )
    workload = Workload(bench.timed, bench.text, window=bench.window)
    golden.profile(lambda: _by_operator(configuration, workload))
    record = run(configuration, workload, what, progress=_probe_halfway(golden)).record
    speed, on_gpu = record.speed, bench.timed.model.device.type == "cuda"
    assert speed is not None
    golden.identity(**fields_that_are_set(configuration.policy))
    timed = f"{bench.timed.name} {record.workload.dtype}"
    if on_gpu:
        golden.identity(timed=f"{timed}, kernels", beside="a copy")
    else:
        beside = fields_that_are_set(bench.window)
        golden.identity(timed=timed, **{f"beside_{name}": value for name, value in beside.items()})
    if speed.kernels_per_token is not None:
        golden.metric("kernels a token", speed.kernels_per_token, rel_tol=0.02)
    if speed.seen is not None and speed.held is not None:  # the timed cache decoded, and evicted
        golden.equal(timed=speed.seen, held=speed.held)
    golden.record(
        benchmark,
        pairs=speed.pairs,
        device_pairs=speed.device_pairs or None,
        wait_share=speed.wait_share,
    )
    return record


def _by_operator(configuration: Configuration, workload: Workload) -> dict[str, float]:
    """Milliseconds per token of each kernel, or where there is no GPU of each operator."""
    loaded = workload.timed_model
    step = steady_step(
        configuration, loaded.model, workload.ids(loaded, configuration.policy.floor)
    )
    if not isinstance(step, SteadyDecode):  # the recompute baseline
        return {}
    found = profile_steps(step, _PROFILED)
    if found.kernels:
        return {kernel.name: kernel.device_ms for kernel in found.kernels}
    return {"Python": found.python_ms, **{each.name: each.host_ms for each in found.operators}}


def record_configuration(
    bench: Bench,
    golden: Recorder,
    benchmark: BenchmarkFixture,
    configuration: Configuration,
    folder: Path,
) -> Record:
    """Quality and speed of a configuration; one record of both goes into `extra_info`."""
    quality = record_quality(bench, golden, configuration, folder)
    speed = record_speed(bench, golden, benchmark, configuration)
    record = msgspec.structs.replace(
        quality,
        speed=speed.speed,
        workload=msgspec.structs.replace(quality.workload, timed=bench.timed.name),
        peak_memory_bytes=speed.peak_memory_bytes,
        notes=bench.notes,
    )
    benchmark.extra_info.update(with_checksum(record))
    return record


def record_decoding(bench: Bench, golden: Recorder, configuration: Configuration) -> None:
    """Token by token through a cache: the one pass does not use it."""
    _identify(bench, golden, configuration.policy)
    workload = Workload(bench.read, bench.excerpt(N_SMALL), window=None)
    decoded = run(configuration, workload, What("sequential", tpot_tokens=0))
    one_pass = run(configuration, workload, What("one-pass", tpot_tokens=0))
    assert decoded.nll is not None and one_pass.nll is not None
    _record_agreement(golden, decoded.nll, one_pass.nll, bench.rel_tol)


def record_family(
    bench: Bench, golden: Recorder, loaded: LoadedModel, configuration: Configuration
) -> None:
    """The same of a model with random weights: its PPL means nothing, but must not move."""
    golden.identity(
        model=loaded.name, n_tokens=N_SMALL, **fields_that_are_set(configuration.policy)
    )
    ids = bench.text.input_ids[:N_SMALL].to(loaded.model.device)
    decoded = decoded_nll(configuration, loaded.model, ids)
    one_pass = streaming_nll(loaded.model, ids, configuration.policy)
    _record_agreement(golden, decoded.numpy(), one_pass.numpy(), bench.rel_tol)


def _record_agreement(
    golden: Recorder, decoded: NDArray[Any], one_pass: NDArray[Any], rel_tol: float
) -> None:
    golden.metric("ppl", float(numpy.exp(decoded.mean())), rel_tol=rel_tol)
    # Sinks one place off hardly move the mean of 400 tokens, but each of them by much more than
    # rounding does, of which the size alone is known.
    apart = float(numpy.sqrt(numpy.square(decoded - one_pass).mean()))
    golden.metric("apart from one pass", apart, rel_tol=3.0, min_value=_MIN_APART)
    golden.equal(decoded=len(decoded))


def record_memory(
    bench: Bench, golden: Recorder, loaded: LoadedModel, configuration: Configuration
) -> None:
    """Bytes of the tensors that a configuration holds, and what the host takes while it decodes."""
    golden.identity(model=loaded.name, **fields_that_are_set(configuration.policy))
    before = tensor_bytes()
    step = steady_step(configuration, loaded.model, bench.text.input_ids.to(loaded.model.device))
    for _ in range(_SETTLE):
        step()
    golden.metric("tensor bytes", tensor_bytes() - before, rel_tol=0.02, better="lower")
    with golden.peak_memory():
        for _ in range(N_SMALL):
            step()


def tensor_bytes() -> int:
    """Bytes of all tensors of this process, those that share a storage counted once."""
    gc.collect()
    tensors = (thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def record_baseline(bench: Bench, golden: Recorder) -> None:
    """The recompute baseline with a small window, at every position where it is full."""
    window = EvictionPolicy(SMALL.n_sink, SMALL.window_size)
    _identify(bench, golden, window)
    workload = Workload(bench.read, bench.excerpt(N_SMALL), window=window)
    what = What(positions=None, tpot_tokens=0)
    quality = run(Configuration(window, RECOMPUTE), workload, what).record.quality
    assert quality is not None and quality.ppl_steady is not None
    golden.metric("ppl", quality.ppl_steady, rel_tol=bench.rel_tol)
    golden.equal(evaluated=quality.n_steady)


def _identify(bench: Bench, golden: Recorder, policy: Policy) -> None:
    """What PPLs compare by: the model, the text, and the fields of the policy that are set."""
    record = Workload(bench.read, bench.text).record
    golden.identity(
        model=record.model,
        revision=record.revision,
        dtype=record.dtype,
        attention=str(bench.read.model.config._attn_implementation),
        n_tokens=record.n_tokens,
        **fields_that_are_set(policy),
    )
    golden.equal(text=record.text_digest)


def _probe_halfway(golden: Recorder) -> Progress:
    """Progress that takes a snapshot of the machine in the middle of the pairs."""

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Advance]:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            before, done = done, done + n
            if before < total // 2 <= done:
                golden.probe()

        yield advance

    return progress
