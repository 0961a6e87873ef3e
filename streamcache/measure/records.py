"""What a measurement leaves behind: typed, versioned, written all or nothing."""

import io
import platform
import re
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import msgspec
import numpy
import torch
import transformers
from numpy.typing import ArrayLike, NDArray

from streamcache.files import write_bytes
from streamcache.version import VERSION

SCHEMA_VERSION = 1


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


_Kind = TypeVar("_Kind", bound=_Versioned)


class RecordError(ValueError):
    """A file is not a record of the expected kind and version; the message says what is wrong."""


class Environment(msgspec.Struct, frozen=True):
    """Where it was measured. Speeds compare only within one environment."""

    device: str
    torch: str
    transformers: str
    python: str
    streamcache: str
    threads: int


class Subject(msgspec.Struct, frozen=True):
    """The model and the text."""

    model: str
    revision: str
    dtype: str  # and the quantization of the weights: "float16", "float16 int8"
    text: str
    text_source: str
    text_digest: str
    n_tokens: int

    @property
    def file_name(self) -> str:
        """For what is measured of it; files of the same name in two folders are told apart."""
        text = f"{self.text}-{self.text_digest[:8]}" if self.text_source == "file" else self.text
        return re.sub(r"[^\w.-]", "_", f"{self.model}-{self.dtype}-{text}-{self.n_tokens}")


class Policy(msgspec.Struct, frozen=True):
    """An eviction policy as given (`cache_slack`, `max_drop` may be unset) and as in force."""

    n_sink: int
    window_size: int
    cache_slack: int | None
    max_drop: int | None
    compress_every: int
    capacity: int


class Quality(msgspec.Struct, frozen=True):
    """Perplexities. The increase compares identical positions with the recompute baseline."""

    method: str  # "one-pass", "sequential" or "recompute"
    ppl: float  # all evaluated positions: of a baseline, often a sample
    ppl_steady: float | None  # from the position where the cache is first full
    n_positions: int
    n_steady: int
    ppl_compared: float | None = None  # at the positions shared with the baseline
    ppl_increase: float | None = None  # fraction, at those; None without a baseline
    n_compared: int = 0
    ppl_increase_error: float | None = None  # its standard error, over those positions


class Speed(msgspec.Struct, frozen=True):
    """Milliseconds per token, batch 1, steady state, evictions included."""

    model: str  # what was timed: the shape counts, so it may differ from the subject's
    tpot_mean_ms: float  # host clock, device-synchronised at the ends
    tpot_p50_ms: float
    tpot_p99_ms: float
    tpot_device_ms: float | None  # mean of CUDA event times
    n_tokens: int
    speedup: float | None = None  # mean over mean, both from this run
    baseline_mean_ms: float | None = None


class Prunes(msgspec.Struct, frozen=True):
    """Evictions over the evaluated stream."""

    scheduled: int
    forced: int
    evicted: int


class Record(msgspec.Struct, frozen=True, tag="streamcache-eval", tag_field="schema"):
    """One configuration, measured."""

    configuration: str
    mode: str  # "recompute", "mit", "ours", "fast" or "captured"
    policy: Policy
    subject: Subject
    environment: Environment
    quality: Quality | None
    speed: Speed | None
    prunes: Prunes
    # The peak so far, of the device, or of the process on a CPU; None where Windows runs it there.
    peak_memory_bytes: int | None
    notes: tuple[str, ...] = ()
    version: int = SCHEMA_VERSION


def environment(device: torch.device) -> Environment:
    """This process, measuring on `device`."""
    on_gpu = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if on_gpu else f"cpu {platform.machine()}",
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        python=platform.python_version(),
        streamcache=VERSION,
        threads=torch.get_num_threads(),
    )


def write(path: Path, value: msgspec.Struct) -> None:
    """Write as JSON; a reader sees the old file or the new one, never half."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def array_path(path: Path, kind: Literal["nll", "tpot"]) -> Path:
    """Beside a record: NLL of each token, nats [T - 1], or ms of each timed token."""
    return path.with_name(f"{path.name.removesuffix('.json')}.{kind}.npy")


def write_array(path: Path, values: ArrayLike) -> None:
    """Write numbers as a .npy file, all or nothing."""
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.asarray(values, dtype=numpy.float32))
    write_bytes(path, buffer.getvalue())


def read_array(path: Path, n: int) -> NDArray[numpy.float64]:
    """The `n` numbers of a .npy file.

    Raises:
        RecordError: it cannot be read, or has another number of them.
    """
    try:
        values: NDArray[numpy.float64] = numpy.load(path).astype(numpy.float64)
    except (OSError, ValueError, EOFError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if values.shape != (n,):
        raise RecordError(f"{path} has the shape {values.shape}, not {(n,)}")
    return values


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        RecordError: no such file, not a record, or of another version.
    """
    return read_as(Record, path, "record")


def read_as(kind: type[_Kind], path: Path, called: str) -> _Kind:
    """Read what `write` wrote of a kind that has a version, as people call it.

    Raises:
        RecordError: no such file, of another kind, or of another version.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise RecordError(f"{path} is not a readable streamcache {called}: {error}") from error
    if found.version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {found.version}, this release reads {SCHEMA_VERSION}"
        )
    return found
