"""The fixed baseline: a sliding window encoded from scratch for every token, no KV reuse.

For each position the context is the first S tokens and the last W, at positions 0 ... n - 1
("sliding window with recomputation", Xiao et al. 2023, figure 1c, with sinks kept).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from streamcache.caches.admission import pretrained, require_in_memory
from streamcache.caches.shared_copy import shared_copy
from streamcache.decoding.nll import Advance, integers, token_ids, token_nll
from streamcache.policy import EvictionPolicy

_TOKENS_A_BATCH = {"cuda": 16 * 2048, "cpu": 2048}


def context_ids(input_ids: Tensor, n_sink: int, window_size: int, t: int) -> Tensor:
    """Token ids [n] of what token t + 1 is predicted from: n = min(t + 1, S + W)."""
    if t + 1 <= n_sink + window_size:
        return input_ids[: t + 1]
    return torch.cat([input_ids[:n_sink], input_ids[t + 1 - window_size : t + 1]])


@torch.inference_mode()
def recompute_nll(
    model: nn.Module,
    input_ids: Tensor | Sequence[int],
    n_sink: int,
    window_size: int,
    positions: Tensor | Sequence[int],
    advance: Advance | None = None,
) -> Tensor:
    """NLL of token t + 1 for each t in `positions`: float32 [n], on the model's device.

    Args:
        model: a causal language model, or a wrapper around it (`torch.compile`, PEFT).
        input_ids: the text, integers [T], on any device.
        n_sink: S >= 0, tokens.
        window_size: W >= 1, tokens.
        positions: integers, each 0 <= t <= T - 2, in any order.
        advance: called with the number of positions just finished.

    Raises:
        TypeError: the model predicts no tokens.
        UnsupportedModelError: its weights are not in memory.
        PolicyError: n_sink or window_size is out of its range.
        ValueError: the text is not [T] with ids that the model knows, or a position is no integer
            or has no next token in the text.
    """
    EvictionPolicy(n_sink, window_size)
    inner = pretrained(model)
    require_in_memory(inner)
    model = shared_copy(inner)
    input_ids = token_ids(input_ids, model)
    positions, last = integers("positions", positions), len(input_ids) - 2
    if positions.is_floating_point() or positions.ndim != 1:
        raise ValueError(
            f"positions must be integers [n], got {positions.dtype} {list(positions.shape)}"
        )
    positions = positions.to("cpu", torch.long)
    if ((positions < 0) | (positions > last)).any():
        raise ValueError(f"positions must lie in 0 ... {last} (each needs a next token)")
    floor = n_sink + window_size
    nll = torch.empty(len(positions), dtype=torch.float32, device=input_ids.device)
    early = (positions < floor).nonzero()[:, 0]
    if early.numel():  # growing contexts are one causal pass
        length = int(positions[early].max()) + 1
        logits = model(input_ids=input_ids[None, :length], use_cache=False).logits[0]
        rows = positions[early].to(input_ids.device)
        nll[early] = token_nll(logits[rows], input_ids[rows + 1])
        if advance:
            advance(early.numel())
    late = (positions >= floor).nonzero()[:, 0]
    batch = max(1, _TOKENS_A_BATCH.get(input_ids.device.type, 2048) // floor)
    for rows in late.split(batch) if late.numel() else ():
        contexts = [context_ids(input_ids, n_sink, window_size, int(positions[i])) for i in rows]
        logits = model(input_ids=torch.stack(contexts), use_cache=False, logits_to_keep=1).logits
        targets = input_ids[(positions[rows] + 1).to(input_ids.device)]
        nll[rows] = token_nll(logits[:, -1], targets)
        if advance:
            advance(rows.numel())
    return nll


def recompute_step(
    model: nn.Module, input_ids: Tensor, n_sink: int, window_size: int
) -> Callable[[], Tensor]:
    """A function that does what the baseline does for one token in the steady state.

    Raises:
        ValueError: the text is shorter than the window, so the state is not steady.
    """
    floor = n_sink + window_size
    if input_ids.shape[0] < floor:
        raise ValueError(f"a steady window of {floor} tokens needs a text of at least that length")
    model = shared_copy(pretrained(model))
    ids = context_ids(input_ids, n_sink, window_size, input_ids.shape[0] - 1)[None]

    @torch.inference_mode()
    def step() -> Tensor:
        return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    return step
