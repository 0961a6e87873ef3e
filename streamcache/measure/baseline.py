"""The recompute baseline: taken in parts that are kept, and checked before it is compared with."""

import time
import warnings
from pathlib import Path

import msgspec
import numpy
import torch

from streamcache.decoding.nll import require_finite
from streamcache.decoding.recompute import recompute_nll
from streamcache.measure import quality as qualities
from streamcache.measure.checked import Floats, RecordError
from streamcache.measure.configurations import Configuration, identity
from streamcache.measure.measurement import (
    Environment,
    Measurement,
    Quality,
    Record,
    Sizes,
    environment,
    read,
)
from streamcache.measure.progress import Progress
from streamcache.measure.store import measurement_digest, read_partial, write_partial
from streamcache.measure.version1_baseline import (
    NOTE,
    Fingerprint,
    Version1Baseline,
    read_version_1_baseline,
)
from streamcache.measure.workload import Workload
from streamcache.policy import Evictions

_SAVE_EVERY_S = 10.0
_SLICE = 16  # positions between looks at the clock


class BaselineMismatch(ValueError):
    """A stored baseline was made from something else; the message says what, and the way out."""


def baseline_ppl(
    configuration: Configuration,
    workload: Workload,
    late: int,
    progress: Progress,
    path: Path | None,
    begun: Floats | None = None,
    within: Path | None = None,
) -> tuple[Floats, Quality]:
    """The recompute baseline; what is finished is kept, so an interrupted one continues.

    Args:
        begun: what a run of version 1 had finished.
        within: a folder that no link may lead out of.
    """
    policy, ids = configuration.policy, workload.ids(workload.loaded)
    window_size = policy.floor - policy.n_sink
    positions = qualities.baseline_positions(policy.floor, len(ids), late)
    made_from = measurement_digest(configuration, workload.record, _where(workload), late)
    kept = read_partial(path, made_from) if path is not None else []
    nll = max(kept, [] if begun is None else begun.tolist(), key=len)[: len(positions)]
    early = min(policy.floor, len(ids) - 1)
    saved, n_saved = time.monotonic(), len(nll)
    with progress("baseline", len(positions)) as advance:
        advance(len(nll))
        try:
            while len(nll) < len(positions):
                stop = early if len(nll) < early else len(nll) + _SLICE
                part = torch.from_numpy(positions[len(nll) : stop])
                rows = recompute_nll(
                    workload.loaded.model, ids, policy.n_sink, window_size, part, advance=advance
                )
                nll += require_finite(rows).tolist()
                if path is not None and time.monotonic() - saved > _SAVE_EVERY_S:
                    write_partial(path, made_from, nll, within)
                    saved, n_saved = time.monotonic(), len(nll)
        finally:
            if path is not None and n_saved < len(nll) < len(positions):
                write_partial(path, made_from, nll, within)
    values = numpy.asarray(nll)
    return values, qualities.of_baseline(values, policy.floor, len(ids), late)


def stored_baseline(
    configuration: Configuration, workload: Workload, late: int, path: Path
) -> Measurement:
    """The baseline in a file, of this version or of version 1.

    One of version 1 that was interrupted has the NLLs that it had finished and no quality.

    Args:
        late: positions with a full window that are compared.

    Raises:
        RecordError: it is no baseline, or damaged.
        BaselineMismatch: it was made from something else; names the first field that differs, both
            values, and the way out.
    """
    old = read_version_1_baseline(path)
    if old is not None:
        differences = _differences_of_version_1(old.fingerprint, configuration, workload, late)
        _require_same(differences, configuration, workload, late, path)
        return _of_this_version(old, configuration, workload, path)
    found = read(path)
    if not found.record.recomputes:
        raise RecordError(
            f"{path} is not a recompute baseline: it is a record of {found.record.label}"
        )
    differences = _differences(found.record, configuration, workload, late)
    _require_same(differences, configuration, workload, late, path)
    return found


def version_1_baseline_in(
    folder: Path, configuration: Configuration, workload: Workload, late: int
) -> Measurement | None:
    """The baseline that version 1 kept in a folder of measurements; None where there is none."""
    wanted = Fingerprint.of(configuration, workload.record, _where(workload), late)
    path = wanted.path(folder)
    if path is None:
        return None
    try:
        old = read_version_1_baseline(path)
    except RecordError as error:
        warnings.warn(f"{error}; the baseline is measured again", stacklevel=2)
        return None
    if old is None or old.fingerprint != wanted:
        return None
    return _of_this_version(old, configuration, workload, path)


def _where(workload: Workload) -> Environment:
    return environment(workload.timed_model.model.device, workload.timed_model.n_devices)


_Differences = list[tuple[str, object, object]]  # name, of the file, wanted


def _differences(
    stored: Record, configuration: Configuration, workload: Workload, late: int
) -> _Differences:
    wanted, where, fields = workload.record, _where(workload), identity(configuration)
    pairs: _Differences = [
        (name, getattr(stored.workload, name), getattr(wanted, name))
        for name in ("model", "revision", "dtype", "text_digest", "n_tokens")
    ]
    pairs += [
        (k, stored.configuration.get(k), fields.get(k)) for k in {**stored.configuration, **fields}
    ]
    if workload.ppl_unavailable_reason is None:
        pairs.append(("positions", stored.quality.late_positions if stored.quality else 0, late))
    pairs += [
        (name, getattr(stored.environment, name), getattr(where, name))
        for name in ("device", "cpu", "torch", "transformers", "streamcache")
    ]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _differences_of_version_1(
    stored: Fingerprint, configuration: Configuration, workload: Workload, late: int
) -> _Differences:
    wanted = Fingerprint.of(configuration, workload.record, _where(workload), late)
    pairs = [(n, getattr(stored, n), getattr(wanted, n)) for n in Fingerprint.__struct_fields__]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _require_same(
    differences: _Differences,
    configuration: Configuration,
    workload: Workload,
    late: int,
    path: Path,
) -> None:
    if differences:
        name, have, want = differences[0]
        at = f" --positions {late}" if late else ""
        policy = configuration.policy
        raise BaselineMismatch(
            f"{path} does not fit: its {name} is {have!r}, and this run compares with "
            f"{want!r}; with the same model and text `streamcache baseline --n-sink "
            f"{policy.n_sink} --window-size {policy.floor - policy.n_sink} --max-eval-tokens "
            f"{workload.record.n_tokens}{at} --baseline-file {path}` makes one that fits"
        )


def _of_this_version(
    old: Version1Baseline, configuration: Configuration, workload: Workload, path: Path
) -> Measurement:
    """A baseline of version 1 that is known to fit, with what its file does not say left empty."""
    where = msgspec.structs.replace(_where(workload), cpu="", python="", threads=0)
    record = Record(
        label=configuration.name,
        configuration=identity(configuration),
        sizes=Sizes.of(configuration.policy, 0, 0),
        workload=workload.record,
        environment=where,
        quality=old.quality,
        speed=None,
        evictions=Evictions(0, 0, 0),
        peak_memory_bytes=None,
        date="",
        notes=(NOTE,),
    )
    return Measurement(record, old.nll, None, path)
