"""An oracle for streaming logits that shares nothing with the caches: no cache, no rotation code.

What a layer sees of a kept token is a function of that token's hidden state at the layer's input
and of its place in the cache. So the oracle goes through the layers and, knowing every token's
hidden state at a layer's input, finds those at the next: for each query it runs the model over the
kept tokens as a plain text, at positions 0 ... n - 1, without any cache and with the known hidden
states put in place before every layer. Queries between which nothing is evicted are places of one
text, and texts of one length are rows of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    return lists[0]


class Oracle:
    """Streaming logits of a model (best in float64), layer by layer for all queries of a stream."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.layers = decoder_layers(model)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, kept: Sequence[Sequence[int]]) -> Tensor:
        """Logits [T, V] of a stream [T]; query t sees the tokens kept[t], itself the last."""
        known: list[Tensor] = []  # of each layer so far, every token's hidden state at its input
        for layer in self.layers:
            known.append(self._last(input_ids, kept, known, layer))
        return self._last(input_ids, kept, known, None)

    def _last(
        self,
        input_ids: Tensor,
        kept: Sequence[Sequence[int]],
        known: Sequence[Tensor],
        layer: nn.Module | None,
    ) -> Tensor:
        """Of every query, what comes into a layer [T, hidden], or without one its logits [T, V]."""
        results: dict[int, Tensor] = {}
        for batch in batches(kept):
            tokens = torch.tensor([kept[run[-1]] for run in batch], device=input_ids.device)
            came: list[Tensor] = []
            hooks = [
                each.register_forward_pre_hook(splice(states[tokens]), with_kwargs=True)
                for each, states in zip(self.layers, known, strict=False)
            ]
            if layer is not None:
                hooks.append(layer.register_forward_pre_hook(record(came), with_kwargs=True))
            try:
                logits = self._run(input_ids, tokens)
            except Recorded:
                pass
            finally:
                for hook in hooks:
                    hook.remove()
            for run, states in zip(batch, came[0] if came else logits, strict=True):
                results.update((t, states[len(kept[t]) - 1]) for t in run)
        return torch.stack([results[t] for t in range(len(kept))])

    def _run(self, input_ids: Tensor, tokens: Tensor) -> Tensor:
        """Logits [B, n, V] of texts of tokens of the stream, int64 [B, n], each at its place."""
        logits: Tensor = self.model(input_ids=input_ids[tokens], use_cache=False).logits
        return logits


def runs(kept: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Consecutive queries between which nothing is evicted: each sees what the last does, up to
    itself."""
    run: list[int] = []
    for t, tokens in enumerate(kept):
        if run and list(tokens[:-1]) != list(kept[run[-1]]):
            yield run
            run = []
        run.append(t)
    yield run


def batches(kept: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Runs whose last queries see equally many tokens: side by side they need no padding."""
    by_length: dict[int, list[list[int]]] = {}
    for run in runs(kept):
        by_length.setdefault(len(kept[run[-1]]), []).append(run)
    for same in by_length.values():
        for start in range(0, len(same), 64):
            yield same[start : start + 64]


class Recorded(Exception):
    """What was asked for has been recorded: the rest of the model need not run."""


def splice(states: Tensor) -> Any:
    """A hook that puts hidden states in the place of those that come into a layer."""

    if states.ndim == 4:
        states = states.permute(2, 0, 1, 3)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": states}
        return (states, *args[1:]), kwargs

    return before


def record(came: list[Tensor]) -> Any:
    """A hook that keeps the hidden states that come into a layer, and ends the forward.

    They are [batch, tokens, ...], also where a layer takes several at once (Gemma 3n).
    """

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        came.append(states.permute(1, 2, 0, 3) if states.ndim == 4 else states)
        raise Recorded

    return before
