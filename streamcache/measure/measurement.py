"""A measurement: a record and its arrays, typed, versioned, with checksums, all or nothing.

The record `<name>.json`, and up to three arrays: the NLL of each predicted token `<name>.nll.npy`
(nats), its rank `<name>.rank.npy`, and the time of each timed token `<name>.tpot.npy` (ms). The
record is written last, so a record that can be read has its arrays.
"""

from streamcache.extras import require

require("measure", "streamcache.measure")

# ruff: noqa: E402 (what is missing is named before it is imported)
import dataclasses
import platform
import warnings
from pathlib import Path
from typing import Literal

import msgspec
import torch
import transformers

from streamcache.files import write_files
from streamcache.machine import cpu_model
from streamcache.measure.checked import (
    SCHEMA_VERSION,
    Floats,
    RecordError,
    array_bytes,
    read_array,
    read_struct,
    sha256,
    struct_bytes,
)
from streamcache.policy import EvictionPolicy, Evictions, Policy, PolicyWarning
from streamcache.version import VERSION

Fields = dict[str, str | int]  # the fields of a configuration that are set
ArrayKind = Literal["nll", "tpot", "rank"]


class Environment(msgspec.Struct, frozen=True):
    """Where it was measured. Times compare only within one environment."""

    device: str
    cpu: str
    torch: str
    transformers: str
    python: str
    streamcache: str
    threads: int


class WorkloadRecord(msgspec.Struct, frozen=True):
    """The model that reads, the model that is timed, and the text."""

    model: str
    revision: str
    dtype: str
    timed: str  # the shape decides the time, so it may be another model than the one that reads
    text: str
    text_source: str
    text_digest: str
    n_tokens: int


class Sizes(msgspec.Struct, frozen=True):
    """The sizes in force, entries: of the policy, and reserved besides it."""

    n_sink: int
    floor: int
    capacity: int
    overlap: int = 0
    refresh: int = 0

    @staticmethod
    def of(policy: Policy, overlap: int, refresh: int) -> "Sizes":
        return Sizes(policy.n_sink, policy.floor, policy.capacity, overlap, refresh)

    @property
    def total(self) -> int:
        """Entries of the whole budget."""
        return self.capacity + self.overlap + self.refresh


class Quality(msgspec.Struct, frozen=True):
    """Perplexities. The increase compares identical positions with the recompute baseline."""

    method: str  # "one-pass", "sequential" or "recompute"
    ppl: float  # all evaluated positions: of the baseline, often a sample
    ppl_steady: float | None  # from the position where the cache is first full
    n_positions: int
    n_steady: int
    ppl_compared: float | None = None  # at the positions shared with the baseline
    ppl_increase: float | None = None  # fraction, at those; None without a baseline
    n_compared: int = 0
    ppl_increase_error: float | None = None  # its standard error, over those positions
    late_positions: int = 0  # of the baseline with a full window, spread evenly


class Speed(msgspec.Struct, frozen=True):
    """Times of the steady state, evictions included, from blocks alternating with the baseline."""

    tpot_mean_ms: float  # per token of each stream: host clock, device-synchronised at the ends
    tpot_p50_ms: float
    tpot_p99_ms: float
    tpot_device_ms: float | None  # mean of CUDA event times
    n_tokens: int
    baseline_ms: float  # mean time of the baseline, per token, in the same pairs
    speedup: float  # median over the pairs of baseline / candidate
    speedup_error: float | None
    pairs: list[tuple[float, float]]  # seconds per token of the candidate and of the baseline
    device_pairs: list[tuple[float, float]] = []  # the same in time that the device computed
    kernels_per_token: float | None = None
    wait_share: float = 0.0  # of the time, for a core; it is not in the pairs
    seen: int | None = None  # tokens that the timed cache was fed
    held: int | None = None  # entries that it held at the end


class Record(msgspec.Struct, frozen=True, tag="streamcache-measurement", tag_field="schema"):
    """One configuration, measured on one workload.

    Attributes:
        label: for people.
        configuration: the fields that are set; its identity.
        evictions: over the evaluated stream.
        peak_memory_bytes: high-water mark, of the device or of the process on a CPU; of all that
            the process has done so far.
        date: of the measurement, ISO 8601, UTC.
        commit: of the source, where it was measured from a git checkout.
        arrays: sha256 of the file of each array.
    """

    label: str
    configuration: Fields
    sizes: Sizes
    workload: WorkloadRecord
    environment: Environment
    quality: Quality | None
    speed: Speed | None
    evictions: Evictions
    peak_memory_bytes: int | None
    date: str
    commit: str | None = None
    arrays: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Whoever wrote it: what cannot be a configuration is refused where it is read."""
        if "cache" not in self.configuration:
            raise ValueError("its configuration has no cache")
        _ = self.policy
        if self.speed is not None and not self.speed.pairs:
            raise ValueError("it has times and no pairs")

    @property
    def key(self) -> tuple[tuple[str, str | int], ...]:
        """The identity, to look a record up by."""
        return tuple(sorted(self.configuration.items()))

    @property
    def cache(self) -> str:
        """The kind of cache, or "recompute"."""
        return str(self.configuration["cache"])

    @property
    def policy(self) -> Policy | None:
        """The eviction policy; None where it is a rule that is not part of this package."""
        if "rule" in self.configuration:
            return None
        names = {f.name for f in dataclasses.fields(EvictionPolicy)}
        found = {k: int(v) for k, v in self.configuration.items() if k in names}
        with warnings.catch_warnings():  # it was warned of when it was measured
            warnings.simplefilter("ignore", PolicyWarning)
            return EvictionPolicy(**found)

    @property
    def recomputes(self) -> bool:
        """Whether it is the recompute baseline, which has no cache."""
        return self.cache == "recompute"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A record and its arrays.

    Attributes:
        nll: float64, nats: of tokens 1 ... T - 1, or of the baseline at its positions; None where
            no PPL was taken.
        tpot_ms: float64, one per timed token; None where no times were taken.
        path: of the record, where it is on disk.
        ranks: float64, for each NLL the number of tokens that the model found likelier; None where
            they were not asked for.
    """

    record: Record
    nll: Floats | None = None
    tpot_ms: Floats | None = None
    path: Path | None = dataclasses.field(default=None, compare=False)
    ranks: Floats | None = None


def environment(device: torch.device, n_devices: int = 1) -> Environment:
    """This process, measuring on `device`, and on others like it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    name = name or f"cpu {platform.machine()}"
    return Environment(
        device=name if n_devices == 1 else f"{n_devices} x {name}",
        cpu=cpu_model(),
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        python=platform.python_version(),
        streamcache=VERSION,
        threads=torch.get_num_threads(),
    )


def write(path: Path, measurement: Measurement, within: Path | None = None) -> Measurement:
    """Write the files of a measurement, all or none; the measurement as it can be read back.

    Args:
        within: a folder that no link may lead out of.
    """
    arrays: dict[ArrayKind, bytes] = {}
    if measurement.nll is not None:
        arrays["nll"] = array_bytes(measurement.nll)
    if measurement.tpot_ms is not None:
        arrays["tpot"] = array_bytes(measurement.tpot_ms)
    if measurement.ranks is not None:
        arrays["rank"] = array_bytes(measurement.ranks)
    digests: dict[str, str] = {kind: sha256(data) for kind, data in arrays.items()}
    record = msgspec.structs.replace(measurement.record, arrays=digests)
    files = [(array_path(path, kind), data) for kind, data in arrays.items()]
    write_files([*files, (path, struct_bytes(record))], within)
    return dataclasses.replace(measurement, record=record, path=path)


def read(path: Path) -> Measurement:
    """Read a measurement with all its arrays.

    Raises:
        RecordError: no such file, not a record, of another version, or any of it is damaged.
    """
    record = read_struct(Record, path, "record")
    problems: list[str] = []
    measurement = with_arrays(record, path, problems)
    if problems:
        raise RecordError(problems[0])
    return measurement


def with_arrays(record: Record, path: Path, problems: list[str]) -> Measurement:
    """The measurement of a record, with the arrays next to `path`; `problems` gets a line for each
    that is missing or broken."""
    found: dict[ArrayKind, Floats] = {}
    lengths: dict[ArrayKind, int] = {}
    if record.quality:
        lengths["nll"] = record.quality.n_positions
        if "rank" in record.arrays:
            lengths["rank"] = record.quality.n_positions
    if record.speed:
        lengths["tpot"] = record.speed.n_tokens
    for kind, n in lengths.items():
        digest: str | None = record.arrays.get(kind, "")
        if record.version == 1:  # which kept no digests, and not always the arrays
            if not array_path(path, kind).exists():
                continue
            digest = None
        try:
            found[kind] = read_array(array_path(path, kind), n, digest)
        except RecordError as error:
            problems.append(str(error))
    return Measurement(record, found.get("nll"), found.get("tpot"), path, found.get("rank"))


def array_path(path: Path, kind: ArrayKind) -> Path:
    """Beside a record: NLL of each token, nats, its rank, or ms of each timed token."""
    return path.with_name(f"{path.name.removesuffix('.json')}.{kind}.npy")
