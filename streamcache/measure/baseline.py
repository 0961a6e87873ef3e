"""The recompute baseline: taken in parts that are kept, and checked before it is compared with."""

import time
from pathlib import Path

import numpy
import torch

from streamcache.decoding.nll import require_finite
from streamcache.decoding.recompute import recompute_nll
from streamcache.measure import quality as qualities
from streamcache.measure.checked import Floats, RecordError
from streamcache.measure.configurations import Configuration, identity
from streamcache.measure.measurement import Quality, Record, environment
from streamcache.measure.progress import Progress
from streamcache.measure.store import read_partial, write_partial
from streamcache.measure.workload import Workload

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
) -> tuple[Floats, Quality]:
    """The recompute baseline; what is finished is kept, so an interrupted one continues."""
    policy, ids = configuration.policy, workload.ids(workload.loaded)
    window_size = policy.floor - policy.n_sink
    positions = qualities.baseline_positions(policy.floor, len(ids), late)
    nll = read_partial(path)[: len(positions)] if path is not None else []
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
                    write_partial(path, nll)
                    saved, n_saved = time.monotonic(), len(nll)
        finally:
            if path is not None and n_saved < len(nll) < len(positions):
                write_partial(path, nll)
    values = numpy.asarray(nll)
    return values, qualities.of_baseline(values, policy.floor, len(ids), late)


def check_baseline(
    stored: Record, configuration: Configuration, workload: Workload, late: int, path: Path
) -> None:
    """Refuse a stored baseline that was made from something else.

    Args:
        late: positions with a full window that are compared.

    Raises:
        RecordError: it is no baseline.
        BaselineMismatch: names the first field that differs, both values, and the way out.
    """
    if not stored.recomputes:
        raise RecordError(f"{path} is not a recompute baseline: it is a record of {stored.label}")
    wanted_at = workload.record
    where = environment(workload.timed_model.model.device, workload.timed_model.n_devices)
    has_positions = stored.quality.late_positions if stored.quality else 0
    pairs: list[tuple[str, object, object]] = [
        (name, getattr(stored.workload, name), getattr(wanted_at, name))
        for name in ("model", "revision", "dtype", "text_digest", "n_tokens")
    ]
    fields = identity(configuration)
    pairs += [
        (k, stored.configuration.get(k), fields.get(k)) for k in {**stored.configuration, **fields}
    ]
    pairs += [("positions", has_positions, late)] if workload.ppl_unavailable_reason is None else []
    pairs += [
        (name, getattr(stored.environment, name), getattr(where, name))
        for name in ("device", "cpu", "torch", "transformers", "streamcache")
    ]
    for name, have, want in pairs:
        if have != want:
            at = f" --positions {late}" if late else ""
            policy = configuration.policy
            raise BaselineMismatch(
                f"{path} does not fit: its {name} is {have!r}, and this run compares with "
                f"{want!r}; with the same model and text `streamcache baseline --n-sink "
                f"{policy.n_sink} --window-size {policy.floor - policy.n_sink} --max-eval-tokens "
                f"{wanted_at.n_tokens}{at} --baseline-file {path}` makes one that fits"
            )
