"""What a measurement leaves behind: typed, versioned, written all or nothing."""

import io
import platform
from pathlib import Path

import msgspec
import numpy
import torch
import transformers
from numpy.typing import ArrayLike

from streamcache.files import write_bytes
from streamcache.version import VERSION

SCHEMA_VERSION = 1


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
    peak_memory_bytes: int  # high-water mark so far, of the device, or of the process on a CPU
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


def write_array(path: Path, values: ArrayLike) -> None:
    """Write numbers as a .npy file, all or nothing."""
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.asarray(values, dtype=numpy.float32))
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        RecordError: no such file, not a record, or of another version.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise RecordError(f"{path} is not a readable streamcache record: {error}") from error
    if record.version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {record.version}, this release reads {SCHEMA_VERSION}"
        )
    return record
