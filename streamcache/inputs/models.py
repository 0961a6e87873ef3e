"""Models by name: the packaged reference, a local folder, a pinned hub id, or a random shape."""

import hashlib
import re
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from streamcache.inputs.quantize import Quantization, quantize

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

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# What beside the weights tells what a folder's model predicts of a text.
_DESCRIBE = ("config.json", "tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges*")

_NEOX = {  # hidden size, layers, heads, vocabulary
    "pythia-70m": (512, 6, 8, 50304),
    "pythia-160m": (768, 12, 12, 50304),
    "pythia-410m": (1024, 24, 16, 50304),
    "pythia-1b": (2048, 16, 8, 50304),
    "pythia-1.4b": (2048, 24, 16, 50304),
    "pythia-2.8b": (2560, 32, 32, 50304),
    "pythia-6.9b": (4096, 32, 32, 50432),
    "4x128": (128, 4, 4, 4096),  # fits a core's own cache: for times on a CPU
}
SHAPES = ("reference", *_NEOX, "llama-3.2-1b")


class ModelError(ValueError):
    """The model asked for cannot be had; the message says why and what would do."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured.

    Attributes:
        model: in eval mode, without gradients, on the device and in the dtype asked for.
        tokenizer: None for random weights and for folders without one.
        name: what was loaded: "reference", "random:<shape>", a hub id, or a folder's own name.
        quantization: of the weights; None: as they came.
        revision: commit of a hub id; for a folder "sha256:" and the first 16 hex digits of a
            digest of its weights, config and tokenizer, for the packaged reference of its weights
            alone, the rest being the release's; "seed0" for random weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str
    quantization: Quantization | None = None


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
        name: "reference", the packaged model; "random:<shape>", one of SHAPES with random
            weights; an existing folder in the hub's layout; or a hub id, "org/name".
        revision: commit of a hub id; None is the pinned one, and an error where none is pinned.
        dtype: "float32", "float16", "bfloat16" or "auto": float32 on a CPU, float16 on a GPU.
        device: "cpu", "cuda" or "cuda:<index>".
        quantization: of the weights, "int8" or "int4": see `quantize`.

    Raises:
        QuantizationError: the weights cannot be quantised so.
        ModelError: an unknown name, shape, dtype or device, an incomplete folder, or a hub id that
            is neither reachable nor cached.
    """
    loaded = _load(name, revision, dtype, device)
    if quantization is not None:
        quantize(loaded.model, quantization)
    return replace(loaded, quantization=quantization)


def _load(name: str, revision: str | None, dtype: str, device: str | torch.device) -> LoadedModel:
    place = _device(device)
    number = _dtype(dtype, place)
    if place.type == "cuda":
        torch.cuda.set_device(place)  # where events and graphs go, too
    kind, _, shape = name.partition(":")
    is_hub = kind != "random" and name != "reference" and not Path(name).is_dir()
    if revision is not None and not is_hub:
        raise ModelError(f"a revision is for hub ids only, and {name!r} is none")

    if kind == "random":
        return _random(shape, number, place)
    if is_hub:
        commit = _commit(name, revision)
        return LoadedModel(*_pretrained(name, commit, number, place), name, commit)
    folder = REFERENCE_FOLDER if name == "reference" else Path(name).resolve()
    label = name if name == "reference" else folder.name
    digest = _digest(folder, () if name == "reference" else _DESCRIBE)
    return LoadedModel(*_pretrained(folder, "main", number, place), label, digest)


def _device(device: str | torch.device) -> torch.device:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    known = ["cpu", "cuda", *gpus] if gpus else ["cpu"]
    if str(device) not in known:
        raise ModelError(f"no device {str(device)!r} here: give one of {', '.join(known)}")
    place = torch.device(device)
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return place


def _dtype(dtype: str, place: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if place.type == "cpu" else torch.float16
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
            f"{name} is no folder here, and as a hub id it needs an explicit revision, a commit "
            f"of 40 hex digits, got {revision}: a result needs a pinned revision"
        )
    return commit


def _digest(folder: Path, describe: tuple[str, ...]) -> str:
    """Of all shards one after the other, then of what matches the patterns, in order of names."""
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model folder: it needs config.json and model.safetensors (or its "
            "shards); weights in other formats are not loaded"
        )
    digest = hashlib.sha256()
    described = {path for pattern in describe for path in folder.glob(pattern) if path.is_file()}
    for path in [*weights, *sorted(described)]:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()[:16]}"


def _pretrained(
    source: str | Path, revision: str, dtype: torch.dtype, place: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    form = {"dtype": dtype, "attn_implementation": "sdpa", "use_safetensors": True}
    try:
        model, report = _auto.from_pretrained(source, **where, **form, output_loading_info=True)
        # Without files to read, AutoTokenizer makes an empty tokenizer instead of an error.
        has_tokenizer = isinstance(source, str) or any(source.glob("tokenizer*"))
        tokenizer = AutoTokenizer.from_pretrained(source, **where) if has_tokenizer else None
    except Exception as error:  # transformers, hub client and safetensors share no error class
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"cannot load {source} ({reason}); without the hub there are local folders, "
            "reference and random:<shape>"
        ) from error
    if report["missing_keys"]:  # transformers has filled them with random numbers
        raise ModelError(f"{source} lacks weights: {', '.join(sorted(report['missing_keys']))}")
    return model.to(place).eval().requires_grad_(False), tokenizer


def _random(shape: str, dtype: torch.dtype, place: torch.device) -> LoadedModel:
    config = _config(shape)
    # Made where it will be used, in its dtype: on a GPU billions of weights take seconds.
    with torch.random.fork_rng([place] if place.type == "cuda" else []), place:
        torch.manual_seed(0)
        model = _auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return LoadedModel(model.eval().requires_grad_(False), None, f"random:{shape}", "seed0")


def _config(shape: str) -> PreTrainedConfig:
    if shape not in SHAPES:
        raise ModelError(f"no shape {shape!r}: give random: and one of {', '.join(SHAPES)}")
    config: PreTrainedConfig
    if shape == "reference":
        config = AutoConfig.from_pretrained(REFERENCE_FOLDER)
    elif shape == "llama-3.2-1b":
        config = LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=128000,
            eos_token_id=128001,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        )
    else:
        hidden, layers, heads, vocabulary = _NEOX[shape]
        config = GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=2048,
            rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            bos_token_id=0,
            eos_token_id=0,
        )
    return config
