"""The recompute baseline of a text, made once per model and text, stored, checked and reused."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache import records
from streamcache.decode import finite
from streamcache.policy import EvictionPolicy
from streamcache.recompute import recompute_nll
from streamcache.records import RecordError, Subject

_SAVE_EVERY_S = 10.0
_SLICE = 16  # positions between looks at the clock


class BaselineMismatch(ValueError):
    """A stored baseline was made from something else; the message says what, and the way out."""


class Fingerprint(msgspec.Struct, frozen=True):
    """What a baseline depends on."""

    model: str
    revision: str
    dtype: str
    text_digest: str
    n_tokens: int
    n_sink: int
    window_size: int
    late_positions: int  # evaluated positions with a full window; the others are all evaluated

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
        RecordError: it cannot be read as one.
    """
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=Baseline)
    except (OSError, msgspec.MsgspecError) as error:
        raise RecordError(f"{path} is not a readable streamcache baseline: {error}") from error
    if stored.version != records.SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {stored.version}, "
            f"this release reads {records.SCHEMA_VERSION}"
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
            raise BaselineMismatch(
                f"{path} does not fit: its {name} is {have!r}, this run's is {want!r}; "
                "make a new one with `streamcache baseline --baseline-file` and the options of "
                "this run"
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
        replace: make a new one where the file at `path` is of something else.

    Raises:
        BaselineMismatch: the file at `path` has another fingerprint.
        NotFiniteError: the model predicts something that is no number.
    """
    nll: list[float] = []
    if path.exists():
        stored = read(path)
        if not replace:
            check(stored.fingerprint, wanted, path)
        if stored.fingerprint == wanted:
            nll = list(stored.nll)
    positions = wanted.positions()
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
            nll += finite(rows).tolist()
            if time.monotonic() - saved > _SAVE_EVERY_S:
                records.write(path, Baseline(wanted, nll))
                saved, n_saved = time.monotonic(), len(nll)
    finally:
        if len(nll) > n_saved:
            records.write(path, Baseline(wanted, nll))
    return Baseline(wanted, nll)


def wanted_for(subject: Subject, policy: EvictionPolicy, late_positions: int) -> Fingerprint:
    """The fingerprint of the baseline that a measurement of `subject` is compared with."""
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
    )
