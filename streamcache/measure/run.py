"""The one way to measure: a configuration and a workload go in, a `Measurement` comes out."""

import dataclasses
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy
import torch

from streamcache.caches.other_positions import ONE_PASSES
from streamcache.decoding.checkpoint import Checkpoint
from streamcache.decoding.nll import nll_and_rank, require_finite, token_nll
from streamcache.decoding.onepass import streaming_nll
from streamcache.machine import source_commit
from streamcache.measure import quality as qualities
from streamcache.measure.baseline import baseline_ppl, stored_baseline, version_1_baseline_in
from streamcache.measure.checked import Floats
from streamcache.measure.configurations import RECOMPUTE, Configuration, identity
from streamcache.measure.measurement import (
    Measurement,
    Quality,
    Record,
    Sizes,
    Speed,
    environment,
)
from streamcache.measure.memory import peak_memory_bytes
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.room import require_room
from streamcache.measure.speed import measure_speed
from streamcache.measure.steps import decoded_nll
from streamcache.measure.store import Store, state_path
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy, Evictions, count_evictions
from streamcache.ranks import is_together

Method = Literal["one-pass", "sequential"]


@dataclasses.dataclass(frozen=True)
class What:
    """What is measured, and how thoroughly.

    Attributes:
        ppl: how the NLLs are taken; None: not at all.
        ranks: with each NLL also the number of tokens that the model finds likelier.
        positions: of the recompute baseline with a full window; None: all of the text.
        tpot_tokens: timed tokens, at least; 0: no times.
        pairs: timed blocks, each with one of the baseline.
        baseline_forwards: forwards of the baseline per block.
        device_time: on a GPU, also the time that it computed.
    """

    ppl: Method | None = "one-pass"
    positions: int | None = 64
    tpot_tokens: int = 256
    pairs: int = 8
    baseline_forwards: int = 1
    device_time: bool = False
    ranks: bool = False


def run(
    configuration: Configuration,
    workload: Workload,
    what: What = What(),
    store: Store | None = None,
    *,
    progress: Progress = no_progress,
    baseline_file: Path | None = None,
    force: bool = False,
) -> Measurement:
    """Measure a configuration, or find in the store what was measured before.

    Of a stored measurement that has only a part of what is asked for, the other part is measured.
    PPL of anything but the recompute baseline is compared with the baseline, which is measured
    first and kept in the same store.

    Args:
        store: where measurements are kept and found; None: nothing is kept.
        progress: shows progress bars.
        baseline_file: keep the baseline's record here, and find it here.
        force: measure again, even if it is stored.

    Raises:
        ValueError: the weights of the configuration are not those of the workload's models.
        BaselineMismatch: `baseline_file` is a baseline of something else.
        RecordError: `baseline_file` is not a record.
        NotFiniteError: the model predicts something that is not a number.
        UnsupportedModelError, OnePassUnsupported: the model cannot be streamed.
        PolicyError: the device cannot hold such a cache.
        NotKeptError: the store could not keep the measurement, which the error has.
    """
    for loaded in (workload.loaded, workload.timed_model):
        if loaded.quantization != configuration.weights:
            raise ValueError(
                f"the configuration has weights {configuration.weights!r} and {loaded.name} was "
                f"loaded with {loaded.quantization!r}"
            )
    what = _possible(configuration, workload, what)
    if what.tpot_tokens or what.ppl == "sequential":
        require_room(configuration, workload.timed_model.model)
    if store is None:
        return _run(configuration, workload, what, store, progress, baseline_file, force)
    if not force and baseline_file is None:
        found = is_finished(configuration, workload, what, store)
        if found is not None:
            return found
    with store.lock():
        return _run(configuration, workload, what, store, progress, baseline_file, force)


def _run(
    configuration: Configuration,
    workload: Workload,
    what: What,
    store: Store | None,
    progress: Progress,
    baseline_file: Path | None,
    force: bool,
) -> Measurement:
    reason = workload.ppl_unavailable_reason
    path, stored = _stored(configuration, workload, what, store, baseline_file)
    if force:
        stored = None
    ppl_done = what.ppl is None or (stored is not None and _has_ppl(stored, workload, what))
    times_done = not what.tpot_tokens or (stored is not None and _has_times(stored, what))
    if stored is not None and ppl_done and times_done:
        if baseline_file is not None and baseline_file.exists() and workload.window is not None:
            stored_baseline(
                _baseline_of(configuration, workload.window),
                workload,
                positions_of(what, workload),
                baseline_file,
            )
        return stored
    record, nll, times = (stored.record, stored.nll, stored.tpot_ms) if stored else (None,) * 3
    notes = record.notes if record else ()
    ranks = stored.ranks if stored else None
    quality: Quality | None = record.quality if record else None
    speed: Speed | None = record.speed if record else None
    nll = nll if quality else None  # of an interrupted baseline there are some
    if not ppl_done:
        nll, ranks, quality, notes = _ppl(
            configuration, workload, what, store, progress, baseline_file, path, stored
        )
    if not times_done:
        with progress(f"TPOT of {configuration.name}", what.pairs) as advance:
            speed, token_ms = measure_speed(
                configuration,
                workload,
                what.tpot_tokens,
                what.pairs,
                what.baseline_forwards,
                what.device_time,
                advance,
            )
        times = numpy.asarray(token_ms)
    notes = tuple(dict.fromkeys([*([reason] if reason else []), *notes]))
    measured = Measurement(
        _record(configuration, workload, quality, speed, notes), nll, times, ranks=ranks
    )
    return store.put(path, measured) if store is not None and path is not None else measured


def positions_of(what: What, workload: Workload) -> int:
    """Positions with a full window at which the recompute baseline is evaluated."""
    if workload.window is None:
        return 0
    available = max(0, len(workload.text.input_ids) - 1 - workload.window.floor)
    return available if what.positions is None else min(what.positions, available)


def is_finished(
    configuration: Configuration, workload: Workload, what: What, store: Store
) -> Measurement | None:
    """The stored measurement that has all that is asked for; None where it must be measured."""
    what = _possible(configuration, workload, what)
    _, stored = _stored(configuration, workload, what, store, None)
    if stored is None or (what.ppl and not _has_ppl(stored, workload, what)):
        return None
    return stored if not what.tpot_tokens or _has_times(stored, what) else None


def _possible(configuration: Configuration, workload: Workload, what: What) -> What:
    """What can be measured: no PPL that means nothing, no one pass where content decides."""
    if workload.ppl_unavailable_reason:
        return dataclasses.replace(what, ppl=None)
    if configuration.by_content and what.ppl == "one-pass":
        return dataclasses.replace(what, ppl="sequential")
    return dataclasses.replace(what, ranks=False) if configuration.recomputes else what


def _stored(
    configuration: Configuration,
    workload: Workload,
    what: What,
    store: Store | None,
    baseline_file: Path | None,
) -> tuple[Path | None, Measurement | None]:
    """Where a measurement is kept, and what is there."""
    late = positions_of(what, workload) if configuration.recomputes else 0
    if configuration.recomputes and baseline_file is not None:
        if not baseline_file.exists():
            return baseline_file, None
        return baseline_file, stored_baseline(configuration, workload, late, baseline_file)
    if store is None:
        return None, None
    where = environment(workload.timed_model.model.device, workload.timed_model.n_devices)
    path = store.path(configuration, workload.record, where, late)
    found = store.find(path)
    if found is None and configuration.recomputes:
        found = version_1_baseline_in(store.folder, configuration, workload, late)
    return path, found


def _has_ppl(stored: Measurement, workload: Workload, what: What) -> bool:
    found = stored.record.quality
    if found is None:
        return False
    if stored.record.recomputes:
        return True
    if what.ranks and stored.ranks is None:
        return False
    compared = found.late_positions >= positions_of(what, workload)
    return found.method == what.ppl and compared


def _has_times(stored: Measurement, what: What) -> bool:
    found = stored.record.speed
    if found is None or len(found.pairs) < what.pairs:
        return False
    return stored.record.recomputes or found.n_tokens >= what.tpot_tokens


def _ppl(
    configuration: Configuration,
    workload: Workload,
    what: What,
    store: Store | None,
    progress: Progress,
    baseline_file: Path | None,
    path: Path | None,
    stored: Measurement | None,
) -> tuple[Floats, Floats | None, Quality, tuple[str, ...]]:
    """NLLs, ranks if they are asked for, what they come to, and what a reader must know of them."""
    ids = workload.ids(workload.loaded)
    late = positions_of(what, workload)
    within = store.within(path) if store is not None and path is not None else None
    if configuration.recomputes:
        begun = stored if stored is not None and stored.record.quality is None else None
        known = begun.nll if begun else None
        nll, quality = baseline_ppl(configuration, workload, late, progress, path, known, within)
        return nll, None, quality, begun.record.notes if begun else ()
    baseline: Floats | None = None
    notes: tuple[str, ...] = ()
    if workload.window is not None:
        reference = _baseline_of(configuration, workload.window)
        only_ppl = dataclasses.replace(what, tpot_tokens=0)
        compared = run(
            reference, workload, only_ppl, store, progress=progress, baseline_file=baseline_file
        )
        baseline, notes = compared.nll, compared.record.notes
    score = nll_and_rank if what.ranks else token_nll
    with progress(configuration.name, len(ids) - 1) as advance:
        if what.ppl == "one-pass" and not configuration.refresh:
            method = "one-pass"
            # Processes that run one model together would continue from different tokens.
            is_kept = path is not None and not is_together()
            state = state_path(path, what.ranks) if path and is_kept else None
            checkpoint = Checkpoint(state, within=within) if state else None
            kind = ONE_PASSES[configuration.positions]
            found = streaming_nll(
                workload.loaded.model,
                *(ids, configuration.policy, advance, checkpoint, score, kind),
            )
        else:
            method = "sequential"
            found = decoded_nll(configuration, workload.loaded.model, ids, advance, score)
    columns = found.reshape(len(found), -1).cpu().double()
    nll = require_finite(columns[:, 0]).numpy().copy()
    ranks = columns[:, 1].numpy().copy() if what.ranks else None
    floor = 0 if workload.window is None else workload.window.floor
    quality = qualities.of_stream(nll, configuration.policy.floor, method, baseline, floor, late)
    return nll, ranks, quality, notes


def _baseline_of(configuration: Configuration, window: EvictionPolicy) -> Configuration:
    """What a configuration is compared with: the same weights, and no cache."""
    return Configuration(window, RECOMPUTE, weights=configuration.weights, label="baseline")


def _record(
    configuration: Configuration,
    workload: Workload,
    quality: Quality | None,
    speed: Speed | None,
    notes: tuple[str, ...],
) -> Record:
    policy, timed = configuration.policy, workload.timed_model
    device = timed.model.device
    fed = len(workload.text.input_ids) - 1
    evictions = Evictions(0, 0, 0) if configuration.recomputes else count_evictions(policy, fed)
    return Record(
        label=configuration.name,
        configuration=identity(configuration),
        sizes=Sizes.of(policy, configuration.overlap, configuration.refresh),
        workload=workload.record,
        environment=environment(device, timed.n_devices),
        quality=quality,
        speed=speed,
        evictions=evictions,
        peak_memory_bytes=_peak_memory_bytes(device),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=source_commit(),
        notes=notes,
    )


def _peak_memory_bytes(device: torch.device) -> int | None:
    """The high-water mark so far: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory_bytes()
