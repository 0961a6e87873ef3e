"""The outputs of a decoder that was fed an input in pieces, and of one without gradients."""

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
            f"the output {name!r} needs the input in one forward pass, and tokens are evicted "
            "inside it: feed it in pieces"
        )

    return type(last)(**{name: join(name, [p[name] for p in pieces]) for name in last})


def beside(
    parts: Sequence[ModelOutput | None], n_rows: Sequence[int], n_tokens: int
) -> ModelOutput:
    """One output of the decoder for parts of a batch that were fed their last tokens.

    Places before the first token of a part are zero.

    Args:
        parts: the outputs; None where no token was fed.
        n_rows: of each part, its rows. A tensor is [rows, tokens, ...] or [rows * tokens, ...].
        n_tokens: the tokens of the widest part, or more.

    Raises:
        ValueError: an output cannot be joined.
    """
    like: ModelOutput = next(part for part in parts if part is not None)
    fed = [0 if part is None else part["last_hidden_state"].shape[1] for part in parts]

    def join(name: str, values: Sequence[Any]) -> Any:
        given = [(v, n, t) for v, n, t in zip(values, n_rows, fed) if t]
        if all(v is None or isinstance(v, Cache) for v, _, _ in given):
            return given[-1][0]
        if all(isinstance(v, tuple) for v, _, _ in given):
            layers = range(len(given[0][0]))
            return tuple(join(name, [v and v[i] for v in values]) for i in layers)
        if all(isinstance(v, Tensor) for v, _, _ in given):
            by_row = all(v.shape[:2] == (n, t) for v, n, t in given)
            if by_row or all(v.shape[0] == n * t for v, n, t in given):
                shapes = [v if by_row else v.unflatten(0, (n, t)) for v, n, t in given]
                whole = shapes[0].new_zeros(sum(n_rows), n_tokens, *shapes[0].shape[2:])
                fed_rows = [r for r, t in zip(whole.split(list(n_rows)), fed) if t]
                for rows, own in zip(fed_rows, shapes):
                    rows[:, n_tokens - own.shape[1] :] = own
                return whole if by_row else whole.flatten(0, 1)
        raise ValueError(
            f"the output {name!r} needs the batch in one forward pass, and its rows are fed "
            "separately: feed it token by token"
        )

    values = {name: [None if p is None else p[name] for p in parts] for name in like}
    return type(like)(**{name: join(name, values[name]) for name in like})


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
