"""Recompute baselines of version 1, which the release before wrote, found and checked.

They have no checksum. What they were made from is compared field by field, and each NLL must be a
number that float32 has, which a changed digit seldom is; damage that leaves such numbers is not
seen, and everything that is compared with them says so in its notes.
"""

import hashlib
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy

from streamcache.measure import quality as qualities
from streamcache.measure.checked import Floats, RecordError, read_json
from streamcache.measure.configurations import Configuration
from streamcache.measure.measurement import Environment, Quality, WorkloadRecord

NOTE = (
    "the recompute baseline is of a file without a checksum, written by version 1: damage that "
    "leaves valid numbers would not be seen"
)
SCHEMA = "streamcache-baseline"

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
_Size = Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)]


class Fingerprint(msgspec.Struct, frozen=True):
    """What a baseline of version 1 depends on, in the order in which it was written."""

    model: str
    revision: str
    dtype: str  # "float16", or "float16 int8" with quantised weights
    text_digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    n_tokens: Annotated[int, msgspec.Meta(ge=2, lt=1 << 53)]
    n_sink: _Count
    window_size: _Size
    late_positions: _Count
    device: str = ""
    torch: str = ""
    transformers: str = ""
    streamcache: str = ""

    @staticmethod
    def of(
        configuration: Configuration, workload: WorkloadRecord, where: Environment, late: int
    ) -> "Fingerprint":
        """Of the baseline that is wanted, with `late` positions with a full window."""
        policy = configuration.policy
        return Fingerprint(
            model=workload.model,
            revision=workload.revision,
            dtype=" ".join(filter(None, [workload.dtype, configuration.weights])),
            text_digest=workload.text_digest,
            n_tokens=workload.n_tokens,
            n_sink=policy.n_sink,
            window_size=policy.floor - policy.n_sink,
            late_positions=late,
            device=where.device,
            torch=where.torch,
            transformers=where.transformers,
            streamcache=where.streamcache,
        )

    @property
    def n_positions(self) -> int:
        """Positions at which it is evaluated."""
        floor, last = self.n_sink + self.window_size, self.n_tokens - 1
        return min(floor, last) + min(self.late_positions, max(0, last - floor))

    @property
    def name(self) -> str:
        """How the name of its file ended."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]

    def path(self, folder: Path) -> Path | None:
        """Where version 1 kept it in a folder of measurements; None where it is not there."""
        return next(iter(sorted((folder / "baselines").glob(f"*-{self.name}.json"))), None)


class _File(msgspec.Struct, frozen=True, tag=SCHEMA, tag_field="schema"):
    fingerprint: Fingerprint
    nll: list[float]
    version: int


class Version1Baseline(NamedTuple):
    """A baseline of version 1.

    Attributes:
        nll: float64, nats; of fewer positions where it was interrupted.
        quality: its perplexities; None where it was interrupted.
    """

    fingerprint: Fingerprint
    nll: Floats
    quality: Quality | None


def is_version_1_baseline(content: object) -> bool:
    """Whether the content of a JSON file is one, intact or not."""
    if not isinstance(content, dict):
        return False
    return content.get("schema") == SCHEMA and content.get("version") == 1


def read_version_1_baseline(path: Path) -> Version1Baseline | None:
    """The baseline in a file; None where it is no JSON file, or of another kind or version.

    Raises:
        RecordError: it is damaged.
    """
    try:
        content = read_json(path)
    except RecordError:
        return None
    try:
        return baseline_of(content) if is_version_1_baseline(content) else None
    except RecordError as error:
        raise RecordError(f"{path} is not a readable streamcache baseline: {error}") from error


def baseline_of(content: object) -> Version1Baseline:
    """The baseline in the content of a JSON file.

    Raises:
        RecordError: it is damaged; the message has no file name.
    """
    try:
        file = msgspec.convert(content, _File)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordError(f"damaged: {error}") from error
    fingerprint, nll = file.fingerprint, numpy.asarray(file.nll, dtype=numpy.float64)
    if len(nll) > fingerprint.n_positions:
        raise RecordError(f"damaged: {len(nll)} NLLs for {fingerprint.n_positions} positions")
    with numpy.errstate(over="ignore"):
        rounded = nll.astype(numpy.float32)
    wrong = ~numpy.isfinite(rounded) | (rounded != nll) | (nll < 0)
    if wrong.any():
        first = int(wrong.argmax())
        raise RecordError(f"damaged: its NLL {first} is {nll[first]}, which no model has predicted")
    if len(nll) < fingerprint.n_positions:
        return Version1Baseline(fingerprint, nll, None)
    floor = fingerprint.n_sink + fingerprint.window_size
    try:
        quality = qualities.of_baseline(
            nll, floor, fingerprint.n_tokens, fingerprint.late_positions
        )
    except OverflowError as error:
        raise RecordError("damaged: its perplexity is no number") from error
    return Version1Baseline(fingerprint, nll, quality)
