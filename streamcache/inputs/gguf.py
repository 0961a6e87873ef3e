"""Models in GGUF files (llama.cpp's format), whose weights transformers dequantises."""

import io
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from streamcache.extras import require

_MOST_BEHIND = 1 << 16  # bytes that may pad a file after its last tensor


class GGUFError(ValueError):
    """A GGUF file is not what its header says, or says what transformers would leave out."""


def is_gguf(name: str | Path) -> bool:
    """Whether a model's name is that of a GGUF file."""
    return Path(name).suffix == ".gguf"


def options_of(path: Path) -> dict[str, Any]:
    """What `from_pretrained` needs to load a GGUF file from its folder.

    Raises:
        MissingExtra: a package is not installed.
    """
    require("gguf", f"loading {path.name}")
    config = getattr(transformers, "GgufConfig", None)  # without it, all weights are dequantised
    packed = {} if config is None else {"quantization_config": config(dequantize=True)}
    return {"gguf_file": path.name, **packed}


def bars_on_terminals_only() -> AbstractContextManager[object]:
    """While it reads a file, transformers shows a progress bar, to a log file as well."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def has_tokenizer(path: Path, config: PreTrainedConfig) -> bool:
    """Whether a file has a tokenizer besides its weights.

    Raises:
        GGUFError: it has more bytes than its header says; or it scales its rotary angles, and the
            config that transformers made of it does not: the model would load and predict
            something else.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    end = max((int(t.data_offset + t.n_bytes) for t in reader.tensors), default=0)
    if reader.tensors and path.stat().st_size > end + _MOST_BEHIND:
        raise GGUFError(f"its tensors end after {end} of {path.stat().st_size} bytes")
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    factors = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    scaling = [name for name in reader.fields if name.endswith("rope.scaling.factor")]
    if kind == "default" and (factors or scaling):
        raise GGUFError(f"transformers would leave out its {(factors or scaling)[0]}")
    return "tokenizer.ggml.tokens" in reader.fields


def as_dense(model: PreTrainedModel) -> None:
    """Make a dequantised model one like any other, which can be saved and copied."""
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
