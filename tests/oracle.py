"""An oracle for streaming logits that shares nothing with the caches: no cache, no rotation code.

What a layer sees of a kept token is a function of that token's hidden state at the layer's input
and of its place in the cache. So the oracle keeps those hidden states and, at each step, runs the
whole model over the kept tokens as a plain text without any cache, at positions 0 ... n - 1; before
every layer it puts the recorded hidden states of the earlier tokens back in place.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def kept_after_each(
    n_tokens: int, n_sink: int, window: int, slack: int, max_drop: int | None, every: int
) -> list[list[int]]:
    """The tokens held after each append, from the rule of the specification, as plain lists."""
    return list(kept_by_rule(n_tokens, n_sink, window, slack, max_drop, every))


def kept_by_rule(
    n_tokens: int, n_sink: int, window: int, slack: int, max_drop: int | None, every: int
) -> Iterator[list[int]]:
    held: list[int] = []
    for t in range(1, n_tokens + 1):
        need = len(held) + 1 - (n_sink + window)
        if need > 0 and (t % every == 0 or len(held) + 1 > n_sink + window + slack):
            for _ in range(need if max_drop is None else min(need, max_drop)):
                held.remove(next(token for token in held if token >= n_sink))
        held.append(t - 1)
        yield list(held)


def kept_in_chunks(
    chunks: Sequence[int],
    n_sink: int,
    window: int,
    slack: int,
    max_drop: int | None,
    every: int,
) -> list[list[int]]:
    """The tokens each token sees where chunks are fed: all evictions of a chunk come before it."""
    history = kept_after_each(sum(chunks), n_sink, window, slack, max_drop, every)
    rows: list[list[int]] = []
    for n in chunks:
        held = history[len(rows) + n - 1]
        rows += [[token for token in held if token <= t] for t in range(len(rows), len(rows) + n)]
    return rows


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    return lists[0]


class Oracle:
    """Streaming logits of a model (best in float64), token by token."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.layers = decoder_layers(model)

    @torch.no_grad()
    def logits(self, input_ids: Tensor, kept: Sequence[Sequence[int]]) -> Tensor:
        """Logits [T, V] of a stream [T]; query t sees the tokens kept[t], itself the last."""
        histories: list[list[Tensor]] = [[] for _ in self.layers]
        hooks = [
            layer.register_forward_pre_hook(self._splice(histories[i]), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        try:
            rows = []
            for tokens in kept:
                self.tokens = list(tokens)
                ids = input_ids[self.tokens][None]
                rows.append(self.model(input_ids=ids, use_cache=False).logits[0, -1])
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(rows)

    def _splice(self, history: list[Tensor]) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            named = "hidden_states" in kwargs
            hidden = kwargs["hidden_states"] if named else args[0]
            history.append(hidden[0, -1])
            hidden = torch.stack([history[token] for token in self.tokens])[None]
            if named:
                return args, {**kwargs, "hidden_states": hidden}
            return (hidden, *args[1:]), kwargs

        return before
