"""Weights of fewer bits, by torchao: activations, norms, embeddings and the cache stay as they are.

torchao chooses the numbers and computes with them eagerly. `CapturedDecoder` reads int8 and fp8
weights by kernels of its own (`kernels.quantized`).
"""

from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from streamcache.extras import require

Quantization = Literal["int8", "int4", "fp8"]
_GROUP = 128  # columns that share a scale, of int4; of int8 and fp8 a row has one


class QuantizationError(ValueError):
    """A model cannot be quantised as asked; the message says why and what would do."""


def quantize(model: PreTrainedModel, how: Quantization) -> None:
    """Quantise the weights of all linear layers in place, the one before the logits included.

    int8 is symmetric with a scale a row, fp8 is float8_e4m3 with a scale a row; int4 has a scale
    for every 128 columns and, on a GPU in bfloat16, is packed for PyTorch's own kernel; elsewhere
    it is held in bytes, for its PPL.

    Raises:
        MissingExtra: torchao is not installed.
        QuantizationError: there is no such quantisation, or not of this model.
    """
    if how not in get_args(Quantization):
        known = ", ".join(get_args(Quantization))
        raise QuantizationError(f"no quantization {how!r}: give one of {known}")
    if how == "fp8" and not _converts_fp8(model.device):
        raise QuantizationError(
            "fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper); int8 does without"
        )
    require("quantization", "quantization")
    try:
        from torchao import quantization as ao
    except ImportError as error:  # a torchao that was built for another torch
        raise QuantizationError(f"torchao cannot be imported: {error}") from error

    try:
        ao.quantize_(model, _config(ao, how, model))
    except Exception as error:  # torchao has no class of errors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise QuantizationError(f"torchao cannot quantize this model to {how}: {reason}") from error


def _config(ao: Any, how: Quantization, model: PreTrainedModel) -> Any:
    if how == "int8":
        return ao.Int8WeightOnlyConfig(version=2)
    if how == "fp8":
        return ao.Float8WeightOnlyConfig(granularity=ao.granularity.PerRow())
    if model.device.type == "cuda" and model.dtype == torch.bfloat16:
        return ao.Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    group = ao.granularity.PerGroup(_GROUP)
    int4: Any = getattr(torch, "int4")  # noqa: B009 (a type of no stub)
    return ao.IntxWeightOnlyConfig(weight_dtype=int4, granularity=group)


def _converts_fp8(device: torch.device) -> bool:
    """A CPU does, slowly."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)
