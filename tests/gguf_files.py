"""Tiny GGUF files: a Llama with a byte-level tokenizer, written as llama.cpp's converter does."""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny import llama

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(
    path: Path,
    kind: str = "F32",
    *,
    leave_out: str = "",
    tokenizer: bool = True,
    extra: dict[str, Tensor] | None = None,
    name: str = "llama",
) -> PreTrainedModel:
    """Write a file, and give the model that was written.

    Args:
        kind: of the matrices, a name of `gguf.GGMLQuantizationType`.
        leave_out: the one tensor of this name.
        extra: more tensors.
        name: of the architecture.
    """
    import gguf

    model = llama(
        vocab_size=260, tie_word_embeddings=True, head_dim=8, rms_norm_eps=1e-5, pad_token_id=0
    )
    c = model.config
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    if tokenizer:
        from tokenizers import pre_tokenizers

        signs = sorted(pre_tokenizers.ByteLevel.alphabet())
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["<|endoftext|>", *signs, "he", "the", "in"])
        writer.add_token_merges(["h e", "t he", "i n"])
        writer.add_token_types([3, *[1] * (len(signs) + 3)])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    tensors = {_gguf_name(key): value for key, value in model.named_parameters()}
    for key, value in {**tensors, **(extra or {})}.items():
        if key != leave_out:
            _add(writer, key, value, kind, c.num_attention_heads, c.num_key_value_heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _gguf_name(key: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if key in fixed:
        return fixed[key]
    _, _, layer, rest = key.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _add(writer: Any, key: str, value: Tensor, kind: str, heads: int, kv_heads: int) -> None:
    import gguf

    numbers = value.detach()
    for part, n in (("attn_q", heads), ("attn_k", kv_heads)):
        if part in key:  # llama.cpp rotates neighbouring numbers, transformers the two halves
            rows = numbers.reshape(n, 2, -1, numbers.shape[1])
            numbers = rows.transpose(1, 2).reshape(numbers.shape)
    array = numbers.to(torch.float32).numpy()
    dtype = gguf.GGMLQuantizationType[kind]
    if kind != "F32" and array.ndim == 2:
        writer.add_tensor(key, gguf.quants.quantize(array, dtype), raw_dtype=dtype)
    else:
        writer.add_tensor(key, numpy.ascontiguousarray(array))
