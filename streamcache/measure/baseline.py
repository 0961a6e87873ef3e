"""The recompute baseline of a text, made once per model and text, stored, checked and reused."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.decoding.nll import require_finite
from streamcache.decoding.recompute import recompute_nll
from streamcache.measure import records
from streamcache.measure.records import Environment, RecordError, Subject
from streamcache.policy import EvictionPolicy

_SAVE_EVERY_S = 10.0
_SLICE = 16  # positions between looks at the clock


class BaselineMismatch(ValueError):
    """A stored baseline was made from something else; the message says what, and the way out."""


class Fingerprint(msgspec.Struct, frozen=True):
    """What a baseline depends on. Of files older than the last four fields these are empty."""

    model: str
    revision: str
    dtype: str
    text_digest: str
    n_tokens: int
    n_sink: int
    window_size: int
    late_positions: int  # evaluated positions with a full window; the others are all evaluated
    device: str = ""
    torch: str = ""
    transformers: str = ""
    streamcache: str = ""

    def positions(self) -> Tensor:
        """The evaluated positions, int64, increasing: every early one, late ones evenly spread."""
        floor = self.n_sink + self.window_size
        last = self.n_tokens - 1
        early = torch.arange(min(floor, last))
        if self.late_positions == 0 or last <= floor:
            return early
        late = torch.linspace(floor, last - 1, self.late_positions, dtype=torch.float64)
        return torch.cat([early, late.round().long()])

    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]


class Baseline(msgspec.Struct, frozen=True, tag="streamcache-baseline", tag_field="schema"):
    """NLL of the recompute baseline at `fingerprint.positions()`; shorter while unfinished."""

    fingerprint: Fingerprint
    nll: list[float]
    version: int = records.SCHEMA_VERSION


def read(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        RecordError: it cannot be read as one, or has more NLLs than positions.
    """
    stored = records.read_as(Baseline, path, "baseline")
    if len(stored.nll) > (most := len(stored.fingerprint.positions())):
        raise RecordError(
            f"{path} has {len(stored.nll)} NLLs for {most} positions: it is broken, delete it"
        )
    return stored


def check(stored: Fingerprint, wanted: Fingerprint, path: Path) -> None:
    """Refuse a baseline that was made from something else.

    Raises:
        BaselineMismatch: names the first field that differs, both values, and the way out.
    """
    for name in Fingerprint.__struct_fields__:
        have, want = getattr(stored, name), getattr(wanted, name)
        if have != want:
            late = f" --positions {wanted.late_positions}" if wanted.late_positions else ""
            raise BaselineMismatch(
                f"{path} does not fit: its {name} is {have!r}, what this run compares with has "
                f"{want!r}; with the same model and text `streamcache baseline --n-sink "
                f"{wanted.n_sink} --window-size {wanted.window_size} --max-eval-tokens "
                f"{wanted.n_tokens}{late} --baseline-file {path}` makes one that fits"
            )


def obtain(
    path: Path,
    wanted: Fingerprint,
    model: PreTrainedModel,
    input_ids: Tensor,
    advance: Callable[[int], None],
    replace: bool = False,
) -> Baseline:
    """The stored baseline at `path`, made or finished first if need be.

    What is done is saved every few seconds and on the way out, so an interrupted run goes on where
    it stopped.

    Args:
        replace: make a new one whatever is at `path`, unless it is this one and unfinished.

    Raises:
        BaselineMismatch: the file at `path` has another fingerprint.
        RecordError: the file at `path` is no baseline.
        NotFiniteError: the model predicts something that is no number.
    """
    nll: list[float] = []
    positions = wanted.positions()
    if path.exists():
        stored = read(path)
        if not replace:
            check(stored.fingerprint, wanted, path)
        unfinished = len(stored.nll) < len(positions)
        if stored.fingerprint == wanted and (unfinished or not replace):
            nll = list(stored.nll)
    advance(len(nll))
    saved, n_saved = time.monotonic(), len(nll)
    early = min(wanted.n_sink + wanted.window_size, wanted.n_tokens - 1)
    try:
        while len(nll) < len(positions):
            stop = early if len(nll) < early else len(nll) + _SLICE
            part = positions[len(nll) : stop]
            rows = recompute_nll(
                model, input_ids, wanted.n_sink, wanted.window_size, part, advance=advance
            )
            nll += require_finite(rows).tolist()
            if time.monotonic() - saved > _SAVE_EVERY_S:
                records.write(path, Baseline(wanted, nll))
                saved, n_saved = time.monotonic(), len(nll)
    finally:
        if len(nll) > n_saved:
            records.write(path, Baseline(wanted, nll))
    return Baseline(wanted, nll)


def wanted_for(
    subject: Subject,
    policy: EvictionPolicy,
    late_positions: int,
    environment: Environment | None = None,
) -> Fingerprint:
    """The fingerprint of the baseline that a measurement of `subject` is compared with.

    Args:
        environment: where it is made; None for one that no other process will read.
    """
    available = max(0, subject.n_tokens - 1 - policy.floor)
    return Fingerprint(
        model=subject.model,
        revision=subject.revision,
        dtype=subject.dtype,
        text_digest=subject.text_digest,
        n_tokens=subject.n_tokens,
        n_sink=policy.n_sink,
        window_size=policy.window_size,
        late_positions=min(late_positions, available),
        device=environment.device if environment else "",
        torch=environment.torch if environment else "",
        transformers=environment.transformers if environment else "",
        streamcache=environment.streamcache if environment else "",
    )
