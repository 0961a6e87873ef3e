"""A model and its tokenizer from a folder, the hub or a GGUF file, refused where incomplete."""

import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from streamcache.extras import MissingExtra
from streamcache.inputs import gguf
from streamcache.inputs.placement import Placement

_auto: Any = AutoModelForCausalLM  # its types are those of no real model

# Masks and angles that older checkpoints stored with the weights.
_BUFFER = re.compile(r"\.(masked_bias|rotary_emb\.inv_freq|(attn|attention)\.bias)$")


class ModelError(ValueError):
    """The model asked for cannot be had; the message says why and what would do."""


def pretrained(
    source: str | Path, revision: str, dtype: torch.dtype, where_to: Placement
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A causal language model in eval mode, without gradients, and its tokenizer if it has one.

    Args:
        source: a hub id, a folder, or a GGUF file, whose weights are dequantised.
        revision: commit of a hub id.

    Raises:
        MissingExtra: a GGUF file needs packages that are not installed.
        ModelError: it cannot be loaded, lacks weights, or has more than its config says.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    form: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **where_to.options}
    file = source if isinstance(source, Path) and gguf.is_gguf(source) else None
    folder = source if file is None else file.parent
    try:
        if file is not None:
            form |= gguf.options_of(file)
            where["gguf_file"] = form.pop("gguf_file")
        config = AutoConfig.from_pretrained(folder, **where)
        # Without files to read, AutoTokenizer makes an empty tokenizer instead of an error.
        if file is not None:
            has_tokenizer = gguf.has_tokenizer(file, config)
        else:
            has_tokenizer = isinstance(source, str) or any(source.glob("tokenizer*"))
        # A config's own choice may be slower, or the name of compiled code on the hub. Without one
        # transformers takes SDPA, or what it calls eager where a model has no SDPA.
        config._attn_implementation = None
        form["config"] = config
        with nullcontext() if file is None else gguf.bars_on_terminals_only():
            model, report = _auto.from_pretrained(folder, **where, **form, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, **where) if has_tokenizer else None
    except MissingExtra:
        raise
    except Exception as error:  # transformers, hub client and safetensors share no error class
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"cannot load {source} ({reason}); without the hub there are local folders, "
            "reference and random:<shape>"
        ) from error
    if report["missing_keys"]:  # transformers has filled them with random numbers
        raise ModelError(f"{source} lacks weights: {_listed(report['missing_keys'])}")
    superfluous = {name for name in report["unexpected_keys"] if not _BUFFER.search(name)}
    if superfluous:  # the model that was trained is another one
        raise ModelError(
            f"{source} has weights that its config.json has no place for: {_listed(superfluous)}"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if tokenizer is not None and len(tokenizer) > vocabulary:
        raise ModelError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens and its embedding {vocabulary}; "
            "they belong to different models"
        )
    if file is not None:
        gguf.as_dense(model)
    if where_to.over == "one":
        model = model.to(where_to.device)
    return model.eval().requires_grad_(False), tokenizer


def _listed(names: Iterable[str]) -> str:
    """The first few of them."""
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
