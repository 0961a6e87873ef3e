"""The outputs of a decoder that was fed a long input in pieces, and of one without gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput


def joined(pieces: Sequence[ModelOutput], n_rows: int) -> ModelOutput:
    """One output of the decoder as if its input had not been cut.

    Args:
        pieces: the outputs of the pieces, in order.
        n_rows: the batch size B. A tensor is [B, tokens, ...] or [B * tokens, ...].

    Raises:
        ValueError: an output cannot be joined.
    """
    last = pieces[-1]
    lengths = [piece["last_hidden_state"].shape[1] for piece in pieces]

    def join(name: str, parts: Sequence[Any]) -> Any:
        if all(part is None or isinstance(part, Cache) for part in parts):
            return parts[-1]
        if all(isinstance(part, tuple) for part in parts):
            return tuple(join(name, layer) for layer in zip(*parts))
        if all(isinstance(part, Tensor) for part in parts):
            if all(p.shape[:2] == (n_rows, n) for p, n in zip(parts, lengths)):
                return torch.cat(list(parts), dim=1)
            if all(p.shape[0] == n_rows * n for p, n in zip(parts, lengths)):
                rows = [p.unflatten(0, (n_rows, n)) for p, n in zip(parts, lengths)]
                return torch.cat(rows, dim=1).flatten(0, 1)
        raise ValueError(
            f"the output {name!r} needs the input in one forward, and tokens are evicted inside it"
            ": feed it in pieces"
        )

    return type(last)(**{name: join(name, [p[name] for p in pieces]) for name in last})


class _InferenceOnly(torch.autograd.Function):
    """The identity, through which no gradient goes."""

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "a bounded cache is for inference only: gradients do not reach the tokens it holds"
        )


def inference_only(outputs: Any) -> Any:
    """Outputs whose gradients raise RuntimeError instead of being wrong."""
    if not torch.is_grad_enabled():
        return outputs
    cut: Callable[[Any], Any] = lambda value: (  # noqa: E731
        _InferenceOnly.apply(value) if isinstance(value, Tensor) and value.requires_grad else value
    )
    if isinstance(outputs, tuple):
        return tuple(map(cut, outputs))
    for name, value in list(outputs.items()):
        outputs[name] = tuple(map(cut, value)) if isinstance(value, tuple) else cut(value)
    return outputs
