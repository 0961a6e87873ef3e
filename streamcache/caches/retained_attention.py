"""Attention of many queries at once, each to what its stream holds at that query.

That is the sinks and one run of tokens that ends at the query. The run is a band of the causal
mask. The sinks stand right before it, so a second copy of the query, rotated to its place in the
cache, attends to them, and the two parts are joined by their log-sum-exp.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from streamcache.caches.attention_override import Scores

_TILE = 256  # queries at a time: few look at few keys in vain


class States(NamedTuple):
    """Keys [B, Hkv, m, D] and values [B, Hkv, m, Dv] of m tokens."""

    keys: Tensor
    values: Tensor


class Tile(NamedTuple):
    """Some queries of a band, and the keys of the run that one of them or another sees."""

    queries: slice
    keys: slice
    has_evicted: bool  # whether one of them sees its sinks apart from the run


class Band:
    """Which keys of a run each of n queries sees: the same in all layers and streams.

    A query before which nothing was evicted sees its sinks as a part of the run.

    Args:
        first: the token that the first query is.
        evicted: for each query, the tokens evicted before it; never fewer than before.
        n_sink: S, tokens.
    """

    def __init__(self, first: int, evicted: list[int], n_sink: int, device: torch.device):
        self.first, self.evicted, self.n_sink, self.device = first, evicted, n_sink, device
        self.first_key = oldest_in_run(evicted[0], n_sink)
        self.has_evicted = evicted[-1] > 0
        self.tiles = [
            self._tile(begin, min(begin + _TILE, len(evicted)))
            for begin in range(0, len(evicted), _TILE)
        ]
        self._masks: dict[tuple[int, int, int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._limits: dict[int, tuple[Tensor, Tensor]] = {}

    def _tile(self, begin: int, end: int) -> Tile:
        oldest = oldest_in_run(self.evicted[begin], self.n_sink)
        keys = slice(oldest - self.first_key, self.first + end - self.first_key)
        return Tile(slice(begin, end), keys, self.evicted[end - 1] > 0)

    def queries(self) -> tuple[Tensor, Tensor]:
        """The tokens that the queries are, and those evicted before each: int64 [n]."""
        evicted = torch.tensor(self.evicted)
        if self.device.type == "cuda":  # a copy for which the host need not wait
            evicted = evicted.pin_memory().to(self.device, non_blocking=True)
        return self._tokens(slice(0, len(self.evicted)), self.first), evicted.to(self.device)

    def masks(
        self, tile: Tile, sliding_window: int, groups: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Additive masks of the run and of the sinks: [groups * queries, keys or S]."""
        name = tile.queries.start, sliding_window, groups, dtype
        if name not in self._masks:
            evicted = torch.tensor(self.evicted[tile.queries], device=self.device)[:, None]
            query = self._tokens(tile.queries, self.first)[:, None]
            key = self._tokens(tile.keys, self.first_key)
            sink = torch.arange(self.n_sink, device=self.device)
            in_run = (key <= query) & ((evicted == 0) | (key >= self.n_sink + evicted))
            apart = (evicted > 0).expand(-1, self.n_sink)
            if sliding_window:
                in_run = in_run & (query - key < sliding_window)
                apart = apart & (query - evicted - sink < sliding_window)
            zero = torch.zeros((), dtype=dtype, device=self.device)
            in_run, apart = (
                torch.where(seen, zero, -torch.inf).repeat(groups, 1) for seen in (in_run, apart)
            )
            self._masks[name] = in_run, apart
        return self._masks[name]

    def limits(self, sliding_window: int) -> tuple[Tensor, Tensor]:
        """Of each query, the first key of the run and the first sink that it sees: int32 [n].

        The latter is beyond all sinks where nothing was evicted.
        """
        if sliding_window not in self._limits:
            token, evicted = self.queries()
            oldest = torch.where(evicted > 0, self.n_sink + evicted, 0)
            sink = torch.where(evicted > 0, 0, 2**31 - 1)
            if sliding_window:
                oldest = torch.maximum(oldest, token - sliding_window + 1)
                sink = torch.maximum(sink, token - evicted - sliding_window + 1)
            oldest = oldest - self.first_key
            self._limits[sliding_window] = oldest.int(), sink.clamp(max=2**31 - 1).int()
        return self._limits[sliding_window]

    def _tokens(self, part: slice, first: int) -> Tensor:
        return torch.arange(first + part.start, first + part.stop, device=self.device)


def oldest_in_run(evicted: int, n_sink: int) -> int:
    """The first token of the run that is held once so many were evicted."""
    return n_sink + evicted if evicted else 0


def retained_attention(
    query: Tensor, to_sinks: Tensor, run: States, sinks: States, band: Band, scores: Scores
) -> Tensor:
    """Attend to the run and, from the first eviction on, to the sinks.

    Args:
        query: [B, H, n, D], rotated as the keys of the run are; H is a multiple of Hkv.
        to_sinks: [B, H, n, D], rotated to meet the keys of the sinks.
        run: of the tokens from `band.first_key` to the last query.
        sinks: of the first S tokens, or of fewer if nothing was evicted.

    Returns:
        [B, n, H, Dv].
    """
    batch, n_heads, n_queries, width = query.shape
    n_kv_heads = run.keys.shape[1]
    groups = n_heads // n_kv_heads
    # The query heads that share a key head become further queries of that head.
    folded = batch, n_kv_heads, -1, width
    is_fused = query.device.type == "cpu" and not scores.softcap and run.values.shape[-1] == width
    attend = _fused if is_fused else _plain
    out = query.new_empty(batch, n_queries, n_heads, run.values.shape[-1])
    for tile in band.tiles:
        in_run, apart = band.masks(tile, scores.sliding_window, groups, query.dtype)
        learned = scores.learned_sinks
        if learned is not None:
            n_tile = tile.queries.stop - tile.queries.start
            learned = learned.repeat_interleave(n_tile).view(1, n_kv_heads, -1)
        sink_scores = None
        if tile.has_evicted and band.n_sink:
            sink_query = to_sinks[:, :, tile.queries].reshape(folded)
            sink_scores = _scores(sink_query, sinks.keys, apart, scores)
        part = States(*(states[:, :, tile.keys] for states in run))
        queries = query[:, :, tile.queries].reshape(folded)
        result = attend(queries, part, in_run, sink_scores, sinks.values, learned, scores)
        result = result.reshape(batch, n_heads, -1, result.shape[-1])
        out[:, tile.queries] = result.transpose(1, 2)
    return out


def _plain(
    query: Tensor,
    run: States,
    mask: Tensor,
    sink_scores: Tensor | None,
    sink_values: Tensor,
    learned: Tensor | None,
    scores: Scores,
) -> Tensor:
    """One softmax over all scores, written out."""
    logits, values = _scores(query, run.keys, mask, scores), run.values
    if sink_scores is not None:
        logits = torch.cat([sink_scores, logits], dim=-1)
        values = torch.cat([sink_values, values], dim=2)
    if learned is not None:
        column = learned.to(logits.dtype)[..., None].expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, column], dim=-1)
    weights = logits.softmax(dim=-1)[..., : values.shape[2]]
    return weights.to(values.dtype) @ values


def _fused(
    query: Tensor,
    run: States,
    mask: Tensor,
    sink_scores: Tensor | None,
    sink_values: Tensor,
    learned: Tensor | None,
    scores: Scores,
) -> Tensor:
    """The run by a kernel, whose log-sum-exp gives its share of the attention."""
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, *run, attn_mask=mask, scale=scores.scaling
    )
    if sink_scores is not None:
        of_run, total = total, torch.logaddexp(total, sink_scores.logsumexp(dim=-1))
        weights = (sink_scores - total[..., None]).exp()
        out = out * (of_run - total).exp()[..., None] + weights @ sink_values.to(weights.dtype)
    if learned is not None:
        share = torch.sigmoid(total - learned)
        out = out * share[..., None]
    return out


def _scores(query: Tensor, keys: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = query.to(wide) @ keys.to(wide).mT * scores.scaling
    if scores.softcap:
        logits = (logits / scores.softcap).tanh_() * scores.softcap
    return logits + mask
