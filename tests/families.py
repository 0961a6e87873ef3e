"""Every causal type of the installed transformers: admitted or refused, why, and how exact it is.

    python -m tests.families [TYPE ...] [--layers N] [--deep N] [--jobs N] [--write FILE]

Models are tiny, with random weights. Errors are the largest difference of logits from the float64
oracle, in units of their spread; that of the one pass is in nats. Where one is above 1e-4 the same
is computed in float64 throughout, which no rounding can explain. Exit code 1 where that is above
1e-9.
"""

import argparse
import contextlib
import io
import multiprocessing
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from streamcache import CapturedDecoder, StreamingCache, UnsupportedModelError, streaming_nll
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED, CACHES, LATENT, REFUSED, SHARED_KEYS
from tests.hybrids import HYBRIDS, expected_of_hybrid
from tests.tiny import VOCABULARY, build, copy_of, error, stream, text, tiny_config
from tests.wide import float64_throughout

POLICY = EvictionPolicy(n_sink=3, window_size=12, cache_slack=2, max_drop=2, compress_every=4)
N_TOKENS = 64
LARGEST = 20_000_000  # parameters of a model that is still tiny
EXACT = 1e-4
EXACT_IN_FLOAT64 = 1e-9

#: For types without a shape in `tests.cases`: what sizes are called, and small ones.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "sliding_window": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "d_model": 32,
    "d_ff": 32,
    "n_layers": 2,
    "n_heads": 4,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "global_head_dim": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "num_kv_shared_layers": 0,
}

_STACK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
#: Types whose settings have names, or conditions, of their own.
OWN: dict[str, dict[str, Any]] = {
    "mamba2": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 1,
        "expand": 2,
        "chunk_size": 8,
    },
    "zamba2": {
        **_STACK,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
    "lfm2_moe": {
        **_STACK,
        "layer_types": ["conv", "full_attention", "conv"],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
    "zaya": {**_STACK, "head_dim": 8},
    "whisper": {**_DECODER, "max_target_positions": 256},
    "plbart": {**_DECODER, "max_position_embeddings": 256},
    "prophetnet": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_decoder_layers": 3,
        "num_encoder_layers": 2,
        "num_decoder_attention_heads": 4,
        "num_encoder_attention_heads": 4,
        "decoder_ffn_dim": 32,
        "encoder_ffn_dim": 32,
        "max_position_embeddings": 256,
    },
    "reformer": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "attention_head_size": 8,
        "num_attention_heads": 4,
        "feed_forward_size": 32,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 256,
        "attn_layers": ["local"] * 3,
    },
    "xlnet": {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64},
    "git": {
        **{k: v for k, v in _STACK.items() if k != "num_key_value_heads"},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
        },
    },
}
_ASSISTANT = "it drafts for another model and is given that model's keys and values"
_WITHIN = "AutoModelForCausalLM does not know the config of its text part"
#: Why a type is not tried.
UNTRIED = {
    "blt": "it reads bytes through several stacks, which have no tiny shape here",
    "cohere_compass_text": "its rotary settings have no tiny shape here",
    "dbrx": "transformers reads a setting that its config class has not",
    "dots3_note": "it has no tiny shape here: its layers are numbered in its config",
    "dots3_note_text": "its settings have no tiny shape here",
    "emu3": _WITHIN,
    "gemma3n": "it needs a package that is not installed",
    "gemma4_assistant": _ASSISTANT,
    "gemma4_unified_assistant": _ASSISTANT,
    "mllama": _WITHIN,
    "musicgen": "it decodes four audio codes at a time, not one token",
    "musicgen_melody": "it decodes four audio codes at a time, not one token",
    "phi4_multimodal": "its parts for images and audio have no tiny shape here",
    "zamba": "its layers share weights in a way that has no tiny shape here",
}


@dataclass
class Verdict:
    """What is found out about a type."""

    family: str
    built: bool = True
    reason: str = ""  # why it is refused, or was not built
    same_in_half: bool = True  # whether float16 and bfloat16 agree with float32
    same_when_deep: bool | None = None  # whether 24 layers, in each dtype; None: not built
    errors: dict[str, float] = field(default_factory=dict)
    deep_errors: dict[str, float] = field(default_factory=dict)
    deep_rounding: float = 0.0  # of the oracle itself in float32, at 24 layers
    in_float64: float | None = None  # the largest error where one in float32 is above 1e-4
    one_pass: str = ""
    captured: str = ""

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)

    @property
    def worst_deep(self) -> float:
        return max(self.deep_errors.values(), default=0.0)

    @property
    def is_exact(self) -> bool:
        if self.in_float64 is None:
            return max(self.worst, self.worst_deep) < EXACT
        return self.in_float64 < EXACT_IN_FLOAT64


def shape_of(family: str, n_layers: int) -> dict[str, Any]:
    """Settings of a tiny config: those of the tests, or small numbers under every usual name."""
    if family in OWN:
        shape = dict(OWN[family])
    elif family in ADMITTED:
        shape = dict(ADMITTED[family])
    elif family in REFUSED:
        shape = dict(REFUSED[family][0])
    elif family in SHARED_KEYS:
        shape = dict(SHARED_KEYS[family])
    elif family in HYBRIDS:
        shape = dict(HYBRIDS[family])
    elif family in ("deepseek_v2", "deepseek_v3", "axk1", "youtu"):
        shape = dict(LATENT)
    elif family == "longcat_flash":
        shape = {**LATENT, "head_dim": 4, "zero_expert_num": 1, "moe_topk": 2}
        shape |= {"expert_ffn_hidden_size": 16, "ffn_hidden_size": 32, "num_layers": n_layers}
        return {**shape, "num_hidden_layers": 2 * n_layers}
    else:
        numbered = {name: 1 for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        known = set(CONFIG_MAPPING[family]().get_text_config(decoder=True).to_dict())
        renamed = set(CONFIG_MAPPING[family].attribute_map)
        shape = {n: v for n, v in {**SMALL, **numbered}.items() if n in known | renamed}
        if "kv_lora_rank" in shape:
            shape["num_key_value_heads"] = shape["num_attention_heads"]
        kinds = getattr(CONFIG_MAPPING[family]().get_text_config(decoder=True), "layer_types", None)
        has_types = "layer_types" in known | renamed
        if has_types and {"linear_attention", "conv", "hybrid", "mamba"} & set(kinds or ()):
            shape["layer_types"] = [*dict.fromkeys(kinds or ()), "full_attention"]
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
    for name in (*names, "decoder_layers"):
        if name in shape and n_layers != 2:
            shape[name] = n_layers
    if n_layers != 2 and not set(names) & set(shape):
        shape["num_hidden_layers"] = n_layers
    for name in ("layer_types", "layers_block_type", "activation_sparsity_pattern"):
        if len(shape.get(name, ())) not in (0, n_layers):
            shape[name] = (shape[name] * n_layers)[:n_layers]
    return shape


def config_of(family: str, n_layers: int) -> PreTrainedConfig:
    shape = shape_of(family, n_layers)
    if family in OWN:
        own: PreTrainedConfig = CONFIG_MAPPING[family](**shape)
        own.is_decoder = True
        own._experts_implementation = "eager"
        return own
    whole = CONFIG_MAPPING[family]()
    part = whole.get_text_config(decoder=True)
    names = [name for name in whole.sub_configs if getattr(whole, name, None) is part]
    if not names:
        return tiny_config(family, **shape)
    others = {
        name: type(other)(**{k: v for k, v in SMALL.items() if k in other.to_dict()})
        for name in whole.sub_configs
        if (other := getattr(whole, name, None)) is not None and other is not part
    }
    whole_type: Any = CONFIG_MAPPING[family]
    part_type: Any = type(part)
    config: PreTrainedConfig = whole_type(**others, **{names[0]: part_type(**shape)})
    config._experts_implementation = "eager"
    return config


def model_of(family: str, n_layers: int) -> PreTrainedModel:
    config = config_of(family, n_layers)
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if n_parameters > LARGEST:
        raise ValueError(f"{n_parameters / 1e6:.0f} million parameters")
    return build(config)


def reason_against(model: PreTrainedModel) -> str:
    """Why a cache for the model is refused; empty where it is not."""
    try:
        StreamingCache(model, POLICY)
    except UnsupportedModelError as refusal:
        return str(refusal).partition(": ")[2] or str(refusal)
    return ""


def deep_model_of(family: str, n_layers: int) -> PreTrainedModel | None:
    try:
        return model_of(family, n_layers)
    except Exception:  # of transformers: its settings fit other depths only
        return None


def in_half_precision(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    for dtype in (torch.float16, torch.bfloat16):
        yield copy_of(model, dtype)


def errors_of(model: PreTrainedModel, ids: Tensor, reference: Tensor) -> dict[str, float]:
    """Of every cache and of the decoder."""
    errors = {
        cache_type.__name__: error(stream(model, cache_type(model, POLICY), ids), reference)
        for cache_type in CACHES
    }
    decoder = decoder_of(model)
    steps = torch.stack([decoder.step(token)[0].clone() for token in ids[0][:, None]])
    return {**errors, "CapturedDecoder": error(steps[None], reference)}


def error_in_float64(model: PreTrainedModel, ids: Tensor) -> float:
    """The largest of all of them where nothing is rounded to float32."""
    with float64_throughout():
        wide = copy_of(model, torch.float64)
        return max(errors_of(wide, ids, expected_of_hybrid(wide, POLICY, ids)).values())


def decoder_of(model: PreTrainedModel) -> CapturedDecoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CapturedDecoder(model, POLICY)


def verdict_on(family: str, n_layers: int = 3, deep: int = 24) -> Verdict:
    verdict = Verdict(family)
    try:
        model = model_of(family, n_layers)
    except Exception as failure:
        why = f"{type(failure).__name__}: {failure}".split("\n")[0]
        verdict.built, verdict.reason = False, UNTRIED.get(family, why)
        return verdict
    verdict.reason = reason_against(model)
    verdict.same_in_half = all(
        reason_against(half) == verdict.reason for half in in_half_precision(model)
    )
    deep_model = deep_model_of(family, deep) if deep else None
    if deep_model:
        verdict.same_when_deep = all(
            bool(reason_against(each)) == bool(verdict.reason)
            for each in (deep_model, *in_half_precision(deep_model))
        )
    if verdict.reason:
        return verdict
    ids = text(N_TOKENS)
    try:
        reference = expected_of_hybrid(model, POLICY, ids)
    except Exception as failure:
        why = f"no oracle: {type(failure).__name__}: {failure}"
        verdict.built, verdict.reason = False, UNTRIED.get(family, why)
        return verdict
    verdict.errors = errors_of(model, ids, reference)
    inexact = [model] if verdict.worst >= EXACT else []
    if deep_model and verdict.same_when_deep:
        deep_reference = expected_of_hybrid(deep_model, POLICY, ids)
        verdict.deep_errors = errors_of(deep_model, ids, deep_reference)
        in_float32 = expected_of_hybrid(deep_model, POLICY, ids, torch.float32)
        verdict.deep_rounding = error(in_float32, deep_reference)
        inexact += [deep_model] if verdict.worst_deep >= EXACT else []
    if inexact:
        verdict.in_float64 = max(error_in_float64(each, ids) for each in inexact)
    reason = str(decoder_of(model).eager_because)
    verdict.captured = "" if "CUDA" in reason else reason
    nll = torch.nn.functional.cross_entropy(reference[0, :-1], ids[0, 1:], reduction="none")
    try:
        verdict.one_pass = f"{float((streaming_nll(model, ids[0], POLICY) - nll).abs().max()):.0e}"
    except ValueError as refusal:
        verdict.one_pass = str(refusal).partition(": ")[2] or str(refusal)
    return verdict


def table(verdicts: list[Verdict]) -> Iterator[str]:
    admitted = [v for v in verdicts if v.built and not v.reason]
    refused = [v for v in verdicts if v.built and v.reason]
    missing = [v for v in verdicts if not v.built]
    yield "# Every causal type of transformers\n"
    yield (
        f"Of the {len(verdicts)} causal types of transformers {transformers.__version__}, "
        f"{len(admitted)} are streamed and {len(refused)} refused; {len(missing)} were not "
        "tried. Made by `python -m tests.families --jobs 16 --write docs/families.md` "
        "on models of three layers with random weights. A model is judged by what its layers do, "
        "not by its name: another one of the same type may be refused, as one with ALiBi.\n"
    )
    yield "## Streamed\n"
    unlike = ", ".join(v.family for v in verdicts if v.built and not v.same_in_half)
    yield (
        "The error is the largest difference of any logit from a float64 oracle, over all caches "
        "and the decoder, in units of the standard deviation of the logits. The one pass "
        "(`streaming_nll`) is in nats, or says why it is not possible; so does the last column "
        "for decoding by captured steps. The verdict is the same in float16 and bfloat16"
        + (f", except for {unlike}." if unlike else ".")
        + " The column of 24 layers says whether a model of so many has the same verdict in each "
        "of the three dtypes, and its error; in brackets that of the oracle itself in float32, "
        "since random weights in many layers make much of a rounding; – where transformers builds "
        "none of these settings. Where an error is above 1e-4 the last column has the largest "
        "one of the same caches, the decoder and the oracle when everything is computed in "
        "float64, norms and angles too: it is no rounding, and 1e-9 is the bound.\n"
    )
    yield "| type | error | one pass | captured steps | 24 layers | in float64 |"
    yield "|---|---|---|---|---|---|"
    for v in admitted:
        captured = v.captured or "yes"
        deep = deep_of(v)
        if v.deep_errors:
            deep += f", {v.worst_deep:.0e} ({v.deep_rounding:.0e})"
        exact = "" if v.in_float64 is None else f"{v.in_float64:.0e}"
        yield f"| {v.family} | {v.worst:.0e} | {v.one_pass} | {captured} | {deep} | {exact} |"
    yield "\n## Refused\n"
    yield "| type | why | 24 layers |"
    yield "|---|---|---|"
    for v in refused:
        yield f"| {v.family} | {v.reason} | {deep_of(v)} |"
    yield "\n## Not tried\n"
    yield "| type | why |"
    yield "|---|---|"
    for v in missing:
        yield f"| {v.family} | {v.reason} |"


def deep_of(verdict: Verdict) -> str:
    return {None: "–", True: "same", False: "another"}[verdict.same_when_deep]


def tried(family: str, n_layers: int, deep: int) -> Verdict:
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return verdict_on(family, n_layers, deep)
        except Exception as failure:  # of transformers, in what is no part of a verdict
            reason = UNTRIED.get(family, f"{type(failure).__name__}: {failure}")
            return Verdict(family, built=False, reason=reason)


def line_of(verdict: Verdict) -> str:
    said = verdict.reason or f"{verdict.worst:.0e} {verdict.one_pass}"
    if verdict.deep_errors:
        said += f" deep {verdict.worst_deep:.0e} ({verdict.deep_rounding:.0e})"
    if verdict.in_float64 is not None:
        said += f" in float64 {verdict.in_float64:.0e}"
    kind = "refused" if verdict.reason else "streamed"
    kind = kind if verdict.built else "no model"
    half = "" if verdict.same_in_half else "  OTHERWISE IN HALF PRECISION"
    wrong = "" if verdict.is_exact else "  WRONG"
    return f"{verdict.family:24} {kind:8} {said} {verdict.captured}{half}{wrong}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--deep", type=int, default=24, help="0: no deep models")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the types")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    asked = arguments.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    families = [family for family in asked if family in CONFIG_MAPPING]
    verdicts = []
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=processes) as pool:
        try_one = partial(tried, n_layers=arguments.layers, deep=arguments.deep)
        for verdict in pool.map(try_one, families):
            verdicts.append(verdict)
            print(line_of(verdict), flush=True)
            if arguments.write:
                arguments.write.write_text("\n".join(table(verdicts)) + "\n")
    sys.exit(not all(verdict.is_exact for verdict in verdicts))


if __name__ == "__main__":
    main()
