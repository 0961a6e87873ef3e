"""Weights of fewer bits: what they cost in quality, and that captured decoding reads the same."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from streamcache import EvictionPolicy, StreamingCache, streaming_nll
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.kernels.quantized import QuantizedLinear, with_quantized_kernels
from streamcache.extras import MissingExtra
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model
from streamcache.inputs.quantize import Quantization, QuantizationError, quantize
from tests.shell import Run
from tests.tiny import copy_of, error, llama, neox, stream, text

POLICY = EvictionPolicy(4, 12, 3, 2, 5)
IDS = load_tokens("stream", tokenizer=None, max_tokens=512).input_ids


def nll(quantization: Quantization | None) -> float:
    model = load_model("reference", quantization=quantization).model
    return float(streaming_nll(model, IDS, EvictionPolicy(4, 124)).mean())


def test_int8_costs_next_to_nothing_fp8_a_little_and_int4_something() -> None:
    plain, int8, int4, fp8 = nll(None), nll("int8"), nll("int4"), nll("fp8")
    assert plain != int8 and abs(int8 - plain) < 0.01
    assert plain != fp8 and abs(fp8 - plain) < 0.02
    assert 0.01 < int4 - plain < 0.5


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@pytest.mark.parametrize("make", [neox, llama])
def test_a_decoder_reads_what_torchao_chose(make: Any, weights: Quantization) -> None:
    model, ids = make(), text(80)
    quantize(model, weights)
    eager = stream(model, StreamingCache(model, POLICY), ids)
    decoder = CapturedDecoder(model, POLICY)
    steps = [decoder.step(ids[:, t]).clone()[:, None] for t in range(ids.shape[1])]
    assert error(torch.cat(steps, dim=1), eager) < 1e-4


def other_quantizations() -> dict[str, Any]:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerAxis
    from torchao.quantization.quant_primitives import MappingType

    int4: Any = getattr(torch, "int4")  # noqa: B009 (a type of no stub)
    row, asymmetric = PerAxis(0), MappingType.ASYMMETRIC
    return {
        "asymmetric int8": IntxWeightOnlyConfig(torch.int8, row, asymmetric),
        "asymmetric int4": IntxWeightOnlyConfig(int4, row, asymmetric),
        "symmetric int4 by row": IntxWeightOnlyConfig(int4, row),
        "dynamic activations": Int8DynamicActivationInt8WeightConfig(version=2),
        "dynamic activations of intx": Int8DynamicActivationIntxWeightConfig(torch.int8, row),
    }


@pytest.mark.parametrize("name", other_quantizations())
def test_a_decoder_computes_what_the_quantised_model_computes(name: str) -> None:
    """By its own layers, where the kernels would leave out zero points or what happens to x."""
    from torchao.quantization import quantize_

    model, ids = llama(), text(40)
    quantize_(model, other_quantizations()[name])
    if name != "symmetric int4 by row":
        assert with_quantized_kernels(model) is model
    if "activations" in name:
        return  # integers of activations jump at the last bit of what is rounded
    eager = stream(model, StreamingCache(model, POLICY), ids)
    decoder = CapturedDecoder(model, POLICY)
    steps = [decoder.step(ids[:, t]).clone()[:, None] for t in range(ids.shape[1])]
    assert error(torch.cat(steps, dim=1), eager) < 1e-4


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoder_of_quantised_weights_in_half_precision_streams_as_the_model(
    dtype: torch.dtype, weights: Quantization
) -> None:
    """The rotation is measured in float32, whatever the weights are."""
    model, ids = copy_of(llama(), dtype), text(60)
    quantize(model, weights)
    eager = stream(model, StreamingCache(model, POLICY), ids)
    decoder = CapturedDecoder(model, POLICY)
    steps = [decoder.step(ids[:, t]).clone()[:, None] for t in range(ids.shape[1])]
    found = error(torch.cat(steps, dim=1).float(), eager.float())
    assert found < 100 * torch.finfo(dtype).eps  # 0.8; with keys that stay unrotated 4.9
    assert all(layer.rotation for layer in decoder.cache.geometry.layers)


def test_the_copy_for_the_kernels_shares_the_weights_and_leaves_the_model_alone() -> None:
    model: Any = neox()
    assert with_quantized_kernels(model) is model, "nothing to do"
    quantize(model, "int8")
    copied = with_quantized_kernels(model)
    layers = [m for m in copied.modules() if isinstance(m, QuantizedLinear)]
    before: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == len(before) > 0
    assert not any(isinstance(m, QuantizedLinear) for m in before)
    addresses = {m.weight.qdata.data_ptr() for m in before}
    assert {m.weight.data_ptr() for m in layers} == addresses
    embeddings = [m.get_input_embeddings().weight.data_ptr() for m in (model, copied)]
    assert embeddings[0] == embeddings[1]


def test_an_unknown_quantization_and_a_missing_torchao_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(QuantizationError, match="int8, int4, fp8"):
        quantize(neox(), "int2")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtra, match=r"streamcache\[quantization\]"):
        quantize(neox(), "int8")


def test_a_record_says_what_the_weights_are(run: Run) -> None:
    ran = run(
        *("eval", "--quantization", "int8", "--max-eval-tokens", "260", "--runs", "1"),
        *("--tpot-tokens", "8", "--window-size", "60", "--streaming-mode", "captured"),
    )
    assert ran.status == 0, ran.err
    dtype = "float16" if torch.cuda.is_available() else "float32"
    assert f"{dtype} int8" in ran.out and "ring captured S=4 W=60" in ran.out
